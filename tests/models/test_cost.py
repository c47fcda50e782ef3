"""What networks cost, against a count by hand and XLA's own, which it has on a CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flaxformer_lab.config import parse_config
from flaxformer_lab.functional.softmax_attention import softmax_attention
from flaxformer_lab.models.bodies import make_body
from flaxformer_lab.models.cost import compiled_bytes, forward_flops, parameters, parameters_by_part
from flaxformer_lab.models.flops import as_counted, count_flops
from flaxformer_lab.models.network import Network, functionalize
from flaxformer_lab.modules.embedding import PatchEmbedding
from flaxformer_lab.modules.rngs import AbstractRngs
from flaxformer_lab.parsing import override

# 32 x 32 x 3 images in 16 patches, 10 classes. ReLU, since one GELU counts some 60 operations.
WIDTH, DEPTH, HIDDEN, TOKENS, PATCH, CLASSES = 96, 2, 384, 16, 8 * 8 * 3, 10
BASE = {"width": WIDTH, "depth": DEPTH, "attention": {"num_heads": 4}, "ffn": {"expansion": 4.0, "activation": "relu"}}
IMAGES = jax.ShapeDtypeStruct((3, 32, 32, 3), jnp.float32)

PROJECTIONS = 2 * TOKENS * 3 * WIDTH * WIDTH
SCORES_AND_SUMS = 2 * (2 * TOKENS * TOKENS * WIDTH)
OUTPUT = 2 * TOKENS * WIDTH * WIDTH
FFN = 2 * (2 * TOKENS * WIDTH * HIDDEN)
OUTSIDE = 2 * TOKENS * PATCH * WIDTH + 2 * WIDTH * CLASSES


def network(knobs):
    tree = {} if "name" in knobs else dict(BASE)
    for key, value in knobs.items():
        tree = override(tree, key, value)
    config = parse_config({"model": tree}).model

    def build(rngs):
        embedding = PatchEmbedding(8, 3, WIDTH, bias=config.bias, class_token=False, dtype=config.dtype, rngs=rngs)
        grid = (4, 4) if config.name == "cnn_2d" else (TOKENS,)
        return Network(config, embedding=embedding, grid=grid, outputs=CLASSES, pooling="mean", rngs=rngs)

    return functionalize(build)


def abstract(pure):
    return jax.eval_shape(pure.init, jax.random.key(0))


@pytest.mark.parametrize(
    ("knobs", "block"),
    [
        ({}, PROJECTIONS + SCORES_AND_SUMS + OUTPUT + FFN),
        ({"ffn.kind": "off"}, PROJECTIONS + SCORES_AND_SUMS + OUTPUT),
        ({"attention.kind": "off"}, FFN),
        ({"attention.kind": "mean"}, PROJECTIONS / 3 + OUTPUT + FFN),
        ({"attention.kind": "static"}, PROJECTIONS / 3 + SCORES_AND_SUMS / 2 + OUTPUT + FFN),
        ({"attention.kind": "channel"}, PROJECTIONS + 2 * (2 * TOKENS * WIDTH * WIDTH / 4) + OUTPUT + FFN),
        ({"ffn.kind": "gated"}, PROJECTIONS + SCORES_AND_SUMS + OUTPUT + 1.5 * FFN),
        ({"attention.projection": "identity", "attention.output": "off"}, SCORES_AND_SUMS + FFN),
    ],
    ids=lambda value: "-".join(map(str, value.values())) or "baseline" if isinstance(value, dict) else "",
)
def test_operations_are_those_of_the_matrix_products_and_little_more(knobs, block):
    pure = network(knobs)
    by_hand = IMAGES.shape[0] * (DEPTH * block + OUTSIDE)
    counted = forward_flops(pure, *abstract(pure), IMAGES)
    assert by_hand < counted < 1.04 * by_hand


@pytest.mark.parametrize(
    "knobs",
    [
        {"ffn.activation": "gelu", "causal": True, "position": "rotary"},
        {"attention.kind": "linear", "ffn.kind": "gated", "norm.kind": "rmsnorm"},
        {"attention.kind": "lightning", "ffn.kind": "bilinear", "norm.placement": "post"},
        {"attention.kind": "channel", "ffn.kind": "diagonal", "attention.projection": "diagonal"},
        {"attention.kind": "mean", "ffn.activation": "silu", "position": "sinusoidal", "remat": True},
        {"attention.kind": "static", "ffn.activation": "gelu_tanh", "bias": False, "dtype": "bfloat16"},
        {"attention.kind": "off", "norm.kind": "off"},
        {"name": "mlp", "width": WIDTH},
        {"name": "factorization_machine", "width": WIDTH},
        {"name": "cnn_1d", "width": WIDTH, "depth": 2},
        {"name": "cnn_2d", "width": WIDTH, "depth": 2},
        {"name": "mixer", "width": WIDTH, "depth": 2},
    ],
    ids=lambda knobs: knobs.get("name") or knobs.get("attention.kind", "softmax"),
)
def test_operations_are_those_that_xla_counts(knobs):
    pure = network(knobs)
    arguments = *pure.shapes, IMAGES
    counted = jax.jit(pure.apply).lower(*arguments).cost_analysis()["flops"]
    assert forward_flops(pure, *arguments) == pytest.approx(counted, rel=0.001)


@pytest.mark.parametrize("window", [None, 256])
@pytest.mark.parametrize("causal", [True, False])
def test_pairs_of_many_tokens_count_as_often_as_they_are_seen(causal, window):
    """Where a CPU walks over blocks of keys in loops whose length is not known before they run."""
    tokens = 2048
    like = jax.ShapeDtypeStruct((1, tokens, 2, 16), jnp.float32)
    with as_counted():
        found = count_flops(functools.partial(softmax_attention, causal=causal, window=window), like, like, like)
    apart = np.arange(tokens)[:, None] - np.arange(tokens)
    seen = (np.abs(apart) < (window or tokens)) & (apart >= (0 if causal else -tokens))
    least = 2 * 2 * seen.sum() * 2 * 16
    assert least < found < least * (1.3 if window is None else 2.5)  # a block of rows sees some keys in vain


@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3)])
def test_a_recurrent_network_counts_every_token(name, gates):
    """XLA takes a loop's body once, so that half of the products would be counted for one token alone."""
    pure = network({"name": name, "width": WIDTH, "depth": DEPTH})
    by_hand = IMAGES.shape[0] * (DEPTH * 2 * TOKENS * 2 * WIDTH * gates * WIDTH + OUTSIDE)
    assert by_hand < forward_flops(pure, *pure.shapes, IMAGES) < 1.04 * by_hand


def test_the_figures_are_the_same_where_the_compiler_has_none_and_parts_take_other_forms(monkeypatch):
    pure = network({"causal": True, "dtype": "bfloat16"})
    arguments = *pure.shapes, IMAGES
    flops, peak = forward_flops(pure, *arguments), compiled_bytes(pure, *arguments)
    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", lambda self: None)
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: None)
    tpu = jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=tpu)):
        # There it would be another program.
        assert count_flops(pure.apply, *arguments) != flops
        assert forward_flops(pure, *arguments) == flops
    assert peak / 2 < compiled_bytes(pure, *arguments) < 2 * peak


def test_parameters_by_part_are_all_there_is():
    parts = parameters_by_part(abstract(network({}))[0])
    assert parts == {
        "embedding": PATCH * WIDTH + WIDTH,
        "position": TOKENS * WIDTH,
        "attention": DEPTH * (4 * WIDTH * WIDTH + 4 * WIDTH),
        "ffn": DEPTH * (2 * WIDTH * HIDDEN + HIDDEN + WIDTH),
        "norm": (2 * DEPTH + 1) * 2 * WIDTH,
        "head": WIDTH * CLASSES + CLASSES,
    }
    assert parameters(abstract(network({}))[0]) == sum(parts.values())


def test_attention_to_another_sequence_is_attention():
    config = parse_config({"model": {"name": "encoder_decoder", "width": 8, "depth": 1, "encoder_depth": 1}}).model
    grid = {"source": (3,), "target": (4,)}
    params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: make_body(config, grid=grid, rngs=AbstractRngs()))))
    assert parameters_by_part({"body": params})["attention"] == 3 * (4 * 8 * 8 + 4 * 8)  # of one encoder and decoder


def test_parts_that_are_off_are_not_listed():
    knobs = {"attention.kind": "off", "norm.kind": "off", "position": "sinusoidal"}
    assert set(parameters_by_part(abstract(network(knobs))[0])) == {"embedding", "ffn", "head"}


def test_parameters_counts_every_value_of_any_tree():
    tree = {"a": jnp.zeros((2, 3)), "b": [jnp.zeros(()), jax.ShapeDtypeStruct((4, 1, 2), jnp.float32)], "c": {}}
    assert parameters(tree) == 6 + 1 + 8


def test_peak_bytes_grow_with_what_is_held():
    """Parameters and inputs are held in any case, and so are at least the inputs of more examples."""
    pure = network({"depth": 1})
    params, model_state = abstract(pure)
    held = 4 * parameters(params) + 4 * 3 * 32 * 32 * 3
    few = compiled_bytes(pure, params, model_state, IMAGES)
    assert held < few < 4 * held
    many = jax.ShapeDtypeStruct((300, 32, 32, 3), jnp.float32)
    assert compiled_bytes(pure, params, model_state, many) > few + 4 * 297 * 32 * 32 * 3
