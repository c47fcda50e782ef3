import numpy as np
import pytest

from flaxformer_lab.data.own import columns
from flaxformer_lab.data.series import read_series
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.task_config import ForecastingConfig
from flaxformer_lab.tasks import make_task


@pytest.fixture
def write(tmp_path):
    def to_file(*lines, options=""):
        path = tmp_path / "own.csv"
        path.write_text("\n".join(lines) + "\n")
        return f"csv:{path}{options}"

    return to_file


def hours(*rows, header="when,load,wind,place"):
    return [header, *(f"2024-03-31 {hour:02}:00,{load},{wind},north" for hour, load, wind in rows)]


def test_rows_lie_on_an_even_grid_and_a_gap_is_named(write):
    lines = hours((0, 1, 2.5), (1, "", 3), (2, 2, 4), (6, 3, 5), (5, 4, 6), (7, 5, 6.5), (8, 6, 7), (9, 7, 8))
    series = read_series(write(*lines))
    assert series.channels == ("load", "wind") and series.step == 3600
    nan = np.nan
    np.testing.assert_array_equal(series.values[:, 0], np.float32([1, nan, 2, nan, nan, 4, 3, 5, 6, 7]))
    np.testing.assert_array_equal(series.values[:, 1], np.float32([2.5, 3, 4, nan, nan, 6, 5, 6.5, 7, 8]))
    ends = [str(np.datetime64(int(each), "s")) for each in series.time[[0, -1]]]
    assert ends == ["2024-03-31T00:00:00", "2024-03-31T09:00:00"]
    assert series.borders == {"train": (0, 6), "validation": (6, 8), "test": (8, 10)}
    notes = " ".join(series.notes)
    assert "2 rows are missing, in 1 gaps, the first after 2024-03-31T02:00:00" in notes and "place" in notes


def test_shares_of_the_splits_are_in_time_order(write):
    lines = hours(*((hour, hour % 5, hour % 3) for hour in range(10)))
    series = read_series(write(*lines, options="?split=share:50,10,40&drop=place"))
    assert series.borders == {"train": (0, 5), "validation": (5, 6), "test": (6, 10)} and not series.notes


DAYS = [f"2024-03-{day:02}" for day in range(1, 6)]
UNEVEN = [f"2024-03-31 {at},{at[1]}" for at in ("00:00", "01:00", "02:00", "02:30", "03:00", "04:00", "05:00")]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            hours((0, 1, 2), (1, 2, 3), (1, 2, 4)),
            r"own.csv, line 4, column when: the same time as in line 3; each row needs its own: keep one",
        ),
        (["when,load", *UNEVEN], r"line 5, column when: time is not even: most rows are 3,600 seconds apart"),
        (["when,load", f"{DAYS[0]},1", ",2", f"{DAYS[2]},3"], r"line 3, column when: it has no value"),
        (["load,wind", "1,2", "3,4", "4,6"], r"no column of dates, which a series must have; it has load, wind"),
        (
            ["a,b,load", *(f"{day},{day},{day[-1]}" for day in DAYS)],
            r"columns of dates, a, b; name the time with \?dates",
        ),
        (["when,name", *(f"{day},north {day[-1]}" for day in DAYS)], r"has no channel: no column besides when"),
        (
            ["when,load", *(f"2024-03-01 {hour:02},{hour}" for hour in range(24))],
            r"no channel: .*; load is left out: it counts the rows",
        ),
        (["when,load", *(f"2024-{month:02}-01,{month % 3}" for month in range(1, 9))], r"months differ in length"),
        (
            ["when,load", *(f"2024-03-01 00:00:00.{tenth},{tenth % 3}" for tenth in range(5))],
            r"line 3, column when: the same second as in line 2; times are rounded to whole seconds; resample",
        ),
        (
            ["when,load", *(f"2024-03-01 00:00:{2.5 * row:04.1f},{row % 3}" for row in range(9))],
            r"time is not even: .*; times are rounded to whole seconds; resample the file to steps of whole seconds",
        ),
        (
            hours((0, 1, 2.5), (1, "1e39", 3), (2, 2, 4)),
            r"line 3, column load: 1e\+39 is beyond float32; divide the column by a power of ten",
        ),
    ],
)
def test_a_file_that_is_no_series_is_told(write, lines, message):
    with pytest.raises(DataError, match=message):
        read_series(write(*lines))


def test_a_list_in_parquet_is_no_channel(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    stored = {"tags": [["a"], [], None, ["b"]], "when": DAYS[:4], "load": [1.0, 2.5, 0.0, 3.0]}
    parquet.write_table(pyarrow.table(stored), tmp_path / "own.parquet")
    series = read_series(f"parquet:{tmp_path}/own.parquet")
    assert series.channels == ("load",) and series.notes == ("tags is left out: its values are list",)


def test_the_time_is_found_in_a_pass_over_the_columns(write, monkeypatch):
    """Not in one for each of them: twice the columns are twice the values to read."""
    read, counts = columns.parse_number, []
    monkeypatch.setattr(columns, "parse_number", lambda *arguments: counts.append(None) or read(*arguments))
    found = []
    for channels in (10, 20):
        names = ",".join(f"c{channel}" for channel in range(channels))
        rows = [
            f"{day},{','.join(str(channel + place) for channel in range(channels))}" for place, day in enumerate(DAYS)
        ]
        counts.clear()
        read_series(write(f"when,{names}", *rows))
        found.append(len(counts))
    assert found[1] < 2.5 * found[0]


def test_options_of_other_tasks_are_refused(write):
    with pytest.raises(ConfigError, match=r"forecasting has no use for target=; task.targets and task.inputs name"):
        read_series(write(*hours((0, 1, 2)), options="?target=load"))


def test_a_task_says_when_its_file_changed(write, capsys):
    lines = hours(*((hour, hour % 5, hour % 3) for hour in range(24)))
    config = ForecastingConfig(dataset=write(*lines), lookback=2, horizon=1)
    metadata = make_task(config).metadata
    series = make_task(config, metadata).examples("test").load()["series"]
    assert not capsys.readouterr().err
    write(*lines[:-1], "2024-03-31 23:00,9,9,north")
    make_task(config, metadata).examples("test")
    assert "the files changed since this run began" in capsys.readouterr().err
    added = [f"{line},{place % 4}" for place, line in enumerate(lines)]
    added[0] = "when,load,wind,place,added"
    write(*(",".join(np.array(line.split(","))[[0, 4, 2, 1, 3]]) for line in added))
    # A column more, and two in another order: channels are found by name.
    np.testing.assert_array_equal(make_task(config, metadata).examples("test").load()["series"], series)
    write(*(line.replace("wind", "gusts") for line in lines))
    with pytest.raises(DataError, match="has no channel wind, which this run was trained with; restore the file"):
        make_task(config, metadata).examples("test")
    write(*lines[:-1], "2024-03-31 23:00,9,9,north")
    assert make_task(config).metadata["content"] != metadata["content"]
