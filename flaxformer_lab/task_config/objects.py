"""Objects in images: scenes that are drawn, and detectors."""

from dataclasses import dataclass
from typing import Annotated, Literal

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import AtLeastOne, Decay, Name, NonNegative, Positive, Rule
from flaxformer_lab.task_config.base import TaskConfig, check_patches


@dataclass(frozen=True)
class SceneConfig(TaskConfig):
    """Scenes that are drawn for every update: items scattered over a canvas, among clutter.

    Attributes:
        items_dataset: images with labels, bright on black, that items are taken from: `lab_digits`, `fashion_mnist`.
        item_images: of each split, so many of its images are items, the first in random order.
        classes: of the classes of these images, the first so many; none for all.
        canvas: rows and columns of a scene, in pixels.
        items: the fewest and the most items of a scene.
        item_size: pixels along each side of an item's image at scale 1.
        scale: the smallest and the largest scale of an item.
        overlap: of two boxes, the largest share of the smaller one that both may cover.
        clutter: how many pieces of other images lie about, each a quarter of one.
        noise: standard deviation of noise on pixels from 0 to 1.
        evaluation_examples: examples of the validation split, and of the test split.
    """

    items_dataset: Name = "lab_digits"
    item_images: AtLeastOne = 1000
    classes: AtLeastOne | None = None
    canvas: AtLeastOne = 64
    items: tuple[AtLeastOne, ...] = (1, 4)
    item_size: Positive = 20.0
    scale: tuple[Positive, ...] = (0.5, 1.5)
    overlap: Annotated[float, Rule("must be from 0 to 1", lambda value: 0 <= value <= 1)] = 0.3
    clutter: NonNegative = 2
    noise: Decay = 0.05
    evaluation_examples: AtLeastOne = 1024

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        for knob, value in (("items", self.items), ("scale", self.scale)):
            if len(value) != 2 or value[0] > value[1]:
                raise ConfigError(
                    f"task.{knob}={','.join(map(str, value))} must be two numbers, the smaller one first, like 1,4"
                )
        largest = self.item_size * self.scale[1]
        if largest > self.canvas:
            raise ConfigError(
                f"task.item_size={self.item_size:g} at the largest task.scale={self.scale[1]:g} is {largest:g} pixels, "
                f"more than task.canvas={self.canvas}; lower one of them, or raise the canvas"
            )


@dataclass(frozen=True)
class SceneClassificationConfig(SceneConfig):
    """The class of the one item of a scene, which has clutter around it.

    Attributes:
        items: must be 1,1.
        patch_size: pixels along each side of a patch.
        stem: what makes a token of its pixels, as in image_classification.
    """

    name: Literal["scene_classification"] = "scene_classification"
    canvas: AtLeastOne = 32
    items: tuple[AtLeastOne, ...] = (1, 1)
    item_size: Positive = 12.0
    scale: tuple[Positive, ...] = (0.75, 1.25)
    patch_size: AtLeastOne = 4
    stem: Literal["patches", "convolutions", "pooling"] = "patches"

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        super().rules()
        if self.items != (1, 1):
            raise ConfigError(
                f"task.items={','.join(map(str, self.items))} with task.name={self.name}, which asks for the class of "
                "one; set task.items=1,1"
            )
        check_patches(self.stem, self.patch_size)
        if self.canvas % self.patch_size:
            raise ConfigError(
                f"task.patch_size={self.patch_size} does not divide task.canvas={self.canvas}; choose a divisor of it"
            )


@dataclass(frozen=True)
class DetectorConfig(TaskConfig):
    """What finds the objects: four convolutions with stride 8, the model, and a head.

    Attributes:
        detector: `detr` (queries attend to the image, each becomes one object or none; needs
            model.name=encoder_decoder), `faster_rcnn` (anchors, proposals, then their classes), or `dense` (no anchors:
            every place says what is there, as FCOS).
        queries: of `detr`; at least as many as an image has objects.
        nms: of two detections of one class whose IoU is above it, the one with the lower score is dropped. None takes
            the detector's own: 0.5, and for `detr` 1, which drops none.
        detections: the most of an image.
        anchor_sizes: of `faster_rcnn`: roots of the areas of the anchors, in pixels.
        anchor_ratios: their heights over their widths.
        proposals: of `faster_rcnn`: how many boxes of an image its second stage looks at.
        size_bounds: the sides, in pixels, of the squares that part small objects from medium and large ones, by which
            metrics are reported.
    """

    detector: Literal["detr", "faster_rcnn", "dense"] = "detr"
    queries: AtLeastOne = 16
    nms: Annotated[float, Rule("must be above 0 and at most 1", lambda value: 0 < value <= 1)] | None = None
    detections: Annotated[int, Rule("must be from 1 to 100", lambda value: 1 <= value <= 100)] = 32
    anchor_sizes: tuple[Positive, ...] = (8.0, 13.0, 20.0)
    anchor_ratios: tuple[Positive, ...] = (1.0, 2.0)
    proposals: AtLeastOne = 32
    size_bounds: tuple[Positive, ...] = (32.0, 96.0)

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        for knob in ("anchor_sizes", "anchor_ratios"):
            if not getattr(self, knob):
                raise ConfigError(f"task.{knob} is empty; give at least one number, like 16")
        if len(self.size_bounds) != 2 or self.size_bounds[0] >= self.size_bounds[1]:
            shown = ",".join(map(str, self.size_bounds))
            raise ConfigError(f"task.size_bounds={shown} must be two numbers, the smaller one first, like 32,96")

    def check(self, sides: tuple[int, ...], capacity: int, what: str) -> None:
        """Raises ConfigError where images of such sides, or so many objects, do not fit the detector."""
        for side in [side for side in sides if side % 8]:
            raise ConfigError(
                f"task.{what}={','.join(map(str, sides))}: {side} is no multiple of 8, the stride of the convolutions; "
                f"choose {8 * max(1, round(side / 8))}"
            )
        if self.detector == "detr" and self.queries < capacity:
            raise ConfigError(
                f"task.queries={self.queries} cannot find {capacity} objects, which an image may have; set at least "
                f"{capacity}"
            )


@dataclass(frozen=True)
class ScenesConfig(DetectorConfig, SceneConfig):
    """Objects are found in scenes that are drawn for every update."""

    name: Literal["scenes"] = "scenes"
    size_bounds: tuple[Positive, ...] = (11.0, 16.0)

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        SceneConfig.rules(self)
        DetectorConfig.rules(self)
        self.check((self.canvas,), self.items[1], "canvas")


@dataclass(frozen=True)
class DetectionConfig(DetectorConfig):
    """Objects are found in images that have a box and a class for each.

    Attributes:
        dataset: a data set of tensorflow-datasets with `objects` (`voc/2007`, `coco/2017`), or own files:
            `coco:PATH`, a JSON file in the format of COCO, or a folder with one for each split.
        image_size: rows and columns, multiples of 8, to which every image is stretched.
        capacity: the most objects of an image; there is room for so many in each.
    """

    name: Literal["detection"] = "detection"
    dataset: Name = "voc/2007"
    image_size: tuple[AtLeastOne, ...] = (128, 128)
    capacity: AtLeastOne = 32
    queries: AtLeastOne = 50
    anchor_sizes: tuple[Positive, ...] = (16.0, 32.0, 64.0)

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        super().rules()
        if len(self.image_size) != 2:
            shown = ",".join(map(str, self.image_size))
            raise ConfigError(f"task.image_size={shown} must be two numbers, rows and columns, like 128,128")
        self.check(self.image_size, self.capacity, "image_size")
