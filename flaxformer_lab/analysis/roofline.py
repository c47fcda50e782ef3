"""The least time of an update on a device, from its FLOPs and bytes (Williams et al. 2009, the roofline model).

FLOPs are those of matrix products and convolutions, as in the share of peak that papers report (Chowdhery et al. 2022,
PaLM, appendix B), counted in the program that JAX traces; what rematerialisation computes again counts. Bytes are those
that the compiled program moves through the device's memory, where the device's compiler is installed; the device itself
need not be there. Without a compiler they are a lower bound from the traced program.
"""

import importlib.metadata
import importlib.util
import math
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr

from flaxformer_lab.analysis.hlo import Totals, parse_hlo
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.models.flops import RULES, as_counted, inner_jaxprs
from flaxformer_lab.training.absent_devices import compile_train_step, h100s, tpus
from flaxformer_lab.training.experiment import Experiment
from flaxformer_lab.training.step import make_train_step

Tree = Any  # a pytree of arrays
PRODUCTS = ("dot_general", "conv_general_dilated")
WIDE = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGH)


@dataclass(frozen=True)
class Device:
    """What a device can do at most.

    peak: FLOP/s of its products by their kind: `bfloat16`, and float32 at each `model.precision` (`highest`, `high`,
    `default`). bandwidth: bytes per second of its memory. compiler: which one serves it, `tpu` or `cuda`.
    """

    name: str
    peak: dict[str, float]
    bandwidth: float
    compiler: str | None = None


def _gpu(
    name: str, bfloat16: float, tf32: float, float32: float, bandwidth: float, compiler: str | None = None
) -> Device:
    peak = {"bfloat16": bfloat16, "default": tf32, "high": tf32, "highest": float32}
    return Device(name, {kind: value * 1e12 for kind, value in peak.items()}, bandwidth * 1e9, compiler)


def _tpu(name: str, bfloat16: float, bandwidth: float, compiler: str | None = None) -> Device:
    # float32 is one, three or six passes of bfloat16 (jax.lax.Precision).
    peak = {"bfloat16": bfloat16, "default": bfloat16, "high": bfloat16 / 3, "highest": bfloat16 / 6}
    return Device(name, {kind: value * 1e12 for kind, value in peak.items()}, bandwidth * 1e9, compiler)


# Dense TFLOP/s and GB/s. GPUs: NVIDIA's data sheets of A100 (80 GB), H100 and H200, column SXM; half of what they state
# "with sparsity". TPUs: the pages "TPU v4", "v5e", "v5p" and "v6e" of Cloud TPU's documentation.
DEVICES = {
    "a100": _gpu("NVIDIA A100", 312, 156, 19.5, 2039),
    "h100": _gpu("NVIDIA H100", 989.4, 494.7, 66.9, 3350, "cuda"),
    "h200": _gpu("NVIDIA H200", 989.4, 494.7, 66.9, 4800, "cuda"),
    "v4": _tpu("TPU v4", 275, 1228),
    "v5e": _tpu("TPU v5e", 197, 819, "tpu"),
    "v5p": _tpu("TPU v5p", 459, 2765, "tpu"),
    "v6e": _tpu("TPU v6e", 918, 1640),
}
SLICES = {"v5e": "v5e:2x4", "v5p": "v5p:2x2x1"}
NAMES = (*DEVICES, "cpu")
KINDS = {  # JAX's `device_kind`, in lower case
    "nvidia a100-sxm4-80gb": "a100",
    "nvidia a100-sxm-80gb": "a100",
    "nvidia h100 80gb hbm3": "h100",
    "nvidia h200": "h200",
    "tpu v4": "v4",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5": "v5p",
    "tpu v5p": "v5p",
    "tpu v6 lite": "v6e",
    "tpu v6e": "v6e",
    "cpu": "cpu",
}


@dataclass(frozen=True)
class Cost:
    """One update. flops: by kind of product; source: where the bytes come from; groups: of operations, if compiled."""

    flops: dict[str, int]
    num_bytes: int
    source: str
    groups: dict[str, Totals]


@dataclass(frozen=True)
class Roofline:
    """The least time of an update, in seconds: products at their peak rates, bytes at the memory's rate."""

    product_seconds: float
    memory_seconds: float

    @property
    def seconds(self) -> float:
        return max(self.product_seconds, self.memory_seconds)

    @property
    def bound(self) -> str:
        """What the time is spent on at best."""
        return "products" if self.product_seconds >= self.memory_seconds else "memory"


def find_device(name: str) -> Device:
    """The device of this name; `cpu` is this machine, whose rates are measured, which takes a second.

    Raises:
        ConfigError: an unknown device.
    """
    if name == "cpu":
        return measured_cpu()
    if name not in DEVICES:
        raise ConfigError(f"--device={name} is not in the table of devices; choose one of {', '.join(NAMES)}")
    return DEVICES[name]


def device_of(kind: str) -> str | None:
    """The name of a device by JAX's `device_kind`, such as `NVIDIA H200` or `TPU v5 lite`; None if it is not known.

    Whole names: a card of the same family has other rates, as an H100 PCIe, a GH200 or an A100 of 40 GB.
    """
    return KINDS.get(kind.lower())


def measured_cpu() -> Device:
    """This machine: the fastest of some products of 1024 x 1024 in float32, and of some copies of 128 MiB."""
    with jax.default_device(jax.devices("cpu")[0]):
        square = jnp.ones((1024, 1024))
        product = _least_seconds(lambda: jnp.matmul(square, square, precision="highest"))
        long = np.ones(2**25, np.float32)
        copied = np.empty_like(long)
        copy = _least_seconds(lambda: np.copyto(copied, long))
    rate = 2 * 1024**3 / product
    return Device("this CPU", dict.fromkeys(("bfloat16", "default", "high", "highest"), rate), 2 * long.nbytes / copy)


def _least_seconds(run: Any) -> float:
    def seconds() -> float:
        start = time.perf_counter()
        jax.block_until_ready(run())
        return time.perf_counter() - start

    return min(seconds() for _ in range(20))


def roofline(cost: Cost, device: Device) -> Roofline:
    """The least time of an update that costs so much on a device."""
    products = sum(flops / device.peak[kind] for kind, flops in cost.flops.items())
    return Roofline(products, cost.num_bytes / device.bandwidth)


def cost_of_update(experiment: Experiment, batch: Tree, device: str, *, compile: bool = True) -> Cost:
    """FLOPs and bytes of one update on one device of this name. batch: shapes, as `stored_batch` gives them.

    compile: ask the device's compiler for the bytes, where it is installed; it takes a minute for a large model.
    """
    flops, num_bytes = products_of_update(experiment, batch)
    devices = absent_devices(device) if compile else None
    if devices is None:
        return Cost(flops, num_bytes, "traced program, a lower bound", {})
    module = parse_hlo(compile_train_step(experiment, devices, batch).text)
    return Cost(flops, module.num_bytes, compiler_name(device), module.by_group)


def products_of_update(experiment: Experiment, batch: Tree) -> tuple[dict[str, int], int]:
    """`count_products` of one update."""
    config = experiment.config
    parts = experiment.task, experiment.network, experiment.optimizer
    options = {"accumulate": config.training.accumulate, "loss_chunk": config.training.loss_chunk}
    step = make_train_step(*parts, seed=0, **options)
    with as_counted():  # a library's attention would hide its products
        flops, num_bytes = count_products(step, experiment.abstract_state, batch)
    if config.model.dtype != "float32":  # a CPU casts some 16-bit factors to float32, which other devices do not
        flops["bfloat16"] = flops.get("bfloat16", 0) + flops.pop("default", 0)
    return flops, num_bytes


def absent_devices(name: str) -> tuple[jax.Device, ...] | None:
    """One device of this name to compile for; None where its compiler is not installed."""
    if name == "cpu":
        return (jax.devices("cpu")[0],)
    compiler = DEVICES[name].compiler
    if compiler == "tpu" and importlib.util.find_spec("libtpu"):
        return tpus(SLICES[name])[:1]
    if compiler == "cuda" and any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        return h100s(1)
    return None


def compiler_name(device: str) -> str:
    """The compiler of a device, with its version."""
    if DEVICES.get(device) and DEVICES[device].compiler == "tpu":
        return f"libtpu {importlib.metadata.version('libtpu')}"
    kind = "CPU" if device == "cpu" else "H100"
    return f"XLA {importlib.metadata.version('jaxlib')} for {kind}"


def stored_batch(experiment: Experiment) -> Tree:
    """The shapes of the first batch, as its task stores it."""
    size, examples = experiment.config.training.batch_size, experiment.task.examples("train")
    stored = examples.read(examples.training_indices(experiment.config.seed, 0, size))
    batch = stored | {"row": np.zeros(size, np.int32), "example_weight": np.ones(size, np.float32)}
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), batch)


def count_products(function: Any, *arguments: Tree) -> tuple[dict[str, int], int]:
    """FLOPs of the products of `function(*arguments)` by kind, and a lower bound of the bytes that it moves.

    The bound: arguments are read and results written; each product reads its factors and writes its result. All other
    operations, and products over a batch, as those of attention, are taken to be parts of kernels that move nothing.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    live, _ = dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    flops: Counter[str] = Counter()
    num_bytes = _bytes(live.invars) + _bytes(live.outvars)
    for times, equation in _products(live, 1):
        flops[_kind(equation)] += times * RULES[equation.primitive.name](equation)
        if equation.primitive.name != "dot_general" or not any(equation.params["dimension_numbers"][1]):
            num_bytes += times * (_bytes(equation.invars) + _bytes(equation.outvars))
    return dict(flops), num_bytes


def _products(jaxpr: Jaxpr, times: int) -> Iterator[tuple[int, Any]]:
    """Each product, and how often it runs."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in PRODUCTS:
            yield times, equation
            continue
        inner = list(inner_jaxprs(equation))
        if name == "cond":  # the branch with the most products
            inner = [max(inner, key=lambda each: sum(n * RULES[e.primitive.name](e) for n, e in _products(each, 1)))]
        loops = {"scan": lambda p: p["length"], "pallas_call": lambda p: math.prod(p["grid_mapping"].grid)}
        repeats = loops.get(name, lambda params: 1)(equation.params)
        for each in inner:
            yield from _products(each, times * repeats)


def _kind(equation: Any) -> str:
    if all(jnp.dtype(variable.aval.dtype).itemsize <= 2 for variable in equation.invars):
        return "bfloat16"
    precision = equation.params["precision"]
    precision = precision[0] if isinstance(precision, tuple) else precision
    return precision.name.lower() if precision in WIDE else "default"


def _bytes(variables: Any) -> int:
    values = (variable.aval for variable in variables)
    return sum(math.prod(value.shape) * value.dtype.itemsize for value in values if hasattr(value, "shape"))
