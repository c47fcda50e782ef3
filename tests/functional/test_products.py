"""A library's products take the precision of the lab's own, forward and backward."""

import re

import jax
import jax.numpy as jnp
import pytest

from flaxformer_lab.functional.products import call_library, kernel_precision

Precision = jax.lax.Precision


@jax.custom_vjp
def library(x, y):
    """x y with a backward pass of its own, as kernels have; it says nothing of precision."""
    return jnp.dot(x, y)


library.defvjp(
    lambda x, y: (jnp.dot(x, y), (x, y)),
    lambda factors, gradient: (jnp.dot(gradient, factors[1].T), jnp.dot(factors[0].T, gradient)),
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("asked", [None, "highest", "high", "default"])
def test_a_library_computes_both_passes_at_one_precision(dtype, asked):
    x = jnp.ones((2, 2), dtype)

    def passes(x):
        with jax.default_matmul_precision(asked):
            y, pull = jax.vjp(lambda a: call_library(library, a, x), x)
        return pull(y)

    expected = "DEFAULT" if dtype == jnp.bfloat16 or asked == "default" else "HIGHEST"
    with jax.default_matmul_precision("highest"):
        program = str(jax.make_jaxpr(passes)(x))
    assert program.count("dot_general") == 3  # the product, and the gradients of both factors
    assert re.findall(r"Precision\.(\w+)", program) == [expected] * 6


@pytest.mark.parametrize(
    ("dtype", "asked", "expected"),
    [
        (jnp.bfloat16, "highest", Precision.DEFAULT),
        (jnp.float32, None, Precision.HIGHEST),
        (jnp.float32, "high", Precision.HIGHEST),
        (jnp.float32, "default", Precision.DEFAULT),
    ],
)
def test_a_kernel_has_two_precisions(dtype, asked, expected):
    with jax.default_matmul_precision(asked):
        assert kernel_precision(jnp.ones(1, dtype)) is expected
