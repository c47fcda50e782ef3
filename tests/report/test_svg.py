"""What of Matplotlib's SVG reaches the page."""

import re

import numpy as np

from flaxformer_lab.report.svg import COLOURS, annotate, as_svg, make_axes, styled


@styled
def drawn(name="a_{b} $x$ <b>&"):
    figure, axes = make_axes(200, 100, (40, 20, 10, 5))
    axes.set(xlim=(0, 4), ylim=(0, 1), xticks=[0, 4], yticks=[0, 1])
    axes.fill_between([1, 2], [0.2, 0.4], [0.4, 0.6], color=COLOURS["variant"], alpha=0.5, linewidth=0)
    (mark,) = axes.plot([1], [0.5], "o", markersize=8, color=COLOURS["better"], clip_on=False)
    annotate(mark, "mark better", name)
    axes.text(2, 0.5, name, color=COLOURS["ink"])
    return as_svg(figure, f"label of {name}")


def test_a_figure_has_no_ids_no_references_and_no_colours_of_its_own():
    svg = drawn()
    assert svg.startswith('<svg viewBox="0 0 200 100" role="img" aria-label="label of')
    assert not re.search(r"\bid=|href|url\(|xmlns|http|#|<style|<use|<defs|<metadata|font", svg)
    assert set(re.findall(r"var\(--(\w+)\)", svg)) == {"variant", "better", "ink", "grid", "muted"}


def test_a_name_is_written_as_it_is():
    """Neither as mathematics nor as markup."""
    svg = drawn()
    assert svg.count("a_{b} $x$ &lt;b&gt;&amp;") == 3  # the label, the title and the text
    assert "<b>" not in svg


def test_a_mark_is_where_its_values_are_with_its_class_and_title():
    svg = drawn("one")
    group = re.search(r'<g class="mark better"><title>one</title><circle cx="(.*?)" cy="(.*?)" r="4"', svg)
    np.testing.assert_allclose([float(each) for each in group.groups()], [40 + 150 / 4, 5 + 75 / 2])


def test_an_area_is_where_its_values_are():
    shape, shift = re.search(
        r'<path d="([^"]*)" style="fill:var\(--variant\)[^"]*" transform="(.*?)"', drawn()
    ).groups()
    points = np.reshape([float(each) for each in re.findall(r"-?[\d.]+", shape)], (-1, 2))
    points += [float(each) for each in re.findall(r"-?[\d.]+", shift)]
    assert points[:, 0].min() == 40 + 150 / 4 and points[:, 0].max() == 40 + 150 / 2
    np.testing.assert_allclose([points[:, 1].min(), points[:, 1].max()], [5 + 75 * 0.4, 5 + 75 * 0.8], atol=0.1)


def test_the_same_figure_has_the_same_bytes():
    assert drawn() == drawn() != drawn("another")
