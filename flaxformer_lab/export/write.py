"""Writes a trained model as one file, and compares what it computes with the run before the file gets its name."""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxformer_lab.config import as_dict
from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.export.formats import FORMATS, Exported, Format, description_of, fingerprint
from flaxformer_lab.export.forward import DecodeStep, Forward, Spec, Tree, by_name
from flaxformer_lab.functional import metrics
from flaxformer_lab.parsing import nearest
from flaxformer_lab.tasks.task import Batch
from flaxformer_lab.training.evaluation import first_examples
from flaxformer_lab.training.experiment import Experiment
from flaxformer_lab.training.folder import dump_json, write_atomic
from flaxformer_lab.training.state import State
from flaxformer_lab.version import __version__

SPLIT = "validation"
# Of a difference, times the largest output; outputs without units, like logits, count as 1 at least. Where the file
# rounds as the run does, twice the run's rounding comes on top: both are so far from the same weights in float32.
# With 8-bit weights there is no bound: `Parity.lost` says what they cost.
TOLERANCE = {"float32": 1e-5, "float16": 5e-3}
# A model that picks the best of several scores may pick another one where they are equal up to rounding.
CHOICES = re.compile(r"\b(top_k|sort|argmax|argmin)\[")
CHOSEN_OTHERWISE = 1 / 20  # of the examples, at most
CALIBRATION_BATCH = 32


class Parity(NamedTuple):
    """The outputs of the file beside the run's. `metrics`: of the file; `metrics_of_run`: of the same examples.

    largest_difference: from the run; where the file computes in float32 and the run did not, from the run's weights in
        float32. chosen_otherwise: examples left out of it, in which the model picked another one of equal scores.
    tolerance: None where the difference is what is asked about, as with 8-bit weights.
    rounding: how far the run is from its weights in float32; 0 where it computes in float32 itself.
    score: the task's main metric. lost: by how much the file's is worse than the run's.
    """

    examples: int
    largest_difference: float
    chosen_otherwise: int
    tolerance: float | None
    rounding: float
    metrics: dict[str, float]
    metrics_of_run: dict[str, float]
    score: str
    lost: float


def export(
    experiment: Experiment,
    state: State,
    path: str | Path,
    format: str = "stablehlo",
    *,
    overwrite: bool = False,
    examples: int = 256,
    precision: str = "float32",
    calibrate: int = 0,
    decode: bool = False,
) -> Exported:
    """Writes a model to `path` in one of FORMATS and a description to `path`.json; returns it as it was read back.

    examples: how many of the validation split, at most, the file's outputs are compared on with the run's: one alone,
        and the others as one batch.
    precision: of the parameters: float32, float16 or int8, as the format has them.
    calibrate: on how many training examples the scales of int8 activations are measured; 0 measures them at each call.
    decode: of a language model one step of decoding with its cache, in place of the model of whole texts.

    Raises:
        ConfigError: an unknown format, a path that does not end as its files do or that exists, or a model that cannot
            be written in this format.
        DataError: the data of the validation split are missing or damaged.
        RunError: the path cannot be written, or the file computes something else than the run: it is removed.
    """
    path = Path(path).expanduser().absolute()
    chosen = _format(format, path)
    if precision not in chosen.precisions:
        raise ConfigError(
            f"--format={format} has parameters of {', '.join(chosen.precisions)}, not {precision}; "
            "--format=onnx has float16 and int8"
        )
    if calibrate and precision != "int8":
        raise ConfigError(f"--calibrate={calibrate} measures the scales of int8, not of {precision}; pass --int8")
    if decode and (format == "safetensors" or calibrate):
        raise ConfigError(
            "--decode writes a step as stablehlo or onnx, and not with --calibrate; leave one of them out"
        )
    if not overwrite and path.exists():
        raise ConfigError(f"{path} exists; choose another --out, or pass --overwrite")
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial{path.suffix}")
    with _reports_unwritable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    try:
        stored, prepared = first_examples(experiment, SPLIT, examples)
        masks = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, leaf.shape[-1]), bool), prepared.get("valid"))
        forward = Forward(experiment, *jax.device_get((state.params, state.model_state)), masks)
        written = forward.in_float32 if chosen.float32 else forward
        written, options = DecodeStep(**vars(written)) if decode else written, {}
        if precision != "float32":
            options = {"precision": precision, "calibration": calibration(forward, calibrate) if calibrate else None}
        content = chosen.encode(written, **options)
        with _reports_unwritable(path), partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        spec, function = chosen.read(partial)
        whole = written.over_texts(function) if decode else function
        parity = _compare(forward, whole, stored, prepared, precision, float32=chosen.float32)
        allowed = np.inf if parity.tolerance is None else parity.tolerance
        # `not <=`, so that a NaN is no parity.
        if not parity.largest_difference <= allowed:
            raise RunError(
                f"{path}: on {parity.examples} examples of {SPLIT} its outputs differ from the run's by up to "
                f"{parity.largest_difference:.3g}, and at most {allowed:.3g} is allowed; nothing is kept"
            )
        description = {"format": format, "precision": precision, "file": path.name, **fingerprint(partial)}
        if chosen.latency:
            one = {name: np.asarray(leaf[:1]) for name, leaf in forward.arrays_of(stored, prepared).items()}
            if decode:
                one = {name: np.zeros(like.shape, like.dtype) for name, like in spec.items()}
            description["latency"] = {"seconds": chosen.latency(partial, one), "batch": 1, "threads": 1}
        if calibrate:
            description["calibration_examples"] = calibrate
        if decode:
            description["decode"] = "past_*: zeros at first, then what the last step gave as present_*"
        outputs = jax.eval_shape(lambda arrays: written(**arrays), written.spec)
        description |= _describe(experiment, state, spec, outputs) | {"parity": parity._asdict()}
        description |= {"platforms": list(chosen.platforms)} if chosen.platforms else {}
        with _reports_unwritable(path):
            write_atomic(description_of(path), dump_json(description, indent=2) + "\n")
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return Exported(path, description, spec, function)


def calibration(forward: Forward, number: int) -> Iterator[dict[str, np.ndarray]]:
    """Inputs of training examples, a few at a time."""
    arrays = forward.arrays_of(*first_examples(forward.experiment, "train", number))
    count = len(next(iter(arrays.values())))
    for start in range(0, count, CALIBRATION_BATCH):
        yield {name: np.asarray(leaf[start : start + CALIBRATION_BATCH]) for name, leaf in arrays.items()}


def _format(name: str, path: Path) -> Format:
    if name not in FORMATS:
        raise ConfigError(f"--format={name} is no format: {nearest(name, FORMATS)}choose from {', '.join(FORMATS)}")
    if path.suffix != FORMATS[name].suffix:
        raise ConfigError(f"--out={path} must end in {FORMATS[name].suffix}, as files of --format={name} do")
    return FORMATS[name]


def _compare(
    forward: Forward, function: Callable[..., Tree], stored: Batch, prepared: Batch, precision: str, *, float32: bool
) -> Parity:
    """How the file's predictions for all examples compare with those of the run."""
    task, number = forward.experiment.task, len(stored["example_weight"])
    variables, exact = (forward.params, forward.model_state), forward.in_float32

    def run_of(forward: Forward) -> Callable[..., Tree]:
        apply = forward.experiment.network.apply

        def run(variables: Tree, batch: Batch) -> Tree:
            return task.predictions_of(apply(*variables, batch["inputs"], valid=batch.get("valid"))[0])

        return jax.jit(run)

    figures = jax.jit(lambda predictions, batch: task.loss_and_metrics(task.outputs_of(predictions), batch))

    def by_file(some: Batch, batch: Batch) -> Tree:
        size = len(some["example_weight"])
        by_example = lambda leaf: leaf if len(leaf) == size else leaf.reshape(size, -1, *leaf.shape[1:])  # noqa: E731
        return jax.tree.map(by_example, function(**forward.arrays_of(some, batch)))

    def evaluate(predict: Callable[[Batch, Batch], Tree]) -> tuple[Tree, dict[str, float]]:
        found, states = [], []
        for rows in (slice(0, 1), slice(1, number))[:number]:
            some, batch = jax.tree.map(lambda leaf, rows=rows: leaf[rows], (stored, prepared))
            found.append(jax.device_get(predict(some, batch)))
            states.append(jax.device_get(figures(found[-1], batch)))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *found), metrics.compute(states)

    run = run_of(forward)
    of_file, metrics_of_file = evaluate(by_file)
    of_run, metrics_of_run = evaluate(lambda some, batch: run(variables, batch))
    of_exact, rounding = of_run, 0.0
    if exact is not forward:
        run_exactly = run_of(exact)
        of_exact, _ = evaluate(lambda some, batch: run_exactly(variables, batch))
        rounding = float(np.max(_differences(of_run, of_exact)))
    differences = _differences(of_file, of_exact if float32 else of_run)
    finite = [np.abs(leaf[np.isfinite(leaf)]) for leaf in jax.tree.leaves(of_run)]
    largest = float(np.max([np.max(each, initial=0) for each in finite]))
    allowed = TOLERANCE.get(precision)
    if allowed is not None:
        has_units = task.outputs_of(of_run) is not of_run
        allowed = allowed * (largest if has_units else max(1.0, largest)) + (0 if float32 else 2 * rounding)
    chosen_otherwise = 0 if allowed is None else int(np.sum(differences > allowed))
    if chosen_otherwise > CHOSEN_OTHERWISE * number or np.isnan(differences).any():
        chosen_otherwise = 0
    if chosen_otherwise and not CHOICES.search(str(jax.make_jaxpr(run)(variables, prepared))):
        chosen_otherwise = 0
    score, one, other = task.primary_metric, metrics_of_run, metrics_of_file
    return Parity(
        examples=number,
        largest_difference=float(np.max(np.sort(differences)[: number - chosen_otherwise])),
        chosen_otherwise=chosen_otherwise,
        tolerance=allowed,
        rounding=rounding,
        metrics=metrics_of_file,
        metrics_of_run=metrics_of_run,
        score=score.name,
        lost=(one[score.name] - other[score.name]) * (1 if score.higher_is_better else -1),
    )


def _differences(one: Tree, other: Tree) -> np.ndarray:
    """The largest of each example: [examples]. NaN where either has one; infinities of one sign are equal."""

    def of_leaf(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            apart = np.abs(a - b)
        return np.max(np.where(a == b, 0, apart).reshape(len(a), -1), axis=1, initial=0)

    return np.max(jax.tree.leaves(jax.tree.map(of_leaf, one, other)), axis=0)


def _describe(experiment: Experiment, state: State, spec: Spec, outputs: Tree) -> dict[str, Any]:
    """What a user of the file needs to know: plain JSON values."""
    task = experiment.task
    facts = {
        "inputs": _shapes(spec),
        "outputs": _shapes(by_name(outputs, "outputs")),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "step": int(state.step),
        "versions": {"flaxformer_lab": __version__, "jax": jax.__version__},
        "config": as_dict(experiment.config),
        "metadata": dict(task.metadata),
    }
    names = task.class_names()
    return facts | ({"classes": names} if names else {})


def _shapes(arrays: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": ["batch", *array.shape[1:]], "dtype": np.dtype(array.dtype).name}
        for name, array in arrays.items()
    ]


@contextlib.contextmanager
def _reports_unwritable(path: Path) -> Iterator[None]:
    """Raises RunError where the system refuses to write."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise RunError(
            f"{path} cannot be written: {error.strerror}{where}; choose another --out, or make room"
        ) from error
