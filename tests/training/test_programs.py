import dataclasses
import functools

import jax
import numpy as np
import pytest

from flaxformer_lab.tasks import examples as examples_module
from flaxformer_lab.training.evaluation import make_evaluate
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.feeds import make_feeds
from flaxformer_lab.training.parallelism import Pmap, Single
from flaxformer_lab.training.programs import make_run_steps
from flaxformer_lab.training.state import initial_state

TEXT = {
    "task": {
        "name": "language_modelling",
        "dataset": "lab_speeches",
        "tokenizer": "bytes",
        "objective": "masked",
        "sequence_length": 16,
    }
}


@pytest.fixture(scope="session")
def prepared(plain, rich):
    """The function that gives an experiment, its training examples and its first state, by name."""
    made = {}
    configs = {
        "images": lambda: plain({"task.shift": 1}),
        "text": lambda: plain(TEXT),
        "rich": lambda: rich(),
    }

    def make(name):
        if name not in made:
            experiment = make_experiment(configs[name]())
            state = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, experiment.config.seed))()
            made[name] = experiment, experiment.task.examples("train"), jax.device_get(state)
        return made[name]

    return make


def changed(experiment, **training):
    config = experiment.config
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, **training))
    return dataclasses.replace(experiment, config=config)


PROGRAMS = {}


def program(experiment, examples):
    """The compiled calls of an experiment and their data, made once; kept beside it, so that its id stays its own."""
    if id(experiment) not in PROGRAMS:
        PROGRAMS[id(experiment)] = experiment, make_run_steps(experiment, examples)
    return PROGRAMS[id(experiment)][1]


def run(experiment, examples, state, plan):
    """The state after the calls of a plan, and the metrics of each step."""
    run_steps, data = program(experiment, examples)
    strategy = experiment.strategy
    state, data, history = strategy.place(state), strategy.place(data), []
    for (_, count), feed in zip(plan, make_feeds(experiment, examples, plan), strict=True):
        state, metrics = run_steps(state, data, feed, strategy.place(np.int32(count)))
        history.append(strategy.fetch(metrics))
    joined = {
        name: [
            np.concatenate([call[name][part][:count] for call, (_, count) in zip(history, plan, strict=True)])
            for part in (0, 1)
        ]
        for name in history[0]
    }
    return strategy.fetch(state), joined, history


# -------------------------------------------------------------------------------------- several updates


def test_calls_of_one_update_and_a_call_of_four_have_the_same_bits(prepared, assert_same):
    experiment, examples, state = prepared("rich")
    together, together_metrics, _ = run(experiment, examples, state, [(0, 4)])
    apart, apart_metrics, _ = run(experiment, examples, state, [(0, 1), (1, 1), (2, 1), (3, 1)])
    mixed, mixed_metrics, _ = run(experiment, examples, state, [(0, 1), (1, 3)])
    assert together.step == 4
    assert_same(together, apart)
    assert_same(together, mixed)
    assert_same(together_metrics, apart_metrics)
    assert_same(together_metrics, mixed_metrics)
    first = jax.tree.leaves(jax.tree.map(lambda then, now: np.abs(now - then).max(), state.params, together.params))
    assert min(first) > 0  # every parameter was trained


def test_a_short_call_leaves_the_rest_of_its_metrics_empty(prepared):
    experiment, examples, state = prepared("rich")
    _, _, (metrics,) = run(experiment, examples, state, [(0, 2)])
    total, weight = metrics["loss"]
    assert weight.tolist() == [16, 16, 0, 0, 0] and (total[:2] > 0).all() and (total[2:] == 0).all()


@pytest.mark.parametrize("name", ["images", "text"])
def test_streamed_data_and_data_on_the_device_have_the_same_bits(prepared, name, assert_same):
    experiment, examples, state = prepared(name)
    plan = [(0, 2), (2, 2), (4, 1)]
    results = [run(changed(experiment, input=where), examples, state, plan)[:2] for where in ("device", "stream")]
    assert_same(results[0], results[1])
    assert results[0][0].step == 5 and results[0][1]["loss"][1].min() > 0


def test_data_streams_when_it_is_too_large_for_the_device(prepared, monkeypatch):
    experiment, examples, _ = prepared("images")
    assert sorted(make_run_steps(experiment, examples)[1]) == ["image", "label"]
    monkeypatch.setattr(examples_module, "DEVICE_BYTES", examples.num_bytes - 1)
    assert make_run_steps(experiment, examples)[1] == {}
    assert sorted(make_run_steps(changed(experiment, input="device"), examples)[1]) == ["image", "label"]
    monkeypatch.setattr(examples_module, "DEVICE_BYTES", examples.num_bytes)
    assert make_run_steps(changed(experiment, input="stream"), examples)[1] == {}


# ------------------------------------------------------------------------------------------------- feeds


def test_a_feed_has_the_rows_of_each_of_its_steps(prepared):
    experiment, examples, _ = prepared("images")
    feeds = [jax.device_get(feed) for feed in make_feeds(experiment, examples, [(0, 2), (2, 2), (4, 1)])]
    seed = experiment.config.seed
    for (begin, count), feed in zip([(0, 2), (2, 2), (4, 1)], feeds, strict=True):
        assert {name: leaf.shape for name, leaf in feed.items()} == dict.fromkeys(
            ("example", "row", "example_weight"), (2, 16)
        )
        for number in range(count):
            np.testing.assert_array_equal(feed["example"][number], examples.training_indices(seed, begin + number, 16))
            np.testing.assert_array_equal(feed["row"][number], np.arange(16))
        assert (feed["example_weight"] == 1).all()
    assert len({feed["example"].tobytes() for feed in feeds}) == 3


def test_a_streamed_feed_has_the_examples_themselves(prepared):
    experiment, examples, _ = prepared("images")
    (feed,) = make_feeds(changed(experiment, input="stream"), examples, [(3, 2)])
    for number in range(2):
        expected = examples.read(examples.training_indices(experiment.config.seed, 3 + number, 16))
        np.testing.assert_array_equal(feed["image"][number], expected["image"])
        np.testing.assert_array_equal(feed["label"][number], expected["label"])


def test_an_empty_plan_has_no_feeds(prepared):
    experiment, examples, _ = prepared("images")
    assert list(make_feeds(experiment, examples, [])) == []


# -------------------------------------------------------------------------------------------- evaluation


def softmax_regression(params, images, labels):
    """Mean loss and accuracy of a network without blocks on 4 x 4 patches, in float64."""

    def get(*path):
        return np.asarray(functools.reduce(lambda tree, name: tree[name], path, params), np.float64)

    x = images.astype(np.float64) / 127.5 - 1
    patches = x.reshape(-1, 2, 4, 2, 4).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 16)
    tokens = patches @ get("embedding", "projection", "kernel") + get("embedding", "projection", "bias")
    tokens = tokens + get("body", "position")
    tokens = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
    tokens = tokens * get("body", "norm", "scale") + get("body", "norm", "bias")
    logits = tokens.mean(axis=1) @ get("head", "kernel") + get("head", "bias")
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = -np.log(shares[np.arange(len(labels)), labels]).mean()
    return {"loss": loss, "accuracy": (logits.argmax(axis=1) == labels).mean()}


def evaluate(experiment, examples, state):
    placed = experiment.strategy.place((state.params, state.model_state))
    return make_evaluate(experiment)(*placed, examples)


def test_evaluation_is_the_mean_over_the_whole_split(prepared):
    experiment, _, state = prepared("images")
    examples = experiment.task.examples("test")
    assert examples.number % experiment.config.training.evaluate_batch_size  # so that the last batch is padded
    data = examples.load()
    expected = softmax_regression(state.params, data["image"], data["label"])
    found = evaluate(experiment, examples, state)
    assert found.keys() == expected.keys()
    np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
    assert found["accuracy"] == expected["accuracy"]  # a fraction with the number of examples below


@pytest.mark.parametrize("name", ["images", "text"])
def test_the_batch_size_of_evaluation_does_not_matter(prepared, name):
    experiment, _, state = prepared(name)
    examples = dataclasses.replace(experiment.task.examples("validation"), number=150)
    found = [evaluate(changed(experiment, evaluate_batch_size=size), examples, state) for size in (150, 64)]
    for name, value in found[0].items():
        np.testing.assert_allclose(found[1][name], value, rtol=1e-5)


def test_evaluation_from_disk_has_the_same_bits(prepared, monkeypatch):
    experiment, _, state = prepared("text")
    examples = dataclasses.replace(experiment.task.examples("validation"), number=150)
    held = evaluate(experiment, examples, state)
    monkeypatch.setattr(examples_module, "DEVICE_BYTES", 0)
    streamed = dataclasses.replace(examples, load=lambda: pytest.fail("everything was loaded"))
    assert evaluate(experiment, streamed, state) == held


# -------------------------------------------------------------------------------- a Transformer on four


@pytest.mark.integration
def test_four_devices_run_the_whole_experiment_like_one(prepared, assert_close):
    experiment, examples, state = prepared("rich")
    assert type(experiment.strategy) is Single
    several = dataclasses.replace(experiment, strategy=Pmap())
    plan = [(0, 5), (5, 3)]
    one, one_metrics, _ = run(experiment, examples, state, plan)
    four, four_metrics, _ = run(several, examples, state, plan)
    assert one.step == four.step == 8
    assert_close(one, four, 1e-5)
    for name, (total, weight) in one_metrics.items():
        np.testing.assert_allclose(total / weight, four_metrics[name][0] / four_metrics[name][1], atol=1e-5)
    moved = jax.tree.map(lambda then, now: np.abs(then - now).max(), state.params, one.params)
    assert min(jax.tree.leaves(moved)) > 1e-4
    validation = experiment.task.examples("validation")
    found, expected = evaluate(several, validation, four), evaluate(experiment, validation, one)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)


def test_an_experiment_needs_no_data_where_its_facts_are_known(plain, monkeypatch):
    from flaxformer_lab.tasks import classification

    monkeypatch.setattr(classification, "open_split", lambda *_: pytest.fail("the data was opened"))
    experiment = make_experiment(plain(), {"image_shape": [8, 8, 1], "num_classes": 10})
    abstract = experiment.abstract_state
    assert abstract.params["head"]["kernel"].shape == (8, 10) and abstract.step.shape == ()
