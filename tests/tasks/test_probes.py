"""Probes with continuous inputs, each against a second statement of it that reads the inputs alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flaxformer_lab.task_config import (
    DelayConfig,
    MarkedTokenConfig,
    NearestConfig,
    PlantedInteractionsConfig,
    PointersConfig,
    ProductConfig,
    RotationConfig,
    ScaledLinearConfig,
)
from flaxformer_lab.tasks import make_task

# ------------------------------------------------------- second statements: one example's targets and weights


def product(config, x):
    return [[np.prod([token[i] for i in range(config.order)])] for token in x], [1] * len(x)


def rotation(config, x):
    if config.rotation == "shift":
        return [[token[i - 1] for i in range(config.features)] for token in x], [1] * len(x)
    matrix = make_task(config).rotation
    features = range(config.features)
    return [[sum(matrix[i, j] * token[j] for j in features) for i in features] for token in x], [1] * len(x)


def pointers(config, x):
    contents, names, slots = np.split(x, [config.features, config.features + config.tokens], axis=1)
    query = slots[-1].reshape(config.pointers, config.tokens)
    rows = [int(np.flatnonzero(slot)[0]) for slot in query]
    # Everything but the contents follows from the pointers.
    np.testing.assert_array_equal(query, np.eye(config.tokens)[rows])
    np.testing.assert_array_equal(names, np.eye(config.tokens + 1)[:, :-1])
    assert len(set(rows)) == config.pointers and not contents[-1].any() and not slots[:-1].any()
    answer = np.concatenate([contents[row] * (place + 1) ** (-config.decay / 2) for place, row in enumerate(rows)])
    return np.outer(np.eye(config.tokens + 1)[-1], answer), np.eye(config.tokens + 1)[-1]


def nearest(config, x):
    exponents = np.linspace(-config.log_scale, config.log_scale, config.features)
    scale = np.full(config.features, config.features**0.5) if config.standardised else 10.0**exponents
    last = np.eye(config.tokens + 1)[-1]
    candidates, query = np.split(x, 2, axis=1)
    assert not candidates[-1].any() and not query[:-1].any()
    vectors = np.concatenate([candidates[:-1], query[-1:]]) / scale
    np.testing.assert_allclose((vectors**2).sum(axis=1), 1, rtol=1e-5)
    distances = [np.sum((vector - vectors[-1]) ** 2) for vector in vectors[:-1]]
    return np.outer(last, vectors[int(np.argmin(distances))]), last


def scaled_linear(config, x):
    return [[sum(x[0] / config.scale) / np.sqrt(config.features)]], [1]


def planted_interactions(config, x):
    task, x = make_task(config), x[0].astype(np.float64)
    value = sum(a * xi for a, xi in zip(task.linear, x, strict=True))
    for i in range(config.features):
        for j in range(i + 1, config.features):
            value += task.products[i, j] * x[i] * x[j]
    return [[value]], [1]


def delay(config, x):
    nothing = np.zeros(config.features)
    targets = [nothing if t < config.distance else x[t - config.distance] for t in range(config.tokens)]
    return targets, [float(t >= config.distance) for t in range(config.tokens)]


def marked_token(config, x):
    last = np.eye(config.tokens)[-1]
    np.testing.assert_array_equal(x[:, -1], last)
    (marked,) = np.flatnonzero(x[:, -2])
    assert x[marked, -2] == 1 and config.tokens - 1 - marked == config.distance
    return np.outer(last, x[marked, :-2]), last


CONFIGS = {
    "product": (product, ProductConfig()),
    "product of three": (product, ProductConfig(tokens=2, features=5, order=3)),
    "shift": (rotation, RotationConfig(features=6)),
    "random rotation": (rotation, RotationConfig(rotation="random", features=6, tokens=3)),
    "pointers": (pointers, PointersConfig()),
    "pointers at all": (pointers, PointersConfig(tokens=3, features=2, pointers=3)),
    "pointers that matter less": (pointers, PointersConfig(decay=1.5)),
    "nearest": (nearest, NearestConfig()),
    "unequal scales": (nearest, NearestConfig(log_scale=2.0, tokens=5)),
    "standardised": (nearest, NearestConfig(log_scale=2.0, standardised=True, tokens=5)),
    "scaled linear": (scaled_linear, ScaledLinearConfig(scale=0.01, features=5)),
    "planted interactions": (planted_interactions, PlantedInteractionsConfig(features=6)),
    "delay": (delay, DelayConfig(tokens=6, features=3)),
    "long delay": (delay, DelayConfig(tokens=6, features=3, distance=4)),
    "marked token": (marked_token, MarkedTokenConfig(tokens=9, distance=5)),
    "first token marked": (marked_token, MarkedTokenConfig(tokens=4, distance=3)),
}
NUMBER = 8192
every_probe = pytest.mark.parametrize("name", CONFIGS)


def stated(name, inputs):
    """Targets and weights by the second statement."""
    statement, config = CONFIGS[name]
    targets, weights = zip(*(statement(config, x) for x in inputs), strict=True)
    return np.asarray(targets, np.float64), np.asarray(weights, np.float64)


@every_probe
def test_targets_and_weights_follow_from_the_inputs(examples_of, name):
    inputs, targets, weights = (part[:64] for part in examples_of(CONFIGS[name][1], NUMBER))
    expected, expected_weights = stated(name, inputs)
    np.testing.assert_array_equal(weights, expected_weights)
    assert targets.shape == expected.shape
    np.testing.assert_allclose(targets * weights[:, :, None], expected * weights[:, :, None], rtol=2e-4, atol=2e-5)


@every_probe
def test_targets_have_mean_0_and_the_stated_variance(examples_of, name):
    _, targets, weights = examples_of(CONFIGS[name][1], NUMBER)
    asked = targets.astype(np.float64)[weights == 1]
    variance = make_task(CONFIGS[name][1]).variance
    errors = asked.std(axis=0) / np.sqrt(len(asked))
    assert np.all(np.abs(asked.mean(axis=0)) < 5 * errors)
    assert np.mean(asked**2) == pytest.approx(variance, rel=0.08)
    if not getattr(CONFIGS[name][1], "decay", 0):  # each output has that variance, so that all weigh the same
        np.testing.assert_allclose(np.mean(asked**2, axis=0), variance, rtol=0.15)


@every_probe
def test_r2_is_1_for_the_solution_and_0_for_the_mean(examples_of, name):
    task = make_task(CONFIGS[name][1])
    inputs, targets, weights = examples_of(CONFIGS[name][1], NUMBER)

    @jax.jit
    def sums(solution, targets, weights):
        few = {"targets": targets[: len(solution)], "loss_weights": weights[: len(solution)]}
        everything = {"targets": targets, "loss_weights": weights}
        return task.loss_and_metrics(solution, few), task.loss_and_metrics(jnp.zeros_like(targets), everything)

    solution = jnp.asarray(stated(name, inputs[:64])[0], jnp.float32)
    solved, guessed = (
        {metric: float(total) / float(weight) for metric, (total, weight) in each.items()}
        for each in sums(solution, jnp.asarray(targets), jnp.asarray(weights))
    )
    assert solved["r2"] == pytest.approx(1, abs=1e-5) and solved["loss"] == pytest.approx(0, abs=1e-5)
    assert guessed["r2"] == pytest.approx(0, abs=1e-5) and guessed["loss"] == pytest.approx(1, rel=0.08)


@pytest.mark.parametrize(
    "name", ["product", "random rotation", "planted interactions", "scaled linear", "delay", "pointers", "marked token"]
)
def test_contents_are_independent_standard_gaussians(examples_of, name):
    config = CONFIGS[name][1]
    inputs = examples_of(config, NUMBER)[0].astype(np.float64)
    tokens = config.tokens if name in ("pointers", "delay", "marked token") else inputs.shape[1]
    contents = inputs[:, :tokens, : config.features] / getattr(config, "scale", 1)
    flat = contents.reshape(NUMBER, -1)
    assert stats.kstest(flat.reshape(-1)[:: max(1, flat.size // 20_000)], "norm").pvalue > 1e-3
    np.testing.assert_allclose(np.cov(flat.T), np.eye(flat.shape[1]), atol=0.08)


def vectors_of(inputs):
    """Candidates and query of `nearest`, [examples, tokens, features]; each token has one half empty."""
    return inputs.reshape(*inputs.shape[:2], 2, -1).sum(axis=2)


def test_unit_vectors_point_everywhere_alike(examples_of):
    vectors = vectors_of(examples_of(NearestConfig(), NUMBER)[0]).reshape(-1, 8)
    np.testing.assert_allclose(np.cov(vectors.T), np.eye(8) / 8, atol=0.005)
    # A coordinate of a uniform unit vector in R^8, squared, is Beta(1/2, 7/2).
    assert stats.kstest(vectors[::9, 3] ** 2, "beta", args=(0.5, 3.5)).pvalue > 1e-3


def test_standardised_features_have_variance_1_whatever_the_scale(examples_of):
    standardised, raw = (
        vectors_of(examples_of(NearestConfig(log_scale=2.0, tokens=5, standardised=flag), NUMBER)[0])
        for flag in (True, False)
    )
    np.testing.assert_allclose(standardised.std(axis=(0, 1)), 1, rtol=0.03)
    # The same numbers, divided by their standard deviation.
    np.testing.assert_allclose(raw / raw.std(axis=(0, 1)), standardised, rtol=0.03)
    assert raw.std(axis=(0, 1)).max() / raw.std(axis=(0, 1)).min() == pytest.approx(1e4, rel=0.03)


def test_each_ordered_choice_of_pointers_is_as_likely(examples_of):
    config = PointersConfig(tokens=4, features=1, pointers=2)
    query = examples_of(config, NUMBER)[0][:, -1, 5:].reshape(NUMBER, 2, 4).argmax(axis=2)
    counts = np.bincount(query[:, 0] * 4 + query[:, 1], minlength=16).reshape(4, 4)
    assert not np.diag(counts).any()
    assert stats.chisquare(counts[~np.eye(4, dtype=bool)]).pvalue > 1e-3


# ------------------------------------------------------------------------------------ what a seed has fixed


@pytest.mark.parametrize("rotation", ["shift", "random"])
def test_rotations_are_orthogonal(rotation):
    matrix = make_task(RotationConfig(rotation=rotation, features=12)).rotation
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(12), atol=1e-12)


def test_a_shift_keeps_no_feature_and_a_random_rotation_keeps_little():
    assert np.trace(make_task(RotationConfig()).rotation) == 0
    matrices = np.stack([make_task(RotationConfig(rotation="random", rotation_seed=s)).rotation for s in range(40)])
    # A uniform rotation of R^n has squared entries of mean 1 / n, and entries of mean 0.
    assert np.mean(np.diagonal(matrices, axis1=1, axis2=2) ** 2) == pytest.approx(1 / 32, rel=0.15)
    assert abs(np.mean(np.diagonal(matrices, axis1=1, axis2=2))) < 0.02


@pytest.mark.parametrize(
    ("config", "seed", "parts"),
    [
        (RotationConfig, "rotation_seed", ["rotation"]),
        (PlantedInteractionsConfig, "coefficient_seed", ["linear", "products"]),
    ],
)
def test_the_seed_of_the_definition_changes_it_and_nothing_else_does(config, seed, parts):
    kind = {"rotation": "random"} if config is RotationConfig else {}
    one, again, other = (make_task(config(**kind, **{seed: number})) for number in (3, 3, 4))
    for part in parts:
        np.testing.assert_array_equal(getattr(one, part), getattr(again, part))
        assert not np.allclose(getattr(one, part), getattr(other, part))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.909, 1.0])
def test_planted_products_have_the_stated_share_of_a_variance_of_1(share):
    task = make_task(PlantedInteractionsConfig(interaction_share=share))
    assert np.sum(task.linear**2) + np.sum(task.products**2) == pytest.approx(1)
    assert not np.tril(task.products).any()
    x = np.random.default_rng(0).normal(size=(100_000, 8))
    y = np.asarray(task.truth(jnp.asarray(x, jnp.float32)))[:, 0].astype(np.float64)
    even = (y + np.asarray(task.truth(jnp.asarray(-x, jnp.float32)))[:, 0]) / 2
    assert np.var(y) == pytest.approx(1, rel=0.03)
    # The products are the even part of the function.
    assert np.var(even) / np.var(y) == pytest.approx(share, abs=0.02)


def test_the_hessian_of_the_planted_function_is_its_table_of_products():
    task = make_task(PlantedInteractionsConfig(features=5))
    truth = lambda x: task.truth(x[None])[0, 0]  # noqa: E731
    hessian, gradient = jax.jit(lambda x: (jax.hessian(truth)(x + 1), jax.grad(truth)(x)))(jnp.zeros(5))
    np.testing.assert_allclose(hessian, task.products + task.products.T, atol=1e-5)
    np.testing.assert_allclose(gradient, task.linear, rtol=1e-5)


# --------------------------------------------------------------------------------------------------- bounds

ODD = {"norm.kind": "rmsnorm", "position": "off", "bias": False, "ffn.activation": "tanh"}
BARE = {"depth": 1, "norm.kind": "off", "position": "off", "bias": False, "ffn.kind": "off"}
DIAGONAL = BARE | {"width": 32, "attention.projection": "diagonal", "attention.output": "diagonal"}
DIRECTIONS = {"norm.kind": "layernorm", "position": "off", "bias": False, "skip.attention": False}
DENSE = RotationConfig()
IDENTITY = RotationConfig(embedding="identity", head="identity")
RANDOM = RotationConfig(embedding="identity", head="identity", rotation="random")
BLOCKS = BARE | {"width": 32, "attention.projection": "block", "attention.output": "block"}
BLOCKS |= {"skip.attention": False}
FFN_BLOCKS = {"ffn.kind": "mlp", "ffn.projection": "block"}
LOW_RANK = BARE | {"width": 32, "attention.projection": "low_rank", "skip.attention": False}
LOW_RANK_FFN = BARE | {"width": 32, "attention.kind": "off", "ffn.kind": "mlp", "ffn.projection": "low_rank"}
LOW_RANK_FFN |= {"ffn.rank": 5, "skip.ffn": False}


def inside_blocks(size):
    """The squared mass inside the blocks of the rotation that RANDOM draws, divided by the features."""
    rotation = make_task(RANDOM).rotation
    blocks = range(0, 32, size)
    return sum(np.sum(rotation[i : i + size, i : i + size] ** 2) for i in blocks) / 32


AFFINE, EVEN = "affine map", "odd function"

BOUNDS = [
    # P1: odd networks and even targets; affine networks and any product.
    (ProductConfig(), ODD, (0, EVEN)),
    (ProductConfig(), ODD | {"norm.kind": "layernorm", "position": "rotary", "depth": 9}, (0, EVEN)),
    (ProductConfig(), ODD | {"ffn.kind": "off", "attention.kind": "channel"}, (0, EVEN)),
    (ProductConfig(order=4), ODD, (0, EVEN)),
    (ProductConfig(order=3), ODD, None),
    (ProductConfig(), ODD | {"bias": True}, None),
    (ProductConfig(), ODD | {"position": "learned"}, None),
    (ProductConfig(), ODD | {"position": "sinusoidal"}, None),
    (ProductConfig(), ODD | {"ffn.activation": "relu"}, None),
    (ProductConfig(), ODD | {"ffn.kind": "bilinear"}, None),
    (ProductConfig(), {"name": "mlp", "activation": "tanh", "bias": False}, (0, EVEN)),
    (ProductConfig(), {"name": "mlp", "activation": "tanh"}, None),
    (ProductConfig(), {"name": "factorization_machine", "bias": False}, None),
    (ProductConfig(order=3, tokens=1), BARE, (0, AFFINE)),
    (ProductConfig(order=3, tokens=1), BARE | {"norm.kind": "rmsnorm"}, None),
    # A norm with no way past it: (n + 2) / n at order 2.
    (ProductConfig(features=8), DIRECTIONS, (8 / 10, "hides the length")),
    (ProductConfig(features=2), DIRECTIONS | {"norm.kind": "rmsnorm", "depth": 3}, (2 / 4, "hides the length")),
    (ProductConfig(features=4, tokens=1), DIRECTIONS | {"attention.kind": "off"}, None),
    (ProductConfig(features=4), DIRECTIONS | {"attention.kind": "off", "skip.ffn": False}, (4 / 6, "the length")),
    (ProductConfig(), DIRECTIONS | {"skip.attention": True}, None),
    (ProductConfig(), DIRECTIONS | {"norm.placement": "post", "skip.attention": True}, (0.8, "hides the length")),
    (ProductConfig(), DIRECTIONS | {"position": "learned"}, None),
    (ProductConfig(), DIRECTIONS | {"bias": True}, None),
    (ProductConfig(), DIRECTIONS | {"norm.kind": "batchnorm"}, None),
    (ProductConfig(), {"name": "mixer", "bias": False}, None),
    (ProductConfig(order=3, tokens=4), BARE, None),
    (ProductConfig(order=3, tokens=4), BARE | {"attention.kind": "mean", "bias": True}, (0, AFFINE)),
    # P2: no path between features.
    (IDENTITY, DIAGONAL | {"attention.num_heads": 4}, (0, "feature i alone")),
    (IDENTITY, DIAGONAL | {"ffn.kind": "diagonal", "ffn.activation": "relu", "bias": True}, (0, "feature i alone")),
    (IDENTITY, DIAGONAL | {"attention.projection": "dense"}, None),
    (IDENTITY, DIAGONAL | {"attention.output": "dense"}, None),
    (IDENTITY, DIAGONAL | {"ffn.kind": "mlp"}, None),
    (IDENTITY, DIAGONAL | {"norm.kind": "rmsnorm"}, None),
    (DENSE, DIAGONAL, None),
    (RotationConfig(head="identity"), DIAGONAL, None),
    (RotationConfig(embedding="identity"), DIAGONAL, None),
    # Several tokens: scores let the features of a head meet, unless it has but one.
    (RotationConfig(tokens=4, embedding="identity", head="identity"), DIAGONAL, None),
    (
        RotationConfig(tokens=4, embedding="identity", head="identity"),
        DIAGONAL | {"attention.num_heads": 32},
        (0, "feature i alone"),
    ),
    # Several tokens, and block maps: none that crosses blocks.
    (RANDOM, BLOCKS | {"attention.kind": "mean"}, (inside_blocks(8), "its block of 8")),
    (
        RANDOM,
        BLOCKS | {"attention.output": "diagonal", "attention.block_size": 4},
        (inside_blocks(4), "its block of 4"),
    ),
    (RANDOM, BLOCKS | {"depth": 3, "skip.attention": True}, (inside_blocks(8), "its block of 8")),
    (RANDOM, BLOCKS | FFN_BLOCKS | {"ffn.block_size": 16}, (inside_blocks(16), "its block of 16")),
    (RANDOM, BLOCKS | FFN_BLOCKS | {"ffn.block_size": 32}, None),
    (RANDOM, BLOCKS | {"attention.output": "dense"}, None),
    (RANDOM, BLOCKS | {"attention.gate": True}, None),
    (RANDOM, BLOCKS | {"norm.kind": "rmsnorm"}, None),
    (RANDOM, BLOCKS | {"ffn.kind": "mlp"}, None),
    (dataclasses.replace(RANDOM, tokens=4), BLOCKS, None),
    (dataclasses.replace(RANDOM, head="dense"), BLOCKS, None),
    (RANDOM, {"attention.kind": "off", "norm.kind": "off", "width": 32} | FFN_BLOCKS, (inside_blocks(8), "block of 8")),
    # As many sums as the rank, whatever the rotation; a skip passes them by.
    (RANDOM, LOW_RANK, (8 / 32, "8 sums of 32")),
    (IDENTITY, LOW_RANK | {"attention.rank": 3}, (3 / 32, "3 sums of 32")),
    (DENSE, LOW_RANK | {"ffn.kind": "mlp", "skip.ffn": True}, (8 / 32, "8 sums of 32")),
    (RANDOM, LOW_RANK | {"skip.attention": True}, None),
    (RANDOM, LOW_RANK | {"norm.kind": "rmsnorm"}, None),
    (RANDOM, LOW_RANK | {"attention.gate": True}, None),
    (dataclasses.replace(RANDOM, tokens=4), LOW_RANK, None),
    (dataclasses.replace(RANDOM, tokens=4), LOW_RANK | {"attention.kind": "mean"}, (8 / 32, "8 sums")),
    (dataclasses.replace(RANDOM, tokens=4), LOW_RANK | {"attention.output": "low_rank"}, (8 / 32, "8 sums")),
    (RANDOM, LOW_RANK_FFN, (5 / 32, "5 sums of 32")),
    (RANDOM, LOW_RANK_FFN | {"ffn.kind": "gated", "attention.kind": "softmax"}, (5 / 32, "5 sums of 32")),
    (RANDOM, LOW_RANK_FFN | {"skip.ffn": True}, None),
    (DENSE, {"width": 16}, (16 / 32, "16 sums of 32")),
    # P3: as many sums as heads.
    (PointersConfig(), BARE | {"attention.num_heads": 1}, (0.25, "1 weighted sums of 4 contents")),
    (PointersConfig(), BARE | {"attention.num_heads": 2}, (0.5, "2 weighted sums of 4 contents")),
    (PointersConfig(), BARE | {"attention.num_heads": 8}, (1, "8 weighted sums")),
    (PointersConfig(), BARE | {"ffn.kind": "mlp", "attention.num_heads": 2}, (0.5, "2 weighted sums")),
    (PointersConfig(pointers=2), BARE | {"attention.num_heads": 1}, (0.5, "1 weighted sums of 2")),
    (PointersConfig(), BARE | {"attention.kind": "mean"}, (1 / 8, "one sum of all")),
    (PointersConfig(tokens=5), BARE | {"attention.kind": "mean"}, (1 / 5, "one sum of all")),
    (PointersConfig(decay=1.0), BARE | {"attention.num_heads": 1}, (12 / 25, "1 weighted sums of 4 contents")),
    (PointersConfig(decay=1.0), BARE | {"attention.num_heads": 2}, (18 / 25, "2 weighted sums of 4 contents")),
    (PointersConfig(decay=1.0), BARE | {"attention.kind": "mean"}, (1 / 8, "one sum of all")),
    (PointersConfig(), BARE | {"attention.kind": "static"}, None),
    (PointersConfig(), BARE | {"attention.kind": "channel"}, None),
    (PointersConfig(), BARE | {"depth": 2}, None),
    (PointersConfig(), BARE | {"norm.kind": "rmsnorm"}, None),
    (PointersConfig(), {"attention.kind": "off"}, (0, "no other token")),
    (PointersConfig(), {"name": "mlp"}, (0, "no other token")),
    (PointersConfig(), {"name": "lstm"}, None),
    # P4, P5, P5b: no number.
    (NearestConfig(), BARE, None),
    (ScaledLinearConfig(), BARE, None),
    # P8: an affine map sees no product.
    (PlantedInteractionsConfig(), BARE, (1 - 0.909, AFFINE)),
    (PlantedInteractionsConfig(interaction_share=0.5), {"depth": 0, "norm.kind": "off"}, (0.5, AFFINE)),
    (PlantedInteractionsConfig(), {"norm.kind": "off"}, None),
    (PlantedInteractionsConfig(), ODD, (1 - 0.909, "an odd map")),
    (PlantedInteractionsConfig(), ODD | {"ffn.activation": "relu"}, None),
    (PlantedInteractionsConfig(), {"name": "factorization_machine"}, None),
    # P9 and long range: what lies out of sight.
    (DelayConfig(), {"attention.kind": "off"}, (0, "sees 0 back, not 1")),
    (DelayConfig(), {}, None),
    (DelayConfig(), {"name": "mlp"}, (0, "sees 0 back, not 1")),
    (DelayConfig(), {"name": "gru"}, None),
    (DelayConfig(distance=5), {"name": "cnn_1d", "depth": 1, "causal": True}, (0, "sees 4 back, not 5")),
    (DelayConfig(distance=4), {"name": "cnn_1d", "depth": 1, "causal": True}, None),
    (DelayConfig(distance=3), {"name": "cnn_1d", "depth": 1}, (0, "sees 2 back, not 3")),
    (MarkedTokenConfig(), {"name": "cnn_1d", "depth": 4, "causal": True}, (0, "sees 16 back, not 32")),
    (MarkedTokenConfig(), {"name": "cnn_1d", "depth": 8, "causal": True}, None),
    (MarkedTokenConfig(), {"name": "mixer"}, None),
    (MarkedTokenConfig(), {"attention.kind": "off"}, (0, "sees 0 back, not 32")),
]


@pytest.mark.parametrize(("config", "knobs", "expected"), BOUNDS)
def test_a_bound_is_given_where_its_theorem_holds_and_only_there(model, config, knobs, expected):
    bound = make_task(config).bound(model(knobs))
    if expected is None:
        assert bound is None
    else:
        assert (bound.metric, bound.value) == ("r2", pytest.approx(expected[0], abs=1e-12))
        assert expected[1] in bound.reason


def fitted(columns, targets):
    """R2 of the best affine guess, output by output."""
    columns = np.concatenate([np.asarray(columns, np.float64), np.ones((len(columns), 1))], axis=1)
    residual = targets - columns @ np.linalg.lstsq(columns, targets, rcond=None)[0]
    return 1 - np.sum(residual**2, axis=0) / np.sum(targets.astype(np.float64) ** 2, axis=0)


def test_the_bound_of_a_rotation_is_what_each_feature_alone_can_tell(examples_of, model):
    inputs, targets, _ = examples_of(RANDOM, NUMBER)
    alone = [fitted(inputs[:, 0, [i]], targets[:, 0, [i]])[0] for i in range(32)]
    assert make_task(RANDOM).bound(model(DIAGONAL)).value == pytest.approx(np.mean(alone), abs=0.01)
    assert fitted(inputs[:, 0], targets[:, 0]).mean() == pytest.approx(1, abs=1e-6)


def haar(rng, features):
    orthogonal, triangular = np.linalg.qr(rng.normal(size=(features, features)))
    return orthogonal * np.sign(np.diag(triangular))


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_block_law_is_what_least_squares_reach(size):
    """For each of 200 drawn rotations of 8 features the best map of blocks; over them its mean is size / features."""
    rng, features, reached, laws = np.random.default_rng(size), 8, [], []
    for _ in range(200):
        rotation = haar(rng, features)
        x = rng.normal(size=(4 * features, features))
        x = np.linalg.svd(x, full_matrices=False)[0] * len(x) ** 0.5  # exactly uncorrelated: no error of sampling
        y, error = x @ rotation.T, 0.0
        for block in np.split(np.arange(features), features // size):
            error += (
                np.linalg.norm(y[:, block] - x[:, block] @ np.linalg.lstsq(x[:, block], y[:, block], rcond=None)[0])
                ** 2
            )
        reached.append(1 - error / np.sum(y**2))
        same = np.arange(features) // size
        laws.append(np.sum(rotation**2, where=same[:, None] == same) / features)
    np.testing.assert_allclose(reached, laws, atol=1e-12)
    assert np.mean(reached) == pytest.approx(size / features, abs=3 * np.std(reached) / 200**0.5 + 1e-12)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_rank_law_is_what_the_best_sums_reach(rank):
    """Of a rotation all singular values are 1, so the best map of each rank leaves the same (Eckart and Young 1936)."""
    rng, features = np.random.default_rng(rank), 8
    rotation = haar(rng, features)
    left, values, right = np.linalg.svd(rotation)
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    assert 1 - np.sum((rotation - best) ** 2) / features == pytest.approx(rank / features, abs=1e-12)
    for _ in range(20):  # any sums of the features, each with its best guess of all outputs
        down = np.linalg.qr(rng.normal(size=(features, rank)))[0]
        assert np.sum((rotation @ down) ** 2) / features == pytest.approx(rank / features, abs=1e-12)


@pytest.mark.parametrize("config", [PlantedInteractionsConfig(), ProductConfig(tokens=1)])
def test_the_bound_of_an_affine_map_is_what_the_best_one_reaches(examples_of, model, config):
    inputs, targets, _ = examples_of(config, NUMBER)
    best = fitted(inputs[:, 0], targets[:, 0]).mean()
    assert make_task(config).bound(model(BARE)).value == pytest.approx(best, abs=0.02)


def pooled(inputs, weights):
    """Sums of the contents under attention weights [batch, heads, tokens], side by side."""
    return np.einsum("nht,ntf->nhf", weights, inputs[:, :, :4]).reshape(len(inputs), -1)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("features", [3, 4, 8])
def test_the_norm_ceiling_is_what_the_direction_alone_can_tell(model, features, order):
    """The best guess from u = x / |x| is prod u_i times the mean of |x|^k: its R2 over many examples."""
    x = np.random.default_rng(order).normal(size=(400_000, features))
    length = np.linalg.norm(x, axis=1)
    target = np.prod(x[:, :order], axis=1)
    guess = np.prod(x[:, :order] / length[:, None], axis=1) * np.mean(length**order)
    reached = 1 - np.sum((target - guess) ** 2) / np.sum(target**2)
    bound = make_task(ProductConfig(features=features, order=order)).bound(model(DIRECTIONS))
    assert bound.value == pytest.approx(reached, abs=0.02)


@pytest.mark.parametrize("decay", [0.0, 1.5])
@pytest.mark.parametrize("heads", [1, 2, 3, 4, 6])
def test_the_bound_of_pointers_is_what_a_pointer_a_head_reaches(examples_of, model, heads, decay):
    config = PointersConfig(decay=decay)
    inputs, targets, _ = examples_of(config, NUMBER)
    asked = inputs[:, -1, 12:].reshape(NUMBER, 4, 8)
    weights = np.concatenate([asked, asked], axis=1)[:, :heads]
    each = fitted(pooled(inputs, np.pad(weights, ((0, 0), (0, 0), (0, 1)))), targets[:, -1])
    reached = np.average(each, weights=np.sum(targets[:, -1] ** 2, axis=0))
    bound = make_task(config).bound(model(BARE | {"attention.num_heads": heads, "attention.head_dim": 16}))
    assert bound.value == pytest.approx(reached, abs=0.01)


def test_the_bound_of_mean_attention_is_what_the_mean_reaches(examples_of, model):
    inputs, targets, _ = examples_of(PointersConfig(), NUMBER)
    reached = fitted(pooled(inputs, np.full((NUMBER, 1, 9), 1 / 9)), targets[:, -1]).mean()
    assert make_task(PointersConfig()).bound(model(BARE | {"attention.kind": "mean"})).value == pytest.approx(
        reached, abs=0.01
    )


def test_weights_that_see_the_contents_pass_the_bound_of_pointers(examples_of):
    # Why the bound names its condition: the weight left on the query itself tells of a second content.
    inputs, targets, _ = examples_of(PointersConfig(), NUMBER)
    rows = inputs[:, -1, 12:].reshape(NUMBER, 4, 8).argmax(axis=2)
    every = np.arange(NUMBER)
    scores = np.full((NUMBER, 9), -20.0)
    scores[:, 8] = 0
    scores[every, rows[:, 0]] = 6
    scores[every, rows[:, 1]] = 0.3 * inputs[every, rows[:, 1], 0]
    weights = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    columns = np.concatenate([pooled(inputs, weights[:, None]), 1e3 * weights[:, 8:]], axis=1)
    assert fitted(columns, targets[:, -1]).mean() == pytest.approx(0.31, abs=0.01)
