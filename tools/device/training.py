"""Training on the devices of this process: strategies, resuming, equal runs, types, generation, populations."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxformer_lab.config import parse_config
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.parsing import override
from flaxformer_lab.run import load_run
from flaxformer_lab.training.loop import train
from tools.device.outcome import Measured, Skip, required

STEPS = 12
DEVICES = "devices"  # as many as there are
# What 1, 2, 3, 4, 6, 8, 12, 16, 24 or 48 devices can share equally, also in two micro-batches.
WIDTH, BATCH, EVALUATE = 48, 96, 288

# Everything that draws random numbers or keeps a state. Without biases: the gradient of a key's bias is only rounding,
# which Adam and Muon magnify to a whole update.
IMAGES = {
    "seed": 5,
    "task": {"name": "image_classification", "dataset": "lab_digits", "patch_size": 4, "shift": 1},
    "model": {
        "width": WIDTH,
        "depth": 1,
        "attention": {"num_heads": 2},
        "bias": False,
        "dropout": 0.2,
    },
    "optimizer": {"name": "muon", "learning_rate": 0.01, "warmup_steps": 5, "weight_decay": 0.1, "clip_norm": 1.0},
    "training": {
        "steps": STEPS,
        "batch_size": BATCH,
        "accumulate": 2,
        "evaluate_every": 4,
        "evaluate_batch_size": EVALUATE,
        "checkpoint_every": 4,
        "steps_per_call": 2,
        "keep_last": 10,
    },
    "parallelism": {"strategy": "single"},
}
AT_THE_END = {"steps": STEPS, "batch_size": BATCH, "evaluate_every": STEPS, "checkpoint_every": STEPS}
# It is judged on a million characters, so it is small; two blocks, with heads that cuDNN takes in 16 bits.
TEXT = {
    "task": {"name": "language_modelling", "dataset": "lab_speeches", "sequence_length": 32},
    "model": {
        "width": WIDTH // 2,
        "depth": 2,
        "attention": {"num_heads": 2, "head_dim": 8},
        "ffn": {"expansion": 1.0},
        "position": "rotary",
        "bias": False,
        "causal": True,
    },
    "optimizer": {"learning_rate": 0.01, "clip_norm": 1.0},
    "training": AT_THE_END | {"evaluate_batch_size": 8 * EVALUATE},
}
PROBE = {
    "task": {"name": "product", "evaluation_examples": 2 * EVALUATE},
    "model": {"width": WIDTH, "depth": 1, "attention": {"num_heads": 2}, "position": "off", "bias": False},
    "optimizer": {"name": "sgd", "learning_rate": 0.01, "schedule": "constant"},
    "training": AT_THE_END | {"evaluate_batch_size": EVALUATE},
}


RUNS: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "images": (IMAGES, {}),
    "pmap": (IMAGES, {"parallelism.strategy": "pmap"}),
    "data": (IMAGES, {"parallelism.strategy": "mesh"}),
    "fsdp": (IMAGES, {"parallelism.strategy": "mesh", "parallelism.mesh.data": 1, "parallelism.mesh.fsdp": DEVICES}),
    "text": (TEXT, {"parallelism.strategy": "single"}),
    "bfloat16": (TEXT, {"parallelism.strategy": "single", "model.dtype": "bfloat16"}),
}


@functools.cache
def trained(folder: Path, name: str) -> Path:
    """The finished run of one of RUNS, which the first call trains."""
    recipe, changes = RUNS[name]
    for key, value in changes.items():
        recipe = override(recipe, key, jax.device_count() if value is DEVICES else value)
    train(parse_config(recipe), folder / name, quiet=True)
    return folder / name


# --------------------------------------------------------------------------------------------------- checks


def single(folder: Path) -> Measured:
    """Training on one device; the loop itself forbids implicit transfers while updates run."""
    losses = metric_values(trained(folder, "images"), "train", "loss")
    return required(losses[-1] < losses[0], "the loss did not fall", {"first loss": losses[0], "last loss": losses[-1]})


def strategy(folder: Path, name: str) -> Measured:
    """A strategy on all devices gives the result of one device."""
    if BATCH // 2 % jax.device_count():
        raise Skip(f"{jax.device_count()} devices cannot share the small recipe equally")
    measured = {"devices": jax.device_count()} | difference(trained(folder, name), trained(folder, "images"))
    return required(measured["largest difference"] <= 1e-4, "parameters differ from those of one device", measured)


def resumed(folder: Path) -> Measured:
    """Some updates, a new start, and the rest: all updates, bit for bit."""
    config = parse_config(IMAGES)
    train(config, folder / "resumed", stop_at=4, quiet=True)
    train(config, folder / "resumed", quiet=True)
    return same(folder / "resumed", trained(folder, "images"))


def again(folder: Path) -> Measured:
    """The same run once more in this process, compiled once more."""
    train(parse_config(IMAGES), folder / "again", quiet=True)
    return same(folder / "again", trained(folder, "images"))


def bfloat16(folder: Path) -> Measured:
    """Computation in bfloat16 follows the losses and gradients of float32."""
    measured = {}
    for name in ("loss", "gradient_norm"):
        half, whole = (np.array(metric_values(trained(folder, run), "train", name)) for run in ("bfloat16", "text"))
        measured[f"relative difference of {name}"] = float(np.max(np.abs(half - whole) / whole))
    return required(max(measured.values()) <= 0.05, "bfloat16 does not follow float32", measured)


def evaluated(folder: Path) -> Measured:
    """Evaluating a checkpoint repeats the metrics of training, to the last digit."""
    run = load_run(trained(folder, "text"))
    told, found = metric_values(trained(folder, "text"), "test", "loss")[-1], run.evaluate("test")["loss"]
    return required(found == told, "evaluation and training differ", {"loss of training": told, "evaluated": found})


def generated(folder: Path) -> Measured:
    """The most likely symbols, with the cache and from the whole sequence at each step."""
    from flaxformer_lab.generate import generate

    run, prompt, length = load_run(trained(folder, "text")), "The state", 12
    text = "".join(piece for (piece,) in generate(run, prompt, length, temperature=0.0))
    symbols = [int(symbol) for symbol in run.task.encode(prompt)]
    for _ in range(length):
        context = np.zeros((1, run.config.task.sequence_length), np.int32)
        context[0, : len(symbols)] = symbols
        symbols.append(int(np.argmax(jax.device_get(run.predict(context))[0, len(symbols) - 1])))
    expected = run.task.decode(np.array(symbols[-length:]))
    return required(text == expected, "the cache gives other symbols", {"by the cache": text, "whole": expected})


def population(folder: Path) -> Measured:
    """Replicas that train together give the results of single runs."""
    from flaxformer_lab.ablation.population import Replica, train_population

    config = parse_config(override(PROBE, "parallelism.strategy", "single"))
    replicas = [Replica(seed, rate) for seed in (0, 1) for rate in (0.01, 0.03)]
    outcome = train_population(config, replicas)
    errors = []
    for number in (0, 3):
        train(replicas[number].config(config), folder / f"replica-{number}", quiet=True)
        alone = load_run(folder / f"replica-{number}").params
        errors.append(_difference(outcome.states[number].params, alone))
    measured = {"replicas": len(replicas), "largest difference": max(errors)}
    return required(max(errors) <= 1e-4, "a replica is not the run alone", measured)


def transfer_guard() -> Measured:
    """A guarded region allows explicit transfers and, except on a CPU, refuses implicit ones."""
    double = jax.jit(lambda x: 2 * x)
    here = jax.device_put(np.arange(3, dtype=np.float32))
    refused = False
    with jax.transfer_guard("disallow"):
        explicit = jax.device_get(double(here))
        try:
            np.asarray(double(here))
        except Exception:
            refused = True
    measured = {"refuses an implicit read": refused}
    required(np.array_equal(explicit, [0, 2, 4]), "an explicit transfer went wrong", measured)
    return required(refused or jax.default_backend() == "cpu", "an implicit read is not refused", measured)


# ----------------------------------------------------------------------------------------------- comparisons


def same(one: Path, other: Path) -> Measured:
    """Counts the leaves of two runs' last states; these and the metrics must be equal bit for bit."""
    states = [leaf_paths(vars(load_run(run).state)) for run in (one, other)]
    unequal = [path for path, leaf in states[0].items() if not _same_bits(leaf, states[1][path])]
    texts = [(run / "metrics.jsonl").read_bytes() for run in (one, other)]
    measured = {"leaves": len(states[0]), "unequal": len(unequal)}
    required(not unequal, f"{', '.join(unequal[:3])} differ", measured)
    return required(texts[0] == texts[1], "metrics.jsonl differs", measured)


def difference(one: Path, other: Path) -> Measured:
    """The largest difference of two runs' parameters, relative to the largest value of the array."""
    return {"largest difference": _difference(load_run(one).params, load_run(other).params)}


def metric_values(run: Path, split: str, name: str) -> list[float]:
    """The values of one metric, in the order of steps."""
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [entry["value"] for entry in entries if (entry["split"], entry["name"]) == (split, name)]


def _difference(one: Any, other: Any) -> float:
    pairs = zip(*(map(np.asarray, jax.tree.leaves(jax.device_get(tree))) for tree in (one, other)), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


def _same_bits(one: Any, other: Any) -> bool:
    one, other = np.asarray(jax.device_get(one)), np.asarray(jax.device_get(other))
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
