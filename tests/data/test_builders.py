import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine

from flaxformer_lab import registry
from flaxformer_lab.data import builders
from flaxformer_lab.data.prepare import prepare
from flaxformer_lab.data.source import SPLITS, open_split
from flaxformer_lab.errors import DataError


def as_rows(images, labels):
    """Each image and its label as one sorted list of bytes, so that sets can be compared in any order."""
    return sorted(bytes(image) + bytes([label]) for image, label in zip(images, labels, strict=True))


def test_digits_are_those_of_sklearn(prepared_cache):
    original = load_digits()
    splits = [open_split("lab_digits", split).load() for split in SPLITS]
    assert [len(split["label"]) for split in splits] == [1197, 300, 300]
    images = np.concatenate([split["image"] for split in splits])
    labels = np.concatenate([split["label"] for split in splits])
    assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8 and images.max() == 255
    levels = (16 * images.astype(np.int64) + 127) // 255
    assert as_rows(levels.astype(np.uint8), labels) == as_rows(original.images.astype(np.uint8), original.target)


def test_pixels_are_scaled_to_the_nearest_integer_and_back():
    levels = np.arange(17, dtype=np.uint8)
    pixels = builders.scale_pixels(levels)
    np.testing.assert_array_equal(pixels, np.floor(levels.astype(float) * 255 / 16 + 0.5))
    np.testing.assert_array_equal((16 * pixels.astype(int) + 127) // 255, levels)


def test_every_digit_is_in_every_split(prepared_cache):
    for split in SPLITS:
        counts = np.bincount(open_split("lab_digits", split).load()["label"], minlength=10)
        assert counts.min() > 0.07 * counts.sum()


def test_the_split_of_the_digits_never_changes(prepared_cache):
    digests = {
        split: hashlib.sha256("".join(as_text(open_split("lab_digits", split))).encode()).hexdigest()[:12]
        for split in SPLITS
    }
    assert digests == {"train": "ac1eca206e58", "validation": "0160838bb56a", "test": "62cdcd3efa16"}


def as_text(source):
    data = source.load()
    return sorted(f"{label}{image.tolist()}" for image, label in zip(data["image"], data["label"], strict=True))


@pytest.mark.parametrize(("dataset", "load"), [("lab_wine", load_wine), ("lab_breast_cancer", load_breast_cancer)])
def test_tables_are_those_of_sklearn(prepared_cache, dataset, load):
    columns, labels = load(return_X_y=True)
    splits = [open_split(dataset, split).load() for split in SPLITS]
    assert len(splits[1]["label"]) == len(splits[2]["label"]) == len(labels) // 5
    found = np.concatenate([np.column_stack([split["columns"], split["label"]]) for split in splits])
    expected = np.column_stack([columns, labels]).astype(np.float32)
    np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])
    for split in splits:
        assert len(np.unique(split["label"])) == len(np.unique(labels))


def test_diabetes_is_that_of_sklearn(prepared_cache):
    columns, targets = load_diabetes(return_X_y=True, scaled=False)
    splits = [open_split("lab_diabetes", split).load() for split in SPLITS]
    assert [len(split["target"]) for split in splits] == [266, 88, 88]
    found = np.concatenate([np.column_stack([split["columns"], split["target"]]) for split in splits])
    expected = np.column_stack([columns, targets]).astype(np.float32)
    np.testing.assert_array_equal(found[np.lexsort(found.T)], expected[np.lexsort(expected.T)])


def test_speeches_are_split_by_year_and_whole(prepared_cache):
    splits = {split: list(open_split("lab_speeches", split).records()) for split in SPLITS}
    years = {split: [record["year"] for record in records] for split, records in splits.items()}
    assert (min(years["train"]), max(years["train"])) == (1790, 1999)
    assert (min(years["validation"]), max(years["validation"])) == (2000, 2010)
    assert (min(years["test"]), max(years["test"])) == (2011, 2021)
    assert all(list(years[split]) == sorted(years[split]) for split in SPLITS)
    records = [record for split in SPLITS for record in splits[split]]
    text = "".join(record["text"] for record in records)
    assert len(records) == 233 and len(text) == 10_760_042 and len(set(text)) == 98
    assert records[0]["speaker"] == "George Washington" and records[0]["party"] == "none"
    assert records[0]["text"].startswith("Fellow-Citizens of the Senate and House of Representatives")


@pytest.mark.parametrize("dataset", registry.names("dataset"))
def test_builders_say_what_they_are(prepared_cache, dataset):
    info = prepare(dataset).info
    assert info.description and "@misc" in info.citation and info.redistribution_info.license
    assert str(info.version) == "1.0.0" and info.release_notes["1.0.0"]


@pytest.fixture
def embedded_copy(tmp_path, monkeypatch):
    for path in builders.EMBEDDED.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(builders, "EMBEDDED", tmp_path)
    return tmp_path


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[:40])


def delete(path):
    path.unlink()


def forget(path):
    path.write_text(path.read_text().replace("digits.npz", "digits.zip"))


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        *((damage, "digits.npz") for damage in (flip, cut, delete)),
        *((damage, builders.CHECKSUMS) for damage in (forget, cut, delete)),
    ],
)
def test_a_damaged_embedded_file_is_refused(embedded_copy, damage, name):
    damage(embedded_copy / name)
    with pytest.raises(DataError, match=r"digits.npz .*install flaxformer_lab again"):
        builders.read_embedded("digits.npz")


def test_building_from_a_damaged_embedded_file_is_refused(embedded_copy, empty_cache, capsys):
    flip(embedded_copy / "speeches_1900_1999.jsonl.bz2")
    with pytest.raises(DataError, match=r"speeches_1900_1999.jsonl.bz2 has sha256"):
        prepare("lab_speeches")
    prepare("lab_digits")
