"""`coco:FOLDER`: what is read is what the JSON says, and what cannot be used is named in one line."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from flaxformer_lab import registry
from flaxformer_lab.config import parse_config
from flaxformer_lab.data.own.address import parse_address
from flaxformer_lab.data.own.coco import read
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.tasks import make_task

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]


def tree(images=10):
    """Images of 16 x 8 pixels; number n has n % 3 objects."""
    found = {"images": [], "annotations": [], "categories": list(CATEGORIES)}
    for number in range(images):
        found["images"].append({"id": number + 100, "file_name": f"{number}.png", "width": 16, "height": 8})
        for place in range(number % 3):
            box = {"image_id": number + 100, "category_id": (7, 3)[place], "bbox": [place, 1, 4 + number % 2, 5.5]}
            found["annotations"].append(box | {"id": len(found["annotations"]), "iscrowd": int(number == 5 and place)})
    return found


def folder(root, described=None, images=10, name="all.json"):
    root.mkdir(exist_ok=True)
    for number in range(images):
        pixels = np.full((8, 16, 3) if number == 1 else (8, 16), 10 * number, np.uint8)
        if number == 1:
            pixels[0, 0, 0] = 99  # coloured
        Image.fromarray(pixels).save(root / f"{number}.png")
    (root / name).write_text(json.dumps(tree(images) if described is None else described))
    return f"coco:{root}"


def test_examples_have_the_images_boxes_and_categories(tmp_path, capsys):
    contents = read(parse_address(folder(tmp_path / "a")))
    assert "4 of 10 images have no object" in capsys.readouterr().err
    assert contents.features["objects"].feature["label"].names == ["cat", "dog"]
    examples = {e["file"]: e for split in ("train", "validation", "test") for e in contents.splits[split]()}
    assert sorted(examples) == [f"{number}.png" for number in range(10)]
    assert [len(examples[f"{number}.png"]["objects"]) for number in range(10)] == [number % 3 for number in range(10)]
    last = examples["5.png"]["objects"][1]
    np.testing.assert_allclose(last["bbox"], [1 / 8, 1 / 16, 6.5 / 8, 6 / 16])
    assert last["label"] == 1 and last["is_crowd"] and not examples["5.png"]["objects"][0]["is_crowd"]
    assert examples["4.png"]["image"].shape == (8, 16, 3) and (examples["4.png"]["image"] == 40).all()


def test_files_of_splits_keep_them(tmp_path):
    root = tmp_path / "a"
    folder(root, name="train.json")
    half = tree(10) | {"images": tree(10)["images"][:4], "annotations": tree(10)["annotations"][:2]}
    (root / "val.json").write_text(json.dumps(half))
    contents = read(parse_address(f"coco:{root}"))
    assert len(list(contents.splits["validation"]())) == 4 and len(list(contents.splits["train"]())) == 8
    (root / "val.json").write_text(json.dumps(half | {"categories": CATEGORIES[:1], "annotations": []}))
    with pytest.raises(DataError, match="has other categories than"):
        read(parse_address(f"coco:{root}"))


@pytest.mark.parametrize(("names", "split"), [(("val", "validation"), "validation"), (("train", "training"), "train")])
def test_two_files_of_one_split_are_refused(tmp_path, names, split):
    """Otherwise one of them would be left out without a word."""
    root = tmp_path / "a"
    for name in {"train", *names}:
        folder(root, name=f"{name}.json")
    with pytest.raises(DataError, match=f"{names[0]}.json and {names[1]}.json are both {split}; keep one"):
        read(parse_address(f"coco:{root}"))


def test_a_category_has_one_number_in_all_files_whatever_their_order(tmp_path):
    root = tmp_path / "a"
    folder(root, name="train.json")
    (root / "val.json").write_text(json.dumps(tree(10) | {"categories": CATEGORIES[::-1]}))
    splits = read(parse_address(f"coco:{root}")).splits
    shown = {
        split: {each["file"]: [one["label"] for one in each["objects"]] for each in splits[split]()} for split in splits
    }
    assert shown["validation"]["2.png"] == [0, 1]  # cat, dog
    assert all(shown["validation"][file] == labels for file, labels in shown["train"].items())


def changed(key, place, **values):
    found = tree()
    found[key][place] = found[key][place] | values
    return found


WRONG = {
    "zero area": (changed("annotations", 1, bbox=[1, 1, 0, 4]), r"annotation 1: bbox \[1, 1, 0, 4\] has no area"),
    "negative": (changed("annotations", 0, bbox=[1, 1, -3, 4]), "has no area; correct it, or take the annotation out"),
    "outside": (changed("annotations", 2, bbox=[14, 1, 9, 4]), "outside of its image of 16 x 8 pixels"),
    "not a number": (changed("annotations", 2, bbox=[1, 1, float("nan"), 4]), "is not four finite numbers"),
    "short": (changed("annotations", 2, bbox=[1, 1, 4]), "is not four finite numbers"),
    "category": (changed("annotations", 2, category_id=9), "category_id 9, which no category has; there are 7, 3"),
    "image": (changed("annotations", 2, image_id=9), "image_id 9, which no image has"),
    "ids": (changed("images", 2, id=100), "two of the 10 image entries have one id"),
    "size": (changed("images", 2, width=15), "is said to have 15 x 8 pixels and has 16 x 8"),
    "file": (changed("images", 2, file_name="no.png"), "no.png is in none of"),
    "no name": ({**tree(), "images": [{"id": 1}]}, "all.json: an image has no file_name that can be used: {'id': 1};"),
    "null": (changed("images", 2, file_name=None), "an image has no file_name that can be used: {'id': 102, 'file"),
    "text": (changed("annotations", 2, image_id="102"), "annotation 2 is of image_id '102', which no image has"),
    "list": (changed("annotations", 2, category_id=[7]), "annotation 2 has no category_id that can be used"),
    "number": ({**tree(), "annotations": [7]}, "annotation number 1 has no image_id and no category_id .*: 7; corr"),
    "nameless": ({**tree(), "categories": [{"id": 7}]}, "a category has no name that can be used: {'id': 7}; correct"),
    "namesakes": (changed("categories", 1, name="cat"), "all.json: the categories of id 7, 3 are all called cat; give"),
    "no list": ({"images": [], "categories": []}, "has no list 'annotations'"),
    "nothing": ({**tree(), "annotations": []}, "has no object in any image"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used_is_named_in_one_line(tmp_path, case):
    described, expected = WRONG[case]
    contents = lambda: read(parse_address(folder(tmp_path / "a", described)))  # noqa: E731
    with pytest.raises(DataError, match=expected) as caught:
        for examples in contents().splits.values():
            list(examples())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("orientation", "sides", "refused"),
    [(1, (8, 8), False), (6, (8, 8), True), (3, (16, 8), True), (6, (8, 16), False)],
)
def test_an_image_that_is_turned_must_say_by_its_size_what_its_boxes_are_of(tmp_path, orientation, sides, refused):
    described = tree()
    shown = sides[::-1] if orientation == 6 else sides  # 6: turned by 90 degrees
    described["images"][5] |= dict(zip(("width", "height"), shown, strict=True))
    dataset = folder(tmp_path / "a", described)
    turned = Image.Exif()
    turned[0x0112] = orientation
    Image.new("L", sides).save(tmp_path / "a" / "5.png", exif=turned)
    message = r"all\.json: EXIF data of 5\.png turn or mirror it, .*; take the orientation out if before"
    with pytest.raises(DataError, match=message) if refused else contextlib.nullcontext():
        read(parse_address(dataset))


def test_folders_without_a_description_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"has no \.json; put one \.json"):
        read(parse_address(f"coco:{tmp_path}"))
    (tmp_path / "all.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        read(parse_address(f"coco:{tmp_path}"))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(DataError, match=r"all\.json is no split"):
        read(parse_address(f"coco:{tmp_path}"))


# ----------------------------------------------------------------------------------------------------- the task


def task(dataset, **knobs):
    knobs = {"image_size": (16, 32), "capacity": 4, "queries": 4} | knobs
    return make_task(parse_config({"task": {"name": "detection", "dataset": dataset, **knobs}}).task)


@pytest.mark.filterwarnings("ignore")
def test_the_task_pads_objects_and_sets_crowds_aside(tmp_path):
    found = task(folder(tmp_path / "a", tree(20), 20), capacity=2, queries=2)
    assert found.metadata["image_shape"] == [16, 32, 3] and found.class_names() == ["cat", "dog"]
    source = found.examples("train")
    stored = source.read(np.arange(source.number))
    stored = jax.tree.map(jnp.asarray, stored | {"example_weight": np.ones(source.number)})
    batch = found.prepare(stored, None, training=True)
    assert batch["inputs"].shape == (source.number, 16, 32, 3)
    counts = np.asarray(batch["kind"] > 0).sum(axis=1)
    assert set(counts) == {0, 1, 2} and np.array_equal(batch["kind"] == 1, batch["objects"].valid)
    shown = np.asarray(batch["objects"].boxes)[counts > 0, 0]
    np.testing.assert_allclose(shown[:, 1], 1 / 8)
    np.testing.assert_allclose(shown[:, 0], 0)


def test_an_image_has_its_file_and_size_from_before_it_was_stretched(tmp_path):
    dataset = folder(tmp_path / "a", tree(20), 20)
    files = [example["file"] for example in read(parse_address(dataset)).splits["test"]()]
    assert task(dataset).originals("test", 3) == [(file, (8, 16)) for file in files[:3]]


def test_more_objects_than_there_is_room_for_are_refused(tmp_path):
    dataset = folder(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"task.capacity=1: \d.png has 2 objects; set task.capacity=2"):
        task(dataset, capacity=1)
    with pytest.raises(ConfigError, match=r"task\.queries=2 cannot find 4 objects"):
        task(dataset, queries=2)
    with pytest.raises(ConfigError, match="15 is no multiple of 8, the stride of the convolutions; choose 16"):
        task(dataset, image_size=(16, 15))


def test_a_run_refuses_other_categories(tmp_path):
    found = task(folder(tmp_path / "a"))
    swapped = tree() | {"categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]}
    folder(tmp_path / "a", swapped)
    with pytest.raises(DataError, match="its classes are in another order now; restore them, or begin a new run"):
        make_task(found._config, found.metadata).examples("test")


def test_a_data_set_without_boxes_is_refused():
    with pytest.raises(ConfigError, match="lab_digits has no objects/bbox, which detection needs; it has image, label"):
        task("lab_digits")


# ------------------------------------------------------------------------------------- a data set as TFDS has VOC


FLAT = {
    "label": 0,
    "bbox": tfds.features.BBox(ymin=0.1, xmin=0.2, ymax=0.1, xmax=0.3),
    "pose": 0,
    "is_truncated": False,
    "is_difficult": False,
}


class LikeVOC(tfds.core.GeneratorBasedBuilder):
    """The features of tensorflow-datasets' voc, with images of two sizes; example n has n % 3 objects, 3 a flat one."""

    name = "like_voc"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/filename": tfds.features.Text(),
            "objects": tfds.features.Sequence(
                {
                    "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                    "bbox": tfds.features.BBoxFeature(),
                    "pose": tfds.features.ClassLabel(names=["left", "right"]),
                    "is_truncated": np.bool_,
                    "is_difficult": np.bool_,
                }
            ),
            "labels": tfds.features.Sequence(tfds.features.ClassLabel(names=["cat", "dog"])),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples() for split in ("train", "validation", "test")}

    def _generate_examples(self):
        for number in range(6):
            found = [
                {
                    "label": place,
                    "bbox": tfds.features.BBox(ymin=0.1, xmin=0.2, ymax=0.5, xmax=0.3 + place / 4),
                    "pose": 0,
                    "is_truncated": False,
                    "is_difficult": place == 1,
                }
                for place in range(number % 3)
            ]
            if number == 3:  # a box without area
                found = [FLAT]
            image = np.full((8 + number, 12, 3), 20 * number, np.uint8)
            yield number, {"image": image, "image/filename": f"{number}.jpg", "objects": found, "labels": [0]}


def test_a_data_set_like_voc_is_read_by_the_same_task(own_parts, monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    registry.register("dataset", "like_voc")(LikeVOC)
    found = task("like_voc", capacity=2, queries=2)
    source = found.examples("test")
    stored = jax.tree.map(jnp.asarray, source.read(np.arange(6)) | {"example_weight": np.ones(6)})
    batch = found.prepare(stored, None, training=False)
    kinds = np.asarray(batch["kind"])
    # A difficult one is set aside, and so is one without area.
    assert sorted(kinds.tolist()) == sorted([[0, 0], [1, 0], [1, 2], [2, 0], [1, 0], [1, 2]])
    assert ["boxes without area", "neither learned nor counted"] in found.facts()
    np.testing.assert_allclose(
        np.asarray(batch["objects"].boxes)[kinds[:, 0] == 1, 0], [[0.2, 0.1, 0.3, 0.5]] * 4, rtol=1e-5
    )
    assert sorted(found.originals("test", 9)) == [(f"{number}.jpg", (8 + number, 12)) for number in range(6)]
    assert not np.asarray(batch["objects"].valid)[:, 1].any() and batch["inputs"].shape == (6, 16, 32, 3)
    with pytest.raises(DataError, match="there is room for"):
        make_task(found._config.__class__(dataset="like_voc", capacity=1), found.metadata).examples("test").read(
            np.arange(6)
        )
