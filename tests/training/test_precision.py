"""Precision of whole train steps: what their programs say of each product and sum, and gradients beside float32's.

A CPU multiplies and sums float32 in float32 whatever a program says, so the programs are read before they are compiled.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.step import make_evaluation_step, make_train_step

SYMBOLS, TOKENS = 3, 64
TRANSFORMER = {"width": 16, "depth": 1, "causal": True}
FORECASTER = {"width": 8, "depth": 1, "encoder_depth": 1, "attention": {"num_heads": 2, "kind": "autocorrelation"}}
FORECASTING = {"name": "forecasting", "lookback": 16, "horizon": 8, "tokens": "step"}


def attention(**knobs):
    return TRANSFORMER | {"attention": {"num_heads": 2} | knobs}


MODELS = {
    "softmax": attention() | {"dropout": 0.1, "ffn": {"kind": "gated"}},
    "linear": attention(kind="linear") | {"position": "rotary"},
    "lightning": attention(kind="lightning", gate=True, norm="srmsnorm"),
    "mean": attention(kind="mean") | {"norm": {"kind": "rmsnorm"}},
    "static": attention(kind="static"),
    "channel": attention(kind="channel") | {"causal": False},
    "diagonal": attention(projection="diagonal", output="diagonal") | {"ffn": {"kind": "diagonal"}},
    "mlp": {"name": "mlp", "width": 16, "depth": 1},
    "factorization_machine": {"name": "factorization_machine", "width": 16},
    "cnn_1d": {"name": "cnn_1d", "width": 16, "depth": 1, "causal": True},
    "lstm": {"name": "lstm", "width": 16, "depth": 1},
    "gru": {"name": "gru", "width": 16, "depth": 1},
    "mixer": {"name": "mixer", "width": 16, "depth": 1},
    "autoint": {"name": "autoint", "width": 16, "depth": 1},
    "autoformer": {"name": "autoformer", **FORECASTER, "moving_average": (3, 5)},
    "wavelet": {"name": "autoformer", **FORECASTER, "attention": {"num_heads": 2, "kind": "wavelet", "modes": 4}},
    "timemixer": {"name": "timemixer", "width": 8, "depth": 1, "scales": 2, "moving_average": (3, 5)},
    "individual heads": {"width": 8, "depth": 1, "attention": {"num_heads": 2}},
    "members": {"width": 8, "depth": 1, "attention": {"num_heads": 2}, "position": "off"},
    "convnext": {"name": "convnext", "width": 8, "depth": 1, "kernel_size": 3},
}
TASKS = {
    "autoformer": FORECASTING | {"label_length": 8},
    "wavelet": FORECASTING | {"label_length": 8},
    "timemixer": FORECASTING | {"channels": "independent"},
    "individual heads": FORECASTING | {"channels": "independent", "individual": True},
    "members": {"name": "tabular_classification", "numbers": "periodic", "tokens": "row", "members": 2},
    "convnext": {"name": "two_marks"},
}  # of the others: a text
METADATA = {
    "language_modelling": {"num_symbols": SYMBOLS, "symbols": "abc"},
    "forecasting": {"channels": ["a", "b", "c"], "targets": [0, 1, 2], "step": 3600, "season": 24}
    | dict.fromkeys(("mean", "spread", "seasonal_error"), [1.0] * 3),
    "tabular_classification": {"feature": "columns", "label": "label", "num_classes": 2}
    | {"mean": [0.0] * 3, "spread": [1.0] * 3},
}


# Those with a task of their own take seconds each.
OF_TASKS = [pytest.param(name, marks=pytest.mark.integration) for name in TASKS]
EVERY = [*(name for name in MODELS if name not in TASKS), *OF_TASKS]


def experiment_of(name, parts=None, **knobs):
    """The experiment of a small model, other knobs of it, and other parts of its config.

    A language model that is not causal predicts masked symbols.
    """
    model, parts = MODELS[name] | knobs, parts or {}
    causal = model.get("causal", model.get("name") not in ("mixer", "autoint"))
    text = {"name": "language_modelling", "sequence_length": TOKENS, "objective": "next_token" if causal else "masked"}
    task = TASKS.get(name, text)
    tree = {"task": task, "model": model, "parallelism": {"strategy": "single"}}
    return make_experiment(parse_config(tree | parts), METADATA.get(task["name"]))


def batch_of(experiment, size):
    task, generator = experiment.config.task, np.random.default_rng(0)
    batch = {"row": np.arange(size, dtype=np.int32), "example_weight": np.ones(size, np.float32)}
    if task.name == "forecasting":
        spec = experiment.task.input_spec(size)
        window = (size, task.lookback + task.horizon, spec["series"].shape[2])
        series = generator.normal(size=window).astype(np.float32)
        marks = generator.uniform(-0.5, 0.5, spec["marks"].shape).astype(np.float32)
        return batch | {"series": series, "observed": np.ones(window, bool), "marks": marks}
    if task.name == "tabular_classification":
        columns = generator.normal(size=(size, 3)).astype(np.float32)
        return batch | {"columns": columns, "label": generator.integers(2, size=size)}
    if task.name == "two_marks":
        return batch | {"index": np.arange(size, dtype=np.int32)}
    lookahead = 1 if task.objective == "next_token" else 0
    symbols = generator.choice(SYMBOLS, p=[0.8, 0.15, 0.05], size=(size, TOKENS + lookahead))
    return batch | {"symbols": symbols.astype(np.uint8), "loss_weights": np.ones((size, TOKENS), np.float32)}


def equations(jaxpr) -> Iterator:
    """Every operation of a program, also inside loops and functions."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def programs(name, parts=None, **knobs):
    """The operations of a train step and of an evaluation step."""
    experiment = experiment_of(name, parts, **knobs)
    batch, state = batch_of(experiment, 4), experiment.abstract_state
    step = make_train_step(experiment.task, experiment.network, experiment.optimizer, seed=0)
    evaluate = make_evaluation_step(experiment.task, experiment.network, seed=0)
    yield from equations(jax.make_jaxpr(step)(state, batch).jaxpr)
    yield from equations(jax.make_jaxpr(evaluate)(state.params, state.model_state, batch).jaxpr)


def dtypes(equation):
    return {variable.aval.dtype.name for variable in equation.invars}


def float32_precisions(name, parts=None, **knobs):
    """Those of all products of float32 arrays."""
    products = [each for each in programs(name, parts, **knobs) if each.primitive.name == "dot_general"]
    assert products
    return {each.params["precision"] for each in products if dtypes(each) == {"float32"}}


@pytest.mark.parametrize("name", EVERY)
def test_float32_is_multiplied_as_float32(name):
    highest = jax.lax.Precision.HIGHEST
    assert float32_precisions(name, {"optimizer": {"name": "muon"}}) == {(highest, highest)}


@pytest.mark.parametrize("name", ["high", "default"])
def test_less_precision_is_one_flag_away(name):
    precision = getattr(jax.lax.Precision, name.upper())
    for model in ("softmax", "lightning", "lstm"):
        assert float32_precisions(model, precision=name) == {(precision, precision)}


@pytest.mark.parametrize("name", EVERY)
def test_no_sum_over_examples_or_tokens_has_16_bits(name):
    def is_sum(equation):
        if equation.primitive.name == "reduce_sum":
            # [batch, tokens, ...]; an axis of two is that of averages or members.
            return [n for n in equation.params["axes"] if n < 2 and equation.invars[0].aval.shape[n] > 2]
        return equation.primitive.name in ("scatter-add", "cumsum", "psum", "reduce_scatter")

    sums = [each for each in programs(name, dtype="bfloat16") if is_sum(each)]
    assert sums
    assert [each for each in sums if "bfloat16" in dtypes(each)] == []


# --------------------------------------------------------------------------------------- gradients under bfloat16


def gradient(name, size, parts=None, **knobs):
    """The gradient of a whole batch, by parameter: what one update with plain gradient descent subtracts."""
    optimizer = {"name": "sgd", "learning_rate": 1.0, "beta1": 0.0, "schedule": "constant", "warmup_steps": 0}
    experiment = experiment_of(name, {"optimizer": optimizer} | (parts or {}), **knobs)
    strategy, layout = experiment.strategy, experiment.layout
    options = {"seed": 0, "accumulate": experiment.config.training.accumulate, "axis_name": strategy.axis_name}
    step = make_train_step(experiment.task, experiment.network, experiment.optimizer, **options)
    params, model_state = jax.jit(experiment.network.init)(jax.random.key(0))
    start = jax.tree.map(jnp.zeros_like, experiment.optimizer.init(params))
    state = type(experiment.abstract_state)(jnp.zeros((), jnp.int32), params, model_state, start)
    before = leaf_paths(jax.device_get(params))
    batch = strategy.split(batch_of(experiment, size), 0)
    after = strategy.compile(step, layout=layout)(strategy.place_state(state, layout), batch)[0]
    after = leaf_paths(jax.device_get(strategy.unreplicate(after).params))
    return {name: before[name].astype(np.float64) - after[name] for name in before}


@functools.cache
def float32_gradient(name, size):
    return gradient(name, size)


def assert_gradients_agree(name, size, parts=None):
    """Within 3% of each parameter's norm; a sum of equal terms in bfloat16 stops growing at 256 of them."""
    expected, found = float32_gradient(name, size), gradient(name, size, parts, dtype="bfloat16")
    least = 1e-3 * max(np.linalg.norm(each) for each in expected.values())  # some gradients are 0 but for rounding
    errors = {
        key: np.linalg.norm(found[key] - each) / max(np.linalg.norm(each), least) for key, each in expected.items()
    }
    assert max(errors.values()) < 0.03, errors


@pytest.mark.parametrize("name", ["autoint", *OF_TASKS])
def test_no_gradient_is_rounded_to_16_bits(name):
    experiment = experiment_of(name, dtype="bfloat16")
    task, network, batch = experiment.task, experiment.network, batch_of(experiment, 8)

    @jax.jit
    def run(params, model_state):
        prepared = task.prepare(batch, jax.random.split(jax.random.key(0), 8), training=True)
        outputs, _ = network.apply(params, model_state, prepared["inputs"], training=True)
        return task.loss_and_metrics(outputs, prepared)["loss"].total

    params, model_state = jax.jit(network.init)(jax.random.key(0))
    for path, leaf in leaf_paths(jax.device_get(jax.jit(jax.grad(run))(params, model_state))).items():
        assert not leaf.any() or np.any(leaf != leaf.astype(jnp.bfloat16).astype(np.float32)), path


SLOW = pytest.mark.slow
KINDS = ("softmax", "channel", "diagonal", "factorization_machine", "gru")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=SLOW if n in ("channel", "diagonal", "gru") else ()) for n in KINDS]
)
def test_gradients_under_bfloat16_are_those_of_float32(name):
    assert_gradients_agree(name, 32)


STRATEGIES = {
    "accumulated": {"training": {"batch_size": 32, "accumulate": 4}},
    "pmap": {"parallelism": {"strategy": "pmap"}},
    "data": {"parallelism": {"strategy": "mesh", "mesh": {"data": 4}}},
    "fsdp": {"parallelism": {"strategy": "mesh", "mesh": {"fsdp": 4}}},
    "sequence, tensor": {"parallelism": {"strategy": "mesh", "mesh": {"sequence": 2, "tensor": 2}}},
}


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(parts, id=name, marks=SLOW if name in ("data", "pmap", "fsdp", "accumulated") else ())
        for name, parts in STRATEGIES.items()
    ],
)
def test_gradients_under_bfloat16_are_those_of_float32_by_every_strategy(parts):
    assert_gradients_agree("static", 32, parts)
