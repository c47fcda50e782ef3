"""Each replica of a population is the same run alone."""

import copy
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from flaxformer_lab.ablation import population as population_module
from flaxformer_lab.ablation.population import (
    Population,
    Replica,
    available_memory,
    save_replica,
    train_population,
)
from flaxformer_lab.analysis.attention_maps import head_diversity
from flaxformer_lab.analysis.jacobian import mixing_energy
from flaxformer_lab.config import parse_config
from flaxformer_lab.parsing import override
from flaxformer_lab.run import load_run
from flaxformer_lab.tasks.forecasting import MSE
from flaxformer_lab.tasks.task import EXAMPLES
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.loop import train
from flaxformer_lab.training.parallelism import Single
from flaxformer_lab.training.state import RngStream, initial_state
from flaxformer_lab.training.step import example_keys

PROBE = {
    "task": {"name": "delay", "tokens": 4, "features": 4, "evaluation_examples": 64},
    # Without biases: that of a key has no gradient but rounding, which Adam magnifies to a whole update.
    "model": {
        "width": 8,
        "depth": 1,
        "attention": {"num_heads": 2},
        "ffn": {"expansion": 2.0},
        "causal": True,
        "bias": False,
    },
    "optimizer": {"learning_rate": 0.01, "warmup_steps": 3, "clip_norm": 1.0, "weight_decay": 0.1},
    "training": {
        "steps": 20,
        "batch_size": 8,
        "evaluate_every": 10,
        "checkpoint_every": 20,
        "steps_per_call": 5,
        "evaluate_batch_size": 64,
    },
    "parallelism": {"strategy": "single"},
}
DIGITS = PROBE | {
    "task": {"name": "image_classification", "dataset": "lab_digits", "patch_size": 4, "shift": 1},
    "model": {"width": 8, "depth": 0, "dropout": 0.1},
    "optimizer": {"name": "muon", "learning_rate": 0.01},
}
SEEDS, RATES = (0, 2**32 - 1), (0.003, 0.03)  # the largest seed is one like any other
GB = 10**9
REPLICAS = tuple(Replica(seed, rate) for rate in RATES for seed in SEEDS)


@pytest.fixture(scope="module")
def ready():
    """The probe's population, compiled."""
    return Population(parse_config(PROBE), REPLICAS)


@pytest.fixture(scope="module")
def population(ready):
    """What becomes of it."""
    return ready.run()


def alone(tree, replica, folder):
    """The same run through the ordinary command."""
    tree = override(override(tree, "seed", replica.seed), "optimizer.learning_rate", replica.learning_rate)
    train(parse_config(tree), folder, quiet=True)
    return load_run(folder)


def assert_close(one, other, atol=1e-5):
    for ours, theirs in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@pytest.mark.integration
@pytest.mark.parametrize("number", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_replica_is_the_run_alone(population, tmp_path, number):
    run = alone(PROBE, REPLICAS[number], tmp_path / "run")
    assert_close(population.states[number], run.state)
    for split, found in (
        ("validation", population.validation["r2"][number, -1]),
        ("test", population.test["r2"][number]),
    ):
        assert found == pytest.approx(run.evaluate(split)["r2"], abs=1e-5)
    assert population.steps == (10, 20)
    assert population.test_examples is None  # each seed draws its own


@pytest.mark.slow
def test_real_data_with_dropout_muon_and_moved_images_too(tmp_path):
    replicas = REPLICAS[1:]
    outcome = train_population(parse_config(DIGITS), replicas)
    run = alone(DIGITS, replicas[1], tmp_path / "run")
    assert_close(outcome.states[1], run.state)
    assert outcome.test["accuracy"][1] == pytest.approx(run.evaluate("test")["accuracy"])
    # All seeds see the same 300 images, so what each image adds to the score is kept.
    right, weights = outcome.test_examples[..., :300].swapaxes(0, 1)  # then padding, which has no weight
    assert not outcome.test_examples[..., 300:].any()
    assert right.shape == (3, 300) and set(np.unique(right)) == {0, 1} and np.all(weights == 1)
    np.testing.assert_allclose(right.mean(axis=1), outcome.test["accuracy"])


@pytest.mark.slow
def test_scaling_by_fan_in_too_and_the_programs_serve_other_replicas(tmp_path):
    scaled = PROBE | {"optimizer": {"learning_rate": 0.01, "scaling": "mup", "base_fan_in": 4, "weight_decay": 0.1}}
    population = Population(parse_config(scaled), REPLICAS[:2])
    others = population.with_replicas(REPLICAS[2:])
    outcome = others.run()
    run = alone(scaled, REPLICAS[2], tmp_path / "run")
    assert outcome.replicas == REPLICAS[2:] and population.replicas == REPLICAS[:2]
    assert_close(outcome.states[0], run.state)


def test_seeds_and_learning_rates_matter(population):
    scores = population.test["loss"]
    assert len(set(scores.tolist())) == len(scores) == 4


@pytest.mark.slow
def test_more_replicas_change_no_others_result_and_train_in_chunks_where_memory_is_short(
    ready, population, monkeypatch
):
    assert ready.chunk == 4
    # One device each already; so let a single device do it, where there is something to divide.
    more = REPLICAS + tuple(Replica(seed, 0.01) for seed in range(3))
    with monkeypatch.context() as patch:
        patch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: None)  # some compilers have none
        chunked, seen = Population(parse_config(PROBE), more, memory=1), []
    assert chunked.chunk == jax.local_device_count() == 4
    assert ready.device_bytes / 2 < chunked.device_bytes < 3 * ready.device_bytes  # of one replica both
    outcome = chunked.run(lambda done, total: seen.append((done, total)))
    assert len(outcome.states) == 7 and outcome.test["loss"].shape == (7,)
    assert_close(outcome.states[:4], population.states)
    np.testing.assert_allclose(outcome.validation["loss"][:4], population.validation["loss"], atol=1e-5)
    assert seen == [(done, 40) for done in range(5, 41, 5)]  # every chunk's updates count


def test_measures_are_those_of_the_saved_run(population, tmp_path):
    save_replica(parse_config(PROBE), population, 2, tmp_path / "run")
    run = load_run(tmp_path / "run")
    subject = run.subject(examples=16)
    features, tokens = mixing_energy(subject.body, subject.vectors)
    assert population.measures["cross_feature_energy"][2] == pytest.approx(features.cross.value, abs=0.1)
    assert population.measures["cross_token_energy"][2] == pytest.approx(tokens.cross.value, abs=0.1)
    asked = subject.intermediates_named("attention.weights")["blocks.0"][:, :, 1:]  # by all tokens but the first
    entropies = -jnp.sum(asked * jnp.log(jnp.maximum(asked, 1e-30)), axis=-1) / np.log([[[2, 3, 4]]])
    assert population.measures["attention_entropy"][2] == pytest.approx(float(entropies.mean()), abs=1e-5)
    assert population.measures["head_diversity"][2] == pytest.approx(float(head_diversity(asked)), abs=1e-5)


@pytest.mark.parametrize("kind", ["static", "random", "mean", "linear"])
def test_every_kind_of_weights_is_measured(kind, ready):
    """Also weights that all examples share."""
    config, other = parse_config(override(PROBE, "model.attention.kind", kind)), copy.copy(ready)
    other.config, other._experiment = config, make_experiment(config, strategy=Single())
    state = other._experiment.abstract_state
    prepared = {"inputs": jax.ShapeDtypeStruct((16, 4, 4), jnp.float32), "loss_weights": jnp.ones((16, 4))}
    found = jax.eval_shape(other._measures, np.uint32(0), state.params, state.model_state, prepared)
    assert len(found) == 6 and {each.shape for each in found.values()} == {()}


def test_what_is_untrained_has_the_first_weights_of_its_own_seed(ready):
    """Where a model looks before training: with the weights of that seed at step 0, which differ from seed to seed."""
    tree = {
        "task": {"name": "two_marks", "rows": 2, "columns": 8, "distance": 4},
        "model": {"width": 8, "depth": 1, "attention": {"num_heads": 2}},
    }
    other = copy.copy(ready)
    other.config = parse_config(tree)
    other._experiment = experiment = make_experiment(other.config, strategy=Single())
    batch = {"row": jnp.arange(4), "index": jnp.arange(4), "example_weight": jnp.ones(4)}
    prepared = experiment.task.prepare(batch, example_keys(0, RngStream.EVALUATE, 0, batch["row"]), training=False)
    for seed in (0, 1):
        state = initial_state(experiment.network, experiment.optimizer, seed)
        looks = [other._looks(np.uint32(each), state.params, state.model_state, prepared) for each in (seed, 7)]
        found = jax.tree.map(float, looks)
        for name in ("object_attention", "object_saliency"):
            assert found[0][name] == pytest.approx(found[0][f"{name}_untrained"], rel=1e-5)
            assert found[1][name] != pytest.approx(found[1][f"{name}_untrained"], rel=1e-3)


def test_a_saved_replica_is_an_ordinary_run_that_can_go_on(population, tmp_path):
    config = parse_config(PROBE)
    save_replica(config, population, 1, tmp_path / "saved")
    run = load_run(tmp_path / "saved")
    assert (run.step, run.config.seed, run.config.optimizer.learning_rate) == (20, 2**32 - 1, 0.003)
    assert run.evaluate("test")["r2"] == pytest.approx(population.test["r2"][1], abs=1e-6)
    train(run.config, tmp_path / "saved", quiet=True)  # nothing is left to do, and the folder is accepted
    assert load_run(tmp_path / "saved").step == 20


def test_a_replica_that_diverges_leaves_the_others_alone():
    tree = override(PROBE, "optimizer", {"name": "sgd", "schedule": "constant"})
    population = Population(parse_config(tree), (Replica(0, 1e-3), Replica(0, 1e30)))
    outcome = population.run()
    assert np.isfinite(outcome.test["loss"][0]) and not np.isfinite(outcome.test["loss"][1])
    same = population.with_replicas((Replica(0, 1e-3),) * 2).run()
    assert_close(outcome.states[0], same.states[0])
    with pytest.raises(ValueError, match="1 replicas for programs of 2"):
        population.with_replicas(REPLICAS[:1])


class FakeDevice:
    def __init__(self, **statistics):
        self.memory_stats = lambda: statistics or None


@pytest.mark.parametrize(
    ("devices", "gigabytes"),
    [
        ([FakeDevice(bytes_limit=100 * GB, bytes_in_use=0)], 90),
        ([FakeDevice(bytes_limit=100 * GB, bytes_in_use=60 * GB)], 30),
        # All have equal parts, so what the fullest one has left is what each can have.
        ([FakeDevice(bytes_limit=100 * GB, bytes_in_use=used * GB) for used in (0, 50, 10, 0)], 4 * 40),
        ([FakeDevice(bytes_limit=100 * GB, bytes_in_use=95 * GB)], 0),
        ([FakeDevice(bytes_limit=100 * GB)], 90),
        ([FakeDevice()] * 2, 8),  # as on a CPU
    ],
)
def test_memory_is_what_other_programs_have_left(devices, gigabytes, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=10 * GB))
    assert available_memory() == gigabytes * GB


def test_a_replicas_config_differs_in_two_keys():
    config = parse_config(PROBE)
    own = Replica(7, 0.5).config(config)
    assert (own.seed, own.optimizer.learning_rate) == (7, 0.5)
    assert dataclasses.replace(own, seed=config.seed, optimizer=config.optimizer) == config


def test_a_replica_whose_loss_is_not_finite_has_no_metric_that_is(monkeypatch):
    """Of NaN logits argmax makes class 0, and a detector finds nothing: neither is a score."""
    found = [
        {
            "loss": np.nan,
            "accuracy": 0.5,
            "ap_large": 0.0,
            EXAMPLES: np.zeros((2, 3)),
            "examples of mae": np.zeros((2, 5)),
        },
        {"loss": 0.7, "accuracy": 0.75, EXAMPLES: np.ones((2, 3)), "examples of mae": np.ones((2, 5))},
    ]
    monkeypatch.setattr(population_module, "host_evaluation", lambda config, examples: [None])
    monkeypatch.setattr(population_module.metrics, "compute", lambda batches: dict(found[int(batches[0])]))
    strategy = types.SimpleNamespace(gather=lambda tree: np.arange(2))
    stub = types.SimpleNamespace(
        _strategy=strategy,
        _evaluate=lambda *arguments: None,
        _prepared=lambda *arguments: None,
        _examples={"test": None},
        _experiment=types.SimpleNamespace(task=types.SimpleNamespace(primary_metric=MSE)),
        config=None,
        chunk=2,
    )
    state = types.SimpleNamespace(params=None, model_state=None)
    table, examples, beside = Population._evaluate_split(stub, None, state, "test")
    assert not any("examples" in name for name in table) and beside["mae"].shape == (2, 2, 5)
    np.testing.assert_array_equal(table["accuracy"], [np.nan, 0.75])
    np.testing.assert_array_equal(table["ap_large"], [np.nan, np.nan])
    assert examples.shape == (2, 2, 3)


def test_chunks_with_different_metrics_are_joined():
    """A size of which there is no object has no AP; a replica that diverged names all sizes."""
    tables = [{"loss": np.array([1.0]), "ap": np.array([0.5])}, {"loss": np.array([2.0])}]
    joined = population_module._by_name(tables, lambda *each: np.concatenate(each))
    np.testing.assert_array_equal(joined["ap"], [0.5, np.nan])
    np.testing.assert_array_equal(joined["loss"], [1.0, 2.0])
