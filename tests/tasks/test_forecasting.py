import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from flaxformer_lab.command_line import load_config
from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.functional import metrics
from flaxformer_lab.functional.series import series_patches
from flaxformer_lab.functional.trees import leaf_paths, replace_leaves
from flaxformer_lab.model_config import (
    AttentionConfig,
    FeedForwardConfig,
    MLPConfig,
    NormConfig,
    TransformerConfig,
)
from flaxformer_lab.task_config import ForecastingConfig
from flaxformer_lab.tasks import make_task
from flaxformer_lab.tasks.closed_form import BASELINES, evaluate, fit
from flaxformer_lab.tasks.task import EXAMPLES, examples_of
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.initialization import starting_weights
from flaxformer_lab.training.single import Single

ROWS, LOOKBACK, HORIZON = 630, 12, 5
BORDERS = {"train": (0, 360), "validation": (360, 480), "test": (480, 600)}  # 12, 4 and 4 months of 30 days
NAMES = ("a", "b", "c")
GAPS = ((5, 0), (6, 0), (100, 1), (500, 2), (599, 0))


@pytest.fixture(scope="module")
def values():
    """A series of three channels: days, with a rhythm of a week, and gaps."""
    draw, day = np.random.default_rng(0), np.arange(ROWS)[:, None]
    noise = draw.normal(size=(ROWS, 3)).cumsum(axis=0) / 4
    values = (np.array([1, 10, 100]) * (np.sin(2 * np.pi * day / 7) + noise) + [0, 50, -300]).astype(np.float32)
    for row, channel in GAPS:
        values[row, channel] = np.nan
    return values


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """Writes a series as a file in the layout of ETT; returns its name as a data set."""

    def to_file(values, names=NAMES):
        path = tmp_path_factory.mktemp("series") / "days.csv"
        days = np.datetime64("2016-07-01") + np.arange(len(values))
        fields = [",".join("" if np.isnan(each) else repr(float(each)) for each in row) for row in values]
        lines = [f"{day} 00:00:00,{row}" for day, row in zip(days, fields, strict=True)]
        path.write_text("\n".join([",".join(["date", *names]), *lines]))
        return f"ett:{path}"

    return to_file


@pytest.fixture(scope="module")
def make(values, write):
    """The task on that series."""
    dataset = write(values)

    def build(**knobs):
        return make_task(ForecastingConfig(**{"dataset": dataset, "lookback": LOOKBACK, "horizon": HORIZON, **knobs}))

    return build


def batch_of(task, split="test", rows=None):
    examples = task.examples(split)
    rows = np.arange(examples.number, dtype=np.int32) if rows is None else np.asarray(rows, np.int32)
    stored = examples.read(rows) | {"example_weight": np.ones(len(rows), np.float32)}
    return jax.device_get(jax.jit(lambda stored: task.prepare(stored, None, training=False))(stored))


def filled_forward(values):
    values = values.copy()
    for row in range(1, len(values)):
        values[row] = np.where(np.isnan(values[row]), values[row - 1], values[row])
    return values


# ------------------------------------------------------------------------------------------------------ the data


@pytest.mark.parametrize("split", BORDERS)
def test_every_window_of_a_split_is_an_example_in_training_units(make, values, split):
    task, (first, last) = make(), BORDERS[split]
    first = first if split == "train" else first - LOOKBACK
    mean, spread = np.nanmean(values[:360].astype(float), axis=0), np.nanstd(values[:360].astype(float), axis=0)
    expected = (filled_forward(values) - mean) / spread
    examples = task.examples(split)
    assert examples.number == last - first - LOOKBACK - HORIZON + 1
    for row in (0, 7, examples.number - 1):
        example = {name: value[0] for name, value in examples.read(np.array([row])).items()}
        window = slice(first + row, first + row + LOOKBACK + HORIZON)
        np.testing.assert_allclose(example["series"], expected[window], atol=1e-5)
        np.testing.assert_array_equal(example["observed"], ~np.isnan(values[window]))
    assert examples.num_bytes == (3 * 4 + 3 + 3 * 4) * (
        last - first
    )  # the rows themselves, and no copy for each window


def test_validation_and_test_do_not_change_the_scale(make, values, write):
    later, earlier = values.copy(), values.copy()
    later[360:] *= 3
    earlier[:360] *= 3
    here, there, elsewhere = (make(dataset=write(each)).metadata for each in (values, later, earlier))
    assert here["mean"] == there["mean"] and here["spread"] == there["spread"] != elsewhere["spread"]


@pytest.mark.parametrize("missing", ["mask", "forward", "linear"])
def test_a_missing_value_is_filled_and_counts_where_asked(make, values, missing):
    task = make(missing=missing, standardised=False)
    batch = batch_of(task, rows=[18, 22])  # row 500 of the file is the third target of the one, and read by the other
    before, after = values[499, 2], values[501, 2]
    expected = (before + after) / 2 if missing == "linear" else before
    np.testing.assert_allclose(batch["targets"][0, 2, 2], expected, rtol=1e-6)
    np.testing.assert_allclose(batch["inputs"]["series"][1, 10, 2], expected, rtol=1e-6)
    masked = missing == "mask"
    assert np.argwhere(batch["loss_weights"] == 0).tolist() == [[0, 2, 2]] * masked
    assert np.argwhere(~batch["inputs"]["observed"]).tolist() == [[1, 10, 2]] * masked


def test_only_the_channels_that_are_named_are_read_and_predicted(make):
    task = make(inputs=("c", "a"), targets=("a",))
    batch, whole = batch_of(task, rows=[3]), batch_of(make(), rows=[3])
    np.testing.assert_array_equal(batch["inputs"]["series"], whole["inputs"]["series"][..., np.array([2, 0])])
    np.testing.assert_array_equal(batch["targets"], whole["targets"][..., :1])


def test_inputs_of_raw_values_are_those_of_the_example(make, values):
    task = make()
    first = np.datetime64("2016-07-01") + np.array([468, 490])
    raw = {"values": np.stack([values[468:480], values[490:502]]), "time": first}
    expected = batch_of(task, rows=[0, 22])["inputs"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), task.inputs_of(raw), expected)
    assert task.input_misfit(task.inputs_of(raw)) is None
    with pytest.raises(ConfigError, match=r"values of shape \(2, 12, 2\).*takes \(batch, 12, 3\) and \(batch,\)"):
        task.inputs_of(raw | {"values": raw["values"][..., :2]})


# --------------------------------------------------------------------------------------------------- the metrics


def test_the_metrics_are_those_of_the_papers(make, values):
    """Against loops over single values, for a forecast of zeros in the model's own units, of masked values too."""
    task = make()
    mean, spread = np.nanmean(values[:360].astype(float), axis=0), np.nanstd(values[:360].astype(float), axis=0)
    seasonal = np.nanmean(np.abs(values[7:360].astype(float) - values[:353]), axis=0)  # a week of days
    squares, absolutes, scaled, percentages, last = [], [], [], [], []
    for window in range(600 - 480 - HORIZON + 1):
        for step in range(HORIZON):
            for channel in range(3):
                value = float(values[480 + window + step, channel])
                if np.isnan(value):
                    continue
                error = value - mean[channel]
                squares.append((error / spread[channel]) ** 2)
                last += [squares[-1]] if step == HORIZON - 1 else []
                absolutes.append(abs(error) / spread[channel])
                scaled.append(abs(error) / seasonal[channel])
                percentages.append(200 * abs(error) / (abs(value) + abs(mean[channel])))
    batch = batch_of(task)
    found = metrics.compute([jax.jit(task.loss_and_metrics)(jnp.zeros_like(batch["targets"]), batch)])
    expected = {"mse": squares, "mae": absolutes, "mase": scaled, "smape": percentages, f"mse_at_{HORIZON}": last}
    for name, each in expected.items():
        np.testing.assert_allclose(found[name], np.mean(each), rtol=1e-4)
    assert found["loss"] == found["mse"]
    whole = metrics.compute([jax.jit(task.metrics_and_examples)(jnp.zeros_like(batch["targets"]), batch)])
    for name, examples in (("mse", whole[EXAMPLES]), ("mae", whole[examples_of("mae")])):
        totals, weights = examples
        assert totals.shape == (len(batch["targets"]),) and totals.sum() / weights.sum() == pytest.approx(found[name])
    by_absolutes = jax.jit(make(loss="mae").loss_and_metrics)(jnp.zeros_like(batch["targets"]), batch)
    assert float(by_absolutes["loss"].total) == float(by_absolutes["mae"].total)


def test_the_errors_of_a_raw_series_are_in_the_same_units(make):
    found = []
    for task in (make(), make(standardised=False)):
        found.append(evaluate(task, fit(task, "repeat")))
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-3)


def test_a_constant_channel_does_not_count_in_mase(values, write, make):
    still = values.copy()
    still[:, 1] = 4.0
    task = make(dataset=write(still), missing="forward")
    found = evaluate(task, fit(task, "seasonal_naive"))
    others = make(dataset=write(still[:, [0, 2]], names="ac"), missing="forward")
    np.testing.assert_allclose(found["mase"], evaluate(others, fit(others, "seasonal_naive"))["mase"], rtol=1e-5)


def test_without_a_seasonal_error_there_is_no_mase(values, write, make):
    still = np.full_like(values, 4.0)
    still[400:] = values[400:]
    still[np.isnan(still)] = 4.0
    task = make(dataset=write(still))
    found = evaluate(task, fit(task, "repeat"))
    assert "mase" not in found and np.isfinite(list(found.values())).all()
    assert any("there is no MASE" in str(fact) and "task.season=7" in str(fact) for fact in task.facts())


def test_a_split_without_a_target_is_refused_where_gaps_do_not_count(values, write, make):
    empty = values.copy()
    empty[360:480, 0] = np.nan
    dataset = write(empty)
    with pytest.raises(ConfigError, match=r"leaves nothing to predict in validation of ett:.*every target's value"):
        make(dataset=dataset, targets=("a",))
    make(dataset=dataset, targets=("a", "b")), make(dataset=dataset, targets=("a",), missing="forward")


@pytest.mark.parametrize("standardised", [False, True])
def test_quantiles_are_scored_by_the_pinball_loss(make, standardised):
    """Against loops over single values, some of them masked, in standardised units; the median is the forecast."""
    levels = (0.1, 0.5, 0.75)
    task = make(quantiles=levels, standardised=standardised)
    batch = batch_of(task)
    targets, known = np.asarray(batch["targets"], float), np.asarray(batch["loss_weights"]) > 0
    spread = np.ones(3) if standardised else np.array(task.metadata["spread"])
    outputs = targets[..., None] + spread[:, None] * np.random.default_rng(0).normal(size=(*targets.shape, 3))
    outputs = np.asarray(outputs, np.float32)
    found = metrics.compute([task.loss_and_metrics(jnp.asarray(outputs), jax.tree.map(jnp.asarray, batch))])
    losses, inside, squares = [], [], []
    for place in np.argwhere(known):
        window, step, channel = place
        target, values = targets[window, step, channel], outputs[window, step, channel].astype(float)
        for level, value in zip(levels, values, strict=True):
            error = (target - value) / spread[channel]
            losses.append(2 * (level * error if error > 0 else (level - 1) * error))
        inside.append(values[0] <= target <= values[-1])
        squares.append(((target - values[1]) / spread[channel]) ** 2)
    expected = {"crps": np.mean(losses), "loss": np.mean(losses), "coverage": np.mean(inside), "mse": np.mean(squares)}
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=2e-4), name


@pytest.mark.parametrize("individual", [False, True])
def test_a_head_of_quantiles_has_a_map_for_each_level(make, individual):
    """The network of a task without them, with one level's columns of the map, forecasts that level."""
    knobs = {"instance_norm": "last", "tokens": "variate", "embedding": "identity", "individual": individual}
    task, params, forecast = built(make, LINEAR, targets=("c", "a"), marks=False, quantiles=(0.2, 0.5), **knobs)
    single, _, _ = built(make, LINEAR, targets=("c", "a"), marks=False, **knobs)
    inputs, network = jax.tree.map(jnp.asarray, random_inputs(task)), single.network(LINEAR)
    apply = jax.jit(lambda weights: network.apply(weights, network.shapes[1], inputs)[0])
    found = np.asarray(forecast(inputs))
    assert found.shape == (2, HORIZON, 2, 2)
    for level in (0, 1):
        weights = jax.tree.map(lambda leaf, level=level: leaf[..., level::2], params)
        expected = apply(weights)
        np.testing.assert_allclose(found[..., level], expected, atol=1e-4)


def test_predictions_are_in_the_units_of_the_data(make, values):
    task = make(targets=("c", "a"))
    outputs = jnp.zeros((1, HORIZON, 2)).at[0, 0, 1].set(2.0)
    found = np.asarray(task.predictions_of(outputs))
    train = values[:360].astype(float)
    np.testing.assert_allclose(found[0, 1], np.nanmean(train, axis=0)[[2, 0]], rtol=1e-5)
    np.testing.assert_allclose(found[0, 0, 1], (np.nanmean(train, axis=0) + 2 * np.nanstd(train, axis=0))[0], rtol=1e-5)
    np.testing.assert_allclose(task.outputs_of(jnp.asarray(found)), outputs, atol=1e-5)


# ------------------------------------------------------------------------------------------------- the baselines


def test_the_naive_forecasts_repeat_the_last_value_and_the_last_season(make):
    task, series = make(season=7, horizon=9), np.arange(12.0)[None, :, None].repeat(3, axis=2)
    assert fit(task, "repeat")(series)[0, :, 1].tolist() == [11] * 9
    assert fit(task, "seasonal_naive")(series)[0, :, 2].tolist() == [5, 6, 7, 8, 9, 10, 11, 5, 6]


@pytest.mark.parametrize("last", ["", "_last"])
@pytest.mark.parametrize("kind", ["linear", "linear_shared", "linear_all"])
def test_linear_forecasts_are_ridge_regressions(make, kind, last):
    task, alpha = make(targets=("c", "a"), missing="mask"), 3.0
    train, test = (jax.tree.map(np.asarray, batch_of(task, split)) for split in ("train", "test"))

    def level(batch):
        return batch["inputs"]["series"][:, -1:] * bool(last)

    def x_and_y(batch, place):
        x, y = batch["inputs"]["series"] - level(batch), batch["targets"] - level(batch)[..., [2, 0]]
        x = x.reshape(len(x), -1) if kind == "linear_all" else x[..., [2, 0][place]]
        return x.astype(float), y[..., place].astype(float), batch["loss_weights"][..., place].min(axis=1) > 0

    parts = [x_and_y(train, place) for place in (0, 1)]
    expected = np.empty(test["targets"].shape)
    for place, (x, y, whole) in enumerate(parts):
        if kind == "linear_shared":
            x, y, whole = (np.concatenate([part[number] for part in parts]) for number in range(3))
        model = Ridge(alpha).fit(x[whole], y[whole])
        expected[..., place] = model.predict(x_and_y(test, place)[0]) + level(test)[:, :, [2, 0][place]]
    found = fit(task, kind + last, alpha=alpha)(test["inputs"]["series"])
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("last", ["off", "last"])
@pytest.mark.parametrize("individual", [False, True])
def test_a_solution_makes_the_network_that_ridge_regression(make, individual, last):
    knobs = {"tokens": "variate", "embedding": "identity", "marks": False, "individual": individual}
    task = make(targets=("c", "a"), instance_norm=last, **knobs)
    network, batch = task.network(LINEAR), batch_of(task)
    weights = replace_leaves(network.shapes[0], task.solution(LINEAR, 3.0))
    weights, inputs = jax.tree.map(jnp.asarray, (weights, batch["inputs"]))
    found, _ = network.apply(weights, network.shapes[1], inputs)
    name = ("linear" if individual else "linear_shared") + ("_last" if last == "last" else "")
    expected = fit(task, name, alpha=3.0)(np.asarray(batch["inputs"]["series"]))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_run_of_ridge_starts_at_the_solution(values, write):
    """Of all its weights."""
    task = {"name": "forecasting", "dataset": write(values), "lookback": LOOKBACK, "horizon": HORIZON, "marks": False}
    task |= {"tokens": "variate", "embedding": "identity", "individual": True}
    model = {"width": LOOKBACK, "depth": 0, "norm": {"kind": "off"}, "position": "off"}
    tree = {"task": task, "model": model, "optimizer": {"name": "ridge", "weight_decay": 2.0}}
    experiment = make_experiment(parse_config(tree | {"training": {"batch_size": 8}}), strategy=Single())
    found = starting_weights(experiment)
    expected = experiment.task.solution(experiment.config.model, 2.0)
    shapes = {name: leaf.shape for name, leaf in leaf_paths(experiment.network.shapes[0]).items()}
    assert {name: each.shape for name, each in found.values.items()} == shapes
    for name, each in expected.items():
        np.testing.assert_array_equal(found.values[name], each)
    with pytest.raises(ConfigError, match=r"training.init_from=runs/x with optimizer.name=ridge, whose weights follow"):
        parse_config(tree | {"training": {"init_from": "runs/x"}})


def test_what_has_no_closed_form_is_told(make):
    with pytest.raises(ConfigError, match=r"model.depth=1 with optimizer.name=ridge, which needs 0: a closed form"):
        make(tokens="variate", embedding="identity", marks=False).solution(SMALL, 1.0)
    with pytest.raises(ConfigError, match=r"task.tokens=step with optimizer.name=ridge, which needs variate"):
        make().solution(LINEAR, 1.0)
    with pytest.raises(ConfigError, match=r"task.instance_norm=revin with optimizer.name=ridge, which needs off or"):
        make(tokens="variate", embedding="identity", marks=False, instance_norm="revin").solution(LINEAR, 1.0)


def test_a_stride_takes_every_so_many_windows_of_validation_alone(make):
    whole, task = make(), make(validation_stride=10)
    assert [task.examples(split).number for split in ("train", "test")] == [
        whole.examples(split).number for split in ("train", "test")
    ]
    examples, every = (each.examples("validation") for each in (task, whole))
    rows = np.arange(examples.number)
    assert examples.number == -(-every.number // 10)
    found = examples.read(examples.evaluation_indices(rows))["series"]
    np.testing.assert_array_equal(found, every.read(rows * 10)["series"])


def test_an_unknown_baseline_and_too_short_a_lookback_are_told(make):
    with pytest.raises(ConfigError, match=r"lineal is no baseline: .*did you mean linear.*choose from repeat"):
        fit(make(), "lineal")
    with pytest.raises(ConfigError, match=r"one season, 30 steps, and task.lookback=12; raise it"):
        fit(make(season=30), "seasonal_naive")
    assert set(BASELINES) > {"repeat", "linear_all_last"}


REFERENCE = {  # of the published figures, what takes seconds: windows of the test split, MSE, MAE
    "repeat": ({"dataset": "lab_beijing_air", "missing": "forward"}, 8_670, 0.829, 0.402),
    "repeat, 10 minutes": ({"dataset": "lab_appliances"}, 3_852, 1.003, None),
    "repeat, one year": (
        {"dataset": "lab_nyc_weather", "missing": "linear", "lookback": 72, "horizon": 24},
        1_723,
        0.743,
        None,
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "repeat" else pytest.mark.slow) for name in REFERENCE]
)
def test_repeating_the_last_value_has_the_published_errors(name):
    knobs, windows, mse, mae = REFERENCE[name]
    task = make_task(ForecastingConfig(**knobs))
    found = evaluate(task, fit(task, "repeat"))
    assert task.examples("test").number == windows
    assert round(found["mse"], 3) == mse and (mae is None or round(found["mae"], 3) == mae)


@pytest.mark.slow
def test_a_linear_map_for_each_channel_has_the_published_errors():
    """New York's weather, the smallest."""
    task = make_task(ForecastingConfig("forecasting", "lab_nyc_weather", 72, 24, missing="linear"))
    assert evaluate(task, fit(task, "linear_last"))["mse"] == pytest.approx(0.539, abs=0.0015)


# -------------------------------------------------------------------------------------- tokens, channels, norms

LINEAR = MLPConfig(width=LOOKBACK, depth=0)  # embedding and head alone
# Few parts, since each is compiled: tokens meet in their mean.
MEAN, OFF = AttentionConfig("mean", num_heads=1), NormConfig("off")
SMALL = TransformerConfig(width=8, depth=1, attention=MEAN, ffn=FeedForwardConfig("off"), norm=OFF, position="off")
LAYOUTS = {
    "step": {"tokens": "step"},
    "patch": {"tokens": "patch", "patch_length": 5, "patch_stride": 3},
    "variate": {"tokens": "variate"},
}


def random_inputs(task, number=2):
    """Windows of noise."""
    draw = np.random.default_rng(1)
    spec = task.input_spec(number)
    arrays = {name: draw.normal(size=leaf.shape).astype(np.float32) for name, leaf in spec.items()}
    return arrays | {"observed": np.ones(spec["observed"].shape, bool)}


@functools.cache
def built(task_of, model, **knobs):
    """A task, parameters of its network that are all drawn, and the network's forecasts of inputs, compiled."""
    task = task_of(**knobs)
    network = task.network(model)
    params, state = network.shapes
    draw = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.5 * draw.normal(size=leaf.shape), jnp.float32), params)
    return task, params, jax.jit(lambda inputs, **options: network.apply(params, state, inputs, **options)[0])


@pytest.mark.parametrize("channels", ["mixed", "independent"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_channel_reaches_another_where_channels_are_mixed(make, kind, channels):
    task, _, forecast = built(make, SMALL, channels=channels, marks=False, **LAYOUTS[kind])
    inputs = random_inputs(task, 4)  # four times the same window, three of them with another channel
    series = inputs["series"][:1].repeat(4, axis=0)
    series[1 + np.arange(3), :, np.arange(3)] += 1
    outputs = np.asarray(forecast(inputs | {"series": series}))
    assert outputs.shape == (4, HORIZON, 3)
    influence = np.abs(outputs[1:] - outputs[:1]).max(axis=1)  # of an input channel on an output channel
    assert influence.diagonal().min() > 1e-3
    across = influence[~np.eye(3, dtype=bool)]
    assert across.min() > 1e-3 if channels == "mixed" else across.max() == 0


@pytest.mark.parametrize(("steps", "length", "stride"), [(96, 16, 8), (12, 5, 3), (7, 7, 2), (10, 1, 1)])
@pytest.mark.parametrize("padded", [False, True])
def test_patches_are_slices(steps, length, stride, padded):
    x = np.random.default_rng(0).normal(size=(2, steps, 3)).astype(np.float32)
    rows = np.concatenate([x, x[:, -1:].repeat(stride, axis=1)], axis=1) if padded else x
    expected = [rows[:, first : first + length] for first in range(0, rows.shape[1] - length + 1, stride)]
    found = jax.jit(lambda x: series_patches(x, length, stride, padded=padded))(x)
    np.testing.assert_array_equal(found, np.stack(expected, axis=1).reshape(2, len(expected), -1))


@pytest.mark.parametrize("kind", LAYOUTS)
def test_marks_of_the_lookback_reach_the_forecast_where_they_are_asked_for(make, kind):
    for marks in (True, False):
        task, _, forecast = built(make, SMALL, marks=marks, **LAYOUTS[kind])
        inputs = random_inputs(task)
        other = inputs | {"marks": inputs["marks"] + 1}
        same = np.array_equal(*map(forecast, (inputs, other)))
        assert same is not marks
        assert task.layout.tokens == {"step": 12, "patch": 4, "variate": 3 + 3 * marks}[kind]


NORMS = {  # what becomes of the forecast where the inputs are a x + b
    "last": lambda forecast, a, b: None if a != 1 else forecast + b,
    "revin": lambda forecast, a, b: a * forecast + b,
    "affine": lambda forecast, a, b: a * forecast + b,
    "off": lambda forecast, a, b: None,
}


@pytest.mark.parametrize("norm", NORMS)
def test_a_forecast_follows_the_level_and_the_spread_of_its_window(make, norm):
    task, params, forecast = built(make, SMALL, instance_norm=norm, marks=False, **LAYOUTS["patch"])
    inputs = random_inputs(task)
    outputs = forecast(inputs)
    for a, b in ((1.0, 7.0), (3.0, -2.0)):
        found = forecast(inputs | {"series": (a * inputs["series"] + b).astype(np.float32)})
        expected = NORMS[norm](outputs, a, b)
        if expected is None:
            assert np.abs(found - (a * outputs + b)).max() > 0.1
        else:
            np.testing.assert_allclose(found, expected, atol=2e-3)
    assert ("scale" in str(jax.tree.structure(params["embedding"]))) is (norm == "affine")


def test_revin_takes_mean_and_deviation_of_what_was_observed(make):
    """Against a loop; the missing value changes nothing."""
    task = make(instance_norm="revin", tokens="variate", embedding="identity", marks=False)
    network = task.network(LINEAR)
    params, state = jax.jit(network.init)(jax.random.key(0))
    inputs = random_inputs(task)
    inputs["observed"][0, 4, 1] = False
    tokens = np.asarray(network.embed(params, state, jax.tree.map(jnp.asarray, inputs)))
    for channel in range(3):
        known = inputs["series"][0, inputs["observed"][0, :, channel], channel]
        expected = (inputs["series"][0, :, channel] - known.mean()) / np.sqrt(known.var() + 1e-5)
        np.testing.assert_allclose(tokens[0, channel], expected, atol=1e-5)


@pytest.mark.parametrize("individual", [False, True])
def test_nlinear_is_a_linear_map_of_what_is_left_without_the_last_value(make, individual):
    """The knobs of NLinear (Zeng et al. 2023): a bare map from lookback to horizon, for all channels or each."""
    knobs = {"instance_norm": "last", "tokens": "variate", "embedding": "identity", "individual": individual}
    task, params, forecast = built(make, LINEAR, targets=("c", "a"), marks=False, **knobs)
    inputs = random_inputs(task)
    found = forecast(inputs)
    kernel, bias = (np.asarray(params["head"]["map"][name]) for name in ("kernel", "bias"))
    assert kernel.shape == ((2,) if individual else ()) + (LOOKBACK, HORIZON)
    for place, channel in enumerate((2, 0)):
        weights, shift = (kernel[place], bias[place]) if individual else (kernel, bias)
        series = inputs["series"][..., channel]
        expected = (series - series[:, -1:]) @ weights + shift + series[:, -1:]
        np.testing.assert_allclose(found[..., place], expected, atol=1e-4)


def test_dlinear_has_a_linear_map_of_the_season_and_one_of_the_trend(make):
    """The knobs of DLinear (Zeng et al. 2023); the trend is a moving average with repeated edges."""
    knobs = {"decomposition": (5,), "tokens": "variate", "embedding": "identity"}
    task, params, forecast = built(make, dataclasses.replace(LINEAR, width=2 * LOOKBACK), marks=False, **knobs)
    inputs = random_inputs(task)
    kernel, bias = (np.asarray(params["head"]["map"][name]) for name in ("kernel", "bias"))
    for channel in range(3):
        series = inputs["series"][0, :, channel]
        padded = np.concatenate([series[:1].repeat(2), series, series[-1:].repeat(2)])
        trend = np.array([padded[step : step + 5].mean() for step in range(LOOKBACK)])
        expected = (series - trend) @ kernel[:LOOKBACK] + trend @ kernel[LOOKBACK:] + bias
        np.testing.assert_allclose(forecast(inputs)[0, :, channel], expected, atol=1e-4)


@pytest.mark.parametrize("channels", ["mixed", "independent"])
def test_a_circular_embedding_reads_a_step_and_its_neighbours(make, channels):
    task = make(tokens="step", embedding="circular", channels=channels)
    network, inputs = task.network(SMALL), random_inputs(task)
    params, state = jax.jit(network.init)(jax.random.key(0))
    tokens = np.asarray(jax.jit(network.embed)(params, state, inputs))
    projection = params["embedding"]["projection"]
    kernel, calendar = (np.asarray(each["kernel"]) for each in (projection["values"]["map"], projection["calendar"]))
    rows = inputs["series"] if channels == "mixed" else inputs["series"].transpose(0, 2, 1).reshape(6, LOOKBACK, 1)
    marks = inputs["marks"][:, :LOOKBACK].repeat(1 if channels == "mixed" else 3, axis=0)
    around = np.concatenate([np.roll(rows, 1, axis=1), rows, np.roll(rows, -1, axis=1)], axis=2)
    np.testing.assert_allclose(tokens, around @ kernel + marks @ calendar, atol=1e-5)


def test_patches_of_season_and_trend_have_twice_the_numbers(make):
    task, _, forecast = built(make, SMALL, decomposition=(3, 7), **LAYOUTS["patch"])
    assert task.layout.features == 5 * 2 * (3 + 3) and forecast(random_inputs(task)).shape == (2, HORIZON, 3)


@pytest.mark.parametrize("head", ["flat", "mean", "last"])
def test_the_head_reads_the_tokens_that_it_should(make, head):
    """Of steps without a body: all of them each with its own weight, all alike, or the last one alone."""
    task, _, forecast = built(make, MLPConfig(width=8, depth=0), head=head, marks=False)
    inputs = random_inputs(task, LOOKBACK + 1)
    series = inputs["series"][:1].repeat(LOOKBACK + 1, axis=0)
    series[1 + np.arange(LOOKBACK), np.arange(LOOKBACK), 1] += 1
    outputs = np.asarray(forecast(inputs | {"series": series}))
    by_step = np.abs(outputs[1:] - outputs[:1]).sum(axis=(1, 2))
    assert (by_step > 1e-3).tolist() == [head != "last"] * (LOOKBACK - 1) + [True]
    assert (np.ptp(by_step) < 1e-4) == (head == "mean")


def test_each_channel_has_its_own_dropout(make):
    """Two equal channels differ in training, and windows still draw from their own keys alone."""
    model = dataclasses.replace(SMALL, dropout=0.5)
    task, _, forecast = built(make, model, channels="independent", **LAYOUTS["patch"])
    inputs = random_inputs(task)
    inputs["series"] = inputs["series"][..., :1].repeat(3, axis=2)
    keys = jax.random.split(jax.random.key(3), 2)
    whole = forecast(inputs, keys=keys)
    assert np.abs(whole[..., 0] - whole[..., 1]).max() > 1e-3
    changed = jax.tree.map(lambda leaf: np.concatenate([leaf[1:], leaf[1:]]), inputs)
    np.testing.assert_allclose(forecast(changed, keys=keys)[1], whole[1], atol=1e-5)


RECIPES = Path(__file__).parents[2] / "configs"
FACTS = {"channels": list("abcdefg"), "targets": list(range(7)), "step": 3600}


@pytest.mark.parametrize("path", [RECIPES / "forecasting.py", *sorted((RECIPES / "forecasters").glob("*.py"))], ids=str)
def test_each_recipe_forecasts_every_channel(path):
    """Traced only, for data that are not read."""
    config = load_config(str(path), [])
    task = make_task(config.task, FACTS)
    network, keys = task.network(config.model), jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    run = lambda *arguments: network.apply(*arguments[:3], keys=arguments[3], training=True)[0]  # noqa: E731
    assert jax.eval_shape(run, *network.shapes, task.input_spec(2), keys).shape == (2, 96, 7)


# -------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"horizon": 120}, r"task.lookback=12 and task.horizon=120 need 132 rows.*validation \(|need 132 rows"),
        ({"lookback": 500}, r"need 505 rows, and train of ett:\S* has 360"),
        ({"horizon": 200}, r"need 212 rows, and validation of ett:\S* has 132, its lookback included"),
        ({"targets": ("d",)}, r"task.targets: ett:\S* has no channel d: .*it has a, b, c"),
        ({"inputs": ("a", "cc")}, r"task.inputs: ett:\S* has no channel cc: .*it has a, b, c"),
        ({"inputs": ("a",), "targets": ("c",)}, r"task.targets: ett:\S* has no channel c: .*it has a$"),
    ],
)
def test_what_the_data_cannot_do_is_told(make, knobs, message):
    if knobs == {"horizon": 120}:  # just fits
        assert make(**knobs).examples("test").number == 1
        return
    with pytest.raises(ConfigError, match=message):
        make(**knobs)


def test_a_channel_without_values_is_told(make, values, write):
    empty = values.copy()
    empty[:360, 1] = np.nan
    with pytest.raises(DataError, match=r"channel b has no value in the training rows; leave it out"):
        make(dataset=write(empty))
    assert make(dataset=write(empty), inputs=("a", "c")).metadata["channels"] == ["a", "c"]


def test_an_identity_embedding_needs_the_width_of_its_tokens(make):
    with pytest.raises(
        ConfigError, match=r"task.embedding=identity leaves the 12 numbers .*model.width must be|must be 12"
    ):
        make(tokens="variate", embedding="identity", marks=False).network(SMALL)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"tokens": "patch", "patch_length": 40, "lookback": 31},
            r"task.patch_length=40 is more than task.lookback=31",
        ),
        (
            {"embedding": "circular", "tokens": "patch"},
            r"task.embedding=circular is of steps.*not of task.tokens=patch",
        ),
        ({"quantiles": (0.1, 0.9)}, r"task.quantiles=0.1,0.9 must rise from above 0 to below 1, with 0.5 among them"),
        ({"quantiles": (0.5, 0.1)}, r"task.quantiles=0.5,0.1 must rise"),
        ({"quantiles": (0.5, 1.0)}, r"task.quantiles=0.5,1.0 must rise"),
        ({"quantiles": (0.5,), "loss": "mae"}, r"task.loss=mae with task.quantiles, which are trained by the pinball"),
        ({"individual": True}, r"task.individual=true with task.tokens=step and task.channels=mixed"),
    ],
)
def test_knobs_that_contradict_one_another_are_told(knobs, message):
    with pytest.raises(ConfigError, match=message):
        ForecastingConfig(**knobs).rules()
