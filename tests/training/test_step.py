import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.task_config import ImageClassificationConfig
from flaxformer_lab.tasks import make_task
from flaxformer_lab.training.state import RngStream, State
from flaxformer_lab.training.step import example_keys, make_train_step

WEIGHT = np.array([1, 0.5, 0, 2, 1, 1, 0.25, 1], np.float32)


def batch_of(case, seed=0, weight=WEIGHT):
    return case.draw(np.random.default_rng(seed), 8, weight)


def several(case, *, steps, **options):
    """The state and the metrics of some updates."""
    state, history = case.start(), []
    for step in range(steps):
        state, metrics = case.update(**options)(state, batch_of(case, step))
        history.append(metrics)
    return state, history


# --------------------------------------------------------------------------------- against the mathematics


def test_an_update_is_a_gradient_step_on_the_mean_loss(make_case):
    case = make_case("images")
    batch, state = batch_of(case), case.start()
    after, metrics = case.update()(state, batch)

    # Softmax regression by hand, in float64.
    x = batch["image"].reshape(8, -1).astype(np.float64) / 127.5 - 1
    kernel, bias = (np.asarray(state.params["head"][name], np.float64) for name in ("kernel", "bias"))
    logits = x @ kernel + bias
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    losses = -np.log(shares[np.arange(8), batch["label"]])
    error = (shares - np.eye(5)[batch["label"]]) * WEIGHT[:, None] / WEIGHT.sum()
    slopes = {"kernel": x.T @ error, "bias": error.sum(axis=0)}

    np.testing.assert_allclose(after.params["head"]["kernel"], kernel - 0.2 * slopes["kernel"], atol=1e-6)
    np.testing.assert_allclose(after.params["head"]["bias"], bias - 0.2 * slopes["bias"], atol=1e-6)
    total, weight = metrics["loss"]
    np.testing.assert_allclose([total, weight], [(losses * WEIGHT).sum(), WEIGHT.sum()], rtol=1e-6)
    norm = np.sqrt(sum((slope**2).sum() for slope in slopes.values()))
    np.testing.assert_allclose(metrics["gradient_norm"], [norm, 1], rtol=1e-5)
    correct = (logits.argmax(axis=1) == batch["label"]) @ WEIGHT
    np.testing.assert_allclose(metrics["accuracy"], [correct, WEIGHT.sum()], rtol=1e-6)


@pytest.mark.parametrize("name", ["moved images with dropout", "next token"])
def test_an_update_uses_the_optimizer_on_the_gradient_that_jax_finds(make_case, name, assert_close):
    case = make_case(name)

    @jax.jit
    def expected(state, batch):
        def mean_loss(params):
            prepare, drop = (
                example_keys(0, use, state.step, batch["row"]) for use in (RngStream.PREPARE, RngStream.DROPOUT)
            )
            prepared = case.task.prepare(batch, prepare, training=True)
            logits, _ = case.network.apply(params, {}, prepared["inputs"], keys=drop)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, prepared["targets"])
            return jnp.average(losses, weights=prepared["loss_weights"])

        updates, opt_state = case.optimizer.update(jax.grad(mean_loss)(state.params), state.opt_state, state.params)
        return optax.apply_updates(state.params, updates), opt_state

    state = case.start()
    for step in range(3):
        before, batch = state, batch_of(case, step)
        state, _ = case.update()(before, batch)
        assert_close((state.params, state.opt_state), expected(before, batch), 1e-6)


# ------------------------------------------------------------------------------------------- accumulation


def test_accumulated_micro_batches_are_one_batch(case, assert_close):
    whole, whole_history = several(case, steps=4)
    parts, parts_history = several(case, steps=4, accumulate=4)
    assert_close(whole.params, parts.params, 1e-6)
    assert_close(whole_history, parts_history, 5e-5)


@pytest.mark.parametrize("accumulate", [2, 8])
def test_any_number_of_micro_batches_is_one_batch(make_case, accumulate, assert_close):
    case = make_case("images")
    assert_close(several(case, steps=4)[0].params, several(case, steps=4, accumulate=accumulate)[0].params, 1e-6)


def test_micro_batches_count_by_their_weight_and_not_alike(make_case, assert_close):
    # All the weight is in the first of four micro-batches: a mean of means would take a quarter of the gradient.
    case = make_case("images")
    batch = batch_of(case, weight=np.array([1, 0, 0, 0, 1, 0, 0, 0], np.float32))
    first = jax.tree.map(lambda leaf: leaf[::4], batch)
    parts, _ = case.update(accumulate=4)(case.start(), batch)
    alone, _ = case.update()(case.start(), first)
    assert_close(parts.params, alone.params, 1e-6)
    assert np.abs(alone.params["head"]["kernel"] - case.params["head"]["kernel"]).max() > 1e-3


# ---------------------------------------------------------------------------------------------- weights


def test_an_example_of_weight_zero_has_no_influence(case, assert_same):
    weight = np.array([1, 1, 0, 1, 0, 1, 1, 1], np.float32)
    one, other = batch_of(case, 0, weight), batch_of(case, 1, weight)
    mixed = {name: one[name].copy() for name in one}
    for name in set(one) - {"row", "example_weight"}:
        mixed[name][weight == 0] = other[name][weight == 0]
        assert not np.array_equal(mixed[name], one[name])
    assert_same(case.update()(case.start(), one), case.update()(case.start(), mixed))
    full = case.update()(case.start(), one | {"example_weight": np.ones(8, np.float32)})
    assert float(full[1]["loss"][0]) != float(case.update()(case.start(), one)[1]["loss"][0])


@pytest.mark.parametrize("name", ["moved images with dropout", "next token"])
def test_padding_a_batch_changes_nothing(make_case, name, assert_close):
    case = make_case(name)
    padded = batch_of(case, weight=np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32))
    short = jax.tree.map(lambda leaf: leaf[:5], padded)
    assert_close(case.update()(case.start(), padded), case.update()(case.start(), short), 1e-5)


def test_a_batch_without_any_weight_moves_nothing(case, assert_same):
    after, metrics = case.update()(case.start(), batch_of(case, weight=np.zeros(8, np.float32)))
    assert_same(after.params, case.params)
    assert after.step == 1 and metrics["loss"] == (0, 0)


# ------------------------------------------------------------------------------------------- random draws


def test_the_place_of_an_example_in_memory_does_not_matter(case, assert_close):
    batch, order = batch_of(case), np.random.default_rng(1).permutation(8)
    shuffled = jax.tree.map(lambda leaf: leaf[order], batch)
    assert_close(case.update()(case.start(), batch), case.update()(case.start(), shuffled), 1e-5)


@pytest.mark.parametrize("name", ["moved images with dropout", "masked with dropout"])
def test_draws_follow_from_step_and_row(make_case, name):
    case = make_case(name)
    batch, start = batch_of(case), case.start()

    def loss(step=0, row=0):
        there = dataclasses.replace(start, step=jnp.int32(step))
        metrics = case.update()(there, batch | {"row": batch["row"] + np.int32(row)})[1]
        return float(metrics["loss"][0])

    losses = [loss(), loss(step=1), loss(row=8)]
    assert len(set(losses)) == 3
    assert losses == [loss(), loss(step=1), loss(row=8)]


def test_rows_have_keys_of_their_own():
    rows = jnp.arange(50, dtype=jnp.int32)
    keys = [example_keys(seed, use, step, rows) for seed in (0, 1) for use in RngStream for step in (0, 1)]
    bits = np.concatenate([jax.random.key_data(each) for each in keys])
    assert len(np.unique(bits, axis=0)) == len(bits) == 2 * len(RngStream) * 2 * 50


# -------------------------------------------------------------------------------------------------- steps


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_step_is_the_number_of_updates(make_case, accumulate):
    state, _ = several(make_case("images"), steps=5, accumulate=accumulate)
    assert state.step == 5 and state.step.dtype == jnp.int32


def test_training_lowers_the_loss(case):
    batch, state = batch_of(case), case.start()
    before = case.evaluate()(state.params, {}, batch)["loss"]
    for _ in range(100):
        state, _ = case.update()(state, batch)
    after = case.evaluate()(state.params, {}, batch)["loss"]
    assert after[1] == before[1] > 0 and after[0] < 0.7 * before[0]


# -------------------------------------------------------------------------------------------- evaluation


def test_evaluation_neither_drops_nor_moves(make_case):
    # The same parameters with and without what training adds.
    case, still = make_case("moved images with dropout"), make_case("images")
    batch = batch_of(case)
    found, expected = (each.evaluate()(case.params, {}, batch) for each in (case, still))
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-6)
    trained = case.update()(case.start(), batch)[1]
    assert abs(float(trained["loss"][0]) - float(found["loss"][0])) > 0.01


def test_evaluation_adds_up_over_any_split_of_the_data(case):
    batch = batch_of(case)
    whole = case.evaluate()(case.params, {}, batch)
    halves = [jax.tree.map(lambda leaf, at=at: leaf[at], batch) for at in (slice(4), slice(4, 8))]
    parts = [case.evaluate()(case.params, {}, half) for half in halves]
    for name in ("loss", "accuracy"):
        np.testing.assert_allclose(np.sum([part[name] for part in parts], axis=0), whole[name], rtol=1e-5)


def test_masks_of_evaluation_follow_from_the_seed(make_case):
    case = make_case("masked with dropout")
    batch = batch_of(case)
    weights = [float(case.evaluate(seed=seed)(case.params, {}, batch)["loss"][1]) for seed in (0, 0, 1)]
    assert weights[0] == weights[1] != weights[2]


# ---------------------------------------------------------------------- computation in the Transformer


@pytest.fixture(scope="module")
def digits():
    """A task, a batch for it, and the parameters of one Transformer, whose knobs may change without new parameters."""
    task = make_task(ImageClassificationConfig(patch_size=4), {"image_shape": [8, 8, 1], "num_classes": 10})
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, 8, 8, 1), np.uint8),
        "label": rng.integers(0, 10, 4, np.int32),
        "row": np.arange(4, dtype=np.int32),
        "example_weight": np.ones(4, np.float32),
    }
    params, _ = make_network(task).shapes
    return task, batch, jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), params)


def make_network(task, **knobs):
    return task.network(TransformerConfig(width=8, depth=1, **knobs))


def gradients(digits, **knobs):
    """Loss and gradients of one batch."""
    task, batch, params = digits
    network = make_network(task, **knobs)

    @jax.jit
    def run(params, batch):
        def loss(params):
            prepared = task.prepare(batch, example_keys(0, RngStream.PREPARE, 0, batch["row"]), training=True)
            return task.loss_and_metrics(network.apply(params, {}, prepared["inputs"])[0], prepared)["loss"][0]

        return jax.value_and_grad(loss)(params)

    return run(params, batch)


@pytest.fixture(scope="module")
def exact(digits):
    """Loss and gradients in float32."""
    return gradients(digits)


def test_rematerialisation_keeps_the_gradients(digits, exact, assert_close):
    assert_close(gradients(digits, remat=True), exact, 1e-5)
    task, _, params = digits
    images = jnp.zeros((4, 8, 8, 1))
    programs = [
        str(jax.make_jaxpr(lambda x, network=network: network.apply(params, {}, x)[0])(images))
        for network in (make_network(task, remat=False), make_network(task, remat=True))
    ]
    assert ["checkpoint" in program or "remat" in program for program in programs] == [False, True]


def test_bfloat16_computes_in_bfloat16_and_keeps_float32(digits, exact):
    task, batch, params = digits
    network = make_network(task, dtype="bfloat16")
    optimizer = optax.adam(0.1)
    state = State(jnp.int32(0), params, {}, optimizer.init(params))
    after, metrics = jax.eval_shape(make_train_step(task, network, optimizer, seed=0), state, batch)
    types = {str(leaf.dtype) for leaf in jax.tree.leaves((after.params, after.opt_state, metrics))}
    assert types == {"float32", "int32"}  # int32 counts the updates
    seen = jax.eval_shape(lambda x: network.intermediates(params, {}, x), jnp.zeros((4, 8, 8, 1)))
    assert seen["blocks.0.output"].dtype == jnp.bfloat16

    (loss, slopes), (half_loss, half_slopes) = exact, gradients(digits, dtype="bfloat16")
    assert loss != half_loss and abs(loss - half_loss) < 0.03 * loss
    for path, leaf in leaf_paths(slopes).items():
        difference = np.linalg.norm(leaf - leaf_paths(half_slopes)[path])
        assert difference < 0.1 * max(np.linalg.norm(leaf), 0.1), path
