"""Ways to run one compiled step: on one device, replicated over all local devices with `jax.pmap`, or on a mesh.

All have the same methods, so the loop does not depend on the strategy: `compile` a function of trees, `place` what
every device holds in full, `place_state` a state with the shardings of `layout` (None: all leaves are replicated),
`split` what the devices shard along an axis (of a batch the `process_local_rows` alone); `gather` what was split along
the first axis, and `fetch` a value that all agree on. A function that is compiled with a layout returns (state, rest),
and leaves the state there. `num_shards` is how many ways a batch is split.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxformer_lab.compilation import Option
from flaxformer_lab.config import Config, MeshConfig
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.platform import target_platform
from flaxformer_lab.modules.sharding import Axes
from flaxformer_lab.training.mesh import Mesh
from flaxformer_lab.training.single import Single
from flaxformer_lab.training.state import State, Tree


class Pmap(Single):
    """`jax.pmap` over the local devices: parameters replicated, the batch split, gradients summed across devices."""

    name = "pmap"
    axis_name = "devices"

    def __init__(self, *, deterministic: bool = True):
        super().__init__(deterministic=deterministic)
        devices = np.array(jax.local_devices())
        mesh = jax.sharding.Mesh(devices, (self.axis_name,))
        self.num_devices, self.num_shards = len(devices), jax.device_count()
        self._sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(self.axis_name))
        everywhere = jax.sharding.Mesh(np.array(jax.devices()), (self.axis_name,))
        self._everywhere = jax.sharding.NamedSharding(everywhere, jax.sharding.PartitionSpec())

    def compile(
        self, function: Callable[..., Tree], *, donate: tuple[int, ...] = (), layout: Tree = None
    ) -> Callable[..., Tree]:
        del layout
        compiled = jax.pmap(function, axis_name=self.axis_name, donate_argnums=donate)
        return WithOptions(compiled, self._options) if self._options else compiled

    def place(self, tree: Tree) -> Tree:
        return jax.tree.map(self._replicated, tree)

    def _replicated(self, leaf: Any) -> jax.Array:
        host = np.asarray(jax.device_get(leaf))
        return jax.device_put(np.broadcast_to(host, (self.num_devices, *host.shape)), self._sharding)

    def layout(self, state: State, axes: dict[str, Axes]) -> State | None:
        """The sharding of a state that is saved or restored: several processes must say that they mean the same one."""
        del axes
        return None if jax.process_count() == 1 else jax.tree.map(lambda leaf: self._everywhere, state)

    def process_local_rows(self, size: int) -> slice | np.ndarray:
        share = size // jax.process_count()
        return slice(jax.process_index() * share, (jax.process_index() + 1) * share)

    def split(self, tree: Tree, batch_axis: int) -> Tree:
        def shards(leaf: np.ndarray) -> jax.Array:
            shape = leaf.shape
            parts = leaf.reshape(*shape[:batch_axis], self.num_devices, -1, *shape[batch_axis + 1 :])
            return jax.device_put(np.moveaxis(parts, batch_axis, 0), self._sharding)

        return jax.tree.map(shards, tree)

    def unreplicate(self, tree: Tree) -> Tree:
        if jax.process_count() == 1:
            return jax.tree.map(_first, tree)

        def joined(leaf: jax.Array) -> jax.Array:
            shards = [shard.data.reshape(leaf.shape[1:]) for shard in leaf.addressable_shards]
            return jax.make_array_from_single_device_arrays(leaf.shape[1:], self._everywhere, shards)

        return jax.tree.map(joined, tree)

    def fetch(self, tree: Tree) -> Tree:
        return jax.device_get(jax.tree.map(_first, tree))

    def gather(self, tree: Tree) -> Tree:
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), jax.device_get(tree))


def _first(leaf: jax.Array) -> jax.Array:
    # The first device's shard as it stands: indexing the whole array instead would move data between devices.
    return leaf.addressable_shards[0].data.reshape(leaf.shape[1:])


class WithOptions:
    """A function compiled with options, for `jax.pmap`, which takes none: once for each structure of arguments."""

    def __init__(self, function: Any, options: Mapping[str, Option]):
        self._function, self._options, self._programs = function, dict(options), {}

    def lower(self, *arguments: Tree) -> "Lowered":
        return Lowered(self._function.lower(*arguments), self._options)

    def __call__(self, *arguments: Tree) -> Tree:
        leaves, structure = jax.tree.flatten(arguments)
        key = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self._programs:
            self._programs[key] = self.lower(*arguments).compile()
        return self._programs[key](*arguments)


class Lowered(NamedTuple):
    """A lowered program, and the options that it will be compiled with."""

    program: jax.stages.Lowered
    options: Mapping[str, Option]

    def compile(self, compiler_options: Mapping[str, Option] | None = None) -> jax.stages.Compiled:
        return self.program.compile(compiler_options={**self.options, **(compiler_options or {})})


Strategy = Single | Pmap | Mesh


def _refuse_nondeterministic_attention(config: Config) -> None:
    """Raises ConfigError where a config asks for deterministic results from cuDNN's attention.

    Under XLA's option for it, a model of several such blocks ended with an IndexError on an H200 (jax 0.11.2).
    """
    model = config.model
    on_cudnn = model.dtype == "bfloat16" and model.name == "transformer" and model.attention.kind == "softmax"
    if config.deterministic and on_cudnn and target_platform() == "gpu":
        raise ConfigError(
            "training.deterministic=true with model.dtype=bfloat16 and model.attention.kind=softmax on a GPU: cuDNN's "
            "attention fails under XLA's deterministic operations; set training.deterministic to none, or choose "
            "model.dtype=float32 or another attention.kind"
        )


def make_strategy(config: Config) -> Strategy:
    """The strategy that `config.parallelism` names; auto takes a mesh where one is asked for, pmap for many devices.

    Raises:
        ConfigError: a batch that the devices cannot divide equally, or one device where several processes have joined.
    """
    name, mesh = config.parallelism.strategy, config.parallelism.mesh
    if name == "auto":
        name = "mesh" if mesh != MeshConfig() else "pmap" if jax.device_count() > 1 else "single"
    if name == "single" and jax.process_count() > 1:
        raise ConfigError(
            f"parallelism.strategy=single is training on one device, but {jax.process_count()} processes have joined; "
            "choose pmap or mesh, or start one process without --distributed"
        )
    _refuse_nondeterministic_attention(config)
    options = {"deterministic": config.deterministic}
    strategy = Mesh(mesh, **options) if name == "mesh" else Pmap(**options) if name == "pmap" else Single(**options)
    or_one = ", or parallelism.strategy=single" if jax.process_count() == 1 else ""
    shards = strategy.num_shards * config.training.accumulate
    if config.training.batch_size % shards:
        raise ConfigError(
            f"training.batch_size={config.training.batch_size} cannot be shared equally by {strategy.num_shards} "
            f"devices x training.accumulate={config.training.accumulate}; choose a multiple of {shards}{or_one}"
        )
    if config.training.evaluate_batch_size % strategy.num_shards:
        raise ConfigError(
            f"training.evaluate_batch_size={config.training.evaluate_batch_size} cannot be shared equally by "
            f"{strategy.num_shards} devices; choose a multiple of {strategy.num_shards}{or_one}"
        )
    return strategy
