"""Detectors as tasks: every part learns, padding changes nothing, and a population's replicas are single runs."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from PIL import Image

from flaxformer_lab.config import parse_config
from flaxformer_lab.data.image_files import resize_image
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.metrics import compute
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.run import load_run
from flaxformer_lab.tasks import make_task
from flaxformer_lab.tasks.detection import DETECTORS
from flaxformer_lab.training.loop import train

SCENES = {
    "name": "scenes",
    "canvas": 16,
    "items": (1, 2),
    "item_size": 8.0,
    "scale": (0.8, 1.2),
    "clutter": 1,
    "queries": 4,
    "detections": 6,
    "proposals": 5,
    "size_bounds": (6.0, 7.0),
    "anchor_sizes": (6.0,),
    "evaluation_examples": 8,
}
BODIES = {
    "detr": {"name": "encoder_decoder", "width": 8, "depth": 1, "encoder_depth": 1, "attention": {"num_heads": 2}},
    "faster_rcnn": {"name": "cnn_2d", "width": 8, "depth": 1},
    "dense": {"name": "transformer", "width": 8, "depth": 1, "attention": {"num_heads": 2}},
}


def config_of(detector, **knobs):
    return parse_config({"task": SCENES | {"detector": detector} | knobs, "model": BODIES[detector]})


@dataclasses.dataclass(frozen=True)
class Built:
    """A detector with its gradient and metrics on one batch, from one program."""

    task: object
    network: object
    batch: dict
    gradient: object
    metrics: dict
    outputs: object


@functools.cache
def scenes():
    """Eight prepared examples, which are the same for all detectors."""
    task = make_task(config_of("detr").task)
    examples = {"example_weight": np.ones(8, np.float32)}
    draw = jax.jit(lambda index, keys: task.prepare(examples | {"index": index}, keys, training=True))
    return task, lambda index, key: draw(index, jax.random.split(key, 8))


@functools.cache
def built(detector):
    config, (first, draw) = config_of(detector), scenes()
    task = make_task(config.task, first.metadata)
    network, batch = task.network(config.model), jax.device_get(draw(np.arange(8, dtype=np.int32), jax.random.key(0)))

    generator, (shapes, state) = np.random.default_rng(0), network.shapes
    params = jax.tree.map(lambda leaf: 0.3 * generator.normal(size=leaf.shape).astype(np.float32), shapes)

    @jax.jit
    def run(params, batch):
        def loss(params):
            outputs, _ = network.apply(params, state, batch["inputs"], training=True)
            metrics = task.loss_and_metrics(outputs, batch)
            return metrics["loss"].total, (metrics, outputs)

        (_, (metrics, outputs)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return gradient, metrics, outputs

    return Built(task, network, batch, *jax.device_get(run(params, batch)))


@pytest.mark.integration
@pytest.mark.parametrize("detector", DETECTORS)
def test_every_part_learns_and_the_loss_is_the_sum_of_its_parts(detector):
    found = built(detector)
    for name, leaf in leaf_paths(found.gradient).items():
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), name
    values = compute([found.metrics])
    parts = [value for name, value in values.items() if name.endswith("_loss")]
    assert len(parts) >= 3 and values["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert 0 <= values["ap"] <= 1 and 0 <= values["ar"] <= 1 and found.task.primary_metric.name in values


def test_padding_of_objects_and_of_examples_changes_nothing():
    found = built("dense")
    objects, batch = found.batch["objects"], found.batch
    wider = objects._replace(
        boxes=np.pad(objects.boxes, ((0, 0), (0, 2), (0, 0))),
        labels=np.pad(objects.labels, ((0, 0), (0, 2))),
        valid=np.pad(objects.valid, ((0, 0), (0, 2))),
    )
    kind = np.pad(batch["kind"], ((0, 0), (0, 2)))
    metrics = jax.jit(found.task.loss_and_metrics)
    padded = batch | {"objects": wider, "kind": kind, "loss_weights": np.float32(np.arange(8) < 4)}
    values = compute([jax.device_get(metrics(found.outputs, padded))])
    first = {name: jax.tree.map(lambda leaf: leaf[:4], found.metrics[name]) for name in ("detections",)}
    for name, value in compute([first]).items():
        assert values[name] == pytest.approx(value, rel=1e-5), name
    four = jax.tree.map(lambda leaf: leaf[:4], (found.outputs, objects))
    losses = jax.jit(jax.vmap(found.task.detector.losses))(*four)
    for name, each in losses.items():
        assert values[name] == pytest.approx(float(np.mean(each)), rel=1e-5), name


def test_the_same_scenes_come_for_the_same_seed_and_others_for_another():
    _, draw = scenes()

    def images(first, seed):
        return np.asarray(draw(np.arange(8, dtype=np.int32) + np.int32(first), jax.random.key(seed))["inputs"])

    first = images(0, 1)
    np.testing.assert_array_equal(first, images(0, 1))
    for other in (images(8, 1), images(0, 2), images(2**30, 1)):
        assert np.all(np.any(first != other, axis=(1, 2, 3)))


def test_queries_without_self_attention_have_none():
    model = config_of("detr").model
    networks = [built("detr").task.network(dataclasses.replace(model, self_attention=each)) for each in (True, False)]
    whole, without = (set(leaf_paths(network.shapes[0])) for network in networks)
    assert (
        without < whole
        and {name for name in whole if name.startswith("body.decoder.blocks.0.attention")} <= whole - without
    )
    assert any(name.startswith("body.encoder.blocks.0.attention") for name in without)
    assert any(name.startswith("body.decoder.blocks.0.cross_attention") for name in without)


def test_a_detector_and_a_model_that_do_not_fit_are_refused():
    task = make_task(config_of("detr").task, built("detr").task.metadata)
    with pytest.raises(ConfigError, match=r"task.detector=detr cannot use model.name=cnn_2d; choose model.name=enc"):
        task.network(config_of("faster_rcnn").model)
    for model in ({"name": "autoformer", "position": "off"}, {"name": "timemixer", "scales": 1}):
        with pytest.raises(ConfigError, match=r"whose outputs are other tokens or features .* choose model.name=enc"):
            task.network(parse_config({"task": SCENES, "model": model}).model)
    task = make_task(config_of("dense").task, built("detr").task.metadata)
    with pytest.raises(ConfigError, match=r"task\.detector=dense cannot use model\.name=encoder_decoder; choose"):
        task.network(config_of("detr").model)
    resnet = {"name": "resnet", "width": 8, "depths": (1,)}
    for knobs in ({"depths": (1, 1)}, {"block": "bottleneck"}):
        with pytest.raises(
            ConfigError, match=r"cannot use model\.name=resnet, whose outputs are other tokens or features"
        ):
            task.network(parse_config({"task": SCENES, "model": resnet | knobs}).model)
    network = task.network(parse_config({"task": SCENES, "model": resnet}).model)
    apply = lambda params, state, images: network.apply(params, state, images)[0]  # noqa: E731
    assert jax.eval_shape(apply, *network.shapes, task.input_spec(1))["logits"].shape[:2] == (1, 4)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"canvas": 20}, "20 is no multiple of 8"),
        ({"queries": 1}, "task.queries=1 cannot find 2 objects"),
        ({"items": (3, 1)}, "task.items=3,1 must be two numbers, the smaller one first"),
        ({"item_size": 30.0}, "is 36 pixels, more than task.canvas=16"),
        ({"size_bounds": (7.0, 6.0)}, "task.size_bounds=7.0,6.0 must be two numbers"),
        ({"anchor_sizes": ()}, "task.anchor_sizes is empty"),
        ({"nms": 0.0}, "must be above 0"),
        ({"detections": 101}, "must be from 1 to 100"),
        ({"overlap": 1.5}, "must be from 0 to 1"),
    ],
)
def test_knobs_that_cannot_be_are_refused(knobs, message):
    with pytest.raises(ConfigError, match=message):
        config_of("detr", **knobs)


def test_items_need_images_with_labels():
    with pytest.raises(ConfigError, match=r"task\.items_dataset=lab_wine has no image of fixed shape"):
        make_task(config_of("detr", items_dataset="lab_wine").task)


def test_images_are_given_as_files_or_arrays_of_any_size(tmp_path):
    task = built("detr").task
    pixels = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(np.stack([pixels] * 3, axis=-1)).save(tmp_path / "b.png")
    found = task.inputs_of([tmp_path / "a.png", str(tmp_path / "b.png"), pixels[..., None]])
    assert found.shape == (3, 16, 16, 1)
    whole = resize_image(pixels[..., None], (16, 16))  # as training has it
    np.testing.assert_allclose(found[2], whole / np.float32(127.5) - 1, atol=1e-6)
    np.testing.assert_allclose(found[0], found[2], atol=1e-6)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert -1 <= found.min() < -0.5 and 0.5 < found.max() <= 1
    with pytest.raises(ConfigError, match=r"an image of shape \(0, 4, 1\) is not"):
        task.inputs_of([np.zeros((0, 4, 1), np.uint8)])
    with pytest.raises(ConfigError, match="images of float64; give whole numbers from 0 to 255"):
        task.inputs_of([np.zeros((4, 4, 1))])
    Image.fromarray(pixels.astype(np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ConfigError, match=r"deep\.png: images of uint16; give whole numbers"):
        task.inputs_of([tmp_path / "a.png", tmp_path / "deep.png"])


@pytest.mark.slow
@pytest.mark.parametrize("detector", DETECTORS)
def test_pmap_trains_and_finds_what_one_device_does(detector, tmp_path):
    training = {"steps": 2, "batch_size": 8, "evaluate_batch_size": 8, "evaluate_every": 2, "checkpoint_every": 2}
    tree = {"task": SCENES | {"detector": detector}, "model": BODIES[detector], "training": training}
    # Adam would enlarge the rounding of gradients that are 0, as those of the biases of keys.
    tree |= {"optimizer": {"name": "sgd", "learning_rate": 0.05}}
    ends = []
    for strategy in ("single", "pmap"):
        folder = tmp_path / strategy
        train(parse_config(tree | {"parallelism": {"strategy": strategy}}), folder, quiet=True)
        ends.append(load_run(folder))
    one, many = ends
    for name, leaf in leaf_paths(one.params).items():
        np.testing.assert_allclose(leaf_paths(many.params)[name], leaf, rtol=1e-4, atol=2e-5, err_msg=name)
    many, one = (end.evaluate("validation") for end in (many, one))
    assert many == pytest.approx(one, rel=1e-3, abs=1e-4)
