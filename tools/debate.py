"""Decides the debate: trains every ablation that carries claims, and writes docs/results/ from what they found.

Command: make debate, or python tools/debate.py [NAME ...], with names of configs/ablations/ (by its name alone:
`pretrained`, which needs the extra of that name)
Trains one ablation after another into runs/NAME (the same command goes on where it stopped), keeps each one's values
as docs/results/NAME.csv.gz, and then does what --from_results does.

--from_results trains nothing: from the committed values it makes every report again (NAME.md and NAME.html, also where
nothing is claimed), the README's figure and docs/results/debate.html, byte for byte.
--output=DIR: write into another folder.
"""

import argparse
import functools
import gzip
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent import futures
from pathlib import Path

import readme_figure

from flaxformer_lab.ablation.grid import make_grid, parse_ablation
from flaxformer_lab.ablation.learned.config import is_learned
from flaxformer_lab.ablation.learned.run import read_rows
from flaxformer_lab.ablation.store import Store
from flaxformer_lab.command_line import read_recipe
from flaxformer_lab.compilation import available_cores
from flaxformer_lab.report.claims import decide_all
from flaxformer_lab.report.debate import Evidence, Topic, as_debate, evidence_of, evidence_of_benchmark
from flaxformer_lab.report.designs import front_families
from flaxformer_lab.report.figures import front_panels
from flaxformer_lab.report.learned import write_learned
from flaxformer_lab.report.page import as_page
from flaxformer_lab.report.results import RESULTS, restore
from flaxformer_lab.report.summary import summarise
from flaxformer_lab.report.svg import as_file
from flaxformer_lab.report.write import as_markdown

ROOT = Path(__file__).resolve().parents[1]
ABLATIONS, BOOKS = ROOT / "configs" / "ablations", ROOT / "docs" / "results"
BENCHMARK = ROOT / "benchmarks" / "results" / "attention_length_cpu.json"
TOPICS = (
    Topic(
        "C1",
        "The first feature of Q only ever meets the first feature of K, so attention captures nothing across features.",
    ),
    Topic("C2", "Transformers work only where the features' scales were made even; with unequal scales they fail."),
    Topic("C3", "Every feature of Q, K and V is a weighted sum of all input features."),
    Topic("C4", "One attention finds one relation; more attentions find more."),
    Topic("C5", "Attention captures more relations than a convolution."),
    Topic(
        "C6",
        "Wide learned embeddings replace hand-made feature crosses (factorization machines).",
        "recommendation data, with a factorization machine beside attention and beside width",
    ),
    Topic("C7", "Every dot product of q and k already uses all features."),
    Topic("C8", "Too many features in one dot product make attention uniform; heads restore diversity."),
    Topic("C9", "If features were related to each other too, the cost of attention would explode."),
    Topic("C10", "The FFN is the dense connection across features; stacking both gives cross-feature capture."),
    Topic("C11", "Nothing nonlinear stands between the W's and QK, so they are just another linear layer."),
    Topic("C12", "For an input of shape [1, 3, 2] the 3-axis and the 2-axis are treated alike."),
    Topic(
        "C13",
        "Transformers lead time-series forecasting (Informer, Autoformer, FEDformer, PatchTST).",
        "forecasters beside a linear map of each channel, on weather and power data",
    ),
    Topic(
        "C14",
        "Vision Transformers are near-sighted and do not beat CNNs on small data.",
        "vision Transformers beside CNNs at equal parameters, with the distance that attention bridges",
    ),
    Topic("C15", "Flash and Lightning attention make length cheap: a token costs the same at every length."),
    Topic("C16", "Transformers capture more context than recurrent networks."),
    Topic(
        "C17",
        "Attention detects by brute force: with enough computation it finds every target, as anchors do.",
        "detectors with queries, with anchors and dense ones, compared by precision against FLOPs",
    ),
    Topic(
        "C18",
        "In a real pretrained model features mix in the FFN, not in attention.",
        "pretrained models, with parts removed and mixing measured layer by layer",
    ),
    Topic(
        "C19",
        "Embeddings' dimensions are orthogonal and evenly scaled by default.",
        "spectra of pretrained embeddings and residual streams",
    ),
    Topic(
        "C20",
        "A real Transformer block is nearly linear.",
        "the best affine fit of each block of a pretrained model, and the model's score with it in place",
    ),
    Topic(
        "C21",
        "At the edge CNNs still beat Transformers.",
        "scores against bytes, FLOPs and latency, in float32 and int8",
    ),
    Topic(
        "C22",
        "Attention concentrates on what people would call the key parts, hence its near sight.",
        "images with marked objects: attention inside them beside their area, trained and untrained",
    ),
)


@functools.cache
def configs() -> dict[str, tuple[Path, int]]:
    """Every ablation's file and number of claims, the fewest first: their word on a claim comes before others'."""
    recipes = {path: read_recipe(str(path)) for path in ABLATIONS.glob("*.py")}
    found = {path.stem: (path, len(tree.get("claims", ()))) for path, tree in recipes.items() if not is_learned(tree)}
    return dict(sorted(found.items(), key=lambda each: (each[1][1], each[0])))


@functools.cache
def cut_models() -> dict[str, Path]:
    """The ablations of what is learned, which need packages of their own and are made by name alone."""
    return {path.stem: path for path in sorted(ABLATIONS.glob("*.py")) if is_learned(read_recipe(str(path)))}


def with_claims() -> list[str]:
    """The ablations that the debate is about."""
    return [name for name, (_, claims) in configs().items() if claims]


def train(names: Sequence[str]) -> int:
    """Trains ablations one after another and keeps their values; returns how many did not finish."""
    unfinished = 0
    for name in names:
        workdir, start = ROOT / "runs" / name, time.monotonic()
        path = cut_models()[name] if name in cut_models() else configs()[name][0]
        flags = f"--config={path.relative_to(ROOT)}", f"--workdir={workdir.relative_to(ROOT)}"
        code = subprocess.run([sys.executable, "-m", "flaxformer_lab.ablate", *flags], cwd=ROOT, check=False).returncode
        print(f"{name}: exit code {code} after {time.monotonic() - start:.0f} s", flush=True)
        if code > 128 or code < 0:  # ended by a signal: so does the rest
            sys.exit(code)
        unfinished += code != 0
        if code == 0:
            (BOOKS / f"{name}.csv.gz").write_bytes(gzip.compress((workdir / RESULTS).read_bytes(), mtime=0))
    return unfinished


def write_report(name: str, output: Path, *, html: bool = True) -> list[Evidence]:
    """Writes an ablation's reports from its stored values; returns what it says of its claims."""
    path, _ = configs()[name]
    grid = make_grid(parse_ablation(read_recipe(str(path))), path.parent, read_recipe)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.claim(grid)
        restore(BOOKS / f"{name}.csv.gz", grid, store)
        summary = summarise(grid, store)
    decisions = decide_all(summary)
    (output / f"{name}.md").write_text(as_markdown(summary, decisions), encoding="utf-8")
    if html:
        (output / f"{name}.html").write_text(as_page(summary, decisions), encoding="utf-8")
        for number, task in enumerate(grid.config.tasks, 1):
            if families := front_families(summary, task):
                picture = as_file(front_panels(families))
                (output / f"{name}_fronts_{number}.svg").write_text(picture, encoding="utf-8")
    return [evidence_of(name, summary, decision) for decision in decisions]


def evidence_of_cost() -> list[Evidence]:
    """What benchmarks/attention_length.py says of the claims on cost."""
    tree = json.loads(BENCHMARK.read_text(encoding="utf-8"))
    links = (
        ("figure of all kinds of attention", "attention_cost_cpu.svg"),
        ("raw numbers", f"../../{BENCHMARK.relative_to(ROOT)}"),
    )
    statements = {topic.name: topic.statement for topic in TOPICS}
    return [
        evidence_of_benchmark(claim, statements[claim], found, tree["machine"], links)
        for claim, found in tree["claims"].items()
    ]


def write_all(output: Path, *, html: bool = True) -> list[str]:
    """Writes all that follows from the stored values; returns the ablations with claims of which there are none.

    html: with the ablations' own pages, whose figures take most of the time.
    """
    kept = [name for name in configs() if (BOOKS / f"{name}.csv.gz").exists()]
    write = functools.partial(write_report, output=output, html=html)
    if html and len(kept) > 1:
        context = multiprocessing.get_context("spawn")
        with futures.ProcessPoolExecutor(available_cores(), mp_context=context) as pool:
            longest_first = sorted(kept, key=lambda name: -(BOOKS / f"{name}.csv.gz").stat().st_size)
            evidence_by_name = dict(zip(longest_first, pool.map(write, longest_first), strict=True))
            found = [evidence_by_name[name] for name in kept]
    else:
        found = [*map(write, kept)]
    for name in cut_models():
        if (BOOKS / f"{name}.csv.gz").exists():
            found.append(write_learned(read_rows(BOOKS / f"{name}.csv.gz", gzip.open), output, name, html=html))
    evidence = [each for one in (*found, evidence_of_cost()) for each in one]
    (output / "debate.html").write_text(as_debate(TOPICS, evidence), encoding="utf-8")
    readme_figure.write(output / readme_figure.REPORT.name, output / readme_figure.FIGURE.name)
    return [name for name in with_claims() if name not in kept]


def main(given: Sequence[str] | None = None) -> int:
    """Does what the arguments say; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"ablations to train; by default {', '.join(with_claims())}")
    parser.add_argument("--from_results", action="store_true", help="train nothing")
    parser.add_argument("--output", type=Path, default=BOOKS, help="folder for the reports")
    arguments = parser.parse_args(given)
    unknown = set(arguments.names) - configs().keys() - cut_models().keys()
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such ablation; choose from {', '.join(configs())}")
    unfinished = 0 if arguments.from_results else train(arguments.names or with_claims())
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name in write_all(arguments.output):
        print(f"{name} has no stored values yet: its claims are left out")
    print(f"written: {arguments.output / 'debate.html'}")
    return 7 if unfinished else 0


if __name__ == "__main__":
    sys.exit(main())
