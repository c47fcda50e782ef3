"""Every named variant on an image and on a language recipe: what it changes, what it leaves, what it costs.

Parameter trees are checked in as tests/goldens/parameters/VARIANT.json; `UPDATE_GOLDENS=1 pytest tests/ablation`
writes them again.
"""

import functools
import itertools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.ablation.variants import VARIANTS, apply_variants
from flaxformer_lab.config import as_dict, parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.models.network import Network
from flaxformer_lab.models.transformer import Transformer
from flaxformer_lab.modules.projection import Identity
from flaxformer_lab.modules.rngs import AbstractRngs
from flaxformer_lab.parsing import flatten, override
from flaxformer_lab.tasks import make_task

GOLDENS = Path(__file__).parents[1] / "goldens" / "parameters"

RECIPES = {
    "image": {
        "task": {"name": "image_classification", "patch_size": 2},
        "model": {"width": 8, "depth": 2, "attention": {"num_heads": 2}, "ffn": {"expansion": 2.0}},
    },
    "language": {
        "task": {"name": "language_modelling", "tokenizer": "bytes", "sequence_length": 4},
        "model": {
            "width": 8,
            "depth": 1,
            "attention": {"num_heads": 2},
            "ffn": {"kind": "gated", "activation": "silu", "expansion": 1.5},
            "norm": {"kind": "rmsnorm"},
            "bias": False,
            "causal": True,
        },
    },
}
FACTS = {"image": {"image_shape": [4, 4, 1], "num_classes": 3}, "language": {"num_symbols": 5}}
INPUTS = {
    "image": jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 1)), jnp.float32),
    "language": jnp.array([[0, 1, 4, 4], [3, 3, 0, 2]]),
}
BASELINES = ("mlp", "factorization_machine", "cnn_1d", "cnn_2d", "resnet", "convnext", "lstm", "gru", "mixer")
IMPOSSIBLE = {("language", name) for name in ("channel_attention", "cnn_2d", "resnet", "convnext", "mixer")}
CASES = [case for case in itertools.product(RECIPES, VARIANTS) if case not in IMPOSSIBLE]


@functools.cache
def build(recipe, *names):
    """The config under the variants, the pure network and its abstract parameters."""
    config = apply_variants(parse_config(RECIPES[recipe]), list(names))
    network = make_task(config.task, FACTS[recipe]).network(config.model)
    return config, network, jax.eval_shape(network.init, jax.random.key(0))[0]


def number(recipe, *names):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(build(recipe, *names)[2]))


# ------------------------------------------------------------------------------------------- which there are


def test_the_variants_of_the_design_are_there():
    expected = (
        "single_head multi_head ffn_off linear_ffn linear_only attention_off mean_attention static_attention "
        "diagonal_projection per_dimension diagonal_ffn norm_off skip_off channel_attention linear_attention "
        "lightning_attention"
    )
    assert set(VARIANTS) == {*expected.split(), *BASELINES}
    assert all(variant.purpose and variant.overrides for variant in VARIANTS.values())


@pytest.mark.parametrize("name", ["nonlinear_attention", "ffn_of", ""])
def test_a_variant_that_does_not_exist_is_refused(name):
    with pytest.raises(ConfigError) as error:
        apply_variants(parse_config(RECIPES["image"]), ["norm_off", name])
    message = str(error.value)
    assert f"--ablation={name} is not a variant" in message
    assert ", ".join(VARIANTS) in message
    nearest = {"nonlinear_attention": "linear_attention", "ffn_of": "did you mean ffn_off"}.get(name, "")
    assert nearest in message.partition("choose from")[0]


def test_channel_attention_cannot_be_causal():
    with pytest.raises(ConfigError, match=r"model\.attention\.kind=channel .* cannot be causal.*model\.causal=false"):
        build("language", "channel_attention")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cnn_2d", r"model\.causal=true with model\.name=cnn_2d: .*; set model\.causal=false or model\.name=cnn_1d"),
        ("mixer", r"task\.objective=next_token with model\.name=mixer lets .*; choose another model\.name"),
    ],
)
def test_a_baseline_that_does_not_fit_the_task_is_refused(name, reason):
    with pytest.raises(ConfigError, match=reason):
        build("language", name)


# ------------------------------------------------------------------------------------------- what they change


@pytest.mark.parametrize("name", ["baseline", *VARIANTS])
def test_parameter_tree_is_the_golden_one(name):
    names = [] if name == "baseline" else [name]
    found = {
        recipe: {
            path: f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]"
            for path, leaf in sorted(leaf_paths(build(recipe, *names)[2]).items())
        }
        for recipe in RECIPES
        if (recipe, name) not in IMPOSSIBLE
    }
    text = json.dumps(found, indent=2) + "\n"
    path = GOLDENS / f"{name}.json"
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(text)
    expected = json.loads(path.read_text()) if path.exists() else None
    assert found == expected, f"{path} should be, unless the change is a mistake (UPDATE_GOLDENS=1 writes it):\n{text}"


def test_every_golden_belongs_to_a_variant():
    assert {path.stem for path in GOLDENS.glob("*.json")} == {"baseline", *VARIANTS}


@functools.cache
def logits_of(draw, recipe, *names):
    _, network, abstract = build(recipe, *names)
    state = jax.tree.map(lambda like: jnp.ones(like.shape), network.shapes[1])  # of a BatchNorm
    return np.asarray(network.apply(draw(abstract), state, INPUTS[recipe])[0])


@pytest.mark.parametrize(("recipe", "name"), CASES)
def test_output_changes(draw, recipe, name):
    """Parameters of one name and shape are the same on both sides, so the difference is the variant's."""
    expected, logits = logits_of(draw, recipe), logits_of(draw, recipe, name)
    assert logits.shape == expected.shape
    assert np.all(np.isfinite(logits))
    assert np.all(np.abs(logits - expected).reshape(2, -1).max(axis=1) > 1e-5)


def sizes(recipe):
    """width, blocks, heads, tokens, hidden units, 1 with biases, a norm's parameters, an FFN's parameters."""
    if recipe == "image":
        w, hidden = 8, 16
        return w, 2, 2, 4, hidden, 1, 2 * w, w * hidden + hidden + hidden * w + w
    w, hidden = 8, 12
    return w, 1, 2, 4, hidden, 0, w, w * 2 * hidden + hidden * w


# How many parameters each variant has more than the baseline.
DIFFERENCES = {
    "single_head": lambda w, L, h, t, m, b, norm, ffn: 0,
    "multi_head": lambda w, L, h, t, m, b, norm, ffn: 0,
    "ffn_off": lambda w, L, h, t, m, b, norm, ffn: -L * (ffn + norm),
    "linear_ffn": lambda w, L, h, t, m, b, norm, ffn: L * (2 * w * m + b * (m + w) - ffn),
    "attention_off": lambda w, L, h, t, m, b, norm, ffn: -L * (4 * w * w + b * 4 * w + norm),
    "mean_attention": lambda w, L, h, t, m, b, norm, ffn: -L * (2 * w * w + b * 2 * w),
    "static_attention": lambda w, L, h, t, m, b, norm, ffn: L * h * t * t - L * (2 * w * w + b * 2 * w),
    "diagonal_projection": lambda w, L, h, t, m, b, norm, ffn: -L * 3 * (w * w - w),
    "norm_off": lambda w, L, h, t, m, b, norm, ffn: -(2 * L + 1) * norm,
    "skip_off": lambda w, L, h, t, m, b, norm, ffn: 0,
    "channel_attention": lambda w, L, h, t, m, b, norm, ffn: L * h,
    "linear_attention": lambda w, L, h, t, m, b, norm, ffn: 0,
    "lightning_attention": lambda w, L, h, t, m, b, norm, ffn: 0,
}


@pytest.mark.parametrize(("recipe", "name"), [case for case in CASES if case[1] in DIFFERENCES])
def test_parameters_differ_by_the_formula(recipe, name):
    assert number(recipe, name) - number(recipe) == DIFFERENCES[name](*sizes(recipe))


@pytest.mark.parametrize("recipe", RECIPES)
def test_parameters_of_per_dimension(recipe):
    """Four maps of w * w become vectors."""
    w, L, *_ = sizes(recipe)
    assert number(recipe, "per_dimension") - number(recipe) == -L * 4 * (w * w - w)


@pytest.mark.parametrize("recipe", RECIPES)
def test_parameters_of_diagonal_ffn(recipe):
    """Each feature has round(expansion) = 2 hidden units of its own, each with a weight up and down, and biases."""
    w, L, _, _, _, b, _, ffn = sizes(recipe)
    own = w * 2 * (2 + b) + b * w
    assert number(recipe, "diagonal_ffn") - number(recipe) == L * (own - ffn)


def test_parameters_of_linear_only():
    """Values, static scores, outputs and a plain FFN in each block; no bias, norm or position anywhere."""
    blocks = 2 * (8 * 8 + 2 * 4 * 4 + 8 * 8 + 8 * 16 + 16 * 8)
    assert number("image", "linear_only") == 2 * 2 * 1 * 8 + blocks + 8 * 3
    block = 8 * 8 + 2 * 4 * 4 + 8 * 8 + 8 * 12 + 12 * 8
    assert number("language", "linear_only") == 5 * 8 + block + 8 * 5


# Between embedding and head, with a norm of w (1 + b) parameters: width, depth, tokens, 1 with biases.
BODIES = {
    "mlp": lambda w, L, t, b: L * (w * w + b * w),
    "factorization_machine": lambda w, L, t, b: w * w + b * w + w * w,
    "cnn_1d": lambda w, L, t, b: L * 2 * (3 * w * w + b * w) + (L + 1) * w * (1 + b),
    "cnn_2d": lambda w, L, t, b: L * 2 * (9 * w * w + b * w) + (L + 1) * w * (1 + b),
    # Stages of two blocks of two convolutions, each with a norm; the second stage has one more for its shortcut.
    "resnet": lambda w, L, t, b: 9 * (4 + 2 + 3 * 4) * w * w + 2 * w * w + (4 + 5 * 2) * w * (1 + b),
    "convnext": lambda w, L, t, b: L * (49 * w + b * w + w * (1 + b) + 8 * w * w + b * 5 * w) + w * (1 + b),
    "lstm": lambda w, L, t, b: L * 4 * (2 * w * w + b * w),
    "gru": lambda w, L, t, b: L * (3 * (2 * w * w + b * w) + b * w),
    "mixer": lambda w, L, t, b: L * (2 * 32 * t + b * (32 + t) + 2 * 4 * w * w + b * 5 * w) + (2 * L + 1) * w * (1 + b),
}


@pytest.mark.parametrize(("recipe", "name"), [case for case in CASES if case[1] in BODIES])
def test_parameters_of_a_baseline(recipe, name):
    w, L, _, t, _, b, *_ = sizes(recipe)
    leaves = leaf_paths(build(recipe, name)[2])
    body = sum(int(np.prod(leaf.shape)) for path, leaf in leaves.items() if path.startswith("body."))
    assert body == BODIES[name](w, L, t, b)
    wider = ("head.kernel",) if name == "resnet" else ()  # its last stage has more features
    outside = {path: leaf for path, leaf in leaves.items() if not path.startswith("body.") and path not in wider}
    assert outside == {path: leaf for path, leaf in leaf_paths(build(recipe)[2]).items() if path in outside}


def test_every_variant_has_its_parameters_counted():
    assert set(VARIANTS) == {*DIFFERENCES, *BODIES, "per_dimension", "diagonal_ffn", "linear_only"}


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("ffn_off", "ffn"),
        ("attention_off", "attention"),
        ("norm_off", "norm"),
        ("linear_only", "bias"),
        ("linear_only", "norm"),
        ("linear_only", "position"),
    ],
)
def test_off_means_removed(name, gone):
    for recipe in RECIPES:
        assert not [path for path in leaf_paths(build(recipe, name)[2]) if gone in path]
    assert [path for path in leaf_paths(build("image")[2]) if gone in path]


# ------------------------------------------------------------------------------------------- what they promise


def nonlinearity(run, x, y):
    """|f(aX + bY) - (a f(X) + b f(Y))| against |a f(X) + b f(Y)|."""
    expected = 2.5 * run(x) - 0.75 * run(y)
    return np.abs(run(2.5 * x - 0.75 * y) - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("pooling", ["mean", "class_token"])
def test_linear_only_is_linear_from_pixels_to_logits(draw, pooling):
    config = parse_config(override(RECIPES["image"], "task.pooling", pooling))
    x, y = np.asarray(INPUTS["image"]), np.asarray(INPUTS["image"])[::-1]

    def of(config):
        network = make_task(config.task, FACTS["image"]).network(config.model)
        params = draw(jax.eval_shape(network.init, jax.random.key(0))[0])
        return nonlinearity(lambda images: np.asarray(network.apply(params, {}, jnp.asarray(images))[0]), x, y)

    assert of(apply_variants(config, ["linear_only"])) < 1e-5 < 1e-2 < of(config)


def test_linear_only_is_linear_from_token_vectors_to_logits(draw_module, stream):
    x, y = stream, stream[::-1]

    def of(*names):
        model = build("language", *names)[0].model

        def network():
            rngs = AbstractRngs()
            embedding = Identity(8, 8, axes=(None, "width"), bias=False, rngs=rngs)
            return Network(model, embedding=embedding, grid=(4,), outputs=5, rngs=rngs)

        return nonlinearity(draw_module(network), x, y)

    assert of("linear_only") < 1e-5 < 1e-2 < of()


def test_per_dimension_keeps_features_apart_where_nothing_else_mixes_them(draw_module, stream):
    """Without FFN and norm, the network between embedding and head has a Jacobian of zeros across features."""

    def mixing(*names):
        """The largest |d output[t, c] / d input[s, d]| across features, and the smallest within them."""
        model = build("image", *names)[0].model
        transformer = draw_module(lambda: Transformer(model, grid=(4,), rngs=AbstractRngs()))
        reach = np.abs(transformer.jacobian(stream)).max(axis=(0, 2))
        return reach[~np.eye(8, dtype=bool)].max(), np.diag(reach).min()

    across, within = mixing("per_dimension", "ffn_off", "norm_off")
    assert across == 0 < 1e-3 < within
    assert mixing("ffn_off", "norm_off")[0] > 1e-3


# ------------------------------------------------------------------------------------------- how they combine


def test_no_variant_leaves_the_config_as_it_is():
    config = parse_config(RECIPES["language"])
    assert apply_variants(config, []) == config


@pytest.mark.parametrize(("recipe", "name"), CASES)
def test_a_variant_sets_its_keys_and_no_others(recipe, name):
    before, after = parse_config(RECIPES[recipe]), build(recipe, name)[0]
    flat, other = flatten(as_dict(before)), flatten(as_dict(after))
    # A baseline takes the place of all of `model`.
    told = VARIANTS[name].overrides
    changed = {key for key in flat | other if flat.get(key, "absent") != other.get(key, "absent")}
    assert changed
    assert all(key in told or key.partition(".")[0] in told for key in changed)
    assert apply_variants(after, [name]) == after


def test_two_variants_compose():
    config, _, abstract = build("image", "single_head", "ffn_off")
    assert (config.model.attention.num_heads, config.model.head_dim, config.model.ffn.kind) == (1, 8, "off")
    assert config == build("image", "ffn_off", "single_head")[0]
    assert leaf_paths(abstract).keys() == leaf_paths(build("image", "ffn_off")[2]).keys()


@pytest.mark.parametrize(
    ("names", "fragments"),
    [
        (["single_head", "multi_head"], ["multi_head sets model.attention.num_heads=8", "single_head sets it to 1"]),
        (["ffn_off", "linear_ffn"], ["linear_ffn sets model.ffn.kind=mlp", "ffn_off sets it to off"]),
        (["mean_attention", "static_attention"], ["static_attention sets model.attention.kind=static", "to mean"]),
        (["per_dimension", "single_head"], ["single_head sets model.attention.num_heads=1", "per_dimension", "to 8"]),
        (["lstm", "gru"], ["gru sets model={'name': 'gru'", "lstm sets it to {'name': 'lstm'"]),
    ],
)
def test_variants_that_contradict_one_another_are_refused(names, fragments):
    with pytest.raises(ConfigError) as error:
        apply_variants(parse_config(RECIPES["image"]), names)
    for fragment in [*fragments, "name only one of the two"]:
        assert fragment in str(error.value)


def test_variants_that_leave_nothing_are_refused():
    with pytest.raises(ConfigError, match=r"model\.attention\.kind=off and model\.ffn\.kind=off leave every block"):
        apply_variants(parse_config(RECIPES["image"]), ["attention_off", "ffn_off"])


def test_the_order_of_variants_does_not_matter():
    base = parse_config(RECIPES["image"])

    def outcome(*names):
        try:
            return apply_variants(base, list(names))
        except ConfigError:
            return "refused"

    for a, b in itertools.combinations(VARIANTS, 2):
        assert outcome(a, b) == outcome(b, a)


def test_per_dimension_replaces_rotary_positions_alone():
    for position, expected in (("rotary", "learned"), ("sinusoidal", "sinusoidal"), ("off", "off")):
        config = parse_config(override(RECIPES["image"], "model.position", position))
        assert apply_variants(config, ["per_dimension"]).model.position == expected


# ------------------------------------------------------------------------------------------- other models


def test_a_baseline_has_what_it_shares_with_the_model_that_it_replaces():
    language = {**RECIPES["language"]["model"], "depth": 3, "dtype": "bfloat16"}
    config = parse_config(RECIPES["language"] | {"model": language})
    for name in BASELINES:
        if ("language", name) in IMPOSSIBLE:
            continue
        model = apply_variants(config, [name]).model
        assert (model.name, model.width, model.bias, model.dtype, model.causal) == (name, 8, False, "bfloat16", True)
        assert getattr(model, "depth", 3) == 3
        assert apply_variants(config, [name]).task == config.task


def test_a_baseline_that_is_there_already_keeps_all_of_its_knobs():
    config = parse_config(RECIPES["image"] | {"model": {"name": "cnn_1d", "width": 8, "kernel_size": 5}})
    assert apply_variants(config, ["cnn_1d"]) == config
    assert apply_variants(config, ["gru"]).model.name == "gru"


ONE_MODELS_OWN = [name for name in VARIANTS if name not in BASELINES]


@pytest.mark.parametrize("name", ONE_MODELS_OWN)
@pytest.mark.parametrize("laid_upon", ["transformer with lstm", "lstm"])
def test_a_knob_that_the_model_in_place_lacks_is_refused(laid_upon, name):
    model = RECIPES["image"]["model"] if laid_upon != "lstm" else {"name": "lstm", "width": 8}
    names = [name] if laid_upon == "lstm" else ["lstm", name]
    with pytest.raises(ConfigError) as error:
        apply_variants(parse_config(RECIPES["image"] | {"model": model}), names)
    message = str(error.value)
    (key, *_) = (key for key in VARIANTS[name].overrides if key.startswith("model.") and key in message)
    assert f"--ablation={name} sets {key}, which model.name=lstm does not have" in message
    assert message.endswith("drop the variant or choose another model")


def test_a_knob_that_the_model_in_place_has_is_set():
    config = build("image", "norm_off", "cnn_1d")[0]
    assert (config.model.name, config.model.norm.kind) == ("cnn_1d", "off")
    assert config == build("image", "cnn_1d", "norm_off")[0]
    assert not [path for path in leaf_paths(build("image", "cnn_1d", "norm_off")[2]) if "norm" in path]
