"""Both forms of the Pallas kernel, interpreted on the CPU, against loops in float64; and the choice of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional import lightning, lightning_kernel

GENERATOR = np.random.default_rng(0)
# Segments of one block and two groups of columns, where there are as many.
LAUNCH = lightning_kernel.Launch(columns=16, programs=1000)
SLOPES = np.array([0.0, 0.4, 5.0])


def heads_of(tokens, head_dim, value_dim):
    return [GENERATOR.normal(size=(2, tokens, 3, n)) for n in (head_dim, head_dim, value_dim)]


def by_hand(query, key, value, slopes):
    """The recurrence in float64."""
    output = np.zeros(value.shape)
    for b, h in np.ndindex(value.shape[0], value.shape[2]):
        memory = np.zeros((key.shape[3], value.shape[3]))
        for t in range(value.shape[1]):
            memory = np.exp(-slopes[h]) * memory + np.outer(key[b, t, h], value[b, t, h])
            output[b, t, h] = query[b, t, h] @ memory
    return output


@functools.partial(jax.jit, static_argnums=(4, 5))
def interpreted(query, key, value, slopes, platform, reverse=False):
    decays = lightning.block_decays(slopes, 8, reverse)
    options = {"platform": platform, "launch": LAUNCH, "interpret": True, "reverse": reverse}
    return lightning_kernel.attend(query, key, value, decays, **options)


@pytest.fixture(autouse=True)
def short_segments(monkeypatch):
    monkeypatch.setattr(lightning_kernel, "MIN_BLOCKS", 1)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize(("tokens", "head_dim", "value_dim"), [(32, 16, 16), (21, 5, 20), (1, 17, 1)])
def test_the_kernel_serves_every_size(tokens, head_dim, value_dim, platform, reverse):
    heads = heads_of(tokens, head_dim, value_dim)
    result = interpreted(*(jnp.asarray(x, jnp.float32) for x in (*heads, SLOPES)), platform, reverse)
    in_order = [x[:, ::-1] if reverse else x for x in heads]
    expected = by_hand(*in_order, SLOPES)
    expected = expected[:, ::-1] if reverse else expected
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_segments_side_by_side_are_one_pass(monkeypatch):
    """21 tokens in blocks of 8: one segment of three blocks, or two segments, the last of which is not whole."""
    heads = [jnp.asarray(x, jnp.float32) for x in heads_of(21, 5, 20)]
    decays = lightning.block_decays(jnp.asarray(SLOPES, jnp.float32), 8)
    results = []
    for of_segment in (3, 2):
        monkeypatch.setattr(lightning_kernel, "MIN_BLOCKS", of_segment)
        results.append(lightning_kernel.attend(*heads, decays, platform="gpu", launch=LAUNCH, interpret=True))
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5 * np.abs(results[0]).max())


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_half_precision_comes_within_a_hundredth(platform):
    heads = [jnp.asarray(x, jnp.bfloat16) for x in heads_of(21, 16, 16)]
    result = interpreted(*heads, jnp.asarray(SLOPES, jnp.float32), platform)
    assert result.dtype == jnp.bfloat16
    expected = by_hand(*(np.asarray(x, np.float64) for x in heads), SLOPES)
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, atol=1e-2 * np.abs(expected).max())


def test_its_gradient_is_that_of_the_naive_form():
    heads = [jnp.asarray(x, jnp.float32) for x in heads_of(11, 4, 3)]
    slopes = jnp.asarray(SLOPES, jnp.float32)

    def gradient(attend):
        return jax.jit(jax.grad(lambda *heads: jnp.sum(attend(*heads, slopes) ** 2), argnums=(0, 1, 2)))(*heads)

    kernel = lambda *heads: lightning.lightning_attention(*heads, block=8, implementation="interpreted kernel")  # noqa: E731
    for ours, theirs in zip(gradient(kernel), gradient(lightning.naive), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_the_kernel_is_chosen_only_where_it_was_measured_to_be_faster(monkeypatch):
    assert lightning.choose((4, 10**6, 32, 128), jnp.bfloat16, "a device never measured").name == "blockwise"
    monkeypatch.setitem(lightning_kernel.FASTER_FROM, "fast device", 2048)
    assert lightning.choose((4, 1024, 32, 128), jnp.bfloat16, "fast device").name == "blockwise"
    assert lightning.choose((4, 2048, 32, 128), jnp.float32, "fast device").name == "blockwise"
    few = lightning.choose((1, 2048, 32, 128), jnp.bfloat16, "fast device")
    assert few.name == "blockwise" and "not in bfloat16 with 1 x 32" in few.reason
    assert lightning.choose((4, 2048, 32, 128), jnp.bfloat16, "fast device") == (
        "kernel",
        "on fast device the kernel is faster from 2048 tokens on",
    )
    heads = [jnp.asarray(x, jnp.float32) for x in heads_of(4, 2, 2)]
    _, choice = lightning.lightning_attention(*heads, jnp.asarray(SLOPES, jnp.float32), explain=True)
    assert choice.name == "blockwise" and "has not been measured" in choice.reason


def test_float16_is_chosen_for_as_the_float32_in_which_it_is_computed(monkeypatch):
    monkeypatch.setitem(lightning_kernel.FASTER_FROM, "fast device", 4)
    monkeypatch.setattr(lightning_kernel, "MIN_PROGRAMS", 1)
    monkeypatch.setattr(lightning, "target_device_kind", lambda: "fast device")
    choices = []

    def attend(x):
        output, choice = lightning.lightning_attention(x, x, x, jnp.ones(2), explain=True)
        choices.append(choice.name)
        return output

    for dtype in (jnp.bfloat16, jnp.float16):
        jax.eval_shape(attend, jax.ShapeDtypeStruct((1, 8, 2, 16), dtype))
    assert choices == ["kernel", "blockwise"]


def test_an_unknown_implementation_is_refused():
    heads = [jnp.asarray(x, jnp.float32) for x in heads_of(4, 2, 2)]
    with pytest.raises(ValueError, match="implementation=cuda is not one of blockwise, kernel, interpreted kernel"):
        lightning.lightning_attention(*heads, jnp.asarray(SLOPES, jnp.float32), implementation="cuda")
