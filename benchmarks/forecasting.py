"""Training speed of forecasters compared with the modules of neuralforecast: the same settings, one run.

    python benchmarks/forecasting.py                      # all models on the CPU
    python benchmarks/forecasting.py --models=informer,autoformer --device=gpu

Needs the extras `parity` and `forecast-parity`. An epoch has 102 updates on 32 windows of 96 steps, from which 96 are
forecast; width 64, 8 heads, FFN of 128, dropout 0.1, two blocks and one in a decoder, where there are such. A module of
neuralforecast that forecasts one series gets one, and so does the lab's model. An update is complete: forward,
backward, Adam. Each contestant has its own process and works only on request; a round is a sixth of an epoch by each,
and the ratio is taken round by round. CPU seconds, of all threads, stand beside those of the clock: they tell on a
machine that others use too.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contest import Contestant, Work, versions, write_result

STEPS, EPOCH = 17, 6  # updates in a round, and rounds in an epoch
LOOKBACK = HORIZON = 96
BATCH = 32
RECIPES = Path(__file__).resolve().parents[1] / "configs" / "forecasters"
SHARED = {"h": HORIZON, "input_size": LOOKBACK, "dropout": 0.1}
SEVEN = {"n_series": 7}
DECODER = {"hidden_size": 64, "conv_hidden_size": 128, "n_head": 8, "encoder_layers": 2, "decoder_layers": 1}
# Of each recipe, the class of neuralforecast and its options.
PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "informer": ("Informer", SHARED | DECODER | {"factor": 5, "distil": True}),
    "autoformer": ("Autoformer", SHARED | DECODER | {"factor": 3, "MovingAvg_window": 25}),
    "fedformer": ("FEDformer", SHARED | DECODER | {"modes": 32, "MovingAvg_window": 25}),
    "patchtst": (
        "PatchTST",
        SHARED
        | {"hidden_size": 64, "linear_hidden_size": 128, "n_heads": 8, "encoder_layers": 2, "patch_len": 16}
        | {"stride": 8, "fc_dropout": 0.1, "revin_subtract_last": False},
    ),
    "itransformer": (
        "iTransformer",
        SHARED | SEVEN | {"hidden_size": 64, "d_ff": 128, "n_heads": 8, "e_layers": 2, "use_norm": True},
    ),
    "timemixer": (
        "TimeMixer",
        SHARED
        | SEVEN
        | {"d_model": 16, "d_ff": 32, "e_layers": 2, "down_sampling_layers": 3, "channel_independence": 1},
    ),
    "dlinear": ("DLinear", {"h": HORIZON, "input_size": LOOKBACK, "moving_avg_window": 25}),
}


def ours(model: str) -> Work:
    """A round of updates by the lab's program, which `train.py` runs."""
    import jax
    import numpy as np

    from flaxformer_lab.command_line import load_config
    from flaxformer_lab.training.experiment import make_experiment
    from flaxformer_lab.training.feeds import make_feeds
    from flaxformer_lab.training.programs import make_run_steps
    from flaxformer_lab.training.state import initial_state

    changes = ["task.marks=false", f"training.steps={STEPS}", f"training.steps_per_call={STEPS}"]
    changes += ["optimizer.warmup_steps=0", "parallelism.strategy=single", "training.deterministic=false"]
    changes += [] if "n_series" in PEERS[model][1] else ["task.inputs=TEMP"]
    config = load_config(str(RECIPES / f"{model}.py"), [f"--config.{each}" for each in changes])
    experiment = make_experiment(config)
    examples = experiment.task.examples("train")
    run_steps, data = make_run_steps(experiment, examples)
    state = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, 0))()
    data = experiment.strategy.place(data)
    feed = next(make_feeds(experiment, examples, [(0, STEPS)]))
    count = experiment.strategy.place(np.int32(STEPS))

    def block() -> None:
        nonlocal state
        state, metrics = run_steps(state, data, feed, count)
        jax.block_until_ready((state, metrics))

    return block


def peer(model: str, device: str) -> Work:
    """A round of updates by the module of neuralforecast."""
    import logging
    import warnings

    import torch

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    import neuralforecast.models as models
    from neuralforecast.losses.pytorch import MSE

    torch.manual_seed(0)
    where = "cuda" if device == "gpu" else "cpu"
    if where == "cpu":
        torch.set_num_threads(os.cpu_count())
    name, options = PEERS[model]
    module = getattr(models, name)(**options, loss=MSE()).to(where).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-4)
    channels = options.get("n_series", 1)
    windows = torch.randn(STEPS, BATCH, LOOKBACK + HORIZON, channels, device=where)

    def block() -> None:
        for window in windows:
            forecast = module({"insample_y": window[:, :LOOKBACK].clone(), "futr_exog": None})
            loss = torch.mean(torch.square(forecast - window[:, LOOKBACK:]))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if where == "cuda":
            torch.cuda.synchronize()

    return block


def contestant(library: str, device: str, model: str) -> Work:
    """The round of one library."""
    if library == "ours" and device == "gpu":
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.45"
    return ours(model) if library == "ours" else peer(model, device)


def compare(model: str, device: str, rounds: int) -> dict[str, Any]:
    """Alternates the two; returns seconds an epoch by the clock and by the CPU, and their ratios."""
    players = [Contestant(name, contestant, {"library": name, "device": device}) for name in ("ours", "peer")]
    for each in players:
        each.ask("prepare", {"model": model})
    clock, cpu = ({each.name: [] for each in players} for _ in range(2))
    for _ in range(rounds):
        for each in players:
            time.sleep(0.5)  # threads of the previous contestant spin for a while
            before = each.ask("call", time.process_time)
            clock[each.name].append(EPOCH * each.ask("time", 0.0))
            cpu[each.name].append(EPOCH * (each.ask("call", time.process_time) - before))
    for each in players:
        each.end()
    of = lambda measured: {name: round(statistics.median(each), 2) for name, each in measured.items()}  # noqa: E731
    ratio: Callable[..., float] = lambda measured: round(  # noqa: E731
        statistics.median(theirs / mine for mine, theirs in zip(measured["ours"], measured["peer"], strict=True)), 2
    )
    return {
        "model": model,
        "rounds": rounds,
        "seconds_an_epoch": of(clock),
        "ratio": ratio(clock),
        "cpu_seconds_an_epoch": of(cpu),
        "cpu_ratio": ratio(cpu),
    }


def main() -> None:
    """Runs the comparison, prints a table and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", default=",".join(PEERS), help="recipes, separated by commas; default: all")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    columns = ("model", "ours, s an epoch", "neuralforecast", "ratio", "ours, CPU s", "neuralforecast, CPU s", "ratio")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    rows = []
    for model in arguments.models.split(","):
        rows.append(row := compare(model, arguments.device, arguments.rounds))
        cells = [row["model"]]
        for seconds, ratio in (("seconds_an_epoch", "ratio"), ("cpu_seconds_an_epoch", "cpu_ratio")):
            cells += [f"{row[seconds]['ours']:.2f}", f"{row[seconds]['peer']:.2f}", f"{row[ratio]:.2f}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    if set(arguments.models.split(",")) == PEERS.keys():
        names = ("flaxformer_lab", "jax", "jaxlib", "torch", "neuralforecast")
        machine = f"{os.cpu_count()} cores, {platform.machine()}"
        result = {"machine": machine, "device": arguments.device, "versions": versions(names), "models": rows}
        write_result(f"forecasting_{arguments.device}", result)


if __name__ == "__main__":
    main()
