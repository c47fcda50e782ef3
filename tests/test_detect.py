"""The command `detect`: what it prints and draws, from a run with few updates."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from flaxformer_lab.analysis import detection_figures as figures
from flaxformer_lab.analysis.objects import shares_inside
from flaxformer_lab.config import parse_config
from flaxformer_lab.functional.detection import Objects
from flaxformer_lab.run import load_run
from flaxformer_lab.tasks import make_task
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.loop import train
from flaxformer_lab.training.state import initial_state

pytestmark = pytest.mark.integration

CONFIG = {
    "task": {
        "name": "scenes",
        "canvas": 16,
        "items": (1, 2),
        "item_size": 8.0,
        "scale": (0.8, 1.2),
        "queries": 4,
        "detections": 6,
        "evaluation_examples": 8,
    },
    "model": {"name": "encoder_decoder", "width": 8, "depth": 1, "encoder_depth": 1, "attention": {"num_heads": 2}},
    "training": {"steps": 2, "batch_size": 8, "evaluate_every": 2, "checkpoint_every": 2},
}


def detect(*arguments):
    command = [sys.executable, "-m", "flaxformer_lab.detect", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_images_become_boxes_and_pictures(tmp_path):
    train(parse_config(CONFIG), tmp_path / "run", quiet=True)
    Image.fromarray(np.arange(20 * 40, dtype=np.uint8).reshape(20, 40)).save(tmp_path / "a.png")
    found = detect(f"--workdir={tmp_path / 'run'}", str(tmp_path / "a.png"), "--score=0")
    assert found.returncode == 0, found.stderr
    printed = json.loads(found.stdout.splitlines()[-1])
    assert [each["image"] for each in printed["images"]] == [str(tmp_path / "a.png")] and printed["step"] == 2
    boxes = np.array([each["box"] for each in printed["images"][0]["objects"]])
    assert boxes.shape == (4, 4) and (boxes >= 0).all() and boxes[:, 2].max() > 20  # in the image's own pixels
    folder = tmp_path / "run" / "detections" / "2"
    assert sorted(path.name for path in folder.iterdir()) == ["detections.png", "query_attention.png"]

    found = detect(f"--workdir={tmp_path / 'run'}", "--split=validation", "--examples=3")
    printed = json.loads(found.stdout.splitlines()[-1])
    assert len(printed["images"]) == 3
    assert {"area", "gradient", "decoder.blocks.0.cross_attention.weights"} <= printed["inside"].keys()
    for share in printed["inside"].values():
        assert all(0 <= share[kind] <= 1 for kind in ("trained", "untrained"))

    missing = detect(f"--workdir={tmp_path / 'run'}", str(tmp_path / "no.png"))
    assert missing.returncode == 3 and "no.png cannot be read as an image" in missing.stderr


@pytest.mark.slow
def test_boxes_of_a_split_are_in_the_pixels_of_the_file(tmp_path, run_command):
    """Each image is as large as its file says, and stretched to 16 x 16."""
    root = tmp_path / "boxes"
    root.mkdir()
    images, annotations = [], []
    for number in range(10):
        width, height = 40 + 10 * number, 20
        name = f"{width}.png"
        Image.fromarray(np.full((height, width), 9 * number, np.uint8)).save(root / name)
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        annotations.append({"image_id": number, "category_id": 0, "bbox": [1, 1, 30, 15]})
    tree = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "cat"}]}
    (root / "all.json").write_text(json.dumps(tree))
    task = {"name": "detection", "dataset": f"coco:{root}", "image_size": (16, 16), "queries": 4, "capacity": 2}
    training = {"steps": 1, "batch_size": 4, "evaluate_every": 1, "checkpoint_every": 1}
    train(parse_config(CONFIG | {"task": task, "training": training}), tmp_path / "run", quiet=True)
    run = load_run(tmp_path / "run")
    code, out, err = run_command("flaxformer_lab.detect", f"--workdir={run.workdir}", "--split=test", "--score=0")
    assert code == 0, err
    found = json.loads(out[-1])["images"]
    expected = run.predict([str(root / each["image"]) for each in found])
    assert len(found) == 2
    for each, boxes in zip(found, np.asarray(expected["boxes"]), strict=True):
        width = int(each["image"].removesuffix(".png"))
        pixels = boxes[: len(each["objects"])] * [width, 20, width, 20]
        assert len(pixels) == 4
        np.testing.assert_allclose([one["box"] for one in each["objects"]], pixels, atol=0.1)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """The folder of a run without updates."""
    folder = RunFolder(tmp_path_factory.mktemp("scenes") / "run")
    experiment = make_experiment(parse_config(CONFIG))
    folder.claim(experiment.config, experiment.task.metadata)
    state = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, 0))()
    with Checkpoints(folder.checkpoints) as checkpoints:
        checkpoints.save(dataclasses.replace(state, step=jax.numpy.int32(1)), {"loss": 1.0})
    return folder.path


def test_images_of_one_name_are_told_apart_and_the_last_line_is_json(untrained, tmp_path, run_command):
    paths = [tmp_path / name / "1.png" for name in ("first", "second")]
    for path in paths:
        path.parent.mkdir()
        Image.fromarray(np.arange(20 * 40, dtype=np.uint8).reshape(20, 40)).save(path)
    code, out, err = run_command("flaxformer_lab.detect", f"--workdir={untrained}", *paths, "--score=0")
    assert code == 0, err
    assert [each["image"] for each in json.loads(out[-1])["images"]] == [str(path) for path in paths]
    assert f"written: {untrained / 'detections' / '1' / 'detections.png'}" in out


def test_a_figure_that_cannot_be_written_whole_leaves_the_old_one(untrained, tmp_path, run_command, monkeypatch):
    Image.fromarray(np.zeros((20, 40), np.uint8)).save(tmp_path / "a.png")
    arguments = ("flaxformer_lab.detect", f"--workdir={untrained}", str(tmp_path / "a.png"))
    assert run_command(*arguments)[0] == 0
    folder = untrained / "detections" / "1"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(figure, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    code, _, err = run_command(*arguments)
    assert code == 4 and "cannot be written: No space left on device" in err[-1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["1"]


@pytest.mark.parametrize("flag", ["--split=train", "--examples=3"])
def test_examples_beside_images_are_refused(run_command, flag):
    code, out, err = run_command("flaxformer_lab.detect", "--workdir=run", "a.png", flag)
    assert (code, out) == (2, []) and f"{flag} is for examples of the data; leave it out, or the images" in err[0]


def test_attention_and_gradients_inside_are_shares_of_their_sums():
    """On a network whose weights are known: it looks at the first cell alone, and its scores follow from it."""
    task = make_task(parse_config({"task": CONFIG["task"]}).task, {"image_shape": [16, 16, 1], "num_classes": 2})

    class Known:
        def apply(self, params, model_state, images, **_):
            score = images[:, :8, :8].sum(axis=(1, 2, 3))[:, None, None]
            logits = jax.numpy.concatenate([score, -score, -score], axis=-1)
            return {"logits": logits, "boxes": jax.numpy.full((*logits.shape[:2], 4), 0.5)}, model_state

        def run_with_cache(self, params, model_state, images, *, names):
            weights = jax.numpy.zeros((len(images), 2, 1, 4)).at[..., 0].set(0.75).at[..., 3].set(0.25)
            values = {
                "decoder.blocks.0.cross_attention.weights": weights,
                "decoder.blocks.0.attention.weights": weights,
            }
            return self.apply(params, model_state, images)[0], values

    boxes = np.array(
        [[[0, 0, 0.5, 0.5], [0, 0, 0, 0]], [[0.5, 0.5, 1, 1], [0, 0, 0, 0]], [[0, 0, 0, 0]] * 2], np.float32
    )
    valid = np.array([[True, False], [True, False], [False, False]])
    images = np.random.default_rng(0).normal(size=(3, 16, 16, 1)).astype(np.float32) * 0.01
    batch = {"inputs": images, "objects": Objects(boxes, np.zeros((3, 2), np.int32), valid)}
    found = shares_inside(task, Known(), {}, {}, batch)
    np.testing.assert_allclose(found["area"], [0.25, 0.25])
    np.testing.assert_allclose(found["gradient"], [1, 0], atol=1e-6)
    # Cells are centred 3.5 pixels before: 5 of their 8 rows and columns are in the box of their corner, 3 in the next.
    inside, beside = (5 / 8) ** 2, (3 / 8) ** 2
    expected = [0.75 * inside + 0.25 * beside, 0.25 * inside]
    np.testing.assert_allclose(found["decoder.blocks.0.cross_attention.weights"], expected, atol=1e-6)
    assert len(found) == 3  # queries that look at queries look at no place


def test_pictures_show_every_box_and_its_name():
    image = np.zeros((16, 16, 1), np.float32)
    box = np.array([0.25, 0.25, 0.5, 0.75])
    figure = figures.detections([image], [[(box, 1, 0.5)]], [[(box, 0, None), (box, 1, None)]], ["cat", "dog"])
    found, true = figure.axes
    assert [text.get_text() for text in found.texts] == ["dog 0.50"]
    assert [text.get_text() for text in true.texts] == ["cat", "dog"]
    assert found.patches[0].get_xy() == (3.5, 3.5) and found.patches[0].get_height() == 8
    maps = {"decoder.blocks.0.cross_attention.weights": np.ones((2, 2, 2))}
    assert len(figures.query_attention(image, maps, [(box, "query 0"), (box, "query 1")]).axes) == 2
    assert len(figures.winning_anchors(image, np.tile(box, (9, 1)), box[None]).axes[0].patches) == 9
