"""Attention modules against float64 NumPy, from the parameters that they own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from flaxformer_lab import registry
from flaxformer_lab.config import parse_config
from flaxformer_lab.model_config import AttentionConfig, TransformerConfig
from flaxformer_lab.modules.attention import make_attention
from flaxformer_lab.modules.intermediates import DISABLED, Intermediates
from flaxformer_lab.modules.rngs import AbstractRngs, Rngs

TOKENS, WIDTH = 4, 8
X = np.random.default_rng(0).normal(size=(2, TOKENS, WIDTH))
CAUSAL = np.tril(np.ones((TOKENS, TOKENS), bool))


@pytest.fixture
def make(draw_module):
    """Makes a module with drawn parameters, and these in float64."""

    def make(attention, **model):
        tree = {"width": WIDTH, "attention": {"num_heads": 2} | attention} | model
        config = parse_config({"model": tree}).model
        drawn = draw_module(lambda: make_attention(config, tokens=TOKENS, rngs=AbstractRngs()))
        return drawn.module, drawn.exact

    return make


def project(p, parts, heads):
    """Query, key and value (or the value alone), each [batch, heads, tokens, head_dim]."""
    projected = X @ p["projection.kernel"] + p["projection.bias"]
    return list(projected.reshape(2, TOKENS, heads, parts, -1).transpose(3, 0, 2, 1, 4))


def merge(p, mixed):
    return mixed.swapaxes(1, 2).reshape(2, TOKENS, -1) @ p["output.kernel"] + p["output.bias"]


def run(module, intermediates=None, **options):
    """The output, from one compiled program; what it intermediates goes into `intermediates`."""

    @jax.jit
    def call(x):
        inner = Intermediates()
        return module(x, intermediates=DISABLED if intermediates is None else inner, **options), inner.values

    output, values = call(jnp.asarray(X, jnp.float32))
    if intermediates is not None:
        intermediates.values.update(values)
    return output


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(2, None), (1, None), (3, 5)])
def test_softmax(make, num_heads, head_dim, causal):
    module, p = make({"num_heads": num_heads, "head_dim": head_dim}, causal=causal)
    query, key, value = project(p, 3, num_heads)
    assert query.shape[-1] == (head_dim or WIDTH // num_heads)
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    scores = np.where(CAUSAL, scores, -np.inf) if causal else scores
    expected = merge(p, softmax(scores, axis=-1) @ value)
    np.testing.assert_allclose(run(module), expected, rtol=1e-4, atol=1e-5)


def test_query_and_key_act_through_one_merged_matrix(make):
    """x_i W_q W_k^T x_j, as if query and key had never been apart (the QK circuit of Elhage et al. 2021)."""
    module, p = make({}, bias=False)
    kernel = p["projection.kernel"].reshape(WIDTH, 2, 3, 4)
    intermediates = Intermediates()
    run(module, intermediates=intermediates)
    for head in range(2):
        merged = kernel[:, head, 0] @ kernel[:, head, 1].T
        assert merged.shape == (WIDTH, WIDTH)
        scores = np.einsum("bic,cd,bjd->bij", X, merged, X) / np.sqrt(4)
        np.testing.assert_allclose(
            intermediates.values["weights"][:, head], softmax(scores, axis=-1), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("causal", [False, True])
def test_mean(make, causal):
    module, p = make({"kind": "mean"}, causal=causal)
    assert p["projection.kernel"].shape == (WIDTH, WIDTH)
    (value,) = project(p, 1, 2)
    weights = CAUSAL / CAUSAL.sum(1, keepdims=True) if causal else np.full((TOKENS, TOKENS), 1 / TOKENS)
    np.testing.assert_allclose(run(module), merge(p, weights @ value), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_static(make, causal):
    module, p = make({"kind": "static"}, causal=causal)
    assert p["scores"].shape == (2, TOKENS, TOKENS)
    (value,) = project(p, 1, 2)
    scores = np.where(CAUSAL, p["scores"], -np.inf) if causal else p["scores"]
    expected = merge(p, softmax(scores, axis=-1)[None] @ value)
    np.testing.assert_allclose(run(module), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_random_weights_are_those_of_the_layer_and_stay(make, causal):
    module, p = make({"kind": "random"}, causal=causal)
    assert "scores" not in p
    (value,) = project(p, 1, 2)
    drawn = np.random.default_rng(0).normal(size=(2, TOKENS, TOKENS))
    scores = np.where(CAUSAL, drawn, -np.inf) if causal else drawn
    np.testing.assert_allclose(run(module), merge(p, softmax(scores, axis=-1)[None] @ value), rtol=1e-4, atol=1e-5)
    config = TransformerConfig(width=WIDTH, attention=AttentionConfig(kind="random", num_heads=2))
    tables = [make_attention(config, tokens=3, layer=layer, rngs=Rngs(5)).score_table() for layer in (0, 1)]
    assert not np.allclose(*tables)


def test_fourier_over_tokens(make):
    module, p = make({"kind": "fourier"})
    (value,) = project(p, 1, 2)
    transformed = np.fft.fft(value, axis=2, norm="ortho")
    np.testing.assert_allclose(run(module), merge(p, transformed.real - transformed.imag), rtol=1e-4, atol=1e-5)


def test_static_weights_start_as_the_mean():
    config = TransformerConfig(width=WIDTH, attention=AttentionConfig(kind="static", num_heads=2))
    module = make_attention(config, tokens=TOKENS, rngs=Rngs(0))
    intermediates = Intermediates()
    run(module, intermediates=intermediates)
    np.testing.assert_allclose(intermediates.values["weights"], np.full((1, 2, TOKENS, TOKENS), 1 / TOKENS), rtol=1e-6)


def test_channel(make):
    module, p = make({"kind": "channel"})
    query, key, value = project(p, 3, 2)
    query, key = (part / np.linalg.norm(part, axis=2, keepdims=True) for part in (query, key))
    scores = p["temperature"][None, :, None, None] * (query.swapaxes(-1, -2) @ key)
    mixed = np.einsum("bhed,bhtd->bhte", softmax(scores, axis=-1), value)
    np.testing.assert_allclose(run(module), merge(p, mixed), rtol=1e-4, atol=1e-5)


def test_diagonal_projection_and_output(make):
    module, p = make({"projection": "diagonal", "output": "diagonal"})
    scale, bias = (p[f"projection.{name}"].reshape(2, 3, 4) for name in ("scale", "bias"))
    query, key, value = (
        X.reshape(2, TOKENS, 2, 4).swapaxes(1, 2) * scale[None, :, part, None] + bias[None, :, part, None]
        for part in range(3)
    )
    mixed = softmax(query @ key.swapaxes(-1, -2) / 2, axis=-1) @ value
    expected = mixed.swapaxes(1, 2).reshape(X.shape) * p["output.scale"] + p["output.bias"]
    np.testing.assert_allclose(run(module), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output", ["identity", "off"])
def test_without_projections_only_attention_is_left(make, output):
    module, p = make({"projection": "identity", "output": output})
    assert not p
    heads = X.reshape(2, TOKENS, 2, 4).swapaxes(1, 2)
    mixed = softmax(heads @ heads.swapaxes(-1, -2) / 2, axis=-1) @ heads
    np.testing.assert_allclose(run(module), mixed.swapaxes(1, 2).reshape(X.shape), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_heads", [2, 4])
def test_query_key_and_value_each_keep_blocks_apart(make, num_heads):
    """Of three fused maps feature c of each part depends on the features of c's block, whatever head it is in."""
    module, _ = make({"num_heads": num_heads, "projection": "block", "block_size": 2})

    def parts(token):
        return [part.reshape(-1) for part in module.project_qkv(token[None, None])]

    block = np.kron(np.eye(WIDTH // 2), np.ones((2, 2)))
    for moved in jax.jit(jax.jacrev(parts))(np.ones(WIDTH, np.float32)):
        np.testing.assert_array_equal(np.asarray(moved) != 0, block)


def test_heads_may_be_wider_or_narrower_than_their_share_of_a_structured_map(make):
    for kind in ("block", "low_rank", "monarch"):
        knobs = {"projection": kind, "output": kind, "block_size": 2, "rank": 2}
        module, _ = make(knobs | {"num_heads": 1, "head_dim": 4})
        assert run(module).shape == X.shape


def test_rotary_turns_query_and_key_and_leaves_the_value(make):
    module, p = make({"num_heads": 2}, position="rotary")
    query, key, value = project(p, 3, 2)

    def turned(x):
        numbers = x[..., :2] + 1j * x[..., 2:]
        numbers = numbers * np.exp(1j * np.arange(TOKENS)[:, None] / 10000 ** (np.arange(2) / 2))
        return np.concatenate([numbers.real, numbers.imag], axis=-1)

    scores = turned(query) @ turned(key).swapaxes(-1, -2) / 2
    expected = merge(p, softmax(scores, axis=-1) @ value)
    np.testing.assert_allclose(run(module), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kind", [*registry.declaring("attention", "has_token_weights"), "linear", "lightning", "channel", "probsparse"]
)
def test_tapped_weights_give_the_output_again(make, kind):
    valid = np.array([[True] * TOKENS, [True] * (TOKENS - 1) + [False]])
    module, p = make({"kind": kind})
    intermediates = Intermediates()
    output = run(module, intermediates=intermediates, valid=jnp.asarray(valid))
    applied = {"lightning": "scores", "channel": "channel_weights"}.get(kind, "weights")
    weights = np.asarray(intermediates.values[applied], np.float64)
    if kind != "lightning":
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    value = project(p, module.parts, 2)[-1]
    if kind == "channel":
        mixed = np.einsum("bhed,bhtd->bhte", weights, value)
    else:
        assert not np.any(weights[1, ..., -1])
        mixed = weights @ value
    np.testing.assert_allclose(output, merge(p, mixed), rtol=1e-4, atol=1e-5)


def elu_features(x):
    return np.where(x > 0, x + 1, np.exp(np.minimum(x, 0)))


@pytest.mark.parametrize("causal", [False, True])
def test_linear(make, causal):
    module, p = make({"kind": "linear"}, causal=causal)
    query, key, value = project(p, 3, 2)
    scores = elu_features(query) @ elu_features(key).swapaxes(-1, -2) * (CAUSAL if causal else 1)
    expected = merge(p, scores / scores.sum(-1, keepdims=True) @ value)
    np.testing.assert_allclose(run(module), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("slopes", ["transnormer", "flash_linear_attention"])
@pytest.mark.parametrize("causal", [False, True])
def test_lightning_in_the_second_of_three_layers(draw_module, causal, slopes):
    attention = {"num_heads": 2, "kind": "lightning", "slopes": slopes}
    config = parse_config({"model": {"width": WIDTH, "depth": 3, "attention": attention, "causal": causal}}).model
    drawn = draw_module(lambda: make_attention(config, tokens=TOKENS, layer=1, rngs=AbstractRngs()))
    query, key, value = project(drawn.exact, 3, 2)
    rates = {"transnormer": np.array([2**-4, 2**-8]) * (0.5 + 1e-5), "flash_linear_attention": [0, 4 * 2 / 3]}[slopes]
    distance = np.abs(np.subtract.outer(np.arange(TOKENS), np.arange(TOKENS)))
    decay = np.exp(-np.reshape(rates, (2, 1, 1)) * distance) * (CAUSAL if causal else 1)
    scores = query @ key.swapaxes(-1, -2) * decay / (2 if slopes == "flash_linear_attention" else 1)
    np.testing.assert_allclose(run(drawn.module), merge(drawn.exact, scores @ value), rtol=1e-4, atol=1e-5)


def test_heads_share_keys_and_values_in_groups(make):
    module, p = make({"num_heads": 4, "head_dim": 2, "num_kv_heads": 2})
    assert p["projection.kernel"].shape == (WIDTH, (4 + 2 + 2) * 2)
    projected = (X @ p["projection.kernel"] + p["projection.bias"]).reshape(2, TOKENS, 2, 4, 2)
    query, key, value = (part.reshape(2, TOKENS, -1, 2).swapaxes(1, 2) for part in np.split(projected, [2, 3], axis=3))
    key, value = key[:, [0, 0, 1, 1]], value[:, [0, 0, 1, 1]]
    mixed = softmax(query @ key.swapaxes(-1, -2) / np.sqrt(2), axis=-1) @ value
    np.testing.assert_allclose(run(module), merge(p, mixed), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", registry.names("attention"))
def test_shared_heads_are_those_of_an_attention_whose_keys_and_values_are_equal(make, kind):
    """For every kind: the parameters of each shared head written out once for each head that shares it."""
    shared, p = make({"kind": kind, "num_heads": 4, "head_dim": 2, "num_kv_heads": 2})
    whole, _ = make({"kind": kind, "num_heads": 4, "head_dim": 2})

    def spread(leaf):
        """For each of two groups: two queries, a key, a value; or a value alone."""
        group = leaf.reshape(*leaf.shape[:-1], 2, -1, 2)
        own = [[0, 2, 3], [1, 2, 3]] if shared.parts == 3 else [[0], [0]]
        return group[..., own, :].reshape(*leaf.shape[:-1], -1)

    whole.projection.kernel[...] = jnp.asarray(spread(p["projection.kernel"]), jnp.float32)
    whole.projection.bias[...] = jnp.asarray(spread(p["projection.bias"]), jnp.float32)
    np.testing.assert_allclose(run(shared), run(whole), rtol=1e-4, atol=1e-5)


CROSSING = [kind for kind in registry.names("attention") if registry.ask("attention", kind, "crosses")]


@pytest.mark.integration
@pytest.mark.parametrize("kind", CROSSING)
@pytest.mark.parametrize("shares", [1, 2])
def test_shared_heads_of_another_sequence_are_written_out_ones(draw_module, kind, shares):
    """Of the other sequence alone: each head has a query of its own."""

    def make(**knobs):
        attention = {"kind": kind, "num_heads": 4, "head_dim": 2, "wavelet_order": 2, "wavelet_channels": 2} | knobs
        config = parse_config({"model": {"width": WIDTH, "attention": attention}}).model
        options = {"tokens": TOKENS, "memory_tokens": 6, "crosses": True}
        build = registry.lookup("attention", kind).build
        drawn = draw_module(lambda: build(config, **options, rngs=AbstractRngs()))
        return drawn.module, drawn.exact

    (shared, p), (whole, _) = make(num_kv_heads=shares), make()
    parts = shared.parts - 1
    for name in ("kernel", "bias"):
        ours, theirs = (getattr(each.query_projection, name) for each in (shared, whole))
        theirs[...] = ours[...]
        heads = p[f"projection.{name}"].reshape(*ours.shape[:-1], shares, 1, parts, 2)
        spread = np.repeat(heads, 4 // shares, axis=-3).reshape(*ours.shape[:-1], -1)
        getattr(whole.projection, name)[...] = jnp.asarray(spread, jnp.float32)
    memory = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, WIDTH)), jnp.float32)
    np.testing.assert_allclose(run(shared, memory=memory), run(whole, memory=memory), rtol=1e-4, atol=1e-5)


def test_activation_norm_and_gate_stand_where_the_paper_has_them(make):
    """TransNormerLLM: activation of query, key and value; norm of the merged heads; then the gate."""
    module, p = make({"kind": "lightning", "activation": "silu", "norm": "srmsnorm", "gate": True}, depth=1)
    assert p["gate.down.kernel"].shape == (WIDTH, 4) and p["gate.up.kernel"].shape == (4, WIDTH)
    query, key, value = (part / (1 + np.exp(-part)) for part in project(p, 3, 2))
    rates = np.array([2**-4, 2**-8]) * (1 + 1e-5)
    distance = np.abs(np.subtract.outer(np.arange(TOKENS), np.arange(TOKENS)))
    scores = query @ key.swapaxes(-1, -2) * np.exp(-rates[:, None, None] * distance)
    merged = (scores @ value).swapaxes(1, 2).reshape(X.shape)
    merged = merged / np.sqrt((merged**2).mean(-1, keepdims=True) + 1e-6)
    low = X @ p["gate.down.kernel"] + p["gate.down.bias"]
    merged = merged / (1 + np.exp(-(low @ p["gate.up.kernel"] + p["gate.up.bias"])))
    expected = merged @ p["output.kernel"] + p["output.bias"]
    np.testing.assert_allclose(run(module), expected, rtol=1e-4, atol=1e-5)


def test_off_is_nothing():
    config = TransformerConfig(attention=AttentionConfig(kind="off"))
    assert make_attention(config, tokens=TOKENS, rngs=Rngs(0)) is None


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", registry.names("attention"))
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_an_example_of_nothing_but_padding_becomes_0_in_every_kind(draw_module, kind, causal, dtype):
    """Without biases: nothing is mixed, nothing gets a gradient, and the other example does not change."""
    if causal and registry.ask("attention", kind, "causal") is not True:
        pytest.skip(f"{kind} is not causal")
    tree = {
        "width": WIDTH,
        "bias": False,
        "causal": causal,
        "dtype": dtype,
        "attention": {"num_heads": 2, "kind": kind},
    }
    config = parse_config({"model": tree}).model
    drawn = draw_module(lambda: make_attention(config, tokens=TOKENS, rngs=AbstractRngs()))
    valid = jnp.asarray([[True] * TOKENS, [False] * TOKENS])

    @jax.jit
    def run(x):
        output, pull = jax.vjp(lambda x: drawn.apply(drawn.params, x, valid=valid), x)
        return output, *pull(jnp.ones_like(output))

    for array in run(jnp.asarray(X, dtype)):
        assert np.asarray(array[0]).any() and not np.asarray(array[1]).any()


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("kind", ["softmax", "static", "mean", "linear", "lightning"])
def test_a_token_that_sees_only_padding_reads_no_other(draw_module, kind, window):
    """Padding comes first: the tokens before the first valid one do not see it, which comes later."""
    if window is not None and registry.ask("attention", kind, "windowed") is not True:
        pytest.skip(f"{kind} has no window")
    tree = {
        "width": WIDTH,
        "bias": False,
        "causal": True,
        "attention": {"num_heads": 2, "kind": kind, "window": window},
    }
    config = parse_config({"model": tree}).model
    drawn = draw_module(lambda: make_attention(config, tokens=TOKENS, rngs=AbstractRngs()))
    valid = jnp.asarray(np.arange(TOKENS) >= 2)[None]
    one = jnp.asarray(X[:1], jnp.float32)

    call = lambda x: drawn.apply(drawn.params, x, valid=valid)[0]  # noqa: E731
    output, read = map(np.asarray, jax.jit(lambda x: (call(x), jax.jacrev(call)(x)))(one))
    reached = np.abs(read[:, :, 0]).max(axis=(1, 3)) > 1e-7  # [token that reads, token that is read]
    np.testing.assert_array_equal(reached[:2], False)
    assert not reached[2, 3] and reached[2, 2] and reached[3, 3]
    assert not output[:2].any()
