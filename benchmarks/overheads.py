"""Overheads of training: saving checkpoints, and streaming data from the host.

    python benchmarks/overheads.py             # about 8 minutes on 2 cores
    python benchmarks/overheads.py --quick     # does it run at all?

- A save: the speeches recipe, blocks of updates with a save at their start and without, alternating. The time that the
  save adds (waiting for the copy, and cores that writing takes from the updates) is compared with 100 updates.
- Streaming: the rate of updates with `training.input=stream` and with `device`, on the speeches and the digits recipes;
  on the digits also with every record decoded each time, as for data that the host's memory cannot hold.
- Memory: resident memory of the process while a small model streams 10,000 updates.

Times and rates are medians over rounds; ratios are taken round by round.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from contest import versions, write_result
from train_step import machine

from flaxformer_lab.command_line import load_config
from flaxformer_lab.compilation import use_compilation_cache
from flaxformer_lab.tasks import examples
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.feeds import call_schedule, make_feeds
from flaxformer_lab.training.programs import make_run_steps
from flaxformer_lab.training.state import initial_state

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("model.width=8", "model.depth=1", "model.attention.num_heads=2", "training.batch_size=16")


class Runner:
    """Applies blocks of a recipe's updates; each block continues from the state of the last one."""

    def __init__(self, recipe: str, *overrides: str):
        keys = [f"--config.{override}" for override in ("parallelism.strategy=single", *overrides)]
        self._config = load_config(str(ROOT / "configs" / f"{recipe}.py"), keys)
        self._experiment = make_experiment(self._config)
        self._examples = self._experiment.task.examples("train")
        run_steps, data = make_run_steps(self._experiment, self._examples)
        place = self._experiment.strategy.place
        self._run_steps, self._data, self._place = run_steps, place(data), place
        start = initial_state(self._experiment.network, self._experiment.optimizer, self._config.seed)
        self.state, self._done = place(start), 0
        self.seconds(self._config.training.steps_per_call)

    def seconds(self, updates: int, save: Callable[[object], None] | None = None) -> float:
        """Seconds of this many updates; `save` gets the state before the first."""
        begin = time.perf_counter()
        if save is not None:
            save(self.state)
        plan = list(call_schedule(self._config, self._done, self._done + updates))
        for (_, count), feed in zip(plan, make_feeds(self._experiment, self._examples, plan), strict=True):
            self.state, metrics = self._run_steps(self.state, self._data, feed, self._place(np.int32(count)))
            jax.block_until_ready(metrics)
        self._done += updates
        return time.perf_counter() - begin


def saving(updates: int, rounds: int) -> dict[str, object]:
    """The time that one save adds to training on the speeches, as a share of 100 updates."""
    runner = Runner("speeches", "training.steps=100000")
    blocked: list[float] = []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder) / "checkpoints") as checkpoints:

        def save(state: object) -> None:
            begin = time.perf_counter()
            checkpoints.save(state, None)
            blocked.append(time.perf_counter() - begin)

        without, with_save = [], []
        for _ in range(rounds):
            without.append(runner.seconds(updates))
            with_save.append(runner.seconds(updates, save))
            checkpoints.wait()
    extra = [a - b for a, b in zip(with_save, without, strict=True)]
    hundred = 100 * statistics.median(without) / updates
    return {
        "updates": updates,
        "seconds_of_100_updates": round(hundred, 2),
        "seconds_that_a_save_blocks": round(statistics.median(blocked), 3),
        "seconds_that_a_save_adds": round(statistics.median(extra), 3),
        "range_over_rounds": [round(min(extra), 3), round(max(extra), 3)],
        "share_of_100_updates": round(statistics.median(extra) / hundred, 4),
    }


def streaming(recipe: str, updates: int, rounds: int, host_bytes: int = examples.HOST_BYTES) -> dict[str, object]:
    """The rate of updates on streamed data, divided by the rate on data on the device."""
    with mock.patch.object(examples, "HOST_BYTES", host_bytes):
        inputs = ("device", "stream")
        runners = {name: Runner(recipe, f"training.input={name}", "training.steps=100000") for name in inputs}
    seconds = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            seconds[name].append(runner.seconds(updates))
    ratios = [a / b for a, b in zip(seconds["device"], seconds["stream"], strict=True)]
    return {
        "updates": updates,
        "updates_a_second": {name: round(updates / statistics.median(each), 2) for name, each in seconds.items()},
        "ratio": round(statistics.median(ratios), 3),
        "range_over_rounds": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def memory(updates: int) -> dict[str, object]:
    """Resident memory in MiB at each tenth of many streamed updates."""
    runner = Runner("digits", "training.input=stream", "training.steps=100000", *SMALL)
    held = []
    for _ in range(10):
        runner.seconds(updates // 10)
        held.append(round(resident_bytes() / 2**20))
    return {"updates": updates, "resident_mib": held}


def resident_bytes() -> int:
    """Resident memory of this process."""
    facts = Path("/proc/self/status")  # of Linux alone, where `ps` may be missing
    if facts.exists():
        line = next(each for each in facts.read_text().splitlines() if each.startswith("VmRSS"))
        return 1024 * int(line.split()[1])
    done = subprocess.run(["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few updates; nothing is written")
    quick = parser.parse_args(arguments).quick
    use_compilation_cache()
    rounds = 2 if quick else 5
    result: dict[str, object] = {"machine": machine("cpu"), "versions": versions(("jax", "orbax-checkpoint"))}
    parts = {
        "saving": lambda: saving(10 if quick else 30, 2 if quick else 11),
        "streaming_speeches": lambda: streaming("speeches", 10 if quick else 20, rounds),
        "streaming_digits": lambda: streaming("digits", 20 if quick else 200, rounds),
        "decoding_digits_each_time": lambda: streaming("digits", 20 if quick else 200, rounds, host_bytes=0),
        "memory": lambda: memory(200 if quick else 10_000),
    }
    for name, part in parts.items():
        result[name] = part()
        print(f"{name}: {result[name]}", flush=True)
    if not quick:
        write_result(f"overheads_{jax.default_backend()}", result)


if __name__ == "__main__":
    main()
