"""Does a network look at objects? Attention and gradients inside of them, beside their area (claim C22)."""

import fnmatch
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxformer_lab.functional.boxes import coverage
from flaxformer_lab.functional.detection import ABSENT, Objects
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.modules.detection import BEFORE_CENTRE, STRIDE
from flaxformer_lab.tasks.detection import ObjectTask

Tree = Any  # a pytree of arrays
WEIGHTS = "*attention.weights"
AREA, SALIENCY = "area", "gradient"


def shares_inside(
    task: ObjectTask, network: PureNetwork, params: Tree, model_state: Tree, batch: dict[str, Any]
) -> dict[str, Float[np.ndarray, " images"]]:
    """Of each image with an object, the share that lies inside of boxes, by name.

    `area`: of the image. `blocks.N.attention.weights` and so on: of the attention that a layer's queries pay to the
    image's tokens, mean over heads; of a DETR's decoder, over the queries that find something, each by its score.
    `gradient`: of |d score / d pixel|, for the sum of the scores of all that is found. A token stands for the pixels
    around which its convolutions are centred.
    """
    rows, columns, _ = task.metadata["image_shape"]
    objects: Objects = batch["objects"]

    @jax.jit
    def run(params: Tree, model_state: Tree, images: Array, objects: Objects) -> dict[str, Array]:
        outputs, values = network.run_with_cache(params, model_state, images, names=(WEIGHTS,))

        def score(images: Array) -> tuple[Array, Array]:
            scores = task.detections(network.apply(params, model_state, images)[0]).scores
            return jnp.sum(jnp.where(scores > ABSENT, scores, 0)), scores

        gradient = jnp.sum(jnp.abs(jax.grad(score, has_aux=True)(images)[0]), axis=-1)
        pixels = coverage(objects.boxes, objects.valid, rows, columns, fine=1)
        found = {AREA: jnp.mean(pixels, axis=(1, 2)), SALIENCY: _inside(gradient, pixels)}
        importance = _importance(outputs)
        for name, weights in values.items():
            paid = jnp.mean(weights, axis=1)  # [batch, queries, keys], over heads
            if fnmatch.fnmatchcase(name, "decoder.*"):
                if not fnmatch.fnmatchcase(name, "*cross_attention*"):
                    continue  # queries to queries: no place
                paid = paid * importance[:, :, None]
            grid = rows // STRIDE, columns // STRIDE
            if paid.shape[-1] == grid[0] * grid[1]:
                moved = objects.boxes + BEFORE_CENTRE / jnp.array([columns, rows] * 2, jnp.float32)[None, None]
                cells = coverage(moved, objects.valid, *grid)
                found[name] = _inside(jnp.sum(paid, axis=1).reshape(-1, *grid), cells)
        return found

    found = jax.device_get(run(params, model_state, batch["inputs"], objects))
    has = np.asarray(objects.valid).any(axis=1)
    return {name: np.asarray(values)[has] for name, values in found.items()}


def _importance(outputs: dict[str, Any]) -> Float[Array, "batch queries"]:
    """Of each query the probability that it is an object; 1 where outputs are of no queries."""
    return jnp.sum(jax.nn.softmax(outputs["logits"], axis=-1)[..., :-1], axis=-1)


def _inside(
    mass: Float[Array, "batch rows columns"], share: Float[Array, "batch rows columns"]
) -> Float[Array, " batch"]:
    total = jnp.sum(mass, axis=(1, 2))
    return jnp.sum(mass * share, axis=(1, 2)) / jnp.where(total > 0, total, 1)
