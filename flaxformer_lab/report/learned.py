"""The report on an ablation of what is learned: tables by cut and layer, figures, and verdicts on claims C18 to C20.

It follows from the rows of results.csv alone; the same rows make the same bytes. Encoders are judged by three sets of
rated pairs, which the claims are about; language models by nats a token, of which less is better.
"""

import functools
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from flaxformer_lab.ablation.claim_config import Conclusion, Verdict
from flaxformer_lab.errors import RunError
from flaxformer_lab.report.claims import answer_to, conclude, first_that_applies
from flaxformer_lab.report.debate import Evidence, Row
from flaxformer_lab.report.formatting import format_interval, format_mean, format_p_value, with_minus_signs
from flaxformer_lab.report.markup import Markup, scrolling, tag
from flaxformer_lab.report.page import page_of
from flaxformer_lab.report.statistics import SIGNIFICANT, Interval, holm
from flaxformer_lab.training.folder import write_atomic

SETS = ("WordSim", "SimLex", "Lee")
NATS = "nats"
# Of the correlations' mean over the sets: removing MiniLM's first or last block costs 0.11 and 0.14, any other one at
# most 0.005.
COST = 0.05
VECTORS, FEATURES = 2000, 384  # of measures that were stored without their numbers
FACTS = ("command", "versions", "device", "commit")
QUESTION = "What do the parts of a pretrained encoder do?"  # where the rows have none
UNDECIDED = "Claims C18 to C20 are asked of an encoder that rated pairs judge; nothing is said of them here."
# One figure each: the cost of a cut by layer; and measures by layer.
LINES = ("attention removed", "FFN removed", "uniform attention", "linear FFN", "linear block", "block removed")
COLOURS = ("#0b6e99", "#c2410c", "#7c3aed", "#d97706", "#15803d", "#64748b")


@dataclass(frozen=True)
class Judged:
    """A cut in a place: the scores, their differences from the intact model, p after Holm's correction, and words."""

    cut: str
    layer: str
    scores: dict[str, float]
    differences: dict[str, Interval]
    corrected_p: dict[str, float]
    kept: float | None

    @property
    def costs(self) -> dict[str, float]:
        """The differences, positive where the cut is worse."""
        return {name: each.mean if name == NATS else -each.mean for name, each in self.differences.items()}

    @property
    def verdict(self) -> str:
        """better, worse, both, or open, over all sets."""
        sure = [cost for name, cost in self.costs.items() if self.corrected_p[name] < SIGNIFICANT or np.isinf(cost)]
        if not sure:
            return "open"
        return "worse" if min(sure) > 0 else "better" if max(sure) < 0 else "both"

    @property
    def cost(self) -> Interval:
        """What the cut costs on average over all sets, positive where it is worse; errors are added up."""
        means = list(self.costs.values())
        errors = [(each.high - each.low) / 2 for each in self.differences.values()]
        half = float(np.sqrt(np.sum(np.square(errors)))) / len(means)
        mean = float(np.mean(means))
        return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Findings:
    """All cuts, and the measures by what they are of: the embeddings' rows and the layers'.

    left_out: cuts that mean nothing for this model, with the reason.
    """

    cuts: tuple[Judged, ...]
    measures: dict[str, dict[str, Any]]
    question: str = QUESTION
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def sets(self) -> tuple[str, ...]:
        """What cuts are judged by."""
        return tuple(self.cuts[0].scores)

    def cut(self, name: str, layer: str = "all") -> Judged | None:
        """One cut; None where it has not been made."""
        return next((each for each in self.cuts if (each.cut, each.layer) == (name, layer)), None)

    @property
    def layers(self) -> list[str]:
        """The numbers of the layers that were measured."""
        return [name for name in self.measures if name.isdigit()]


def findings_of(rows: Sequence[dict[str, Any]]) -> Findings:
    """What the rows say; each p is corrected for all cuts and sets."""
    cuts = [row for row in rows if "scores" in row]
    sets = list(cuts[0]["scores"])
    p_values = [row["scores"][name]["p"] for row in cuts if row["cut"] != "intact" for name in sets]
    corrected = iter(holm([np.nan if p is None else p for p in p_values]))
    judged = []
    for row in cuts:
        scores, intact = row["scores"], row["cut"] == "intact"
        judged.append(
            Judged(
                row["cut"],
                row["layer"],
                {name: scores[name]["value"] for name in sets},
                {name: Interval(*(scores[name][key] for key in ("difference", "low", "high"))) for name in sets},
                {name: 1.0 if intact else float(next(corrected)) for name in sets},
                row.get("kept"),
            )
        )
    measures = {row["layer"]: row for row in rows if row["cut"] == "measures"}
    question = next((row["question"] for row in rows if "question" in row), QUESTION)
    left_out = {row["cut"]: row["left_out"] for row in rows if "left_out" in row}
    return Findings(tuple(judged), measures, question, left_out)


# --------------------------------------------------------------------------------------------- claims

STATEMENTS = {
    "C18": "In a real pretrained model features mix in the FFN, not in attention.",
    "C19": "Embeddings' dimensions are orthogonal and evenly scaled by default.",
    "C20": "A real Transformer block is nearly linear.",
}
# What follows from the answers, by their names in `_features`, `_scales` and `_linear`.
CONCLUSIONS = {
    "C18": (
        Conclusion(
            "refuted",
            "attention mixes features by its own maps, and the model needs it to; the FFN mixes too",
            {"attention": "yes", "FFN": "yes"},
        ),
        Conclusion(
            "refuted", "attention mixes features by its own maps, and the model needs that alone", {"attention": "yes"}
        ),
        Conclusion(
            "supported only when",
            "what counts is what the model needs: attention mixes features too, but only the FFN's mixing is needed",
            {"FFN": "yes", "attention's Jacobian": "yes"},
        ),
        Conclusion("supported", "only the FFN mixes features, and the model needs it to", {"FFN": "yes"}),
        Conclusion("refuted", "the model needs the mixing of features in neither"),
    ),
    "C19": (
        Conclusion(
            "supported",
            "features are nearly uncorrelated and of one scale everywhere",
            {"words correlate": "no", "words differ": "no", "input correlates": "no"}
            | {"input differs": "no", "block differs": "no"},
        ),
        Conclusion(
            "supported only when",
            "one of the two is meant: scales are even, but features are correlated",
            {"words differ": "no", "input differs": "no", "block differs": "no"},
        ),
        Conclusion(
            "supported only when",
            "one of the two is meant: features are uncorrelated, but some are wider",
            {"words correlate": "no", "input correlates": "no"},
        ),
        Conclusion(
            "refuted",
            "features are correlated from the first table on, and inside some are several times as wide as others",
            {"words correlate": "yes", "block differs": "yes"},
        ),
        Conclusion("refuted", "some features are correlated, and some are wider than others"),
    ),
    "C20": (
        Conclusion(
            "supported",
            "affine maps explain the blocks, and the model does its work with them",
            {"output": "yes", "change": "yes", "all": "no"},
        ),
        Conclusion(
            "supported only when",
            "a block's output is meant, most of which passes by it: what the block changes is not affine, though the "
            "model does its work with affine maps",
            {"output": "yes", "all": "no"},
        ),
        Conclusion(
            "supported only when",
            "the model's work is meant: affine maps leave part of the blocks unexplained, and the model does not need "
            "that part",
            {"all": "no"},
        ),
        Conclusion(
            "supported only when",
            "one block is looked at: any one may be affine, but a model of affine blocks loses what it is for",
            {"output": "yes", "one": "no"},
        ),
        Conclusion(
            "refuted", "affine maps explain the blocks' outputs, but what they leave out is needed", {"output": "yes"}
        ),
        Conclusion("refuted", "affine maps leave part of the blocks unexplained, and that part is needed"),
    ),
}


def decide_learned(found: Findings, name: str = "pretrained") -> list[Evidence]:
    """What the ablation says of C18, C19 and C20; nothing where its measures or cuts are missing, or no sets judge."""
    links = (("tables", f"{name}.html#cuts"), ("raw numbers", f"{name}.csv.gz"))
    asked = {"C18": _features, "C19": _scales, "C20": _linear} if found.measures and found.sets == SETS else {}
    decided = {claim: rows for claim, ask in asked.items() if (rows := ask(found))}
    conditions = (
        "Measured on MiniLM-L6 (six layers, 384 features), which makes sentence embeddings: judged by WordSim-353, "
        "SimLex-999 and Lee's documents. Intervals: of scores by the paired bootstrap over pairs, of measures over "
        "tokens or layers; nothing was trained.",
    )
    return [
        Evidence(claim, STATEMENTS[claim], *concluded(claim, rows), tuple(rows.values()), conditions, links)
        for claim, rows in decided.items()
    ]


def concluded(claim: str, rows: dict[str, Row]) -> tuple[Verdict, str]:
    """The verdict and the reason; undecided where one depends on an answer that is open."""
    rule = functools.partial(first_that_applies, CONCLUSIONS[claim], rows)
    decisive = {name for each in CONCLUSIONS[claim] for name in each.when}
    unclear = [row.question for name, row in rows.items() if row.answer == "open" and name in decisive]
    return conclude(rule, [row.answer for row in rows.values()]) or ("undecided", f"open: {'; '.join(unclear)}")


def _row(question: str, interval: Interval, threshold: float, unit: str = "") -> Row:
    said = f"{format_interval(interval)}{unit}, threshold {threshold:g}"
    return Row(question, interval, threshold, answer_to(interval, threshold), said)


def _features(found: Findings) -> dict[str, Row]:
    """What C18 asks; nothing where a cut is missing."""
    attention, values = found.cut("per-dimension QK and OV"), found.cut("per-dimension OV")
    ffn, energies = found.cut("FFN of single features"), [found.measures[layer]["energy"] for layer in found.layers]
    outputs = found.cut("attention zero"), found.cut("FFN zero")
    if any(each is None for each in (attention, ffn, values, *outputs)):
        return {}
    of_attention, of_ffn = (_over([each[k] for each in energies]) for k in (0, 1))
    keep = "does it cost more than 0.05 to keep"
    return {
        "attention": _row(f"{keep} attention from mixing features (in QK and OV)?", attention.cost, COST),
        "values": _row("does that of the values alone (OV)?", values.cost, COST),
        "FFN": _row(f"{keep} the FFN from mixing features?", ffn.cost, COST),
        "attention's Jacobian": _row(
            "is more than half of attention's Jacobian between different features?", of_attention, 0.5
        ),
        "FFN's Jacobian": _row("is more than half of the FFN's?", of_ffn, 0.5),
        # What is not needed at all cannot show that its mixing is.
        "attention's output": _row("does it cost more than 0.05 to have no attention at all?", outputs[0].cost, COST),
        "FFN's output": _row("does it cost more than 0.05 to have no FFN at all?", outputs[1].cost, COST),
    }


def _scales(found: Findings) -> dict[str, Row]:
    """What C19 asks."""
    inside = max(found.layers, key=lambda layer: found.measures[layer]["scale_ratio"][0])

    def correlated(name: str, where: str) -> Row:
        m = found.measures[name]
        noise = 1 / (m.get("vectors", VECTORS) - 1)  # the mean square correlation of independent features
        size = Interval(*(math.sqrt(max(max(value, 0) ** 2 - noise, 0)) for value in m["correlation"]))
        # With d features of root mean square correlation r their participation is 1 / (1 + (d - 1) r^2).
        threshold = round(1 / math.sqrt(m.get("features", FEATURES) - 1), 3)
        asked = f"do correlations halve the effective number of features {where} (their root mean square, without"
        return _row(f"{asked} sampling noise, is above 1 / sqrt(features - 1))?", size, threshold)

    def wide(name: str, where: str) -> Row:
        scale = Interval(*found.measures[name]["scale_ratio"])
        return _row(f"is a feature {where} more than twice as wide as the median one?", scale, 2.0, " times")

    words, first = "word vectors", "first block's input"
    return {
        "words correlate": correlated(words, f"of {words}"),
        "words differ": wide(words, f"of {words}"),
        "input correlates": correlated(first, f"of the {first}"),
        "input differs": wide(first, f"of the {first}"),
        "block differs": wide(inside, f"after block {inside}"),
    }


def _linear(found: Findings) -> dict[str, Row]:
    """What C20 asks; nothing where a cut is missing."""
    whole, one = found.cut("linear block"), [found.cut("linear block", layer) for layer in found.layers]
    costs = [each.cost for each in one if each is not None]
    if whole is None or not costs:
        return {}
    r2 = {name: [found.measures[layer]["explained"][name] for layer in found.layers] for name in ("block", "change")}
    worst = {name: Interval(*min(values, key=lambda each: each[0])) for name, values in r2.items()}
    highest, make = max(costs, key=lambda each: each.mean), "does it cost more than 0.05 to make"
    return {
        "output": _row("does an affine map explain more than 0.9 of every block's output?", worst["block"], 0.9),
        "change": _row("does it explain more than 0.9 of what a block changes?", worst["change"], 0.9),
        "all": _row(f"{make} every block affine?", whole.cost, COST),
        "one": _row(f"{make} the worst single block affine?", highest, COST),
    }


def _over(values: Sequence[float]) -> Interval:
    """The mean over layers with Student's interval."""
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    half = float(stats.t.ppf(0.975, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)


# --------------------------------------------------------------------------------------------- tables


def cut_columns(found: Findings) -> list[str]:
    """What `cut_rows` has."""
    if found.sets == (NATS,):
        return ["cut", "layer", "nats a token", "difference [95%], p (Holm)", "verdict"]
    differences = [f"{name}: difference [95%], p (Holm)" for name in found.sets]
    return ["cut", "layer", *found.sets, *differences, "neighbours kept", "over three sets"]


def cut_rows(found: Findings) -> list[list[str]]:
    """A row a cut, as text."""
    rows = []
    for each in found.cuts:
        intact = each.cut == "intact"
        differences = ["" if intact else _difference(each, name) for name in found.sets]
        scores = [format_mean(Interval(score, score, score)) for score in each.scores.values()]
        kept = [] if each.kept is None else [f"{each.kept:.2f}"]
        rows.append([each.cut, each.layer, *scores, *differences, *kept, "" if intact else each.verdict])
    return rows


def _difference(each: Judged, name: str) -> str:
    difference = each.differences[name]
    if np.isinf(difference.mean):
        return format_mean(difference)
    return ", ".join(filter(None, (format_interval(difference, signed=True), format_p_value(each.corrected_p[name]))))


SINKS = "attention to first and last (their share)"
MEASURE_COLUMNS = (
    *("layer", "attention: cross-feature energy (drawn)", "FFN: the same", "rank W_qk (drawn)", "rank W_ov (drawn)"),
    *(SINKS, "widest feature / median", "largest / median size", "massive share"),
    *("one feature's share of squares", "R2 attention", "R2 FFN", "R2 block", "R2 of its change"),
)


def measure_rows(found: Findings) -> list[list[str]]:
    """A row a layer, as text."""
    rows = []
    for layer in found.layers:
        m = found.measures[layer]
        energies = [f"{m['energy'][k]:.3f} ({m['energy_drawn'][k]:.3f})" for k in (0, 1)]
        ranks = [
            "none" if m[f"rank_{part}"] is None else f"{np.mean(m[f'rank_{part}']):.1f} ({m[f'rank_{part}_drawn']:.1f})"
            for part in ("qk", "ov")
        ]
        sinks = f"{m['sinks'][0]:.2f} ({m['sinks'][1]:.2f})"
        scales = [
            f"{m['scale_ratio'][0]:.1f}",
            f"{m['largest']:.0f}",
            f"{m['massive_share']:.1e}",
            f"{m['outlier_share']:.3f}",
        ]
        r2 = [f"{m['explained'][name][0]:.3f}" for name in ("attention", "FFN", "block", "change")]
        rows.append([layer, *energies, *ranks, sinks, *scales, *r2])
    return rows


def measure_columns(found: Findings) -> list[str]:
    """What `measure_rows` has; a language model's sink is its first token."""
    sinks = SINKS if found.sets == SETS else "attention to the first token (if it were even)"
    return [sinks if name == SINKS else name for name in MEASURE_COLUMNS]


VECTOR_COLUMNS = (
    "vectors",
    "root mean square correlation",
    "widest feature / median",
    "largest / median size",
    "participation",
)


def vector_rows(found: Findings) -> list[list[str]]:
    """A row for each kind of vectors before the first block, and for what each block gives."""
    rows = []
    for name, m in found.measures.items():
        title = f"after block {name}" if name.isdigit() else name
        both = [format_interval(Interval(*m[key])) for key in ("correlation", "scale_ratio")]
        rows.append([title, *both, f"{m['largest']:.1f}", f"{m['participation']:.3f}"])
    return rows


def as_markdown(found: Findings, evidence: Sequence[Evidence], provenance: Sequence[tuple[str, str]] = ()) -> str:
    """The report as Markdown."""
    claims = [
        [
            each.claim,
            each.statement,
            f"**{each.verdict}**",
            each.reason,
            "; ".join(f"{row.question} {row.answer}: {row.said}" for row in each.rows),
        ]
        for each in evidence
    ]
    columns = ("claim", "statement", "verdict", "because", "answers [95% interval]")
    parts = [f"# {found.question}", "", _table(columns, claims) if found.sets == SETS else UNDECIDED, ""]
    parts += ["## Cuts", "", _table(cut_columns(found), cut_rows(found)), ""]
    parts += [*(f"- Left out: {text}" for text in _left_out(found)), ""] if found.left_out else []
    parts += ["## Layers", "", _table(measure_columns(found), measure_rows(found)), "", "## Vectors", ""]
    parts += [_table(VECTOR_COLUMNS, vector_rows(found)), "", "## How it was made", ""]
    return "\n".join([*parts, *(f"- {name}: {text}" for name, text in provenance)]) + "\n"


def _left_out(found: Findings) -> list[str]:
    """The cuts of each reason, with it."""
    reasons = dict.fromkeys(found.left_out.values())
    return [f"{', '.join(n for n, why in found.left_out.items() if why == reason)}: {reason}." for reason in reasons]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join(['---'] * len(columns))} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def as_learned_page(found: Findings, evidence: Sequence[Evidence], provenance: Sequence[tuple[str, str]] = ()) -> str:
    """The report as one HTML page."""
    claims = [
        tag(
            "article",
            tag("h3", f"{each.claim}: {each.verdict}"),
            tag("blockquote", tag("p", each.statement)),
            tag("p", with_minus_signs(f"{each.reason}.")),
            tag("ol", [tag("li", with_minus_signs(f"{row.question} {row.answer}: {row.said}")) for row in each.rows]),
        )
        for each in evidence
    ]
    left_out = [tag("p", f"Left out: {text}") for text in _left_out(found)]
    claims = claims if found.sets == SETS else [tag("p", UNDECIDED)]
    sections = [
        ("cuts", "Cuts", [_html_table(cut_columns(found), cut_rows(found)), *left_out]),
        ("layers", "Layers", _html_table(measure_columns(found), measure_rows(found))),
        ("vectors", "Vectors", _html_table(VECTOR_COLUMNS, vector_rows(found))),
        ("provenance", "How it was made", tag("ul", [tag("li", f"{name}: {text}") for name, text in provenance])),
    ]
    content = [tag("section", tag("h2", title, id=id_), part) for id_, title, part in sections]
    header = tag("header", tag("h1", found.question))
    return page_of(
        found.question, [header, tag("main", claims, content, id="results", tabindex="-1")], "Made by flaxformer_lab."
    )


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    head = tag("thead", tag("tr", [tag("th", name, scope="col") for name in columns]))
    body = [
        tag("tr", tag("th", row[0], scope="row"), [tag("td", with_minus_signs(cell)) for cell in row[1:]])
        for row in rows
    ]
    return scrolling(columns[0], tag("table", head, tag("tbody", body)))


def write_learned(rows: Sequence[dict[str, Any]], folder: Path, name: str, *, html: bool = True) -> list[Evidence]:
    """Writes NAME.md and, with `html`, NAME.html and NAME_*.svg into a folder; returns what is said of the claims.

    Raises:
        RunError: they cannot be written.
    """
    found = findings_of(rows)
    evidence = decide_learned(found, name)
    facts = [(key, text) for row in rows if row["cut"] == "provenance" for key, text in row.items() if key in FACTS]
    contents = {f"{name}.md": as_markdown(found, evidence, facts)}
    if html:
        contents[f"{name}.html"] = as_learned_page(found, evidence, facts)
        pictures = figures(found) if found.layers else {}
        contents |= {f"{name}_{part}.svg": picture for part, picture in pictures.items()}
    try:
        for file, text in contents.items():
            write_atomic(folder / file, text)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}; make room for it") from error
    return evidence


# -------------------------------------------------------------------------------------------- figures


def figures(found: Findings) -> dict[str, str]:
    """SVG files by name: what cuts cost by layer, and what is measured by layer."""
    layers = found.layers
    numbers = [int(layer) for layer in layers]
    with matplotlib.rc_context({"svg.hashsalt": "flaxformer_lab", "svg.fonttype": "none", "font.size": 9}):
        cuts = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = cuts.add_subplot()
        for name, colour in zip(LINES, COLOURS, strict=True):
            judged = [found.cut(name, layer) for layer in layers]
            known = [(number, each.cost) for number, each in zip(numbers, judged, strict=True) if each is not None]
            known = [(number, cost) for number, cost in known if np.isfinite(cost.mean)]
            if known:
                x, means = [number for number, _ in known], [cost.mean for _, cost in known]
                errors = [[cost.mean - cost.low for _, cost in known], [cost.high - cost.mean for _, cost in known]]
                axes.errorbar(x, means, errors, label=name, color=colour, marker="o", markersize=4, capsize=2)
        axes.axhline(0, color="#888888", linewidth=0.8)
        cost = "cost, mean of three correlations" if found.sets == SETS else "cost in nats a token"
        axes.set(xlabel="layer", ylabel=cost, xticks=numbers)
        axes.legend(frameon=False, fontsize=8)
        measures = Figure(figsize=(9.6, 3.0), layout="constrained")
        panels = measures.subplots(1, 3)
        rows = [found.measures[layer] for layer in layers]
        for name, colour in (
            ("attention", COLOURS[0]),
            ("FFN", COLOURS[1]),
            ("block", COLOURS[4]),
            ("change", COLOURS[5]),
        ):
            panels[0].plot(numbers, [row["explained"][name][0] for row in rows], label=name, color=colour, marker="o")
        panels[0].set(title="best affine fit, R2", ylim=(0, 1.02))
        for part, k, colour in (("attention", 0, COLOURS[0]), ("FFN", 1, COLOURS[1])):
            panels[1].plot(numbers, [row["energy"][k] for row in rows], label=part, color=colour, marker="o")
            drawn = [row["energy_drawn"][k] for row in rows]
            panels[1].plot(numbers, drawn, label=f"{part}, drawn weights", color=colour, linestyle="--")
        panels[1].set(title="cross-feature energy", ylim=(0.5, 1.02))
        panels[2].plot(
            numbers,
            [row["scale_ratio"][0] for row in rows],
            label="widest feature / median",
            color=COLOURS[2],
            marker="o",
        )
        panels[2].plot(
            numbers, [row["largest"] for row in rows], label="largest / median size", color=COLOURS[3], marker="o"
        )
        panels[2].set(title="uneven scales", yscale="log")
        for panel in panels:
            panel.set(xlabel="layer", xticks=numbers)
            panel.legend(frameon=False, fontsize=7)
        return {"cuts": _svg(cuts), "measures": _svg(measures)}


def _svg(figure: Figure) -> str:
    """Without the last digits of its coordinates, in which processors differ."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", file.getvalue().decode())
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
