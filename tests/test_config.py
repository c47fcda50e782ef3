"""The strict parser: what it accepts comes back as it was, and what it refuses it names."""

import dataclasses
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer_lab.config import Config, as_dict, parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.model_config import AttentionConfig, TransformerConfig
from flaxformer_lab.parsing import flatten, nearest, override
from flaxformer_lab.task_config import ImageClassificationConfig, LanguageModellingConfig

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
        "model.ffn.kind": "gated",
        "model.ffn.activation": "silu",
        "model.ffn.expansion": 2.5,
        "model.norm.kind": "rmsnorm",
        "model.norm.placement": "post",
        "model.norm.epsilon": 1e-5,
        "model.skip.attention": False,
        "model.skip.ffn": False,
        "model.position": "rotary",
        "model.bias": False,
        "model.dropout": 0.1,
        "model.dtype": "bfloat16",
        "model.remat": True,
        "optimizer.name": "sgd",
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
        "training.evaluate_every": 3,
        "training.evaluate_batch_size": 4,
        "training.checkpoint_every": 5,
        "training.keep_last": 6,
        "training.keep_best": 0,
        "training.steps_per_call": 7,
        "training.input": "stream",
        "parallelism.strategy": "pmap",
    }
)


def test_every_key_that_is_given_is_kept():
    flat, given = flatten(as_dict(parse_config(EVERYTHING))), flatten(EVERYTHING)
    assert {key: flat[key] for key in given} == given
    defaults = flatten(as_dict(Config(task=LanguageModellingConfig())))
    unchanged = {key for key, value in defaults.items() if given.get(key, value) == value}
    assert unchanged == {"task.name", "model.attention.projection", "model.attention.output", "model.causal"}


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
    ("learning_rate", 1, ["unknown key learning_rate (value 1)", "config has seed"]),
    ("task.patchsize", 2, ["unknown key task.patchsize (value 2)", "did you mean patch_size", "task has name"]),
    ("model.num_heads", 4, ["unknown key model.num_heads (value 4)", "model has width, depth, attention"]),
    ("model.attention.heads", 4, ["unknown key model.attention.heads", "did you mean num_heads"]),
    ("model.ffn.activations", "relu", ["unknown key model.ffn.activations", "did you mean activation?", "expansion"]),
    ("model.norm.eps", 1e-5, ["unknown key model.norm.eps", "did you mean epsilon?", "model.norm has kind"]),
    ("model.skip.atention", True, ["unknown key model.skip.atention", "did you mean attention?"]),
    ("optimizer.lr", 1, ["unknown key optimizer.lr", "optimizer has name, learning_rate"]),
    ("training.step", 1, ["unknown key training.step", "did you mean steps"]),
    ("parallelism.stratgy", "pmap", ["unknown key parallelism.stratgy", "did you mean strategy?"]),
    ("parallelism.mesh", 2, ["unknown key parallelism.mesh", "parallelism has strategy"]),
    ("task.sequence_length", 8, ["unknown key task.sequence_length", "task has name, dataset, patch_size"]),
]

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
    ("model", 64, ["model=64 must be a group of keys", "width, depth, attention"]),
    ("model.attention", "softmax", ["model.attention='softmax' must be a group of keys", "kind, num_heads"]),
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
    ("model.attention.num_heads", 0, ["model.attention.num_heads=0", "must be at least 1"]),
    ("model.attention.head_dim", 0, ["model.attention.head_dim=0", "must be at least 1"]),
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
    ("task.name", "images", ["task.name=images is not a choice", "image_classification, language_modelling"]),
    ("task.name", 3, ["task.name=3 is not a choice", "image_classification, language_modelling"]),
    ("task.pooling", "max", ["task.pooling=max is not a choice", "choose from mean, class_token"]),
    ("model.attention.kind", "linear", ["model.attention.kind=linear is not a choice", "softmax, channel, mean"]),
    ("model.attention.kind", "lightning", ["model.attention.kind=lightning is not a choice", "softmax, channel, mean"]),
    ("model.attention.kind", "sofmax", ["model.attention.kind=sofmax", "did you mean softmax?", "static, off"]),
    ("model.attention.projection", "off", ["model.attention.projection=off is not a choice", "dense, diagonal"]),
    ("model.ffn.kind", "none", ["model.ffn.kind=none is not a choice", "mlp, gated, bilinear, diagonal, off"]),
    ("model.ffn.activation", "swish", ["model.ffn.activation=swish is not a choice", "silu", "identity"]),
    ("model.norm.kind", "batchnorm", ["model.norm.kind=batchnorm", "did you mean", "layernorm, rmsnorm, off"]),
    ("model.norm.placement", "middle", ["model.norm.placement=middle is not a choice", "pre, post"]),
    ("model.position", "relative", ["model.position=relative is not a choice", "learned, sinusoidal, rotary, off"]),
    ("model.dtype", "float16", ["model.dtype=float16", "did you mean", "float32, bfloat16"]),
    ("optimizer.name", "adam", ["optimizer.name=adam", "did you mean adamw?", "adamw, muon, sgd"]),
    ("optimizer.schedule", "cosin", ["optimizer.schedule=cosin", "did you mean cosine?"]),
    ("training.input", "disk", ["training.input=disk is not a choice", "auto, device, stream"]),
    ("parallelism.strategy", "mesh", ["parallelism.strategy=mesh is not a choice", "auto, single, pmap"]),
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


CONTRADICTIONS = {
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
    "nothing left": (
        {"model.attention.kind": "off", "model.ffn.kind": "off"},
        ["model.attention.kind=off and model.ffn.kind=off leave every block empty", "keep one", "model.depth=0"],
    ),
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
    "channel attention and causal": (
        {"model.attention.kind": "channel", "model.causal": True},
        ["model.attention.kind=channel", "cannot be causal", "set model.causal=false", "softmax, mean or static"],
    ),
    "rotary and odd heads": (
        {"model.position": "rotary", "model.attention.head_dim": 3},
        ["model.position=rotary", "head_dim=3 must be even", "choose another num_heads or head_dim"],
    ),
    "rotary and odd heads in channel attention": (
        {"model.position": "rotary", "model.attention.kind": "channel", "model.attention.num_heads": 64},
        ["model.position=rotary", "head_dim=1 must be even"],
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
        ["task.objective=masked with model.causal=true", "would hide", "set model.causal=false"],
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
