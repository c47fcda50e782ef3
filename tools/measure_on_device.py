"""Everything that is to be measured on a GPU, as one command without a network: `python tools/measure_on_device.py`.

Runs the benchmarks and `tools/check_device.py` one after the other, each as a process with a time limit, the most
wanted first; copies what they write into --out, and prints what each took. A benchmark that needs a library which is
not installed (PyTorch, transformers) fails, and the rest goes on.
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LIMIT_S = 120  # of one benchmark
CHECK_S = 240


def commands(device: str) -> dict[str, list[str]]:
    """The arguments of each process by its name, in order."""
    on = [f"--device={device}"]
    return {
        "train_step": ["benchmarks/train_step.py", *on],
        "precision": ["benchmarks/precision.py"],
        "check_device": ["tools/check_device.py", f"--limit_s={CHECK_S}"],
        "decoding": ["benchmarks/decoding.py", *on],
        "ablation_throughput": ["benchmarks/ablation_throughput.py", *on],
        "attention_length": ["benchmarks/attention_length.py", *on],
    }


def main() -> int:
    """Returns 1 where a process failed or ran out of time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="gpu")
    parser.add_argument("--only", nargs="*", choices=tuple(commands("gpu")), help="default: all")
    parser.add_argument("--limit_s", type=float, help=f"of each; default: {LIMIT_S}, of check_device {CHECK_S + 60}")
    parser.add_argument("--out", type=Path, help="folder for the results beside benchmarks/results")
    options = parser.parse_args()
    failed = 0
    for name, arguments in commands(options.device).items():
        if options.only and name not in options.only:
            continue
        if name == "check_device" and options.out:
            arguments = [*arguments, f"--out={options.out.resolve()}"]
        limit = options.limit_s or (CHECK_S + 60 if name == "check_device" else LIMIT_S)
        began = time.time()
        try:
            code = subprocess.run([sys.executable, *arguments], cwd=ROOT, timeout=limit, check=False).returncode
            outcome = "ok" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            outcome = f"stopped after {limit:.0f} s"
        failed += outcome != "ok"
        print(f"== {name}: {outcome}, {time.time() - began:.0f} s", flush=True)
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            for path in RESULTS.iterdir():
                if path.stat().st_mtime >= began:
                    shutil.copy2(path, options.out)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
