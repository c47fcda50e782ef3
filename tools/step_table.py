"""Compiles the train step of GPT-2's smallest size for an H100 and a TPU v5e, and writes docs/performance.md's tables.

    pip install -e '.[tpu-compile]'                    # or cuda-compile; each has an environment of its own, if need be
    python tools/step_table.py                         # what the installed compilers serve: minutes on 2 cores
    python tools/step_table.py --only=h100             # cases whose name has this prefix; the others are kept

For each case: bytes through the device's memory, operations and FLOPs by group (`analysis/hlo.py`), temporary memory,
and the time at the roofline. The reports are stored in docs/results/step.json, from which the tables are made. Each
program is compiled in its own process.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from page_parts import write_lines

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "performance.md", ROOT / "docs" / "results" / "step.json"
SYMBOLS = 50304
SHAPES = {"h100": {"model.depth": 12, "training.batch_size": 16}, "v5e": {"model.depth": 2, "training.batch_size": 4}}
POLICIES = ("off", "nothing", "dots_with_no_batch_dims", "dots")
CHUNK = {"training.loss_chunk": 4096}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{device: (device, {}) for device in SHAPES},
    "h100 in chunks": ("h100", CHUNK),
    **{
        f"h100 remat {policy}": ("h100", {"model.remat": True, "model.remat_policy": policy})
        for policy in POLICIES
        if policy != "off"
    },
}


def compiled(case: str) -> dict[str, Any]:
    """What the compiler reports of one case."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
    from flaxformer_lab.analysis.hlo import parse_hlo
    from flaxformer_lab.analysis.roofline import DEVICES, absent_devices, compiler_name, products_of_update
    from flaxformer_lab.config import parse_config
    from flaxformer_lab.parsing import override
    from flaxformer_lab.training.absent_devices import abstract_batch, compile_train_step
    from flaxformer_lab.training.experiment import make_experiment
    from flaxformer_lab.training.single import Single

    device, changes = CASES[case]
    tree: dict[str, Any] = {
        "task": {"name": "language_modelling", "tokenizer": "bytes", "sequence_length": 1024},
        "model": {
            "width": 768,
            "attention": {"num_heads": 12},
            "ffn": {"activation": "gelu_tanh"},
            "causal": True,
            "dtype": "bfloat16",
        },
        "optimizer": {"schedule": "constant", "clip_norm": 1.0},
        "parallelism": {"strategy": "single"},
    }
    for key, value in (SHAPES[device] | changes).items():
        tree = override(tree, key, value)
    devices = absent_devices(device)
    if devices is None:
        return {}
    experiment = make_experiment(parse_config(tree), {"num_symbols": SYMBOLS}, Single())
    batch = abstract_batch(experiment, jnp.uint16)
    flops, _ = products_of_update(experiment, batch)
    program = compile_train_step(experiment, devices, batch)
    module, memory = parse_hlo(program.text), program.compiled.memory_analysis()
    return {
        "compiler": compiler_name(device),
        "flops": flops,
        "bytes": module.num_bytes,
        "state": memory.argument_size_in_bytes,
        "donated": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "groups": {name: vars(each) for name, each in module.by_group.items()},
        "seconds": {
            "products": sum(number / DEVICES[device].peak[kind] for kind, number in flops.items()),
            "memory": module.num_bytes / DEVICES[device].bandwidth,
        },
    }


def in_a_process(case: str) -> dict[str, Any]:
    """`compiled`, in its own process; empty where there is no compiler."""
    line = [sys.executable, __file__, "--case", case]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def group_rows(of: dict[str, dict[str, Any]]) -> list[str]:
    """GB and operations by group, of each case that is stored."""
    names = ("products", "kernels", "loss", "optimizer", "copies", "elementwise")
    head = ["case", *names, "all", "temporary memory", "at the roofline"]
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for case, found in of.items():
        groups, seconds = found["groups"], found["seconds"]
        cells = [
            f"{groups[n]['num_bytes'] / 1e9:.2f} ({groups[n]['operations']:,})" if n in groups else "" for n in names
        ]
        bound = max(seconds, key=seconds.get)
        cells += [f"{found['bytes'] / 1e9:.1f} GB", f"{found['temporary'] / 1e9:.2f} GB"]
        table.append(f"| {' | '.join([case, *cells, f'{seconds[bound] * 1e3:.1f} ms, {bound}'])} |")
    return table


def remat_rows(of: dict[str, dict[str, Any]]) -> list[str]:
    """Memory, FLOPs and bytes of each policy."""
    head = ["`model.remat`, `model.remat_policy`", "temporary memory", "TFLOPs of products", "bytes"]
    table = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for policy in POLICIES:
        found = of.get("h100" if policy == "off" else f"h100 remat {policy}")
        if found is None:
            continue
        name = "false" if policy == "off" else f"true, {policy}"
        flops = sum(found["flops"].values()) / 1e12
        table.append(f"| {name} | {found['temporary'] / 1e9:.2f} GB | {flops:.2f} | {found['bytes'] / 1e9:.1f} GB |")
    return table


def main() -> None:
    """Compiles the requested cases, and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="prefix of the cases to compile; `none` compiles none")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(compiled(options.case)))
        return
    of = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for case in CASES:
        if case.startswith(options.only) and (found := in_a_process(case)):
            of[case] = found
            print(case, f"{found['bytes'] / 1e9:.1f} GB", f"{found['temporary'] / 1e9:.2f} GB", flush=True)
            RESULTS.write_text(json.dumps(of, indent=1) + "\n", encoding="utf-8")
    shown = {case: of[case] for case in of if "remat" not in case}
    write_lines(PAGE, "train step", group_rows(shown))
    write_lines(PAGE, "rematerialisation", remat_rows(of))


if __name__ == "__main__":
    main()
