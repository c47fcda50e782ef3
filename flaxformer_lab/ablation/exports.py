"""What the chosen replicas of an ablation cost where they would run: each as an ONNX file, in float32 and in int8.

It is measured when all training has ended, so that nothing of the ablation runs beside it: the bytes of both files, the
test score of the int8 one, and the latency of one example on one thread. That is the CPU time of the calling thread,
which does all the work: other programs on the machine add little to it. All files are timed in turns, round by round,
so that a slow moment meets them alike; each has the fastest of its rounds, since whatever else a machine does can only
add to a call. The seeds of a cell have the same graph, so what their latencies differ by is noise.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxformer_lab.ablation.grid import Cell, Grid
from flaxformer_lab.ablation.rates import best_learning_rate, finished_parts, progress
from flaxformer_lab.ablation.store import Result, Store, from_json
from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.export import onnx
from flaxformer_lab.export.forward import Forward
from flaxformer_lab.export.onnx_int8 import convolves, quantise
from flaxformer_lab.export.write import calibration
from flaxformer_lab.functional import metrics
from flaxformer_lab.training.evaluation import first_examples
from flaxformer_lab.training.initialization import restore_run
from flaxformer_lab.training.single import Single

PRECISIONS = ("float32", "int8")
MEASURED = ("float32_bytes", "float32_latency", "int8_bytes", "int8_latency", "int8_score")
ROUNDS, ROUND_S = 20, 0.01
ROUNDING = 1e-6  # in a score
CALIBRATION_EXAMPLES = 128


@dataclass(frozen=True)
class Chosen:
    """The replicas of a finished cell that have the chosen rate: their numbers in the part of it that has them."""

    part: Cell
    result: Result
    numbers: tuple[int, ...]

    @property
    def is_measured(self) -> bool:
        measures = [self.result["replicas"][number]["measures"] for number in self.numbers]
        return all(each.get(name) is not None for each in measures for name in MEASURED)


def measure_exports(
    grid: Grid, store: Store, *, again: bool = False, tell: Callable[[str], None] = lambda text: None
) -> None:
    """Measures the finished cells that were not measured yet, and adds what was found to their results.

    again: those that were measured, too, as on a machine where nothing else runs.

    Raises:
        ConfigError: the packages of ONNX are missing, or a model has no form in it.
        RunError: a kept run is missing or damaged, or a file scores otherwise than its run.
    """
    waiting = [
        each for cell in grid.cells if (each := chosen_of(cell, grid, store)) and (again or not each.is_measured)
    ]
    files: dict[str, list[list[bytes]]] = {precision: [] for precision in PRECISIONS}
    scores: list[list[float]] = []
    example: list[dict[str, np.ndarray]] = []
    for place, each in enumerate(waiting, 1):
        tell(f"exporting {each.part.task} / {each.part.variant} ({place} of {len(waiting)})")
        made = [_export(each, number, store) for number in each.numbers]
        for precision, row in files.items():
            row.append([contents[precision] for contents, _, _ in made])
        scores.append([score for _, score, _ in made])
        example.append(made[0][2])
    tell(f"timing {len(waiting)} cells" if waiting else "")
    calls = [
        (onnx.open_session(content, threads=1), example[place])
        for row in files.values()
        for place, contents in enumerate(row)
        for content in contents
    ]
    latencies = iter(1e6 * latencies_of([lambda s=session, a=arrays: s.run(None, a) for session, arrays in calls]))
    measured = [[{} for _ in each.numbers] for each in waiting]
    for precision, row in files.items():
        for values, contents in zip(measured, row, strict=True):
            for value, content in zip(values, contents, strict=True):
                value |= {f"{precision}_bytes": len(content), f"{precision}_latency": float(next(latencies))}
    for each, values, own in zip(waiting, measured, scores, strict=True):
        store.finish(each.part, with_measures(each, [v | {"int8_score": s} for v, s in zip(values, own, strict=True)]))


def require_runs(grid: Grid, store: Store) -> None:
    """Raises ConfigError where a finished cell is still to be measured, and its runs were not kept."""
    for cell in grid.cells:
        chosen = chosen_of(cell, grid, store)
        if chosen and not chosen.is_measured and not store.run_folder(chosen.part, chosen.numbers[0]).exists():
            raise ConfigError(
                f"exports=true measures the runs of each cell, and {cell.task} / {cell.variant} in {store.path} was "
                "trained without keeping its runs; choose another --workdir, or leave exports=false"
            )


def chosen_of(cell: Cell, grid: Grid, store: Store) -> Chosen | None:
    """The replicas to measure; None where the search for a rate goes on, nothing was trained, or a seed diverged."""
    whole, following = progress(cell, store, grid.config)
    if whole is None or following is not None or cell.control is not None:
        return None
    rate = best_learning_rate(whole, cell.primary_metric, grid.config.score_tolerance)
    for part, result in finished_parts(cell, store, grid.config):
        numbers = tuple(k for k, each in enumerate(result["replicas"]) if each["learning_rate"] == rate)
        if numbers:
            finals = [from_json(result["replicas"][k]["test"][cell.primary_metric.name]) for k in numbers]
            return Chosen(part, result, numbers) if np.all(np.isfinite(finals)) else None
    return None


def with_measures(chosen: Chosen, measured: Sequence[dict[str, float]]) -> Result:
    """The result with measures added to the chosen replicas, and null in their place to all others."""
    added = dict(zip(chosen.numbers, measured, strict=True))
    replicas = [
        each | {"measures": each["measures"] | added.get(number, dict.fromkeys(MEASURED))}
        for number, each in enumerate(chosen.result["replicas"])
    ]
    return chosen.result | {"replicas": replicas}


def _export(chosen: Chosen, number: int, store: Store) -> tuple[dict[str, bytes], float, dict[str, np.ndarray]]:
    """A replica's files by precision, the test score of the int8 one, and one example."""
    folder = store.run_folder(chosen.part, number)
    experiment, state = restore_run(folder, strategy=Single())
    forward = Forward(experiment, *jax.device_get((state.params, state.model_state)))
    stored, prepared = first_examples(experiment, "test", experiment.task.examples("test").number)
    arrays = {name: np.asarray(array) for name, array in forward.arrays_of(stored, prepared).items()}
    content = onnx.encode(forward)
    files = {"float32": content, "int8": smaller_in_int8(content, forward)}
    metric, task, scores = chosen.part.primary_metric.name, experiment.task, {}
    for precision, file in files.items():
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "model.onnx"
            path.write_bytes(file)
            _, function = onnx.read(path)
        figures = task.loss_and_metrics(task.outputs_of(function(**arrays)), prepared)
        scores[precision] = metrics.compute([jax.device_get(figures)])[metric]
    wanted = from_json(chosen.result["replicas"][number]["test"][metric])
    if not abs(scores["float32"] - wanted) <= ROUNDING + 1 / len(stored["example_weight"]):  # one may lie on the line
        raise RunError(
            f"{chosen.part.task} / {chosen.part.variant}: {folder} scored {wanted:.6f} on the test split, and "
            f"{scores['float32']:.6f} as an ONNX file; train it again in another --workdir"
        )
    return files, scores["int8"], {name: array[:1] for name, array in arrays.items()}


def smaller_in_int8(content: bytes, forward: Forward) -> bytes:
    """A file with 8-bit weights, or the file itself where that is smaller: then it is what one would use.

    The scales of activations are calibrated on training examples where there are convolutions, else measured at each
    call, as onnxruntime advises for CNNs and for Transformers.
    """
    try:
        return quantise(content, calibration(forward, CALIBRATION_EXAMPLES) if convolves(content) else None)
    except ConfigError:
        return content


def latencies_of(calls: Sequence[Callable[[], Any]]) -> np.ndarray:
    """Seconds of CPU time of each call, the least of rounds in which all have their turn."""
    repeats, rounds = [], []
    for call in calls:
        call()
        repeats.append(max(1, round(ROUND_S / max(_seconds(call, 5), 1e-6))))
    for _ in range(ROUNDS):
        rounds.append([_seconds(call, number) for call, number in zip(calls, repeats, strict=True)])
    return np.min(np.reshape(rounds, (ROUNDS, len(calls))), axis=0)


def _seconds(call: Callable[[], Any], number: int) -> float:
    """CPU time of this thread for one of so many calls."""
    start = time.thread_time_ns()
    for _ in range(number):
        call()
    return (time.thread_time_ns() - start) / number / 1e9
