"""`coco:FOLDER`: images with a box and a category for each object, described by JSON files in the format of COCO."""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float

from flaxformer_lab.data.image_files import is_turned_in_place, read_image
from flaxformer_lab.data.own.address import Address
from flaxformer_lab.data.own.contents import (
    SPLIT_NAMES,
    Contents,
    class_label,
    complete,
    refuse_split,
    side_by_side,
    split_by_share,
)
from flaxformer_lab.errors import DataError

LAYOUT = "put one .json of COCO's format in the folder, or train.json, validation.json and test.json, beside the images"
NEEDED = ("images", "annotations", "categories")
ID = int | float | str
ROUNDING = 1.0  # pixels by which a box may reach past the edge; it is cut off there


def read(address: Address) -> Contents:
    """Examples with `image`, `file` and `objects`: `bbox` (y0, x0, y1, x1 in shares), `label` and `is_crowd` of each.

    That is how tensorflow-datasets has COCO. An image may have no object. Images are found by their `file_name` in the
    folder, or in a folder `images` or of the split's name there.

    Raises:
        DataError: a file is missing or not of the format, or an annotation cannot be used; names it.
    """
    root = address.path
    files = sorted(root.glob("*.json")) if root.is_dir() else []
    if not files:
        raise DataError(f"{address.source} {'has no .json' if root.is_dir() else 'is no folder'}; {LAYOUT}")
    by_split: dict[str, Path] = {}
    for file in files:
        split = SPLIT_NAMES.get(file.stem.lower(), file.stem)
        if by_split.setdefault(split, file) != file:
            raise DataError(f"{address.source}: {by_split[split].name} and {file.name} are both {split}; keep one")
    unknown = [name for name in by_split if name not in SPLIT_NAMES.values()]
    if len(files) > 1 and unknown:
        raise DataError(f"{address.source}: {unknown[0]}.json is no split; {LAYOUT}")
    described = {split: _Description(file) for split, file in by_split.items()}
    first = described.get("train", next(iter(described.values())))
    for each in described.values():
        if each.categories != first.categories:
            raise DataError(f"{each.file} has other categories than {first.file}; give both the same list")
    entries = [(each, image) for each in described.values() for image in each.images]
    if unknown:
        rows = split_by_share(address, len(entries))
    else:
        refuse_split(address, described)
        rows = complete(address, side_by_side({name: len(each.images) for name, each in described.items()}))
    empty = sum(not each.objects[image["id"]] for each, image in entries)
    if empty:
        print(f"{address.source}: {empty} of {len(entries)} images have no object; they are kept", file=sys.stderr)
    if empty == len(entries):
        raise DataError(f"{address.source} has no object in any image; add annotations")
    paths = [_find(root, each, image) for each, image in entries]
    images = [read_image(path) for path in paths]
    for (each, image), path, pixels in zip(entries, paths, images, strict=True):
        _check_size(each.file, image, pixels)
        if is_turned_in_place(path):
            raise DataError(
                f"{each.file}: EXIF data of {image['file_name']} turn or mirror it, and its size does not say whether "
                "boxes are of it before or after; take the orientation out if before (exiftool -Orientation=), turn "
                "its pixels if after (mogrify -auto-orient)"
            )
    coloured = any(pixels.shape[-1] == 3 for pixels in images)
    # Of the first file for all: another may list the same categories in another order.
    numbers = {identity: number for number, identity in enumerate(first.categories)}

    def examples(chosen: np.ndarray) -> Iterator[dict[str, Any]]:
        for row in chosen:
            description, image = entries[row]
            pixels = np.broadcast_to(images[row], (*images[row].shape[:2], 3 if coloured else 1))
            yield {
                "image": pixels.astype(np.uint8),
                "file": image["file_name"],
                "objects": description.objects_of(image, numbers),
            }

    features = {
        "image": tfds.features.Tensor(
            shape=(None, None, 3 if coloured else 1), dtype=np.uint8, encoding=tfds.features.Encoding.ZLIB
        ),
        "file": tfds.features.Text(),
        "objects": tfds.features.Sequence(
            {
                "bbox": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                "label": class_label(address, list(first.categories.values())),
                "is_crowd": np.bool_,
            }
        ),
    }
    most, file = max((len(each.objects[image["id"]]), image["file_name"]) for each, image in entries)
    return Contents.of_rows(features, examples, rows, {"most_objects": most, "most_objects_file": file})


class _Description:
    """A JSON file: `images`, `categories` (names by id), and the `objects` of each image, by its id."""

    def __init__(self, file: Path):
        self.file = file
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read as JSON: {error}; repair it") from error
        for key in NEEDED:
            if not isinstance(tree, Mapping) or not isinstance(tree.get(key), list):
                raise DataError(f"{file} has no list {key!r}, which the format of COCO needs, beside {_others(key)}")
        self.images = tree["images"]
        for image in self.images:
            _check_entry(file, "an image", image, id=ID, file_name=str)
        for category in tree["categories"]:
            _check_entry(file, "a category", category, id=ID, name=ID)
        self.categories = {each["id"]: str(each["name"]) for each in tree["categories"]}
        known = {image["id"] for image in self.images}
        for kind, entries, number in (
            ("image", self.images, len(known)),
            ("category", tree["categories"], len(self.categories)),
        ):
            if number < len(entries):
                raise DataError(f"{file}: two of the {len(entries)} {kind} entries have one id; give each its own")
        names = list(self.categories.values())
        for name in [each for each in names if names.count(each) > 1][:1]:
            ids = ", ".join(str(each) for each in self.categories if self.categories[each] == name)
            raise DataError(f"{file}: the categories of id {ids} are all called {name}; give each a name of its own")
        self.objects: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
        for place, annotation in enumerate(tree["annotations"], 1):
            name = f"annotation {annotation.get('id') if isinstance(annotation, Mapping) else f'number {place}'}"
            _check_entry(file, name, annotation, image_id=ID, category_id=ID)
            where = f"{file}: {name}"
            if annotation["image_id"] not in known:
                raise DataError(f"{where} is of image_id {annotation['image_id']!r}, which no image has; correct it")
            if annotation["category_id"] not in self.categories:
                ids = ", ".join(map(str, list(self.categories)[:10]))
                raise DataError(
                    f"{where} is of category_id {annotation['category_id']!r}, which no category has; there are {ids}"
                    f"{', ...' if len(self.categories) > 10 else ''}"
                )
            self.objects[annotation["image_id"]].append(annotation | {"where": where})

    def objects_of(self, image: Mapping[str, Any], numbers: Mapping[Any, int]) -> list[dict[str, Any]]:
        """As the feature `objects` has them. numbers: the label of each category, by its id."""
        return [
            {
                "bbox": box_of(each["where"], each.get("bbox"), image["height"], image["width"]),
                "label": numbers[each["category_id"]],
                "is_crowd": bool(each.get("iscrowd", 0)),
            }
            for each in self.objects[image["id"]]
        ]


def box_of(where: str, box: Any, rows: int, columns: int) -> Float[np.ndarray, "4"]:
    """(y0, x0, y1, x1) in shares of the image, of COCO's (x, y, width, height) in pixels. where: for messages.

    Raises:
        DataError: it is not four finite numbers, has no area, or lies outside of the image.
    """
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(each, int | float) for each in box)
    if not numbers or not all(map(math.isfinite, box)):
        raise DataError(f"{where}: bbox {box} is not four finite numbers (x, y, width, height); correct it")
    x, y, width, height = box
    if width <= 0 or height <= 0:
        raise DataError(f"{where}: bbox {box} has no area; correct it, or take the annotation out")
    if x < -ROUNDING or y < -ROUNDING or x + width > columns + ROUNDING or y + height > rows + ROUNDING:
        raise DataError(f"{where}: bbox {box} reaches outside of its image of {columns} x {rows} pixels; correct it")
    corners = np.array([y / rows, x / columns, (y + height) / rows, (x + width) / columns], np.float32)
    return np.clip(corners, 0, 1)


def _check_entry(file: Path, kind: str, entry: Any, **types: Any) -> None:
    """Raises DataError where an entry is no mapping, or lacks a key or has something of another type there."""
    get = entry.get if isinstance(entry, Mapping) else lambda _: None
    lacking = [key for key, of_type in types.items() if not isinstance(get(key), of_type)]
    if lacking:
        raise DataError(
            f"{file}: {kind} has no {' and no '.join(lacking)} that can be used: {str(entry)[:80]}; correct it"
        )


def _others(key: str) -> str:
    return " and ".join(each for each in NEEDED if each != key)


def _find(root: Path, description: _Description, image: Mapping[str, Any]) -> Path:
    places = [root, root / "images", root / description.file.stem]
    found = [folder / image["file_name"] for folder in places if (folder / image["file_name"]).is_file()]
    if not found:
        shown = ", ".join(map(str, places))
        raise DataError(f"{description.file}: {image['file_name']} is in none of {shown}; put the images there")
    return found[0]


def _check_size(file: Path, image: dict[str, Any], pixels: np.ndarray) -> None:
    """Raises DataError where the file says another size than the image has; adds it where it says none."""
    rows, columns = pixels.shape[:2]
    said = image.setdefault("width", columns), image.setdefault("height", rows)
    if pixels.dtype != np.uint8:
        raise DataError(f"{file}: {image['file_name']} has 16 bits a pixel; convert it to 8")
    if said != (columns, rows):
        raise DataError(
            f"{file}: {image['file_name']} is said to have {said[0]!r} x {said[1]!r} pixels and has {columns} x "
            f"{rows}; its boxes would be elsewhere; correct one of them"
        )
