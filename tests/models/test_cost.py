"""What networks cost, against a count by hand."""

import jax
import jax.numpy as jnp
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.models.cost import compiled_bytes, forward_flops, parameters, parameters_by_part
from flaxformer_lab.models.network import Network, purify
from flaxformer_lab.modules.embedding import PatchEmbedding
from flaxformer_lab.parsing import override

# 32 x 32 x 3 images in 16 patches, 10 classes. ReLU, since the compiler counts some 60 operations for one GELU.
WIDTH, DEPTH, HIDDEN, TOKENS, PATCH, CLASSES = 96, 2, 384, 16, 8 * 8 * 3, 10
BASE = {"width": WIDTH, "depth": DEPTH, "attention": {"num_heads": 4}, "ffn": {"expansion": 4.0, "activation": "relu"}}
IMAGES = jax.ShapeDtypeStruct((3, 32, 32, 3), jnp.float32)

PROJECTIONS = 2 * TOKENS * 3 * WIDTH * WIDTH
SCORES_AND_SUMS = 2 * (2 * TOKENS * TOKENS * WIDTH)
OUTPUT = 2 * TOKENS * WIDTH * WIDTH
FFN = 2 * (2 * TOKENS * WIDTH * HIDDEN)
OUTSIDE = 2 * TOKENS * PATCH * WIDTH + 2 * WIDTH * CLASSES


def network(knobs):
    tree = dict(BASE)
    for key, value in knobs.items():
        tree = override(tree, key, value)
    config = parse_config({"model": tree}).model

    def build(rngs):
        embedding = PatchEmbedding(8, 3, WIDTH, bias=config.bias, class_token=False, dtype=config.dtype, rngs=rngs)
        return Network(config, embedding=embedding, grid=(TOKENS,), outputs=CLASSES, pooling="mean", rngs=rngs)

    return purify(build)


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
