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
}


def experiment_of(model, **parts):
    """The experiment of a small language model; one that is not causal predicts masked symbols."""
    causal = model.get("causal", model.get("name") not in ("mixer",))
    task = {"name": "language_modelling", "sequence_length": TOKENS, "objective": "next_token" if causal else "masked"}
    tree = {"task": task, "model": model, "parallelism": {"strategy": "single"}}
    return make_experiment(parse_config(tree | parts), {"num_symbols": SYMBOLS, "symbols": "abc"})


def batch_of(experiment, size):
    lookahead = 1 if experiment.config.task.objective == "next_token" else 0
    symbols = np.random.default_rng(0).choice(SYMBOLS, p=[0.8, 0.15, 0.05], size=(size, TOKENS + lookahead))
    return {
        "symbols": symbols.astype(np.uint8),
        "loss_weights": np.ones((size, TOKENS), np.float32),
        "row": np.arange(size, dtype=np.int32),
        "example_weight": np.ones(size, np.float32),
    }


def equations(jaxpr) -> Iterator:
    """Every operation of a program, also inside loops and functions."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def programs(model, **parts):
    """The operations of a train step and of an evaluation step."""
    experiment = experiment_of(model, **parts)
    batch, state = batch_of(experiment, 4), experiment.abstract_state
    step = make_train_step(experiment.task, experiment.network, experiment.optimizer, seed=0)
    evaluate = make_evaluation_step(experiment.task, experiment.network, seed=0)
    yield from equations(jax.make_jaxpr(step)(state, batch).jaxpr)
    yield from equations(jax.make_jaxpr(evaluate)(state.params, state.model_state, batch).jaxpr)


def dtypes(equation):
    return {variable.aval.dtype.name for variable in equation.invars}


def float32_precisions(model, **parts):
    """Those of all products of float32 arrays."""
    products = [each for each in programs(model, **parts) if each.primitive.name == "dot_general"]
    assert products
    return {each.params["precision"] for each in products if dtypes(each) == {"float32"}}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_float32_is_multiplied_as_float32(model):
    highest = jax.lax.Precision.HIGHEST
    assert float32_precisions(model, optimizer={"name": "muon"}) == {(highest, highest)}


@pytest.mark.parametrize("name", ["high", "default"])
def test_less_precision_is_one_flag_away(name):
    precision = getattr(jax.lax.Precision, name.upper())
    for model in ("softmax", "lightning", "lstm"):
        assert float32_precisions(MODELS[model] | {"precision": name}) == {(precision, precision)}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_no_sum_over_examples_or_tokens_has_16_bits(model):
    def is_sum(equation):
        if equation.primitive.name == "reduce_sum":
            return set(equation.params["axes"]) & {0, 1}  # [batch, tokens, ...]
        return equation.primitive.name in ("scatter-add", "cumsum", "psum", "reduce_scatter")

    sums = [each for each in programs(model | {"dtype": "bfloat16"}) if is_sum(each)]
    assert sums
    assert [each for each in sums if "bfloat16" in dtypes(each)] == []


# --------------------------------------------------------------------------------------- gradients under bfloat16


def gradient(model, size, **parts):
    """The gradient of a whole batch, by parameter: what one update with plain gradient descent subtracts."""
    optimizer = {"name": "sgd", "learning_rate": 1.0, "beta1": 0.0, "schedule": "constant", "warmup_steps": 0}
    experiment = experiment_of(model, optimizer=optimizer, **parts)
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
    return gradient(MODELS[name], size)


def assert_gradients_agree(name, size, **parts):
    """Within 3% of each parameter's norm; a sum of equal terms in bfloat16 stops growing at 256 of them."""
    expected, found = float32_gradient(name, size), gradient(MODELS[name] | {"dtype": "bfloat16"}, size, **parts)
    least = 1e-3 * max(np.linalg.norm(each) for each in expected.values())  # some gradients are 0 but for rounding
    errors = {
        key: np.linalg.norm(found[key] - each) / max(np.linalg.norm(each), least) for key, each in expected.items()
    }
    assert max(errors.values()) < 0.03, errors


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
    assert_gradients_agree("static", 32, **parts)
