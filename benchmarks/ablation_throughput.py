"""Runs per hour of an ablation: populations, one process for each run, and a loop in one process.

    python benchmarks/ablation_throughput.py                 # about 6 minutes on 2 cores
    python benchmarks/ablation_throughput.py --device=gpu    # one round, within two minutes; --whole for all
    python benchmarks/ablation_throughput.py --quick     # does it run at all?

The same recipe, a probe, in three ways that alternate:

- population: the command `ablate` on cells of 15 replicas, from start to end, with its report;
- processes: one command `train.py` for each run, as many at a time as there are cores, like public harnesses;
- loop: one process that trains one run after the other and keeps its compiled programs.

Rates are medians over rounds; ratios are taken round by round. All compiled programs are cached on disk before the
first round, for all three. Then, on a GPU only with --whole: the cost of populations of 1 to 64 replicas, drawn in
docs/results/replicas.svg.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path

from contest import versions, write_result
from train_step import machine

from flaxformer_lab.compilation import available_cores

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "configs" / "probes" / "product.py"
FIGURES = ROOT / "docs" / "results"
TRAINING = {"steps": 250, "evaluate_every": 50, "checkpoint_every": 250, "batch_size": 64, "evaluate_batch_size": 1024}
KNOBS = {"model.width": 32, "model.depth": 1, "task.evaluation_examples": 1024} | {
    f"training.{name}": value for name, value in TRAINING.items()
}
ABLATION = """
def get_config():
    return {{
        "tasks": {{"product": {{"recipe": {recipe!r}, "overrides": {overrides!r}}}}},
        "variants": {{"ffn_off": "ffn_off", "single_head": "single_head", "attention_off": "attention_off"}},
        "learning_rates": [0.001, 0.003, 0.01],
        "max_extensions": 0,
        "seeds": [0, 1, 2, 3, 4],
    }}
"""
CELLS, REPLICAS = 4, 15
LOOP = """
import sys
from flaxformer_lab.compilation import use_compilation_cache
from flaxformer_lab.command_line import load_config
from flaxformer_lab.training.loop import train
use_compilation_cache()
recipe, folder, number, *overrides = sys.argv[1:]
for seed in range(int(number)):
    train(load_config(recipe, [*overrides, f"--config.seed={seed}"]), f"{folder}/{seed}", quiet=True)
"""


def overrides() -> list[str]:
    """The changed keys of the recipe, as arguments."""
    return [f"--config.{name}={value}" for name, value in KNOBS.items()]


def command(*arguments: object) -> None:
    """Runs Python in the repository, quietly; its errors show."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, arguments[:3]))} ended with {done.returncode}: {done.stderr[-2000:]}")


def population(folder: Path, runs: int) -> int:
    """A whole ablation; returns how many runs it made."""
    del runs
    config = folder / "ablation.py"
    config.write_text(ABLATION.format(recipe=str(RECIPE), overrides=KNOBS))
    command("-m", "flaxformer_lab.ablate", f"--config={config}", f"--workdir={folder / 'run'}")
    return CELLS * REPLICAS


def processes(folder: Path, runs: int) -> int:
    """One process for each run, on all cores; at least as many runs as cores."""
    cores = available_cores()
    runs = max(runs, cores)

    def one(seed: int) -> None:
        command(
            "train.py", f"--config={RECIPE}", f"--workdir={folder / str(seed)}", *overrides(), f"--config.seed={seed}"
        )

    with futures.ThreadPoolExecutor(cores) as threads:
        list(threads.map(one, range(runs)))
    return runs


def loop(folder: Path, runs: int) -> int:
    """One run after the other in one process."""
    command("-c", LOOP, RECIPE, folder, runs, *overrides())
    return runs


WAYS: dict[str, Callable[[Path, int], int]] = {"population": population, "processes": processes, "loop": loop}


def runs_an_hour(way: str, runs: int) -> float:
    """Runs per hour from the total wall-clock time."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        done = WAYS[way](Path(folder), runs)
        return 3600 * done / (time.perf_counter() - start)


def cost_of_replicas(numbers: Sequence[int]) -> list[dict[str, float]]:
    """Time of an update and of the preparation, for populations of several sizes."""
    import jax

    from flaxformer_lab.ablation.population import Population, Replica
    from flaxformer_lab.command_line import load_config
    from flaxformer_lab.compilation import compile_small_programs_briefly

    compile_small_programs_briefly()
    jax.config.update("jax_num_cpu_devices", available_cores())
    config = load_config(str(RECIPE), overrides())
    rows = []
    for number in numbers:
        ready = Population(config, [Replica(seed, 0.003) for seed in range(number)])
        update = statistics.median(ready.seconds_per_update(50) for _ in range(3))
        rows.append({"replicas": number, "update_ms": 1e3 * update, "preparing_s": ready.preparing_seconds})
        print(f"{number} replicas: {1e3 * update:.2f} ms an update, prepared in {ready.preparing_seconds:.1f} s")
    return rows


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """Plots milliseconds per update against the number of replicas."""
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "replicas"
    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    numbers = [row["replicas"] for row in rows]
    shares = [row["update_ms"] / row["replicas"] for row in rows]
    axes.plot(numbers, shares, "o-", color="#0072b2", label="one replica's share of an update")
    axes.plot(numbers, [row["update_ms"] for row in rows], "s--", color="#d55e00", label="an update of all replicas")
    axes.set(xscale="log", yscale="log", xlabel="replicas in one population", ylabel="milliseconds")
    axes.set_xticks(numbers, [str(number) for number in numbers], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    print(f"written to {path}")


def main() -> None:
    """Runs the comparison, prints a table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, help="default: 3, on a GPU 1")
    parser.add_argument("--whole", action="store_true", help="on a GPU, also the cost of replicas")
    parser.add_argument("--runs", type=int, default=6, help="single runs in a round")
    parser.add_argument("--quick", action="store_true", help="one round of few runs; writes nothing")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    else:  # processes share one GPU, so none may take all of its memory in advance
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    rounds = arguments.rounds or (3 if arguments.device == "cpu" else 1)
    rounds, runs = (1, 2) if arguments.quick else (rounds, arguments.runs)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = cache
        fills = ("population", "loop")  # of the cache; a process runs the programs of the loop
        with futures.ThreadPoolExecutor(1 if arguments.device == "cpu" else len(fills)) as threads:
            list(threads.map(runs_an_hour, fills, [2] * len(fills)))
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                found[way].append(runs_an_hour(way, runs))
    print("| way | runs an hour | population is faster by |\n|---|---|---|")
    ratios = {}
    for way, rates in found.items():
        ratios[way] = sorted(own / other for own, other in zip(found["population"], rates, strict=True))
        low, middle, high = ratios[way][0], statistics.median(ratios[way]), ratios[way][-1]
        print(f"| {way} | {statistics.median(rates):,.0f} | {middle:.1f} ({low:.1f} to {high:.1f}) |")
    rows = []
    if arguments.device == "cpu" or arguments.whole:
        rows = cost_of_replicas((1, 2) if arguments.quick else (1, 2, 4, 8, 16, 32, 64))
    if not arguments.quick:
        if rows:
            draw(rows, FIGURES / f"replicas{'' if arguments.device == 'cpu' else '_gpu'}.svg")
        write_result(
            f"ablation_throughput_{arguments.device}",
            {
                "machine": machine(arguments.device),
                "versions": versions(("jax", "jaxlib", "flax")),
                "recipe": "configs/probes/product.py, " + ", ".join(f"{name}={value}" for name, value in KNOBS.items()),
                "rounds": rounds,
                "runs_an_hour": {way: round(statistics.median(rates)) for way, rates in found.items()},
                "ratios": {way: [round(ratio, 2) for ratio in each] for way, each in ratios.items()},
                "replicas": [{name: round(value, 3) for name, value in row.items()} for row in rows],
            },
        )


if __name__ == "__main__":
    main()
