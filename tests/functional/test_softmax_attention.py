"""Every way to compute softmax attention against the formula in float64, and the choice among them."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxformer_lab.functional import softmax_attention as ways
from flaxformer_lab.functional.blockwise import blockwise_attention
from flaxformer_lab.functional.softmax_attention import (
    IMPLEMENTATIONS,
    Problem,
    choose,
    context_parallel_attention,
    softmax_attention,
)

BATCH, TOKENS, HEADS, KV_HEADS, HEAD_DIM, VALUE_DIM = 2, 21, 4, 2, 4, 3
GENERATOR = np.random.default_rng(0)
QUERY = GENERATOR.normal(size=(BATCH, TOKENS, HEADS, HEAD_DIM))
KEY = GENERATOR.normal(size=(BATCH, TOKENS, KV_HEADS, HEAD_DIM))
VALUE = GENERATOR.normal(size=(BATCH, TOKENS, KV_HEADS, VALUE_DIM))
TOWARDS = GENERATOR.normal(size=(BATCH, TOKENS, HEADS, VALUE_DIM))
LENGTHS = [TOKENS, 16]


def may_see(tokens, lengths, causal, window):
    """[batch, query, key]."""
    i, j = np.indices((tokens, tokens))
    seen = (j <= i) if causal else np.full((tokens, tokens), True)
    seen = seen if window is None else seen & (np.abs(i - j) < window)
    return np.stack([seen & (j < length) for length in lengths])


def by_hand(query, key, value, seen):
    """softmax(Q K^T / sqrt(head_dim)) V by loops over examples, heads and queries; 0 for a query that sees no key."""
    output, group = np.zeros((*query.shape[:3], value.shape[3])), query.shape[2] // key.shape[2]
    for b, i, h in np.ndindex(*query.shape[:3]):
        keys, values = key[b, :, h // group], value[b, :, h // group]
        weights = np.where(seen[b, i], np.exp(keys @ query[b, i, h] / np.sqrt(query.shape[3])), 0)
        if weights.any():
            output[b, i, h] = weights / weights.sum() @ values
    return output


def gradients_by_hand(query, key, value, seen, towards):
    """dQ, dK, dV by loops, from d softmax = P (dP - P . dP)."""
    dq, dk, dv = map(np.zeros_like, (query, key, value))
    group, scale = query.shape[2] // key.shape[2], query.shape[3] ** -0.5
    for b, i, h in np.ndindex(*query.shape[:3]):
        if not seen[b, i].any():
            continue
        keys, values = key[b, :, h // group], value[b, :, h // group]
        weights = np.where(seen[b, i], np.exp(keys @ query[b, i, h] * scale), 0)
        weights /= weights.sum()
        of_weights = values @ towards[b, i, h]
        of_scores = weights * (of_weights - weights @ of_weights) * scale
        dv[b, :, h // group] += np.outer(weights, towards[b, i, h])
        dk[b, :, h // group] += np.outer(of_scores, query[b, i, h])
        dq[b, i, h] += of_scores @ keys
    return dq, dk, dv


def values_and_gradients(attend):
    """One program for the outputs and what comes back for each of the heads."""

    @jax.jit
    def run(heads, towards):
        output, pull = jax.vjp(attend, *heads)
        return output, *pull(towards)

    return run


def small_blocks(query, key, value, causal, valid, window):
    return blockwise_attention(query, key, value, valid, causal, window, 8)


def in_shares(query, key, value, causal, valid, window):
    """The first five queries and the others, each share against all keys."""
    options = {"causal": causal, "valid": valid, "window": window}
    parts = ((query[:, :5], 0), (query[:, 5:], 5))
    return jnp.concatenate(
        [context_parallel_attention(part, key, value, first, **options) for part, first in parts], axis=1
    )


WAYS = {
    "row_blocks": IMPLEMENTATIONS["row_blocks"],
    "small blocks": small_blocks,
    "one block": IMPLEMENTATIONS["blockwise"],
    "shares": in_shares,
}


MASKS = [
    (False, False, None),
    (True, False, None),
    (True, True, None),
    (False, True, 5),
    (True, True, 9),
    (True, False, 1),
]
# One block and shares are the blockwise form too, so these have the masks in which they differ from several blocks.
FEWER = {"one block": MASKS[::4], "shares": [MASKS[4]]}


@pytest.mark.parametrize(
    ("way", "causal", "padded", "window"), [(way, *each) for way in WAYS for each in FEWER.get(way, MASKS)]
)
def test_values_and_gradients_are_those_of_the_formula(way, causal, padded, window):
    valid = np.arange(TOKENS)[None] < np.array(LENGTHS)[:, None] if padded else None

    mask = None if valid is None else jnp.asarray(valid)
    *heads, towards = (jnp.asarray(x, jnp.float32) for x in (QUERY, KEY, VALUE, TOWARDS))
    seen = may_see(TOKENS, LENGTHS if padded else [TOKENS] * BATCH, causal, window)
    run = values_and_gradients(lambda *heads: WAYS[way](*heads, causal, mask, window))
    output, *gradients = run(heads, towards)
    np.testing.assert_allclose(output, by_hand(QUERY, KEY, VALUE, seen), rtol=1e-5, atol=1e-5)
    expected = gradients_by_hand(QUERY, KEY, VALUE, seen, TOWARDS)
    for ours, theirs in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6 + 1e-5 * np.abs(theirs).max())


@functools.cache
def compiled(causal, window, block):
    return jax.jit(lambda q, k, v, valid: blockwise_attention(q, k, v, valid, causal, window, block))


@settings(max_examples=4, deadline=None, derandomize=True)
@given(data=st.data(), tokens=st.integers(1, 13), kv_heads=st.integers(1, 2), group=st.integers(1, 2))
def test_any_shape(data, tokens, kv_heads, group):
    head_dim, value_dim, block = (data.draw(st.integers(1, most)) for most in (4, 4, 6))
    causal, window = data.draw(st.booleans()), data.draw(st.none() | st.integers(1, 15))
    lengths = data.draw(st.lists(st.integers(0, tokens), min_size=1, max_size=2))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    shapes = ((kv_heads * group, head_dim), (kv_heads, head_dim), (kv_heads, value_dim))
    heads = [rng.normal(size=(len(lengths), tokens, *shape)) for shape in shapes]
    valid = np.arange(tokens)[None] < np.array(lengths)[:, None]
    result = compiled(causal, window, block)(*(jnp.asarray(x, jnp.float32) for x in heads), jnp.asarray(valid))
    expected = by_hand(*heads, may_see(tokens, lengths, causal, window))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_seen_gets_no_gradient():
    """Exactly none: a window and causality cut the way."""
    valid = jnp.asarray(np.arange(TOKENS)[None] < np.array(LENGTHS)[:, None])
    rows = (0, 7, 15)
    towards = np.zeros((len(rows), *TOWARDS.shape), np.float32)
    for number, row in enumerate(rows):
        towards[number, :, row] = 1

    @jax.jit
    def gradients(query, key, value, towards):
        _, pull = jax.vjp(lambda key, value: small_blocks(query, key, value, True, valid, 6), key, value)
        return jax.vmap(pull)(towards)

    dk, dv = gradients(*(jnp.asarray(x, jnp.float32) for x in (QUERY, KEY, VALUE, towards)))
    for number, row in enumerate(rows):
        for gradient in (dk[number], dv[number]):
            reached = np.abs(gradient).max(axis=(2, 3)) > 0
            np.testing.assert_array_equal(reached & ~may_see(TOKENS, LENGTHS, True, 6)[:, row], False)
        assert (np.abs(dv[number]).max(axis=(2, 3)) > 0)[0].sum() == min(row + 1, 6)


def test_extra_memory_of_the_blockwise_form_is_linear_in_tokens():
    def extra(tokens):
        heads = [jax.ShapeDtypeStruct((1, tokens, 2, 8), jnp.float32)] * 3
        loss = lambda q, k, v: jnp.sum(blockwise_attention(q, k, v, None, True, None, 64) ** 2)  # noqa: E731
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*heads).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert extra(4096) < 4.5 * extra(1024) < 4 * 2 * 1024**2


@pytest.mark.parametrize("way", WAYS)
def test_half_precision_keeps_its_type_and_comes_within_a_hundredth(way):
    half = [jnp.asarray(x, jnp.bfloat16) for x in (QUERY, KEY, VALUE)]
    result = jax.jit(lambda *heads: WAYS[way](*heads, True, None, None))(*half)
    assert result.dtype == jnp.bfloat16
    expected = by_hand(*(np.asarray(x, np.float64) for x in half), may_see(TOKENS, [TOKENS] * BATCH, True, None))
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, atol=1e-2 * np.abs(expected).max())


@pytest.mark.parametrize("implementation", ["blockwise", "xla", "row_blocks"])
def test_huge_scores_stay_finite(implementation):
    query, key, value = (jnp.asarray(x, jnp.float32) for x in (1e18 * QUERY, KEY, QUERY[:, :, :KV_HEADS]))
    run = lambda *heads: softmax_attention(*heads, causal=True, implementation=implementation).sum()  # noqa: E731
    value_and_gradients = jax.jit(jax.value_and_grad(run, argnums=(0, 1, 2)))(query, key, value)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(value_and_gradients))


# ------------------------------------------------------------------------------------------------ the choice


def problem(**changes):
    standard = Problem(1, 512, 4, 64, 64, is_16_bit=True, causal=True, has_padding=False, window=None)
    return standard._replace(**changes)


@pytest.mark.parametrize(
    ("platform", "changes", "name", "reason"),
    [
        ("cpu", {}, "row_blocks", "512 tokens are few"),
        ("cpu", {"tokens": 4096}, "blockwise", "4096 tokens are many"),
        ("cpu", {"batch": 4096}, "blockwise", "would take 16384 MiB"),
        ("gpu", {}, "cudnn", "fused"),
        ("gpu", {"tokens": 65536}, "cudnn", "fused"),
        ("gpu", {"tokens": 37}, "xla", "even number of tokens, not 37"),
        ("gpu", {"is_16_bit": False}, "xla", "only 16-bit types; .* 4 MiB, which fits"),
        ("gpu", {"is_16_bit": False, "tokens": 65536}, "blockwise", "only 16-bit types; .* linear in tokens"),
        ("gpu", {"head_dim": 60}, "blockwise", "multiple of 8 up to 128, not head_dim 60 and value_dim 64"),
        ("gpu", {"head_dim": 256, "value_dim": 256}, "xla", "up to 128"),
        ("gpu", {"has_padding": True}, "xla", "quadratic bias"),
        ("gpu", {"has_padding": True, "tokens": 32768}, "blockwise", "quadratic bias"),
        ("gpu", {"window": 9}, "cudnn", "fused"),
        ("gpu", {"window": 9, "causal": False}, "xla", "window only in causal attention"),
        ("tpu", {"head_dim": 128, "value_dim": 128}, "splash", "fused"),
        ("tpu", {"tokens": 500, "head_dim": 128, "value_dim": 128}, "xla", "multiples of 128, not 500 tokens"),
        ("tpu", {"tokens": 99999}, "blockwise", "multiples of 128"),
        (
            "gpu",
            {"is_16_bit": False, "head_dim": 1, "value_dim": 1},
            "blockwise",
            "scores of such heads are much larger",
        ),
        ("tpu", {"head_dim": 4, "value_dim": 4}, "blockwise", "scores of such heads are much larger"),
        ("cpu", {"head_dim": 1, "value_dim": 1}, "row_blocks", "512 tokens are few"),
    ],
)
def test_the_choice_and_its_reason(platform, changes, name, reason):
    choice = choose(problem(**changes), platform)
    assert choice.name == name
    assert re.search(reason, choice.reason)


def test_nothing_quadratic_is_chosen_where_it_would_not_fit():
    for platform in ("cpu", "gpu", "tpu"):
        for half in (False, True):
            for dims in ((64, 64), (60, 60), (128, 64)):
                case = problem(tokens=131072, is_16_bit=half, head_dim=dims[0], value_dim=dims[1], has_padding=half)
                assert choose(case, platform).name not in ("xla", "row_blocks")


def test_the_choice_is_said_on_request_and_can_be_overruled():
    query, key, value = (jnp.asarray(x, jnp.float32) for x in (QUERY, KEY, VALUE))
    output, choice = softmax_attention(query, key, value, explain=True)
    assert (choice.name, choice.reason) == ("row_blocks", "on a CPU, 21 tokens are few enough for whole rows")
    other, asked = softmax_attention(query, key, value, implementation="blockwise", explain=True)
    assert asked == ("blockwise", "requested by name")
    np.testing.assert_allclose(other, output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("causal", [False, True])
def test_the_library_of_jax_means_the_same_by_its_masks(causal, window):
    lengths = [TOKENS, 14]  # the last queries of the second example see no key in a window of 5
    value = GENERATOR.normal(size=KEY.shape)
    valid = jnp.asarray(np.arange(TOKENS)[None] < np.array(lengths)[:, None])
    options = {"causal": causal, "valid": valid, "window": window, "implementation": "xla"}
    run = jax.jit(lambda *heads: softmax_attention(*heads, **options))
    result = run(*(jnp.asarray(x, jnp.float32) for x in (QUERY, KEY, value)))
    expected = by_hand(QUERY, KEY, value, may_see(TOKENS, lengths, causal, window))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("causal", "window"), [(True, None), (True, 20), (False, None)])
def test_the_kernel_for_tpus_means_the_same_by_its_masks(causal, window):
    """Interpreted: the kernel's own arithmetic, on the CPU."""
    query, key, value = (GENERATOR.normal(size=(1, 128, heads, 128)) for heads in (2, 1, 1))
    lengths = [100]
    valid = jnp.asarray(np.arange(128)[None] < np.array(lengths)[:, None])
    heads = (jnp.asarray(x, jnp.float32) for x in (query, key, value))
    result = jax.jit(lambda *heads: ways._splash(*heads, causal, valid, window, interpret=True))(*heads)
    expected = by_hand(query, key, value, may_see(128, lengths, causal, window))
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": QUERY[:, :0], "key": KEY[:, :0], "value": VALUE[:, :0]}, "at least one token"),
        ({"query": QUERY[:, :, :3]}, "2 heads of keys do not divide 3 heads of queries"),
        ({"key": KEY[:, :9]}, r"keys \(2, 9, 2, 4\) and values \(2, 21, 2, 3\) do not fit"),
        ({"key": KEY[:1], "value": VALUE[:1]}, r"queries \(2, 21, 4, 4\), keys \(1, 21, 2, 4\) .* do not fit"),
        ({"valid": np.ones((2, 22), bool)}, r"valid is \(2, 22\) and must be \[batch, keys\], here \(2, 21\)"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"implementation": "magic"}, "implementation=magic is not one of row_blocks, blockwise"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    arguments = {"query": QUERY, "key": KEY, "value": VALUE} | change
    heads = [jnp.asarray(arguments.pop(name), jnp.float32) for name in ("query", "key", "value")]
    with pytest.raises(ValueError, match=message):
        softmax_attention(*heads, **arguments)


# --------------------------------------------------------------------------------------- keys of another sequence


@pytest.mark.parametrize("implementation", [None, "row_blocks", "blockwise", "xla"])
@pytest.mark.parametrize(("queries", "keys"), [(3, 9), (9, 3)])
def test_keys_may_be_of_another_sequence(implementation, queries, keys):
    query, key, value = QUERY[:, :queries], KEY[:, :keys], VALUE[:, :keys]
    if implementation == "xla":  # which wants one head_dim
        value = key
    lengths, towards = [keys, keys - 1], TOWARDS[:, :queries, :, : value.shape[3]]
    towards = np.resize(towards, (*query.shape[:3], value.shape[3]))
    seen = np.stack([np.broadcast_to(np.arange(keys) < length, (queries, keys)) for length in lengths])
    valid = jnp.arange(keys)[None] < jnp.array(lengths)[:, None]
    attend = functools.partial(softmax_attention, valid=valid, implementation=implementation)
    arrays = [jnp.asarray(x, jnp.float32) for x in (query, key, value)]
    output, *gradients = values_and_gradients(attend)(arrays, jnp.asarray(towards, jnp.float32))
    np.testing.assert_allclose(output, by_hand(query, key, value, seen), rtol=1e-5, atol=1e-5)
    expected = gradients_by_hand(query, key, value, seen, towards)
    for found, wanted in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masks", [{"causal": True}, {"window": 2}])
def test_positions_of_two_sequences_are_not_compared(masks):
    query, key = (jnp.zeros((1, tokens, 2, 4)) for tokens in (3, 9))
    with pytest.raises(
        ValueError, match=r"3 queries and 9 keys are not one sequence, .*use causal=False and window=None"
    ):
        softmax_attention(query, key, key, **masks)


def test_the_kernels_for_one_sequence_are_not_chosen_for_two():
    one = Problem(1, 512, 4, 128, 128, is_16_bit=True, causal=False, has_padding=False, window=None)
    two = one._replace(other_keys=256)
    assert choose(one, "tpu").name == "splash" and choose(two, "tpu").name == "xla"
    assert choose(two, "gpu").name == "cudnn" and choose(two._replace(other_keys=255), "gpu").name == "xla"
    assert choose(two._replace(other_keys=2**20), "cpu").name == "blockwise"


# ------------------------------------------------------------------------------------------------ extreme inputs

OWN = ("row_blocks", "blockwise", "xla")
DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


@pytest.mark.parametrize(
    ("dtype", "implementation"),
    # JAX does not compile its own form for float16 on a CPU.
    [each for each in itertools.product(DTYPES, OWN) if each != (jnp.float16, "xla")],
)
def test_a_query_that_sees_no_key_becomes_0_and_gives_no_gradient(dtype, implementation):
    """Padding comes first in one example, and the other is nothing but padding. The same for all masks and dtypes."""
    valid = np.stack([np.arange(TOKENS) >= 6, np.zeros(TOKENS, bool)])
    heads = [jnp.asarray(x, dtype) for x in (QUERY, KEY, GENERATOR.normal(size=KEY.shape))]
    towards = jnp.asarray(GENERATOR.normal(size=QUERY.shape), dtype)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def run(causal, window, heads, towards):
        options = {"causal": causal, "window": window, "valid": jnp.asarray(valid)}
        attend = lambda *heads: softmax_attention(*heads, **options, implementation=implementation)  # noqa: E731
        output, pull = jax.vjp(attend, *heads)
        return output, *pull(towards)

    exact = [np.asarray(x, np.float64) for x in (*heads, towards)]
    masks = ((True, 4), (False, None), (True, None), (False, 3))
    for causal, window in masks if dtype == jnp.float32 else masks[:2]:
        seen = may_see(TOKENS, [TOKENS] * BATCH, causal, window) & valid[:, None]
        output, *gradients = run(causal, window, heads, towards)
        blind = ~seen.any(-1)
        assert blind[0, :2].all() == (causal or window is not None) and blind[1].all()
        assert not np.asarray(output)[blind].any() and not np.asarray(gradients[0])[blind].any()
        assert not any(np.asarray(gradient)[~seen.any(1)].any() for gradient in gradients[1:])
        expected = by_hand(*exact[:3], seen), *gradients_by_hand(*exact[:3], seen, exact[3])
        for found, wanted in zip((output, *gradients), expected, strict=True):
            error = 1e-5 if dtype == jnp.float32 else 3e-2
            np.testing.assert_allclose(np.asarray(found, np.float64), wanted, atol=error * np.abs(wanted).max())


@pytest.mark.parametrize("implementation", OWN)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_many_tokens_stay_in_the_range_of_float16(dtype, implementation):
    """700 equal scores of value 100: the mean is 100, the sum 70,000. A small gradient over 700 is 0 in float16."""
    like, value = jnp.zeros((1, 700, 1, 8), dtype), jnp.full((1, 700, 1, 8), 100, dtype)
    attend = lambda value: softmax_attention(like, like, value, implementation=implementation)  # noqa: E731
    # JAX does not compile its own form for float16 on a CPU.
    with jax.disable_jit(implementation == "xla" and dtype == jnp.float16):
        output, gradient = values_and_gradients(attend)([value], jnp.full_like(value, 1e-5))
    np.testing.assert_allclose(np.asarray(output, np.float64), 100, rtol=1e-2)
    np.testing.assert_allclose(np.asarray(gradient, np.float64), 1e-5, rtol=2e-2)


@pytest.mark.parametrize("implementation", OWN)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [TOKENS, 2**31 - 1])
def test_a_window_no_narrower_than_the_sequence_is_none(window, causal, implementation):
    value = GENERATOR.normal(size=KEY.shape)
    heads = [jnp.asarray(x, jnp.float32) for x in (QUERY, KEY, value)]
    result = softmax_attention(*heads, causal=causal, window=window, implementation=implementation)
    expected = by_hand(QUERY, KEY, value, may_see(TOKENS, [TOKENS] * BATCH, causal, None))
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", OWN)
@pytest.mark.parametrize("causal", [False, True])
def test_a_sequence_of_one_token(causal, implementation):
    heads = [jnp.asarray(x[:, :1], jnp.float32) for x in (QUERY, KEY, KEY)]
    result = softmax_attention(*heads, causal=causal, window=3, implementation=implementation)
    np.testing.assert_allclose(result, np.repeat(KEY[:, :1], HEADS // KV_HEADS, axis=2), rtol=1e-5)


def test_only_masked_queries_cost_anything():
    """Without padding every query sees a key, and no program looks for those that see none."""
    heads = [jnp.zeros((1, 8, 2, 8))] * 3
    for implementation in OWN:
        attend = functools.partial(softmax_attention, causal=True, implementation=implementation)
        text = str(jax.make_jaxpr(jax.grad(lambda *heads, attend=attend: attend(*heads).sum()))(*heads))
        assert "cumsum" not in text and ":f32[] = inf" not in text and " inf" not in text.replace("-inf", "")
