"""Both forms of the Pallas kernel, interpreted on the CPU, against loops in float64; and the choice of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.functional import lightning, lightning_kernel

GENERATOR = np.random.default_rng(0)
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


@functools.partial(jax.jit, static_argnums=4)
def interpreted(query, key, value, slopes, platform):
    decays = lightning.block_decays(slopes, 8)
    return lightning_kernel.forward(query, key, value, decays, platform=platform, interpret=True)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize(("tokens", "head_dim", "value_dim"), [(32, 16, 16), (21, 5, 20), (1, 17, 1)])
def test_the_kernel_serves_every_size(tokens, head_dim, value_dim, platform):
    heads = heads_of(tokens, head_dim, value_dim)
    result = interpreted(*(jnp.asarray(x, jnp.float32) for x in (*heads, SLOPES)), platform)
    expected = by_hand(*heads, SLOPES)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_half_precision_comes_within_a_hundredth(platform):
    heads = [jnp.asarray(x, jnp.bfloat16) for x in heads_of(21, 16, 16)]
    result = interpreted(*heads, jnp.asarray(SLOPES, jnp.float32), platform)
    assert result.dtype == jnp.float32
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


def test_an_unknown_implementation_is_refused():
    heads = [jnp.asarray(x, jnp.float32) for x in heads_of(4, 2, 2)]
    with pytest.raises(ValueError, match="implementation=cuda is not one of blockwise, kernel, interpreted kernel"):
        lightning.lightning_attention(*heads, jnp.asarray(SLOPES, jnp.float32), implementation="cuda")
