"""What the Transformer's knobs promise, proved by gradients, symmetries and algebra."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters.partial_eval import dce_jaxpr

from flaxformer_lab.errors import ConfigError
from flaxformer_lab.functional.position import sinusoidal

TOKENS, WIDTH = 4, 8
LATER = np.triu(np.ones((TOKENS, TOKENS), bool), 1)  # [t, s] with s > t
KINDS = ("softmax", "linear", "lightning", "mean", "static", "channel")
ATTENTION_ALONE = {"norm.kind": "off", "ffn.kind": "off"}


def by_tokens(jacobian):
    """The largest |d output[t] / d input[s]|: [t, s]."""
    return np.abs(jacobian).max(axis=(1, 3))


def by_features(jacobian):
    """The largest |d output[c] / d input[d]|: [c, d]."""
    return np.abs(jacobian).max(axis=(0, 2))


# ------------------------------------------------------------------------------------------- what reaches what


@pytest.mark.parametrize(
    ("kind", "position"),
    [
        ("softmax", "learned"),
        ("softmax", "rotary"),
        ("linear", "rotary"),
        ("lightning", "rotary"),
        ("mean", "learned"),
        ("static", "learned"),
    ],
)
def test_causal_tokens_see_themselves_and_the_past_alone(transformer, stream, kind, position):
    knobs = {"attention.kind": kind, "position": position, "causal": True}
    reach = by_tokens(transformer(knobs).jacobian(stream))
    assert np.all(reach[LATER] == 0)
    assert np.all(reach[~LATER] > 1e-6)


@pytest.mark.parametrize(("kind", "depth"), [("softmax", 1), ("softmax", 2), ("mean", 1), ("static", 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_a_window_ends_sight_layer_by_layer(transformer, stream, kind, depth, causal):
    knobs = {"attention.kind": kind, "attention.window": 2, "causal": causal, "depth": depth}
    far = np.abs(np.subtract.outer(np.arange(TOKENS), np.arange(TOKENS)))
    reach = by_tokens(transformer(knobs).jacobian(stream))
    seen = (far <= depth) & ~(LATER if causal else np.zeros_like(LATER))
    assert np.all(reach[~seen] == 0)
    assert np.all(reach[seen] > 1e-6)


def test_without_attention_tokens_stay_apart(transformer, stream):
    reach = by_tokens(transformer({"attention.kind": "off"}).jacobian(stream))
    assert np.all(reach[~np.eye(TOKENS, dtype=bool)] == 0)
    assert np.all(np.diag(reach) > 1e-6)


PER_DIMENSION = {
    "attention.projection": "diagonal",
    "attention.output": "diagonal",
    "attention.num_heads": WIDTH,
    "attention.head_dim": 1,
    "norm.kind": "off",
    "depth": 2,
}


@pytest.mark.parametrize("ffn", ["off", "diagonal"])
def test_per_dimension_keeps_features_apart_while_tokens_mix(transformer, stream, ffn):
    jacobian = transformer(PER_DIMENSION | {"ffn.kind": ffn}).jacobian(stream)
    across = ~np.eye(WIDTH, dtype=bool)
    assert np.all(by_features(jacobian)[across] == 0)
    within = np.abs(jacobian[:, np.arange(WIDTH), :, np.arange(WIDTH)])  # [feature, t, s]
    assert np.all(within.max(axis=0) > 1e-6)
    assert np.all(within.max(axis=(1, 2)) > 1e-6)


@pytest.mark.parametrize(
    "knobs",
    [
        {"attention.projection": "dense"},
        {"attention.output": "dense"},
        {"attention.num_heads": WIDTH // 2, "attention.head_dim": 2},
        {"ffn.kind": "mlp"},
        {"norm.kind": "rmsnorm"},
    ],
    ids=lambda knobs: "-".join(map(str, knobs.values())),
)
def test_each_knob_of_per_dimension_is_needed(transformer, stream, knobs):
    jacobian = transformer(PER_DIMENSION | {"ffn.kind": "off"} | knobs).jacobian(stream)
    assert np.any(by_features(jacobian)[~np.eye(WIDTH, dtype=bool)] > 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_all_tokens_see_one_another_but_for_padded_ones(transformer, stream, kind):
    valid = jnp.array([[True, False, True, True]])
    jacobian = transformer({"attention.kind": kind}).jacobian(stream, valid=valid)
    reach = by_tokens(jacobian)
    seen = np.asarray(valid[0])
    assert np.all(reach[np.ix_(seen, ~seen)] == 0)
    assert np.all(reach[np.ix_(seen, seen)] > 1e-6)


def test_a_sequence_without_its_padding_gives_the_same(transformer, stream):
    small = transformer({"depth": 2})
    valid = jnp.array([[True, True, False, False]] * 2)
    np.testing.assert_allclose(small(stream, valid=valid)[:, :2], small(stream[:, :2]), rtol=1e-4, atol=1e-5)


def test_examples_of_a_batch_do_not_meet(transformer, stream):
    small, other = transformer({"depth": 2}), stream.copy()
    other[0] = -other[0, ::-1]
    assert np.any(small(other)[0] != small(stream)[0])
    np.testing.assert_array_equal(small(other)[1], small(stream)[1])


def test_a_single_token_attends_to_itself(transformer, stream):
    x = stream[:, :1]
    small = transformer(ATTENTION_ALONE | {"position": "off"})
    attention = {name.removeprefix("blocks.0.attention."): leaf for name, leaf in small.exact.items()}
    projected = x @ attention["projection.kernel"] + attention["projection.bias"]
    value = projected.reshape(*x.shape[:2], 2, 3, -1)[..., 2, :].reshape(x.shape)  # by head: query, key, value
    expected = x + value @ attention["output.kernel"] + attention["output.bias"]
    np.testing.assert_allclose(small(x), expected, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------------- symmetries, algebra

LINEAR = {
    "attention.kind": "static",
    "ffn.activation": "identity",
    "norm.kind": "off",
    "bias": False,
    "position": "off",
    "depth": 2,
}


@pytest.mark.parametrize("causal", [False, True])
def test_the_linear_network_is_linear(transformer, stream, causal):
    small = transformer(LINEAR | {"causal": causal})
    x, y = stream, stream[::-1]
    expected = 2.5 * small(x) - 0.75 * small(y)
    np.testing.assert_allclose(small(2.5 * x - 0.75 * y), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "knobs",
    [
        *({"attention.kind": kind} for kind in ("softmax", "linear", "lightning", "channel")),
        {"attention.activation": "silu"},
        {"attention.norm": "srmsnorm"},
        {"attention.gate": True},
        {"ffn.activation": "gelu"},
        {"ffn.kind": "bilinear"},
        {"norm.kind": "rmsnorm"},
        {"bias": True},
        {"position": "learned"},
    ],
    ids=lambda knobs: "-".join(map(str, knobs.values())),
)
def test_each_knob_of_the_linear_network_is_needed(transformer, stream, knobs):
    small = transformer(LINEAR | knobs)
    x, y = stream, stream[::-1]
    expected = 2.5 * small(x) - 0.75 * small(y)
    assert np.abs(small(2.5 * x - 0.75 * y) - expected).max() > 1e-2 * np.abs(expected).max()


ODD = {"bias": False, "position": "off", "depth": 2}


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("activation", ["tanh", "identity"])
@pytest.mark.parametrize("kind", ["softmax", "lightning", "channel"])
def test_an_odd_network_without_bias_is_odd(transformer, stream, kind, activation, norm):
    small = transformer(ODD | {"attention.kind": kind, "ffn.activation": activation, "norm.kind": norm})
    np.testing.assert_allclose(small(-stream), -small(stream), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "knobs",
    [
        {"ffn.activation": "relu"},
        {"ffn.activation": "tanh", "bias": True},
        {"ffn.kind": "gated"},
        {"ffn.activation": "tanh", "attention.kind": "linear"},
        {"ffn.activation": "tanh", "attention.gate": True},
    ],
    ids=lambda knobs: "-".join(map(str, knobs.values())),
)
def test_other_networks_are_not_odd(transformer, stream, knobs):
    small = transformer(ODD | knobs)
    assert np.abs(small(-stream) + small(stream)).max() > 1e-2


@pytest.mark.parametrize("kind", ["softmax", "linear", "mean", "channel"])
def test_without_positions_the_order_of_tokens_does_not_matter(transformer, stream, kind):
    order = np.array([2, 0, 3, 1])
    small = transformer({"attention.kind": kind, "position": "off"})
    np.testing.assert_allclose(small(stream[:, order]), small(stream)[:, order], rtol=1e-4, atol=1e-5)
    placed = transformer({"attention.kind": kind, "position": "sinusoidal"})
    assert np.abs(placed(stream[:, order]) - placed(stream)[:, order]).max() > 1e-2


# ------------------------------------------------------------------------------------------- each knob


@pytest.mark.parametrize(
    "knobs",
    [
        *({"attention.kind": kind} for kind in ("linear", "lightning", "channel", "mean", "static", "off")),
        {"attention.num_kv_heads": 1},
        {"attention.window": 2},
        {"attention.activation": "silu"},
        *({"attention.norm": kind} for kind in ("layernorm", "rmsnorm", "srmsnorm")),
        {"attention.gate": True},
        {"attention.num_heads": 1},
        {"attention.num_heads": 8},
        {"attention.head_dim": 3},
        {"attention.projection": "diagonal"},
        {"attention.projection": "identity"},
        {"attention.output": "diagonal"},
        {"attention.output": "off"},
        *({"ffn.kind": kind} for kind in ("gated", "bilinear", "diagonal", "off")),
        *({"ffn.activation": name} for name in ("gelu_tanh", "relu", "silu", "tanh", "identity")),
        {"ffn.expansion": 1.0},
        {"norm.kind": "rmsnorm"},
        {"norm.kind": "srmsnorm"},
        {"norm.kind": "off"},
        {"norm.placement": "post"},
        {"norm.epsilon": 0.1},
        {"skip.attention": False},
        {"skip.ffn": False},
        *({"position": kind} for kind in ("sinusoidal", "rotary", "off")),
        {"bias": False},
        {"causal": True},
        {"dtype": "bfloat16"},
        {"depth": 2},
        {"depth": 0},
    ],
    ids=lambda knobs: "-".join(f"{key}={value}" for key, value in knobs.items()),
)
def test_every_knob_changes_the_output(transformer, stream, knobs):
    """Parameters of one name and shape are the same on both sides, so the difference is the knob's."""
    x = stream.astype(jnp.dtype(knobs.get("dtype", "float32")))
    difference = np.abs(transformer(knobs)(x).astype(np.float32) - transformer()(stream))
    assert np.all(difference.max(axis=(1, 2)) > 1e-6)


def test_conventions_of_slopes_change_the_output_of_lightning(transformer, stream):
    """In three layers; two of the conventions differ by next to nothing."""
    knobs = {"attention.kind": "lightning", "depth": 3, "norm.kind": "off"}
    first, second, third = (
        transformer(knobs | {"attention.slopes": name})(stream)
        for name in ("transnormer", "minimax", "flash_linear_attention")
    )
    assert np.abs(first - third).max() > 1e-3
    assert 0 < np.abs(first - second).max() < np.abs(first - third).max()


@pytest.mark.parametrize(
    ("knobs", "limit"),
    [
        ({"position": "learned"}, "model.position=learned"),
        ({"position": "off", "attention.kind": "static"}, "this kind of attention has weights for"),
    ],
)
def test_a_sequence_that_is_too_long_is_refused(transformer, stream, knobs, limit):
    with pytest.raises(ConfigError, match=f"a sequence of 8 tokens is longer than the 4 that {limit}"):
        transformer(knobs)(np.concatenate([stream, stream], axis=1))


def test_an_empty_sequence_is_refused(transformer, stream):
    with pytest.raises(ConfigError, match="a sequence of 0 tokens"):
        transformer()(stream[:, :0])


def test_two_blocks_are_one_after_the_other(transformer, stream):
    """A network of depth 2 is that of depth 1 with its block run twice, each time with parameters of its own."""
    small = transformer({"depth": 2, "position": "off", "norm.kind": "off"})
    one = transformer({"depth": 1, "position": "off", "norm.kind": "off"})
    x = jnp.asarray(stream)
    for block in small.params["blocks"].values():
        x = one.apply({"blocks": {0: block}}, x)
    np.testing.assert_allclose(small(stream), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("placement", ["pre", "post"])
def test_depth_zero_is_position_and_norm(transformer, stream, placement):
    small = transformer({"depth": 0, "norm.placement": placement})
    x = stream + small.exact["position"]
    centred = x - x.mean(-1, keepdims=True)
    normalised = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    expected = normalised * small.exact["norm.scale"] + small.exact["norm.bias"]
    np.testing.assert_allclose(small(stream), expected, rtol=1e-4, atol=1e-5)


def test_learned_and_sinusoidal_positions_are_added(transformer, stream):
    bare = transformer({"position": "off"})
    learned, fixed = transformer({"position": "learned"}), transformer({"position": "sinusoidal"})
    np.testing.assert_allclose(
        learned(stream), bare(stream + np.asarray(learned.params["position"])), rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        fixed(stream), bare(stream + np.asarray(sinusoidal(TOKENS, WIDTH))), rtol=1e-5, atol=1e-5
    )
    assert "position" not in fixed.params


def test_a_shorter_sequence_takes_the_first_positions(transformer, stream):
    """In a causal network the first tokens cannot know that others follow."""
    small = transformer({"causal": True})
    np.testing.assert_allclose(small(stream[:, :2]), small(stream)[:, :2], rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------ intermediates, remat, dtype


def test_intermediates_leave_the_output_as_it_is(transformer, stream):
    small = transformer({"depth": 2})
    intermediates = small.intermediates(stream)
    np.testing.assert_array_equal(intermediates["output"], small(stream))
    for number in range(2):
        weights = intermediates[f"blocks.{number}.attention.weights"]
        assert weights.shape == (2, 2, TOKENS, TOKENS)
        np.testing.assert_allclose(np.sum(weights, axis=-1), 1, rtol=1e-5)


def test_rematerialised_blocks_give_the_same_values_gradients_and_intermediates(transformer, stream):
    plain, again = (transformer({"remat": remat}) for remat in (False, True))

    def values_and_gradients(small, params, x):
        return jax.value_and_grad(lambda params, x: jnp.sum(small.apply(params, x) ** 2), argnums=(0, 1))(params, x)

    @jax.jit
    def both(params, x):
        return [values_and_gradients(small, params, x) for small in (again, plain)]

    result, expected = both(plain.params, jnp.asarray(stream))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), result, expected)
    intermediates, expected = again.intermediates(stream), plain.intermediates(stream)
    assert intermediates.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(intermediates[name], value, rtol=1e-4, atol=1e-5)


def test_rematerialisation_recomputes_in_the_backward_pass(transformer, stream):
    def checkpoints(small):
        gradient = jax.make_jaxpr(jax.grad(lambda x: jnp.sum(small.apply(small.params, x))))(stream)
        return str(gradient).count("checkpoint") + str(gradient).count("remat")

    assert checkpoints(transformer({"remat": True})) > 0 == checkpoints(transformer())


@pytest.mark.integration
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_policy_keeps_products_and_leaves_the_gradient_as_it_is(transformer, stream, dtype):
    def of(knobs):
        small = transformer({"depth": 1, "dtype": dtype, **knobs})
        return small, jax.grad(lambda params: jnp.sum(small.apply(params, stream) ** 2))

    def products(knobs):
        small, gradient = of(knobs)
        live, _ = dce_jaxpr((traced := jax.make_jaxpr(gradient)(small.params).jaxpr), [True] * len(traced.outvars))
        return str(live).count("dot_general[")

    policies = ("nothing", "dots_with_no_batch_dims", "dots")
    counts = [products({"remat": True, "remat_policy": policy}) for policy in policies]
    assert counts[0] > counts[1] > counts[2] == products({})
    small, plain = of({})
    for policy in policies[1:] if dtype == "float32" else ():
        result = jax.jit(of({"remat": True, "remat_policy": policy})[1])(small.params)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), result, plain(small.params))


def test_dropout_follows_the_examples_keys_through_every_block(transformer, stream):
    small = transformer({"depth": 2, "dropout": 0.5})
    keys = jax.random.split(jax.random.key(0), 2)
    whole = small(stream, keys=keys)
    other = jnp.concatenate([keys[1:], keys[1:]])
    np.testing.assert_array_equal(small(stream, keys=other)[1], whole[1])
    assert np.any(small(stream, keys=other)[0] != whole[0])
    assert np.any(whole != small(stream))
    assert np.any(whole != small(stream, keys=keys[::-1]))
    again = transformer({"depth": 2, "dropout": 0.5, "remat": True})
    np.testing.assert_allclose(again(stream, keys=keys), whole, rtol=1e-5, atol=1e-5)


def test_blocks_drop_different_features(transformer, stream):
    """Blocks that add nothing but a large bias: each block's drops show as its own multiple."""
    small = transformer({"depth": 2, "dropout": 0.5, "attention.kind": "off", "norm.kind": "off", "position": "off"})
    params = jax.tree.map(jnp.zeros_like, small.params)
    for number, block in params["blocks"].items():
        block["ffn"]["down"]["bias"] = jnp.full(WIDTH, 10.0 ** (number + 2))
    output = small.apply(params, jnp.asarray(stream), keys=jax.random.split(jax.random.key(0), 2))
    added = np.asarray(output) - stream
    first, second = (added % 2000) > 100, added > 1900
    assert 0.2 < first.mean() < 0.8
    assert 0.2 < second.mean() < 0.8
    assert np.any(first != second)


@pytest.mark.parametrize("kind", ["softmax", "linear", "lightning", "channel"])
def test_half_precision_is_close_to_float32(transformer, stream, kind):
    exact = transformer({"attention.kind": kind, "depth": 2})(stream)
    half = transformer({"attention.kind": kind, "depth": 2, "dtype": "bfloat16"})
    result = half(stream.astype(jnp.dtype("bfloat16")))
    assert result.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(half.params))
    assert np.abs(result.astype(np.float32) - exact).max() < 3e-2 * np.abs(exact).max()
