"""Networks for objects in images: the backbone that all detectors share, DETR's queries, and a head for each."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flaxformer_lab.functional import detection, normalization
from flaxformer_lab.functional.convolution import neighbourhood_2d
from flaxformer_lab.functional.linear import broadcast_parameter
from flaxformer_lab.functional.position import sinusoidal_2d
from flaxformer_lab.functional.roi_align import roi_align
from flaxformer_lab.modules.convolution import map_windows_2d
from flaxformer_lab.modules.projection import Dense, normal
from flaxformer_lab.modules.rngs import Rngs
from flaxformer_lab.modules.sharding import read

STRIDES = (2, 2, 2, 1)
STRIDE = 8  # of all convolutions together
# Each strided convolution is centred on the first of its two rows, as PyTorch's with padding 1 is; so the features of a
# cell are centred so many pixels before its own centre.
BEFORE_CENTRE = 3.5
TokenVectors = Float[Array, "batch tokens width"]
Grid = tuple[int, int]
RARE = -4.6  # the logit at which classes of places start: a probability of 0.01 (Lin et al. 2017, 4.1)


class Backbone(nnx.Module):
    """Four 3 x 3 convolutions with GELU and an RMS norm without parameters; the first three halve rows and columns.

    Channels: a quarter of the width, half of it, and twice the width. The cells of the result are the tokens.
    """

    def __init__(self, channels: int, width: int, *, bias: bool, dtype: str, rngs: Rngs):
        self._dtype = jnp.dtype(dtype)
        sizes = [channels, max(width // 4, 1), max(width // 2, 1), width, width]
        self.maps = nnx.List(
            [
                Dense(9 * before, after, axes=(None, "width" if after == width else None), bias=bias, rngs=rngs)
                for before, after in itertools.pairwise(sizes)
            ]
        )

    def __call__(self, images: Float[Array, "batch rows columns channels"]) -> TokenVectors:
        x = images.astype(self._dtype)
        for convolution, stride in zip(self.maps, STRIDES, strict=True):
            x = jax.nn.gelu(map_windows_2d(convolution, x, 3, stride), approximate=False)
            x = normalization.simple_rms_norm(x, 1e-6)
        return x.reshape(x.shape[0], -1, x.shape[-1])


class QueryEmbedding(nnx.Module):
    """The backbone's tokens with their places, for the encoder; and learned queries, for the decoder.

    Places are added once, before the first block (Carion et al. 2020 add them in every one).
    """

    def __init__(self, backbone: Backbone, grid: Grid, queries: int, width: int, *, dtype: str, rngs: Rngs):
        self._grid, self._dtype = grid, jnp.dtype(dtype)
        self.backbone = backbone
        self.queries = normal(rngs, (queries, width), 1, (None, "width"))

    def __call__(self, images: Float[Array, "batch rows columns channels"]) -> dict[str, TokenVectors]:
        x, queries = self.backbone(images), read(self.queries)
        place = broadcast_parameter(sinusoidal_2d(*self._grid, x.shape[2]), x.shape, x.dtype)
        return {
            "source": x + place,
            "target": broadcast_parameter(queries, (x.shape[0], *queries.shape), self._dtype),
        }


class Perceptron(nnx.Module):
    """Dense maps with GELU between them."""

    def __init__(self, sizes: tuple[int, ...], *, bias: bool, rngs: Rngs):
        pairs = itertools.pairwise(sizes)
        options = {"bias": bias, "rngs": rngs}
        self.maps = nnx.List([Dense(*pair, axes=("width", None), **options) for pair in pairs])

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch outputs"]:
        for each in self.maps[:-1]:
            x = jax.nn.gelu(each(x), approximate=False)
        return self.maps[-1](x)


class QueryHead(nnx.Module):
    """DETR's: of each query the logits of the classes and of "no object", and a box in shares of the image.

    boxes: (centre x, centre y, width, height).
    """

    def __init__(self, width: int, classes: int, *, bias: bool, rngs: Rngs):
        self.classes = Dense(width, classes + 1, axes=("width", None), bias=bias, rngs=rngs)
        self.boxes = Perceptron((width, width, width, 4), bias=bias, rngs=rngs)

    def __call__(self, x: TokenVectors) -> dict[str, Array]:
        boxes = jax.nn.sigmoid(self.boxes(x).astype(jnp.float32))
        return {"logits": self.classes(x).astype(jnp.float32), "boxes": boxes}


class PlaceHead(nnx.Module):
    """Of each place: logits of the classes, the code of a box, and the logit of its quality."""

    def __init__(self, width: int, classes: int, *, bias: bool, rngs: Rngs):
        self._classes = classes
        self.map = Dense(width, classes + 5, axes=("width", None), bias=bias, rngs=rngs)

    def __call__(self, x: TokenVectors) -> dict[str, Array]:
        y = self.map(x).astype(jnp.float32)
        logits, code, quality = jnp.split(y, (self._classes, self._classes + 4), axis=-1)
        return {"logits": logits + RARE, "code": code, "quality": quality[..., 0]}


class RegionHead(nnx.Module):
    """Faster R-CNN (Ren et al. 2015): anchors are scored and moved, the best become proposals, whose features decide.

    anchors: sizes and ratios, in pixels of an `image` of so many rows and columns (`detection.grid_anchors`). regions:
    proposals of an image. size: cells of a proposal's features, along each side.
    """

    def __init__(
        self,
        width: int,
        classes: int,
        *,
        grid: Grid,
        anchors: tuple[tuple[float, ...], tuple[float, ...]],
        image: tuple[int, int],
        regions: int,
        size: int = 4,
        bias: bool,
        rngs: Rngs,
    ):
        self._grid, self._anchors, self._image = grid, anchors, image
        self._regions, self._size, self._classes = regions, size, classes
        each = len(anchors[0]) * len(anchors[1])
        self.proposing = Perceptron((9 * width, width, 5 * each), bias=bias, rngs=rngs)
        sizes = (size * size * width, 2 * width, 2 * width, 5 * classes + 1)
        self.deciding = Perceptron(sizes, bias=bias, rngs=rngs)

    def __call__(self, x: TokenVectors) -> dict[str, Any]:
        image = x.reshape(x.shape[0], *self._grid, x.shape[-1])
        first = self.proposing(neighbourhood_2d(image, 3)).astype(jnp.float32).reshape(x.shape[0], -1, 5)
        scores, code = first[..., 0], first[..., 1:]
        anchors = detection.grid_anchors(self._grid, *self._anchors, self._image)
        propose = jax.vmap(lambda scores, code: detection.propose(scores, code, anchors, self._regions))
        proposals = propose(scores, code)
        cells = jnp.array([self._grid[1], self._grid[0]] * 2, jnp.float32)
        # `roi_align` takes the centre of a cell for where its features are centred.
        places = proposals.boxes * cells[None, None] + BEFORE_CENTRE / STRIDE
        regions = jax.vmap(lambda features, boxes: roi_align(features, boxes, self._size))(image, places)
        second = self.deciding(regions.reshape(*regions.shape[:2], -1)).astype(jnp.float32)
        logits, codes = jnp.split(second, (self._classes + 1,), axis=-1)
        return {
            "anchor_scores": scores,
            "anchor_code": code,
            "proposals": proposals._asdict(),  # as plain as an exported program needs its outputs
            "logits": logits,
            "code": codes.reshape(*codes.shape[:2], self._classes, 4),
        }
