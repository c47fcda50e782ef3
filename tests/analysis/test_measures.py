"""Every measure of every model, and what is refused."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.analysis import measures, rank
from flaxformer_lab.analysis.estimate import Estimate
from flaxformer_lab.analysis.measures import MEASURES, as_json, measure
from flaxformer_lab.analysis.subject import Subject
from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import MeasureError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.tasks.forecasting import Forecasting

PLANTED = {"name": "planted_interactions", "features": 4, "interaction_share": 0.5}
RECALL = {"name": "associative_recall", "vocabulary": 16, "sequence_length": 8, "pairs": 1}
EVERYWHERE = {
    "cross_feature_energy",
    "cross_token_energy",
    "feature_energy",
    "token_energy",
    "cross_feature_energy_at_initialization",
    "cross_token_energy_at_initialization",
    "interaction_share",
    "first_order_indices",
    "total_indices",
    "pair_indices",
    "hessian_interaction",
    "oddness",
    "linearity_error",
    "token_equivariance_error",
    "feature_equivariance_error",
    "parameters",
    "forward_flops",
    "peak_bytes",
}
DEPTH = {"rank_residual", "stable_rank", "scale_heterogeneity"}
ATTENTION = {"attention_entropy", "attention_distance", "head_diversity", "effective_rank", "attention_map"}
BASELINES = ("mlp", "factorization_machine", "cnn_1d", "lstm", "gru", "mixer")


def of_the_block(names):
    return {f"blocks.0.{name}" for name in names}


def numbers(values):
    """All values in one flat array."""
    flat = lambda value: np.ravel(np.asarray(value, np.float64))  # noqa: E731
    return np.concatenate([flat(value) for value in values.values()])


@pytest.fixture(scope="module")
def baseline(subject):
    """The measures of a small Transformer."""
    return measure(subject())


@pytest.mark.integration
def test_a_transformer_has_every_measure(baseline):
    assert set(baseline) == EVERYWHERE | DEPTH | of_the_block(ATTENTION) | of_the_block({"head_importance"})
    assert np.all(np.isfinite(numbers(baseline)))


def test_values_have_the_shapes_of_what_they_describe(baseline):
    assert baseline["feature_energy"].shape == (8, 8) and baseline["token_energy"].shape == (4, 4)
    assert baseline["rank_residual"].shape == (2,)  # the embedding and the block
    assert baseline["blocks.0.attention_map"].shape == (2, 4, 4)
    assert baseline["blocks.0.attention_entropy"].shape == baseline["blocks.0.head_importance"].shape == (2,)
    assert isinstance(baseline["cross_feature_energy"], Estimate) and isinstance(baseline["parameters"], int)


# A convolution stands for the others.
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "cnn_1d" else pytest.mark.slow) for n in BASELINES])
def test_a_baseline_has_every_measure_that_applies(subject, name):
    model = subject(variants=[name])
    assert model.config.name == name
    values = measure(model)
    assert set(values) == EVERYWHERE | (DEPTH if name != "factorization_machine" else set())
    estimates = [values["cross_feature_energy"], values["cross_token_energy"], values["hessian_interaction"]]
    assert all(0 <= each.value <= 1 for each in estimates)
    tokens_meet = name in ("cnn_1d", "lstm", "gru", "mixer")
    assert (values["cross_token_energy"].value > 1e-4) == tokens_meet
    assert (values["token_equivariance_error"] > 1e-4) == tokens_meet


def test_symbols_are_measured_from_their_vectors_on(subject):
    model = subject(task=RECALL)
    assert model.scalar[1].shape == (8, 8 * 8)
    assert np.all(np.isfinite(numbers(measure(model, ["interaction", "head_importance"]))))


def test_the_scalar_is_the_output_itself_where_there_is_one(subject):
    model = subject(task=PLANTED)
    function, x = model.scalar
    expected, _ = jax.jit(model.network.apply)(model.params, model.model_state, model.batch["inputs"])
    np.testing.assert_allclose(function(x), expected[:, 0, 0], rtol=1e-5, atol=1e-6)


def test_the_scalar_sees_only_tokens_that_the_task_asks_about(subject):
    model = subject(
        {"attention.kind": "off"}, task={"name": "pointers", "tokens": 4, "features": 4, "pointers": 2}, examples=4
    )
    function, x = model.scalar
    by_token = np.asarray(x).reshape(4, 5, -1)
    for token in range(5):
        changed = by_token.copy()
        changed[:, token] += 1
        assert np.any(function(jnp.asarray(changed.reshape(4, -1))) != function(x)) == (token == 4)


def test_depth_is_measured_on_what_each_block_hands_on(subject, baseline):
    model = subject()
    inner = jax.jit(model.network.intermediates)(model.params, model.model_state, model.batch["inputs"])
    for place, x in enumerate([model.vectors, inner["blocks.0.output"]]):
        assert baseline["rank_residual"][place] == pytest.approx(float(jnp.mean(rank.rank_residual(x))), rel=1e-4)


def test_linear_residual_blocks_mix_features_by_the_law(subject):
    """The product of L matrices I + W gives cross(L) = (1 - 1/d) (1 - (1 + g)^-L), where sum W^2 = g d."""
    knobs = {"width": 32, "depth": 3, "attention.kind": "off", "ffn.activation": "identity", "norm.kind": "off"}
    model = subject(knobs, fresh=True)
    leaves = leaf_paths(model.params).items()
    up, down = ([leaf for path, leaf in leaves if path.endswith(f"ffn.{name}.kernel")] for name in ("up", "down"))
    gains = [float(jnp.sum((first @ second) ** 2)) / 32 for first, second in zip(up, down, strict=True)]
    expected = (1 - 1 / 32) * (1 - 1 / np.prod([1 + gain for gain in gains]))
    found = measure(model, ["mixing", "mixing_at_initialization"])
    assert found["cross_feature_energy"].value == pytest.approx(expected, abs=0.03) and expected > 0.3
    assert found["cross_feature_energy_at_initialization"] == found["cross_feature_energy"]


def test_blocks_come_in_order_of_depth(subject):
    names = [
        name
        for name in measure(subject({"depth": 12, "attention.kind": "static", "ffn.kind": "off"}), ["attention"])
        if name.endswith("attention_map")
    ]
    assert names == [f"blocks.{number}.attention_map" for number in range(12)]


@pytest.mark.parametrize("kind", ["mean", "static"])
def test_weights_that_do_not_see_the_input_are_the_same_for_each_example(subject, kind):
    values = measure(subject({"attention.kind": kind}), ["attention"])
    heads = 1 if kind == "mean" else 2
    assert values["blocks.0.attention_map"].shape == (heads, 4, 4)
    assert values["blocks.0.attention_entropy"].shape == (heads,)
    if kind == "mean":
        np.testing.assert_allclose(values["blocks.0.attention_map"], 0.25, rtol=1e-6)


def test_large_models_are_sampled(subject, baseline, monkeypatch):
    monkeypatch.setattr(measures, "EXACT_ROWS", 8)
    sampled = measure(subject(), ["mixing", "hessian"], num_random_vectors=32)
    for name in ("cross_feature_energy", "cross_token_energy", "hessian_interaction"):
        value, error = sampled[name]
        assert value != baseline[name].value and value == pytest.approx(baseline[name].value, abs=4 * error)


# ------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    ("knobs", "name", "message"),
    [
        ({}, "mixin", r"mixin is not a measure: did you mean mixing\? .*choose from mixing, mixing_at_initialization"),
        ({"attention.kind": "channel"}, "attention", r"attention does not apply .*kind=channel has no weights over"),
        ({"attention.kind": "off"}, "attention", r"attention\.kind=off .*these do: mixing"),
        ({"attention.kind": "off"}, "head_importance", r"head_importance does not apply .*no attention heads"),
        ({"attention.output": "off"}, "head_importance", r"attention\.output=off has no map"),
        ({"depth": 0}, "depth", r"depth does not apply to this model: model\.name=transformer has no depth"),
        ({"depth": 0}, "attention", r"attention does not apply .*depth 0 has no attention"),
    ],
)
def test_a_measure_that_does_not_apply_says_why(subject, knobs, name, message):
    with pytest.raises(MeasureError, match=message):
        measure(subject(knobs), [name])


def test_what_does_not_apply_is_left_out_when_nothing_is_named(subject):
    assert not set(measure(subject({"depth": 0}))) & (DEPTH | of_the_block(ATTENTION))


def test_nothing_is_measured_before_every_name_is_known(subject, monkeypatch):
    def never(subject, num_random_vectors):
        raise AssertionError

    monkeypatch.setitem(MEASURES, "mixing", dataclasses.replace(MEASURES["mixing"], compute=never))
    with pytest.raises(MeasureError, match="depht is not a measure"):
        measure(subject(), ["mixing", "depht"])


def test_averages_over_examples_need_two(subject):
    one = subject(examples=1)
    with pytest.raises(MeasureError, match="one example alone"):
        measure(one, ["interaction"])
    images = {"sight", "objects"}  # which a probe has not
    found = {name for name, each in MEASURES.items() if each.misfit(one)}
    assert found - images == {"interaction", "hessian", "channels"}


def test_the_anova_of_many_inputs_is_refused(subject, monkeypatch):
    monkeypatch.setattr(measures, "MAX_INPUTS", 15)
    with pytest.raises(MeasureError, match=r"interaction does not apply .*its 16 inputs are more than 15"):
        measure(subject(), ["interaction"])


def spoilt(inputs):
    return inputs.at[0, 0, 0].set(jnp.nan)


def narrower(inputs):
    return inputs[:, :, 1:]


def symbols(inputs):
    return jnp.zeros(inputs.shape, jnp.int32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (spoilt, r"inputs have values that are not finite.*correct the data"),
        (narrower, r"shape \(8, 4, 3\) .*takes \(batch, 4, 4\) \(numbers\); use inputs of the task"),
        (symbols, r"\(8, 4, 4\) \(symbols\) do not fit"),
        (lambda inputs: inputs[:0], r"a batch of 0 examples"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(subject, change, message):
    model = subject()
    with pytest.raises(MeasureError, match=message):
        dataclasses.replace(model, batch=model.batch | {"inputs": change(model.batch["inputs"])})


def test_symbols_of_a_larger_vocabulary_are_refused(subject):
    model = subject(task=RECALL)
    with pytest.raises(MeasureError, match=r"symbols outside its vocabulary"):
        dataclasses.replace(model, batch=model.batch | {"inputs": jnp.full((8, 8), 16)})


# -------------------------------------------------------------------------------------------------- JSON


TARGETS = (2, 0)


def linear_forecaster(horizon: int, mixed: bool) -> Subject:
    """A linear map of four steps of three channels, with random weights; two of the channels are predicted."""
    lookback, channels = 4, 3
    knobs = {"tokens": "patch", "patch_length": lookback, "patch_stride": lookback, "patch_padding": False}
    task = {"name": "forecasting", "lookback": lookback, "horizon": horizon, "embedding": "identity", "marks": False}
    task |= knobs if mixed else {"tokens": "variate"}
    width = lookback * (channels if mixed else 1)
    model = {"width": width, "depth": 0, "norm": {"kind": "off"}, "position": "off"}
    config = parse_config({"task": task, "model": model})
    metadata = {"channels": ["a", "b", "c"], "targets": TARGETS, "step": 3600, "season": 24}
    forecasting = Forecasting(config.task, metadata | dict.fromkeys(("mean", "spread", "seasonal_error"), [1.0] * 3))
    network = forecasting.network(config.model)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape), jnp.float32), network.shapes[0])
    spec = forecasting.input_spec(16)
    inputs = {name: jnp.asarray(draw.normal(size=leaf.shape), leaf.dtype) for name, leaf in spec.items()}
    return Subject(config.model, forecasting, network, params, {}, {"inputs": inputs})


@pytest.mark.parametrize("mixed", [True, False])
def test_what_a_forecast_takes_from_other_channels_and_earlier_steps(mixed):
    """Of linear maps of one step, from their weights."""
    forecaster = linear_forecaster(1, mixed)
    found = measure(forecaster, ["channels"])
    squares = np.asarray(forecaster.params["head"]["map"]["kernel"], float) ** 2
    expected = np.zeros((2, 4, 3))
    for place, target in enumerate(TARGETS):
        if mixed:
            expected[place] = squares[:, place].reshape(4, 3)
        else:
            expected[place, :, target] = squares[:, 0]
    np.testing.assert_allclose(found["channel_energy"], expected.sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found["time_energy"], expected.sum(axis=2), rtol=1e-5)
    other = expected.sum() - sum(expected[place, :, target].sum() for place, target in enumerate(TARGETS))
    assert found["cross_channel_energy"].value == pytest.approx(other / expected.sum(), rel=1e-5)
    assert found["cross_time_energy"].value == pytest.approx(expected[:, :-1].sum() / expected.sum(), rel=1e-5)
    assert (found["cross_channel_energy"].value == 0) is not mixed


def test_a_forecast_of_several_steps_is_measured_row_by_row_or_from_draws_whose_error_is_said(monkeypatch):
    forecaster = linear_forecaster(5, True)
    inputs = forecaster.batch["inputs"]

    def forecasts(series):
        return forecaster.network.apply(forecaster.params, {}, inputs | {"series": series})[0]

    jacobian = jax.jacobian(lambda one: forecasts(jnp.broadcast_to(one, inputs["series"].shape))[0])
    squares = np.asarray(jacobian(inputs["series"][0]), float) ** 2  # [horizon, targets, lookback, channels]
    own = np.arange(3) == np.array(TARGETS)[:, None]
    earlier, others = squares[:, :, :-1].sum() / squares.sum(), (squares * ~own[:, None]).sum() / squares.sum()
    exact = measure(forecaster, ["channels"])
    np.testing.assert_allclose(exact["channel_energy"], squares.sum(axis=(0, 2)), rtol=1e-5)
    assert exact["cross_time_energy"].value == pytest.approx(earlier, rel=1e-5)
    monkeypatch.setattr(measures, "EXACT_ROWS", 9)
    drawn = measure(forecaster, ["channels"], num_random_vectors=64)
    for name, expected in (("cross_time_energy", earlier), ("cross_channel_energy", others)):
        error = drawn[name].standard_error
        assert 1e-3 < error < 0.05 and abs(drawn[name].value - expected) < 4 * error


def test_json_holds_what_was_measured(baseline):
    read = json.loads(json.dumps(as_json(baseline), allow_nan=False))
    assert set(read) == set(baseline)
    assert read["cross_feature_energy"] == dict(
        zip(("value", "standard_error"), baseline["cross_feature_energy"], strict=True)
    )
    np.testing.assert_allclose(read["feature_energy"], baseline["feature_energy"])
    assert read["parameters"] == baseline["parameters"] and read["oddness"] == baseline["oddness"]


def test_json_has_null_for_what_is_no_number():
    values = {
        "a": float("nan"),
        "b": np.array([1.0, np.inf]),
        "c": np.array([[np.nan, 2]], np.float32),
        "d": Estimate(0.5, float("nan")),
        "e": 3,
    }
    assert json.loads(json.dumps(as_json(values), allow_nan=False)) == {
        "a": None,
        "b": [1.0, None],
        "c": [[None, 2.0]],
        "d": {"value": 0.5, "standard_error": None},
        "e": 3,
    }
