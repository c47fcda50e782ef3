"""Detectors as tasks: every part learns, padding changes nothing, and a population's replicas are single runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.metrics import compute
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.tasks import make_task
from flaxformer_lab.tasks.detection import DETECTORS

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
    params: object
    batch: dict
    gradient: object
    metrics: dict
    outputs: object


@functools.cache
def built(detector):
    config = config_of(detector)
    task = make_task(config.task)
    network = task.network(config.model)

    @jax.jit
    def run(key):
        params, state = network.init(key)
        examples = {"index": jnp.arange(8, dtype=jnp.int32), "example_weight": jnp.ones(8)}
        batch = task.prepare(examples, jax.random.split(key, 8), training=True)

        def loss(params):
            outputs, _ = network.apply(params, state, batch["inputs"], training=True)
            metrics = task.loss_and_metrics(outputs, batch)
            return metrics["loss"].total, (metrics, outputs)

        (_, (metrics, outputs)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return params, batch, gradient, metrics, outputs

    params, batch, gradient, metrics, outputs = run(jax.random.key(0))
    return Built(task, network, params, batch, gradient, jax.device_get(metrics), outputs)


@pytest.mark.parametrize("detector", DETECTORS)
def test_every_part_learns_and_the_loss_is_the_sum_of_its_parts(detector):
    found = built(detector)
    for name, leaf in leaf_paths(found.gradient).items():
        assert np.all(np.isfinite(leaf)), name
        # A key's bias moves all scores of a query alike.
        assert np.any(np.asarray(leaf) != 0), name
    values = compute([found.metrics])
    parts = [value for name, value in values.items() if name.endswith("_loss")]
    assert len(parts) >= 3 and values["loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert 0 <= values["ap"] <= 1 and 0 <= values["ar"] <= 1 and found.task.primary_metric.name in values


@pytest.mark.parametrize("detector", DETECTORS)
def test_padding_of_objects_and_of_examples_changes_nothing(detector):
    found = built(detector)
    objects, batch = found.batch["objects"], found.batch
    padded = objects._replace(
        boxes=jnp.pad(objects.boxes, ((0, 0), (0, 2), (0, 0))),
        labels=jnp.pad(objects.labels, ((0, 0), (0, 2))),
        valid=jnp.pad(objects.valid, ((0, 0), (0, 2))),
    )
    kind = jnp.pad(batch["kind"], ((0, 0), (0, 2)))
    metrics = jax.jit(found.task.loss_and_metrics)
    wider = compute([jax.device_get(metrics(found.outputs, batch | {"objects": padded, "kind": kind}))])
    values = compute([found.metrics])
    for name, value in values.items():
        assert wider[name] == pytest.approx(value, rel=1e-5), name
    half = batch | {"loss_weights": (jnp.arange(8) < 4).astype(jnp.float32)}
    first = jax.tree.map(lambda leaf: leaf[:4], (found.outputs, batch))
    alone = compute([jax.device_get(metrics(*first))])
    for name, value in compute([jax.device_get(metrics(found.outputs, half))]).items():
        assert alone[name] == pytest.approx(value, rel=1e-5), name


def test_the_same_scenes_come_for_the_same_seed_and_others_for_another():
    task = built("detr").task
    draw = jax.jit(
        lambda index, key: task.prepare(
            {"index": index, "example_weight": jnp.ones(4)}, jax.random.split(key, 4), training=True
        )["inputs"]
    )
    rows = [jnp.arange(4, dtype=jnp.int32) + first for first in (0, 4, 2**30)]
    first, again = draw(rows[0], jax.random.key(1)), draw(rows[0], jax.random.key(1))
    np.testing.assert_array_equal(first, again)
    for other in (draw(rows[1], jax.random.key(1)), draw(rows[0], jax.random.key(2)), draw(rows[2], jax.random.key(1))):
        assert np.all(np.any(np.asarray(first != other), axis=(1, 2, 3)))


def test_queries_see_one_another_unless_that_is_off():
    """By the gradient of one query's output with respect to another query's embedding."""
    moved = {}
    for is_on in (True, False):
        config = config_of("detr")
        model = dataclasses.replace(config.model, self_attention=is_on)
        network = built("detr").task.network(model)

        @jax.jit
        def slope(key, network=network):
            params, state = network.init(key)
            images = jax.random.normal(key, (1, 16, 16, 1))
            score = lambda queries: network.apply(  # noqa: E731
                params | {"embedding": params["embedding"] | {"queries": queries}}, state, images
            )[0]["logits"][0, 0, 0]
            return jax.grad(score)(params["embedding"]["queries"])

        moved[is_on] = np.abs(np.asarray(slope(jax.random.key(0)))).sum(axis=1)
    assert moved[True].all() and moved[False][0] > 0 and not moved[False][1:].any()


def test_a_detector_and_a_model_that_do_not_fit_are_refused():
    task = make_task(config_of("detr").task, built("detr").task.metadata)
    with pytest.raises(ConfigError, match=r"task.detector=detr cannot use model.name=cnn_2d; choose model.name=enc"):
        task.network(config_of("faster_rcnn").model)
    task = make_task(config_of("dense").task, built("detr").task.metadata)
    with pytest.raises(ConfigError, match=r"task\.detector=dense cannot use model\.name=encoder_decoder; choose"):
        task.network(config_of("detr").model)


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
    np.testing.assert_allclose(found[0], found[2], atol=1e-6)
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert -1 <= found.min() < -0.5 and 0.5 < found.max() <= 1
    with pytest.raises(ConfigError, match=r"an image of shape \(0, 4, 1\) is not"):
        task.inputs_of([np.zeros((0, 4, 1), np.uint8)])
    with pytest.raises(ConfigError, match="images of float64; give whole numbers from 0 to 255"):
        task.inputs_of([np.zeros((4, 4, 1))])
