"""Finds objects with a trained detector: `python -m flaxformer_lab.detect --workdir=runs/scenes image.png ...`.

Its last line is one JSON object: each image with its objects (box in pixels, class, score). Draws the boxes, what
DETR's queries attend to, and the anchors that won, into WORKDIR/detections/STEP/ and into the run's TensorBoard, if it
has one. Without images it takes the first examples of --split, draws the truth beside, and says how much attention and
gradient lie inside of objects. Pixels are those of the image before it was stretched.
"""

import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from flaxformer_lab.analysis import detection_figures as figures
from flaxformer_lab.analysis.objects import AREA, shares_inside
from flaxformer_lab.command_line import changes_of, parse_step, run
from flaxformer_lab.data.image_files import read_image
from flaxformer_lab.errors import ConfigError, RunError
from flaxformer_lab.functional.detection import Detections, grid_anchors
from flaxformer_lab.modules.detection import STRIDE
from flaxformer_lab.run import Run, load_run
from flaxformer_lab.tasks import SPLITS
from flaxformer_lab.tasks.detection import ObjectTask
from flaxformer_lab.training.evaluation import first_examples
from flaxformer_lab.training.folder import dump_json
from flaxformer_lab.training.loggers import add_figures
from flaxformer_lab.training.logging import Display, shown_while


def main(overrides: list[str]) -> None:
    """Detects what the flags describe."""
    for flag in (SPLIT, EXAMPLES):
        if IMAGES.value and flag.present:
            raise ConfigError(f"--{flag.name}={flag.value} is for examples of the data; leave it out, or the images")
    with shown_while("detecting"):
        loaded = load_run(WORKDIR.value, parse_step(STEP.value), changes_of(overrides))
        task = loaded.task
        if not isinstance(task, ObjectTask):
            raise ConfigError(
                f"detect needs a model of task.name=scenes or detection; this run's task is {loaded.config.task.name}"
            )
        batch = None if IMAGES.value else first_examples(loaded.experiment, SPLIT.value, EXAMPLES.value)[1]
        inputs = task.inputs_of(list(IMAGES.value)) if batch is None else batch["inputs"]
        files = [(path, read_image(Path(path)).shape[:2]) for path in IMAGES.value]
        originals = files or task.originals(SPLIT.value, len(inputs))
        outputs, values = loaded.model.run_with_cache(
            loaded.params, loaded.state.model_state, inputs, names=("*cross_attention.weights",)
        )
        found, outputs, values, images = jax.device_get((task.detections(outputs), outputs, values, inputs))
        report = [
            {"image": name, "objects": objects_of(found, row, size, task.class_names())}
            for row, (name, size) in enumerate(originals)
        ]
        drawn = draw(loaded, images, found, outputs, values, batch)
        inside = {} if batch is None else compared(loaded, batch)
    display = Display(steps=1, units=task.units, batch_size=1)
    if inside:
        title = f"inside of objects, step {loaded.step}, {len(inputs)} examples of {SPLIT.value}"
        display.table(
            title, ["share of", "trained", "untrained"], [[n, *map("{:.3f}".format, v)] for n, v in inside.items()]
        )
    folder = loaded.workdir / "detections" / str(loaded.step)
    for path in save(drawn, folder):
        display.print(f"written: {path}")
    if (loaded.workdir / "tensorboard").is_dir():
        add_figures(loaded.workdir, loaded.step, {f"detections/{name}": figure for name, figure in drawn.items()})
    shares = {name: {"trained": trained, "untrained": untrained} for name, (trained, untrained) in inside.items()}
    print(dump_json({"step": loaded.step, "images": report} | ({"inside": shares} if shares else {})))


def objects_of(found: Detections, row: int, size: tuple[int, int], names: list[str]) -> list[dict[str, Any]]:
    """What is found in one image with a score of at least --score: boxes (x0, y0, x1, y1) in its own pixels.

    size: rows and columns of the image before it was stretched.
    """
    pixels = np.array([size[1], size[0], size[1], size[0]])
    return [
        {"box": np.round(box * pixels, 2).tolist(), "class": names[label], "score": round(float(score), 4)}
        for box, score, label in zip(found.boxes[row], found.scores[row], found.labels[row], strict=True)
        if score >= SCORE.value
    ]


def draw(loaded: Run, images: np.ndarray, found: Detections, outputs: Any, values: Any, batch: Any) -> dict[str, Any]:
    """The figures, by name."""
    task, rows = loaded.task, range(len(images))
    kept = [np.flatnonzero(found.scores[row] >= SCORE.value) for row in rows]
    shown = [[(found.boxes[row, k], found.labels[row, k], found.scores[row, k]) for k in kept[row]] for row in rows]
    truth = None
    if batch is not None:
        true = jax.device_get(batch["objects"])
        there = [np.flatnonzero(true.valid[row]) for row in rows]
        truth = [[(true.boxes[row, k], true.labels[row, k], None) for k in there[row]] for row in rows]
    drawn = {"detections": figures.detections(images, shown, truth, task.class_names())}
    grid = tuple(side // STRIDE for side in images.shape[1:3])
    if "proposals" in outputs:
        best = np.argsort(-outputs["anchor_scores"][0])[: figures.MOST_SHOWN]
        config = loaded.config.task
        anchors = np.asarray(grid_anchors(grid, config.anchor_sizes, config.anchor_ratios, images.shape[1:3]))
        drawn["anchors"] = figures.winning_anchors(images[0], anchors[best], outputs["proposals"]["boxes"][0])
    if values:
        probability = np.exp(outputs["logits"][0] - outputs["logits"][0].max(axis=-1, keepdims=True))
        probability = (probability / probability.sum(axis=-1, keepdims=True))[:, :-1]
        queries = np.argsort(-probability.max(axis=-1))[: max(1, min(len(kept[0]), figures.MOST_SHOWN))]
        maps = {name: weights[0].mean(axis=0)[queries].reshape(-1, *grid) for name, weights in values.items()}
        boxes = outputs["boxes"][0][queries]
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
        texts = [f"query {query}: {task.class_names()[probability[query].argmax()]}" for query in queries]
        drawn["query_attention"] = figures.query_attention(images[0], maps, list(zip(corners, texts, strict=True)))
    return drawn


def compared(loaded: Run, batch: Any) -> dict[str, tuple[float, float]]:
    """Shares inside of objects, of the trained network and of one that has not learned."""
    network, seed = loaded.model, loaded.config.seed
    both = [(loaded.params, loaded.state.model_state), jax.jit(network.init)(jax.random.key(seed))]
    trained, untrained = (shares_inside(loaded.task, network, *variables, batch) for variables in both)
    order = [AREA, *(name for name in trained if name != AREA)]
    return {name: (float(trained[name].mean()), float(untrained[name].mean())) for name in order}


def save(drawn: dict[str, Any], folder: Path) -> list[Path]:
    """Writes the figures, each atomically. Raises RunError where the folder cannot be written."""
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            figure.savefig(partial / f"{name}.png", dpi=150)
        folder.mkdir(exist_ok=True)
        return [(partial / f"{name}.png").replace(folder / f"{name}.png") for name in drawn]
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}; make room for it") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
    STEP = flags.DEFINE_string("step", None, "Step of the checkpoint, or best; default: the last one.")
    IMAGES = flags.DEFINE_multi_string("image", [], "Image file; may be repeated, and --image= may be left out.")
    SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "Which part of the data, where no image is given.")
    EXAMPLES = flags.DEFINE_integer("examples", 8, "How many of its examples.", lower_bound=1)
    SCORE = flags.DEFINE_float("score", 0.3, "Only detections with such a score.", lower_bound=0.0, upper_bound=1.0)
    run(main, rest="image")
