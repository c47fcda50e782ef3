"""Parameters in 16 bits: the same bytes come out, and only what is read in 16 bits is cast."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.functional.trees import leaf_paths
from flaxformer_lab.models.narrowing import narrowed
from flaxformer_lab.models.network import Network, functionalize
from flaxformer_lab.modules.embedding import TokenEmbedding
from flaxformer_lab.parsing import override

SYMBOLS = np.random.default_rng(0).integers(0, 7, (2, 6)).astype(np.int32)
KINDS = {
    "softmax": {"attention.kind": "softmax", "norm.kind": "layernorm"},
    "static": {"attention.kind": "static", "ffn.kind": "diagonal", "norm.kind": "rmsnorm"},
    "lightning": {"attention.kind": "lightning", "attention.gate": True, "ffn.kind": "gated", "position": "rotary"},
}


def network_of(dtype, changes):
    tree = {}
    for key, value in {
        "width": 8,
        "depth": 1,
        "causal": True,
        "attention.num_heads": 2,
        "dtype": dtype,
        **changes,
    }.items():
        tree = override(tree, key, value)
    config = parse_config({"model": tree}).model

    def build(rngs):
        embedding = TokenEmbedding(7, 8, dtype=dtype, rngs=rngs)
        return Network(config, embedding=embedding, grid=(6,), outputs=7, rngs=rngs)

    return functionalize(build)


@pytest.mark.parametrize("kind", KINDS)
def test_the_logits_keep_their_bytes(draw, kind):
    network = network_of("bfloat16", KINDS[kind])
    params = draw(network.shapes[0])
    apply = lambda params: network.apply(params, {}, SYMBOLS)[0]  # noqa: E731
    cast = narrowed(apply, params)
    types = {name: leaf.dtype for name, leaf in leaf_paths(cast).items()}
    wide = {name for name, dtype in types.items() if dtype == jnp.float32}
    assert wide == {name for name in types if "norm" in name or name.endswith("attention.scores")}
    assert types["head.kernel"] == types["embedding.table"] == jnp.bfloat16
    np.testing.assert_array_equal(jax.jit(apply)(cast), jax.jit(apply)(params))


def test_a_float32_network_keeps_its_parameters(draw):
    network = network_of("float32", KINDS["softmax"])
    params = draw(network.shapes[0])
    assert narrowed(lambda params: network.apply(params, {}, SYMBOLS)[0], params) is params


def test_a_parameter_that_is_read_in_two_types_or_returned_stays():
    params = {"both": jnp.ones(3), "returned": jnp.ones(3), "narrow": jnp.ones(3), "unread": jnp.ones(3)}

    def function(params, x):
        narrow = {name: leaf.astype(jnp.bfloat16) for name, leaf in params.items() if name != "unread"}
        return x * sum(narrow.values()) + jnp.sum(params["both"] * 2), params["returned"]

    types = {name: leaf.dtype for name, leaf in narrowed(jax.jit(function), params, jnp.ones(3)).items()}
    assert types == dict.fromkeys(("both", "returned", "unread"), jnp.float32) | {"narrow": jnp.bfloat16}
