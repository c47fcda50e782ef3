"""The strict parser: what it accepts comes back as it was, and what it refuses it names."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer_lab.config import Config, as_dict, parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.model_config import (
    AttentionConfig,
    AutoIntConfig,
    ConvNeXtConfig,
    ConvolutionConfig,
    FactorizationMachineConfig,
    FieldProductsConfig,
    MixerConfig,
    MLPConfig,
    RecurrentConfig,
    ResNetConfig,
    TransformerConfig,
)
from flaxformer_lab.parsing import flatten, nearest, override
from flaxformer_lab.task_config import (
    AssociativeRecallConfig,
    ClickConfig,
    CompressionConfig,
    DelayConfig,
    ForecastingConfig,
    FuzzyRecallConfig,
    ImageClassificationConfig,
    InContextRecallConfig,
    LanguageModellingConfig,
    MarkedTokenConfig,
    MemorizationConfig,
    NearestConfig,
    NextBasketConfig,
    NoisyRecallConfig,
    PlantedCrossesConfig,
    PlantedInteractionsConfig,
    PointersConfig,
    ProductConfig,
    RotationConfig,
    ScaledLinearConfig,
    SceneClassificationConfig,
    SelectiveCopyConfig,
    TabularClassificationConfig,
    TabularRegressionConfig,
    TwoMarksConfig,
)

LANGUAGE = {"task": {"name": "language_modelling"}, "model": {"causal": True}}


def tree_of(keys, base=None):
    """A nested mapping from dotted keys."""
    tree = dict(base or {})
    for key, value in keys.items():
        tree = override(tree, key, value)
    return tree


def message_of(tree):
    with pytest.raises(ConfigError) as error:
        parse_config(tree)
    assert error.value.exit_code == 2
    message = str(error.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------------------- what is accepted


def test_defaults():
    config = parse_config({})
    assert config == Config()
    assert (config.seed, config.model.width, config.model.head_dim, config.task.name) == (
        0,
        64,
        16,
        "image_classification",
    )


EVERYTHING = tree_of(
    {
        "seed": 7,
        "task.name": "language_modelling",
        "task.dataset": "another",
        "task.tokenizer": "bytes",
        "task.objective": "masked",
        "task.sequence_length": 32,
        "task.mask_rate": 0.3,
        "model.width": 24,
        "model.depth": 2,
        "model.attention.kind": "static",
        "model.attention.num_heads": 3,
        "model.attention.head_dim": 5,
        "model.attention.num_kv_heads": 3,
        "model.attention.window": 9,
        "model.attention.slopes": "minimax",
        "model.attention.activation": "silu",
        "model.attention.norm": "srmsnorm",
        "model.attention.gate": True,
        "model.attention.block_size": 12,
        "model.attention.rank": 5,
        "model.attention.cross_kind": "linear",
        "model.attention.factor": 2.0,
        "model.attention.modes": 7,
        "model.attention.mode_selection": "lowest",
        "model.attention.wavelet_order": 3,
        "model.attention.wavelet_channels": 4,
        "model.ffn.projection": "low_rank",
        "model.ffn.block_size": 6,
        "model.ffn.rank": 3,
        "model.ffn.kind": "gated",
        "model.ffn.activation": "silu",
        "model.ffn.expansion": 2.5,
        "model.norm.kind": "rmsnorm",
        "model.norm.placement": "post",
        "model.norm.outer": "end",
        "model.norm.epsilon": 1e-5,
        "model.skip.attention": False,
        "model.skip.ffn": False,
        "model.position": "rotary",
        "model.bias": False,
        "model.dropout": 0.1,
        "model.dtype": "bfloat16",
        "model.remat": True,
        "model.remat_policy": "dots",
        "model.precision": "high",
        "model.attention.rotary_base": 500.0,
        "model.attention.rotary_share": 0.5,
        "optimizer.name": "adamw",
        "optimizer.scaling": "mup",
        "optimizer.base_fan_in": 16,
        "optimizer.learning_rate": 0.1,
        "optimizer.schedule": "linear",
        "optimizer.warmup_steps": 3,
        "optimizer.weight_decay": 0.2,
        "optimizer.clip_norm": 2.0,
        "optimizer.beta1": 0.5,
        "optimizer.beta2": 0.6,
        "training.steps": 11,
        "training.batch_size": 12,
        "training.accumulate": 2,
        "training.loss_chunk": 9,
        "training.evaluate_every": 3,
        "training.evaluate_batch_size": 4,
        "training.checkpoint_every": 5,
        "training.keep_last": 6,
        "training.keep_best": 0,
        "training.steps_per_call": 7,
        "training.input": "stream",
        "training.deterministic": False,
        "training.init_from": "runs/first",
        "training.init_only": ["body"],
        "training.train_only": ["head"],
        "training.lora_rank": 2,
        "parallelism.strategy": "mesh",
        "parallelism.mesh.data": 2,
        "parallelism.mesh.fsdp": 4,
        "parallelism.mesh.sequence": 5,
        "parallelism.mesh.tensor": 3,
    }
)


def test_every_key_that_is_given_is_kept():
    flat, given = flatten(as_dict(parse_config(EVERYTHING))), flatten(EVERYTHING)
    assert {key: flat[key] for key in given} == given
    defaults = flatten(as_dict(Config(task=LanguageModellingConfig())))
    unchanged = {key for key, value in defaults.items() if given.get(key, value) == value}
    assert unchanged == {
        "task.name",
        "task.feature",
        "model.name",
        "model.attention.projection",
        "model.attention.output",
        "model.attention.mix_axes",
        "model.attention.residual_scores",
        "model.causal",
        "model.parallel",
        "optimizer.name",
    }


@pytest.mark.parametrize("tree", [{}, LANGUAGE, EVERYTHING], ids=["defaults", "language", "everything"])
def test_round_trip_also_through_json(tree):
    config = parse_config(tree)
    assert parse_config(as_dict(config)) == config
    assert parse_config(json.loads(json.dumps(as_dict(config)))) == config


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    heads=st.integers(1, 8),
    head_dim=st.none() | st.integers(1, 16).map(lambda half: 2 * half),
    rate=st.floats(1e-12, 1e12),
    dropout=st.floats(0, 1, exclude_max=True),
    clip=st.none() | st.floats(1e-6, 1e6),
    bias=st.booleans(),
)
def test_the_text_of_a_command_line_means_the_same_as_the_value(seed, heads, head_dim, rate, dropout, clip, bias):
    values = {
        "seed": seed,
        "model.width": 840,
        "model.attention.num_heads": heads,
        "model.attention.head_dim": head_dim,
        "model.dropout": dropout,
        "model.bias": bias,
        "optimizer.learning_rate": rate,
        "optimizer.clip_norm": clip,
    }
    config = parse_config(tree_of(values))
    assert parse_config(tree_of({key: str(value) for key, value in values.items()})) == config
    assert parse_config(as_dict(config)) == config
    assert config.model.head_dim == (head_dim or 840 // heads)
    assert config.optimizer.learning_rate == rate


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("False", False), ("TRUE", True), (True, True)],
)
def test_ways_to_say_true_and_false(text, value):
    assert parse_config({"model": {"bias": text}}).model.bias is value


@pytest.mark.parametrize("text", ["none", "None", None])
def test_ways_to_say_none(text):
    assert parse_config({"model": {"attention": {"head_dim": text}}}).model.attention.head_dim is None


def test_a_whole_number_may_stand_for_a_fraction():
    rate = parse_config({"optimizer": {"learning_rate": 1, "clip_norm": "2"}}).optimizer
    assert (rate.learning_rate, rate.clip_norm) == (1.0, 2.0)
    assert isinstance(rate.learning_rate, float)


def test_the_name_of_a_task_chooses_its_keys():
    assert isinstance(parse_config({}).task, ImageClassificationConfig)
    assert isinstance(parse_config(LANGUAGE).task, LanguageModellingConfig)


MODELS = {
    "transformer": TransformerConfig,
    "mlp": MLPConfig,
    "factorization_machine": FactorizationMachineConfig,
    "cnn_1d": ConvolutionConfig,
    "cnn_2d": ConvolutionConfig,
    "lstm": RecurrentConfig,
    "gru": RecurrentConfig,
    "mixer": MixerConfig,
    "resnet": ResNetConfig,
    "convnext": ConvNeXtConfig,
    "field_products": FieldProductsConfig,
    "autoint": AutoIntConfig,
}

TASKS = {
    "image_classification": ImageClassificationConfig,
    "tabular_classification": TabularClassificationConfig,
    "tabular_regression": TabularRegressionConfig,
    "forecasting": ForecastingConfig,
    "click": ClickConfig,
    "planted_crosses": PlantedCrossesConfig,
    "product": ProductConfig,
    "rotation": RotationConfig,
    "pointers": PointersConfig,
    "nearest": NearestConfig,
    "scaled_linear": ScaledLinearConfig,
    "planted_interactions": PlantedInteractionsConfig,
    "delay": DelayConfig,
    "marked_token": MarkedTokenConfig,
    "two_marks": TwoMarksConfig,
    "scene_classification": SceneClassificationConfig,
    "associative_recall": AssociativeRecallConfig,
    "selective_copy": SelectiveCopyConfig,
    "compression": CompressionConfig,
    "memorization": MemorizationConfig,
}

CAUSAL_TASKS = {
    "language_modelling": LanguageModellingConfig,
    "in_context_recall": InContextRecallConfig,
    "fuzzy_recall": FuzzyRecallConfig,
    "noisy_recall": NoisyRecallConfig,
    "next_basket": NextBasketConfig,
}


def choices(key):
    """The names that the refusal of another one offers."""
    return set(message_of(tree_of({key: "no such name"})).partition("choose from ")[2].split(", "))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_by_its_name_alone(name):
    config = parse_config({"model": {"name": name}})
    assert config == Config(model=MODELS[name](name=name))
    assert parse_config(json.loads(json.dumps(as_dict(config)))) == config


@pytest.mark.parametrize("name", [*TASKS, *CAUSAL_TASKS])
def test_every_task_by_its_name_alone(name):
    causal = name in CAUSAL_TASKS
    config = parse_config({"task": {"name": name}, "model": {"causal": causal}})
    assert config.task == (TASKS | CAUSAL_TASKS)[name]()
    assert (config.task.name, config.task.causal) == (name, True if causal else None)
    assert parse_config(json.loads(json.dumps(as_dict(config)))) == config


def test_no_other_models_and_tasks_are_offered():
    assert choices("model.name") == {*MODELS, "encoder_decoder", "autoformer", "timemixer"}
    assert choices("task.name") == {*TASKS, *CAUSAL_TASKS, "detection", "pretrained", "scenes"}


@pytest.mark.parametrize(
    ("model", "causal"),
    [("transformer", False), ("cnn_1d", False), ("mixer", False), ("lstm", True), ("gru", True), ("mlp", True)],
)
def test_models_say_whether_they_are_causal(model, causal):
    assert parse_config({"model": {"name": model}}).model.causal is causal


@pytest.mark.parametrize(
    ("task", "model"),
    [
        ({"name": "language_modelling"}, {"name": "lstm"}),
        ({"name": "language_modelling"}, {"name": "cnn_1d", "causal": True}),
        ({"name": "language_modelling", "objective": "masked"}, {"name": "mixer"}),
        ({"name": "in_context_recall"}, {"name": "mlp"}),
        ({"name": "image_classification"}, {"name": "cnn_2d"}),
        ({"name": "image_classification", "pooling": "class_token"}, {"name": "mixer"}),
        ({"name": "delay"}, {"name": "cnn_1d", "causal": True}),
        ({"name": "delay", "tokens": 5, "distance": 4}, {"name": "gru"}),
        ({"name": "product", "features": 3, "order": 3}, {"name": "factorization_machine"}),
        ({"name": "pointers", "tokens": 3, "pointers": 3}, {"name": "mixer"}),
        ({"name": "associative_recall", "sequence_length": 8, "pairs": 2, "vocabulary": 6}, {}),
        ({"name": "selective_copy", "sequence_length": 10, "copies": 4}, {}),
        ({"name": "noisy_recall", "vocabulary": 20, "noise_vocabulary": 16}, {"name": "gru"}),
        ({"name": "memorization", "training_examples": "none"}, {}),
    ],
    ids=str,
)
def test_tasks_and_models_that_fit(task, model):
    config = parse_config({"task": task, "model": model})
    assert config.task.name == task["name"]
    assert config.model.name == model.get("name", "transformer")


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().seed = 1


def test_limits_that_are_still_allowed():
    flat = {
        "seed": 2**32 - 1,
        "model.depth": 0,
        "model.attention.kind": "off",
        "model.ffn.kind": "off",
        "model.dropout": 0.0,
        "optimizer.warmup_steps": 1000,
        "training.accumulate": 64,
        "training.keep_best": 0,
    }
    assert parse_config(tree_of(flat)).model.depth == 0
    rotary = {"model.position": "rotary", "model.attention.kind": "mean", "model.attention.head_dim": 3}
    assert parse_config(tree_of(rotary)).model.head_dim == 3
    assert parse_config(tree_of({"model.width": 7, "model.attention.num_heads": 7})).model.head_dim == 1


# ------------------------------------------------------------------------------------------- what is refused

UNKNOWN = [
    ("modle", {}, ["unknown key modle", "did you mean model?", "config has seed, task, model, optimizer"]),
    (
        "learning_rate",
        1,
        ["unknown key learning_rate (value 1): did you mean optimizer.learning_rate? config has seed"],
    ),
    ("task.patchsize", 2, ["unknown key task.patchsize (value 2)", "did you mean patch_size", "task has name"]),
    (
        "model.num_heads",
        4,
        ["unknown key model.num_heads (value 4): did you mean model.attention.num_heads? model has name, width, depth"],
    ),
    ("model.attention.heads", 4, ["unknown key model.attention.heads", "did you mean num_heads"]),
    ("model.ffn.activations", "relu", ["unknown key model.ffn.activations", "did you mean activation?", "expansion"]),
    ("model.norm.eps", 1e-5, ["unknown key model.norm.eps", "did you mean epsilon?", "model.norm has kind"]),
    ("model.skip.atention", True, ["unknown key model.skip.atention", "did you mean attention?"]),
    ("optimizer.lr", 1, ["unknown key optimizer.lr", "did you mean learning_rate? optimizer has name, learning_rate"]),
    ("lr", 1, ["unknown key lr", "did you mean optimizer.learning_rate? config has seed"]),
    ("n_layers", 1, ["unknown key n_layers", "did you mean model.depth"]),
    ("training.lr", 1, ["unknown key training.lr", "did you mean optimizer.learning_rate? training has steps"]),
    ("training.step", 1, ["unknown key training.step", "did you mean steps"]),
    ("parallelism.stratgy", "pmap", ["unknown key parallelism.stratgy", "did you mean strategy?"]),
    ("parallelism.mesh", 2, ["parallelism.mesh=2 must be a group of keys: data, fsdp, sequence, tensor"]),
    (
        "task.sequence_length",
        8,
        ["did you mean task.sequence_length (of task.name=language_modelling)? task has name, dataset", "patch_size"],
    ),
]

OF_ANOTHER = [
    (
        {"model.name": "lstm", "model.attention.kind": "softmax"},
        ["unknown key model.attention", "model has name, width, depth, bias, dtype, precision where model.name=lstm"],
    ),
    ({"model.name": "cnn_2d", "model.dropout": 0.1}, ["unknown key model.dropout", "where model.name=cnn_2d"]),
    ({"model.name": "mlp", "model.causal": True}, ["unknown key model.causal (value True)", "where model.name=mlp"]),
    (
        {"model.name": "factorization_machine", "model.depth": 2},
        ["unknown key model.depth", "name, width, bias, dtype, precision"],
    ),
    ({"model.kernel_size": 3}, ["unknown key model.kernel_size", "where model.name=transformer"]),
    ({"model.token_hidden": 3}, ["unknown key model.token_hidden", "where model.name=transformer"]),
    ({"task.name": "delay", "task.order": 3}, ["unknown key task.order", "distance where task.name=delay"]),
    ({"task.name": "nearest", "task.vocabulary": 3}, ["unknown key task.vocabulary", "where task.name=nearest"]),
    ({"task.pairs": 3}, ["unknown key task.pairs", "where task.name=image_classification"]),
]


@pytest.mark.parametrize(("keys", "fragments"), OF_ANOTHER, ids=str)
def test_a_key_of_another_model_or_task_is_named_with_the_name_that_lacks_it(keys, fragments):
    message = message_of(tree_of(keys))
    for fragment in fragments:
        assert fragment in message


def test_a_dataclass_of_another_kind_is_no_model():
    with pytest.raises(
        ConfigError, match=r"model=ImageClassificationConfig.* must be a group of keys; set model\.name"
    ):
        parse_config({"model": ImageClassificationConfig()})
    assert parse_config({"model": RecurrentConfig(name="gru")}).model == RecurrentConfig(name="gru")


TYPES = [
    ("seed", 1.0, ["seed=1.0", "must be a whole number"]),
    ("seed", True, ["seed=True", "must be a whole number"]),
    ("model.width", "wide", ["model.width='wide'", "must be a whole number"]),
    ("model.width", "64.0", ["model.width='64.0'", "must be a whole number"]),
    ("model.width", None, ["model.width=None", "must be a whole number"]),
    ("model.width", [64], ["model.width=[64]", "must be a whole number"]),
    ("model.attention.head_dim", "half", ["model.attention.head_dim='half'", "must be a whole number"]),
    ("model.bias", 1, ["model.bias=1", "must be true or false"]),
    ("model.bias", "yes", ["model.bias='yes'", "must be true or false"]),
    ("model.dropout", "much", ["model.dropout='much'", "must be a finite number"]),
    ("model.attention.kind", ["softmax"], ["model.attention.kind=['softmax'] is not a choice", "choose from softmax"]),
    ("model", 64, ["model=64 must be a group of keys", "set model.name to one of transformer, mlp"]),
    ("model.attention", "softmax", ["model.attention='softmax' must be a group of keys", "kind, num_heads"]),
    ("model", None, ["model=None must be a group of keys", "set model.name to one of transformer, mlp"]),
    ("model", "lstm", ["model='lstm' must be a group of keys; set model.name to one of", "cnn_2d, lstm, gru, mixer"]),
    ("model.name", None, ["model.name=None is not a choice", "choose from transformer, mlp"]),
    ("task", "language_modelling", ["task='language_modelling' must be a group of keys", "image_classification"]),
    ("task.dataset", 3, ["task.dataset=3", "must be a text"]),
    ("task.dataset", None, ["task.dataset=None", "must be a text"]),
    ("optimizer", None, ["optimizer=None must be a group of keys", "name, learning_rate"]),
]

RANGES = [
    ("seed", -1, ["seed=-1", "must be at least 0 and below 2**32"]),
    ("seed", 2**32, ["seed=4294967296", "below 2**32"]),
    ("task.dataset", " ", ["task.dataset=", "must not be empty"]),
    ("task.patch_size", 0, ["task.patch_size=0", "must be at least 1"]),
    ("task.shift", -1, ["task.shift=-1", "must not be negative"]),
    ("model.width", 0, ["model.width=0", "must be at least 1"]),
    ("model.width", -64, ["model.width=-64", "must be at least 1"]),
    ("model.depth", -1, ["model.depth=-1", "must not be negative"]),
    ("model.depth", 1001, ["model.depth=1001", "must be at most 1000"]),
    ("model.attention.num_heads", 0, ["model.attention.num_heads=0", "must be at least 1"]),
    ("model.attention.head_dim", 0, ["model.attention.head_dim=0", "must be at least 1"]),
    ("model.attention.num_kv_heads", 0, ["model.attention.num_kv_heads=0", "must be at least 1"]),
    ("model.attention.window", 0, ["model.attention.window=0", "must be at least 1"]),
    ("model.ffn.expansion", 0, ["model.ffn.expansion=0", "must be above 0"]),
    ("model.norm.epsilon", 0.0, ["model.norm.epsilon=0.0", "must be above 0"]),
    ("model.dropout", 1, ["model.dropout=1", "must be at least 0 and below 1"]),
    ("model.dropout", -0.1, ["model.dropout=-0.1", "must be at least 0 and below 1"]),
    ("optimizer.learning_rate", 0, ["optimizer.learning_rate=0", "must be above 0"]),
    ("optimizer.learning_rate", math.nan, ["optimizer.learning_rate=nan", "must be a finite number"]),
    ("optimizer.learning_rate", "inf", ["optimizer.learning_rate='inf'", "must be a finite number"]),
    ("optimizer.learning_rate", 10**400, ["optimizer.learning_rate=1000", "must be a finite number"]),
    ("optimizer.weight_decay", -1e-3, ["optimizer.weight_decay=-0.001", "must not be negative"]),
    ("optimizer.clip_norm", 0, ["optimizer.clip_norm=0", "must be above 0"]),
    ("optimizer.beta1", 1.0, ["optimizer.beta1=1.0", "must be at least 0 and below 1"]),
    ("optimizer.warmup_steps", -1, ["optimizer.warmup_steps=-1", "must not be negative"]),
    ("training.steps", 0, ["training.steps=0", "must be at least 1"]),
    ("training.batch_size", "-8", ["training.batch_size=-8", "must be at least 1"]),
    ("training.keep_last", 0, ["training.keep_last=0", "must be at least 1"]),
]

CHOICES = [
    ("task.name", "images", ["task.name=images is not a choice", "image_classification, tabular_classification"]),
    ("task.name", 3, ["task.name=3 is not a choice", "image_classification, tabular_classification"]),
    ("task.pooling", "max", ["task.pooling=max is not a choice", "choose from mean, class_token"]),
    ("task.name", "associative", ["task.name=associative", "did you mean associative_recall"]),
    ("model.name", "cnn", ["model.name=cnn is not a choice", "did you mean cnn_", "lstm, gru, mixer"]),
    ("model.name", "rnn", ["model.name=rnn is not a choice", "transformer, mlp, factorization_machine, cnn_1d"]),
    ("model.attention.kind", "lineal", ["model.attention.kind=lineal is not a choice", "softmax, linear, lightning"]),
    (
        "model.attention.slopes",
        "alibi",
        ["model.attention.slopes=alibi is not a choice", "transnormer, minimax"],
    ),
    ("model.attention.norm", "rms", ["model.attention.norm=rms", "did you mean rmsnorm", "srmsnorm, off"]),
    ("model.attention.kind", "sofmax", ["model.attention.kind=sofmax", "did you mean softmax?", "wavelet, off"]),
    ("model.attention.projection", "off", ["model.attention.projection=off is not a choice", "diagonal, identity"]),
    ("model.ffn.kind", "none", ["model.ffn.kind=none is not a choice", "mlp, gated, bilinear, diagonal, off"]),
    ("model.ffn.activation", "swish", ["model.ffn.activation=swish is not a choice", "silu", "identity"]),
    (
        "model.norm.kind",
        "groupnorm",
        ["model.norm.kind=groupnorm", "did you mean", "rmsnorm, srmsnorm, batchnorm, off"],
    ),
    ("model.norm.placement", "middle", ["model.norm.placement=middle is not a choice", "pre, post"]),
    (
        "model.position",
        "relative",
        ["model.position=relative is not a choice", "learned, uniform, sinusoidal, rotary, off"],
    ),
    ("model.dtype", "float16", ["model.dtype=float16", "did you mean", "float32, bfloat16"]),
    ("optimizer.name", "adam", ["optimizer.name=adam", "did you mean adamw?", "adamw, muon, sgd"]),
    ("optimizer.schedule", "cosin", ["optimizer.schedule=cosin", "did you mean cosine?"]),
    ("training.input", "disk", ["training.input=disk is not a choice", "auto, device, stream"]),
    ("parallelism.strategy", "shard", ["parallelism.strategy=shard is not a choice", "auto, single, pmap, mesh"]),
    ("parallelism.mesh.fsdp", 0, ["parallelism.mesh.fsdp=0"]),
    (
        "parallelism.mesh.model",
        2,
        ["unknown key parallelism.mesh.model", "parallelism.mesh has data, fsdp, "],
    ),
]


@pytest.mark.parametrize(
    ("key", "value", "fragments"),
    [*UNKNOWN, *TYPES, *RANGES, *CHOICES],
    ids=lambda value: str(value)[:40] if not isinstance(value, list) else "",
)
def test_a_bad_value_is_named_with_its_key_its_rule_and_the_way_out(key, value, fragments):
    message = message_of(tree_of({key: value}))
    for fragment in fragments:
        assert fragment in message


OWN = [
    ("cnn_1d", "kernel_size", 0, "must be at least 1"),
    ("cnn_1d", "norm.kind", "groupnorm", "is not a choice: did you mean"),
    ("cnn_2d", "activation", "swish", "is not a choice"),
    ("lstm", "depth", -1, "must not be negative"),
    ("gru", "width", 0, "must be at least 1"),
    ("mlp", "bias", "maybe", "must be true or false"),
    ("mixer", "token_hidden", 0, "must be at least 1"),
    ("mixer", "expansion", 0, "must be above 0"),
    ("product", "order", 1, "must be at least 2"),
    ("rotation", "features", 1, "must be at least 2"),
    ("rotation", "rotation", "turn", "is not a choice: choose from shift, random"),
    ("rotation", "embedding", "diagonal", "choose from dense, identity"),
    ("nearest", "log_scale", 5, "must be from 0 to 4"),
    ("nearest", "log_scale", -1, "must be from 0 to 4"),
    ("nearest", "tokens", 1, "must be at least 2"),
    ("scaled_linear", "scale", 0, "must be above 0"),
    ("planted_interactions", "interaction_share", 1.1, "must be from 0 to 1"),
    ("delay", "distance", 0, "must be at least 1"),
    ("associative_recall", "power", 0, "must be above 0 and at most 1"),
    ("associative_recall", "power", 2, "must be above 0 and at most 1"),
    ("in_context_recall", "vocabulary", 3, "must be at least 4"),
    ("fuzzy_recall", "vocabulary", 3, "must be at least 4"),
    ("fuzzy_recall", "motif", 0, "must be at least 1"),
    ("noisy_recall", "noise", 1, "must be at least 0 and below 1"),
    ("selective_copy", "vocabulary", 2, "must be at least 3"),
    ("memorization", "vocabulary", 2, "must be at least 3"),
    ("memorization", "training_examples", 0, "must be at least 1"),
    ("compression", "evaluation_examples", 0, "must be at least 1"),
]


@pytest.mark.parametrize(("name", "key", "value", "rule"), OWN, ids=str)
def test_a_bad_value_of_a_model_or_task_that_a_name_chose(name, key, value, rule):
    group = "model" if name in MODELS else "task"
    message = message_of(tree_of({f"{group}.name": name, f"{group}.{key}": value}))
    assert f"{group}.{key}={value}" in message.replace("'", "")
    assert rule in message


CONTRADICTIONS = {
    "scores that are added where tokens are halved": (
        {"model.name": "encoder_decoder", "model.distil": True, "model.attention.residual_scores": True},
        ["model.attention.residual_scores=true with model.distil=true", "set one of them to false"],
    ),
    **{
        f"{knob} of autoformer": (
            {"model.name": "autoformer", f"model.{knob}": value},
            [f"model.{knob}={str(value).lower()} with model.name=autoformer, whose blocks do not read it; leave it at"],
        )
        for knob, value in {
            "masked": True,
            "self_attention": False,
            "norm.placement": "post",
            "norm.outer": "end",
            "attention.residual_scores": True,
        }.items()
    },
    "heads that do not divide": (
        {"model.attention.num_heads": 5},
        [
            "model.attention.num_heads=5 does not divide model.width=64",
            "set model.attention.head_dim or choose one of 1, 2, 4, 8, 16, 32, 64",
        ],
    ),
    "more heads than features": (
        {"model.width": 2, "model.attention.num_heads": 4},
        ["model.attention.num_heads=4 does not divide model.width=2", "choose one of 1, 2"],
    ),
    "heads that devices cannot share": (
        {"model.attention.num_heads": 4, "model.attention.num_kv_heads": 2, "parallelism.mesh.tensor": 4},
        ["parallelism.mesh.tensor=4 does not divide the 2 heads of keys and values", "choose a divisor"],
    ),
    "nothing left": (
        {"model.attention.kind": "off", "model.ffn.kind": "off"},
        ["model.attention.kind=off and model.ffn.kind=off leave every block empty", "keep one", "model.depth=0"],
    ),
    "rates by fan-in for another rule than AdamW": (
        {"optimizer.scaling": "mup", "optimizer.name": "muon"},
        ["optimizer.scaling=mup scales the rates of AdamW", "optimizer.name=muon", "set optimizer.name=adamw"],
    ),
    "shared heads that do not divide": (
        {"model.attention.num_heads": 4, "model.attention.num_kv_heads": 3},
        [
            "model.attention.num_kv_heads=3 does not divide model.attention.num_heads=4",
            "choose one of 1, 2, 4, or none",
        ],
    ),
    "blocks that do not divide": (
        {"model.attention.projection": "block", "model.attention.block_size": 24},
        ["model.attention.block_size=24", "divide 64 features (model.width) and 64 merged heads", "one of 1, 2, 4, 8"],
    ),
    "blocks that no shuffle joins": (
        {"model.ffn.projection": "monarch", "model.ffn.expansion": 1.5, "model.ffn.block_size": 64},
        ["model.ffn.block_size=64 with model.ffn.projection=monarch", "64 features (model.width) and 96 hidden units"],
    ),
    "a rank above the full one": (
        {"model.ffn.projection": "low_rank", "model.ffn.rank": 65},
        ["model.ffn.rank=65 with model.ffn.projection=low_rank", "choose at most 64"],
    ),
    "a Hadamard matrix that is not square": (
        {"model.ffn.projection": "hadamard"},
        ["model.ffn.projection=hadamard is a square matrix", "64 features (model.width) and 256 hidden units"],
    ),
    "a Hadamard matrix of another size": (
        {"model.width": 48, "model.attention.output": "hadamard"},
        ["model.attention.output=hadamard", "size is a power of two"],
    ),
    "a Fourier matrix that is not square": (
        {"model.ffn.projection": "fourier"},
        ["model.ffn.projection=fourier is a square matrix", "64 features (model.width) and 256 hidden units"],
    ),
    "shared heads without a dense projection": (
        {"model.attention.num_kv_heads": 1, "model.attention.projection": "diagonal"},
        ["model.attention.projection=diagonal", "not model.attention.num_kv_heads=1", "set it to none or choose dense"],
    ),
    **{
        f"a window of {kind} attention": (
            {"model.attention.window": 5, "model.attention.kind": kind},
            [
                f"model.attention.window=5 with model.attention.kind={kind}",
                "none or choose softmax, mean, static or random",
            ],
        )
        for kind in ("linear", "lightning", "channel")
    },
    **{
        f"{key} {value} that changes the width": (
            {f"model.attention.{key}": value, "model.attention.head_dim": 8},
            [
                f"model.attention.{key}={value}",
                "num_heads x head_dim must equal model.width=64, not 4 x 8 = 32",
                "set model.attention.head_dim to none or change num_heads",
            ],
        )
        for key, value in (
            ("projection", "diagonal"),
            ("projection", "identity"),
            ("output", "diagonal"),
            ("output", "identity"),
            ("output", "off"),
        )
    },
    **{
        f"an encoder-decoder of {kind} attention": (
            {"model.name": "encoder_decoder", "model.attention.kind": kind},
            [f"model.attention.kind={kind} cannot attend to another sequence", "choose softmax, linear, probsparse"],
        )
        for kind in ("off", "mean")
    },
    "channel attention and causal": (
        {"model.attention.kind": "channel", "model.causal": True},
        [
            "model.attention.kind=channel",
            "cannot be causal",
            "set model.causal=false",
            "softmax, linear, lightning, mean, static or random",
        ],
    ),
    "rotary and odd heads": (
        {"model.position": "rotary", "model.attention.head_dim": 3},
        ["model.position=rotary", "head_dim=3 must be even", "choose another num_heads or head_dim"],
    ),
    "rotary and odd heads in channel attention": (
        {"model.position": "rotary", "model.attention.kind": "channel", "model.attention.num_heads": 64},
        ["model.position=rotary", "head_dim=1 must be even"],
    ),
    "parallel parts of which one is dropped": (
        {"model.parallel": True, "model.skip.ffn": False},
        ["model.parallel=true with model.skip.ffn=false", "take the place of attention's", "set model.skip.ffn=true"],
    ),
    "a norm between parallel parts": (
        {"model.parallel": True, "model.norm.placement": "post"},
        ["model.parallel=true with model.norm.placement=post", "set model.norm.placement=pre"],
    ),
    "sinusoidal and odd width": (
        {"model.position": "sinusoidal", "model.width": 63, "model.attention.num_heads": 1},
        ["model.position=sinusoidal", "model.width=63 must be even", "choose an even width, or position learned"],
    ),
    "sinusoidal and odd width without attention": (
        {
            "model.position": "sinusoidal",
            "model.width": 63,
            "model.attention.num_heads": 1,
            "model.attention.kind": "off",
        },
        ["model.position=sinusoidal", "model.width=63 must be even"],
    ),
    "next token without causality": (
        {"task.name": "language_modelling", "model.causal": False},
        ["task.objective=next_token with model.causal=false", "see the one that it must predict", "model.causal=true"],
    ),
    "masked with causality": (
        {"task.name": "language_modelling", "task.objective": "masked", "model.causal": True},
        ["task.objective=masked with model.causal=true", "hides what follows a token", "set model.causal=false"],
    ),
    "mask rate of 1": (
        {"task.name": "language_modelling", "task.mask_rate": 1, "model.causal": True},
        ["task.mask_rate=1", "must be above 0 and below 1"],
    ),
    "class token that sees nothing by causality": (
        {"task.pooling": "class_token", "model.causal": True},
        ["task.pooling=class_token with model.causal=true", "hides the image", "set task.pooling=mean"],
    ),
    "class token that sees nothing without attention": (
        {"task.pooling": "class_token", "model.attention.kind": "off"},
        ["task.pooling=class_token with model.attention.kind=off", "hides the image", "set task.pooling=mean"],
    ),
    "class token that comes first in a recurrence": (
        {"task.pooling": "class_token", "model.name": "lstm"},
        ["task.pooling=class_token with model.name=lstm", "hides the image", "set task.pooling=mean"],
    ),
    "class token beyond the reach of a convolution": (
        {"task.pooling": "class_token", "model.name": "cnn_1d"},
        ["task.pooling=class_token with model.name=cnn_1d", "hides the image", "set task.pooling=mean"],
    ),
    "class token without a place in the grid": (
        {"task.pooling": "class_token", "model.name": "cnn_2d"},
        ["task.pooling=class_token with model.name=cnn_2d", "set task.pooling=mean"],
    ),
    "next token with convolutions that look ahead": (
        {"task.name": "language_modelling", "model.name": "cnn_1d"},
        ["task.objective=next_token with model.causal=false", "must predict", "set model.causal=true"],
    ),
    "masked with a recurrence": (
        {"task.name": "language_modelling", "task.objective": "masked", "model.name": "gru"},
        ["task.objective=masked with model.name=gru hides what follows a token", "choose another model.name"],
    ),
    "recall with a mixer": (
        {"task.name": "in_context_recall", "model.name": "mixer"},
        ["task.name=in_context_recall with model.name=mixer", "must predict", "choose another model.name"],
    ),
    "recall without causality": (
        {"task.name": "fuzzy_recall"},
        ["task.name=fuzzy_recall with model.causal=false", "must predict", "set model.causal=true"],
    ),
    "grid with causality": (
        {"model.name": "cnn_2d", "model.causal": True},
        [
            "model.causal=true with model.name=cnn_2d",
            "no before and after",
            "set model.causal=false or model.name=cnn_1d",
        ],
    ),
    "grid with dilation": (
        {"model.name": "cnn_2d", "model.dilation": 2},
        ["model.dilation=2 with model.name=cnn_2d", "only a sequence is dilated", "set model.dilation=1"],
    ),
    "grid for a probe": (
        {"task.name": "delay", "model.name": "cnn_2d"},
        ["model.name=cnn_2d needs a grid of patches, which task.name=delay has not", "set model.name=cnn_1d"],
    ),
    "grid for a text": (
        {"task.name": "language_modelling", "model.name": "cnn_2d"},
        ["model.name=cnn_2d needs a grid of patches, which task.name=language_modelling has not"],
    ),
    "product of more than there is": (
        {"task.name": "product", "task.features": 3, "task.order": 4},
        ["task.order=4 multiplies more features than task.features=3", "lower the one or raise the other"],
    ),
    "more pointers than tokens": (
        {"task.name": "pointers", "task.tokens": 3},
        ["task.pointers=4 distinct ones", "task.tokens=3", "lower the one or raise the other"],
    ),
    "delay past the first token": (
        {"task.name": "delay", "task.distance": 16},
        ["task.distance=16 reaches past the first of task.tokens=16", "choose at most 15"],
    ),
    "marked token past the first": (
        {"task.name": "marked_token", "task.tokens": 8},
        ["task.distance=32 reaches past the first of task.tokens=8", "choose at most 7"],
    ),
    "more pairs than a sequence holds": (
        {"task.name": "associative_recall", "task.pairs": 9},
        ["task.pairs=9 need 36 tokens", "task.sequence_length=32", "lower the one or raise the other"],
    ),
    "more pairs than keys": (
        {"task.name": "associative_recall", "task.vocabulary": 9},
        ["task.pairs=4 distinct keys do not fit the 3 of task.vocabulary=9", "choose a vocabulary of at least 10"],
    ),
    "noise that leaves no symbols": (
        {"task.name": "noisy_recall", "task.vocabulary": 19, "model.causal": True},
        ["task.vocabulary=19 counts task.noise_vocabulary=16", "choose at least 20"],
    ),
    "more copies than a sequence holds": (
        {"task.name": "selective_copy", "task.sequence_length": 33},
        ["task.copies=16 need 34 tokens", "task.sequence_length=33", "lower the one or raise the other"],
    ),
    "motifs of more tokens than there are": (
        {"task.name": "fuzzy_recall", "task.vocabulary": 6, "model.causal": True},
        ["task.motif=3 different tokens do not fit the 2", "choose a vocabulary of at least 7"],
    ),
    "no room for two pairs of motifs": (
        {"task.name": "fuzzy_recall", "task.sequence_length": 12, "model.causal": True},
        ["task.sequence_length=12 leaves no room", "choose at least 13"],
    ),
    "a policy without rematerialisation": (
        {"model.remat_policy": "dots"},
        ["model.remat_policy=dots with model.remat=false", "set model.remat=true"],
    ),
    "accumulation that does not divide": (
        {"training.accumulate": 3},
        ["training.accumulate=3 does not divide training.batch_size=64", "choose one of its divisors"],
    ),
    "warm-up longer than the run": (
        {"optimizer.warmup_steps": 1001},
        ["optimizer.warmup_steps=1001 is more than training.steps=1000", "choose fewer"],
    ),
}


@pytest.mark.parametrize(("keys", "fragments"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_keys_that_contradict_one_another(keys, fragments):
    message = message_of(tree_of(keys))
    for fragment in fragments:
        assert fragment in message


# ------------------------------------------------------------------------------------------- helpers


def test_override_leaves_the_original_and_makes_missing_levels():
    tree = {"model": {"width": 8}}
    assert override(tree, "model.attention.kind", "mean") == {"model": {"width": 8, "attention": {"kind": "mean"}}}
    assert override(tree, "seed", 3) == {"model": {"width": 8}, "seed": 3}
    assert tree == {"model": {"width": 8}}


@pytest.mark.parametrize(("key", "plain"), [("model.width.x", "model.width"), ("model.width.x.y", "model.width")])
def test_override_into_a_plain_value(key, plain):
    with pytest.raises(ConfigError) as error:
        override({"model": {"width": 8}}, key, 1)
    assert str(error.value) == (
        f"{key}=1: {plain} holds a plain value, 8, so nothing can be set inside it; set {plain} itself"
    )


def test_flatten():
    assert flatten({"a": 1, "b": {"c": None, "d": {"e": "x"}}, "f": {}}) == {"a": 1, "b.c": None, "b.d.e": "x"}


def test_nearest_is_silent_where_nothing_resembles():
    assert nearest("widht", ["width", "depth"]).startswith("did you mean width")
    assert nearest("zzz", ["width", "depth"]) == ""


def test_head_dim_follows_width_unless_it_is_set():
    assert TransformerConfig(width=12, attention=AttentionConfig(num_heads=3)).head_dim == 4
    assert TransformerConfig(width=12, attention=AttentionConfig(num_heads=3, head_dim=7)).head_dim == 7
