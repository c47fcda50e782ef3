"""Main effects and interaction, against a least-squares fit; and what a page says of factors and series."""

import collections
import dataclasses
import itertools
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from flaxformer_lab.ablation.grid import make_grid, parse_ablation
from flaxformer_lab.command_line import read_recipe
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.report.claims import decide_all
from flaxformer_lab.report.designs import factorial, series_of, two_way_anova
from flaxformer_lab.report.figures import dose_curves
from flaxformer_lab.report.page import as_page
from flaxformer_lab.report.summary import summarise
from flaxformer_lab.report.write import as_markdown

RNG = np.random.default_rng(0)
NOISE = RNG.normal(size=(3, 4, 5))
ROWS, COLUMNS = np.array([0.0, 1.0, 5.0])[:, None, None], np.array([0.0, 2.0, 1.0, 4.0])[None, :, None]
PRODUCT = ROWS * COLUMNS


def residual(values, *columns):
    """Squares that a least-squares fit of indicator columns leaves, and its rank."""
    design = np.stack([np.broadcast_to(column, values.shape).ravel() for column in columns], axis=1).astype(float)
    fit, _, rank, _ = np.linalg.lstsq(design, values.ravel(), rcond=None)
    return np.sum((values.ravel() - design @ fit) ** 2), rank


@pytest.mark.parametrize("values", [NOISE, NOISE + ROWS, NOISE + ROWS + COLUMNS, NOISE + PRODUCT])
def test_shares_and_p_are_those_of_nested_fits(values):
    one = [np.ones((1, 1, 1))]
    rows = [np.eye(3)[k][:, None, None] for k in range(3)]
    columns = [np.eye(4)[k][None, :, None] for k in range(4)]
    cells = [row * column for row in rows for column in columns]
    (total, _), (without_rows, _), (without_columns, _), (additive, _), (full, rank) = (
        residual(values, *each) for each in (one, columns, rows, rows + columns, cells)
    )
    squares, freedom = [without_rows - additive, without_columns - additive, additive - full], values.size - rank
    noise = full / freedom
    expected = [each - own * noise for each, own in zip(squares, (2, 3, 6), strict=True)]
    expected.append(total - sum(expected))
    effects = two_way_anova(values, ("a", "b"))
    assert [each.name for each in effects] == ["a", "b", "interaction", "seeds"]
    shares = np.clip(np.array(expected) / total, 0, 1)
    np.testing.assert_allclose([each.share.mean for each in effects], shares, atol=1e-9)
    for effect, each, own in zip(effects[:3], squares, (2, 3, 6), strict=True):
        assert effect.p_value == pytest.approx(stats.f.sf(each / own / noise, own, freedom), rel=1e-6)
    assert all(each.share.low <= each.share.high for each in effects)


def test_intervals_hold_the_shares_of_endless_seeds():
    """Seven levels by six, as in the lab, where each pair's own mean is as noisy as its seeds allow."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(7, 1, 1)) + rng.normal(size=(1, 6, 1)) + 0.7 * rng.normal(size=(7, 6, 1))
    cells = means[:, :, 0]
    rows, columns = (cells.mean(axis=axis, keepdims=True) - cells.mean() for axis in (1, 0))
    variances = [np.mean(each**2) for each in (rows, columns, cells - cells.mean() - rows - columns)]
    true = np.array([*variances, 1.0]) / (sum(variances) + 1.0)
    found = [[e.share for e in two_way_anova(means + rng.normal(size=(7, 6, 5)), "ab")] for _ in range(200)]
    held = [[each.low <= truth <= each.high for each, truth in zip(row, true, strict=True)] for row in found]
    assert np.all(np.mean(held, axis=0) > 0.9)
    np.testing.assert_allclose(np.mean([[each.mean for each in row] for row in found], axis=0), true, atol=0.01)


def test_of_one_seed_there_are_shares_without_intervals():
    effects = two_way_anova(NOISE[:, :, :1] + ROWS, ("a", "b"))
    assert sum(each.share.mean for each in effects) == pytest.approx(1) and effects[3].share.mean == 0
    assert all(np.isnan([each.share.low, each.share.high, each.p_value]).all() for each in effects)


def test_an_effect_is_found_where_it_is_and_nowhere_else():
    found = {each.name: each for each in two_way_anova(NOISE + 3 * ROWS, ("a", "b"))}
    assert found["a"].p_value < 1e-6 < 0.01 < min(found["b"].p_value, found["interaction"].p_value)
    assert found["a"].share.low > 0.8 and found["b"].share.high < 0.1
    found = {each.name: each for each in two_way_anova(NOISE + PRODUCT, ("a", "b"))}
    assert found["interaction"].p_value < 1e-6


CONFIGS = Path(__file__).parents[2] / "configs" / "ablations"


@pytest.mark.parametrize(("name", "cells"), [("mixers", {"digits": 42, "speeches": 36}), ("dose", None)])
def test_the_designs_of_the_lab_have_all_their_cells(name, cells):
    made = make_grid(parse_ablation(read_recipe(str(CONFIGS / f"{name}.py"))), CONFIGS, read_recipe)
    assert not made.dropped
    assert cells is None or collections.Counter(cell.task for cell in made.cells) == cells
    for task, variants in itertools.product(made.config.tasks, made.config.series.values()):
        # Attention of fixed maps alone has nothing to learn.
        missing = {variant for variant in variants if made.cell(task, variant) is None}
        assert missing == ({"Hadamard"} & {*variants} if task == "rotation" else set())


def test_a_variant_without_parameters_is_at_the_left_end_of_its_curve(score_of):
    fixed, wide = score_of(variant="fixed", parameters=0), score_of(variant="wide", parameters=100)
    with warnings.catch_warnings(action="error"):
        drawn = str(dose_curves({"maps": [fixed, wide]}, {"fixed": 1, "wide": 2}))
    assert "fixed 0.500 at 0" in drawn and "wide 0.500 at 100" in drawn


LEVELS = {"factors": [{"name": "token mixer", "levels": ["x", "y"]}, {"name": "feature mixer", "levels": ["p", "q"]}]}
PAIRS = {"variants": {"x + q": "ffn_off", "y + p": "attention_off", "y + q": "single_head"}}


def test_the_report_crosses_the_factors_and_draws_the_series(grid, store, result):
    made = grid(
        PAIRS | LEVELS | {"series": {"heads": ["y + q", "baseline"], "none": ["x + q"]}, "seeds": [0, 1, 2, 3, 4]}
    )
    store.claim(made)
    levels = {"baseline": 0.9, "x + q": 0.5, "y + p": 0.5, "y + q": 0.1}
    for cell in made.cells:
        noise = [0.01 * np.sin(7 * replica.seed + 40 * levels[cell.variant]) for replica in cell.replicas]
        store.finish(cell, result(cell, levels[cell.variant] + np.array(noise)))
    summary = summarise(made, store)
    crossed = factorial(summary, "near")
    np.testing.assert_allclose(crossed.means, [[0.9, 0.5], [0.5, 0.1]], atol=0.02)
    assert {each.name: each.share.mean > 0.4 for each in crossed.effects}["token mixer"]
    assert [score.variant for score in series_of(summary, "near")["heads"]] == ["y + q", "baseline"]
    page, text = as_page(summary, decide_all(summary)), as_markdown(summary, decide_all(summary))
    for written in (page, text):
        assert "Shares of the variance over all runs" in written and "interaction" in written
    assert "near</a>: Shares of the variance" in page, "the page opens with it"
    assert "x and q 0.5" in page and "doses of each: heads (solid), none (dashed)." in page
    # A level of which a task has no cell is left out there.
    three = dataclasses.replace(made.config.factors[0], levels=("x", "y", "z"))
    wider = dataclasses.replace(
        made.config, factors=(three, made.config.factors[1]), variants=made.config.variants | {"z + p": "", "z + q": ""}
    )
    again = factorial(summarise(dataclasses.replace(made, config=wider), store), "near")
    assert again.levels == (("x", "y"), ("p", "q")) and np.array_equal(again.means, crossed.means)
    plain = summarise(dataclasses.replace(made, config=dataclasses.replace(made.config, factors=())), store)
    assert factorial(plain, "near") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": LEVELS["factors"][:1]}, "factors has 1 entries; a factorial has two"),
        (LEVELS, r"factors: x \+ p and x \+ q are no variants"),
        ({"series": {"heads": ["ffn_of"]}}, r"series\.heads names ffn_of, which is no variant: did you mean ffn_off"),
    ],
)
def test_a_design_of_what_is_no_variant_is_refused(grid, changes, message):
    with pytest.raises(ConfigError, match=message):
        grid({"variants": {"ffn_off": "ffn_off"}} | changes)
