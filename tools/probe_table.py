"""Trains every probe and writes the measured table into docs/science.md: `make probes`.

With names it runs only some probes or rows: `make probes ARGS="P3 'MQAR LSTM, 2 layers'"`.

Each row is one run of a recipe in configs/probes, in a temporary folder; seed 0, the recipe's learning rate.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from page_parts import read_part, write_lines

from flaxformer_lab.analysis.measures import measure
from flaxformer_lab.analysis.rank import rank_residual
from flaxformer_lab.command_line import load_config
from flaxformer_lab.compilation import use_compilation_cache
from flaxformer_lab.run import load_run
from flaxformer_lab.tasks import make_task
from flaxformer_lab.training.folder import RunFolder
from flaxformer_lab.training.logging import read_metrics
from flaxformer_lab.training.loop import train

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "science.md"
HEADER = ("probe", "model", "measured", "bound", "expected", "seconds")


@dataclass(frozen=True)
class Row:
    """One run. expected: the result of an independent implementation, if there is one."""

    probe: str
    what: str
    recipe: str
    overrides: tuple[str, ...] = ()
    ablation: tuple[str, ...] = ()
    expected: str = ""
    reach: float | None = None  # ask for the number of steps to this validation score instead of the score


def _heads(number: int, head_dim: int) -> tuple[str, ...]:
    return (f"model.attention.num_heads={number}", f"model.attention.head_dim={head_dim}")


ROWS = (
    Row("P1", "relu FFN", "product", expected="0.99"),
    Row("P1", "bilinear FFN", "product", ("model.ffn.kind=bilinear",), expected="0.997"),
    Row("P1", "tanh FFN", "product", ("model.ffn.activation=tanh",), expected="0.00"),
    Row("P1", "identity FFN", "product", ("model.ffn.activation=identity",), expected="0.00"),
    Row("P1", "attention only", "product", (), ("ffn_off",), expected="0.00"),
    Row("P1b", "attention only, no norm, 4 tokens", "product_of_three", expected="0.78"),
    Row("P1b", "attention only, no norm, 1 token", "product_of_three", ("task.tokens=1",), expected="-0.004"),
    Row(
        "P1b",
        "attention only, RMSNorm, 1 token",
        "product_of_three",
        ("task.tokens=1", "model.norm.kind=rmsnorm"),
        expected="0.75",
    ),
    Row("P2", "shift, dense", "rotation", expected="1.000"),
    Row("P2", "shift, per dimension", "rotation", (), ("per_dimension",), expected="-0.000"),
    Row("P2", "rotation, dense", "rotation", ("task.rotation=random",), expected="1.000"),
    Row("P2", "rotation, per dimension", "rotation", ("task.rotation=random",), ("per_dimension",), expected="0.031"),
    *(
        Row("P3", f"{number} heads", "pointers", _heads(number, 16), expected=expected)
        for number, expected in ((1, "0.252"), (2, "0.500"), (4, "1.000"), (8, "1.000"))
    ),
    Row(
        "P3",
        "1 head and a relu FFN",
        "pointers",
        (*_heads(1, 16), "model.ffn.kind=mlp", "model.ffn.activation=relu"),
        expected="0.25",
    ),
    Row("P3", "mean attention", "pointers", (), ("mean_attention",), expected="0.126"),
    *(
        Row("P4", f"heads x head_dim {number} x {size}", "nearest", _heads(number, size), expected=expected)
        for number, size, expected in (
            (1, 8, "0.965"),
            (2, 4, "0.495"),
            (4, 2, "0.413"),
            (8, 1, "0.382"),
            (8, 8, "0.969"),
        )
    ),
    *(
        Row("P5", f"a = {scale}, {what}", "unequal_scales", (f"task.log_scale={scale}", *overrides), expected=expected)
        for what, overrides, scores in (
            ("raw", (), ("0.965", "0.620", "0.203")),
            ("RMSNorm", ("model.norm.kind=rmsnorm",), ("0.967", "0.698", "0.291")),
            ("standardised", ("task.standardised=true",), ("0.965", "0.965", "0.965")),
        )
        for scale, expected in zip((0, 1, 2), scores, strict=True)
    ),
    *(
        Row(
            "P5b",
            f"scale {scale}: steps to R2 = 0.95",
            "learning_time",
            (f"task.scale={scale}", f"training.steps={20 * every}", f"training.evaluate_every={max(every // 10, 1)}"),
            expected=expected,
            reach=0.95,
        )
        for scale, every, expected in (
            (1, 20, "140"),
            (0.316, 60, "465"),
            (0.1, 200, "1455"),
            (0.032, 400, "4125"),
            (0.01, 1000, "10875"),
        )
    ),
    Row("P6", "2 layers, 1 head, no FFN", "recall", expected="1.000"),
    Row("P6", "1 layer", "recall", ("model.depth=1",), expected="0.256"),
    Row("P8", "MLP (depth 2, attention off)", "planted_interactions"),
    Row("P8", "factorization machine", "planted_interactions", (), ("factorization_machine",)),
    Row("P9", "attention", "delay"),
    Row("P9", "attention off", "delay", (), ("attention_off",)),
    Row("long range", "attention, 32 back", "long_range"),
    Row("long range", "convolution of depth 2, reach 8", "long_range", (), ("cnn_1d",)),
    Row("long range", "LSTM, 32 back", "long_range", (), ("lstm",)),
    Row("MQAR", "attention, 2 layers", "mqar"),
    Row("MQAR", "attention, 1 layer", "mqar", ("model.depth=1",)),
    Row("MQAR", "LSTM, 2 layers", "mqar", (), ("lstm",)),
)


def run(row: Row) -> tuple[str, str, str]:
    """(score, bound, seconds) of a row."""
    recipe = ROOT / "configs" / "probes" / f"{row.recipe}.py"
    config = load_config(str(recipe), [f"--config.{override}" for override in row.overrides], row.ablation)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        values = train(config, folder, quiet=True)
        score = values.get("r2", values.get("accuracy"))
        text = f"{score:.3f}" if row.reach is None else _steps_to(row.reach, RunFolder(folder).metrics)
    bound = make_task(config.task).bound(config.model)
    return (
        text,
        "" if bound is None else f"{bound.value:.3f}{' *' if bound.assumes else ''}",
        f"{time.perf_counter() - start:.0f}",
    )


def _steps_to(score: float, metrics: Path) -> str:
    entries = [each for each in read_metrics(metrics) if (each["split"], each["name"]) == ("validation", "r2")]
    return next((str(each["step"]) for each in entries if each["value"] >= score), "not reached")


RESOLVED = 14  # -log of 8e-7: a smaller residual is float32's rounding


def rank_collapse() -> Iterator[tuple[str, ...]]:
    """P7: -log of the rank residual after 1, 2, 3, 4 layers at initialisation, with and without skip connections."""
    for what, skip, ffn, expected in (
        ("attention only, no skip", False, "off", "1.48, 4.65, 13.1"),
        ("attention and FFN, no skip", False, "mlp", ""),
        ("attention only, skip", True, "off", "does not collapse"),
    ):
        start = time.perf_counter()
        overrides = [f"model.ffn.kind={ffn}", f"model.skip.attention={skip}", f"model.skip.ffn={skip}"]
        recipe = str(ROOT / "configs" / "probes" / "rank_collapse.py")
        config = load_config(recipe, [f"--config.{override}" for override in overrides])
        network = make_task(config.task).network(config.model)
        x = jax.random.normal(jax.random.key(1), (64, 32, config.model.width))
        residuals = []
        for seed in range(5):
            params, model_state = network.init(jax.random.key(seed))
            outputs = network.intermediates(params, model_state, x)
            layers = [outputs[f"blocks.{layer}.output"] for layer in range(4)]
            residuals.append([float(-jnp.mean(jnp.log(rank_residual(layer)))) for layer in layers])
        score = ", ".join(f"{v:.3g}" if v < RESOLVED else f"> {RESOLVED}" for v in np.mean(residuals, axis=0))
        yield "P7", f"{what}: -log residual by layer", score, "", expected, f"{time.perf_counter() - start:.0f}"


def planted_shares() -> Iterator[tuple[str, ...]]:
    """P8: the two measures of interaction of each trained model, and the planted truth."""
    recipe = str(ROOT / "configs" / "probes" / "planted_interactions.py")
    rows = [(row.what, row.ablation, truth) for row in ROWS if row.probe == "P8" for truth in (0.1, 0.5, 0.909)]
    for model, ablation, truth in rows:
        start = time.perf_counter()
        config = load_config(recipe, [f"--config.task.interaction_share={truth}"], ablation)
        with tempfile.TemporaryDirectory() as folder:
            train(config, folder, quiet=True)
            values = measure(load_run(folder).subject(examples=2048), ["interaction", "hessian"])
        shares = ", ".join(f"{values[name].value:.3f}" for name in ("interaction_share", "hessian_interaction"))
        what = f"{model}, truth {truth}: interaction share, by the Hessian"
        yield "P8", what, shares, "", f"{truth}", f"{time.perf_counter() - start:.0f}"


def main(names: list[str]) -> None:
    """Runs the rows of the named probes, all by default, and writes the table."""
    use_compilation_cache()
    print("| " + " | ".join(HEADER) + " |\n" + "|---" * len(HEADER) + "|", flush=True)
    for row in ROWS:
        if not names or {row.probe, f"{row.probe} {row.what}"} & set(names):
            score, bound, seconds = run(row)
            _keep((row.probe, row.what, score, bound, row.expected, seconds))
    for probe, rows in (("P7", rank_collapse), ("P8", planted_shares)):
        for cells in rows() if not names or probe in names else ():
            _keep(cells)


def _keep(cells: tuple[str, ...]) -> None:
    """Prints a row and writes it into the page, at the row of its probe and model."""
    print("| " + " | ".join(cells) + " |", flush=True)
    table = read_part(PAGE, "probes").strip().splitlines()[2:]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in table]
    known = {row[:2]: row for row in rows} | {cells[:2]: cells}
    order = list(dict.fromkeys(row.probe for row in ROWS))
    order.insert(order.index("P8"), "P7")
    places = {(row.probe, row.what): place for place, row in enumerate(ROWS)}
    ranked = sorted(known.values(), key=lambda row: (order.index(row[0]), places.get(row[:2], len(ROWS))))
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, ("---",) * len(HEADER), *ranked)]
    write_lines(PAGE, "probes", lines)


if __name__ == "__main__":
    main(sys.argv[1:])
