"""`images:FOLDER`, and images of any size, depth and colour as the task takes them."""

import struct
import zlib

import jax
import numpy as np
import pytest
from PIL import Image

from flaxformer_lab.config import parse_config
from flaxformer_lab.data.image_files import read_image, resize_image
from flaxformer_lab.data.prepare import prepare
from flaxformer_lab.data.source import SPLITS, open_split
from flaxformer_lab.errors import ConfigError, DataError
from flaxformer_lab.tasks import make_task

GREY = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
COLOURED = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)


def folder_of(root, images, classes=("a", "b")):
    """A folder with these images in each class."""
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number, pixels in enumerate(images):
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return f"images:{root}"


# ---------------------------------------------------------------------------------------------------- one file


def saved(path, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_a_file_is_read_as_a_viewer_shows_it(tmp_path):
    transparent = np.dstack([COLOURED, np.full((3, 4), 255, np.uint8)])
    transparent[0, 0] = 0  # black, and wholly transparent
    on_white = COLOURED.copy()
    on_white[0, 0] = 255
    wide = GREY.astype(np.uint16) * 250
    palette = np.unique(COLOURED.reshape(-1, 3), axis=0)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90 degrees clockwise
    bits = (GREY > 100).astype(np.uint8) * 255
    for name, pixels, options, expected in [
        ("grey.png", GREY, {}, GREY[..., None]),
        ("grey.bmp", GREY, {}, GREY[..., None]),
        ("grey.gif", GREY, {}, GREY[..., None]),
        ("grey as coloured.png", GREY, {"mode": "RGB"}, GREY[..., None]),
        ("bits.png", bits, {"mode": "1"}, bits[..., None]),
        ("coloured.webp", COLOURED, {"lossless": True}, COLOURED),
        ("16 bits.png", wide, {}, wide[..., None]),
        ("alpha.png", transparent, {}, on_white),
        ("grey alpha.png", GREY, {"mode": "LA"}, GREY[..., None]),
        ("turned.png", COLOURED, {"exif": turned}, np.rot90(COLOURED, -1)),
    ]:
        found = read_image(saved(tmp_path / name, pixels, **options))
        assert found.dtype == expected.dtype, name
        np.testing.assert_array_equal(found, expected, err_msg=name)
    indices = np.array([[np.flatnonzero((palette == p).all(1))[0] for p in row] for row in COLOURED], np.uint8)
    image = Image.fromarray(indices).convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(palette.ravel().tolist())
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), COLOURED)
    photo = np.broadcast_to(np.uint8([200, 100, 50]), (16, 16, 3))
    assert np.abs(read_image(saved(tmp_path / "a.jpg", photo)) - photo.astype(int)).max() < 5


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["RGB", "grey and alpha", "RGB and alpha"])
def test_an_image_of_16_bits_in_several_channels_is_refused(tmp_path, kind, channels):
    """Pillow reads 8 of them, so values of 12 bits would be 0 to 15."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + row.tobytes() for row in np.full((3, 4, channels), 4095, ">u2"))
    header = struct.pack(">IIBBBBB", 4, 3, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "deep.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.raises(
        DataError, match=r"deep\.png has 16 bits in several channels, .*\(magick deep\.png -depth 8 new"
    ):
        read_image(tmp_path / "deep.png")


def test_a_file_that_is_no_image_is_named(tmp_path):
    path = saved(tmp_path / "cut.png", np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8))
    path.write_bytes(path.read_bytes()[:400])
    (tmp_path / "text.png").write_text("no image")
    for name in ("cut.png", "text.png", "missing.png"):
        with pytest.raises(DataError, match=rf"{tmp_path}/{name} cannot be read as an image \(png, jpeg, .*repair it"):
            read_image(tmp_path / name)


@pytest.mark.parametrize(("dtype", "unit"), [(np.uint8, 255), (np.uint16, 60000), (np.float32, 1)])
@pytest.mark.parametrize("size", [(7, 5), (40, 9), (20, 30)])
def test_an_image_is_resized_with_antialiasing(dtype, unit, size):
    image = (np.random.default_rng(0).random((20, 30, 3)) * unit).astype(dtype)
    found = resize_image(image, size)
    expected = np.asarray(jax.image.resize(image.astype(np.float32), (*size, 3), "linear", antialias=True))
    assert found.dtype == dtype and found.shape == (*size, 3)
    assert np.abs(found.astype(np.float64) - expected).max() < max(0.51, 1e-3 * unit if unit > 255 else 1e-5)


# ---------------------------------------------------------------------------------------------------- folders


def test_subfolders_are_classes_and_each_file_is_in_one_split(empty_cache, tmp_path, capsys):
    dataset = folder_of(
        tmp_path / "my [1] images", [np.full((3, 4), 10 * n, np.uint8) for n in range(10)], ("cat", "ant")
    )
    (tmp_path / "my [1] images" / "cat" / "notes.txt").write_text("")
    (tmp_path / "my [1] images" / ".hidden").mkdir()
    records = [record for split in SPLITS for record in open_split(dataset, split).records()]
    assert sorted(record["file"] for record in records) == sorted(
        f"{c}/{n}.png" for c in ("ant", "cat") for n in range(10)
    )
    for record in records:
        assert ["ant", "cat"][record["label"]] == record["file"][:3]
        np.testing.assert_array_equal(record["image"], np.full((3, 4, 1), 10 * int(record["file"][4])))
    source = open_split(dataset, "test")
    assert source.info.features["label"].names == ["ant", "cat"] and len(source) == 4
    assert "1 files are no images and left out, like" in capsys.readouterr().err


def test_subfolders_of_splits_keep_them(empty_cache, tmp_path):
    for split, number in (("train", 10), ("val", 2)):
        folder_of(tmp_path / "f" / split, [np.full((2, 2), n, np.uint8) for n in range(number)])
    files = {
        split: [record["file"] for record in open_split(f"images:{tmp_path}/f", split).records()] for split in SPLITS
    }
    assert files["validation"] == ["val/a/0.png", "val/a/1.png", "val/b/0.png", "val/b/1.png"]
    assert len(files["train"]) == 16 and len(files["test"]) == 4  # a fifth of train
    assert len({*files["train"], *files["test"]}) == 20
    folder_of(tmp_path / "f" / "val", [GREY], ("c",))
    with pytest.raises(DataError, match="validation has the class c, which train lacks"):
        prepare(f"images:{tmp_path}/f")
    (tmp_path / "f" / "val" / "c" / "0.png").unlink()
    (tmp_path / "f" / "val" / "c").rmdir()
    with pytest.raises(ConfigError, match="it has splits, train, validation; leave the option split out"):
        prepare(f"images:{tmp_path}/f?split=share:1,1,1")
    folder_of(tmp_path / "f", [GREY], ("other",))
    with pytest.raises(DataError, match="other is beside train, val, so in no split; move it"):
        prepare(f"images:{tmp_path}/f")


def test_images_are_grey_unless_one_is_coloured(empty_cache, tmp_path):
    grey = open_split(folder_of(tmp_path / "grey", [GREY, np.dstack([GREY] * 3), GREY]), "train")
    assert grey.features["image"] == ((3, 4, 1), np.uint8)
    coloured = open_split(folder_of(tmp_path / "coloured", [GREY, COLOURED, GREY]), "train")
    assert coloured.features["image"] == ((3, 4, 3), np.uint8)
    for record in coloured.records():
        expected = COLOURED if record["file"].endswith("1.png") else np.dstack([GREY] * 3)
        np.testing.assert_array_equal(record["image"], expected)


def test_folders_that_cannot_be_used_are_one_clear_error(empty_cache, tmp_path):
    (tmp_path / "empty").mkdir()
    folder_of(tmp_path / "loose", [GREY])
    saved(tmp_path / "loose" / "x.png", GREY)
    folder_of(tmp_path / "bare", [GREY])
    (tmp_path / "bare" / "c").mkdir()
    folder_of(tmp_path / "depths", [GREY, GREY.astype(np.uint16)])
    folder_of(tmp_path / "broken", [GREY] * 3)
    (tmp_path / "broken" / "b" / "1.png").write_bytes(b"")
    for name, message in [
        ("empty", "empty has no subfolder, whose name is the class; write FOLDER/CLASS/IMAGE"),
        ("loose", r"x\.png in .*loose is in no subfolder"),
        ("bare", r"bare/c has no image \(\.png"),
        ("depths", r"different depths, .*0\.png of 8 bits, .*1\.png of 16 bits"),
        ("broken", r"broken/b/1\.png cannot be read as an image"),
        ("loose/x.png", "is no folder"),
    ]:
        with pytest.raises(DataError, match=message):
            prepare(f"images:{tmp_path}/{name}")


# ------------------------------------------------------------------------------------------------------- the task


def task_of(dataset, metadata=None, **changes):
    config = parse_config({"task": {"dataset": dataset, "patch_size": 1, **changes}})
    return make_task(config.task, metadata)


def test_images_of_differing_size_need_one(empty_cache, tmp_path):
    images = [np.arange(rows * 6, dtype=np.uint8).reshape(rows, 6) for rows in (4, 8, 12)]
    dataset = folder_of(tmp_path / "f", images)
    with pytest.raises(
        ConfigError, match=r"a/0\.png has 4 x 6 pixels but .*a/1\.png has 8 x 6 pixels\); set task.image"
    ):
        task_of(dataset)
    with pytest.raises(ConfigError, match=r"task\.image_size=8 must be two numbers, rows and columns"):
        task_of(dataset, image_size="8")
    task = task_of(dataset, image_size="8,6")
    assert task.metadata["image_shape"] == [8, 6, 1] and task.metadata["class_names"] == ["a", "b"]
    assert ["classes of label", "2 (a, b)"] in task.facts()
    files = [record["file"] for record in open_split(dataset, "train").records()]
    stored = task.examples("train").load()["image"]
    for file, image in zip(files, stored, strict=True):
        np.testing.assert_array_equal(image, resize_image(images[int(file[2])][..., None], (8, 6)))

    # What it predicts from is the same, however it is given.
    root = tmp_path / "f"
    expected = np.stack([resize_image(image[..., None], (8, 6)) for image in images]) / np.float32(127.5) - 1
    unseen = task_of("images:/nowhere", task.metadata, image_size="8,6")
    for raw in [[str(root / "a" / f"{n}.png") for n in range(3)], [root / "b" / f"{n}.png" for n in range(3)], images]:
        np.testing.assert_allclose(unseen.inputs_of(raw), expected, atol=1e-6)
        np.testing.assert_allclose(unseen.inputs_of({"image": raw}), expected, atol=1e-6)
    np.testing.assert_allclose(unseen.inputs_of(root / "a" / "2.png"), expected[2:], atol=1e-6)
    np.testing.assert_allclose(unseen.inputs_of(images[2][None]), expected[2:], atol=1e-6)
    with pytest.raises(
        ConfigError, match=r"c\.png is coloured \(uint8\), and this model was trained on images with 1 ch"
    ):
        unseen.inputs_of(str(saved(tmp_path / "c.png", COLOURED)))
    with pytest.raises(ConfigError, match=r"w\.png is grey \(uint16\)"):
        unseen.inputs_of(str(saved(tmp_path / "w.png", GREY.astype(np.uint16))))
    equal = task_of("images:/nowhere", task.metadata)
    with pytest.raises(
        ConfigError, match=r"shapes \(4, 6, 1\) and \(8, 6, 1\) in one batch, which must be of one size"
    ):
        equal.inputs_of(images)
    for raw in ([], images[2], 5, np.zeros((0, 8, 6, 1), np.uint8)):
        if np.shape(raw) != (0, 8, 6, 1):
            with pytest.raises(ConfigError, match="do not fit this model"):
                equal.inputs_of(raw)


def test_a_run_refuses_folders_of_other_classes(empty_cache, tmp_path):
    dataset = folder_of(tmp_path / "f", [GREY] * 3)
    task = task_of(dataset)
    (tmp_path / "f" / "a").rename(tmp_path / "f" / "c")  # so b is the first class now
    with pytest.raises(DataError, match="its classes are others now, like a; restore them, or begin a new run"):
        task_of(dataset, task.metadata).examples("test")


def test_any_data_set_can_be_resized(empty_cache):
    task = task_of("lab_digits", image_size="4,6", patch_size=2)
    assert task.metadata["image_shape"] == [4, 6, 1]
    whole = open_split("lab_digits", "test").read(np.arange(3))["image"]
    expected = np.stack([resize_image(image, (4, 6)) for image in whole])
    np.testing.assert_array_equal(task.examples("test").read(np.arange(3))["image"], expected)
