"""What all probes share: numbered examples, identities at both ends, scores, and their recipes."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab import registry
from flaxformer_lab.command_line import load_config
from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.model_config import TransformerConfig
from flaxformer_lab.task_config import (
    CompressionConfig,
    DelayConfig,
    MemorizationConfig,
    NearestConfig,
    ProductConfig,
    RotationConfig,
)
from flaxformer_lab.tasks import make_task
from flaxformer_lab.tasks.probe import Probe
from flaxformer_lab.training.evaluation import make_evaluate
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.state import RngStream
from flaxformer_lab.training.step import example_keys

RECIPES = Path(__file__).parents[2] / "configs" / "probes"
PROBES = [name for name in registry.names("task") if issubclass(registry.lookup("task", name).build, Probe)]

STREAMS = {
    "endless vectors": DelayConfig(tokens=3, features=2, evaluation_examples=96),
    "endless symbols": CompressionConfig(training_examples=None, evaluation_examples=96),
    "finite symbols": CompressionConfig(training_examples=80, evaluation_examples=96),
}
every_stream = pytest.mark.parametrize("name", STREAMS)


@pytest.fixture(scope="module")
def prepared():
    """Batches as training (seed, step) and evaluation (seed, split) see them."""
    compiled = {}

    def prepare(name, stored, seed, stream, step, training, weight):
        if name not in compiled:
            task = make_task(STREAMS[name])
            compiled[name] = [jax.jit(lambda *args, t=t: task.prepare(*args, training=t)) for t in (False, True)]
        rows = jnp.arange(len(stored["index"]), dtype=jnp.int32)
        weight = jnp.ones(len(rows)) if weight is None else jnp.asarray(weight, jnp.float32)
        batch = {"index": jnp.asarray(stored["index"]), "example_weight": weight}
        return jax.tree.map(np.asarray, compiled[name][training](batch, example_keys(seed, stream, step, rows)))

    def batches(name, seed=0, *, step=None, split="train", size=80, weight=None):
        examples = make_task(STREAMS[name]).examples(split)
        if step is not None:
            stored = examples.read(examples.training_indices(seed, step, size))
            return prepare(name, stored, seed, RngStream.PREPARE, step, True, weight)
        stored = examples.read(examples.evaluation_indices(np.arange(examples.number)))
        return prepare(name, stored, seed, RngStream.EVALUATE, 0, False, weight)

    return batches


def contents(batch):
    """Each example as bytes."""
    return [example.tobytes() for example in batch["inputs"]]


# ---------------------------------------------------------------------------------------------------- examples


@every_stream
def test_the_same_seed_and_step_give_the_same_data_and_others_give_other(prepared, name):
    batch, again = prepared(name, 3, step=5), prepared(name, 3, step=5)
    for part in batch:
        np.testing.assert_array_equal(batch[part], again[part])
    for seed, step in ((3, 4), (3, 6), (4, 5)):
        assert not np.array_equal(prepared(name, seed, step=step)["inputs"], batch["inputs"])


@every_stream
def test_training_validation_and_test_share_no_example(prepared, name):
    training = [contents(prepared(name, step=step)) for step in range(3)]
    splits = [set().union(*training), *(set(contents(prepared(name, split=split))) for split in ("validation", "test"))]
    assert [len(split) for split in splits] == [80 if name == "finite symbols" else 240, 96, 96]
    assert len(set().union(*splits)) == sum(map(len, splits))


@every_stream
def test_evaluation_sees_the_same_examples_each_time(prepared, name):
    for split in ("validation", "test"):
        one, again, other = (prepared(name, seed, split=split) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one["inputs"], again["inputs"])
        # Seeds are independent repetitions.
        assert not set(contents(one)) & set(contents(other))


@pytest.mark.parametrize("name", ["endless vectors", "endless symbols"])
def test_endless_training_never_shows_an_example_again(prepared, name):
    seen = [content for seed in (0, 1) for step in range(3) for content in contents(prepared(name, seed, step=step))]
    assert len(set(seen)) == len(seen) == 480


def test_a_finite_training_set_is_the_same_in_every_run_in_another_order(prepared):
    epochs = [contents(prepared("finite symbols", seed, step=step)) for seed, step in ((0, 0), (0, 1), (1, 0))]
    for epoch in epochs:
        assert len(set(epoch)) == 80 and set(epoch) == set(epochs[0])
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_evaluating_a_finite_training_set_sees_what_training_saw(prepared):
    trained = set(contents(prepared("finite symbols", step=0)))
    assert set(contents(prepared("finite symbols", 9, split="train"))) == trained


@every_stream
def test_padding_has_no_weight(prepared, name):
    weight = np.arange(80) % 2
    padded, whole = prepared(name, step=0, weight=weight), prepared(name, step=0)
    np.testing.assert_array_equal(padded["loss_weights"], whole["loss_weights"] * weight[:, None])
    assert whole["loss_weights"][weight == 0].any()
    np.testing.assert_array_equal(padded["inputs"], whole["inputs"])


@pytest.mark.parametrize("name", PROBES)
def test_numbers_of_examples_lie_apart(name):
    task = make_task(parse_config(legal(name)).task)
    evaluated = {
        split: examples.read(examples.evaluation_indices(np.array([0, examples.number - 1])))["index"].tolist()
        for split, examples in ((split, task.examples(split)) for split in ("validation", "test"))
    }
    training = task.examples("train")
    size = task.training_examples or 4096
    trained = training.read(training.training_indices(0, 2**30 // size - 1, size))["index"]
    assert trained.min() >= 0 and trained.max() < 2**30 <= evaluated["validation"][0]
    assert evaluated["validation"][1] < evaluated["test"][0] and evaluated["test"][1] < 2**31 - 1
    assert task.examples("test").number == task.examples("validation").number


def test_evaluation_does_not_depend_on_its_batch_size():
    tree = {
        "task": {"name": "delay", "tokens": 3, "features": 2, "evaluation_examples": 40},
        "model": {"width": 4, "depth": 0},
        "parallelism": {"strategy": "single"},
    }
    figures = []
    for size in (40, 12):
        experiment = make_experiment(parse_config(tree | {"training": {"evaluate_batch_size": size}}))
        params, state = jax.jit(experiment.network.init)(jax.random.key(0))
        placed = experiment.strategy.place((params, state))
        figures.append(make_evaluate(experiment)(*placed, experiment.task.examples("test")))
    assert figures[0] == pytest.approx(figures[1], rel=1e-5)
    assert sorted(figures[0]) == ["loss", "r2"] and figures[0]["loss"] > 0


# ---------------------------------------------------------------------------------------------------- networks


def legal(name):
    """A config in which the task's demand for causality is met."""
    causal = name in ("in_context_recall", "fuzzy_recall", "noisy_recall")
    return {"task": {"name": name}, "model": {"width": 16, "depth": 1, "causal": causal}}


def logits_of(network, inputs):
    params, state = network.shapes
    return jax.eval_shape(network.apply, params, state, inputs)[0]


@pytest.mark.parametrize("name", PROBES)
def test_networks_take_what_is_drawn_and_return_what_is_asked(name):
    config = parse_config(legal(name))
    task = make_task(config.task)
    stored = {"index": jax.ShapeDtypeStruct((5,), jnp.int32), "example_weight": jax.ShapeDtypeStruct((5,), jnp.float32)}
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 5))
    batch = jax.eval_shape(lambda *args: task.prepare(*args, training=True), stored, keys)
    dummy = task.input_spec(5)
    described = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), each) for each in (batch["inputs"], dummy)]
    assert described[0] == described[1]
    logits = logits_of(task.network(config.model), dummy)
    metrics = jax.eval_shape(task.loss_and_metrics, logits, batch)
    if "accuracy" in metrics:
        classes = getattr(config.task, "vocabulary", 2)  # two of marks
        assert logits.shape == (*batch["targets"].shape, classes)
    else:
        assert logits.size == batch["targets"].size and sorted(metrics) == ["loss", "r2"]
    assert batch["loss_weights"].shape == batch["targets"].shape[:2]
    assert task.units in (("examples", 1), ("images", 1)) and task.metadata in ({}, {"definition": 2})


@pytest.mark.parametrize(
    ("embedding", "head"), [("identity", "identity"), ("identity", "dense"), ("dense", "identity")]
)
def test_an_identity_has_no_parameters_and_leaves_features_alone(model, draw, embedding, head):
    task = make_task(RotationConfig(features=8, embedding=embedding, head=head))
    network = task.network(model({"width": 8, "depth": 0, "norm.kind": "off", "position": "off", "bias": True}))
    wanted = {"embedding.projection": embedding, "head": head}
    expected = {f"{part}.{leaf}" for part, kind in wanted.items() if kind == "dense" for leaf in ("kernel", "bias")}
    assert set(leaf_paths(network.shapes[0])) == expected
    params, state = draw(network.shapes)
    x = np.random.default_rng(0).normal(size=(3, 1, 8)).astype(np.float32)
    reference = x
    for name in ("embedding.projection", "head"):
        if wanted[name] == "dense":
            leaves = {path: np.asarray(leaf) for path, leaf in leaf_paths(params).items()}
            reference = reference @ leaves[f"{name}.kernel"] + leaves[f"{name}.bias"]
    np.testing.assert_allclose(network.apply(params, state, jnp.asarray(x))[0], reference, rtol=1e-4, atol=1e-5)


WRONG_WIDTHS = [
    (RotationConfig(embedding="identity"), 16, ["task.embedding=identity", "32 features of the input", "rotation"]),
    (RotationConfig(head="identity"), 16, ["task.head=identity", "the 32 outputs", "task.name=rotation"]),
    (ProductConfig(head="identity"), 8, ["task.head=identity", "the 1 outputs", "model.width=1 ", "task.name=product"]),
    # Candidates and query have places of their own.
    (NearestConfig(embedding="identity"), 8, ["task.embedding=identity", "16 features", "model.width=16 "]),
]


@pytest.mark.parametrize(("config", "width", "parts"), WRONG_WIDTHS)
def test_an_identity_of_another_width_is_refused(config, width, parts):
    with pytest.raises(ConfigError) as error:
        make_task(config).network(TransformerConfig(width=width, depth=1))
    key = "embedding" if config.embedding == "identity" else "head"
    for part in [*parts, f"model.width={width} must be", "set model.width=", f"or task.{key}=dense"]:
        assert part in str(error.value)


CONTRADICTIONS = [
    ({"name": "product", "features": 2, "order": 3}, ["task.order=3", "task.features=2", "raise the other"]),
    ({"name": "pointers", "tokens": 3}, ["task.pointers=4", "task.tokens=3", "raise the other"]),
    ({"name": "delay", "distance": 16}, ["task.distance=16", "task.tokens=16", "choose at most 15"]),
    ({"name": "marked_token", "distance": 64}, ["task.distance=64", "task.tokens=64", "choose at most 63"]),
    ({"name": "associative_recall", "pairs": 9}, ["task.pairs=9", "36 tokens", "task.sequence_length=32"]),
    (
        {"name": "associative_recall", "vocabulary": 9},
        ["task.pairs=4", "the 3 of task.vocabulary=9", "vocabulary of at least 10"],
    ),
    ({"name": "noisy_recall", "vocabulary": 19}, ["task.vocabulary=19", "noise_vocabulary=16", "at least 20"]),
    ({"name": "selective_copy", "copies": 129}, ["task.copies=129", "260 tokens", "task.sequence_length=256"]),
]


@pytest.mark.parametrize(("task", "parts"), CONTRADICTIONS)
def test_sizes_that_do_not_fit_are_refused(task, parts):
    tree = legal(task["name"])
    with pytest.raises(ConfigError) as error:
        parse_config(tree | {"task": task})
    for part in parts:
        assert part in str(error.value)


# ------------------------------------------------------------------------------------------------------- scores


def test_accuracy_counts_the_places_that_are_asked():
    task = make_task(MemorizationConfig(vocabulary=5, sequence_length=4))
    logits = jnp.asarray(np.log(np.eye(5)[[[1, 2, 3, 4], [0, 0, 1, 1]]] + 0.25), jnp.float32)
    batch = {
        "targets": jnp.array([[1, 2, 0, 0], [4, 4, 1, 3]]),
        "loss_weights": jnp.array([[1.0, 0, 1, 1], [0, 1, 1, 0]]),
    }
    sums = task.loss_and_metrics(logits, batch)
    assert [float(value) for value in sums["accuracy"]] == [2, 5]
    # Softmax gives 5/9 to the largest and 1/9 to each other one.
    assert float(sums["loss"][0]) == pytest.approx(-2 * np.log(5 / 9) - 3 * np.log(1 / 9), rel=1e-5)


# ------------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.py")), ids=lambda path: path.stem)
def test_recipes_load_and_have_a_network(path):
    config = load_config(str(path), [])
    task = make_task(config.task)
    logits = logits_of(task.network(config.model), task.input_spec(3))
    assert logits.shape[0] == 3 and isinstance(task, Probe)


def test_every_task_of_the_suites_has_a_recipe():
    names = {load_config(str(path), []).task.name for path in RECIPES.rglob("*.py")}
    assert names == set(PROBES)


@pytest.mark.parametrize("path", sorted((RECIPES / "mad").glob("*.py")), ids=lambda path: path.stem)
def test_recipes_of_mad_train_as_the_paper_did(path):
    config = load_config(str(path), [])
    assert config.task == type(config.task)() and config.task.name == path.stem
    assert (config.model.width, config.training.batch_size) == (128, 128)
    assert config.training.steps * 128 == 200 * config.task.training_examples
    assert config.optimizer.name == "adamw" and config.optimizer.schedule == "cosine"
    assert config.optimizer.learning_rate in (1e-4, 5e-4, 1e-3) and config.optimizer.weight_decay in (0, 0.1)
