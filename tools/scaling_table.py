"""Compiles the train step of large models for TPUs and GPUs that are not here, and writes docs/scaling.md's table.

    pip install -e '.[tpu-compile,cuda-compile]'
    python tools/scaling_table.py                        # all of them, about 40 minutes on 2 cores
    python tools/scaling_table.py --only='7B on h100'    # those whose name has this prefix; the others are kept

The compilers' reports are stored in docs/results/scaling.json, from which the table is made. Each program is compiled
in its own process.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from page_parts import write_lines

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "scaling.md", ROOT / "docs" / "results" / "scaling.json"
SYMBOLS = 50304


@dataclass(frozen=True)
class Size:
    """The size of a model: the smallest GPT-2, and widths and depths of Brown et al. 2020 and Touvron et al. 2023."""

    width: int
    depth: int
    heads: int
    tokens: int


@dataclass(frozen=True)
class Place:
    """Devices, and how a mesh divides them; one example per device."""

    devices: str
    number: int
    data: int
    fsdp: int

    @property
    def mesh(self) -> str:
        """The mesh in the config's keys."""
        return f"fsdp={self.fsdp}" if self.data == 1 else f"data={self.data} fsdp={self.fsdp}"


SIZES = {"124M": Size(768, 12, 12, 1024), "1.3B": Size(2048, 24, 16, 2048), "7B": Size(4096, 32, 32, 4096)}
PLACES = {
    "v5e:16x16": Place("TPU v5e x 256", 256, 1, 256),
    "v5p:16x16x16": Place("TPU v5p x 4,096", 4096, 16, 256),
    "h100:8": Place("H100 x 8", 8, 1, 8),
    "h100:256": Place("H100 x 256", 256, 1, 256),
    "h100:4096": Place("H100 x 4,096", 4096, 16, 256),
}
KINDS = {"all-gather": "gathered", "reduce-scatter": "scattered", "all-reduce": "summed"}


def compiled(name: str, place: str) -> dict[str, float]:
    """One update: bytes that a device holds, needs temporarily, and receives by each kind of collective."""
    import jax.numpy as jnp

    from flaxformer_lab.config import MeshConfig, parse_config
    from flaxformer_lab.training.absent_devices import abstract_batch, compile_train_step, h100s, tpus
    from flaxformer_lab.training.experiment import make_experiment
    from flaxformer_lab.training.mesh import Mesh

    size, where = SIZES[name], PLACES[place]
    devices = h100s(where.number) if place.startswith("h100") else tpus(place)
    model = {"width": size.width, "depth": size.depth, "attention": {"num_heads": size.heads}, "dtype": "bfloat16"}
    tree = {
        "task": {"name": "language_modelling", "tokenizer": "bytes", "sequence_length": size.tokens},
        "model": model | {"position": "rotary", "bias": False, "causal": True, "remat": True},
        "training": {"batch_size": where.number, "evaluate_batch_size": where.number},
        "parallelism": {"strategy": "mesh"},
    }
    mesh = Mesh(MeshConfig(data=where.data, fsdp=where.fsdp), devices)
    experiment = make_experiment(parse_config(tree), {"num_symbols": SYMBOLS}, mesh)
    program = compile_train_step(experiment, devices, abstract_batch(experiment, jnp.uint16))
    memory = program.compiled.memory_analysis()
    program_bytes = collections.Counter({"held": memory.argument_size_in_bytes, "temporary": memory.temp_size_in_bytes})
    for each in program.collectives:
        program_bytes[f"{each.kind} {each.dtype}"] += each.received
        program_bytes[f"count {each.kind}"] += 1
    return dict(program_bytes)


def in_a_process(name: str, place: str) -> dict[str, float]:
    """`compiled`, in its own process."""
    line = [sys.executable, __file__, "--program", name, place]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name} on {place}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def parameters(name: str) -> tuple[int, int]:
    """Parameters of a model's matrices: all, and those of its blocks."""
    size = SIZES[name]
    hidden = 4 * size.width
    of_blocks = size.depth * (4 * size.width**2 + 2 * size.width * hidden)
    return of_blocks + 2 * SYMBOLS * size.width, of_blocks


def theory(name: str, place: str) -> dict[str, float]:
    """Bytes that a device holds and receives by stage 3 of Rajbhandari et al. 2020."""
    (everything, of_blocks), where = parameters(name), PLACES[place]
    others = (where.fsdp - 1) / where.fsdp
    return {
        "held": 12 * everything / where.fsdp,
        "gathered": 2 * (everything + of_blocks) * others,
        "scattered": 4 * everything * others,
        "summed": 2 * 4 * everything / where.fsdp * (where.data - 1) / where.data,
    }


def received(program_bytes: dict[str, float], kind: str) -> float:
    """Bytes that a device receives by one kind of collective, in any dtype."""
    return sum(value for key, value in program_bytes.items() if key.startswith(f"{kind} "))


def gigabytes(number: float) -> str:
    """Bytes in gigabytes, to three digits."""
    return f"{number / 1e9:.3g}" if number < 1e11 else f"{number / 1e9:.0f}"


def rows(of: dict[str, dict[str, float]]) -> list[str]:
    """The table: compiled programs, with theory in brackets."""
    head = ["model", "devices", "mesh", "held", "temporary", "gathered", "scattered", "summed", "collectives"]
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name in SIZES:
        for place, where in PLACES.items():
            program_bytes, expected = of.get(f"{name} on {place}"), theory(name, place)
            if program_bytes is None:
                continue
            sizes = [(program_bytes["held"], "held")]
            sizes += [(received(program_bytes, kind), word) for kind, word in KINDS.items()]
            held, *sent = (f"{gigabytes(found)} ({gigabytes(expected[word])})" for found, word in sizes)
            counts = ", ".join(f"{program_bytes.get(f'count {kind}', 0):.0f} {word}" for kind, word in KINDS.items())
            cells = [name, where.devices, where.mesh, held, gigabytes(program_bytes["temporary"]), *sent, counts]
            table.append(f"| {' | '.join(cells)} |")
    return table


def main() -> None:
    """Compiles the requested programs, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="prefix of the names to compile: '7B on h100'")
    parser.add_argument("--program", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.program:
        print(json.dumps(compiled(*options.program)))
        return
    of = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for case in (f"{name} on {place}" for name in SIZES for place in PLACES):
        if case.startswith(options.only):
            of[case] = in_a_process(*case.split(" on "))
            print(case, {key: f"{value:.3g}" for key, value in of[case].items()}, flush=True)
            RESULTS.write_text(json.dumps(of, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    write_lines(PAGE, "absent devices", rows(of))


if __name__ == "__main__":
    main()
