"""Lightning attention: its three forms against loops in float64, forward and backward; its slopes."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer_lab.functional import lightning

BATCH, TOKENS, HEADS, HEAD_DIM, VALUE_DIM, BLOCK = 2, 19, 3, 5, 4, 8
GENERATOR = np.random.default_rng(0)
QUERY, KEY = (GENERATOR.normal(size=(BATCH, TOKENS, HEADS, HEAD_DIM)) for _ in range(2))
VALUE, TOWARDS = (GENERATOR.normal(size=(BATCH, TOKENS, HEADS, VALUE_DIM)) for _ in range(2))
SLOPES = np.array([0.0, 0.3, 6.0])
VALID = np.arange(TOKENS)[None] < np.array([[TOKENS], [11]])


def arrays(*values, dtype=jnp.float32):
    return [jnp.asarray(value, dtype) for value in values]


def by_hand(query, key, value, slopes, causal=True, valid=None):
    """sum of lambda^|t - s| (q_t . k_s) v_s over the tokens s that t may see."""
    output = np.zeros((*query.shape[:3], value.shape[3]))
    for b, t, h in np.ndindex(*query.shape[:3]):
        for s in range(t + 1 if causal else query.shape[1]):
            if valid is None or valid[b, s]:
                output[b, t, h] += np.exp(-slopes[h] * abs(t - s)) * (query[b, t, h] @ key[b, s, h]) * value[b, s, h]
    return output


def gradients_by_hand(query, key, value, slopes, towards, causal=True, valid=None):
    dq, dk, dv = map(np.zeros_like, (query, key, value))
    for b, t, h in np.ndindex(*query.shape[:3]):
        for s in range(t + 1 if causal else query.shape[1]):
            if valid is None or valid[b, s]:
                decay, through = np.exp(-slopes[h] * abs(t - s)), towards[b, t, h] @ value[b, s, h]
                dq[b, t, h] += decay * through * key[b, s, h]
                dk[b, s, h] += decay * through * query[b, t, h]
                dv[b, s, h] += decay * (query[b, t, h] @ key[b, s, h]) * towards[b, t, h]
    return dq, dk, dv


def recurrent(*arguments, causal, valid):
    del causal
    return lightning.recurrent(*arguments, valid=valid)[0]


FORMS = {
    "naive": lightning.naive,
    "recurrent": recurrent,
    "blockwise": functools.partial(lightning.lightning_attention, block=BLOCK),
}


@pytest.mark.parametrize(
    ("form", "causal"), [*((form, True) for form in FORMS), ("naive", False), ("blockwise", False)]
)
@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
def test_values_and_gradients_of_every_form(form, causal, valid):
    @jax.jit
    def run(query, key, value, slopes, towards):
        mask = None if valid is None else jnp.asarray(valid)
        attend = lambda *heads: FORMS[form](*heads, slopes, causal=causal, valid=mask)  # noqa: E731
        output, pull = jax.vjp(attend, query, key, value)
        return output, *pull(towards)

    with jax.checking_leaks():
        output, *gradients = run(*arrays(QUERY, KEY, VALUE, SLOPES, TOWARDS))
    expected = by_hand(QUERY, KEY, VALUE, SLOPES, causal, valid)
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    expected = gradients_by_hand(QUERY, KEY, VALUE, SLOPES, TOWARDS, causal, valid)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())


@functools.cache
def compiled(block):
    return jax.jit(functools.partial(lightning.lightning_attention, block=block))


@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data(), batch=st.integers(1, 2), tokens=st.integers(1, 12), heads=st.integers(1, 3))
def test_any_shape(data, batch, tokens, heads):
    head_dim, value_dim, block = (data.draw(st.integers(1, most)) for most in (4, 4, 5))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    query, key, value = (rng.normal(size=(batch, tokens, heads, n)) for n in (head_dim, head_dim, value_dim))
    slopes = rng.uniform(0, 3, heads)
    result = compiled(block)(*arrays(query, key, value, slopes))
    expected = by_hand(query, key, value, slopes)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("cut", [1, 7, TOKENS - 1])
def test_the_state_is_carried_across_a_split_at_any_point(cut):
    whole = by_hand(QUERY, KEY, VALUE, SLOPES)

    @jax.jit
    def in_two_parts(query, key, value, slopes):
        first, memory = lightning.recurrent(query[:, :cut], key[:, :cut], value[:, :cut], slopes)
        second, _ = lightning.recurrent(query[:, cut:], key[:, cut:], value[:, cut:], slopes, memory)
        return jnp.concatenate([first, second], axis=1)

    result = in_two_parts(*arrays(QUERY, KEY, VALUE, SLOPES))
    np.testing.assert_allclose(result, whole, rtol=1e-5, atol=1e-4)


def test_the_memory_after_some_tokens_is_that_of_the_recurrence():
    lengths = np.array([TOKENS, 6])
    memory = jax.jit(lightning.init_state)(*arrays(KEY, VALUE, SLOPES), jnp.asarray(lengths))
    for example, length in enumerate(lengths):
        expected = np.zeros((HEADS, HEAD_DIM, VALUE_DIM))
        for key, value in zip(KEY[example, :length], VALUE[example, :length], strict=True):
            expected = np.exp(-SLOPES)[:, None, None] * expected + key[:, :, None] * value[:, None, :]
        np.testing.assert_allclose(memory[example], expected, rtol=1e-4, atol=1e-5)


def test_half_precision_keeps_its_type_and_comes_within_a_hundredth():
    half = arrays(QUERY, KEY, VALUE, dtype=jnp.bfloat16)
    result = compiled(BLOCK)(*half, jnp.asarray(SLOPES, jnp.float32))
    assert result.dtype == jnp.bfloat16
    expected = by_hand(*(np.asarray(x, np.float64) for x in half), SLOPES)
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, atol=1e-2 * np.abs(expected).max())


def test_scores_are_what_multiplies_the_values():
    run = jax.jit(lambda *heads: lightning.lightning_scores(*heads, valid=jnp.asarray(VALID)))
    scores = run(*arrays(QUERY, KEY, SLOPES))
    mixed = np.einsum("bhqk,bkhd->bqhd", np.asarray(scores, np.float64), VALUE)
    expected = by_hand(QUERY, KEY, VALUE, SLOPES, valid=VALID)
    np.testing.assert_allclose(mixed, expected, rtol=1e-4, atol=1e-4)


def test_slopes_of_the_three_conventions():
    expected = {}
    for heads, (depth, layer) in itertools.product((1, 3, 8), ((1, 0), *((4, layer) for layer in range(4)))):
        place = np.arange(1, heads + 1)
        alibi = 2.0 ** (-8 * place / heads)
        share = layer / (depth - 1) if depth > 1 else 0
        expected |= {
            ("transnormer", heads, layer, depth): alibi * (1 - share + 1e-5),
            ("minimax", heads, layer, depth): alibi * (1 - layer / (max(depth - 1, 1) + 1e-5) + 1e-5),
            ("flash_linear_attention", heads, layer, depth): 8 / heads * (1 - layer / depth) * (place - 1),
        }
    found = jax.jit(lambda: [lightning.make_slopes(*case) for case in expected])()
    for (case, slopes), ours in zip(expected.items(), found, strict=True):
        np.testing.assert_allclose(ours, slopes, rtol=1e-4, atol=1e-7, err_msg=str(case))
        assert np.all(np.isfinite(ours)) and np.all(ours >= 0), case
    assert lightning.score_scale("flash_linear_attention", 16) == 0.25
    assert lightning.score_scale("minimax", 16) == lightning.score_scale("transnormer", 16) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lightning.make_slopes("alibi", 4, 0, 2), "slopes=alibi is not one of transnormer, minimax"),
        (lambda: lightning.make_slopes("minimax", 4, 2, 2), "layer=2 is not one of the 2 layers"),
        (
            lambda: lightning.lightning_attention(*arrays(QUERY[:, :0], KEY[:, :0], VALUE[:, :0], SLOPES)),
            "at least one token",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --------------------------------------------------------------------------------------------- extreme inputs


def slope_gradients_by_hand(causal, valid):
    """d/d slope of exp(-slope |t - s|) is -|t - s| times it."""
    gradients = np.zeros(HEADS)
    for b, t, h in np.ndindex(BATCH, TOKENS, HEADS):
        for s in range(t + 1 if causal else TOKENS):
            if valid is None or valid[b, s]:
                weight = np.exp(-SLOPES[h] * abs(t - s)) * (QUERY[b, t, h] @ KEY[b, s, h])
                gradients[h] -= abs(t - s) * weight * (VALUE[b, s, h] @ TOWARDS[b, t, h])
    return gradients


KERNEL = functools.partial(lightning.lightning_attention, block=BLOCK, implementation="interpreted kernel")


@pytest.mark.parametrize(
    ("form", "causal"),
    [*((form, True) for form in FORMS), ("naive", False), ("blockwise", False), ("kernel", True), ("kernel", False)],
)
@pytest.mark.parametrize("valid", [None, VALID], ids=["whole", "padded"])
def test_the_gradient_of_the_slopes(form, causal, valid):
    attend = (FORMS | {"kernel": KERNEL})[form]
    mask = None if valid is None else jnp.asarray(valid)

    @jax.jit
    def gradient(slopes, query, key, value, towards):
        loss = lambda slopes: jnp.sum(attend(query, key, value, slopes, causal=causal, valid=mask) * towards)  # noqa: E731
        return jax.grad(loss)(slopes)

    found = gradient(*arrays(SLOPES, QUERY, KEY, VALUE, TOWARDS))
    expected = slope_gradients_by_hand(causal, valid)
    assert np.all(expected != 0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


def test_the_gradient_of_the_slopes_costs_nothing_where_nobody_asks():
    """One loop forward and two backward; the slopes need a third."""
    heads = arrays(QUERY, KEY, VALUE, SLOPES)

    def loops(arguments):
        loss = lambda *heads: FORMS["blockwise"](*heads).sum()  # noqa: E731
        text = str(jax.make_jaxpr(jax.grad(loss, argnums=arguments))(*heads))
        return text.count("scan[") + text.count("while[")

    assert loops((0, 1, 2)) == 3 < loops((0, 1, 2, 3))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["naive", "blockwise"])
def test_scores_beyond_float16_are_summed_in_float32(form, causal):
    """Scores of 80,000 times values of 0.01 are sums of 800s."""
    like, value = jnp.full((1, 20, 1, 8), 100, jnp.float16), jnp.full((1, 20, 1, 8), 0.01, jnp.float16)
    result = FORMS[form](like, like, value, jnp.full((1,), 0.5), causal=causal)
    place = np.arange(20)
    decay = np.exp(-0.5 * np.abs(place[:, None] - place[None])) * (np.tri(20) if causal else 1)
    expected = 8e4 * 0.01 * decay.sum(1)
    np.testing.assert_allclose(np.asarray(result, np.float64)[0, :, 0, 0], expected, rtol=2e-3)


@pytest.mark.parametrize("form", FORMS)
def test_a_query_that_sees_no_key_becomes_0_and_gives_no_gradient(form):
    valid = jnp.asarray(np.stack([np.arange(TOKENS) >= 4, np.zeros(TOKENS, bool)]))
    attend = lambda *heads: FORMS[form](*heads, jnp.asarray(SLOPES, jnp.float32), causal=True, valid=valid)  # noqa: E731

    @jax.jit
    def run(heads, towards):
        output, pull = jax.vjp(attend, *heads)
        return output, *pull(towards)

    for array in run(arrays(QUERY, KEY, VALUE), *arrays(TOWARDS)):
        assert not np.asarray(array[1]).any() and not np.asarray(array[0, :4]).any() and np.asarray(array[0, 4:]).any()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("part", range(3))
def test_queries_keys_and_values_are_of_one_sequence(part):
    heads = arrays(QUERY, KEY, VALUE, SLOPES)
    heads[part] = heads[part][:, :9]
    with pytest.raises(ValueError, match="are not one sequence"):
        lightning.lightning_attention(*heads)


def test_a_short_sequence_is_one_block_without_a_loop_or_padding():
    def program(tokens):
        x = jnp.ones((1, tokens, 2, 4))
        attend = functools.partial(lightning.lightning_attention, causal=False)
        return str(jax.make_jaxpr(attend)(x, x, x, jnp.ones(2)))

    loops = [[word for word in ("while", "scan", "[64,") if word in program(tokens)] for tokens in (5, 200)]
    assert loops[0] == [] and loops[1]
