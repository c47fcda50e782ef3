"""One task on an ablation's page: what was found, in a sentence, a table and charts."""

import itertools
import math
from collections.abc import Sequence

from flaxformer_lab.report.designs import factorial, front_families, series_of
from flaxformer_lab.report.figures import (
    COSTS,
    LINES,
    PRECISIONS,
    all_curves,
    bound_of,
    costs_of_use,
    dose_curves,
    factorial_grid,
    forest,
    front_chart,
    front_styles,
    learning_curve,
    scatter,
    score_limits,
    seed_range,
)
from flaxformer_lab.report.formatting import (
    COSTS_OF_USE,
    effects_in_words,
    format_bound,
    format_clarity,
    format_cost_of_use,
    format_ends,
    format_errors_of_scores,
    format_improvement,
    format_label,
    format_learning_rate,
    format_mean,
    format_p_value,
    format_share,
    format_steps_to_threshold,
    in_words,
    with_minus_signs,
)
from flaxformer_lab.report.markup import Markup, breakable, scrolling, tag
from flaxformer_lab.report.statistics import Interval, bootstrap_interval
from flaxformer_lab.report.summary import Score, Summary, intervals_beside, measure_limits

MIXING = {"cross_feature_energy": "cross-feature energy", "cross_token_energy": "cross-token energy"}
NOTHING = "–"


def task_section(summary: Summary, task: str, id_: str) -> Markup:
    """Everything about one task; a sentence where it has no finished cell yet."""
    scores = ranked(summary, task)
    content = [tag("p", "No cell of this task has finished yet.")] if not scores else _content(summary, scores, id_)
    return tag("section", tag("h3", breakable(task), id=id_), content, aria_labelledby=id_, class_="task")


def ranked(summary: Summary, task: str) -> list[Score]:
    """A task's scores: the baseline, then the best first, and what is not finite last."""
    scores = [each for each in summary.scores if each.task == task]

    def order(score: Score) -> tuple[bool, bool, float]:
        mean = score.interval.mean if score.metric.higher_is_better else -score.interval.mean
        return score.variant != summary.grid.config.baseline, not math.isfinite(mean), -mean if mean == mean else 0.0

    return sorted(scores, key=order)


def _content(summary: Summary, scores: Sequence[Score], id_: str) -> list[Markup | None]:
    return [
        tag("p", in_words(summary, scores[0].task)),
        _table(summary, scores),
        tag("p", format_errors_of_scores(scores), class_="note"),
        *_rates(scores, id_),
        _heading("Learning curves", f"{id_}-curves"),
        _curves(summary, scores),
        _heading("Score against updates and FLOPs", f"{id_}-flops"),
        _all_curves(summary, scores),
        _heading("Differences to the baseline", f"{id_}-differences"),
        _forest(summary, scores),
        *_designs(summary, scores, id_),
        *_fronts(summary, scores, id_),
        *_mixing(summary, scores, id_),
        _heading("Score and cost", f"{id_}-cost"),
        _cost(summary, scores),
        _keys(scores),
    ]


def _heading(title: str, id_: str) -> Markup:
    return tag("h4", title, id=id_)


# ---------------------------------------------------------------------------------------------- tables


def _table(summary: Summary, scores: Sequence[Score]) -> Markup:
    threshold = summary.grid.config.tasks[scores[0].task].threshold
    columns = (
        "#",
        "variant",
        format_label(scores[0].metric),
        *map(str.upper, scores[0].metric.beside),
        "interquartile mean",
        "difference",
        "Holm p",
        "verdict",
        "P(better)",
        "difference at equal FLOPs",
        "bound",
        "parameters",
        "FLOPs",
        "learning rate",
        *(() if threshold is None else (f"seeds at {threshold:g}",)),
        "steps to threshold" if threshold is None else f"steps to {threshold:g}",
    )
    head = tag("tr", [tag("th", each, scope="col") for each in columns])
    rows = [_row(summary, score, number) for number, score in enumerate(scores, start=1)]
    label = f"Results on {scores[0].task}"
    return scrolling(label, tag("table", tag("thead", head), tag("tbody", rows), class_="results"))


def _row(summary: Summary, score: Score, number: int) -> Markup:
    difference = summary.difference(score.task, score.variant)
    is_baseline = score.variant == summary.grid.config.baseline
    digits = score.metric.digits
    compared = [tag("td", NOTHING, class_="nothing")] * 5
    if difference is not None:
        compared = [
            _interval_cell(difference.interval, digits, difference.direction, signed=True),
            _cell(format_p_value(difference.corrected_p)),
            _cell(format_clarity(difference)),
            _cell(format_improvement(difference)),
            _cell("")
            if difference.at_equal_flops is None
            else _interval_cell(difference.at_equal_flops, digits, signed=True),
        ]
    return tag(
        "tr",
        tag("td", number, class_="number"),
        tag("th", breakable(score.variant), scope="row"),
        _interval_cell(score.interval, digits),
        [_interval_cell(each, digits) for each in intervals_beside(score)],
        _cell(f"{score.interquartile_mean:.{digits}f}" if math.isfinite(score.interquartile_mean) else ""),
        compared,
        _bound_cell(score),
        _cell(f"{score.parameters:,}"),
        _cell(f"{score.forward_flops:,}"),
        _cell(format_learning_rate(score)),
        None if summary.grid.config.tasks[score.task].threshold is None else _cell(format_share(score)),
        _cell(format_steps_to_threshold(score)),
        class_="is-baseline" if is_baseline else None,
    )


def _cell(text: str) -> Markup:
    return tag("td", with_minus_signs(text)) if text else tag("td", NOTHING, class_="nothing")


def _interval_cell(interval: Interval, digits: int = 3, class_: str | None = None, *, signed: bool = False) -> Markup:
    mean, ends = (with_minus_signs(format_(interval, digits, signed=signed)) for format_ in (format_mean, format_ends))
    parts = tag("span", mean, class_="mean"), tag("span", f" {ends}", class_="ends") if ends else None
    return tag("td", parts, class_=class_)


def _bound_cell(score: Score) -> Markup:
    value, _, held = format_bound(score).rpartition(" ")
    if not held:
        return _cell("")
    return tag("td", value, tag("span", f" {held}", class_="ends"), class_="held" if score.bound_held else "broken")


# ---------------------------------------------------------------------------------------------- charts


def _rates(scores: Sequence[Score], id_: str) -> list[Markup]:
    """Validation score against learning rate, where several were tried; the chosen rate in bold."""
    rates = sorted({rate for score in scores for rate in score.by_rate})
    if len(rates) < 2:
        return []
    head = tag("tr", tag("th", "variant", scope="col"), [tag("th", f"{rate:g}", scope="col") for rate in rates])

    def cell(score: Score, rate: float) -> Markup:
        if rate not in score.by_rate:
            return _cell("")
        value = score.by_rate[rate]
        text = with_minus_signs(f"{value:.{score.metric.digits}f}" if math.isfinite(value) else "diverged")
        return tag("td", tag("strong", text) if rate == score.learning_rate else text)

    rows = [tag("tr", tag("th", breakable(s.variant), scope="row"), [cell(s, rate) for rate in rates]) for s in scores]
    label = f"Validation {format_label(scores[0].metric)} by learning rate on {scores[0].task}"
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="results numbers")
    return [_heading("Score by learning rate", f"{id_}-rates"), scrolling(label, table)]


def _curves(summary: Summary, scores: Sequence[Score]) -> Markup:
    """A small chart per variant, all on the same axes."""
    base = summary.score(scores[0].task, summary.grid.config.baseline)
    medians = [value for score in scores for value in seed_range(score.curves)[1]]
    bounds = [bound for score in scores if (bound := bound_of(score)) is not None]
    limits = score_limits(scores[0].metric, [*medians, *bounds])
    bounded, last = bool(bounds), max(score.steps[-1] for score in scores)
    panels = [
        tag(
            "figure",
            tag("figcaption", tag("span", k, class_="key"), " ", breakable(score.variant)),
            learning_curve(score, base, limits, last),
        )
        for k, score in enumerate(scores, start=1)
    ]
    legend = (
        f"Validation {format_label(scores[0].metric)} by step: median and range over seeds",
        [" · ", tag("span", class_="swatch line of-variant"), " the variant"],
        [" · ", tag("span", class_="swatch line of-baseline"), " the baseline"] if base is not None else None,
        [" · ", tag("span", class_="swatch line of-bound"), " the most that theory allows"] if bounded else None,
    )
    return tag("div", tag("p", legend, class_="legend"), tag("div", panels, class_="panels"))


def _all_curves(summary: Summary, scores: Sequence[Score]) -> Markup:
    legend = (
        "The same medians in one chart, with numbers from the table; the baseline is the thick line. FLOPs: those of a "
        "seed's training so far. Differences at equal FLOPs stand in the table."
    )
    charts = [_figure(all_curves(scores, summary.grid.config.baseline, against_flops=flops)) for flops in (False, True)]
    return tag("div", tag("p", legend, class_="legend"), tag("div", charts, class_="pair"), _keys(scores))


def _forest(summary: Summary, scores: Sequence[Score]) -> Markup:
    found = [summary.difference(score.task, score.variant) for score in scores]
    differences = [each for each in found if each is not None]
    if not differences:
        return tag("p", "There is nothing to compare yet.")
    caption = "Paired by seed, with 95% intervals. Filled: clear after Holm's correction; hollow: open, or equal."
    chart = scrolling(f"Differences on {scores[0].task}", forest(differences, scores[0].metric))
    return _figure(chart, caption, "wide")


def _designs(summary: Summary, scores: Sequence[Score], id_: str) -> list[Markup]:
    task, found = scores[0].task, []
    crossed, series = factorial(summary, task), series_of(summary, task)
    if crossed is not None:
        grid = scrolling(f"Scores on {task} by pair", factorial_grid(crossed, scores[0].metric))
        found.append(_heading("Main effects and interaction", f"{id_}-factorial"))
        found += [tag("p", effects_in_words(crossed)), _figure(grid)]
    if series:
        chart = dose_curves(series, {score.variant: number for number, score in enumerate(scores, start=1)})
        found.append(_heading("Score and dose", f"{id_}-dose"))
        lines = (f"{name} ({style})" for name, style in zip(series, itertools.cycle(LINES.values()), strict=False))
        found += [_figure(chart, f"A line through the doses of each: {', '.join(lines)}."), _keys(scores)]
    return found


def _fronts(summary: Summary, scores: Sequence[Score], id_: str) -> list[Markup]:
    """Scores against what models cost where they run, where that was measured."""
    families = front_families(summary, scores[0].task)
    if not families:
        return []
    styles = "; ".join(f"{number} {name} ({style})" for number, (name, style) in enumerate(front_styles(families), 1))
    legend = (
        "Each family's Pareto front: filled points are better on validation than all cheaper ones of the family, and "
        f"the dearest of them serves where more is allowed. {styles}."
    )
    parts = [_heading("Score and cost of use", f"{id_}-fronts"), tag("p", legend, class_="legend")]
    for precision in PRECISIONS:
        charts = [_figure(front_chart(families, cost, precision)) for cost in costs_of_use(precision)]
        parts += [tag("h5", precision), tag("div", charts, class_="pair")]
    head = tag("tr", tag("th", "variant", scope="col"), [tag("th", each, scope="col") for each in COSTS_OF_USE])
    rows = [
        tag("tr", tag("th", breakable(s.variant), scope="row"), [_cell(each) for each in format_cost_of_use(s)])
        for family in families.values()
        for s in family
    ]
    table = tag("table", tag("thead", head), tag("tbody", rows), class_="results numbers")
    return [*parts, scrolling(f"Cost of use on {scores[0].task}", table)]


def _mixing(summary: Summary, scores: Sequence[Score], id_: str) -> list[Markup]:
    beside = {*scores[0].metric.beside, *COSTS, "int8_score"}
    names = list(dict.fromkeys(name for score in scores for name in score.measures if name not in beside))
    if not names:
        return []
    charts = [
        _figure(scatter(scores, across, summary.grid.config.baseline, label))
        for name, label in MIXING.items()
        if (across := {s.variant: _measure_interval(s, name) for s in scores if name in s.measures})
    ]
    return [
        _heading("Score and mixing", f"{id_}-mixing"),
        tag(
            "p",
            "How much of the output's Jacobian energy crosses features, or tokens.",
            class_="legend",
        ),
        tag("div", charts, class_="pair"),
        _keys(scores),
        tag("details", tag("summary", "All measures as a table"), _measures(scores, names)),
    ]


def _measure_interval(score: Score, name: str) -> Interval:
    return bootstrap_interval(score.measures[name], limits=measure_limits(name, score.metric))


def _measures(scores: Sequence[Score], names: Sequence[str]) -> Markup:
    head = tag("tr", tag("th", "variant", scope="col"), [tag("th", breakable(name), scope="col") for name in names])
    rows = [
        tag(
            "tr",
            tag("th", breakable(score.variant), scope="row"),
            [_interval_cell(_measure_interval(score, name)) if name in score.measures else _cell("") for name in names],
        )
        for score in scores
    ]
    label = f"Measures on {scores[0].task}"
    return scrolling(label, tag("table", tag("thead", head), tag("tbody", rows), class_="results numbers"))


def _keys(scores: Sequence[Score]) -> Markup:
    """Which variant each number in the charts stands for."""
    return tag("ul", [tag("li", tag("b", k), f" {s.variant}") for k, s in enumerate(scores, start=1)], class_="keys")


def _cost(summary: Summary, scores: Sequence[Score]) -> Markup:
    charts = []
    for label, field in (("parameters", "parameters"), ("forward FLOPs", "forward_flops")):
        sizes = {each.variant: float(getattr(each, field)) for each in scores}
        across = {name: Interval(size, math.nan, math.nan) for name, size in sizes.items() if size > 0}
        charts.append(_figure(scatter(scores, across, summary.grid.config.baseline, label, logarithmic=True)))
    return tag("div", charts, class_="pair")


def _figure(chart: Markup, caption: str | None = None, class_: str | None = None) -> Markup:
    return tag("figure", chart, tag("figcaption", caption) if caption else None, class_=class_)
