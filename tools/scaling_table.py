"""Compiles the train step of large models for many devices, without running it, and writes docs/scaling.md's tables.

    python tools/scaling_table.py       # about three minutes on 2 cores

The devices are simulated ones of the CPU, which exist in the compiler's eyes alone: up to 256 of them are tried, and
for more the numbers are those of theory. A model is compiled with one block and with two, in processes of their own:
the second block costs what every further one does, so the numbers of the whole model follow.
"""

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "scaling.md"
SYMBOLS = 50304
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "u16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8}
COLLECTIVE = re.compile(r" = (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclass(frozen=True)
class Size:
    """Of a model: GPT-2's smallest, and the widths and depths that Brown et al. 2020 and Touvron et al. 2023 chose."""

    width: int
    depth: int
    heads: int
    tokens: int


SIZES = {"124M": Size(768, 12, 12, 1024), "1.3B": Size(2048, 24, 16, 2048), "7B": Size(4096, 32, 32, 4096)}


def compiled(name: str, depth: int, devices: int, batch: int) -> dict[str, float]:
    """Of one update with fsdp over all devices: parameters, bytes a device holds and needs, bytes it receives."""
    import jax

    jax.config.update("jax_num_cpu_devices", devices)
    import jax.numpy as jnp

    from flaxformer_lab.config import parse_config
    from flaxformer_lab.models.cost import parameters
    from flaxformer_lab.modules.sharding import PLACES
    from flaxformer_lab.training.programs import make_experiment
    from flaxformer_lab.training.step import make_train_step

    size = SIZES[name]
    model = {"width": size.width, "depth": depth, "attention": {"num_heads": size.heads}, "dtype": "bfloat16"}
    tree = {
        "task": {"name": "language_modelling", "tokenizer": "bytes", "sequence_length": size.tokens},
        "model": model | {"position": "rotary", "bias": False, "causal": True, "remat": True},
        "training": {"batch_size": batch, "evaluate_batch_size": batch},
        "parallelism": {"strategy": "mesh", "mesh": {"fsdp": devices}},
    }
    experiment = make_experiment(parse_config(tree), {"num_symbols": SYMBOLS})
    mesh = experiment.strategy.mesh
    rows = jax.sharding.NamedSharding(mesh, jax.P(PLACES["batch"]))
    shapes = {"symbols": ((size.tokens + 1,), jnp.uint16), "weights": ((size.tokens,), jnp.float32)}
    shapes |= {"row": ((), jnp.int32), "weight": ((), jnp.float32)}
    inputs = {key: jax.ShapeDtypeStruct((batch, *shape), kind, sharding=rows) for key, (shape, kind) in shapes.items()}
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        experiment.abstract_state,
        experiment.layout,
    )
    step = make_train_step(experiment.task, experiment.network, experiment.optimizer, seed=0)
    results = (experiment.layout, jax.sharding.NamedSharding(mesh, jax.P()))
    with jax.set_mesh(mesh):
        lowered = jax.jit(step, out_shardings=results, donate_argnums=0).lower(state, inputs)
        # With the barriers in place that keep what the backward pass makes anew from being made early.
        program = lowered.compile(
            {"xla_llvm_disable_expensive_passes": True, "xla_disable_hlo_passes": "cse_barrier_expander"}
        )
    memory = program.memory_analysis()
    return {
        "parameters": parameters(experiment.abstract_state.params),
        "held": memory.argument_size_in_bytes,
        "needed": memory.temp_size_in_bytes,
        "received": received_bytes(program.as_text(), devices),
    }


def received_bytes(program: str, devices: int) -> float:
    """What a device receives by the program's collectives, each over all devices and the best way there is."""
    total = 0.0
    for shapes, kind in COLLECTIVE.findall(program):
        size = sum(BYTES[t] * math.prod(map(int, filter(None, dims.split(",")))) for t, dims in SHAPE.findall(shapes))
        share = size * (devices - 1) / devices
        total += {"all-reduce": 2 * share, "reduce-scatter": share * devices}.get(kind, share)
    return total


def whole(name: str, devices: int, batch: int) -> dict[str, float]:
    """The figures of a model with all of its blocks."""
    figures = []
    for depth in (1, 2):
        line = [sys.executable, __file__, name, str(depth), str(devices), str(batch)]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{name} for {devices} devices: {done.stderr[-2000:]}")
        figures.append(json.loads(done.stdout))
    one, two = figures
    depth = SIZES[name].depth
    result = {key: one[key] + (depth - 1) * (two[key] - one[key]) for key in one}
    result["in blocks"] = depth * (two["parameters"] - one["parameters"])
    print(name, devices, {key: f"{value:.3g}" for key, value in result.items()}, flush=True)
    return result


def in_gigabytes(number: float) -> str:
    """Three digits of a number of bytes."""
    return f"{number / 1e9:.3g}" if number < 1e11 else f"{number / 1e9:.0f}"


def few_devices() -> list[str]:
    """Rows of memory a device against devices: the 124M model, eight examples."""
    rows = ["| devices | held | needed beside | received an update |", "|---|---|---|---|"]
    for devices in (1, 2, 4, 8):
        of = whole("124M", devices, 8)
        rows.append(
            f"| {devices} | " + " | ".join(in_gigabytes(of[key]) for key in ("held", "needed", "received")) + " |"
        )
    return rows


def many_devices() -> list[str]:
    """Rows of large models on 256 devices as compiled, and on 256 and 4096 as theory says."""
    rows = [
        "| model | parameters | devices | held: compiled | theory | needed beside | received: compiled | theory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in SIZES:
        of = whole(name, 256, 256)
        parameters = of["parameters"]
        state, sent = 12 * parameters / 256, 4 * (2 * parameters + of["in blocks"]) * 255 / 256
        size = f"{name} | {parameters / 1e6:,.0f}M"
        numbers = (of["held"], state, of["needed"], of["received"], sent)
        rows.append(f"| {size} | 256: fsdp=256 | " + " | ".join(map(in_gigabytes, numbers)) + " |")
        more = sent + 2 * 4 * parameters / 256 * 15 / 16
        rows.append(
            f"| {size} | 4096: data=16 fsdp=256 | not compiled | {in_gigabytes(state)} | not compiled | not compiled | "
            f"{in_gigabytes(more)} |"
        )
    return rows


def keep(name: str, rows: list[str]) -> None:
    """Puts a table between its marks."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(begin)
    PAGE.write_text(before + begin + "\n" + "\n".join(rows) + "\n" + end + rest.split(end)[1], encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(compiled(sys.argv[1], *map(int, sys.argv[2:]))))
    else:
        keep("few devices", few_devices())
        keep("many devices", many_devices())
