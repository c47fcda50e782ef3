"""Trains a model: `python train.py --config=configs/digits.py --workdir=runs/digits`.

Every key of the config can be overridden (`--config.model.attention.num_heads=1`), and named variants lay several
overrides at once (`--ablation=ffn_off,single_head`). The same command resumes an interrupted run.
"""

from absl import flags

from flaxformer_lab.command_line import load_config, run

CONFIG = flags.DEFINE_string("config", "configs/digits.py", "Recipe file; it returns the config from get_config().")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default: runs/RECIPE[-ABLATION].")
ABLATION = flags.DEFINE_list("ablation", [], "Named variants, separated by commas: ffn_off,single_head.")
STOP_AT = flags.DEFINE_integer(
    "stop_at", None, "End after this step with a checkpoint; a later run goes on.", lower_bound=1
)


def main(overrides: list[str]) -> None:
    """Trains what the flags describe."""
    config = load_config(CONFIG.value, overrides, ABLATION.value)
    from flaxformer_lab.training.loop import train

    train(config, WORKDIR.value or default_workdir(), stop_at=STOP_AT.value)


def default_workdir() -> str:
    """runs/digits, or runs/digits-ffn_off under an ablation."""
    recipe = CONFIG.value.removesuffix(".py").removeprefix("configs/").replace("/", "-")
    return "runs/" + "-".join([recipe, *ABLATION.value])


if __name__ == "__main__":
    run(main)
