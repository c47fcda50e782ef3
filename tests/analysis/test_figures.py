import numpy as np
import pytest
from PIL import Image

from flaxformer_lab.analysis.figures import FIGURES, MOST_HEADS, MOST_LAYERS, draw, save_figures

GENERATOR = np.random.default_rng(0)


def values(layers=3, heads=4, tokens=16, width=64):
    maps = GENERATOR.dirichlet(np.ones(tokens), size=(layers, heads, tokens))
    return {
        "feature_energy": np.eye(width) + GENERATOR.random((width, width)) / width,
        "token_energy": np.eye(tokens),
        "channel_energy": GENERATOR.random((3, 5)),
        "rank_residual": np.linspace(1, 0.5, layers + 1),
        "stable_rank": np.full(layers + 1, 3.0),
        "scale_heterogeneity": np.full(layers + 1, 0.2),
        "oddness": 0.5,
    } | {f"blocks.{layer}.attention_map": each for layer, each in enumerate(maps)}


def test_each_figure_is_one_image(tmp_path):
    paths = save_figures(values(), tmp_path / "new" / "figures", "digits, step 100, test")
    assert {path.name for path in paths} == {f"{name}.png" for name in FIGURES}
    assert set((tmp_path / "new" / "figures").iterdir()) == set(paths)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and np.asarray(image.convert("L")).std() > 10


@pytest.mark.parametrize(("name", "keys"), [("feature_mixing", ["feature_energy"]), ("token_mixing", ["token_energy"])])
def test_what_was_not_measured_is_not_drawn(tmp_path, name, keys):
    paths = save_figures({key: values()[key] for key in keys}, tmp_path, "digits")
    assert [path.name for path in paths] == [f"{name}.png"]
    assert draw({"oddness": 0.5}, "digits") == {}


def test_rows_are_shown_as_their_shares_and_unseen_ones_are_grey():
    matrix = np.array([[3.0, 1.0], [np.nan, np.nan], [0.0, 0.0]])
    image = draw({"feature_energy": matrix}, "digits")["feature_mixing"].axes[0].images[0]
    shown = image.get_array()
    np.testing.assert_array_equal(shown.filled(-1), [[0.75, 0.25], [-1, -1], [0, 0]])
    np.testing.assert_allclose(image.cmap(shown)[1, 0], [0.827, 0.827, 0.827, 1], atol=1e-3)


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (3, 4), (1, MOST_HEADS + 1), (MOST_LAYERS + 1, 1)])
def test_every_head_has_its_map_up_to_a_number(layers, heads):
    measured = values(layers, heads, tokens=4, width=4)
    figure = draw(measured, "digits")["attention_maps"]
    images = [axes.images[0] for axes in figure.axes if axes.images]
    assert len(images) == min(layers, MOST_LAYERS) * min(heads, MOST_HEADS)
    np.testing.assert_array_equal(images[0].get_array(), measured["blocks.0.attention_map"][0])
    title = figure.get_suptitle().replace("\n", " ")
    assert ("out of" in title) == (layers > MOST_LAYERS or heads > MOST_HEADS)
    assert max(figure.get_size_inches()) < 24


@pytest.mark.parametrize(
    ("layers", "heads", "title"),
    [(1, 1, "a_run_with_a_long_name_" * 6 + ", step 100, test"), (3, 4, "digits, step 100, test")],
)
def test_nothing_is_cut_off_and_titles_overlap_nothing(layers, heads, title):
    for name, figure in draw(values(layers, heads), title).items():
        figure.draw_without_rendering()
        drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(drawn.x0, drawn.y0) > 0 and drawn.x1 < width and drawn.y1 < height, name
        (above,) = [text for text in figure.texts if text.get_text() == figure.get_suptitle()]
        for axes in figure.axes:
            assert axes.get_tightbbox().y1 < above.get_window_extent().y0, name


@pytest.mark.filterwarnings("error")
def test_values_that_are_not_finite_leave_gaps():
    series = {"rank_residual": [1.0, np.nan], "stable_rank": [np.inf, 2.0], "scale_heterogeneity": [np.nan, np.nan]}
    figure = draw({name: np.array(each) for name, each in series.items()}, "digits")["depth"]
    assert all(np.all(np.isfinite(axes.get_ylim())) for axes in figure.axes)
