"""The count of operations, against counts by hand and XLA's own figure, which it has on a CPU."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.experimental import pallas

from flaxformer_lab.models.flops import count_flops

SIZE = 10
LINE = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)
PRODUCT = 2 * SIZE**3


def of_xla(function, *arguments):
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x @ jnp.ones((SIZE, SIZE)) + 1.5,
        lambda x: jnp.exp(x) - jnp.log(x) * jnp.sqrt(x) / jnp.tanh(x),
        lambda x: x**2 + x**3 + x**6 + x**7 + x**-2,
        lambda x: jnp.where(x > 0, x.astype(jnp.bfloat16).astype(jnp.float32), -x),
        lambda x: jnp.sum(x) + jnp.max(x) * jnp.prod(x),
        lambda x: jnp.concatenate([x, jnp.flip(x)]).reshape(4, -1).T[1:] * 2,
        lambda x: (0 - (x * 1 + 0 - x / 1)) - 0.0,
        lambda x: (jax.nn.softmax(x), jnp.exp(x * 2))[0],  # what nobody asks for is not counted
        lambda x: jnp.argmax(x) + 1,
        lambda x: jax.nn.gelu(x, approximate=False) + jax.nn.gelu(x) + jax.nn.silu(x),
        lambda x: jnp.zeros(SIZE).at[jnp.arange(SIZE)].add(x, mode="promise_in_bounds"),
        lambda x: jax.checkpoint(lambda x: jnp.sin(x) * x)(x),
        lambda x: jnp.fft.irfft(jnp.fft.rfft(x), n=SIZE),
        lambda x: lax.cond(x[0] > 0, lambda x: x * 2, lambda x: x * 2 + x - 3, x),
    ],
)
def test_the_rules_are_those_of_xla(function):
    # A few operations on single numbers are simplified away there.
    assert count_flops(function, LINE) == pytest.approx(of_xla(function, LINE), abs=3)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 4, 6), {}),
        ((4, 4, 6), {"window_strides": (2,), "padding": [(3, 1)]}),
        ((3, 4, 6), {"rhs_dilation": (2,), "lhs_dilation": (3,), "padding": [(2, 3)]}),
        ((3, 1, 8), {"feature_group_count": 4}),
    ],
)
def test_a_convolution_counts_what_its_window_meets(kernel, options):
    options = {"dimension_numbers": ("NWC", "WIO", "NWC"), "window_strides": (1,), "padding": "SAME"} | options
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 9, 4), kernel)]

    def convolve(x, kernel):
        return lax.conv_general_dilated(x, kernel, **options)

    assert count_flops(convolve, *shapes) == of_xla(convolve, *shapes)


@pytest.mark.parametrize(
    ("indices", "flops"),
    [
        ("ab,bc->ac", PRODUCT),
        ("abc,acd->abd", SIZE * PRODUCT),
        ("abc,bcd->ad", SIZE * PRODUCT),
        ("ab,cd->abcd", 2 * SIZE**4),
    ],
)
def test_a_matrix_product_takes_two_for_each_pair(indices, flops):
    shapes = [jax.ShapeDtypeStruct((SIZE,) * len(part), jnp.bfloat16) for part in indices.split("->")[0].split(",")]
    assert count_flops(lambda *x: jnp.einsum(indices, *x, preferred_element_type=jnp.float32), *shapes) == flops


def test_a_loop_counts_as_often_as_it_runs():
    def looped(x):
        x, _ = lax.scan(lambda x, _: (x @ x, None), x, length=7)
        x = lax.fori_loop(0, 5, lambda _, x: x @ x, x)
        return lax.map(lambda row: row @ x, x)

    assert count_flops(looped, SQUARE) == pytest.approx((7 + 5 + 1) * PRODUCT, abs=20)


def test_a_loop_of_unknown_length_counts_as_one_round():
    def until_large(x):
        return lax.while_loop(lambda x: jnp.sum(x) < 1, lambda x: x @ x, x)

    assert count_flops(until_large, SQUARE) == PRODUCT + SIZE**2 - 1 + 1


def test_a_program_of_several_devices_counts_what_all_of_them_do():
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spread = jax.shard_map(lambda x, y: x @ y, mesh=mesh, in_specs=(jax.P("a"), jax.P()), out_specs=jax.P("a"))
    # The axis b repeats what a shares out.
    assert count_flops(spread, SQUARE, SQUARE) == 2 * PRODUCT


def test_a_kernel_counts_every_program_of_its_grid():
    def kernel(x_ref, y_ref, out_ref):
        out_ref[...] = x_ref[...] @ y_ref[...]

    rows = pallas.BlockSpec((5, SIZE), lambda row: (row, 0))
    options = {"grid": (2,), "in_specs": [rows, pallas.BlockSpec((SIZE, SIZE), lambda row: (0, 0))], "out_specs": rows}
    assert count_flops(pallas.pallas_call(kernel, out_shape=SQUARE, **options), SQUARE, SQUARE) == PRODUCT


def test_gradients_of_a_product_are_two_products():
    def loss(x, y):
        return jnp.sum(x @ y)

    assert count_flops(jax.value_and_grad(loss, (0, 1)), SQUARE, SQUARE) == pytest.approx(3 * PRODUCT, rel=0.06)
