"""What the targets run, as `make --dry-run` shows it."""

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


@pytest.mark.parametrize(
    ("target", "arguments", "expected"),
    [
        ("train", "", "train.py --config=configs/digits.py"),
        ("train", "--workdir=X", "train.py --config=configs/digits.py --workdir=X"),
        ("train", "--workdir X --config.seed=1", "train.py --config=configs/digits.py --workdir X --config.seed=1"),
        ("train", "--config=configs/tables.py", "train.py --config=configs/tables.py"),
        ("speeches", "--ablation=ffn_off", "train.py --config=configs/speeches.py --ablation=ffn_off"),
        ("debate", "--from_results", "tools/debate.py --from_results"),
        (
            "ablation",
            "",
            "-m flaxformer_lab.ablate --config=configs/ablations/cross_dimension.py --workdir=runs/cross_dimension",
        ),
        (
            "ablation",
            "--workdir=X",
            "-m flaxformer_lab.ablate --config=configs/ablations/cross_dimension.py --workdir=X",
        ),
    ],
)
def test_a_flag_in_args_is_in_place_of_the_targets_own(target, arguments, expected):
    command = ["make", "--dry-run", "--no-print-directory", target, f"ARGS={arguments}", "VENV=there", "EXTRAS="]
    shown = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True).stdout
    last = shown.replace("\\\n", " ").splitlines()[-1]
    assert last.split() == ["there/bin/python", *expected.split()]
