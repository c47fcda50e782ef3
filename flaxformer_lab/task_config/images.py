"""Images that are classified."""

from dataclasses import dataclass
from typing import Literal

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import AtLeastOne, AtLeastTwo, Decay, Name, NonNegative
from flaxformer_lab.task_config.base import Share, TaskConfig, check_patches


@dataclass(frozen=True)
class ImageClassificationConfig(TaskConfig):
    """Patches of an image are the tokens; the label is predicted from their mean or from a class token.

    Attributes:
        dataset: a `lab_*` data set, an image data set of tensorflow-datasets, or own files: `images:FOLDER`, with a
            subfolder for each class, or `npz:PATH`.
        feature: which feature has the images; none finds it: `image`, or the only one of two or three axes.
        label: which feature has the label; none finds it: `label`, or the only class label or whole number.
        pixel_range: the values of black and white, which become -1 and 1; none takes those of the type: 0,255 of uint8,
            0,1 or -1,1 of floats, and of other integers 0 to the bits that the training images use.
        image_size: rows and columns, like 28,28, to which every image is stretched; none takes the images as they are,
            all of one size.
        patch_size: pixels along each side of a patch.
        stem: what makes a token of its pixels: a dense map of the patch (`patches`); 3 x 3 convolutions that halve rows
            and columns until they are those of the patches (`convolutions`); or a 7 x 7 convolution and a maximum,
            the start of a ResNet, for patches of 4 (`pooling`).
        pooling: predict from the mean of the tokens, or from a class token that is put before them.
        training_examples: train with so many images, the first of the split in random order; none for all.
        border: black pixels around each image, which give it room to move.
        shift: training images are moved by up to this many pixels in each direction.
        evaluation_shift: so are those of validation and test, each by a move of its own that stays the same.
        crop: the side of the random square part of a training image that is stretched to its size is at least this
            share of the image's; 1 for the whole.
        flip: half of the training images are mirrored, left and right.
        cutout: side in pixels of a square that is made grey at a random place of each training image (DeVries and
            Taylor 2017).
        mixup: each training image is a mixture with its neighbour in the (micro-)batch, with a share that is drawn
            from Beta(mixup, mixup), and so is its label (Zhang et al. 2018); 0 for none.
    """

    name: Literal["image_classification"] = "image_classification"
    dataset: Name = "lab_digits"
    feature: Name | None = None
    label: Name | None = None
    pixel_range: tuple[float, ...] | None = None
    image_size: tuple[AtLeastOne, ...] | None = None
    patch_size: AtLeastOne = 2
    stem: Literal["patches", "convolutions", "pooling"] = "patches"
    pooling: Literal["mean", "class_token"] = "mean"
    training_examples: AtLeastOne | None = None
    border: NonNegative = 0
    shift: NonNegative = 0
    evaluation_shift: NonNegative = 0
    crop: Share = 1.0
    flip: bool = False
    cutout: NonNegative = 0
    mixup: Decay = 0.0

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        limits = self.pixel_range
        check_patches(self.stem, self.patch_size)
        if limits is not None and (len(limits) != 2 or limits[0] >= limits[1]):
            raise ConfigError(
                f"task.pixel_range={','.join(map(str, limits))} must be two numbers, the lower one first, like 0,255"
            )
        if self.image_size is not None and len(self.image_size) != 2:
            shown = ",".join(map(str, self.image_size))
            raise ConfigError(f"task.image_size={shown} must be two numbers, rows and columns, like 28,28")


@dataclass(frozen=True)
class TwoMarksConfig(TaskConfig):
    """Two marks in a row of an image, `distance` cells apart; the class is a relation between them.

    A mark fills a cell of 2 x 2 pixels, one of which is bright; which one is the mark's kind, counted around the cell.

    Attributes:
        rows: of cells.
        columns: of cells.
        distance: cells from the left mark to the right one.
        relation: `alike`: the two are of one kind, or of opposite ones; `order`: the right one's kind comes after the
            left one's, or before, so that the class turns round with the marks.
        noise: standard deviation of what is added to the pixels of the marks, which are 1 or -1.
        patch_size: pixels along each side of a patch; 2 for a token a cell.
        evaluation_examples: examples of the validation split, and of the test split.
    """

    name: Literal["two_marks"] = "two_marks"
    rows: AtLeastOne = 4
    columns: AtLeastTwo = 16
    distance: AtLeastOne = 4
    relation: Literal["alike", "order"] = "alike"
    noise: Decay = 0.0
    patch_size: AtLeastOne = 2
    evaluation_examples: AtLeastOne = 4096

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.distance >= self.columns:
            raise ConfigError(
                f"task.distance={self.distance} does not fit task.columns={self.columns} cells; choose at most "
                f"{self.columns - 1}"
            )
        if 2 * self.rows % self.patch_size or 2 * self.columns % self.patch_size:
            raise ConfigError(
                f"task.patch_size={self.patch_size} does not divide the {2 * self.rows} x {2 * self.columns} pixels of "
                "task.rows and task.columns; choose 1 or 2"
            )
