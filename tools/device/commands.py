"""The commands, each in its own process; this process checks their results on a CPU."""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tools.device.outcome import Measured, required
from tools.device.training import PROBE, TEXT, difference, metric_values, same

ROOT = Path(__file__).parents[2]


def command(*arguments: Any, compiled: Path | None = None) -> str:
    """What `python ARGUMENTS` writes. compiled: the folder of its compiled programs, if not the default.

    Raises:
        ModuleNotFoundError: the command lacks a package.
        RuntimeError: it ended with another exit code than 0; the message ends with its last lines.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path} | ({"JAX_COMPILATION_CACHE_DIR": str(compiled)} if compiled else {})
    line = [sys.executable, *map(str, arguments)]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        missing = re.search(r"No module named '([\w.]+)'", done.stderr)
        if missing:
            raise ModuleNotFoundError(missing[0], name=missing[1])
        tail = "\n".join(done.stderr.strip().splitlines()[-4:])
        raise RuntimeError(f"python {' '.join(line[1:])} ended with exit code {done.returncode}: {tail}")
    return done.stdout


@functools.cache
def trained(folder: Path, name: str) -> Path:
    """The text recipe trained by `train.py`, with programs that it compiled itself."""
    file = _written(folder / "text.py", TEXT)
    command("train.py", f"--config={file}", f"--workdir={folder / name}", compiled=folder / f"compiled-{name}")
    return folder / name


def trains(folder: Path) -> Measured:
    """`train.py` on all devices; its loss falls."""
    losses = metric_values(trained(folder, "command"), "train", "loss")
    return required(losses[-1] < losses[0], "the loss did not fall", {"first loss": losses[0], "last loss": losses[-1]})


def repeats(folder: Path) -> Measured:
    """Two processes with the same config, each with programs that it compiled itself, give the same bytes."""
    return same(trained(folder, "command-again"), trained(folder, "command"))


def as_on_a_cpu(folder: Path) -> Measured:
    """The losses of the command's run are those of the same run on this machine's CPU, up to rounding."""
    from flaxformer_lab.config import parse_config
    from flaxformer_lab.parsing import override
    from flaxformer_lab.training.loop import train

    run = trained(folder, "command")
    train(parse_config(override(TEXT, "parallelism.strategy", "single")), folder / "cpu", quiet=True)
    there, here = (np.array(metric_values(each, "train", "loss")) for each in (run, folder / "cpu"))
    # Parameters are only reported: where a gradient is only rounding, Adam makes a full step of it.
    measured = {"relative difference of losses": float(np.max(np.abs(there - here) / here))}
    measured |= {f"{name} of parameters": value for name, value in difference(run, folder / "cpu").items()}
    return required(measured["relative difference of losses"] <= 1e-4, "a CPU gives other losses", measured)


def evaluate(folder: Path) -> Measured:
    """`evaluate` repeats the metrics of training to the last digit."""
    run = trained(folder, "command")
    found = json.loads(command("-m", "flaxformer_lab.evaluate", f"--workdir={run}").splitlines()[-1])["loss"]
    told = metric_values(run, "test", "loss")[-1]
    return required(found == told, "evaluation and training differ", {"loss of training": told, "evaluated": found})


def generate(folder: Path) -> Measured:
    """`generate` writes the requested number of characters."""
    run, prompt, length = trained(folder, "command"), "My fellow citizens, ", 40
    options = (f"--prompt={prompt}", f"--length={length}")
    text = command("-m", "flaxformer_lab.generate", f"--workdir={run}", *options).removesuffix("\n")
    holds = text.startswith(prompt) and len(text) == len(prompt) + length
    return required(holds, "not the text that was asked for", {"characters": len(text) - len(prompt)})


def measure(folder: Path) -> Measured:
    """`measure` measures a trained model."""
    run = trained(folder, "command")
    command("-m", "flaxformer_lab.measure", f"--workdir={run}", "--examples=16")
    (path,) = run.glob("measures/*/measures.json")
    measures = json.loads(path.read_text()).keys() - {"step", "split", "examples"}
    return required(measures != set(), "no measures", {"measures": len(measures)})


def ablate(folder: Path, engine: str) -> Measured:
    """`ablate` and `report`, here or as tasks of Ray: two variants of a probe, with two seeds and learning rates."""
    if engine == "ray":
        import ray  # noqa: F401 names what is missing
    _written(folder / "probe.py", PROBE)
    variants = {"tasks": {"product": {"recipe": "probe.py"}}, "variants": {"ffn_off": "ffn_off"}}
    rates = {"learning_rates": (0.01, 0.03), "max_extensions": 0}
    file = _written(folder / "ablation.py", variants | rates | {"seeds": (0, 1)})
    workdir = folder / f"ablation-{engine}"
    command("-m", "flaxformer_lab.ablate", f"--config={file}", f"--workdir={workdir}", f"--engine={engine}")
    told = (workdir / "results.csv").read_bytes()
    command("-m", "flaxformer_lab.report", f"--workdir={workdir}")
    measured = {"rows": len(told.splitlines()) - 1}
    return required(
        (workdir / "results.csv").read_bytes() == told, "the report changed when it was written again", measured
    )


def _written(path: Path, tree: Mapping[str, Any]) -> Path:
    path.write_text(f"def get_config():\n    return {tree!r}\n")
    return path
