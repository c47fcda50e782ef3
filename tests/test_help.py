"""`--help`, `--version`, `--print_config`, and what a command says that is given nothing."""

import json
import re
from pathlib import Path

import jax
import pytest

import flaxformer_lab
from flaxformer_lab.ablation.variants import VARIANTS
from flaxformer_lab.command_line import load_config
from flaxformer_lab.config import Config, parse_config
from flaxformer_lab.parsing import known_keys

REPOSITORY = Path(__file__).parents[1]
DIGITS = str(REPOSITORY / "configs" / "digits.py")
COMMANDS = ["train", "flaxformer_lab.train", "flaxformer_lab.ablate", "flaxformer_lab.roofline"]
WITH_CONFIG = COMMANDS[:4]
COMMANDS += [f"flaxformer_lab.{name}" for name in ("evaluate", "export", "forecast", "generate", "measure", "report")]


@pytest.fixture(autouse=True)
def place(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.parametrize("command", COMMANDS)
def test_without_arguments_a_command_says_what_it_takes_and_does_nothing(command_texts, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    code, out, err = command_texts(command)
    assert (code, out, list(tmp_path.iterdir())) == (2, "", [])
    assert "  --workdir\n" in err and "config keys" not in err
    assert ("--help shows recipes, variants and every key" in err) == (command in WITH_CONFIG)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_has_help_with_its_purpose_and_flags(command_texts, command, flag):
    code, out, err = command_texts(command, flag)
    assert (code, err) == (0, "")
    assert (
        f"{command if '.' in command else 'flaxformer_lab.train'} --" in out
        and "  --workdir\n" in out
        and "  --import\n" in out
    )
    assert ("--print_config" in out) == ("config keys" in out) == (command in WITH_CONFIG)


def test_help_has_every_key_of_the_config_with_its_default_and_meaning(command_texts):
    _, out, _ = command_texts("train", "--help")
    _, _, keys = out.partition("config keys")
    shown = set(re.findall(r"^  ([a-z_0-9.]+)=", keys, re.MULTILINE))
    assert {key for key in known_keys(Config) if not key.endswith(".name")} <= shown
    assert "  model.width=64\n      int, at least 1. features of a token\n" in keys
    assert " model.name=cnn_1d or cnn_2d: Residual convolutions" in keys and "  model.kernel_size=3\n" in keys
    assert "empty for none. Default: tensorboard. --num_processes" in " ".join(out.split())  # in lines of any length
    for name in VARIANTS:
        assert f"\n  {name}: " in out
    assert "\n  configs/digits.py  Handwritten digits" in out and "configs/ablations" not in out
    _, out, _ = command_texts("flaxformer_lab.ablate", "--help")
    assert "  configs/ablations/scales.py  Do Transformers" in out and "  learning_rates=0.001,0.003,0.01\n" in out
    assert "variants (--config.variants.NAME=NAME,NAME):" in out and "--ablation" not in out  # which it does not take


OWN = """
from dataclasses import dataclass
from typing import Literal
from flaxformer_lab.model_config import ModelConfig, Precision
from flaxformer_lab.parsing import AtLeastOne
from flaxformer_lab.registry import register

@dataclass(frozen=True)
class Mine(ModelConfig):
    '''My own.

    Attributes:
        stride: of mine.
    '''

    name: Literal["mine"] = "mine"
    width: AtLeastOne = 64
    stride: AtLeastOne = 3
    bias: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Precision = "highest"

register("model", "mine", config=Mine)(object)
"""


def test_help_has_parts_of_ones_own(command_texts, tmp_path, own_parts):
    (tmp_path / "parts.py").write_text(OWN)
    for written in ([f"--import={tmp_path / 'parts.py'}"], ["--import", str(tmp_path / "parts.py")]):
        own_parts()  # forgets them
        _, out, _ = command_texts("train", *written, "--help")
        assert " model.name=mine: My own." in out and "  model.stride=3\n      int, at least 1. of mine\n" in out


def test_the_config_is_printed_as_it_would_run(command_texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [f"--config={DIGITS}", "--config.model.width=32", "--ablation=ffn_off"]
    code, out, _ = command_texts("train", *arguments, "--print_config")
    assert (code, list(tmp_path.iterdir())) == (0, [])
    assert parse_config(json.loads(out)) == load_config(DIGITS, ["--config.model.width=32"], ["ffn_off"])
    ablation = str(REPOSITORY / "configs" / "ablations" / "scales.py")
    code, out, _ = command_texts("flaxformer_lab.ablate", f"--config={ablation}", "--print_config", "--config.seeds=7")
    assert (code, json.loads(out)["seeds"]) == (0, [7])
    code, _, err = command_texts("flaxformer_lab.evaluate", "--workdir=run", "--print_config")
    assert code == 2 and "this command takes no config" in err


def test_the_version(command_texts):
    code, out, _ = command_texts("flaxformer_lab.evaluate", "--version")
    assert code == 0 and out.startswith(f"flaxformer_lab {flaxformer_lab.__version__} (jax {jax.__version__}, flax ")


def test_the_recipe_of_a_run_is_no_ablation(command_texts):
    code, _, err = command_texts("flaxformer_lab.ablate", f"--config={DIGITS}")
    assert code == 2 and f"is the recipe of one run: python -m flaxformer_lab.train --config={DIGITS} trains it" in err
