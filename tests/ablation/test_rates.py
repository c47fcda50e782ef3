"""The choice of a learning rate, and how a grid grows."""

import pytest

from flaxformer_lab.ablation.rates import best_learning_rate, edge_of, extension, joined, mean_scores
from flaxformer_lab.tasks import PrimaryMetric

AUC = PrimaryMetric("auc", "AUC", True)


def result_of(scores):
    """A result with these scores of the seeds by learning rate. The test scores say the opposite of validation's."""
    replicas = [
        {
            "learning_rate": rate,
            "seed": seed,
            "validation": {"loss": [0.0, 0.0], "auc": [0.5, value]},
            "test": {"loss": 0.0, "auc": None if value is None else -value},
        }
        for rate, values in scores.items()
        for seed, value in enumerate(values)
    ]
    return {"replicas": replicas, "seconds": 1.0}


@pytest.mark.parametrize(
    ("scores", "higher", "best"),
    [
        ({0.1: [0.5, 0.7], 0.01: [0.65, 0.65], 1.0: [0.9, None]}, True, 0.01),
        ({0.1: [0.5, 0.7], 0.01: [0.65, 0.65], 1.0: [0.9, None]}, False, 0.1),
        ({0.1: [1.0], 0.01: [1.0]}, True, 0.01),
        ({0.1: [None], 0.01: [None]}, False, 0.01),
    ],
)
def test_the_learning_rate_is_the_best_on_average(scores, higher, best):
    """By the metric that the task is judged by, on validation at the end; one that diverged is the worst."""
    assert best_learning_rate(result_of(scores), PrimaryMetric("auc", "AUC", higher)) == best


@pytest.mark.parametrize(
    ("by_rate", "tolerance", "best", "edge"),
    [
        ([0.1, 0.5, 0.3], 0.0, 2, None),
        ([0.1, 0.5, 0.51], 0.0, 3, "highest"),
        ([0.1, 0.5, 0.501], 0.002, 2, None),  # flat towards the edge
        ([0.1, 0.5, 0.501], 0.0005, 3, "highest"),
        ([0.5, 0.499, 0.3], 0.002, 2, None),
        ([0.5, 0.4, 0.3], 0.002, 1, "lowest"),
        ([0.1, 0.5, None], 0.0, 2, None),  # what diverges bounds the grid
        ([None, None, None], 0.002, 1, "lowest"),
        ([0.1, 0.2], 0.5, 2, "highest"),  # of two, neither is inside
        ([0.7], 0.0, 1, None),  # given, not searched
    ],
)
def test_where_the_best_rate_lies(by_rate, tolerance, best, edge):
    result = result_of({number: [value, value] for number, value in enumerate(by_rate, start=1)})
    assert best_learning_rate(result, AUC, tolerance) == best
    assert edge_of(result, AUC, tolerance) == edge


def test_the_lower_the_better_where_the_metric_says_so():
    result = result_of({0.01: [0.5], 0.1: [0.3], 1.0: [0.2999]})
    loss = PrimaryMetric("auc", "AUC", False)
    assert edge_of(result, loss) == "highest" and edge_of(result, loss, 0.01) is None


def test_seeds_that_did_not_search_do_not_change_the_rate():
    """0.1 is the best of the two seeds that tried all; its third seed alone would take the mean below that of 0.3."""
    result = result_of({0.03: [0.1, 0.2], 0.1: [0.6, 0.8, 0.0], 0.3: [0.5, 0.7]})
    assert best_learning_rate(result, AUC) == 0.1 and edge_of(result, AUC) is None
    assert mean_scores(result, AUC) == pytest.approx({0.03: 0.15, 0.1: 0.7, 0.3: 0.6})


def test_what_examples_add_is_summed_over_the_seeds_of_a_rate():
    parts = [
        {"learning_rate": rate, "totals": totals, "weights": weights}
        for rate, totals, weights in [
            (0.1, [1.0, 2.0], [2.0, 2.0]),
            (0.3, [4.0, 4.0], [2.0, 2.0]),
            (0.1, [0.5, None], [1.0, 1.0]),
            (0.3, [4.0], [1.0]),  # other examples, which cannot be told apart
        ]
    ]
    results = [{"replicas": [], "seconds": 1.0, "test_examples": [part]} for part in parts]
    assert joined(results)["test_examples"] == [{"learning_rate": 0.1, "totals": [1.5, None], "weights": [3.0, 3.0]}]


def test_scores_by_rate_are_means_over_seeds_on_validation():
    assert mean_scores(result_of({0.1: [0.2, 0.4], 0.01: [0.5, 0.7]}), AUC) == pytest.approx({0.01: 0.6, 0.1: 0.3})


@pytest.mark.parametrize(
    ("scores", "rates"), [((0, 1, 2), (0.0949, 0.3, 0.949)), ((2, 1, 0), (9.49e-5, 3e-4, 9.49e-4))]
)
def test_an_extension_has_as_many_rates_beyond_the_edge_in_the_same_steps(grid, result, scores, rates):
    made = grid({"learning_rates": (0.003, 0.01, 0.03), "max_extensions": 1})
    cell = made.cells[0]
    found = result(cell, [score for score in scores for _ in range(2)])
    more = extension(cell, found, made.config, count=1)
    assert [(each.learning_rate, each.seed) for each in more.replicas] == [(r, seed) for r in rates for seed in (0, 1)]
    assert more.base_key == cell.key != more.key and more.config == cell.config
    assert extension(cell, found, made.config, count=2) is None
    both = joined([found, result(more, 0.5)])
    assert len(both["replicas"]) == 12 and both["seconds"] == 2.0
