"""Compiles train steps for devices that this machine does not have, with libtpu and with XLA for CUDA.

The extras `tpu-compile` and `cuda-compile` install the compilers. Nothing runs; a program's text and memory can be
read.
"""

import collections
import functools
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from flaxformer_lab.compilation import deterministic_options
from flaxformer_lab.modules.sharding import LOGICAL_AXIS_RULES
from flaxformer_lab.training.experiment import Experiment
from flaxformer_lab.training.mesh import Mesh
from flaxformer_lab.training.state import Tree
from flaxformer_lab.training.step import make_train_step

H100 = Path(__file__).parent / "h100.txtpb"  # what XLA needs to know about a GPU

# Without these libtpu asks a cloud's metadata server which devices it has, and waits.
WITHOUT_A_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
COLLECTIVE = re.compile(rf" = (?P<shapes>\S.*?) (?P<kind>{KINDS})(?P<start>-start)?\(.*?\)(?P<options>.*)")
# A collective, or an operation that a device works at meanwhile.
WORK = re.compile(
    rf"%([\w.-]+) = \S.*? ((?:{KINDS})(?:-start|-done)?|fusion|custom-call|dot|convolution|while)\((?:%([\w.-]+))?"
)
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}


@functools.cache
def tpus(slice_name: str) -> tuple[jax.Device, ...]:
    """The chips of a slice by its name: `v5e:2x4`, `v5p:16x16x16`."""
    for name, value in WITHOUT_A_TPU.items():
        os.environ.setdefault(name, value)
    return tuple(topologies.get_topology_desc(slice_name, platform="tpu").devices)


@functools.cache
def h100s(number: int) -> tuple[jax.Device, ...]:
    """NVIDIA H100s in machines of eight."""
    local = math.gcd(number, 8)
    shape = f"1x{number // local}x{local}"  # networks x machines x GPUs of a machine
    options = {"target_config": H100.read_text(encoding="utf-8"), "topology": shape}
    return tuple(topologies.get_topology_desc("h100", "cuda", **options).devices)


@dataclass(frozen=True)
class Collective:
    """A collective. num_bytes: of its result on each device; among: the number of devices that take part."""

    kind: str
    dtype: str
    num_bytes: int
    among: int

    @property
    def received(self) -> float:
        """Bytes that a device receives by the best algorithm."""
        others = (self.among - 1) / self.among
        factor = {"all-reduce": 2 * others, "reduce-scatter": self.among - 1, "collective-permute": 1.0}
        return self.num_bytes * factor.get(self.kind, others)


@dataclass(frozen=True)
class Program:
    """A program that was compiled for one device of many."""

    compiled: jax.stages.Compiled
    num_devices: int

    @functools.cached_property
    def text(self) -> str:
        """Its instructions."""
        return self.compiled.as_text()

    @functools.cached_property
    def kernels(self) -> set[str]:
        """The names of external kernels that XLA calls."""
        return set(re.findall(r'custom_call_target="([^"]+)"', self.text))

    @functools.cached_property
    def collectives(self) -> list[Collective]:
        """All collectives, one for each array where XLA sends several in one call."""
        found, chains = [], set()
        for match in COLLECTIVE.finditer(self.text):
            chain = re.search(r'chain_id="(\d+)"', match["options"])
            if chain and chain[1] in chains:
                continue  # libtpu repeats an asynchronous collective at each of its steps
            chains |= {chain[1]} if chain else set()
            shapes = SHAPE.findall(match["shapes"])
            if match["start"] and match["kind"] == "collective-permute":
                shapes = shapes[1:2]  # operand, result, and what else a TPU keeps
            elif match["start"] and match["kind"] != "all-reduce":
                shapes = shapes[len(shapes) // 2 :]  # operands, results
            among = _among(match["options"], self.num_devices)
            found += [Collective(match["kind"], dtype, _bytes(dtype, dims), among) for dtype, dims in shapes]
        return found

    @functools.cached_property
    def hidden_by(self) -> list[tuple[str, int]]:
        """Of each collective of a GPU its kind, and how many operations run between its start and its end.

        0 for one that is not asynchronous: the device waits for it. (libtpu fuses asynchronous ones with products.)
        """
        found, started = [], {}
        for number, line in enumerate(filter(WORK.search, self.text.splitlines())):
            name, opcode, operand = WORK.search(line).groups()
            kind = opcode.removesuffix("-start").removesuffix("-done")
            if opcode.endswith("-start"):
                started[name] = number
            elif opcode.endswith("-done"):
                found.append((kind, number - started[operand] - 1))
            elif kind in KINDS.split("|"):
                found.append((kind, 0))
        return found

    @property
    def counts(self) -> dict[str, int]:
        """`{"all-gather bf16": 3}`."""
        return dict(sorted(collections.Counter(f"{each.kind} {each.dtype}" for each in self.collectives).items()))

    @property
    def temporary_bytes(self) -> int:
        """Bytes that a device needs beside arguments and results."""
        return self.compiled.memory_analysis().temp_size_in_bytes


def _bytes(dtype: str, dims: str) -> int:
    return BYTES[dtype] * math.prod(map(int, filter(None, dims.split(","))))


def _among(options: str, num_devices: int) -> int:
    """The size of a group of devices, for which XLA has three notations.

    `{{0,1},{2,3}}`; the same as `[groups,size]<=[devices]`; axes of a mesh, whole or in parts, as
    `mesh['a'=2,'b'=4] {'a','b':(1)2}`.
    """
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]", options):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", options):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2]))
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", options)
    return len(listed[1].split(",")) if listed else num_devices


def compile_train_step(experiment: Experiment, devices: tuple[jax.Device, ...], batch: Tree) -> Program:
    """One update as the experiment's strategy (single or mesh) runs it. batch: its shapes, like `abstract_batch`'s."""
    strategy = experiment.strategy
    mesh = strategy.mesh if isinstance(strategy, Mesh) else jax.sharding.Mesh(devices, ("single",))
    whole = jax.sharding.NamedSharding(mesh, jax.P())
    rows = jax.sharding.NamedSharding(mesh, jax.P(LOGICAL_AXIS_RULES["batch"])) if mesh.size > 1 else whole
    state = experiment.abstract_state
    layout = experiment.layout or jax.tree.map(lambda _: whole, state)
    place = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)  # noqa: E731
    batch = jax.tree.map(lambda leaf: place(leaf, rows), batch)
    parts = experiment.task, experiment.network, experiment.optimizer
    training = experiment.config.training
    step = make_train_step(*parts, seed=0, accumulate=training.accumulate, loss_chunk=training.loss_chunk)
    arguments = jax.tree.map(place, state, layout), batch
    options = {"donate_argnums": 0, "out_shardings": (layout, whole), "deterministic": experiment.config.deterministic}
    return compile_for(mesh, step, *arguments, **options)


def compile_for(
    mesh: jax.sharding.Mesh,
    function: Callable[..., Tree],
    *arguments: Tree,
    deterministic: bool = True,
    **options: Any,
) -> Program:
    """Compiles a function of shapes by `jax.jit` with these options for the devices of a mesh."""
    with jax.set_mesh(mesh):
        lowered = jax.jit(function, **options).lower(*arguments)
        return Program(lowered.compile(compiler_options=deterministic_options(deterministic)), mesh.size)


def abstract_batch(experiment: Experiment, dtype: jnp.dtype) -> Tree:
    """The shapes of a batch as a language model or an image classifier stores it; dtype: of symbols or pixels."""
    task, size = experiment.config.task, experiment.config.training.batch_size
    if task.name == "image_classification":
        image = tuple(experiment.task.metadata["image_shape"])
        shapes = {"image": (image, dtype), "label": ((), jnp.int32)}
    else:
        stored = task.sequence_length + (task.objective == "next_token")
        shapes = {"symbols": ((stored,), dtype), "loss_weights": ((task.sequence_length,), jnp.float32)}
    shapes |= {"row": ((), jnp.int32), "example_weight": ((), jnp.float32)}
    return {key: jax.ShapeDtypeStruct((size, *shape), kind) for key, (shape, kind) in shapes.items()}
