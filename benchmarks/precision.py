"""The cost of precision and determinism on this device: the rate of updates, and the error of a product.

    python benchmarks/precision.py             # on the device that JAX finds; within two minutes on a GPU
    python benchmarks/precision.py --quick     # does it run at all?

A GPT-2 trains in float32 at each `model.precision`, with `training.deterministic` off, and in bfloat16; each in its own
process, alternating. Rates are medians over rounds, ratios to the lab's defaults are taken round by round. The error is
that of a float32 product compared with float64, relative to the largest value.
"""

import argparse
import os
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from contest import Contestant, Work, take_turns, versions, write_result
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


def contestant(changes: dict[str, object], device: str, size: Size) -> Work:
    """A block of updates with `changes` of the config."""
    return ours(size, device, **changes)


def main() -> None:
    """Measures, prints a table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tiny model; nothing is written")
    arguments = parser.parse_args()
    size, rounds = (QUICK, 2) if arguments.quick else (SIZE, arguments.rounds)
    # Processes share one GPU, so none may take all of it in advance.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    device = "cpu" if jax.default_backend() == "cpu" else "gpu"
    errors = {name: product_error(name, 64 if arguments.quick else 1024) for name in ("highest", "high", "default")}
    for name, error in errors.items():
        print(f"precision {name}: error of a float32 product {error:.1e}")
    arms = [Contestant(name, contestant, {"changes": changes, "device": device}) for name, changes in ARMS.items()]
    for arm in arms:  # all compile at the same time
        arm.send("prepare", {"size": size})
    for arm in arms:
        arm.answer()
    seconds = take_turns(arms, rounds, pause=0.1, least=0.01 if arguments.quick else 0.2)
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


if __name__ == "__main__":
    main()
