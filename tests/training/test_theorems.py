"""Trained networks keep to the bounds that theory gives, and reach the scores that it allows; small budgets."""

import jax
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.training.evaluation import make_evaluate
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.feeds import make_feeds
from flaxformer_lab.training.programs import make_run_steps
from flaxformer_lab.training.state import initial_state

ODD = {"position": "off", "bias": False, "norm": {"kind": "rmsnorm"}}
PLAIN = {"position": "off", "bias": False, "norm": {"kind": "off"}, "ffn": {"kind": "off"}}
DIAGONAL = {"num_heads": 8, "head_dim": 1, "projection": "diagonal", "output": "diagonal"}

TANH, IDENTITY = {"kind": "mlp", "activation": "tanh"}, {"kind": "mlp", "activation": "identity"}
SLOW = pytest.mark.slow


def fit(task, model, *, steps, learning_rate=1e-2, batch_size=64):
    """Trains a config; returns its test figure and its bound (None where theory says nothing)."""
    config = parse_config(
        {
            "task": {"evaluation_examples": 2048} | task,
            "model": model,
            "optimizer": {"learning_rate": learning_rate, "warmup_steps": 20, "clip_norm": 1.0},
            "training": {
                "steps": steps,
                "batch_size": batch_size,
                "evaluate_batch_size": 2048,
                "steps_per_call": steps,
            },
            "parallelism": {"strategy": "single"},
        }
    )
    experiment = make_experiment(config)
    examples = experiment.task.examples("train")
    run_steps, data = make_run_steps(experiment, examples)
    feed = next(make_feeds(experiment, examples, [(0, steps)]))
    state = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, config.seed))()
    state, _ = run_steps(state, data, feed, np.int32(steps))
    values = make_evaluate(experiment)(state.params, state.model_state, experiment.task.examples("test"))
    bound = experiment.task.bound(config.model)
    return values.get("r2", values.get("accuracy")), bound and bound.value


@pytest.mark.parametrize("ffn", [TANH, pytest.param(IDENTITY, marks=SLOW), pytest.param({"kind": "off"}, marks=SLOW)])
def test_an_odd_network_cannot_learn_the_product_of_two_features(ffn):
    model = ODD | {"width": 16, "depth": 1, "ffn": ffn}
    score, bound = fit({"name": "product", "tokens": 2, "features": 4}, model, steps=100)
    assert bound == 0 and score < 0.02


@pytest.mark.parametrize("ffn", [{"kind": "mlp", "activation": "relu"}, pytest.param({"kind": "bilinear"}, marks=SLOW)])
def test_a_network_that_is_not_odd_learns_it(ffn):
    model = ODD | {"width": 16, "depth": 1, "ffn": ffn}
    score, bound = fit({"name": "product", "tokens": 2, "features": 4}, model, steps=300, learning_rate=2e-2)
    assert bound is None and score > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("rotation", ["shift", "random"])
def test_without_a_path_between_features_a_rotation_is_learned_as_far_as_its_diagonal(rotation):
    task = {"name": "rotation", "features": 8, "rotation": rotation, "embedding": "identity", "head": "identity"}
    model = PLAIN | {"width": 8, "depth": 1, "skip": {"attention": False}}
    score, bound = fit(task, model | {"attention": DIAGONAL}, steps=150, learning_rate=2e-2)
    assert bound - 0.06 < score < bound + 0.02
    dense, no_bound = fit(task, model, steps=150, learning_rate=2e-2) if rotation == "shift" else (1.0, None)
    assert no_bound is None and dense > 0.99


@pytest.mark.slow
@pytest.mark.parametrize(
    "maps", [{"projection": "block", "output": "block", "block_size": 2}, {"projection": "low_rank", "rank": 3}]
)
def test_block_and_low_rank_maps_learn_a_rotation_as_far_as_their_laws(maps):
    task = {"name": "rotation", "features": 8, "rotation": "random", "embedding": "identity", "head": "identity"}
    model = PLAIN | {"width": 8, "depth": 1, "skip": {"attention": False}, "attention": {"num_heads": 1} | maps}
    score, bound = fit(task, model, steps=300, learning_rate=2e-2)
    assert bound - 0.06 < score < bound + 0.02
    assert 0.1 < bound < 0.6


POINTERS = {"name": "pointers", "tokens": 6, "features": 4, "pointers": 2}


@pytest.mark.slow
@pytest.mark.parametrize("heads", [1, 2])
def test_heads_follow_as_many_pointers_as_there_are_heads(heads):
    model = PLAIN | {"width": 24, "depth": 1, "attention": {"num_heads": heads, "head_dim": 8}}
    score, bound = fit(POINTERS, model, steps=200)
    assert bound == heads / 2 and abs(score - bound) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_heads_follow_as_many_of_four_pointers_as_there_are_heads(heads):
    model = PLAIN | {"width": 64, "depth": 1, "attention": {"num_heads": heads, "head_dim": 16}}
    score, bound = fit({"name": "pointers"}, model, steps=400, batch_size=128)
    assert bound == heads / 4 and abs(score - bound) < 0.03


@pytest.mark.slow
def test_mean_attention_follows_no_pointer():
    model = PLAIN | {"width": 24, "depth": 1, "attention": {"kind": "mean"}}
    score, bound = fit({"name": "pointers"}, model, steps=150)
    assert bound == 1 / 8 and abs(score - bound) < 0.01


RECALL = {"name": "associative_recall", "vocabulary": 16, "sequence_length": 12, "pairs": 2}


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "lowest", "highest"), [(2, 0.95, 1.0), (1, 0.35, 0.65)])
def test_associative_recall_needs_two_layers(depth, lowest, highest):
    model = {"width": 16, "depth": depth, "attention": {"num_heads": 1}, "ffn": {"kind": "off"}, "causal": True}
    score, _ = fit(RECALL, model, steps=250, learning_rate=2e-2)
    assert lowest <= score <= highest


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "whole"])
def test_associative_recall_without_token_mixing_is_a_guess(size):
    task = RECALL if size == "small" else {"name": "associative_recall"}
    model = {"width": 16, "depth": 1, "attention": {"kind": "off"}, "causal": True}
    score, bound = fit(task, model, steps=60)
    assert bound == (1 / 8 if size == "small" else 1 / 32) and score < bound + 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "lowest", "highest"), [(2, 0.95, 1.0), (1, 0.15, 0.45)])
def test_associative_recall_of_the_recipes_size_needs_two_layers(depth, lowest, highest):
    model = {"width": 64, "depth": depth, "attention": {"num_heads": 1}, "ffn": {"kind": "off"}, "causal": True}
    score, _ = fit({"name": "associative_recall"}, model, steps=500)
    assert lowest <= score <= highest


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "lowest", "highest"), [("softmax", 0.9, 1.0), ("off", -0.05, 0.01)])
def test_a_delay_needs_a_token_mixer(kind, lowest, highest):
    model = {"width": 16, "depth": 1, "attention": {"kind": kind, "num_heads": 2}, "causal": True}
    score, bound = fit({"name": "delay", "tokens": 4, "features": 4}, model, steps=200, learning_rate=2e-2)
    assert bound == (0 if kind == "off" else None) and lowest < score <= highest
