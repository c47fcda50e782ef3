"""The strategy of one device, and what the others share with it."""

from collections.abc import Callable

import jax
import numpy as np

from flaxformer_lab.compilation import deterministic_options
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.modules.sharding import Axes
from flaxformer_lab.training.state import State, Tree


class Single:
    """`jax.jit` on the first device.

    deterministic: a program gives the same bytes each time (`training.deterministic`).
    """

    name = "single"
    axis_name = None
    num_devices = num_shards = 1

    def __init__(self, *, deterministic: bool = True):
        self._options = deterministic_options(deterministic)

    def compile(
        self, function: Callable[..., Tree], *, donate: tuple[int, ...] = (), layout: Tree = None
    ) -> Callable[..., Tree]:
        del layout
        return jax.jit(function, donate_argnums=donate, compiler_options=self._options)

    def place(self, tree: Tree) -> Tree:
        return jax.device_put(tree, jax.local_devices()[0])

    def place_state(self, state: State, layout: State | None) -> State:
        del layout
        return self.place(state)

    def layout(self, state: State, axes: dict[str, Axes]) -> None:
        del state, axes

    def check(self, network: PureNetwork, inputs: Tree) -> None:
        """Raises ConfigError where the tokens of these inputs cannot be sharded equally."""
        del network, inputs

    def process_local_rows(self, size: int) -> slice | np.ndarray:
        """Which rows of a batch of this size the devices of this process hold."""
        del size
        return slice(None)

    def split(self, tree: Tree, batch_axis: int) -> Tree:
        del batch_axis
        return self.place(tree)

    def unreplicate(self, tree: Tree) -> Tree:
        return tree

    def fetch(self, tree: Tree) -> Tree:
        return jax.device_get(tree)

    def gather(self, tree: Tree) -> Tree:
        return jax.device_get(tree)
