"""What theory says of a model's knobs, against what the model does with parameters that are all drawn.

Both ways round: where theory says yes the numbers must agree, and where it says no they must disagree.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.config import parse_config
from flaxformer_lab.models import theory
from flaxformer_lab.models.network import Network
from flaxformer_lab.modules.embedding import FeatureEmbedding
from flaxformer_lab.modules.rngs import AbstractRngs
from flaxformer_lab.parsing import override

WIDTH = 4
BARE = {
    "attention.rank": 1,
    "ffn.rank": 1,
    "ffn.block_size": 1,
    "width": WIDTH,
    "depth": 2,
    "attention.num_heads": 2,
    "ffn.kind": "off",
    "norm.kind": "off",
    "position": "off",
    "bias": False,
}
APART = {
    "attention.projection": "diagonal",
    "attention.output": "diagonal",
    "attention.num_heads": WIDTH,
    "attention.block_size": 2,
}
PAIRS = APART | {"attention.num_heads": WIDTH // 2}
BLOCKS = {
    "attention.kind": "mean",
    "attention.projection": "block",
    "attention.output": "block",
    "attention.block_size": 2,
}
NARROW = {"skip.attention": False, "skip.ffn": False}
LINEAR = {"attention.kind": "static", "ffn.kind": "mlp", "ffn.activation": "identity"}

TRANSFORMERS = [
    {},
    {"bias": True},
    {"causal": True},
    {"position": "learned"},
    {"position": "sinusoidal"},
    {"position": "rotary"},
    *({"norm.kind": kind} for kind in ("layernorm", "rmsnorm")),
    {"norm.kind": "layernorm", "bias": True},
    {"norm.kind": "layernorm", "norm.placement": "post"},
    *({"ffn.kind": "mlp", "ffn.activation": kind} for kind in ("tanh", "identity", "gelu", "relu")),
    *({"ffn.kind": "diagonal", "ffn.activation": kind} for kind in ("tanh", "silu")),
    *({"ffn.kind": kind} for kind in ("gated", "bilinear")),
    *({"attention.kind": kind} for kind in ("linear", "lightning", "mean", "static", "channel")),
    *({"attention.kind": kind, "attention.window": 2} for kind in ("softmax", "mean")),
    {"attention.window": 1},
    {"attention.window": 3, "causal": True},
    *({"attention.activation": kind} for kind in ("tanh", "silu")),
    {"attention.kind": "static", "attention.activation": "tanh"},
    {"attention.kind": "static", "attention.norm": "srmsnorm"},
    {"attention.kind": "lightning", "attention.norm": "srmsnorm", "attention.activation": "silu"},
    {"attention.kind": "mean", "attention.gate": True},
    *({"attention.kind": "off", "ffn.kind": kind, "ffn.activation": "tanh"} for kind in ("mlp", "diagonal")),
    {"attention.kind": "off", "ffn.kind": "diagonal", "ffn.activation": "identity"},
    {"attention.kind": "off", "ffn.kind": "diagonal", "norm.kind": "rmsnorm"},
    LINEAR,
    LINEAR | {"bias": True, "position": "learned"},
    LINEAR | {"norm.kind": "rmsnorm"},
    LINEAR | {"ffn.kind": "bilinear"},
    LINEAR | {"causal": True, "skip.attention": False, "skip.ffn": False},
    *(APART | {"attention.kind": kind} for kind in ("softmax", "linear", "lightning", "mean", "static", "channel")),
    *(PAIRS | {"attention.kind": kind} for kind in ("softmax", "linear", "lightning", "mean", "static", "channel")),
    PAIRS | {"attention.window": 1},
    APART | {"attention.norm": "rmsnorm", "attention.kind": "mean"},
    APART | {"attention.gate": True},
    APART | {"bias": True, "position": "learned", "ffn.kind": "diagonal"},
    APART | {"attention.projection": "identity", "attention.output": "off"},
    APART | {"attention.output": "dense", "attention.kind": "mean"},
    APART | {"norm.kind": "layernorm"},
    APART | {"ffn.kind": "mlp"},
    PAIRS | {"position": "rotary", "attention.kind": "mean"},
    *(APART | {"attention.projection": kind} for kind in ("low_rank", "monarch", "hadamard")),
    *(APART | {"attention.output": "block", "attention.block_size": size} for size in (1, 2)),
    *({"attention.kind": "off", "ffn.kind": "mlp", "ffn.projection": kind} for kind in ("low_rank", "monarch")),
    *({"attention.kind": "off", "ffn.kind": kind, "ffn.projection": "block"} for kind in ("mlp", "gated", "bilinear")),
    {"attention.kind": "off", "ffn.kind": "mlp", "ffn.projection": "block", "ffn.block_size": 2},
    *(BLOCKS | {"ffn.kind": "mlp", "ffn.projection": "block", "ffn.block_size": size} for size in (1, 2, 4)),
    BLOCKS | {"attention.kind": "softmax"},
    *(NARROW | {"depth": 1, "ffn.kind": kind, "ffn.projection": "low_rank"} for kind in ("mlp", "gated")),
    NARROW | {"attention.kind": "mean", "attention.output": "low_rank"},
    NARROW | {"attention.kind": "static", "attention.projection": "low_rank", "depth": 1},
    NARROW | {"attention.kind": "static", "attention.projection": "low_rank", "skip.attention": True},
    *(
        LINEAR | {"skip.attention": False, "attention.projection": "low_rank", "depth": 1, "parallel": parallel}
        for parallel in (False, True)
    ),
    {"depth": 0, "ffn.kind": "mlp"},
    {"depth": 0, "norm.kind": "layernorm"},
    {"depth": 0, "norm.kind": "rmsnorm", "ffn.kind": "mlp", "norm.placement": "post"},
    {"depth": 0, "bias": True, "position": "learned"},
    {"norm.kind": "layernorm", "skip.attention": False, "ffn.kind": "mlp"},
    {"norm.kind": "rmsnorm", "skip.attention": False, "position": "rotary"},
    {"norm.kind": "srmsnorm", "skip.attention": False, "bias": True},
    {"norm.kind": "rmsnorm", "skip.attention": False, "norm.placement": "post"},
    {"norm.kind": "rmsnorm", "attention.kind": "off", "ffn.kind": "mlp", "skip.ffn": False},
    {"norm.kind": "rmsnorm", "attention.kind": "off", "ffn.kind": "mlp"},
]

ONE_TOKEN = [
    {},
    {"norm.kind": "rmsnorm"},
    *(PAIRS | {"attention.kind": kind} for kind in ("softmax", "lightning", "channel")),
    {"position": "rotary"},
]

NO_NORM = {"norm.kind": "off", "bias": False}
BASELINES = [
    *({"name": "mlp", "activation": kind, "bias": False} for kind in ("tanh", "identity", "gelu")),
    {"name": "mlp", "activation": "tanh"},
    {"name": "mlp", "activation": "identity"},
    *({"name": "mlp", "depth": 0, "bias": bias} for bias in (True, False)),
    *({"name": "factorization_machine", "bias": bias} for bias in (True, False)),
    *({"name": name, "depth": depth, "bias": False} for name in ("lstm", "gru") for depth in (0, 1)),
    {"name": "gru", "depth": 1},
    *({"name": "cnn_1d", "depth": 1, "activation": kind, **NO_NORM} for kind in ("tanh", "identity", "relu")),
    {"name": "cnn_1d", "depth": 1, "activation": "identity", "bias": False},
    {"name": "cnn_1d", "depth": 1, "activation": "identity", "norm.kind": "off"},
    {"name": "cnn_1d", "depth": 1, "activation": "tanh"},
    *({"name": "cnn_1d", "depth": 1, "kernel_size": size} for size in (1, 2, 5)),
    {"name": "cnn_1d", "depth": 2, "causal": True, "kernel_size": 2},
    {"name": "cnn_1d", "depth": 0},
    {"name": "cnn_1d", "depth": 0, **NO_NORM},
    *({"name": "mixer", "depth": 1, "activation": kind, **NO_NORM} for kind in ("tanh", "identity", "gelu")),
    {"name": "mixer", "depth": 1, "activation": "tanh", "bias": False},
    {"name": "mixer", "depth": 1, "activation": "tanh", "norm.kind": "off"},
    {"name": "mixer", "depth": 0, "bias": False},
    {"name": "mixer", "depth": 0, **NO_NORM},
]

CASES = [
    *((BARE | knobs, 7) for knobs in TRANSFORMERS),
    *((BARE | knobs, 1) for knobs in ONE_TOKEN),
    *(({"width": WIDTH} | knobs, 7) for knobs in BASELINES),
]


def config_of(knobs):
    tree = {}
    for key, value in knobs.items():
        tree = override(tree, key, value)
    return parse_config({"model": tree}).model


def label(knobs, tokens):
    return "-".join(f"{key}={value}" for key, value in knobs.items() if BARE.get(key) != value) + f"-{tokens}"


@pytest.fixture(scope="module", params=CASES, ids=lambda case: label(*case))
def case(request, draw_module):
    """The config, the number of tokens, and what the drawn model does."""
    knobs, tokens = request.param
    config = config_of(knobs)

    def build():
        rngs = AbstractRngs()
        embedding = FeatureEmbedding("dense", WIDTH, WIDTH, bias=config.bias, dtype="float32", rngs=rngs)
        return Network(config, embedding=embedding, grid=(tokens,), outputs=3, rngs=rngs)

    network = draw_module(build).module
    x, y = np.random.default_rng(0).normal(size=(2, tokens, WIDTH)).astype(np.float32)
    straight = 2.5 * x - 1.5 * y
    nudges = np.eye(tokens * WIDTH, dtype=np.float32).reshape(-1, tokens, WIDTH)
    # One batch for both, so that what is compiled for the body of one serves the other.
    longer = x * np.linspace(1.5, 3, tokens, dtype=np.float32)[:, None]
    batch = jnp.asarray(np.stack([x, -x, longer, y, straight, *(x + nudges)]))
    logits, of_longer = np.split(np.asarray(network(batch))[:3], [2])
    of_x, _, _, of_y, of_straight, *nudged = np.asarray(network.body(batch))
    expected = 2.5 * of_x - 1.5 * of_y
    # [t, c, s, d]: how far output feature c of token t moves with input feature d of token s.
    moved = np.abs(np.stack(nudged) - of_x).reshape(tokens, WIDTH, tokens, WIDTH).transpose(2, 3, 0, 1)
    return (
        config,
        tokens,
        {
            "odd": np.abs(logits.sum(axis=0)).max() / np.abs(logits).max(),
            "scale": np.abs(of_longer[0] - logits[0]).max() / np.abs(logits).max(),
            "affine": np.abs(of_straight - expected).max() / np.abs(expected).max(),
            "moved": np.where(moved > 1e-5, moved, 0),
            # How many dimensions a token's output moves in with the token's own features.
            "rank": np.linalg.matrix_rank((np.stack(nudged)[-WIDTH:] - of_x)[:, -1], tol=1e-4),
        },
    )


@pytest.mark.integration
def test_theory_says_what_the_model_does(case):
    config, tokens, found = case
    assert found["odd"] < 1e-5 if theory.is_odd(config, tokens) else found["odd"] > 1e-3, "odd"
    assert found["affine"] < 1e-5 if theory.is_affine(config, tokens) else found["affine"] > 1e-3, "affine"
    if config.name == "transformer":
        assert found["scale"] < 1e-5 if theory.is_scale_invariant(config) else found["scale"] > 1e-3, "scale invariant"
    across = found["moved"].max(axis=(0, 2))[~np.eye(WIDTH, dtype=bool)]
    assert bool(across.max() > 0) == theory.mixes_features(config, tokens), "mixes features"
    size = theory.block_size(config, tokens)
    block = np.arange(WIDTH) // size
    assert not found["moved"].max(axis=(0, 2))[block[:, None] != block].any(), "mixes features across blocks"
    blocks_alone = config.name == "transformer" and config.attention.kind == "mean" and config.ffn.projection == "block"
    assert found["moved"].max(axis=(0, 2))[block[:, None] == block].all() or not blocks_alone, "mixes inside blocks"
    assert found["rank"] == theory.rank(config, tokens) or theory.rank(config, tokens) == WIDTH, "rank"
    latest, earliest = np.nonzero(found["moved"].max(axis=(1, 3)))
    assert max(latest - earliest) == min(theory.reach(config, tokens), tokens - 1), "reach"


def test_the_cases_answer_every_question_both_ways():
    configs = [(config_of(knobs), tokens) for knobs, tokens in CASES]
    for name in {config.name for config, _ in configs} - {"factorization_machine", "lstm", "gru"}:
        own = [(config, tokens) for config, tokens in configs if config.name == name]
        assert {theory.is_odd(*each) for each in own} == {True, False}
        assert {theory.is_affine(*each) for each in own} == {True, False}
        assert {theory.mixes_features(*each) for each in own} == {True, False}
    assert {theory.reach(*each) for each in configs} >= {0, 2, 4, np.inf}
    assert {theory.block_size(*each) for each in configs} == {1, 2, 4}
    assert sum(theory.rank(*each) == 1 for each in configs) == 5
