"""Initial weights and rates by fan-in: one learning rate for maps of all structures."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxformer_lab.config import OptimizerConfig, parse_config
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.models.network import functionalize
from flaxformer_lab.modules.projection import PROJECTIONS
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.optimizer import make_optimizer
from flaxformer_lab.training.scaling import scale_initial_weights
from flaxformer_lab.training.state import initial_state

STRUCTURES = {"dense": {}, "block": {"blocks": 8}, "low_rank": {"rank": 8}, "diagonal": {}}
RATES = 0.002 * 2.0 ** np.arange(12)
BASE = 64


def make_map(kind, width):
    options = {"axes": (None, None), "bias": False} | STRUCTURES[kind]
    return functionalize(lambda rngs: PROJECTIONS[kind](width, width, rngs=rngs, **options))


def final_losses(kind, scaling, *, width, steps, seeds, rates=RATES, batch=64):
    """Of a student that learns a teacher of the same structure: the mean over seeds for each rate."""
    config = OptimizerConfig(scaling=scaling, base_fan_in=BASE)
    teacher = make_map(kind, width)
    student = scale_initial_weights(teacher) if scaling == "mup" else teacher

    def train(rate, seed):
        optimizer = make_optimizer(config, steps, rate, fans=teacher.fans)
        keys = jax.random.split(jax.random.key(seed), 4)
        right, (params, _) = teacher.init(keys[0])[0], student.init(keys[1])

        def loss(params, x):
            return jnp.mean((teacher.apply(params, {}, x)[0] - teacher.apply(right, {}, x)[0]) ** 2)

        def update(carry, key):
            params, state = carry
            gradient = jax.grad(loss)(params, jax.random.normal(key, (batch, width)))
            updates, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(update, (params, optimizer.init(params)), jax.random.split(keys[2], steps))
        return loss(params, jax.random.normal(keys[3], (256, width)))

    run = jax.jit(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))
    return np.mean(run(jnp.asarray(rates, jnp.float32), jnp.arange(seeds)), axis=1)


def best_rates(scaling, kinds=tuple(STRUCTURES), **sizes):
    """The place of the best rate in the grid, for each structure."""
    return [int(np.argmin(np.nan_to_num(final_losses(kind, scaling, **sizes), nan=np.inf))) for kind in kinds]


@pytest.mark.slow
def test_maps_of_all_structures_have_the_same_best_rate():
    sizes = {"width": BASE, "steps": 60, "seeds": 2}
    found = best_rates("mup", **sizes)
    assert max(found) - min(found) <= 1, found
    assert 0 < min(found) and max(found) < len(RATES) - 1, found
    # Without it a diagonal map wants a rate more than eight times as large as a dense one.
    dense, diagonal = best_rates("none", ("dense", "diagonal"), **sizes)
    assert diagonal - dense > 3


@pytest.mark.slow
def test_so_have_maps_of_other_widths():
    """Within one step of the ablations' usual grid, half a decade."""
    rates = 0.001 * 10 ** (np.arange(7) / 2)
    sizes = {"steps": 150, "seeds": 3, "rates": rates}
    found = [place for width in (64, 256) for place in best_rates("mup", width=width, **sizes)]
    assert max(found) - min(found) <= 1, found
    assert 0 < min(found) and max(found) < len(rates) - 1, found


def config(**optimizer):
    model = {"width": 8, "depth": 1, "attention": {"num_heads": 2, "projection": "block", "block_size": 2}}
    model |= {"ffn": {"projection": "low_rank", "rank": 2, "expansion": 2.0}}
    return parse_config({"task": {"name": "delay", "features": 4}, "model": model, "optimizer": optimizer})


FAN_IN = {
    "embedding.projection.kernel": 4,
    "body.blocks.0.attention.projection.kernel": 2,
    "body.blocks.0.attention.output.kernel": 8,
    "body.blocks.0.ffn.up.down.kernel": 8,
    "body.blocks.0.ffn.up.up.kernel": 2,
    "body.blocks.0.ffn.down.down.kernel": 16,
    "body.blocks.0.ffn.down.up.kernel": 2,
    "head.kernel": 8,
}


def test_each_map_has_a_rate_in_proportion_to_one_over_its_fan_in():
    """Those of biases, norms and positions stay."""
    updates = {}
    for scaling in ("none", "mup"):
        experiment = make_experiment(config(scaling=scaling, base_fan_in=16, schedule="constant", clip_norm=1.0))
        params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), experiment.network.shapes[0])
        update = jax.jit(lambda params, rule=experiment.optimizer: rule.update(params, rule.init(params), params)[0])
        updates[scaling] = leaf_paths(update(params))
    for name, update in updates["none"].items():
        factor = 16 / FAN_IN[name] if name in FAN_IN else 1
        np.testing.assert_allclose(updates["mup"][name], factor * update, rtol=1e-5, err_msg=name)
    assert FAN_IN.keys() < updates["none"].keys()


@pytest.mark.slow
def test_a_map_that_narrows_starts_smaller():
    """With a standard deviation of sqrt(min(d_in, d_out)) / d_in instead of 1 / sqrt(d_in)."""
    start = {}
    for scaling in ("none", "mup"):
        experiment = make_experiment(config(scaling=scaling))
        init = jax.jit(lambda each=experiment: initial_state(each.network, each.optimizer, 0))
        start[scaling] = leaf_paths(init().params)
    narrowing = {
        "body.blocks.0.ffn.up.down.kernel": 2 / 8,
        "body.blocks.0.ffn.down.down.kernel": 2 / 16,
        "head.kernel": 4 / 8,
    }
    for name, values in start["none"].items():
        factor = math.sqrt(narrowing.get(name, 1))
        np.testing.assert_allclose(start["mup"][name], factor * values, rtol=1e-5, err_msg=name)
