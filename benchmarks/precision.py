"""The cost of precision and determinism on this device: the rate of updates, and the error of a product.

    python benchmarks/precision.py             # on the device that JAX finds; within two minutes on a GPU
    python benchmarks/precision.py --quick     # does it run at all?

A GPT-2 trains in float32 at each `model.precision`, with `training.deterministic` off, and in bfloat16; all in one
process, alternating. Rates are medians over rounds, ratios to the lab's defaults are taken round by round. The error is
that of a float32 product compared with float64, relative to the largest value.
"""

import argparse
import statistics
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from contest import timed, versions, write_result
from train_step import Size, machine, ours

SIZE = Size("15M", width=512, depth=2, heads=8, vocabulary=8192, tokens=512, batch=16, steps=10)
QUICK = Size("tiny", width=16, depth=1, heads=2, vocabulary=16, tokens=16, batch=2, steps=2)
ARMS = {
    "float32": {"model.dtype": "float32"},
    "float32, precision=high": {"model.dtype": "float32", "model.precision": "high"},
    "float32, precision=default": {"model.dtype": "float32", "model.precision": "default"},
    "float32, deterministic=false": {"model.dtype": "float32", "training.deterministic": False},
    "bfloat16": {"model.dtype": "bfloat16"},
}


def product_error(precision: str, size: int) -> float:
    """The largest error of a product of two normal matrices compared with float64, relative to the largest value."""
    left, right = np.random.default_rng(0).normal(size=(2, size, size)).astype(np.float32)
    exact = left.astype(np.float64) @ right.astype(np.float64)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=precision))(left, right)
    return float(np.abs(jax.device_get(product) - exact).max() / np.abs(exact).max())


def main() -> None:
    """Measures, prints a table and writes the result."""
    with tempfile.TemporaryDirectory() as cache:
        measure(cache)


def measure(cache: str) -> None:
    """cache: an empty folder for compiled programs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model; nothing is written")
    arguments = parser.parse_args()
    size, rounds = (QUICK, 2) if arguments.quick else (SIZE, arguments.rounds)
    # All arms draw the same initial weights: the program that does so is compiled once.
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    device = "cpu" if jax.default_backend() == "cpu" else "gpu"
    errors = {name: product_error(name, 64 if arguments.quick else 1024) for name in ("highest", "high", "default")}
    for name, error in errors.items():
        print(f"precision {name}: error of a float32 product {error:.1e}")
    blocks = {}
    for name, changes in ARMS.items():
        blocks[name] = ready(size, device, changes)
        print(f"compiled: {name}", flush=True)
    seconds = {name: [] for name in ARMS}
    for _ in range(rounds):
        for name, block in blocks.items():
            seconds[name].append(timed(block, 0.01 if arguments.quick else 0.2))
    print("| arm | updates/s | tokens/s | rate beside float32 (range) |\n|---|---|---|---|")
    rows = []
    for name, each in seconds.items():
        ratios = sorted(base / own for base, own in zip(seconds["float32"], each, strict=True))
        rate = size.steps / statistics.median(each)
        middle = statistics.median(ratios)
        speed = f"{rate:.1f} | {rate * size.tokens_per_step:,.0f}"
        print(f"| {name} | {speed} | {middle:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |")
        rows.append({"arm": name, "updates_per_second": round(rate, 2), "ratio": round(middle, 3)})
        rows[-1]["ratio_range"] = [round(ratios[0], 3), round(ratios[-1], 3)]
    if not arguments.quick:
        result = {"machine": machine(device), "versions": versions(("jax", "jaxlib", "flax")), "rounds": rounds}
        result |= {"product_errors": errors, "model": SIZE.__dict__, "arms": rows}
        write_result(f"precision_{device}", result)


def ready(size: Size, device: str, changes: dict[str, object]):
    """A warm block of updates."""
    block = ours(size, device, **changes)
    for _ in range(2):
        block()
    return block


if __name__ == "__main__":
    main()
