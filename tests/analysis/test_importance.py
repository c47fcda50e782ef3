"""Head importance, against a gate that is really there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.analysis.importance import head_importance
from flaxformer_lab.analysis.measures import measure
from flaxformer_lab.functional.trees import leaf_paths

STEP = 1e-2


def test_it_is_the_derivative_of_a_gate_by_hand():
    """y = sum_h g_h x_h W_h, L = y^2: dL / dg_h = 2 y x_h W_h."""
    x, weight = np.random.default_rng(0).normal(size=(2, 5, 6)).astype(np.float32)
    weight = weight[0][:, None]  # 3 heads of 2 features, 1 output
    found = head_importance(
        lambda maps, x: jnp.sum((x @ maps["w"]) ** 2), {"w": jnp.asarray(weight)}, 3, jnp.asarray(x)
    )
    by_head = (x * weight[:, 0]).reshape(5, 3, 2).sum(axis=2)
    expected = np.abs(2 * by_head.sum(axis=1, keepdims=True) * by_head).mean(axis=0)
    np.testing.assert_allclose(found["w"], expected, rtol=1e-5)


@pytest.mark.parametrize("output", ["dense", "diagonal"])
def test_it_is_that_of_finite_differences_of_the_loss(subject, output):
    model = subject({"depth": 2, "attention.output": output, "ffn.activation": "tanh"})
    found = measure(model, ["head_importance"])
    assert set(found) == {"blocks.0.head_importance", "blocks.1.head_importance"}
    paths = leaf_paths(model.params)

    @jax.jit
    def losses(block, head, gate):
        """Each example's loss with one head's features multiplied by a gate before the output map."""
        gates = jnp.repeat(jnp.where(jnp.arange(2) == head, gate, 1.0), 4)
        leaves = []
        for path, leaf in paths.items():
            number, _, name = path.removeprefix("body.blocks.").partition(".")
            gated = name in ("attention.output.kernel", "attention.output.scale")
            shaped = gates if leaf.ndim == 1 else gates[:, None]
            leaves.append(leaf * jnp.where(int(number) == block, shaped, 1.0) if gated else leaf)
        params = jax.tree.unflatten(jax.tree.structure(model.params), leaves)
        y, _ = model.network.apply(params, model.model_state, model.batch["inputs"])
        return jnp.mean(jnp.square(y - model.batch["targets"]), axis=(1, 2))

    for block in range(2):
        slopes = [(losses(block, h, 1 + STEP) - losses(block, h, 1 - STEP)) / (2 * STEP) for h in range(2)]
        expected = np.abs(np.stack(slopes)).mean(axis=1)
        np.testing.assert_allclose(found[f"blocks.{block}.head_importance"], expected, rtol=2e-2)
        assert np.all(expected > 1e-3)
