"""Trains a model: `python -m flaxformer_lab.train --config=configs/digits.py --workdir=runs/digits`.

Every key of the config can be overridden (`--config.model.attention.num_heads=1`), and named variants apply several
overrides at once (`--ablation=ffn_off,single_head`). The same command resumes an interrupted run. In the lab's folder
`python train.py` is the same command; in Python: `flaxformer_lab.train(config, workdir)`.
"""

import os

from absl import flags

from flaxformer_lab.command_line import PRINT_CONFIG, command_alone, load_config, print_config, run, split_names
from flaxformer_lab.config import Config

command_alone(__name__)


def main(overrides: list[str]) -> None:
    """Trains what the flags describe."""
    config = load_config(CONFIG.value, overrides, split_names(ABLATION.value))
    if PRINT_CONFIG.value:
        print_config(config)
        return
    from flaxformer_lab.training import hosts
    from flaxformer_lab.training.loop import train

    others = (COORDINATOR.value, PROCESSES.value, PROCESS.value)
    if DISTRIBUTED.value or any(value is not None for value in others):
        hosts.join(*others)
    workdir, loggers = WORKDIR.value or default_workdir(), split_names(LOGGERS.value)
    train(config, workdir, stop_at=STOP_AT.value, loggers=loggers)


def default_workdir() -> str:
    """runs/digits, runs/probes-product of configs/probes/product.py, runs/digits-ffn_off under an ablation."""
    file, _, form = CONFIG.value.partition(".py:")
    recipe = os.path.relpath(file.removesuffix(".py"), "configs")
    recipe = os.path.basename(recipe) if recipe.startswith(os.pardir) else recipe.replace(os.sep, "-")
    return "runs/" + "-".join(filter(None, [recipe, form, *split_names(ABLATION.value)]))


if __name__ == "__main__":
    CONFIG = flags.DEFINE_string("config", "configs/digits.py", "Recipe file; it returns the config from get_config().")
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/RECIPE[-ABLATION].")
    ABLATION = flags.DEFINE_multi_string(
        "ablation", [], "Named variants, separated by commas: ffn_off,single_head; may be repeated."
    )
    STOP_AT = flags.DEFINE_integer(
        "stop_at",
        None,
        "End after this step with a checkpoint; the same command without this flag resumes.",
        lower_bound=1,
    )
    LOGGERS = flags.DEFINE_multi_string(
        "loggers",
        ["tensorboard"],
        "Where metrics go beside metrics.jsonl: tensorboard, csv, wandb, mlflow, separated by commas; empty for none.",
    )
    DISTRIBUTED = flags.DEFINE_bool(
        "distributed",
        False,
        "Train with the other processes of this job, described by SLURM, Open MPI, Kubernetes or a TPU.",
    )
    COORDINATOR = flags.DEFINE_string(
        "coordinator_address", None, "HOST:PORT of the first process, where the environment does not give it."
    )
    PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes that train together.", lower_bound=1)
    PROCESS = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.", lower_bound=0)
    run(main, Config, goes_on="the same command resumes from the last checkpoint")
