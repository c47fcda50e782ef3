"""The command that goes on from a file, and quantiles in it."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.forecast import forecast
from flaxformer_lab.run import Run, load_run
from flaxformer_lab.training.checkpoints import Checkpoints
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.state import initial_state

pytestmark = pytest.mark.integration

LOOKBACK, HORIZON, LEVELS = 8, 3, (0.1, 0.5, 0.9)
START = np.datetime64("2024-03-01T00:00", "m")


def write(path, values, names=("load", "wind"), hours=None, zone=""):
    """A file with a row an hour; a value that is NaN is left empty. zone: behind each time."""
    hours = np.arange(len(values)) if hours is None else hours
    lines = [f"{START + int(60 * hour)}{zone}".replace("T", " ") for hour in hours]
    fields = [["" if np.isnan(each) else f"{each:.6f}" for each in row] for row in values]
    rows = [",".join([line, *each]) for line, each in zip(lines, fields, strict=True)]
    path.write_text("\n".join([",".join(["when", *names]), *rows]))
    return str(path)


@pytest.fixture(scope="module")
def values():
    return 50 + 10 * np.random.default_rng(0).normal(size=(120, 2))


def trained(root, file, **knobs):
    """A run on a file, as training would leave it: a linear map of what is left without the last value."""
    task = {"name": "forecasting", "dataset": f"csv:{file}", "lookback": LOOKBACK, "horizon": HORIZON, "marks": False}
    task |= {"tokens": "variate", "embedding": "identity", "instance_norm": "last"}
    model = {"width": LOOKBACK, "depth": 0, "norm": {"kind": "off"}, "position": "off"}
    config = parse_config({"task": task | knobs, "model": model, "training": {"steps": 1, "batch_size": 4}})
    experiment, folder = make_experiment(config), RunFolder(root / "run")
    folder.claim(config, experiment.task.metadata)
    state = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, 0))()
    with Checkpoints(folder.checkpoints) as checkpoints:
        checkpoints.save(dataclasses.replace(state, step=jnp.int32(1)), {"loss": 1.0})
    return folder.path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, values):
    root = tmp_path_factory.mktemp("forecast")
    return trained(root, write(root / "past.csv", values), quantiles=LEVELS)


@pytest.fixture(scope="module")
def loaded(folder) -> Run:
    return load_run(folder)


def test_the_forecast_goes_on_from_the_last_rows_in_the_files_units(loaded, values, tmp_path):
    """By hand: weights times what is left of the standardised window, plus its last value; columns may be swapped."""
    new = 20 + np.random.default_rng(1).normal(size=(LOOKBACK + 4, 3))
    found = forecast(loaded, write(tmp_path / "new.csv", new, ("wind", "spare", "load")))
    train = values[: int(0.6 * len(values))]
    mean, spread = train.mean(axis=0), train.std(axis=0)
    window = (new[-LOOKBACK:, [2, 0]] - mean) / spread
    kernel, bias = (np.asarray(loaded.params["head"]["map"][name]) for name in ("kernel", "bias"))
    outputs = ((window - window[-1]).T @ kernel + bias).reshape(2, HORIZON, len(LEVELS)) + window[-1][:, None, None]
    expected = np.sort(outputs.transpose(1, 0, 2) * spread[:, None] + mean[:, None], axis=-1)
    np.testing.assert_allclose(found.values, expected, rtol=1e-4)
    assert found.targets == ("load", "wind")
    times = [START + 60 * (LOOKBACK + 4 + step) for step in range(HORIZON)]
    assert found.time.astype("datetime64[s]").tolist() == [each.astype("datetime64[s]").item() for each in times]


def test_the_command_writes_a_table_and_a_figure(run_command, folder, loaded, values, tmp_path):
    path = write(tmp_path / "new.csv", values[:30])
    code, out, _ = run_command("flaxformer_lab.forecast", f"--workdir={folder}", f"--csv={path}")
    table = folder / "forecasts" / "new.csv"
    assert code == 0 and out[-2:] == [f"written: {table}", f"written: {table.with_suffix('.svg')}"]
    head, *rows = csv.reader(table.open())
    assert head == ["time", *(f"{name} {level:g}" for name in ("load", "wind") for level in LEVELS)]
    assert rows[0][0] == "2024-03-02 06:00:00" and len(rows) == HORIZON
    numbers = np.array([row[1:] for row in rows], float).reshape(HORIZON, 2, len(LEVELS))
    np.testing.assert_allclose(numbers, forecast(loaded, path).values, rtol=1e-4)
    assert "</svg>" in table.with_suffix(".svg").read_text()


SHORT = np.ones((LOOKBACK - 1, 2))
WRONG = {
    "too short": (SHORT, {}, r"has 7 rows, and the model reads the last task.lookback=8"),
    "unknown columns": (
        np.ones((9, 2)),
        {"names": ("lode", "wind")},
        r"no channel load.*did you mean lode.*it has",
    ),
    "another step": (np.ones((9, 2)), {"hours": 2 * np.arange(9)}, r"a row each 7200 seconds.*one each 3600"),
    "irregular": (np.ones((9, 2)), {"hours": [0, 1, 2, 3, 4, 5, 6, 6, 7]}, r"the same time as"),
    "uneven": (np.ones((9, 2)), {"hours": [0, 1, 2, 3, 4, 5, 6, 6.5, 7]}, r"time is not even"),
    "no value": (np.full((9, 2), [1.0, np.nan]), {}, r"wind"),
    "a zone": (np.ones((9, 2)), {"zone": "+02:00"}, r"line 2, column when: .* has a time zone, and the training table"),
    "too large": (
        np.full((9, 2), [1.0, 1e39]),
        {},
        r"line 2, column wind: 1e\+39 is beyond float32; divide the column",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_cannot_be_is_refused_in_a_line(loaded, tmp_path, name):
    values, options, message = WRONG[name]
    with pytest.raises((ConfigError, DataError), match=message) as error:
        forecast(loaded, write(tmp_path / "new.csv", values, **options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("missing", ["mask", "forward", "linear"])
def test_gaps_are_filled_from_the_whole_file_as_in_training(tmp_path, values, missing):
    """The forecast of the rows before a window of the test split is the one that its evaluation makes."""
    broken = values.copy()
    broken[[100, 101, 104, 107], 0] = np.nan
    loaded = load_run(trained(tmp_path, write(tmp_path / "past.csv", broken), missing=missing))
    file = write(tmp_path / "new.csv", broken[: 101 + LOOKBACK])  # its last rows begin in a gap
    task, first = loaded.task, 101 - (96 - LOOKBACK)  # rows of test begin `lookback` before its border, 96
    stored = task.examples("test").read(np.array([first])) | {"example_weight": np.ones(1, np.float32)}
    outputs = loaded.model.apply(
        loaded.params, {}, jax.tree.map(jnp.asarray, task.prepare(stored, None, training=False)["inputs"])
    )[0]
    expected = np.asarray(task.predictions_of(outputs))[0]
    np.testing.assert_allclose(forecast(loaded, file).values[..., 0], expected, rtol=1e-5)


def test_a_file_is_read_as_the_one_of_the_training(tmp_path):
    """Separators of thousands look like fractions where no other number tells; a day off may never be one."""
    draw = np.random.default_rng(3)
    loads, days_off = draw.normal(1500, 200, 90), draw.choice(["yes", "no"], 90)
    times = [f"{np.datetime64('2024-03-01T00', 'h') + hour}:00:00+02:00" for hour in range(90)]
    german = [f"{load:,.1f}".translate(str.maketrans(",.", ".,")) for load in loads]
    rows = [";".join(row) for row in zip(times, german, days_off, strict=True)]
    file = tmp_path / "past.csv"
    file.write_text("\n".join(["when;load;off", *rows]))
    loaded = load_run(trained(tmp_path, file))
    new = [f"{time};1.5{number}0;no" for number, time in enumerate(times[:LOOKBACK])]
    (tmp_path / "new.csv").write_text("\n".join(["when;load;off", *new]))
    found = forecast(loaded, str(tmp_path / "new.csv"))
    np.testing.assert_array_equal(found.past[:, 0], 1500 + 10 * np.arange(LOOKBACK))
    np.testing.assert_array_equal(found.past[:, 1], 0)
    _, *rows = csv.reader(found.as_csv().splitlines())
    assert rows[0][0] == "2024-03-01 06:00:00+00:00", "in UTC, which it says"
    np.testing.assert_array_equal(np.float32([row[1] for row in rows]), np.float32(found.values[:, 0, 0]))


def test_the_figure_does_not_take_the_table_s_place(run_command, folder, values, tmp_path):
    path = write(tmp_path / "new.csv", values[:30])
    flags = f"--workdir={folder}", f"--csv={path}", f"--output={tmp_path}/out.svg"
    code, _, err = run_command("flaxformer_lab.forecast", *flags)
    assert code == 2 and "out.svg is where the figure goes" in err[-1] and not (tmp_path / "out.svg").exists()


def test_times_without_a_zone_do_not_follow_those_with_one(tmp_path, values):
    """Otherwise their hours would be others without a word."""
    folder = trained(tmp_path, write(tmp_path / "past.csv", values, zone="+02:00"))
    loaded, new = load_run(folder), write(tmp_path / "new.csv", values[:9])
    with pytest.raises(
        DataError, match=r"line 2, column when: '2024-03-01 00:00' has no time zone, .* has one; add it"
    ):
        forecast(loaded, new)
    assert forecast(loaded, write(tmp_path / "new.csv", values[:9], zone="+05:00")).has_zone
    del loaded.task.metadata["has_zone"]  # as a run of an earlier version
    assert not forecast(loaded, write(tmp_path / "new.csv", values[:9])).has_zone


def test_the_file_that_was_read_is_not_written_over(run_command, folder, values, tmp_path):
    path = write(tmp_path / "new.csv", values[:30])
    before, flags = (tmp_path / "new.csv").read_bytes(), (f"--workdir={folder}", f"--output={path}")
    for csv_flag in (f"--csv={path}", f"--csv=csv:{path}?dates=when"):
        code, _, err = run_command("flaxformer_lab.forecast", *flags, csv_flag)
        assert code == 2 and "new.csv is the file that was read; choose another --output" in err[-1]
    assert (tmp_path / "new.csv").read_bytes() == before and not (tmp_path / "new.svg").exists()
