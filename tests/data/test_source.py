import gzip

import numpy as np
import pytest

from flaxformer_lab.data.prepare import prepare
from flaxformer_lab.data.source import SPLITS, open_split
from flaxformer_lab.errors import DataError


@pytest.fixture(scope="module")
def tiny_root(tmp_path_factory):
    """A folder of TFDS in which every config of TinyShapes is prepared; not to be written."""
    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder))
        for config in ("train-validation-test", "train-test", "train-validation", "train", "test"):
            prepare(f"tiny_shapes/{config}")
    return folder


@pytest.fixture
def tiny(tiny_root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny_root))


def names(source):
    return [record["name"] for record in source.records()]


def test_any_data_set_is_read_as_it_was_written(tiny, tiny_example):
    source = open_split("tiny_shapes", "test")
    assert source.name == "tiny_shapes/train-validation-test/1.2.0 test" and len(source) == 40
    assert source.features == {
        "image": ((4, 5, 3), np.dtype(np.uint8)),
        "label": ((), np.dtype(np.int64)),
        "weights": ((2,), np.dtype(np.float32)),
    }
    assert source.num_classes("label") == 7
    indices = [int(name.split()[1]) for name in names(source)]
    assert sorted(indices) == list(range(200, 240))
    data = source.load()
    for row, (index, record) in enumerate(zip(indices, source.records(), strict=True)):
        expected = tiny_example(index)
        assert record["name"] == expected["name"]
        np.testing.assert_array_equal(record["corners"], expected["corners"])
        for feature in source.features:
            np.testing.assert_array_equal(data[feature][row], expected[feature])


def test_load_and_read_agree(tiny, monkeypatch):
    monkeypatch.setattr("flaxformer_lab.data.source._CHUNK", 7)
    source = open_split("tiny_shapes/train-test", "train")
    data = source.load()
    indices = np.array([3, 30, 0, 3, len(source) - 1])
    batch = source.read(indices)
    for feature, (shape, dtype) in source.features.items():
        assert batch[feature].shape == (5, *shape) and batch[feature].dtype == dtype == data[feature].dtype
        np.testing.assert_array_equal(batch[feature], data[feature][indices])
    assert source.num_bytes() == sum(array.nbytes for array in data.values())


def test_nothing_read_is_nothing(tiny):
    batch = open_split("tiny_shapes", "test").read(np.array([], np.int64))
    assert {name: array.shape for name, array in batch.items()} == {
        "image": (0, 4, 5, 3),
        "label": (0,),
        "weights": (0, 2),
    }


CAPACITY = {"corners": (4,), "objects/box": (3,), "objects/kind": (3,), "scan": (2, 5)}


def test_features_of_differing_size_are_padded_to_their_capacity(tiny, tiny_example):
    source = open_split("tiny_shapes", "test", CAPACITY)
    shapes = {"corners": (4,), "objects/box": (3, 2), "objects/kind": (3,), "scan": (2, 5, 1), "scan_shape": (2,)}
    features = source.features
    assert {name: features[name][0] for name in shapes} == shapes
    data, batch = source.load(), source.read(np.arange(40))
    assert data.keys() == batch.keys() == features.keys() and source.num_bytes() == sum(x.nbytes for x in data.values())
    sizes = set()
    for row, name in enumerate(names(source)):
        expected = tiny_example(int(name.split()[1]))
        objects, scan = expected["objects"], expected["scan"]
        wanted = {
            "corners": expected["corners"],
            "objects/box": np.array([each["box"] for each in objects]).reshape(-1, 2),
            "objects/kind": np.array([each["kind"] for each in objects]),
            "scan": scan,
        }
        for feature, values in wanted.items():
            padded = data[feature][row]
            np.testing.assert_array_equal(padded[tuple(map(slice, values.shape))], values)
            assert np.count_nonzero(padded) == np.count_nonzero(values)
        assert data["corners_shape"][row] == len(wanted["corners"]) and data["objects/box_shape"][row] == len(objects)
        assert tuple(data["scan_shape"][row]) == scan.shape[:2]
        sizes.add(scan.shape)
    assert len(sizes) > 5
    for name, array in data.items():
        np.testing.assert_array_equal(array, batch[name])


@pytest.mark.parametrize(
    ("capacity", "error"),
    [
        ({"corners": (1,)}, r"corners of example \d+ has the shape \(2,\), but there is room for \(1,\); raise"),
        (
            {"corners": (4, 4)},
            r"capacity corners=\(4, 4\) must have a positive size for each axis .* corners \(1 axes\)",
        ),
        ({"corners": (0,)}, r"capacity corners=\(0,\) must have a positive size"),
        ({"image": (9,)}, r"capacity image=\(9,\) .*; features with such axes: corners .*scan \(2 axes\)"),
    ],
)
def test_a_capacity_that_does_not_fit_is_refused(tiny, capacity, error):
    with pytest.raises(DataError, match=error):
        open_split("tiny_shapes", "test", capacity).load()


@pytest.mark.parametrize("indices", [[40], [-1], [0, 1000]])
def test_there_is_no_example_beyond_the_last(tiny, indices):
    with pytest.raises(IndexError, match="has 40 examples"):
        open_split("tiny_shapes", "test").read(np.array(indices))


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ("train-validation-test", (40, 40, 40)),
        ("train-test", (36, 4, 40)),
        ("train-validation", (36, 40, 4)),
        ("train", (32, 4, 4)),
    ],
)
def test_a_split_that_is_lacking_is_taken_from_train(tiny, config, sizes):
    splits = [names(open_split(f"tiny_shapes/{config}", split)) for split in SPLITS]
    assert tuple(map(len, splits)) == sizes
    together = [name for split in splits for name in split]
    assert len(set(together)) == len(together) == 40 * len(config.split("-"))


def test_train_cannot_be_taken_from_test(tiny):
    assert len(open_split("tiny_shapes/test", "test")) == 40
    for split in ("train", "validation"):
        with pytest.raises(DataError, match=f"has no split {split}.*it has test"):
            open_split("tiny_shapes/test", split)


def test_a_split_of_another_name_is_refused(tiny):
    with pytest.raises(DataError, match="split='dev' is not one of train, validation, test"):
        open_split("tiny_shapes", "dev")


def test_only_labels_have_classes(tiny):
    source = open_split("tiny_shapes", "test")
    for feature in ("image", "name", "colour"):
        with pytest.raises(DataError, match=f"no class label '{feature}'; it has .*label"):
            source.num_classes(feature)


def zero(content):
    return bytes(len(content))


def half(content):
    return content[: len(content) // 2]


def flip_first_third(content):
    place = len(content) // 3
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.parametrize("change", [zero, half, flip_first_third, lambda content: b"", None])
def test_damaged_records_are_told_and_never_read(empty_cache, change):
    prepare("tiny_shapes")
    before = open_split("tiny_shapes", "train").load()
    (path,) = (empty_cache.parent / "tfds").rglob("*-train.array_record*")
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    try:
        after = open_split("tiny_shapes", "train").load()
    except DataError as error:
        assert "delete that folder" in str(error) and str(path.parent) in str(error)
        assert error.__cause__ is not None
    else:  # array_record files are filled up with zeros, which may change.
        for name in before:
            np.testing.assert_array_equal(after[name], before[name])


def test_records_that_are_fewer_than_they_were_are_told(empty_cache):
    folder = prepare("tiny_shapes").data_path
    text = (folder / "dataset_info.json").read_text()
    (folder / "dataset_info.json").write_text(text.replace('"40"', '"39"', 1))
    with pytest.raises(DataError, match="has 40 examples, not 39"):
        open_split("tiny_shapes", "train")


def test_too_few_examples_to_share_are_told(tiny, monkeypatch):
    monkeypatch.setattr("flaxformer_lab.data.source._part", lambda split, stored: "train[99%:]")
    with pytest.raises(DataError, match=r"too few examples to take train\[99%:\]"):
        open_split("tiny_shapes/train", "test")


@pytest.mark.slow
def test_fashion_mnist_is_built_by_its_own_builder(fashion_mnist_folder, fashion_mnist_files, no_network, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(fashion_mnist_folder))
    sources = {split: open_split("fashion_mnist", split) for split in SPLITS}
    assert {split: len(source) for split, source in sources.items()} == {
        "train": 54_000,
        "validation": 6_000,
        "test": 10_000,
    }
    assert sources["test"].num_classes("label") == 10
    # The order is TFDS's own, so the two are compared as sets of images with their labels.
    with gzip.open(fashion_mnist_files / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read()[16:], np.uint8).reshape(10_000, 784)
    with gzip.open(fashion_mnist_files / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read()[8:], np.uint8)
    data = sources["test"].load()
    found = sorted(zip(map(bytes, data["image"]), data["label"].tolist(), strict=True))
    assert found == sorted(zip(map(bytes, images), labels.tolist(), strict=True))
