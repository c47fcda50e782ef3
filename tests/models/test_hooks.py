"""Hooks read and replace every intermediate value, and ablations are made of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab import registry
from flaxformer_lab.config import parse_config
from flaxformer_lab.errors import ConfigError
from flaxformer_lab.models.hooks import ablate_ffn, ablate_head
from flaxformer_lab.models.network import Network, functionalize
from flaxformer_lab.modules.embedding import TokenEmbedding
from flaxformer_lab.modules.intermediates import Intermediates
from flaxformer_lab.modules.rngs import AbstractRngs
from flaxformer_lab.parsing import override

SYMBOLS = jnp.array([[0, 4, 2, 2], [1, 3, 3, 0]], jnp.int32)
VALID = jnp.array([[True, True, True, True], [True, True, False, False]])
MODEL = {"width": 8, "depth": 2, "attention": {"num_heads": 2}, "ffn": {"expansion": 2.0}}
WITH_WEIGHTS = ["softmax", "linear", "lightning", "mean", "static", "random", "probsparse"]
WITHOUT_WEIGHTS = ["channel", "fourier", "autocorrelation", "frequency"]
KINDS = WITH_WEIGHTS + WITHOUT_WEIGHTS
OF_EACH_SORT = ("softmax", "linear", "probsparse", "channel", "autocorrelation")
SLOW = pytest.mark.slow
BASELINES = ["mlp", "cnn_1d", "gru", "mixer", "factorization_machine"]


@pytest.fixture
def network(draw_module):
    """The function that makes a network of 5 symbols and 4 tokens, as (network, params)."""

    def make(knobs=None, tree=MODEL):
        for key, value in (knobs or {}).items():
            tree = override(tree, key, value)
        config = parse_config({"model": tree}).model

        def build(rngs):
            embedding = TokenEmbedding(5, 8, dtype="float32", rngs=rngs)
            return Network(config, embedding=embedding, grid=(4,), outputs=3, rngs=rngs)

        return functionalize(build), draw_module(lambda: build(AbstractRngs())).params

    return make


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_every_kind_of_attention_is_here():
    assert {*KINDS, "wavelet"} == set(registry.names("attention"))  # which offers what frequency does


# ------------------------------------------------------------------------------------------- reading, replacing


@pytest.mark.integration
@pytest.mark.parametrize(
    ("kind", "valid"),
    [pytest.param(kind, None, id=f"{kind}-whole", marks=() if kind in OF_EACH_SORT else SLOW) for kind in KINDS]
    + [
        pytest.param(kind, VALID, id=f"{kind}-padded", marks=() if kind in ("softmax", "probsparse") else SLOW)
        for kind in KINDS
    ],
)
def test_values_replaced_by_themselves_change_nothing(network, kind, valid):
    """Scores and weights are hooked, so the formula is compared with the kernel."""
    small, params = network({"attention.kind": kind, "depth": 1, "position": "rotary"})
    outputs, cache = small.run_with_cache(params, {}, SYMBOLS, valid=valid)
    np.testing.assert_array_equal(outputs, small.apply(params, {}, SYMBOLS, valid=valid)[0])
    seen = {}

    def same(name):
        return lambda x: seen.setdefault(name, x) + 0

    hooked = small.run_with_hooks(params, {}, SYMBOLS, {name: same(name) for name in cache}, valid=valid)
    close(hooked, outputs)
    assert seen.keys() == cache.keys()
    for name, value in cache.items():
        close(seen[name], value)


@pytest.mark.integration
@pytest.mark.parametrize(
    "knobs",
    [pytest.param({"attention.kind": kind}, marks=() if kind in OF_EACH_SORT else SLOW) for kind in KINDS]
    + [{"ffn.kind": kind} for kind in ("gated", "diagonal")]
    + [{"attention.num_kv_heads": 1, "attention.window": 2, "causal": True}, {"norm.placement": "post"}],
    ids=str,
)
def test_every_value_is_one_that_the_output_depends_on(network, knobs):
    small, params = network({**knobs, "depth": 1})
    outputs, cache = small.run_with_cache(params, {}, SYMBOLS)
    generator = np.random.default_rng(0)
    for name in cache:
        noise = lambda x: x + generator.normal(size=x.shape).astype(np.float32)  # noqa: E731
        changed = small.run_with_hooks(params, {}, SYMBOLS, {name: noise})
        assert np.max(np.abs(changed - outputs)) > 1e-3, name


@pytest.mark.parametrize("name", BASELINES)
def test_other_models_are_hooked_too(network, name):
    small, params = network(tree={"name": name, "width": 8} | ({"depth": 1} if "machine" not in name else {}))
    outputs, cache = small.run_with_cache(params, {}, SYMBOLS)
    assert list(cache)[:: len(cache) - 1] == ["input", "output"]
    for each in cache:
        assert np.any(small.run_with_hooks(params, {}, SYMBOLS, {each: jnp.cos}) != outputs), each


@pytest.mark.integration
@pytest.mark.parametrize(
    ("kind", "point"), [(k, "scores" if k == "lightning" else "weights") for k in KINDS if k not in WITHOUT_WEIGHTS]
)
def test_a_head_that_attends_to_itself_alone_gives_its_own_value(network, kind, point):
    small, params = network({"attention.kind": kind, "depth": 1, "attention.num_kv_heads": 1})
    hooked = small.with_hooks({f"*.{point}": lambda x: jnp.broadcast_to(jnp.eye(4), x.shape)})
    _, cache = hooked.run_with_cache(params, {}, SYMBOLS)
    close(cache["blocks.0.attention.z"], np.repeat(cache["blocks.0.attention.v"], 2, axis=2))


def test_replaced_scores_do_not_show_the_future(network):
    small, params = network({"causal": True, "depth": 1})
    _, cache = small.with_hooks({"*.scores": jnp.zeros_like}).run_with_cache(params, {}, SYMBOLS)
    value = np.asarray(cache["blocks.0.attention.v"])
    means = np.cumsum(value, axis=1) / np.arange(1, 5)[:, None, None]
    close(cache["blocks.0.attention.z"], means)


def test_the_residual_stream_adds_up(network):
    small, params = network()
    _, cache = small.run_with_cache(params, {}, SYMBOLS)
    np.testing.assert_array_equal(cache["blocks.1.input"], cache["blocks.0.output"])
    close(cache["blocks.0.after_attention"], cache["blocks.0.input"] + cache["blocks.0.attention.output"])
    close(cache["blocks.0.output"], cache["blocks.0.after_attention"] + cache["blocks.0.ffn.output"])


def test_only_the_names_asked_for_are_collected(network):
    small, params = network()
    _, cache = small.run_with_cache(params, {}, SYMBOLS, names=("blocks.1.attention.[qk]", "output"))
    assert list(cache) == ["blocks.1.attention.q", "blocks.1.attention.k", "output"]


def test_hooks_get_values_and_gradients_go_through_them(network):
    small, params = network({"remat": True})
    stored = []
    small.run_with_hooks(params, {}, SYMBOLS, {"blocks.*.ffn.hidden": lambda x: stored.append(np.asarray(x))})
    assert [x.shape for x in stored] == [(2, 4, 16)] * 2 and np.any(stored[0] != stored[1])

    def total(scale):
        return jnp.sum(small.run_with_hooks(params, {}, SYMBOLS, [("output", lambda x: scale * x)]))

    slope = jax.jit(jax.grad(total))(1.0)
    assert slope == pytest.approx(float(total(2.0) - total(1.0)), rel=1e-4)  # the head is affine


def test_hooks_run_in_the_order_in_which_they_are_given(network):
    small, params = network()
    double, square = ("output", lambda x: 2 * x), ("output", jnp.square)
    run = lambda *hooks: small.with_hooks(hooks[:1]).with_hooks(hooks[1:]).run_with_cache(params, {}, SYMBOLS)  # noqa: E731
    plain = small.intermediates(params, {}, SYMBOLS)["output"]
    for hooks, expected in (((double, square), (2 * plain) ** 2), ((square, double), 2 * plain**2)):
        outputs, cache = run(*hooks)
        close(cache["output"], expected)
        close(outputs, small.run_with_hooks(params, {}, SYMBOLS, hooks))


def test_a_network_with_hooks_measures_and_does_not_decode(network):
    small, params = network({"causal": True})
    hooked = small.with_hooks(ablate_ffn("*"))
    assert repr(hooked) == f"{repr(small)[:-1]}, 1 hooks)" and len(repr(small)) < 40
    vectors = small.embed(params, {}, SYMBOLS)
    assert np.any(hooked.body(params, {}, vectors) != small.body(params, {}, vectors))
    with pytest.raises(ConfigError, match="cannot decode with a cache, which they do not see"):
        hooked.prefill(params, {}, SYMBOLS, jnp.array([2, 2]))


# ---------------------------------------------------------------------------------------------------- ablations


@pytest.mark.integration
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_set_to_zero_is_one_whose_rows_of_the_output_map_are_zero(network, kind):
    small, params = network({"attention.kind": kind})
    kernel = params["body"]["blocks"][1]["attention"]["output"]["kernel"]
    assert kernel.shape == (8, 8)
    without = jax.tree.map(lambda leaf: leaf.at[4:8].set(0) if leaf is kernel else leaf, params)
    expected = small.apply(without, {}, SYMBOLS)[0]
    close(small.run_with_hooks(params, {}, SYMBOLS, ablate_head(1, 1)), expected)
    assert np.any(np.abs(expected - small.apply(params, {}, SYMBOLS)[0]) > 1e-3)


def test_an_ffn_set_to_zero_is_one_that_is_not_there(network):
    small, params = network()
    other, fewer = network({"ffn.kind": "off"})
    close(small.run_with_hooks(params, {}, SYMBOLS, ablate_ffn("*")), other.apply(fewer, {}, SYMBOLS)[0])


def test_the_mean_is_over_examples_and_tokens(network):
    small, params = network()
    hooks = ablate_head(0, [0], by="mean") + ablate_ffn(1, by="mean")
    plain, cache = (each.intermediates(params, {}, SYMBOLS) for each in (small, small.with_hooks(hooks)))
    z, expected = cache["blocks.0.attention.z"], np.array(plain["blocks.0.attention.z"], np.float64)
    expected[:, :, 0] = expected[:, :, 0].mean(axis=(0, 1))
    close(z, expected)
    ffn = np.asarray(cache["blocks.1.ffn.output"])
    assert np.all(ffn == ffn[0, 0]) and np.any(ffn)


def test_two_heads_at_once_are_both_ablated(network):
    small, params = network()
    both = small.run_with_hooks(params, {}, SYMBOLS, ablate_head(0, (0, 1)))
    close(both, small.run_with_hooks(params, {}, SYMBOLS, ablate_head(0, 0) + ablate_head(0, 1)))
    close(both, small.run_with_hooks(params, {}, SYMBOLS, {"blocks.0.attention.z": jnp.zeros_like}))


# ------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        ({"blocks.0.attention.wieghts": abs}, "did you mean blocks.0.attention.weights"),
        ({"blocks.0.attn.hook_q": abs}, r"no intermediate .*choose from input, blocks.N.input, blocks.N.attention"),
        (ablate_head(2, 0), r"blocks.2.attention.z is no intermediate"),
        (ablate_head(0, 2), "layer 0 has no head 2: it has 2, counted from 0"),
        (ablate_head(0, -1), "no head -1"),
        ({"output": lambda x: x[:1]}, r"hook of output returns the shape \(1, 4, 8\); it must be \(2, 4, 8\)"),
    ],
    ids=["misspelt", "another library's", "no such layer", "no such head", "below 0", "another shape"],
)
def test_a_hook_that_cannot_be(network, hooks, message):
    small, params = network()
    with pytest.raises(ConfigError, match=message):
        small.run_with_hooks(params, {}, SYMBOLS, hooks)


def test_a_way_to_ablate_that_is_none():
    for ablate in (lambda by: ablate_head(0, 0, by), lambda by: ablate_ffn(0, by)):
        with pytest.raises(ConfigError, match="by='median' is no way to ablate: choose from zero, mean"):
            ablate("median")


def test_a_value_beside_the_computation_is_read_only():
    read = []
    Intermediates(hooks={"weights": [read.append]}).add("weights", lambda: jnp.ones(1))
    assert len(read) == 1
    with pytest.raises(ConfigError, match="weights can be read by a hook, not replaced"):
        Intermediates(hooks={"weights": [jnp.cos]}).add("weights", lambda: jnp.ones(1))
