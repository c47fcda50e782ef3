"""Says what an update costs and its least time: `python -m flaxformer_lab.roofline --config=FILE --device=h100`.

FLOPs, bytes, the time at the roofline and what bounds it, on any device of a table; the bytes come from the device's
compiler where it is installed (extras tpu-compile and cuda-compile), else they are a lower bound. With --workdir=DIR
instead of a recipe it also says what share of that the run reached, by the times of its TensorBoard logs. Nothing runs
on the device, and one device does the whole update. The last line is one JSON object.
"""

import json
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags

from flaxformer_lab.analysis.roofline import NAMES, Cost, Device, cost_of_update, find_device, roofline, stored_batch
from flaxformer_lab.command_line import (
    PRINT_CONFIG,
    changes_of,
    command_alone,
    load_config,
    print_config,
    run,
    split_names,
)
from flaxformer_lab.config import Config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.folder import RunFolder, changed, require_free
from flaxformer_lab.training.loggers import seconds_per_update
from flaxformer_lab.training.logging import Display, shown_while
from flaxformer_lab.training.single import Single

command_alone(__name__)


def main(overrides: list[str]) -> None:
    """Prints what the flags describe."""
    jax.config.update("jax_platforms", "cpu")  # nothing runs, and a compiler's plugin would look for its device
    if (CONFIG.value is None) == (WORKDIR.value is None):
        raise ConfigError("give --config=FILE, a recipe, or --workdir=DIR, a run's folder, and not both")
    reached, metadata = None, None
    if WORKDIR.value:
        if ABLATION.value:
            raise ConfigError(
                f"--ablation={','.join(ABLATION.value)}: the run in --workdir={WORKDIR.value} keeps the config that it "
                "was trained with; drop --ablation, or give --config=FILE instead of --workdir"
            )
        folder, changes = RunFolder(WORKDIR.value), changes_of(overrides)
        require_free(changes)  # the time that the run took is of its own config
        config, metadata = folder.read()
        config = changed(config, changes)
        reached = seconds_per_update(folder.path / "tensorboard")
    else:
        config = load_config(CONFIG.value, overrides, split_names(ABLATION.value))
    if PRINT_CONFIG.value:
        print_config(config)
        return
    with shown_while("counting"):
        experiment = make_experiment(config, metadata, Single(deterministic=config.deterministic))
        cost = cost_of_update(experiment, stored_batch(experiment), DEVICE.value, compile=COMPILE.value)
        device = find_device(DEVICE.value)
    found = summary(cost, device, reached)
    display = Display(steps=1, units=experiment.task.units, batch_size=1)
    display.table(f"{WORKDIR.value or CONFIG.value}, one update on {device.name}", ["", "value"], list(rows(found)))
    if cost.groups:
        table = [
            [name, each.operations, f"{each.num_bytes / 1e6:,.1f}", f"{each.flops / 1e9:,.1f}"]
            for name, each in cost.groups.items()
        ]
        display.table(f"the program of {cost.source}", ["operations", "number", "MB", "GFLOPs"], table)
    print(json.dumps(found))


def summary(cost: Cost, device: Device, reached: float | None) -> dict[str, Any]:
    """What an update costs on a device, and the share of the roofline that `reached` seconds for one are."""
    floor = roofline(cost, device)
    found: dict[str, Any] = {
        "device": device.name,
        "flops": sum(cost.flops.values()),
        "flops_by_kind": cost.flops,
        "bytes": cost.num_bytes,
        "bytes_from": cost.source,
        "product_seconds": floor.product_seconds,
        "memory_seconds": floor.memory_seconds,
        "roofline_seconds": floor.seconds,
        "bound": floor.bound,
    }
    if reached:
        shares = {"share_of_roofline": floor.seconds / reached, "share_of_peak": floor.product_seconds / reached}
        found |= {"seconds_per_update": reached} | shares
    return found


def rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """The table for people."""
    kinds = {"bfloat16": "in 16 bits"} | {kind: f"in float32, {kind}" for kind in ("highest", "high", "default")}
    for kind, flops in found["flops_by_kind"].items():
        yield [f"products {kinds[kind]}", f"{flops / 1e9:,.2f} GFLOPs"]
    yield [f"bytes ({found['bytes_from']})", f"{found['bytes'] / 1e6:,.1f} MB"]
    yield ["time of the products", _milliseconds(found["product_seconds"])]
    yield ["time of the bytes", _milliseconds(found["memory_seconds"])]
    yield ["roofline", f"{_milliseconds(found['roofline_seconds'])}, bound by {found['bound']}"]
    if "seconds_per_update" in found:
        yield ["the run's updates", _milliseconds(found["seconds_per_update"])]
        yield ["share of the roofline", f"{found['share_of_roofline']:.1%}"]
        yield ["share of the products' peak", f"{found['share_of_peak']:.1%}"]


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.3f} ms"


if __name__ == "__main__":
    CONFIG = flags.DEFINE_string("config", None, "Recipe file; it returns the config from get_config().")
    WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run, instead of a recipe.")
    ABLATION = flags.DEFINE_multi_string("ablation", [], "Named variants, separated by commas: ffn_off,single_head.")
    DEVICE = flags.DEFINE_enum(
        "device", "cpu", NAMES, "For which device; cpu is this machine, whose rates are measured."
    )
    COMPILE = flags.DEFINE_bool("compile", True, "Compile for the device, where its compiler is installed.")
    run(main, Config)
