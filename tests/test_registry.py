"""Parts by name: how they are registered, imported, asked and refused; and a user's own model, task and data set."""

import dataclasses
import sys
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxformer_lab import registry
from flaxformer_lab.analysis.measures import left_out, measure
from flaxformer_lab.config import as_dict, parse_config
from flaxformer_lab.errors import ConfigError, MeasureError, RunError
from flaxformer_lab.model_config import ModelConfig
from flaxformer_lab.models import theory
from flaxformer_lab.modules.attention import MeanAttention, SoftmaxAttention
from flaxformer_lab.modules.intermediates import DISABLED
from flaxformer_lab.modules.projection import Dense
from flaxformer_lab.parsing import AtLeastOne
from flaxformer_lab.registry import register
from flaxformer_lab.run import load_run
from flaxformer_lab.task_config import TaskConfig
from flaxformer_lab.tasks import make_task
from flaxformer_lab.tasks.probe import ContinuousProbe
from flaxformer_lab.training.loop import train

pytestmark = pytest.mark.usefixtures("own_parts")


@dataclasses.dataclass(frozen=True)
class ShiftConfig(ModelConfig):
    """Neither depth nor causal."""

    name: Literal["shift"] = "shift"
    width: AtLeastOne = 8
    bias: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["highest"] = "highest"


@dataclasses.dataclass(frozen=True)
class NarrowConfig(ModelConfig):
    name: Literal["narrow"] = "narrow"
    width: AtLeastOne = 8


class Shift(nnx.Module):
    """Each token becomes a map of the one before it."""

    def __init__(self, config, *, grid, rngs):
        del grid
        self.map = Dense(config.width, config.width, axes=("width", None), bias=False, rngs=rngs)

    def __call__(self, x, *, valid=None, keys=None, intermediates=DISABLED):
        del valid, keys, intermediates
        return self.map(jnp.roll(x, 1, axis=1) * (jnp.arange(x.shape[1]) > 0)[None, :, None])


@dataclasses.dataclass(frozen=True)
class DoubleConfig(TaskConfig):
    name: Literal["double"] = "double"
    features: AtLeastOne = 3
    embedding: Literal["dense"] = "dense"
    head: Literal["dense"] = "dense"
    evaluation_examples: AtLeastOne = 16


class Double(ContinuousProbe):
    """y = 2 x."""

    def __init__(self, config, metadata=None):
        super().__init__(config, metadata)
        self.tokens, self.features, self.outputs, self.variance = 4, config.features, config.features, 4.0

    def draw(self, key):
        x = jnp.ones((self.tokens, self.features))
        return x, 2 * x, jnp.ones((self.tokens,))


TINY = {
    "task": {"name": "double"},
    "model": {"name": "shift"},
    "training": {"steps": 2, "batch_size": 4, "evaluate_every": 2, "checkpoint_every": 2, "steps_per_call": 2},
    "parallelism": {"strategy": "single"},
}


def refusal(tree):
    with pytest.raises(ConfigError) as error:
        parse_config(tree)
    return str(error.value)


# -------------------------------------------------------------------------------------------------- registering


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (
            ("attention", "softmax"),
            {},
            r"flaxformer_lab\.modules\.attention\.core has one of this name; choose another",
        ),
        (("atention", "mine"), {}, r"register\('atention', 'mine'\): no such kind of part; choose from attention, ffn"),
        (("attention", "mine"), {"causl": True}, r"causl is no property: did you mean causal\?"),
        (("ffn", "mine"), {"windowed": True}, r"windowed is no property: .*choose from odd, affine, mixes_features"),
        (("dataset", "mine"), {"odd": True}, r"odd is no property: choose from none"),
        (("model", "mine"), {}, r"config=None; models and tasks, and no others, bring a frozen dataclass"),
        (("attention", "mine"), {"config": ShiftConfig}, r"config=ShiftConfig; models and tasks, and no others"),
        (("model", "mine"), {"config": ShiftConfig}, r'name: Literal\["mine"\] = "mine"'),
        (
            ("model", "narrow"),
            {"config": NarrowConfig},
            r"NarrowConfig lacks bias, dtype, precision, which every model has",
        ),
        (("model", "mine"), {"config": Shift}, r"config=Shift; models and tasks"),
        (("dataset", "mine"), {}, r"TFDS calls Part other_name; register it under that name"),
    ],
)
def test_what_cannot_be_registered_is_refused(arguments, options, message):
    with pytest.raises(ConfigError, match=message):
        register(*arguments, **options)(type("Part", (), {"name": "other_name"}))


def test_a_name_that_is_not_there_has_its_nearest():
    with pytest.raises(
        ConfigError, match=r"sofmax is no attention: did you mean softmax\? pass --import=FILE .* or choo"
    ):
        registry.lookup("attention", "sofmax")


def test_what_is_registered_can_be_named_and_what_is_not_says_where_it_may_be():
    tree = {"model": {"attention": {"kind": "mine"}}}
    assert "kind=mine is not a choice: did you mean linear or mean? pass --import=FILE where a file of" in refusal(tree)
    register("attention", "mine")(type("Mine", (MeanAttention,), {}))
    assert parse_config(tree).model.attention.kind == "mine"
    assert "frequency, wavelet, mine, off" in refusal({"model": {"attention": {"kind": "mime"}}})


@pytest.mark.parametrize(
    ("values", "every", "some"),
    [
        ((True, True), True, True),
        ((True, None), None, True),
        ((False, None), False, None),
        ((False, True), False, True),
    ],
)
def test_the_unknown_in_all_and_any(values, every, some):
    for order in (values, values[::-1]):
        assert registry.all_of(*order) is every
        assert registry.any_of(*order) is some


# ------------------------------------------------------------------------------------------------ importing files


def test_a_file_is_run_once_and_its_text_is_kept(tmp_path):
    file = tmp_path / "parts.py"
    text = """
from flaxformer_lab.modules.attention import MeanAttention
from flaxformer_lab.registry import register
@register("attention", "from_a_file")
class Mine(MeanAttention): pass
"""
    file.write_text(text)
    registry.import_parts(str(file))
    registry.import_parts(str(file))
    assert registry.names("attention")[-1] == "from_a_file"
    assert registry.imported_texts()[str(file)] == text


def test_a_file_that_python_has_imported_is_not_run_again(tmp_path, monkeypatch):
    (tmp_path / "lab_test_parts.py").write_text(
        "from flaxformer_lab import registry\nregistry.RUNS = registry.RUNS + 1\n"
    )
    monkeypatch.setattr(registry, "RUNS", 0, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    __import__("lab_test_parts")
    registry.import_parts(str(tmp_path / "lab_test_parts.py"))
    assert registry.RUNS == 1
    del sys.modules["lab_test_parts"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"--import=.*parts\.py cannot be read .*name a Python file that registers parts"),
        ("1 +", r"--import=.*parts\.py fails: SyntaxError"),
        ("import flaxformer_lab.nothing", r"--import=.*parts\.py fails: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)", r"--import=.*parts\.py fails: SystemExit: 3"),
        ("from flaxformer_lab.registry import register\nregister('ffn', 'mlp')(int)", r"fails: ConfigError: .*has one"),
    ],
)
def test_a_file_that_fails_says_so(tmp_path, text, message):
    if text is not None:
        (tmp_path / "parts.py").write_text(text)
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=message):
        registry.import_parts(str(tmp_path / "parts.py"))
    assert not any(name.startswith("imported_parts") for name in set(sys.modules) - before)


# --------------------------------------------------------------------- what is unknown proves nothing, and is said


UNKNOWN = {
    "attention": {"kind": "mine"},
    "ffn": {"kind": "off"},
    "norm": {"kind": "off"},
    "position": "off",
    "bias": False,
}
BARE = UNKNOWN | {"attention": {"kind": "mean"}}


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ({"name": "product", "order": 2}, UNKNOWN),
        ({"name": "product", "order": 3}, UNKNOWN),
        ({"name": "planted_interactions"}, UNKNOWN),
        ({"name": "rotation", "features": 64, "embedding": "identity", "head": "identity"}, UNKNOWN),
        ({"name": "pointers"}, BARE | {"depth": 1, "ffn": {"kind": "mine"}}),
        ({"name": "delay"}, BARE | {"attention": {"kind": "off"}, "ffn": {"kind": "mine"}}),
    ],
)
def test_an_unknown_part_gets_no_bound(task, model):
    register("attention", "mine")(type("Mine", (MeanAttention,), {}))
    register("ffn", "mine")(nnx.Module)
    known = {**model, "attention": {"kind": "mean"}, "ffn": {"kind": "mlp", "activation": "identity"}}
    if task["name"] == "rotation":  # where features stay apart
        apart = {"num_heads": 64, "projection": "diagonal", "output": "diagonal"}
        model, known = (each | {"attention": each["attention"] | apart} for each in (model, known))
        known["ffn"] = {"kind": "off"}
    if task["name"] == "delay":
        known["attention"] = {"kind": "off"}
    config, same = (parse_config({"task": task, "model": each}) for each in (model, known))
    assert make_task(same.task).bound(same.model) is not None
    assert make_task(config.task).bound(config.model) is None


def test_what_the_config_asks_of_an_unknown_part_is_refused():
    register("attention", "mine")(type("Mine", (MeanAttention,), {}))
    register("ffn", "mine")(nnx.Module)
    message = refusal({"model": {"attention": {"kind": "mine", "window": 2}}})
    assert "model.attention.kind=mine, which does not declare windowed=True" in message
    message = refusal({"model": {"attention": {"kind": "mine"}, "causal": True}})
    assert "model.attention.kind=mine does not declare causal=True, so it cannot be causal" in message
    message = refusal({"model": {"ffn": {"kind": "mine"}, "causal": True}})
    assert "model.ffn.kind=mine does not declare reach=0" in message
    register("model", "shift", config=ShiftConfig)(Shift)
    message = refusal({"model": {"name": "shift"}, "task": {"name": "language_modelling"}})
    assert "task.objective=next_token with model.name=shift does not declare causal=True" in message
    assert "only model.name=transformer can shard tokens" in refusal(
        {"model": {"name": "shift"}, "parallelism": {"mesh": {"sequence": 2}}}
    )


# ------------------------------------------------------------------------------------- a user's own model and task


@pytest.fixture
def shift(own_parts):
    register("model", "shift", config=ShiftConfig, causal=True, reach=1, odd=True)(Shift)
    register("task", "double", config=DoubleConfig)(Double)


@pytest.mark.usefixtures("shift")
def test_a_model_without_depth_has_its_own_theory():
    config = parse_config({"model": {"name": "shift"}}).model
    assert config == ShiftConfig()
    assert theory.is_odd(config, 4) and not theory.is_affine(config, 4)
    assert theory.mixes_features(config, 4) and theory.reach(config, 4) == 1
    far, near = (make_task(parse_config({"task": {"name": "delay", "distance": n}}).task) for n in (2, 1))
    assert far.bound(config).value == 0 and near.bound(config) is None


@pytest.mark.slow
@pytest.mark.usefixtures("shift")
def test_own_parts_train_load_and_are_measured(tmp_path, own_parts, run_command):
    config = parse_config(TINY)
    assert (
        parse_config(as_dict(config)) == config == dataclasses.replace(config, task=DoubleConfig(), model=ShiftConfig())
    )
    assert "unknown key task.order" in refusal(TINY | {"task": {"name": "double", "order": 2}})
    train(config, tmp_path / "run", quiet=True)
    loaded = load_run(tmp_path / "run")
    subject = loaded.subject(examples=2)
    assert left_out(subject) == {
        "attention": "model.name=shift does not declare whether it has_token_weights",
        "channels": "it does not forecast a series",
        "depth": "model.name=shift has no depth here",
        "head_importance": "model.name=shift has no attention heads here",
        "objects": "its examples do not say where objects are",
        "sight": "its inputs are no images",
    }
    values = measure(subject, ["symmetry", "cost"])
    assert values["oddness"] == pytest.approx(0, abs=1e-6) and values["parameters"] == 8 * 8 + 2 * 3 * 8
    with pytest.raises(MeasureError, match=r"attention does not apply .*does not declare whether it has_token_weights"):
        measure(subject, ["attention"])
    code, out, _ = run_command("flaxformer_lab.measure", f"--workdir={tmp_path / 'run'}", "--examples=2")
    assert code == 0
    assert any("left out: attention: model.name=shift does not declare" in line for line in out)

    own_parts()
    with pytest.raises(RunError, match=r"task\.name=double is not a choice: .*pass --import=FILE"):
        load_run(tmp_path / "run")


@pytest.mark.usefixtures("shift")
def test_a_causal_model_without_a_cache_decodes_by_reading_again(tmp_path):
    config = parse_config({"model": {"name": "shift"}, "task": {"name": "associative_recall"}})
    network = make_task(config.task).network(config.model)
    params, _ = jax.jit(network.init)(jax.random.key(0))
    symbols = jnp.arange(32)[None] % 64
    whole, _ = network.apply(params, {}, symbols)
    logits, cache = network.prefill(params, {}, symbols[:, :3], jnp.array([3]))
    np.testing.assert_allclose(logits, whole[:, 2], rtol=1e-5, atol=1e-6)
    logits, _ = network.decode(params, {}, symbols[:, 3], cache)
    np.testing.assert_allclose(logits, whole[:, 3], rtol=1e-5, atol=1e-6)


def test_weights_that_are_declared_but_not_offered_are_missed(tmp_path):
    register("model", "shift", config=ShiftConfig, causal=True, has_token_weights=True)(Shift)
    register("task", "double", config=DoubleConfig)(Double)
    train(parse_config(TINY), tmp_path / "run", quiet=True)
    subject = load_run(tmp_path / "run").subject(examples=2)
    with pytest.raises(MeasureError, match=r"model\.name=shift declares has_token_weights, but offers no intermediate"):
        measure(subject, ["attention"])


@pytest.mark.slow
def test_an_attention_kind_that_forgets_to_declare_its_weights_is_said_to(tmp_path):
    register("attention", "mine")(type("Mine", (SoftmaxAttention,), {}))
    tree = TINY | {"task": {"name": "delay", "tokens": 4, "evaluation_examples": 16}}
    model = {"width": 8, "depth": 1, "attention": {"num_heads": 2, "kind": "mine"}, "ffn": {"kind": "off"}}
    train(parse_config(tree | {"model": model}), tmp_path / "run", quiet=True)
    reasons = left_out(load_run(tmp_path / "run").subject(examples=2))
    assert reasons["attention"] == "attention.kind=mine does not declare whether it has_token_weights"


def test_a_data_set_of_ones_own(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    from flaxformer_lab.data.source import open_split

    monkeypatch.setenv("FLAXFORMER_LAB_CACHE", str(tmp_path))

    class OwnNumbers(tfds.core.GeneratorBasedBuilder):
        """Ten rows."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {"columns": tfds.features.Tensor(shape=(2,), dtype=np.float32), "label": np.int32}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((n, {"columns": np.full(2, n, np.float32), "label": n}) for n in range(10))

    register("dataset", "own_numbers")(OwnNumbers)
    parts = [open_split("own_numbers", split).load()["label"].tolist() for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [8, 1, 1] and sorted(n for part in parts for n in part) == list(range(10))
    assert (tmp_path / "datasets" / "own_numbers").is_dir()
