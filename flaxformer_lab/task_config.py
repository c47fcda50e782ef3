"""What is learned: one dataclass for each task, selected by `name`; the other tasks' keys are then unknown.

`causal` says what a task needs of the model: True, that no token sees a later one; False, that tokens see later ones;
None, either. docs/knobs.md is generated from the `Attributes:` of these dataclasses by tools/knobs_page.py.
"""

import itertools
from dataclasses import dataclass
from typing import Annotated, Literal

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.parsing import (
    AtLeastOne,
    AtLeastTwo,
    Decay,
    Fraction,
    Name,
    NonNegative,
    Positive,
    Rate,
    Rule,
    Seed,
)

Share = Annotated[float, Rule("must be above 0 and at most 1", lambda value: 0 < value <= 1)]
ShareOrNone = Annotated[float, Rule("must be from 0 to 1", lambda value: 0 <= value <= 1)]


class TaskConfig:
    """Base of every task's config: a frozen dataclass with `name`; all of its fields have defaults."""

    causal = None


# ------------------------------------------------------------------------------------------------ real data


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
        training_examples: train with so many images, the first of the split, which is in random order; none for all.
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
        limits, patch = self.pixel_range, self.patch_size
        if self.stem == "convolutions" and patch & (patch - 1):
            raise ConfigError(
                f"task.stem=convolutions halves rows and columns, which does not lead to task.patch_size={patch}; "
                "choose 1, 2, 4, 8, ..., or task.stem=patches"
            )
        if self.stem == "pooling" and patch != 4:
            raise ConfigError(
                f"task.stem=pooling makes a quarter of the rows and columns, not those of task.patch_size={patch}; set "
                "task.patch_size=4, or choose task.stem=convolutions"
            )
        if limits is not None and (len(limits) != 2 or limits[0] >= limits[1]):
            raise ConfigError(
                f"task.pixel_range={','.join(map(str, limits))} must be two numbers, the lower one first, like 0,255"
            )
        if self.image_size is not None and len(self.image_size) != 2:
            shown = ",".join(map(str, self.image_size))
            raise ConfigError(f"task.image_size={shown} must be two numbers, rows and columns, like 28,28")


@dataclass(frozen=True)
class TabularConfig(TaskConfig):
    """Tables: columns are the tokens, and the target is predicted from their mean.

    Attributes:
        dataset: `lab_wine`, `lab_breast_cancer`, a data set with a label and a feature of one axis of numbers, or own
            files: `csv:PATH?target=NAME`, `parquet:PATH?target=NAME`, `npz:PATH`.
        feature: which feature has the columns; none finds it: `columns`, or the only one of one axis.
        scaling: of each column of numbers, fitted to the training rows: `standard` subtracts the mean and divides by
            the standard deviation; `quantile` maps the ranks to a normal distribution; `none` leaves it as it is.
        missing: what a missing number becomes: an `error`, the `mean` of the training rows, or that with one more
            column for each that lacks values in training, which is 1 where the value is missing (`indicator`).
        split_seed: divide all rows into splits of the same sizes again, in a random order of this seed; none takes the
            data set's own splits. A small test split says little, several of them more.
    """

    RENAMED = {"standardised": ("scaling", {True: "standard", False: "none"})}

    dataset: Name = "lab_wine"
    feature: Name | None = None
    scaling: Literal["none", "standard", "quantile"] = "standard"
    missing: Literal["error", "mean", "indicator"] = "error"
    split_seed: Seed | None = None


@dataclass(frozen=True)
class TabularClassificationConfig(TabularConfig):
    """A row's class.

    Attributes:
        label: which feature has the label; none finds it: `label`, or the only class label or whole number.
    """

    name: Literal["tabular_classification"] = "tabular_classification"
    label: Name | None = None


@dataclass(frozen=True)
class TabularRegressionConfig(TabularConfig):
    """A row's number, standardised on the training rows; the loss is the squared error on that scale.

    Attributes:
        dataset: `lab_diabetes`, a file of yours (`csv:PATH?target=NAME`), or a data set with a number and a feature of
            one axis of numbers.
        target: which feature is predicted; none finds it: `target`, or the only one that is a number.
    """

    name: Literal["tabular_regression"] = "tabular_regression"
    dataset: Name = "lab_diabetes"
    target: Name | None = None


@dataclass(frozen=True)
class FieldKnobs(TaskConfig):
    """How the fields of a record become one number; the fields are the tokens.

    Attributes:
        fields: each level of a field has a vector of its own (`indexed`), or shares `buckets` of them (`hashed`).
        buckets: vectors that all fields share, where they are hashed.
        crosses: every pair of categories is one more field, hashed into so many vectors; 0 makes none.
        embedding_scale: standard deviation of the vectors at the start.
        own_weights: each level has a weight of its own in the output, beside its vector.
        readout: the output is the sum of the body's, or a weighted one of all (`flat`), or of their mean over the
            fields (`mean`).
        deep: hidden units of a perceptron beside the body, on the vectors of all fields; none leaves it out.
    """

    fields: Literal["indexed", "hashed"] = "indexed"
    buckets: AtLeastTwo = 2**14
    crosses: NonNegative = 0
    embedding_scale: Positive = 0.01
    own_weights: bool = True
    readout: Literal["sum", "flat", "mean"] = "flat"
    deep: tuple[AtLeastOne, ...] = ()


@dataclass(frozen=True)
class ClickConfig(FieldKnobs, TabularConfig):
    """Whether something happens, a click or a late arrival, by the fields of a record.

    Attributes:
        dataset: `lab_flight_fields`, or any table with a label of two classes (`csv:PATH?target=NAME`).
        label: which feature has the label; none finds it: `label`, or the only class label or whole number.
    """

    name: Literal["click"] = "click"
    dataset: Name = "lab_flight_fields"
    label: Name | None = None


@dataclass(frozen=True)
class LanguageModellingConfig(TaskConfig):
    """Characters or bytes are the tokens; the next one, or the masked ones (BERT), are predicted.

    Attributes:
        dataset: a `lab_*` data set, one of tensorflow-datasets with text, or own files: `text:PATH`, a file or a folder
            of `.txt`.
        feature: which feature has the text; none finds it: `text`, or the only one that is a text.
        tokenizer: one symbol per character of the training text, or per byte.
        objective: predict the next token, or tokens that are masked.
        sequence_length: tokens of one example.
        mask_rate: share of the tokens that `masked` hides.
    """

    name: Literal["language_modelling"] = "language_modelling"
    dataset: Name = "lab_speeches"
    feature: Name | None = None
    tokenizer: Literal["characters", "bytes"] = "characters"
    objective: Literal["next_token", "masked"] = "next_token"
    sequence_length: AtLeastOne = 128
    mask_rate: Fraction = 0.15

    @property
    def causal(self) -> bool:
        """A next token must not be seen; a masked one is guessed from both sides."""
        return self.objective == "next_token"


@dataclass(frozen=True)
class ForecastingConfig(TaskConfig):
    """The next `horizon` steps of a time series are predicted from the last `lookback` ones.

    Attributes:
        dataset: a `lab_*` series, a data set of tensorflow-datasets with `time` and channels, a file of your own
            with a column of dates (`csv:PATH`, `parquet:PATH`), or `ett:PATH`, a CSV in the layout of the ETT files,
            with their borders of 12, 4 and 4 months.
        lookback: steps that are read.
        horizon: steps that are predicted.
        inputs: names of the channels that are read; all by default.
        targets: names of the channels that are predicted; all that are read by default.
        missing: what becomes of missing values: the last value before takes their place in the inputs, and they do not
            count in loss and metrics (`mask`), or count as if observed (`forward`); or they are interpolated, from the
            future too, and count (`linear`).
        standardised: subtract each channel's mean and divide by its standard deviation, both of the training rows;
            errors are in this unit in any case.
        season: steps of a period, for the error of the seasonal naive forecast that MASE divides by; none means a day,
            or a week of days.
        loss: squared or absolute error.
        tokens: a token is a time step, a patch of steps, or a variate's whole lookback.
        patch_length: steps of a patch.
        patch_stride: steps from one patch to the next.
        patch_padding: repeat the last step `patch_stride` times first, so that no step is left out.
        channels: `mixed` puts all channels into a token, or all variates into a sequence; `independent` reads each
            channel by itself, with the same weights.
        marks: give the tokens the hour, weekday, day and month.
        instance_norm: what each window loses at the start and gets back at the end: nothing; its `last` value; mean and
            standard deviation (`revin`), or these with a learned scale and shift for each channel (`affine`).
        decomposition: sizes of moving averages, which are averaged and part every channel into season and trend, two
            numbers a step; none leaves the channels as they are.
        embedding: the map from a token's numbers to model.width; `identity` needs equal numbers of both.
        head: reads the tokens side by side, their mean, or the last one; a variate's token is read by itself.
        individual: a head for each channel instead of one for all; for variates or independent channels.
        label_length: steps of the window that a decoder is given before the horizon; for models with a decoder.
        quantiles: of every value to be forecast, like 0.1,0.5,0.9; trained by the pinball loss in place of task.loss,
            and 0.5 is the forecast itself. None forecasts one number.
        validation_stride: rows from one window of validation to the next; 1 takes all. Test takes all.
    """

    name: Literal["forecasting"] = "forecasting"
    dataset: Name = "lab_beijing_air"
    lookback: AtLeastOne = 96
    horizon: AtLeastOne = 96
    inputs: tuple[Name, ...] = ()
    targets: tuple[Name, ...] = ()
    missing: Literal["mask", "forward", "linear"] = "mask"
    standardised: bool = True
    season: AtLeastOne | None = None
    loss: Literal["mse", "mae"] = "mse"
    tokens: Literal["step", "patch", "variate"] = "step"
    patch_length: AtLeastOne = 16
    patch_stride: AtLeastOne = 8
    patch_padding: bool = True
    channels: Literal["mixed", "independent"] = "mixed"
    marks: bool = True
    instance_norm: Literal["off", "last", "revin", "affine"] = "off"
    decomposition: tuple[AtLeastOne, ...] = ()
    embedding: Literal["dense", "identity"] = "dense"
    head: Literal["flat", "mean", "last"] = "flat"
    individual: bool = False
    label_length: AtLeastOne = 48
    quantiles: tuple[float, ...] = ()
    validation_stride: AtLeastOne = 1

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.tokens == "patch" and self.patch_length > self.lookback + self.patch_padding * self.patch_stride:
            raise ConfigError(
                f"task.patch_length={self.patch_length} is more than task.lookback={self.lookback}; lower the one or "
                "raise the other"
            )
        levels = self.quantiles
        rise = all(low < high for low, high in itertools.pairwise((0.0, *levels, 1.0)))
        if levels and not (rise and 0.5 in levels):
            raise ConfigError(
                f"task.quantiles={','.join(map(str, levels))} must rise from above 0 to below 1, with 0.5 among them, "
                "like 0.1,0.5,0.9"
            )
        if levels and self.loss != "mse":
            raise ConfigError(
                f"task.loss={self.loss} with task.quantiles, which are trained by the pinball loss; leave one out"
            )
        if self.individual and self.tokens != "variate" and self.channels == "mixed":
            raise ConfigError(
                f"task.individual=true with task.tokens={self.tokens} and task.channels=mixed, where no token belongs "
                "to one channel; set task.channels=independent, or task.individual=false: each output has weights of "
                "its own there"
            )


# ------------------------------------------------------------------------------------------- objects in images


@dataclass(frozen=True)
class SceneConfig(TaskConfig):
    """Scenes that are drawn for every update: items scattered over a canvas, among clutter.

    Attributes:
        items_dataset: images with labels, bright on black, that items are taken from: `lab_digits`, `fashion_mnist`.
        item_images: of each split, so many of its images are items, from the first on.
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


@dataclass(frozen=True)
class NextBasketConfig(TaskConfig):
    """What a user buys next, from what was bought before: all items are ranked.

    Attributes:
        dataset: `lab_retail`, or a data set with its features.
        split: `time`: what a user buys first after one moment, from all before it; `last`: the last of each user's
            first purchases, from those before it (leave one out).
        cut: that moment, as the share of all events that came before it; 0.8 is an earlier one, to tune on.
        held_out: of users, the share whose last basket before the cut validates instead of training.
        least_baskets: baskets that a user has before the cut, to be asked for the next one.
        least_rows: rows of the source that an item has, to be kept (split=time).
        core: first purchases that a user and an item have at least (split=last).
        tokens: a token is a bought item, or a basket, the mean of its items.
        objective: predict what comes next at every token, or the items that are masked.
        events: items of one example, the last ones; longer histories train as several examples.
        baskets: baskets of one example, likewise.
        mask_rate: share of the items that `masked` hides.
        half_life: days before the cut after which a basket weighs half in training; none weighs all the same.
        tied: items are predicted by the vectors by which they are read.
        repeats: add to the scores what was bought before, with a learned weight for each number of baskets ago.
    """

    name: Literal["next_basket"] = "next_basket"
    dataset: Name = "lab_retail"
    split: Literal["time", "last"] = "time"
    cut: Fraction = 0.9
    held_out: Fraction = 0.2
    least_baskets: AtLeastOne = 3
    least_rows: AtLeastOne = 20
    core: AtLeastOne = 5
    tokens: Literal["item", "basket"] = "basket"
    objective: Literal["next", "masked"] = "next"
    events: AtLeastTwo = 256
    baskets: AtLeastTwo = 16
    mask_rate: Fraction = 0.2
    half_life: Positive | None = None
    tied: bool = True
    repeats: bool = False

    @property
    def causal(self) -> bool:
        """What comes next must not be seen; a masked item is guessed from both sides."""
        return self.objective == "next"

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.tokens == "basket" and self.objective == "masked":
            raise ConfigError(
                "task.objective=masked with task.tokens=basket: items are masked, not baskets; set task.tokens=item or "
                "task.objective=next"
            )
        if self.repeats and self.tokens == "item":
            raise ConfigError(
                "task.repeats=true with task.tokens=item: what follows within a basket is no repetition; set "
                "task.tokens=basket or task.repeats=false"
            )


# ----------------------------------------------------------------------------- probes with continuous inputs


@dataclass(frozen=True)
class ProbeConfig(TaskConfig):
    """Probes with continuous inputs, which are drawn for every update.

    Attributes:
        embedding: the map from the input's features to model.width; `identity` needs equal numbers of both, and leaves
            all mixing of features to the model.
        head: the map from model.width to the outputs; `identity` as for the embedding.
        evaluation_examples: examples of the validation split, and of the test split.
    """

    embedding: Literal["dense", "identity"] = "dense"
    head: Literal["dense", "identity"] = "dense"
    evaluation_examples: AtLeastOne = 4096


@dataclass(frozen=True)
class ProductConfig(ProbeConfig):
    """P1, P1b: the product of a token's first `order` features.

    Attributes:
        tokens: tokens of one example.
        features: features of one token.
        order: how many features are multiplied.
    """

    name: Literal["product"] = "product"
    tokens: AtLeastOne = 4
    features: AtLeastOne = 8
    order: AtLeastTwo = 2

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.order > self.features:
            raise ConfigError(
                f"task.order={self.order} multiplies more features than task.features={self.features}; "
                "lower the one or raise the other"
            )


@dataclass(frozen=True)
class RotationConfig(ProbeConfig):
    """P2: a rotation of a token's features, a cyclic shift by one or a random one that `rotation_seed` fixes.

    Attributes:
        tokens: tokens of one example.
        features: features of one token.
        rotation: a cyclic shift by one feature, or a random rotation.
        rotation_seed: of the random rotation.
    """

    name: Literal["rotation"] = "rotation"
    tokens: AtLeastOne = 1
    features: AtLeastTwo = 32
    rotation: Literal["shift", "random"] = "shift"
    rotation_seed: NonNegative = 0


@dataclass(frozen=True)
class PointersConfig(ProbeConfig):
    """P3: a query token points at several distinct tokens, whose contents are asked for.

    Attributes:
        tokens: tokens that can be pointed at.
        features: features of one token's content.
        pointers: how many tokens the query points at.
        decay: target i is multiplied by i^(-decay / 2), so that later pointers matter less.
    """

    name: Literal["pointers"] = "pointers"
    tokens: AtLeastOne = 8
    features: AtLeastOne = 4
    pointers: AtLeastOne = 4
    decay: Decay = 0.0

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.pointers > self.tokens:
            raise ConfigError(
                f"task.pointers={self.pointers} distinct ones need at least as many tokens, but "
                f"task.tokens={self.tokens}; lower the one or raise the other"
            )


@dataclass(frozen=True)
class NearestConfig(ProbeConfig):
    """P4, P5: of several unit vectors, the one nearest to the query token's.

    Attributes:
        tokens: unit vectors to choose from.
        features: features of a vector.
        log_scale: a > 0 multiplies feature c of the input by 10^linspace(-a, a).
        standardised: divide each feature of the input by its standard deviation, as is usual for a table's columns.
    """

    name: Literal["nearest"] = "nearest"
    tokens: AtLeastTwo = 8
    features: AtLeastTwo = 8
    log_scale: Annotated[float, Rule("must be from 0 to 4", lambda value: 0 <= value <= 4)] = 0.0
    standardised: bool = False


@dataclass(frozen=True)
class ScaledLinearConfig(ProbeConfig):
    """P5b: a sum of features that arrive multiplied by `scale`.

    Attributes:
        features: features of the input.
        scale: what multiplies them.
    """

    name: Literal["scaled_linear"] = "scaled_linear"
    features: AtLeastOne = 8
    scale: Positive = 1.0


@dataclass(frozen=True)
class PlantedInteractionsConfig(ProbeConfig):
    """P8: a sum of features and of products of two, with a known share of the variance in the products.

    Attributes:
        features: features of the input.
        interaction_share: share of the target's variance that comes from products.
        coefficient_seed: of the random coefficients.
    """

    name: Literal["planted_interactions"] = "planted_interactions"
    features: AtLeastTwo = 8
    interaction_share: ShareOrNone = 0.909
    coefficient_seed: NonNegative = 0


@dataclass(frozen=True)
class PlantedCrossesConfig(FieldKnobs):
    """P8 over fields: a number for each level, and one for each pair of levels of two fields, added up.

    Attributes:
        number: of fields.
        levels: of each field, all as likely.
        interaction_share: the pairs' share of the variance.
        coefficient_seed: of the numbers.
        evaluation_examples: examples of the validation split, and of the test split.
    """

    name: Literal["planted_crosses"] = "planted_crosses"
    number: AtLeastTwo = 4
    levels: AtLeastTwo = 16
    interaction_share: ShareOrNone = 0.5
    coefficient_seed: NonNegative = 0
    evaluation_examples: AtLeastOne = 4096


@dataclass(frozen=True)
class DelayConfig(ProbeConfig):
    """P9: each token asks for the content of the one `distance` before it.

    Attributes:
        tokens: tokens of one example.
        features: features of one token.
        distance: how many tokens back the answer is.
    """

    name: Literal["delay"] = "delay"
    tokens: AtLeastTwo = 16
    features: AtLeastOne = 8
    distance: AtLeastOne = 1

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        _within(self.distance, self.tokens)


@dataclass(frozen=True)
class MarkedTokenConfig(ProbeConfig):
    """Long range: the last token asks for the content of the marked one, `distance` before it, among distractors.

    Attributes:
        tokens: tokens of one example.
        features: features of one token's content.
        distance: how many tokens before the last one the marked token is.
    """

    name: Literal["marked_token"] = "marked_token"
    tokens: AtLeastTwo = 64
    features: AtLeastOne = 4
    distance: AtLeastOne = 32

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        _within(self.distance, self.tokens)


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
        noise: standard deviation of what is added to every pixel.
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


def _within(distance: int, tokens: int) -> None:
    if distance >= tokens:
        raise ConfigError(
            f"task.distance={distance} reaches past the first of task.tokens={tokens}; choose at most {tokens - 1}"
        )


# ----------------------------------------------------------------------------------- probes made of symbols


@dataclass(frozen=True)
class SyntheticConfig(TaskConfig):
    """Probes made of symbols.

    Attributes:
        training_examples: how many different examples the training split has; none draws new ones for every update.
        evaluation_examples: examples of the validation split, and of the test split.
    """

    training_examples: AtLeastOne | None = 12800
    evaluation_examples: AtLeastOne = 1280


@dataclass(frozen=True)
class AssociativeRecallConfig(SyntheticConfig):
    """P6, MQAR (Arora et al. 2023): key-value pairs, then each key again at a random place, asking for its value.

    Attributes:
        vocabulary: symbols; half are keys and half are values.
        sequence_length: tokens of one example.
        pairs: key-value pairs in one example.
        power: exponent of the power law that places the questions (1 is uniform).
    """

    name: Literal["associative_recall"] = "associative_recall"
    training_examples: AtLeastOne | None = None
    vocabulary: AtLeastTwo = 64
    sequence_length: AtLeastTwo = 32
    pairs: AtLeastOne = 4
    power: Annotated[float, Rule("must be above 0 and at most 1", lambda value: 0 < value <= 1)] = 0.01

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if 4 * self.pairs > self.sequence_length:
            raise ConfigError(
                f"task.pairs={self.pairs} need {4 * self.pairs} tokens (two for a pair, two for a question), but "
                f"task.sequence_length={self.sequence_length}; lower the one or raise the other"
            )
        keys = self.vocabulary // 2 - 1
        if self.pairs > keys:
            raise ConfigError(
                f"task.pairs={self.pairs} distinct keys do not fit the {keys} of task.vocabulary={self.vocabulary}; "
                f"choose a vocabulary of at least {2 * self.pairs + 2}"
            )


PairsOfTokens = Annotated[int, Rule("must be even and at least 4", lambda value: value >= 4 and value % 2 == 0)]


@dataclass(frozen=True)
class InContextRecallConfig(SyntheticConfig):
    """MAD (Poli et al. 2024): pairs of a key and a value; a key that was seen before must give its value again.

    Attributes:
        vocabulary: symbols; half are keys and half are values.
        sequence_length: tokens of one example.
    """

    name: Literal["in_context_recall"] = "in_context_recall"
    vocabulary: Annotated[int, Rule("must be at least 4", lambda value: value >= 4)] = 16
    sequence_length: PairsOfTokens = 128

    causal = True


@dataclass(frozen=True)
class FuzzyRecallConfig(SyntheticConfig):
    """MAD (Poli et al. 2024): in-context recall whose keys and values are motifs of 1 to `motif` tokens.

    Attributes:
        vocabulary: symbols; the last one pads, half of the others are of keys and half of values.
        sequence_length: tokens of one example.
        motif: largest number of tokens in a key or value.
    """

    name: Literal["fuzzy_recall"] = "fuzzy_recall"
    vocabulary: Annotated[int, Rule("must be at least 4", lambda value: value >= 4)] = 16
    sequence_length: AtLeastTwo = 128
    motif: AtLeastOne = 3

    causal = True

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        tokens = (self.vocabulary - 1) // 2
        if self.motif > tokens:
            raise ConfigError(
                f"task.motif={self.motif} different tokens do not fit the {tokens} that task.vocabulary="
                f"{self.vocabulary} has for keys; choose a vocabulary of at least {2 * self.motif + 1}"
            )
        if self.sequence_length <= 4 * self.motif:
            raise ConfigError(
                f"task.sequence_length={self.sequence_length} leaves no room for two pairs of task.motif={self.motif}; "
                f"choose at least {4 * self.motif + 1}"
            )


@dataclass(frozen=True)
class NoisyRecallConfig(SyntheticConfig):
    """MAD (Poli et al. 2024): in-context recall with noise in place of some of the pairs.

    Attributes:
        vocabulary: symbols, those of the noise included.
        noise_vocabulary: symbols of the noise.
        noise: share of the pairs that are noise.
        sequence_length: tokens of one example.
    """

    name: Literal["noisy_recall"] = "noisy_recall"
    vocabulary: AtLeastTwo = 32
    noise_vocabulary: AtLeastOne = 16
    noise: Rate = 0.2
    sequence_length: PairsOfTokens = 128

    causal = True

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        if self.vocabulary - self.noise_vocabulary < 4:
            raise ConfigError(
                f"task.vocabulary={self.vocabulary} counts task.noise_vocabulary={self.noise_vocabulary} and leaves "
                f"fewer than 4 symbols for keys and values; choose at least {self.noise_vocabulary + 4}"
            )


@dataclass(frozen=True)
class SelectiveCopyConfig(SyntheticConfig):
    """MAD (Poli et al. 2024): repeat the content tokens in order, skipping the blanks between them.

    Attributes:
        vocabulary: symbols.
        sequence_length: tokens of one example.
        copies: how many content tokens are copied.
    """

    name: Literal["selective_copy"] = "selective_copy"
    vocabulary: Annotated[int, Rule("must be at least 3", lambda value: value >= 3)] = 16
    sequence_length: AtLeastTwo = 256
    copies: AtLeastOne = 16

    def rules(self) -> None:
        """Raises ConfigError when knobs contradict one another."""
        least = 2 * self.copies + 2
        if least > self.sequence_length:
            raise ConfigError(
                f"task.copies={self.copies} need {least} tokens (one to read, one to write, a blank and one that "
                f"asks), but task.sequence_length={self.sequence_length}; lower the one or raise the other"
            )


@dataclass(frozen=True)
class CompressionConfig(SyntheticConfig):
    """MAD (Poli et al. 2024): squeeze the sequence into its last token, from which an MLP decodes every position.

    Attributes:
        vocabulary: symbols.
        sequence_length: tokens of one example.
    """

    name: Literal["compression"] = "compression"
    vocabulary: AtLeastTwo = 16
    sequence_length: AtLeastTwo = 32


@dataclass(frozen=True)
class MemorizationConfig(SyntheticConfig):
    """MAD (Poli et al. 2024): a fixed map from keys to values, learned in training and not from the context.

    Attributes:
        vocabulary: symbols.
        sequence_length: tokens of one example.
    """

    name: Literal["memorization"] = "memorization"
    training_examples: AtLeastOne | None = 256
    vocabulary: Annotated[int, Rule("must be at least 3", lambda value: value >= 3)] = 256
    sequence_length: AtLeastTwo = 32
