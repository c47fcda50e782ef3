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


def write(path, values, names=("load", "wind"), hours=None):
    """A file with a row an hour; a value that is NaN is left empty."""
    hours = np.arange(len(values)) if hours is None else hours
    lines = [f"{START + int(60 * hour)}".replace("T", " ") for hour in hours]
    fields = [["" if np.isnan(each) else f"{each:.6f}" for each in row] for row in values]
    rows = [",".join([line, *each]) for line, each in zip(lines, fields, strict=True)]
    path.write_text("\n".join([",".join(["when", *names]), *rows]))
    return str(path)


@pytest.fixture(scope="module")
def values():
    return 50 + 10 * np.random.default_rng(0).normal(size=(120, 2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, values):
    """A run of quantiles, as training would leave it: a linear map of what is left without the last value."""
    root = tmp_path_factory.mktemp("forecast")
    task = {"name": "forecasting", "dataset": f"csv:{write(root / 'past.csv', values)}", "lookback": LOOKBACK}
    task |= {"horizon": HORIZON, "tokens": "variate", "embedding": "identity", "instance_norm": "last", "marks": False}
    model = {"width": LOOKBACK, "depth": 0, "norm": {"kind": "off"}, "position": "off"}
    tree = {"task": task | {"quantiles": LEVELS}, "model": model, "training": {"steps": 1, "batch_size": 4}}
    config = parse_config(tree)
    experiment, folder = make_experiment(config), RunFolder(root / "run")
    folder.claim(config, experiment.task.metadata)
    state = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, 0))()
    with Checkpoints(folder.checkpoints) as checkpoints:
        checkpoints.save(dataclasses.replace(state, step=jnp.int32(1)), {"loss": 1.0})
    return folder.path


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
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_cannot_be_is_refused_in_a_line(loaded, tmp_path, name):
    values, options, message = WRONG[name]
    with pytest.raises((ConfigError, DataError), match=message) as error:
        forecast(loaded, write(tmp_path / "new.csv", values, **options))
    assert "\n" not in str(error.value)
