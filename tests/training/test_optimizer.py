import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxformer_lab.config import OptimizerConfig, parse_config
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.model_config import AttentionConfig, FeedForwardConfig, TransformerConfig
from flaxformer_lab.task_config import ImageClassificationConfig, LanguageModellingConfig
from flaxformer_lab.tasks import make_task
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.optimizer import _muon_or_adamw, decayed, make_optimizer, make_schedule, maps_by_rule
from flaxformer_lab.training.single import Single

STEPS = 100


def rates(schedule, warmup, peak=0.5, steps=STEPS):
    config = OptimizerConfig(learning_rate=peak, schedule=schedule, warmup_steps=warmup)
    return np.asarray(jax.jit(jax.vmap(make_schedule(config, steps)))(jnp.arange(steps + 1)))


def params_of(task, **model):
    return jax.eval_shape(task.network(TransformerConfig(width=8, **model)).init, jax.random.key(0))[0]


@pytest.fixture(scope="module")
def small():
    """A pytree with a part of each sort: a block's matrix, another matrix, a table, and what is no matrix."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "embedding": {"table": draw(11, 6)},
        "body": {
            "position": draw(5, 6),
            "blocks": {0: {"ffn": {"kernel": draw(6, 10), "bias": draw(10)}, "norm": {"scale": draw(6)}}},
        },
        "head": {"kernel": draw(6, 3), "bias": draw(3)},
    }


def ones_like(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(np.ones(leaf.shape, np.float32)), tree)


def norm(tree):
    return np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in jax.tree.leaves(tree)))


def one_update(config, params, gradient, steps=STEPS):
    optimizer = make_optimizer(config, steps)
    return jax.jit(lambda gradient, params: optimizer.update(gradient, optimizer.init(params), params)[0])(
        gradient, params
    )


def test_ridge_moves_nothing(small):
    moved = one_update(OptimizerConfig("ridge", weight_decay=1.0), small, ones_like(small))
    assert norm(moved) == 0


# ----------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [1, 2, 10, 100])
def test_warm_up_climbs_in_equal_steps_from_its_first_update(schedule, warmup):
    climbing = rates(schedule, warmup)[:warmup]
    np.testing.assert_allclose(climbing, 0.5 * np.arange(1, warmup + 1) / warmup, rtol=1e-5)


@pytest.mark.parametrize("warmup", [0, 10])
def test_schedules_follow_their_formulas_after_the_warm_up(warmup):
    progress = np.arange(STEPS - warmup + 1) / (STEPS - warmup)
    formulas = {
        "constant": np.ones_like(progress),
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + np.cos(math.pi * progress)),
    }
    for schedule, formula in formulas.items():
        np.testing.assert_allclose(rates(schedule, warmup)[warmup:], 0.5 * formula, atol=1e-6, err_msg=schedule)


def test_schedules_end_where_they_should():
    assert [rates(schedule, 10)[-1] for schedule in ("constant", "cosine", "linear")] == [0.5, 0, 0]


def test_the_first_update_has_the_first_rate(small):
    config = OptimizerConfig(name="sgd", learning_rate=0.5, warmup_steps=10, schedule="linear")
    update = one_update(config, small, ones_like(small))
    np.testing.assert_allclose(update["head"]["bias"], -0.05, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ formulas


def gradients(shape, number):
    rng = np.random.default_rng(1)
    return [rng.normal(size=shape).astype(np.float32) for _ in range(number)]


def run(config, start, each, path="bias"):
    """The values of one parameter after each update."""
    optimizer = make_optimizer(config, STEPS)
    params = {path: jnp.asarray(start)}
    state, values = optimizer.init(params), []

    @jax.jit
    def update(gradient, state, params):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in each:
        params, state = update({path: jnp.asarray(gradient)}, state, params)
        values.append(np.asarray(params[path]))
    return values


@pytest.mark.parametrize("path", ["bias", "kernel"])
def test_adamw_is_its_formula(path):
    config = OptimizerConfig(learning_rate=0.01, schedule="linear", weight_decay=0.1, beta1=0.8, beta2=0.95)
    x, each = np.random.default_rng(2).normal(size=(3, 2)), gradients((3, 2), 6)
    found = run(config, x.astype(np.float32), each, path)
    first, second = np.zeros_like(x), np.zeros_like(x)
    for step, gradient in enumerate(each, start=1):
        first, second = 0.8 * first + 0.2 * gradient, 0.95 * second + 0.05 * gradient.astype(np.float64) ** 2
        direction = first / (1 - 0.8**step) / (np.sqrt(second / (1 - 0.95**step)) + 1e-8)
        decay = 0.1 * x if path == "kernel" else 0
        x = x - 0.01 * (1 - (step - 1) / STEPS) * (direction + decay)
        np.testing.assert_allclose(found[step - 1], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", ["bias", "kernel"])
def test_sgd_is_its_formula(path):
    config = OptimizerConfig(name="sgd", learning_rate=0.1, schedule="constant", weight_decay=0.1, beta1=0.9)
    x, each = np.random.default_rng(2).normal(size=(3, 2)), gradients((3, 2), 6)
    found = run(config, x.astype(np.float32), each, path)
    velocity = np.zeros_like(x)
    for step, gradient in enumerate(each, start=1):
        velocity = 0.9 * velocity + gradient
        x = x - 0.1 * (velocity + (0.1 * x if path == "kernel" else 0))
        np.testing.assert_allclose(found[step - 1], x, rtol=1e-5, atol=1e-6)


def test_muon_makes_the_update_of_a_blocks_matrix_orthogonal(small):
    config = OptimizerConfig(name="muon", learning_rate=0.01, schedule="constant")
    rng = np.random.default_rng(3)
    gradient = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), small)
    update = one_update(config, small, gradient)
    matrix = np.asarray(update["body"]["blocks"][0]["ffn"]["kernel"])
    assert matrix.shape == (6, 10)
    # U V^T with all singular values near 1, scaled to a root mean square of 0.2 (Liu et al. 2025, eq. 4).
    values = np.linalg.svd(matrix / (0.01 * 0.2 * math.sqrt(10)), compute_uv=False)
    assert values.min() > 0.65 and values.max() < 1.25
    before = np.linalg.svd(np.asarray(gradient["body"]["blocks"][0]["ffn"]["kernel"]), compute_uv=False)
    assert before.max() / before.min() > 2.5 > values.max() / values.min()
    u, _, v = np.linalg.svd(np.asarray(gradient["body"]["blocks"][0]["ffn"]["kernel"]), full_matrices=False)
    # The direction is that of the gradient's own polar factor.
    assert np.sum(-matrix * (u @ v)) / np.linalg.norm(matrix) / math.sqrt(6) > 0.97


def test_muon_makes_the_update_of_each_block_orthogonal():
    gradient = np.random.default_rng(3).normal(size=(3, 4, 6)).astype(np.float32)
    tree = {"blocks": {0: {"kernel": jnp.asarray(gradient)}}}
    update = one_update(OptimizerConfig(name="muon", learning_rate=0.01, schedule="constant"), tree, tree)
    for block, own in zip(np.asarray(update["blocks"][0]["kernel"]), gradient, strict=True):
        values = np.linalg.svd(block / (0.01 * 0.2 * math.sqrt(6)), compute_uv=False)
        assert values.min() > 0.65 and values.max() < 1.25
        u, _, v = np.linalg.svd(own, full_matrices=False)
        assert np.sum(-block * (u @ v)) / np.linalg.norm(block) / math.sqrt(4) > 0.97


def test_which_rule_trains_which_map():
    task = make_task(LanguageModellingConfig(), {"num_symbols": 9, "symbols": "\N{REPLACEMENT CHARACTER}abcdefgh"})
    model = {"depth": 1, "attention": AttentionConfig(num_heads=4, projection="diagonal")}
    network = task.network(TransformerConfig(width=8, ffn=FeedForwardConfig(projection="block", block_size=2), **model))
    expected = {
        "body.blocks.0.attention.projection.scale": "adamw",
        "body.blocks.0.attention.output.kernel": "muon",
        "body.blocks.0.ffn.up.kernel": "muon",
        "body.blocks.0.ffn.down.kernel": "muon",
    }
    assert maps_by_rule(OptimizerConfig(name="muon"), network) == expected
    assert maps_by_rule(OptimizerConfig(), network) == dict.fromkeys(expected, "adamw")


def test_muon_is_not_for_a_convolution_of_each_feature_by_itself():
    config = {"task": {"dataset": "lab_digits", "patch_size": 4}, "model": {"name": "convnext", "width": 8, "depth": 1}}
    experiment = make_experiment(parse_config(config | {"optimizer": {"name": "muon"}}), strategy=Single())
    params, _ = experiment.network.shapes
    rules = leaf_paths(_muon_or_adamw(params, experiment.network.fans))
    assert rules["body.blocks.0.convolution.kernel"] == "adamw"
    dense = {rule for name, rule in rules.items() if ".blocks." in name and name in experiment.network.fans}
    assert dense == {"muon"}


def test_muon_leaves_what_is_outside_the_blocks_to_adamw(small):
    rng = np.random.default_rng(3)
    gradient = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), small)
    config = OptimizerConfig(name="muon", learning_rate=0.01, schedule="constant", weight_decay=0.1)
    updates, gradients_of = leaf_paths(one_update(config, small, gradient)), leaf_paths(gradient)
    for path, leaf in leaf_paths(small).items():
        g = np.asarray(gradients_of[path])
        # Adam's first update with Nesterov's momentum (Dozat 2016): 0.9 m2 / (1 - 0.9^2) + 0.1 g / (1 - 0.9).
        momentum = 0.9 * 0.1 * g / (1 - 0.9**2) + g
        expected = -0.01 * (momentum / (np.abs(g) + 1e-8) + (0.1 * leaf if path.endswith(("kernel", "table")) else 0))
        same = np.allclose(updates[path], expected, rtol=1e-4, atol=1e-7)
        assert same == (path != "body.blocks.0.ffn.kernel"), path


# ------------------------------------------------------------------------------------ decay and clipping


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_weight_decay_shrinks_kernels_and_tables_only(small, name):
    config = OptimizerConfig(name=name, learning_rate=0.5, schedule="constant", weight_decay=0.1)
    updates = leaf_paths(one_update(config, small, jax.tree.map(jnp.zeros_like, small)))
    for path, leaf in leaf_paths(small).items():
        expected = -0.05 * leaf if path.endswith(("kernel", "table")) else np.zeros(leaf.shape)
        np.testing.assert_allclose(updates[path], expected, rtol=1e-5, atol=1e-8, err_msg=path)


def test_what_is_decayed_in_a_vision_transformer():
    task = make_task(ImageClassificationConfig(pooling="class_token"), {"image_shape": [8, 8, 1], "num_classes": 10})
    chosen = leaf_paths(decayed(params_of(task, depth=1)))
    block = "body.blocks.0"
    assert {path for path, yes in chosen.items() if yes} == {
        "embedding.projection.kernel",
        f"{block}.attention.projection.kernel",
        f"{block}.attention.output.kernel",
        f"{block}.ffn.up.kernel",
        f"{block}.ffn.down.kernel",
        "head.kernel",
    }
    assert {"embedding.class_token", "body.position", "body.norm.scale", "head.bias"} <= chosen.keys()


def test_what_is_decayed_where_no_feature_meets_another():
    task = make_task(LanguageModellingConfig(), {"num_symbols": 9, "symbols": "\N{REPLACEMENT CHARACTER}abcdefgh"})
    diagonal = AttentionConfig(kind="channel", num_heads=4, projection="diagonal", output="diagonal")
    params = params_of(task, depth=1, attention=diagonal, ffn=FeedForwardConfig(kind="diagonal"))
    chosen = leaf_paths(decayed(params))
    assert {path for path, yes in chosen.items() if yes} == {"embedding.table", "head.kernel"}
    assert "body.blocks.0.attention.temperature" in chosen and "body.blocks.0.ffn.up" in chosen


@pytest.mark.parametrize(("size", "expected"), [(10.0, 2.0), (0.5, 0.5)])
def test_gradients_are_clipped_by_their_global_norm(small, size, expected):
    values = sum(leaf.size for leaf in jax.tree.leaves(small))
    gradient = jax.tree.map(lambda leaf: jnp.asarray(np.full(leaf.shape, size / values**0.5, np.float32)), small)
    config = OptimizerConfig(name="sgd", learning_rate=1.0, schedule="constant", clip_norm=2.0, beta1=0.0)
    update = one_update(config, small, gradient)
    np.testing.assert_allclose(norm(update), expected, rtol=1e-5)
    unclipped = one_update(OptimizerConfig(name="sgd", learning_rate=1.0, schedule="constant"), small, gradient)
    np.testing.assert_allclose(norm(unclipped), size, rtol=1e-5)
    # All parts are shortened alike.
    ratios = jax.tree.map(lambda one, other: (np.asarray(one) / np.asarray(other)).ravel(), update, unclipped)
    np.testing.assert_allclose(np.concatenate(jax.tree.leaves(ratios)), expected / size, rtol=1e-5)


# ----------------------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(("name", "learning_rate"), [("adamw", 0.05), ("muon", 0.3), ("sgd", 0.02)])
def test_every_rule_learns(small, name, learning_rate):
    rng = np.random.default_rng(4)
    goal = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), small)
    optimizer = make_optimizer(OptimizerConfig(name=name, learning_rate=learning_rate, schedule="cosine"), 60)

    def distance(params):
        return sum(jax.tree.leaves(jax.tree.map(lambda one, other: jnp.sum((one - other) ** 2), params, goal)))

    @jax.jit
    def update(params, state):
        updates, state = optimizer.update(jax.grad(distance)(params), state, params)
        return optax.apply_updates(params, updates), state

    params, state = small, optimizer.init(small)
    for _ in range(60):
        params, state = update(params, state)
    assert distance(params) < 0.2 * distance(small)
    for path, leaf in leaf_paths(params).items():  # no part is left behind
        before, after = (np.linalg.norm(tree - leaf_paths(goal)[path]) for tree in (leaf_paths(small)[path], leaf))
        assert after < before, path


def test_the_state_of_the_optimizer_counts_the_updates(small):
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=3, clip_norm=1.0), STEPS)
    state, update = optimizer.init(small), jax.jit(optimizer.update)
    for _ in range(3):
        _, state = update(ones_like(small), state, small)
    counts = [int(leaf) for leaf in jax.tree.leaves(state) if leaf.ndim == 0]
    assert counts and set(counts) == {3}
