"""Two marks of an image, so many cells apart: whoever is near-sighted cannot tell how they are related."""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from flaxformer_lab import registry
from flaxformer_lab.functional.metrics import Metrics
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models import theory
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.task_config import TwoMarksConfig
from flaxformer_lab.tasks.images import image_network
from flaxformer_lab.tasks.probe import Probe
from flaxformer_lab.tasks.task import ACCURACY, Batch, Bound, loss_and_accuracy

KINDS = 4  # of marks: which pixel of a cell is bright, clockwise
CORNERS = ((0, 0), (0, 1), (1, 1), (1, 0))


@registry.register("task", "two_marks", config=TwoMarksConfig, has_grid=True)
class TwoMarks(Probe):
    """Is the right mark of the left one's kind (`alike`), or does it come after it (`order`)? Two classes.

    Theorem: where no token sees both marks, the mean over tokens, and so the difference of the logits, is a(left, its
    place) + b(right, its place). Either mark alone says nothing of the class, so the cross-entropy, which is convex in
    that difference, is at least log 2: what trains on it stays at chance. Any such sum is right in 3 of 4 cases at
    most, since among four pairs of marks that share their left and right marks crosswise one is wrong. Condition: twice
    `theory.reach` in patches is less than the distance between the marks' patches, and nothing else joins tokens. The
    distance is that on the grid for a model that needs one; other models read row after row, so that for them the end
    of one row is near the start of the next one.

    Theorem: a network that gives the same for its tokens in every order cannot tell a pair from its mirror image. The
    classes of `alike` do not change with it, those of `order` do: it is right in half of the cases.
    """

    primary_metric = ACCURACY
    units = ("images", 1)
    _config: TwoMarksConfig

    @property
    def _shape(self) -> tuple[int, int, int]:
        return 2 * self._config.rows, 2 * self._config.columns, 1

    def draw(self, key: Key[Array, ""]) -> tuple[Float[Array, "rows columns 1"], Int[Array, ""], Float[Array, "1"]]:
        """An image with marks from 1 (the bright pixel) to -1 on 0, its class 0 or 1, and the weight of one answer."""
        image, label, _ = self._draw(key)
        return image, label, jnp.ones((1,))

    def _draw(self, key: Key[Array, ""]) -> tuple[Float[Array, "rows columns 1"], Int[Array, ""], Array]:
        """An image, its class, and where the marks are [rows, columns]."""
        config = self._config
        row_key, column_key, kind_key, label_key, noise_key = jax.random.split(key, 5)
        row = jax.random.randint(row_key, (), 0, config.rows)
        column = jax.random.randint(column_key, (), 0, config.columns - config.distance)
        left = jax.random.randint(kind_key, (), 0, KINDS)
        label = jax.random.randint(label_key, (), 0, 2)
        right = left + 2 * label + (1 if config.relation == "order" else 0)
        places = jnp.stack([column, column + config.distance])
        kinds = jnp.stack([left, right % KINDS])
        cells = jnp.zeros((config.rows, 2, config.columns, 2))  # row of cells, of pixels, column of cells, of pixels
        marks = _marks()[kinds] + config.noise * jax.random.normal(noise_key, (2, 2, 2))
        image = cells.at[row, :, places].set(marks).reshape(self._shape)
        return image, label, cells.at[row, :, places].set(1.0).reshape(self._shape[:2])

    def prepare(self, examples: Batch, keys: Key[Array, " batch"], *, training: bool) -> Batch:
        del training
        keys = jax.vmap(jax.random.fold_in)(keys, examples["index"])
        images, labels, objects = jax.vmap(self._draw)(keys)
        return {
            "inputs": images,
            "targets": labels,
            "loss_weights": examples["example_weight"],
            "object_pixels": objects,
        }

    def network(self, config: ModelConfig) -> PureNetwork:
        return image_network(config, self._shape, patch_size=self._config.patch_size, outputs=2)

    def loss_and_metrics(self, logits: Float[Array, "batch 2"], batch: Batch) -> Metrics:
        return loss_and_accuracy(logits, batch)

    def input_spec(self, batch_size: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch_size, *self._shape), jnp.float32)

    def bound(self, config: ModelConfig) -> Bound | None:
        rows, columns, _ = self._shape
        sight = theory.reach(config, rows * columns // self._config.patch_size**2)
        on_grid = registry.ask("model", config.name, "needs_grid", config) is True
        if 2 * sight < self._least_distance(on_grid=on_grid):
            return Bound("accuracy", 0.75, "no token sees both marks, and no sum over tokens is right more often")
        return None

    def _least_distance(self, *, on_grid: bool) -> int:
        """Between a patch of the left mark and one of the right mark, wherever these are.

        On the grid the larger one of rows and columns; else of tokens, where one row of patches follows another.
        """
        config, size = self._config, self._config.patch_size

        def steps(cells: int, apart: int) -> set[int]:
            """Patches from a pixel of one cell to a pixel of the one `apart`, along one side of the image."""
            first, pixels = range(0, 2 * (cells - apart), 2), itertools.product((0, 1), repeat=2)
            return {(at + 2 * apart + j) // size - (at + i) // size for (i, j), at in itertools.product(pixels, first)}

        pairs = itertools.product(steps(config.rows, 0), steps(config.columns, config.distance))
        if on_grid:
            return min(max(abs(down), abs(along)) for down, along in pairs)
        return min(abs(down * 2 * config.columns // size + along) for down, along in pairs)


def _marks() -> Float[Array, "4 2 2"]:
    """A cell for each kind: 1 at its corner, else -1."""
    marks = jnp.full((KINDS, 2, 2), -1.0)
    for kind, corner in enumerate(CORNERS):
        marks = marks.at[kind, corner[0], corner[1]].set(1.0)
    return marks
