import bz2

import numpy as np
import pytest

from flaxformer_lab.data import series_builders
from flaxformer_lab.data.builders import read_embedded
from flaxformer_lab.data.series import calendar_marks, even_step, fill_forward, interpolate, mark_names, read_series
from flaxformer_lab.errors import DataError

SHAPES = {  # rows, channels, missing values, seconds of a step, first and last row
    "lab_beijing_air": (43_824, 7, 2_067, 3600, "2010-01-01T00:00:00", "2014-12-31T23:00:00"),
    "lab_appliances": (19_735, 26, 0, 600, "2016-01-11T17:00:00", "2016-05-27T18:00:00"),
    "lab_nyc_weather": (8_730, 18, 3_187, 3600, "2013-01-01T06:00:00", "2013-12-30T23:00:00"),
}


@pytest.mark.parametrize("dataset", SHAPES)
def test_a_series_is_whole_and_split_in_the_order_of_time(prepared_cache, dataset):
    rows, channels, missing, step, first, last = SHAPES[dataset]
    series = read_series(dataset)
    assert series.values.shape == (rows, channels) and len(series.channels) == channels
    assert np.isnan(series.values).sum() == missing and series.step == step
    assert [str(np.datetime64(int(each), "s")) for each in series.time[[0, -1]]] == [first, last]
    ends = [int(0.6 * rows), int(0.8 * rows), rows]
    assert series.borders == dict(
        zip(("train", "validation", "test"), zip([0, *ends], ends, strict=False), strict=True)
    )


def test_beijing_lacks_nothing_but_fine_dust(prepared_cache):
    series = read_series("lab_beijing_air")
    assert np.isnan(series.values).sum(axis=0).tolist() == [2_067, 0, 0, 0, 0, 0, 0]
    assert series.channels == ("pm2.5", "DEWP", "TEMP", "PRES", "Iws", "Is", "Ir")
    assert np.isnan(series.values[:24, 0]).all() and series.values[24, 0] == 129
    np.testing.assert_array_equal(series.values[0, 1:], np.float32([-21, -11, 1021, 1.79, 0, 0]))


def test_appliances_have_no_random_columns(prepared_cache):
    series = read_series("lab_appliances")
    assert not {"rv1", "rv2"} & set(series.channels)
    np.testing.assert_array_equal(
        series.values[0, [0, 1, 2, 3, 20, 25]], np.float32([60, 30, 19.89, 47.59667, 6.6, 5.3])
    )


def test_new_yorks_weather_lies_on_the_hours_of_one_year(prepared_cache):
    """Every row of the source is in its hour and place; nothing else is filled, and one wind is impossible."""
    table = series_builders.parse_table(bz2.decompress(read_embedded("nyc_weather.csv.bz2")).decode())
    assert len(table["origin"]) == 26_115 and (series_builders.numbers(table["wind_speed"]) > 200).sum() == 1
    series = read_series("lab_nyc_weather")
    place, hour = 11_111, np.datetime64(table["time_hour"][11_111].removesuffix("Z"), "s").astype(np.int64)
    row = int(np.flatnonzero(series.time == hour)[0])
    column = series.channels.index(f"{table['origin'][place]}_temp")
    assert series.values[row, column] == np.float32(table["temp"][place])
    wind = [number for number, name in enumerate(series.channels) if "wind" in name]
    assert np.nanmax(series.values[:, wind]) < 200
    visibility = [number for number, name in enumerate(series.channels) if "visib" in name]  # which no row lacks
    assert np.isnan(series.values[:, visibility]).sum() == 3 * 8_730 - 26_115


def test_gaps_are_filled_from_the_past_or_along_a_line():
    nan = np.nan
    values = np.array([[nan, 1], [2, nan], [nan, nan], [8, 4]], np.float32)
    np.testing.assert_array_equal(fill_forward(values), np.float32([[2, 1], [2, 1], [2, 1], [8, 4]]))
    np.testing.assert_array_equal(interpolate(values), np.float32([[2, 1], [2, 2], [5, 3], [8, 4]]))


@pytest.mark.parametrize(
    ("time", "step", "expected"),
    [
        ("2016-02-29T23:50:00", 600, {"minute": 50 / 59, "hour": 1, "weekday": 0, "day": 28 / 30, "month": 1 / 11}),
        ("2014-12-28T00:00:00", 3600, {"hour": 0, "weekday": 1, "day": 27 / 30, "month": 1}),
        ("1970-01-01T00:00:00", 86400, {"weekday": 3 / 6, "day": 0, "month": 0}),
        ("1969-07-20T20:17:40", 3600, {"hour": 20 / 23, "weekday": 1, "day": 19 / 30, "month": 6 / 11}),
    ],
)
def test_marks_are_those_of_the_calendar(time, step, expected):
    marks = calendar_marks(np.array([np.datetime64(time, "s").astype(np.int64)]), step)
    assert mark_names(step) == tuple(expected)
    np.testing.assert_allclose(marks[0], np.array(list(expected.values())) - 0.5, atol=1e-6)


def write_ett(path, rows, *, step=900, skip=None, text=None):
    times = np.datetime64("2016-07-01T00:00:00", "s") + np.arange(rows) * step
    lines = [f"{str(time).replace('T', ' ')},{number},{number % 7}" for number, time in enumerate(times)]
    if skip:
        del lines[skip]
    path.write_text(text or "\n".join(["date,HUFL,OT", *lines]) + "\n")
    return f"ett:{path}"


def test_an_ett_file_has_its_published_borders(tmp_path):
    series = read_series(write_ett(tmp_path / "ETTm1.csv", 69_680))
    assert series.channels == ("HUFL", "OT") and series.step == 900
    assert series.borders == {"train": (0, 34_560), "validation": (34_560, 46_080), "test": (46_080, 57_600)}
    series = read_series(write_ett(tmp_path / "ETTh1.csv", 17_420, step=3600))
    assert series.borders == {"train": (0, 8_640), "validation": (8_640, 11_520), "test": (11_520, 14_400)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 100}, r"100 rows are less than the 20 months of 30 days, 57,600 rows"),
        (
            {"rows": 60_000, "skip": 7},
            r"1 of 59,998 steps are not 900 seconds, first from row 6 \(2016-07-01T01:30:00\)",
        ),
        (
            {"rows": 0, "text": "date,OT\n2016-07-01 00:00:00,high\n"},
            r"cannot be read \(could not convert.*an ETT file is",
        ),
        ({"rows": 0, "text": "date,OT\n2016-07-01 00:00:00\n"}, "cannot be read"),
    ],
)
def test_a_file_that_is_no_ett_file_is_told(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        read_series(write_ett(tmp_path / "ETTm1.csv", **options))


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match=r"task.dataset=ett:\S*none.csv cannot be read"):
        read_series(f"ett:{tmp_path}/none.csv")


def test_a_data_set_that_is_no_series_is_told(prepared_cache):
    with pytest.raises(DataError, match=r"lab_wine is no series: it has columns, label.*like lab_beijing_air"):
        read_series("lab_wine")


def test_time_that_goes_backwards_is_told():
    with pytest.raises(DataError, match="time is not even"):
        even_step("series", np.array([3, 2, 1]))
