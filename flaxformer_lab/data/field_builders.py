"""Records of categories that ship with the lab: neither TensorFlow nor a network is needed."""

from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow_datasets as tfds

from flaxformer_lab.data.builders import split_at_random
from flaxformer_lab.data.own.columns import Kind, Table
from flaxformer_lab.data.own.contents import SPLITS
from flaxformer_lab.data.table_builders import LabFlights, Rows
from flaxformer_lab.registry import register

GROUP = "group"  # which rows belong together
QUARTER = 15  # minutes


@register("dataset", "lab_flight_fields")
class LabFlightFields(LabFlights):
    """The flights of `lab_flights` by ten categories, of which seven have tens and three thousands of levels.

    `by_day` divides days as `lab_flights` does; `by_rows` flights at random, so that a test flight's day has been seen.
    `group` is the day: the unit of the split, and of the bootstrap.
    """

    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="by_day", description="Whole days are divided."),
        tfds.core.BuilderConfig(name="by_rows", description="Flights are divided at random."),
    ]
    KINDS: Mapping[str, Kind] = dict.fromkeys(
        (*("carrier", "flight", "tailnum", "origin", "dest", "month", "day", "weekday", "hour", "departure"),),
        "category",
    )

    def _table_info(self, **about: str) -> tfds.core.DatasetInfo:
        features = {name: each for name, each in super()._table_info(**about).features.items() if name != "columns"}
        features[GROUP] = tfds.features.Tensor(shape=(None,), dtype=np.int32)
        described = {"features": tfds.features.FeaturesDict(features), "metadata": tfds.core.MetadataDict()}
        return tfds.core.DatasetInfo(builder=self, disable_shuffling=True, **described, **about)

    def _generate_examples(self, values: Mapping[str, np.ndarray], rows: np.ndarray) -> Iterator:
        dates = zip(*(map(int, self._table().columns[name]) for name in ("month", "day")), strict=True)
        days = np.array([100 * month + day for month, day in dates], np.int32)
        kept = {name: array for name, array in values.items() if name != "columns"}
        yield from super()._generate_examples(kept | {GROUP: days}, rows)

    def _table(self) -> Table:
        """With the hour of the scheduled departure, and its quarter."""
        table = super()._table()
        times = [divmod(int(text), 100) for text in table.columns["sched_dep_time"]]
        own = {
            "hour": [str(hour) for hour, _ in times],
            "departure": [f"{hour}:{minute // QUARTER * QUARTER:02}" for hour, minute in times],
        }
        return Table(table.path, table.columns | own, table.lines)

    def _rows(self, table: Table) -> Rows:
        if self.builder_config.name == "by_day":
            return super()._rows(table)
        fifth = len(table) // 5
        return split_at_random(len(table), dict(zip(SPLITS, (len(table) - 2 * fifth, fifth, fifth), strict=True)))
