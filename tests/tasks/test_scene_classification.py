import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.task_config import SceneClassificationConfig
from flaxformer_lab.tasks import make_task


def test_the_class_is_that_of_the_item_and_its_box_is_the_object():
    config = SceneClassificationConfig(canvas=16, item_size=8.0, clutter=0, noise=0.0)
    task = make_task(config)
    examples = {"index": jnp.arange(12), "example_weight": jnp.ones(12)}
    keys = jax.random.split(jax.random.key(0), 12)
    batch = jax.jit(lambda *given: task.prepare(*given, training=True))(examples, keys)
    scene = jax.jit(task._scenes.draw)(examples["index"], keys)
    assert batch["inputs"].shape == (12, 16, 16, 1) and task.metadata["num_classes"] == 10
    np.testing.assert_array_equal(batch["targets"], scene.labels[:, 0])
    bright = np.asarray(batch["inputs"][..., 0]) > 0
    inside = np.asarray(batch["object_pixels"]) > 0
    assert bright.any(axis=(1, 2)).all() and not (bright & ~inside).any()  # without clutter all ink is the item's
    assert 0.05 < inside.mean() < 0.6


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"items": (1, 2)}, r"task\.items=1,2 .* set task\.items=1,1"),
        ({"patch_size": 5}, r"task\.patch_size=5 does not divide task\.canvas=32"),
        ({"stem": "pooling", "patch_size": 8}, r"task\.stem=pooling .* set task\.patch_size=4"),
        ({"stem": "convolutions", "patch_size": 3}, r"task\.stem=convolutions .* 1, 2, 4, 8"),
    ],
)
def test_what_cannot_be_is_refused(knobs, message):
    with pytest.raises(ConfigError, match=message):
        parse_config({"task": {"name": "scene_classification"} | knobs})
