"""The mesh strategy: `jax.jit` over all devices, each array placed by the names of its axes (Xu et al. 2021, GSPMD).

The program is that of one device. One table in `modules/sharding.py` says how arrays are sharded; the compiler adds the
communication.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from flaxformer_lab.config import MeshConfig
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.models.network import PureNetwork
from flaxformer_lab.modules.sharding import LOGICAL_AXIS_RULES, MESH_AXES, Axes, param_spec
from flaxformer_lab.modules.torus import learn_rings
from flaxformer_lab.training.single import Single
from flaxformer_lab.training.state import State, Tree

Spec = jax.sharding.PartitionSpec


class Mesh(Single):
    """A mesh of all devices with the axes data, fsdp, sequence and tensor."""

    name = "mesh"
    axis_name = None

    def __init__(self, config: MeshConfig, devices: Sequence[jax.Device] | None = None, *, deterministic: bool = True):
        """devices: default all of this job; those of `jax.experimental.topologies` to compile for absent ones."""
        devices = jax.devices() if devices is None else devices
        sizes = {"data": config.data, "fsdp": config.fsdp, "sequence": config.sequence, "tensor": config.tensor}
        rest = config.fsdp * config.sequence * config.tensor
        if len(devices) % rest or (config.data or len(devices) // rest) * rest != len(devices):
            asked = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size not in (None, 1))
            raise ConfigError(
                f"parallelism.mesh: {asked} cannot use {len(devices)} devices; choose sizes whose product is "
                f"{len(devices)}, or one that divides it and leave data to none"
            )
        self._sizes = sizes | {"data": len(devices) // rest}
        self.num_devices, self.num_shards = len(devices), self._sizes["data"] * config.fsdp
        automatic = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
        self.mesh = jax.make_mesh(tuple(self._sizes.values()), MESH_AXES, axis_types=automatic, devices=devices)
        learn_rings(self.mesh, "fsdp")
        with jax.set_mesh(self.mesh):
            super().__init__(deterministic=deterministic)

    def compile(
        self, function: Callable[..., Tree], *, donate: tuple[int, ...] = (), layout: Tree = None
    ) -> Callable[..., Tree]:
        whole = self._sharding(Spec())
        results = whole if layout is None else (layout, whole)
        compiled = jax.jit(function, donate_argnums=donate, out_shardings=results, compiler_options=self._options)

        def call(*arguments: Tree) -> Tree:
            with jax.set_mesh(self.mesh):
                return compiled(*arguments)

        return call

    def place(self, tree: Tree) -> Tree:
        sharding = self._sharding(Spec())

        def replicated(leaf: Any) -> jax.Array:
            if jax.process_count() == 1 or isinstance(leaf, jax.Array):
                return jax.device_put(leaf, sharding)
            # device_put would send what each process has to all others, to compare.
            with jax.transfer_guard("allow"):
                return jax.make_array_from_callback(np.shape(leaf), sharding, lambda index: np.asarray(leaf)[index])

        return jax.tree.map(replicated, tree)

    def place_state(self, state: State, layout: State | None) -> State:
        return jax.device_put(state, layout)

    def layout(self, state: State, axes: dict[str, Axes]) -> State:
        """The sharding of each leaf of a state: a parameter's by its axes, and the same for the optimizer's copies.

        Raises:
            ConfigError: an axis that the mesh cannot shard equally.
        """

        def place(path: tuple, leaf: Any) -> jax.sharding.NamedSharding:
            names = [str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path]
            tails = (".".join(names[start:]) for start in range(len(names)))
            name = next((tail for tail in tails if len(axes.get(tail, ())) == leaf.ndim > 0), None)
            if name is None:
                return self._sharding(Spec())
            self._require_equal_shards(name, axes[name], leaf.shape)
            return self._sharding(param_spec(axes[name]))

        return jax.tree_util.tree_map_with_path(place, state)

    def check(self, network: PureNetwork, inputs: Tree) -> None:
        if self._sizes["sequence"] > 1:
            tokens = jax.eval_shape(network.embed, *network.shapes, inputs).shape[1:2]
            self._require_equal_shards("a sequence", ("tokens",), tokens)

    def process_local_rows(self, size: int) -> slice | np.ndarray:
        if jax.process_count() == 1:
            return slice(None)
        held = self._sharding(Spec(LOGICAL_AXIS_RULES["batch"])).addressable_devices_indices_map((size,))
        return np.unique(np.concatenate([np.arange(size)[rows] for (rows,) in held.values()]))

    def split(self, tree: Tree, batch_axis: int) -> Tree:
        sharding = self._sharding(Spec(*(None,) * batch_axis, LOGICAL_AXIS_RULES["batch"]))
        if jax.process_count() == 1:
            return jax.device_put(tree, sharding)
        parts = self.num_shards // len(self.process_local_rows(self.num_shards))

        def whole(leaf: np.ndarray) -> jax.Array:
            shape = (*leaf.shape[:batch_axis], parts * leaf.shape[batch_axis], *leaf.shape[batch_axis + 1 :])
            with jax.transfer_guard("allow"):  # explicit, like device_put, but the transfer guard does not see that
                return jax.make_array_from_process_local_data(sharding, leaf, shape)

        return jax.tree.map(whole, tree)

    def _sharding(self, spec: Spec) -> jax.sharding.NamedSharding:
        return jax.sharding.NamedSharding(self.mesh, spec)

    def _require_equal_shards(self, name: str, axes: Axes, shape: tuple[int, ...]) -> None:
        for axis, size, place in zip(axes, shape, (*param_spec(axes), *(None,) * len(axes)), strict=False):
            if place is not None and size % self._sizes[place]:
                divisors = ", ".join(str(n) for n in range(1, size + 1) if size % n == 0)
                raise ConfigError(
                    f"parallelism.mesh.{place}={self._sizes[place]} does not divide the axis {axis}={size} of {name}; "
                    f"choose one of {divisors}"
                )
