"""What a task, a network and a step may be, beyond those that the lab has: one small task or model for each."""

import functools
import shutil
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from flax import nnx
from safetensors.numpy import save_file
from sklearn.metrics import roc_auc_score

from flaxformer_lab import registry
from flaxformer_lab.ablation.population import Replica, train_population
from flaxformer_lab.config import parse_config
from flaxformer_lab.data.source import open_split
from flaxformer_lab.errors import ConfigError, MeasureError, RunError
from flaxformer_lab.export.formats import load_exported
from flaxformer_lab.export.write import export
from flaxformer_lab.functional.metrics import AUC
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.models.lora import merged
from flaxformer_lab.models.network import Network, functionalize
from flaxformer_lab.modules.embedding import FeatureEmbedding, TokenEmbedding
from flaxformer_lab.modules.projection import Dense
from flaxformer_lab.parsing import override
from flaxformer_lab.run import load_run
from flaxformer_lab.task_config import TabularClassificationConfig, TaskConfig
from flaxformer_lab.tasks.examples import generated_examples, stored_examples
from flaxformer_lab.tasks.tables import TabularClassification
from flaxformer_lab.tasks.task import Task, loss_and_accuracy
from flaxformer_lab.training.experiment import make_experiment
from flaxformer_lab.training.initialization import initial_weights, restore_run
from flaxformer_lab.training.loop import train
from flaxformer_lab.training.single import Single
from flaxformer_lab.training.state import initial_state

TRAINING = {
    "steps": 4,
    "batch_size": 16,
    "evaluate_every": 2,
    "evaluate_batch_size": 64,
    "checkpoint_every": 2,
    "steps_per_call": 2,
}


def config_of(task, model, changes=None):
    tree = {
        "seed": 3,
        "task": task,
        "model": {"width": 8, "depth": 1, "attention": {"num_heads": 2}, "ffn": {"expansion": 2.0}} | model,
        "optimizer": {"name": "sgd", "learning_rate": 0.1, "schedule": "constant"},
        "training": TRAINING,
        "parallelism": {"strategy": "single"},
    }
    for key, value in (changes or {}).items():
        tree = override(tree, key, value)
    return parse_config(tree)


def variables(folder):
    """Parameters and model state of the last checkpoint, by name."""
    state = load_run(folder).state
    leaves = leaf_paths(state.params) | leaf_paths(state.model_state)
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def assert_close(one, other, atol=2e-5):
    assert one.keys() == other.keys()
    for name, leaf in one.items():
        np.testing.assert_allclose(leaf, other[name], rtol=1e-4, atol=atol, err_msg=name)


# ----------------------------------------------------------------------- a state that training updates: BatchNorm

DIGITS = {"name": "image_classification", "dataset": "lab_digits", "patch_size": 4}


def normalised(changes=None):
    return config_of(DIGITS, {"norm": {"kind": "batchnorm"}}, {"training.accumulate": 2} | (changes or {}))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batchnorm")
    train(normalised(), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def trained(undisturbed):
    return variables(undisturbed)


def test_a_state_moves_in_training_and_stands_still_in_evaluation(undisturbed):
    run = load_run(undisturbed)
    averages = leaf_paths(run.state.model_state)
    assert {name.rpartition(".")[2] for name in averages} == {"mean", "variance"}
    assert all(np.abs(leaf - ("variance" in name)).max() > 1e-3 for name, leaf in averages.items())
    inputs = np.random.default_rng(0).uniform(-1, 1, (6, 8, 8, 1)).astype(np.float32)
    arguments, apply = (run.params, run.state.model_state, inputs), jax.jit(run.model.apply, static_argnames="training")
    still, state = apply(*arguments)
    moving, moved = apply(*arguments, training=True)
    assert all(np.array_equal(leaf, averages[name]) for name, leaf in leaf_paths(state).items())
    assert all(not np.array_equal(leaf, averages[name]) for name, leaf in leaf_paths(moved).items())
    assert np.abs(still - moving).max() > 1e-3
    # In evaluation an example's outputs do not depend on the others; in training they do.
    np.testing.assert_allclose(run.predict_preprocessed(inputs[:1]), still[:1], rtol=1e-5, atol=1e-6)
    alone, _ = apply(*arguments[:2], inputs[:1], training=True)
    assert np.abs(alone - moving[:1]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"parallelism.strategy": "pmap", "model.remat": True},
        {"parallelism": {"strategy": "mesh", "mesh": {"fsdp": 2, "tensor": 2}}},
    ],
)
def test_every_strategy_and_rematerialisation_update_the_state_as_one_device_does(trained, tmp_path, changes):
    train(normalised(changes), tmp_path, quiet=True)
    assert_close(variables(tmp_path), trained)


def test_the_state_survives_an_interruption(undisturbed, trained, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "stopped")
    shutil.rmtree(tmp_path / "stopped" / "checkpoints" / "4")
    train(normalised(), tmp_path / "stopped", quiet=True)
    for name, leaf in variables(tmp_path / "stopped").items():
        np.testing.assert_array_equal(leaf, trained[name])


@pytest.mark.slow
def test_each_replica_has_a_state_of_its_own(undisturbed, trained):
    outcome = train_population(normalised(), [Replica(3, 0.1), Replica(4, 0.02)])
    found = [leaf_paths(state.params) | leaf_paths(state.model_state) for state in outcome.states]
    assert_close(found[0], trained)
    assert all(not np.array_equal(leaf, found[1][name]) for name, leaf in found[0].items() if "mean" in name)
    assert outcome.test["loss"][0] == pytest.approx(load_run(undisturbed).evaluate()["loss"], rel=1e-4)


# ------------------------------------------------------------------------- a metric of all examples at once: AUC


@pytest.fixture
def scored(own_parts):
    """Breast cancer, with the area under the curve beside loss and accuracy."""

    @dataclass(frozen=True)
    class ScoredConfig(TabularClassificationConfig):
        name: Literal["scored"] = "scored"
        dataset: str = "lab_breast_cancer"

    @registry.register("task", "scored", config=ScoredConfig)
    class Scored(TabularClassification):
        def loss_and_metrics(self, outputs, batch):
            arguments = outputs[:, 1] - outputs[:, 0], batch["targets"], batch["loss_weights"]
            return super().loss_and_metrics(outputs, batch) | {"auc": AUC(*arguments)}

    return Scored


@pytest.mark.parametrize("strategy", ["pmap", pytest.param("mesh", marks=pytest.mark.slow)])
def test_a_metric_of_all_examples_is_exact_over_batches_and_devices(scored, tmp_path, strategy):
    changes = {"parallelism.strategy": strategy, "training.evaluate_batch_size": 16}
    config = config_of({"name": "scored"}, {"depth": 0}, changes)
    values = train(config, tmp_path, quiet=True)
    run = load_run(tmp_path)
    examples = run.task.examples("test")
    assert examples.number % 16  # the last batch is padded
    stored = examples.load() | {"example_weight": np.ones(examples.number, np.float32)}
    keys = jax.random.split(jax.random.key(0), examples.number)
    batch = run.task.prepare(jax.tree.map(jnp.asarray, stored), keys, training=False)
    outputs = np.asarray(run.predict_preprocessed(batch["inputs"]))
    expected = roc_auc_score(np.asarray(batch["targets"]), outputs[:, 1] - outputs[:, 0])
    assert values["auc"] == pytest.approx(expected, abs=1e-6) and 0.5 < expected < 1
    assert set(values) == {"loss", "accuracy", "auc"}


# ------------------------------------------------- two sequences, cross-attention and padding: an encoder-decoder

SOURCE, TARGET, SYMBOLS = 7, 4, 6


class TwoEmbeddings(nnx.Module):
    """Vectors for the symbols of both sequences."""

    def __init__(self, config, *, rngs):
        self.source = TokenEmbedding(SYMBOLS, config.width, dtype=config.dtype, rngs=rngs)
        self.target = TokenEmbedding(TARGET, config.width, dtype=config.dtype, rngs=rngs)

    def __call__(self, inputs):
        return {"source": self.source(inputs["source"]), "target": self.target(inputs["target"])}


@pytest.fixture
def reversal(own_parts):
    """Read symbols, write the last ones backwards; both sequences are padded."""

    @dataclass(frozen=True)
    class ReversalConfig(TaskConfig):
        name: Literal["reversal"] = "reversal"
        causal = None

    @registry.register("task", "reversal", config=ReversalConfig)
    class Reversal(Task):
        units = ("examples", 1)

        def __init__(self, config, metadata=None):
            self.metadata = {}

        def examples(self, split):
            return generated_examples(
                64, first={"train": 0, "validation": 2**30, "test": 2**30 + 64}[split], endless=split == "train"
            )

        def network(self, config):
            grid = {"source": (SOURCE,), "target": (TARGET,)}
            build = lambda rngs: Network(  # noqa: E731
                config, embedding=TwoEmbeddings(config, rngs=rngs), grid=grid, outputs=SYMBOLS, rngs=rngs
            )
            return functionalize(build)

        def prepare(self, examples, keys, *, training):
            def one(key, index):
                size, symbols = jax.random.split(jax.random.fold_in(key, index))
                length = jax.random.randint(size, (), 2, SOURCE + 1)
                source = jax.random.randint(symbols, (SOURCE,), 0, SYMBOLS)
                places = jnp.arange(TARGET)
                return source, source[length - 1 - places], jnp.arange(SOURCE) < length, places < length

            source, targets, of_source, of_target = jax.vmap(one)(keys, examples["index"])
            return {
                "inputs": {"source": source, "target": jnp.broadcast_to(jnp.arange(TARGET)[None], targets.shape)},
                "valid": {"source": of_source, "target": of_target},
                "targets": targets,
                "loss_weights": of_target * examples["example_weight"][:, None],
            }

        def loss_and_metrics(self, outputs, batch):
            return loss_and_accuracy(outputs, batch)

        def input_spec(self, batch_size):
            sizes = {"source": SOURCE, "target": TARGET}
            return {name: jax.ShapeDtypeStruct((batch_size, size), jnp.int32) for name, size in sizes.items()}

    return lambda changes=None: config_of(
        {"name": "reversal"}, {"name": "encoder_decoder", "encoder_depth": 1}, changes
    )


def batch_of(experiment, size=16):
    stored = {"index": np.arange(size, dtype=np.int32), "example_weight": np.ones(size, np.float32)}
    prepare = functools.partial(experiment.task.prepare, training=True)
    return jax.jit(lambda: prepare(jax.tree.map(jnp.asarray, stored), jax.random.split(jax.random.key(1), size)))()


@pytest.mark.slow
def test_an_encoder_decoder_and_its_masks_are_exported_by_name(reversal, tmp_path):
    experiment = make_experiment(reversal())
    state = jax.jit(lambda: initial_state(experiment.network, experiment.optimizer, 0))()
    for format in ("stablehlo", "safetensors"):
        exported = export(experiment, state, tmp_path / f"reversal.{format}", format, examples=1)
        assert set(exported.spec) == {"source", "target", "valid.source", "valid.target"}
    again = load_exported(exported.path)
    assert again.spec == exported.spec
    arrays = {name: np.zeros((2, *like.shape[1:]), like.dtype) for name, like in again.spec.items()}
    outputs = again.predict(arrays | {"valid.source": np.arange(SOURCE)[None].repeat(2, 0) < [[2], [SOURCE]]})
    assert outputs.shape == (2, TARGET, SYMBOLS) and np.abs(outputs[0] - outputs[1]).max() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single", "pmap"])
def test_an_encoder_decoder_learns_from_two_padded_sequences(reversal, tmp_path, strategy):
    changes = {"optimizer": {"name": "adamw", "learning_rate": 0.02}, "training.batch_size": 64, "training.steps": 150}
    changes |= {"training.steps_per_call": 50, "training.evaluate_every": 150, "training.checkpoint_every": 150}
    changes |= {"parallelism.strategy": strategy}
    values = train(reversal(changes), tmp_path, quiet=True)
    assert values["accuracy"] > 0.6  # 1 / 6 by chance, 0.3 or so without a view of the source
    run = load_run(tmp_path)
    assert run.evaluate()["accuracy"] == values["accuracy"]
    batch = batch_of(run.experiment)
    source, valid = (np.asarray(batch[name]["source"]) for name in ("inputs", "valid"))
    others = batch["inputs"] | {"source": np.where(valid, source, 0)}  # what is padding counts for nothing
    assert not valid.all()
    np.testing.assert_array_equal(*(run.predict(inputs, batch["valid"]) for inputs in (batch["inputs"], others)))
    with pytest.raises(ConfigError, match="inputs of structure PyTreeDef"):
        run.predict(batch["inputs"]["source"])
    with pytest.raises(MeasureError, match="look at one sequence of token vectors, and this model reads several"):
        run.subject()


def test_padding_reaches_nothing_and_everything_else_reaches_every_target(reversal):
    experiment = make_experiment(reversal(), strategy=Single())
    params, _ = jax.jit(experiment.network.init)(jax.random.key(0))
    batch = batch_of(experiment)
    source, valid = (np.asarray(batch[name]["source"]) for name in ("inputs", "valid"))

    @jax.jit
    def apply(source):
        return experiment.network.apply(params, {}, batch["inputs"] | {"source": source}, valid=batch["valid"])[0]

    found = np.asarray(apply(source))
    np.testing.assert_array_equal(apply(np.where(valid, source, 0)), found)
    for place in range(SOURCE):
        moved = np.abs(apply(np.where(np.arange(SOURCE) == place, (source + 1) % SYMBOLS, source)) - found).max(axis=-1)
        assert np.all((moved > 0) == valid[:, place : place + 1])


@pytest.mark.parametrize(
    ("task", "model", "error"),
    [
        (
            "reversal",
            {"name": "gru"},
            r"model.name=gru cannot work on the two token .* choose model.name=encoder_decoder",
        ),
        (
            DIGITS,
            {"name": "encoder_decoder"},
            r"encoder_decoder cannot work on the one .* choose model.name=transformer",
        ),
        (DIGITS, {"name": "encoder_decoder", "attention": {"kind": "mean"}}, "kind=mean cannot attend to another"),
    ],
)
def test_a_model_that_does_not_fit_the_sequences_is_refused(reversal, task, model, error):
    task = task if isinstance(task, dict) else {"name": task}
    with pytest.raises(ConfigError, match=error):
        config = parse_config({"task": task, "model": {"width": 8} | model})
        make_experiment(config, strategy=Single())


# ------------------------------------------------------------------------ examples of differing length, by capacity


def bag(index):
    """Numbers, and whether their sum is above 0."""
    generator = np.random.default_rng(index)
    values = generator.normal(size=generator.integers(1, 9)).astype(np.float32)
    return {"values": values, "label": int(values.sum() > 0)}


class Bags(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"values": tfds.features.Sequence(np.float32), "label": tfds.features.ClassLabel(num_classes=2)}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index in range(640):
            yield index, bag(index)


@pytest.fixture(scope="module")
def bags_folder(tmp_path_factory):
    """Where the data set lies once the first test has built it."""
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture
def bags(own_parts, bags_folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(bags_folder))

    registry.register("dataset", "bags")(Bags)

    @dataclass(frozen=True)
    class BagsConfig(TaskConfig):
        name: Literal["bags"] = "bags"
        capacity: int = 8
        causal = None

    @registry.register("task", "bags", config=BagsConfig)
    class BagClassification(Task):
        units = ("examples", 1)

        def __init__(self, config, metadata=None):
            self._capacity, self.metadata = config.capacity, {}

        def examples(self, split):
            return stored_examples(open_split("bags", split, {"values": (self._capacity,)}))

        def network(self, config):
            def build(rngs):
                embedding = FeatureEmbedding("dense", 1, config.width, bias=True, dtype="float32", rngs=rngs)
                options = {"grid": (self._capacity,), "outputs": 2, "pooling": "mean", "rngs": rngs}
                return Network(config, embedding=embedding, **options)

            return functionalize(build)

        def prepare(self, examples, keys, *, training):
            places = jnp.arange(self._capacity)[None]
            return {
                "inputs": examples["values"][:, :, None],
                "valid": places < examples["values_shape"],
                "targets": examples["label"].astype(jnp.int32),
                "loss_weights": examples["example_weight"],
            }

        def loss_and_metrics(self, outputs, batch):
            return loss_and_accuracy(outputs, batch)

        def input_spec(self, batch_size):
            return jax.ShapeDtypeStruct((batch_size, self._capacity, 1), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["device", "stream"])
def test_examples_of_any_length_are_learned_from(bags, tmp_path, source):
    changes = {"optimizer": {"name": "adamw", "learning_rate": 0.02}, "training.input": source, "training.steps": 60}
    changes |= {"training.steps_per_call": 20, "training.evaluate_every": 60, "training.checkpoint_every": 60}
    values = train(config_of({"name": "bags"}, {"position": "off"}, changes), tmp_path / source, quiet=True)
    assert values["accuracy"] > 0.85
    with pytest.raises(MeasureError, match="some of these examples are padded"):
        load_run(tmp_path / source).subject()


@pytest.mark.slow
def test_padding_is_not_measured_as_if_it_were_tokens_in_a_population(bags):
    outcome = train_population(config_of({"name": "bags"}, {"position": "off"}), [Replica(0, 0.1), Replica(1, 0.1)])
    assert outcome.measures == {} and np.all(np.isfinite(outcome.test["accuracy"]))


def test_more_room_changes_nothing(bags):
    outputs = []
    for capacity in (8, 13):
        experiment = make_experiment(config_of({"name": "bags", "capacity": capacity}, {"position": "off"}))
        params, _ = jax.jit(experiment.network.init)(jax.random.key(0))
        examples = experiment.task.examples("test")
        stored = examples.read(np.arange(20)) | {"example_weight": np.ones(20, np.float32)}

        def run(params, stored, task=experiment.task, network=experiment.network):
            batch = task.prepare(stored, None, training=False)
            return network.apply(params, {}, batch["inputs"], valid=batch["valid"])[0]

        outputs.append(jax.jit(run)(params, stored))
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------- a head that reads the inputs: reversible normalisation


class Normalised(nnx.Module):
    """Each example less its mean, over its standard deviation."""

    def __init__(self, config, *, rngs):
        self.inner = FeatureEmbedding("dense", 1, config.width, bias=True, dtype="float32", rngs=rngs)

    def __call__(self, x):
        return self.inner((x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True))


class Denormalised(nnx.Module):
    """The inverse, on the outputs."""

    reads_inputs = True

    def __init__(self, config, *, rngs):
        self.inner = Dense(config.width, 1, axes=("width", None), bias=True, rngs=rngs)

    def __call__(self, x, inputs):
        return self.inner(x) * inputs.std(1, keepdims=True) + inputs.mean(1, keepdims=True)


def test_a_head_may_read_the_inputs():
    config = parse_config({"model": {"width": 8, "depth": 1, "causal": True}}).model

    def build(rngs):
        parts = {"embedding": Normalised(config, rngs=rngs), "head": Denormalised(config, rngs=rngs)}
        return Network(config, **parts, grid=(5,), outputs=1, rngs=rngs)

    network = functionalize(build)
    params, _ = jax.jit(network.init)(jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(3, 5, 1)).astype(np.float32)

    @jax.jit
    def run(params):
        outputs, pullback = jax.vjp(lambda params: network.apply(params, {}, np.concatenate([x, 3 * x + 7]))[0], params)
        return outputs, pullback(outputs)[0]

    outputs, gradient = run(params)
    found, moved = np.split(np.asarray(outputs), 2)
    np.testing.assert_allclose(moved, 3 * found + 7, rtol=1e-4, atol=1e-4)
    assert all(np.abs(leaf).max() > 0 for name, leaf in leaf_paths(gradient).items() if "head" in name)
    # What it reads is not known while the outputs are drawn one by one.
    with pytest.raises(ConfigError, match=r"head Denormalised reads all inputs .* cannot decode token by token"):
        network.prefill(params, {}, x, jnp.array([1, 2, 3]))


# --------------------------------------------------------------------------------------- weights to start from


# Without attention: fewer programs, and as many parts to choose from.
SMALL = {"attention": {"kind": "off"}, "ffn": {"expansion": 1.0}}


def digits(changes=None):
    return config_of(DIGITS, SMALL, changes)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    train(digits(), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def trained_first(first):
    return variables(first)


def start(config):
    """The names that are taken, if any, and the parameters that a fresh run begins with."""
    experiment = make_experiment(config, strategy=Single())
    initial = initial_weights(config.training, experiment.abstract_state)
    fresh = functools.partial(initial_state, experiment.network, experiment.optimizer, config.seed)
    return initial, leaf_paths(jax.jit(fresh)(initial.values if initial else None).params)


@pytest.mark.integration
def test_a_run_starts_from_the_weights_of_another_in_whole_or_in_part(first, trained_first):
    trained, given = trained_first, {"training.init_from": str(first), "seed": 9}
    (_, fresh), (initial, found) = start(digits({"seed": 9})), start(digits(given))
    assert not initial.drawn and not initial.unused and initial.values.keys() == trained.keys()
    for name, leaf in found.items():
        np.testing.assert_array_equal(leaf, trained[name])
    for only, fits in ((["body"], lambda name: name.startswith("body.")), (["*.ffn.*"], lambda name: ".ffn." in name)):
        initial, found = start(digits(given | {"training.init_only": only}))
        assert {name for name in found if fits(name)} == set(initial.values)
        assert set(initial.drawn) == set(initial.unused) == set(found) - set(initial.values)
        for name, leaf in found.items():
            np.testing.assert_array_equal(leaf, trained[name] if fits(name) else fresh[name])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single", "mesh"])
def test_what_was_taken_and_what_was_drawn_is_shown_once(first, trained_first, tmp_path, capsys, strategy):
    changes = {"training.init_from": str(first), "training.init_only": ["body", "embedding"], "training.steps": 2}
    changes |= {"optimizer.learning_rate": 1e-30, "parallelism.strategy": strategy}
    config = digits(changes)
    train(config, tmp_path)
    shown = capsys.readouterr().out
    assert f"initial weights from {first}: " in shown and "arrays taken, 2 drawn" in shown
    assert "  drawn: head.kernel, head.bias" in shown or "  drawn: head.bias, head.kernel" in shown
    found = variables(tmp_path)
    assert all(
        np.array_equal(leaf, trained_first[name]) == (not name.startswith("head")) for name, leaf in found.items()
    )
    train(config, tmp_path)
    assert "initial weights" not in capsys.readouterr().out  # a run that goes on has its own


@pytest.mark.slow
def test_replicas_start_from_the_same_weights(first, trained_first):
    config = digits({"training.init_from": str(first), "training.init_only": ["body"]})
    outcome = train_population(config, [Replica(0, 1e-30), Replica(1, 1e-30)])
    states, trained = [leaf_paths(state.params) for state in outcome.states], trained_first
    for name, leaf in states[0].items():
        assert np.array_equal(leaf, trained[name]) == name.startswith("body.")
        assert np.array_equal(leaf, trained[name]) or "bias" in name or not np.array_equal(leaf, states[1][name])


@pytest.mark.integration
def test_a_run_takes_what_another_has_learned_in_its_small_matrices(tmp_path):
    """Beside its kernels where both have maps of that rank, in the kernels where it has none or others."""
    changes = {"training.lora_rank": 2, "training.steps": 2, "optimizer.learning_rate": 0.1}
    train(digits(changes), tmp_path / "tuned", quiet=True)
    state = restore_run(tmp_path / "tuned")[1]
    sums, apart = leaf_paths(merged(state.params)), leaf_paths(state.params)
    given = {"training.init_from": str(tmp_path / "tuned"), "seed": 9}
    for more, expected in (
        ({}, sums),
        ({"training.lora_rank": 3}, sums),
        ({"training.lora_rank": 2, "training.init_only": ["body"]}, sums),
        ({"training.lora_rank": 2}, apart),
    ):
        initial, found = start(digits(given | more))
        taken = {name: np.asarray(leaf) for name, leaf in found.items() if name in initial.values}
        assert {name for name in taken if name.startswith("lora.")} == {name for name in expected if "lora." in name}
        for name, leaf in taken.items():
            np.testing.assert_allclose(leaf, expected[name], rtol=1e-6, err_msg=name)


def test_a_safetensors_file_is_a_source_as_well(first, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"head.kernel": np.full((8, 10), 0.5, np.float16), "other": np.ones(3, np.float32)}, path)
    initial, found = start(digits({"training.init_from": str(path)}))
    assert set(initial.values) == {"head.kernel"} and initial.unused == ("other",)
    np.testing.assert_array_equal(found["head.kernel"], np.full((8, 10), 0.5, np.float32))


def test_a_folder_of_shards_is_a_source_as_well(first, tmp_path):
    whole = {"head.kernel": np.full((8, 10), 0.5, np.float32), "head.bias": np.full(10, 0.25, np.float32)}
    for number, name in enumerate(whole, start=1):
        save_file({name: whole[name]}, tmp_path / f"model-0000{number}-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    initial, found = start(config_of(DIGITS, {}, {"training.init_from": str(tmp_path)}))
    assert set(initial.values) == set(whole)
    for name, values in whole.items():
        np.testing.assert_array_equal(found[name], values)
    save_file({"head.bias": whole["head.bias"]}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"two files have head\.bias; keep the shards of one model alone"):
        start(config_of(DIGITS, {}, {"training.init_from": str(tmp_path)}))


@pytest.mark.parametrize(
    ("arrays", "kind", "error"),
    [
        (
            {"head.kernel": np.ones((8, 3), np.float32)},
            ConfigError,
            r"head.kernel has the shape \(8, 3\), but .* \(8, 10\)",
        ),
        (
            {"weight": np.ones(3, np.float32)},
            ConfigError,
            "has no array that this model takes; it has weight; the model",
        ),
        ({"head.bias": np.full(10, np.nan, np.float32)}, ConfigError, "head.bias has values that are not finite"),
        (b"nonsense", RunError, r"init_from=.*weights.safetensors cannot be read"),
        (None, RunError, r"init_from=.*weights.safetensors does not exist; name a run's folder or a .safetensors file"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, arrays, kind, error):
    path = tmp_path / "weights.safetensors"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        save_file(arrays, path)
    with pytest.raises(kind, match=error):
        train(digits({"training.init_from": str(path)}), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_damaged_run_is_no_source(first, tmp_path):
    shutil.copytree(first, tmp_path / "damaged")
    (tmp_path / "damaged" / "metadata.json").write_text("{}")
    with pytest.raises(RunError, match=r"metadata\.json is damaged: KeyError"):
        start(digits({"training.init_from": str(tmp_path / "damaged")}))


def test_pickled_weights_are_refused_and_parts_need_a_source(tmp_path):
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="pickled weights"):
        start(digits({"training.init_from": str(tmp_path / "weights.bin")}))
    with pytest.raises(ConfigError, match=r"training\.init_only=body needs training\.init_from"):
        digits({"training.init_only": ["body"]})
