"""The errors of forecasts that need no gradient, as a table: the bar that a model has to beat.

    python tools/forecast_baselines.py --config=configs/forecasting.py --config.task.dataset=lab_appliances
    python tools/forecast_baselines.py --config=configs/forecasting.py --baselines=linear,linear_shared --alpha=100

`--config.task.KEY=VALUE` works as in training. `linear_all` takes long where there are many channels.
"""

import math

from absl import flags

from flaxformer_lab.command_line import load_config, run, split_names
from flaxformer_lab.config import Config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.tasks import SPLITS, make_task
from flaxformer_lab.tasks.closed_form import BASELINES, evaluate, fit
from flaxformer_lab.tasks.forecasting import Forecasting

METRICS = ("mse", "mae", "mase", "smape")
CONFIG = flags.DEFINE_string("config", "configs/forecasting.py", "A recipe of the task forecasting.")
NAMES = flags.DEFINE_multi_string("baselines", [",".join(BASELINES)], f"Some of {', '.join(BASELINES)}.")
ALPHA = flags.DEFINE_float("alpha", 1.0, "Weight of the squared weights in the ridge regression.", lower_bound=0.0)
SPLIT = flags.DEFINE_enum("split", "test", SPLITS, "The split whose errors are shown.")


def main(overrides: list[str]) -> None:
    """Prints one row a baseline."""
    config = load_config(CONFIG.value, overrides)
    task = make_task(config.task)
    if not isinstance(task, Forecasting):
        raise ConfigError(f"--config={CONFIG.value} is of the task {config.task.name}; name a recipe of forecasting")
    print(f"{config.task.dataset} {config.task.lookback} -> {config.task.horizon}, {SPLIT.value}: ", end="")
    print(f"{task.examples(SPLIT.value).number:,} windows, missing={config.task.missing}, alpha={ALPHA.value:g}")
    print("| baseline |", " | ".join(METRICS), "|\n|---|" + "---|" * len(METRICS))
    for name in split_names(NAMES.value):
        values = evaluate(task, fit(task, name, alpha=ALPHA.value), SPLIT.value)
        print(f"| `{name}` |", " | ".join(f"{values.get(metric, math.nan):.4f}" for metric in METRICS), "|", flush=True)


if __name__ == "__main__":
    run(main, Config)
