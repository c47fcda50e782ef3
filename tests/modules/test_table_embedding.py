"""Rows as tokens: what each arrangement makes of the columns' vectors, and what members share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.tasks import make_task
from flaxformer_lab.tasks.tables import TabularClassification

METADATA = {"feature": "columns", "label": "label", "num_classes": 2, "mean": [0.0] * 3, "spread": [1.0] * 3}
METADATA |= {"edges": [[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [0.0, 0.5, 1.0]]}
MODEL = {"width": 8, "depth": 0, "attention": {"num_heads": 2}, "position": "off"}
X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def network_of(model=MODEL, **knobs):
    config = parse_config({"task": {"name": "tabular_classification", **knobs}, "model": model})
    task = make_task(config.task, METADATA)
    network = task.network(config.model)
    return task, network, jax.device_get(jax.jit(network.init)(jax.random.key(1)))


def stages(network, params, state, x):
    """Tokens, what the body makes of them, and outputs."""
    tokens = network.embed(params, state, x)
    return tokens, network.body(params, state, tokens), network.apply(params, state, x)[0]


def test_a_row_is_the_sum_of_its_columns():
    _, columns, variables = network_of()
    vectors = np.asarray(jax.jit(columns.embed)(*variables, X))
    _, row, (params, state) = network_of(tokens="row")
    found = jax.jit(row.embed)({**params, "embedding": {"parts": variables[0]["embedding"]}}, state, X)
    np.testing.assert_allclose(found, vectors.sum(axis=1, keepdims=True) / np.sqrt(3), rtol=1e-5, atol=1e-6)


def test_a_class_token_comes_first_and_is_read():
    _, network, (params, state) = network_of(pooling="class_token")
    tokens, body, outputs = jax.device_get(jax.jit(functools.partial(stages, network))(params, state, X))
    assert tokens.shape == (5, 4, 8)
    np.testing.assert_array_equal(tokens[:, 0], np.tile(params["embedding"]["class_token"], (5, 1)))
    head = params["head"]
    np.testing.assert_allclose(outputs, body[:, 0] @ head["kernel"] + head["bias"][None], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("numbers", "shape"), [("piecewise", (3, 2, 8)), ("periodic", (3, 32, 8))])
def test_each_column_has_a_map_of_its_own(numbers, shape):
    _, network, (params, state) = network_of(numbers=numbers, num_bins=2)
    assert leaf_paths(params)["embedding.directions"].shape == shape
    params, state = jax.tree.map(jnp.asarray, (params, state))
    moved = jax.jit(jax.jacobian(lambda x: network.embed(params, state, x[None])[0].sum(axis=1)))(X[0])
    np.testing.assert_array_equal(np.asarray(moved) != 0, np.eye(3, dtype=bool))


def test_members_share_the_body_and_have_heads_of_their_own():
    task, network, (params, state) = network_of(members=3)
    assert set(np.unique(params["embedding"]["scales"])) == {-1.0, 1.0}

    def outputs_and_gradient(params):
        total = lambda p: (lambda y: (y[:, 1].sum(), y))(network.apply(p, state, jnp.asarray(X))[0])  # noqa: E731
        return jax.grad(total, has_aux=True)(params)

    grads, outputs = jax.device_get(jax.jit(outputs_and_gradient)(params))
    assert outputs.shape == (5, 3, 2) and len(np.unique(np.asarray(outputs)[0, :, 0])) == 3
    by_member = np.abs(grads["head"]["kernels"]).sum(axis=(1, 2))
    assert by_member[1] > 0 and by_member[0] == by_member[2] == 0
    assert np.abs(grads["embedding"]["parts"]["directions"]).sum() > 0
    # A member is the network alone whose columns' vectors are weighed by its weights.
    _, single, (_, base_state) = network_of()
    scale = params["embedding"]["scales"][1]
    parts = jax.tree.map(lambda leaf: leaf * scale[None], params["embedding"]["parts"])
    head = {"kernel": params["head"]["kernels"][1], "bias": params["head"]["biases"][1]}
    expected, _ = jax.jit(single.apply)({**params, "embedding": parts, "head": head}, base_state, X)
    np.testing.assert_allclose(outputs[:, 1], expected, rtol=1e-4, atol=1e-5)
    # The mean of probabilities predicts, and the loss is the mean of the members'.
    probabilities = scipy.special.softmax(outputs, axis=-1)
    np.testing.assert_allclose(np.exp(jax.jit(task.predictions_of)(outputs)), probabilities.mean(axis=1), rtol=1e-5)
    targets = np.array([0, 1, 1, 0, 1])
    batch = {"targets": jnp.asarray(targets), "loss_weights": jnp.array([1.0, 1, 1, 1, 0])}
    measured = jax.device_get(jax.jit(task.loss_and_metrics)(outputs, batch))
    found = {name: metric.compute() for name, metric in measured.items()}
    each = -np.log(probabilities[np.arange(4)[:, None], np.arange(3)[None], targets[:4, None]])
    assert found["loss"] == pytest.approx(each.mean(), rel=1e-5)
    assert found["accuracy"] == np.mean(probabilities.mean(axis=1).argmax(axis=1)[:4] == targets[:4])


def test_powers_of_ten_lie_apart_as_they_say():
    task, _, _ = network_of(log_scale=2.0)
    plain, _, _ = network_of()
    raw = {"columns": jnp.asarray(X)}
    ratio = np.asarray(task.preprocess(raw)) / np.asarray(plain.preprocess(raw))
    np.testing.assert_allclose(np.sort(ratio[0]), [0.01, 1.0, 100.0], rtol=1e-5)
    np.testing.assert_allclose(ratio, np.tile(ratio[0], (5, 1)), rtol=1e-5)


def test_bins_follow_the_scaling():
    """Quantiles of the raw column, scaled as the column is."""
    task, _, _ = network_of(numbers="piecewise", log_scale=2.0)
    assert isinstance(task, TabularClassification)
    plain = np.array(METADATA["edges"])
    np.testing.assert_allclose(task._edges(), plain * (task._edges()[:, 2:] / plain[:, 2:]), rtol=1e-5, atol=1e-7)
    assert not np.allclose(task._edges(), plain)


@pytest.mark.parametrize(
    ("knobs", "model", "message"),
    [
        ({"tokens": "row", "pooling": "class_token"}, MODEL, "task.pooling=class_token with task.tokens=row"),
        ({"pooling": "class_token"}, MODEL | {"attention": {"kind": "off"}}, "hides the .* from the class token"),
    ],
)
def test_what_cannot_be_is_refused(knobs, model, message):
    with pytest.raises(ConfigError, match=message):
        network_of(model, **knobs)


def test_the_area_under_the_curve_needs_two_classes():
    config = parse_config({"task": {"name": "tabular_classification", "metric": "auc"}}).task
    with pytest.raises(ConfigError, match=r"task\.metric=auc needs two classes, and lab_wine has 3"):
        make_task(config, METADATA | {"num_classes": 3})
