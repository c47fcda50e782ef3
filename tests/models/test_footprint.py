"""Bytes of programs, against what arrays take and what the compiler reports."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxformer_lab.models.footprint import live_bytes, program_bytes

ROW = 4 * 1000  # bytes
X = jax.ShapeDtypeStruct((1000,), jnp.float32)


@pytest.mark.parametrize(
    ("function", "rows"),
    [
        (lambda x: x, 1),
        (lambda x: x + 1, 2),
        (lambda x: ((x + 1) * 2) - 3, 3),  # the argument, and a result beside the one that it is made from
        (lambda x: (x + 1, x * 2), 3),
        (lambda x: jnp.sum(jnp.exp(x) * jnp.sin(x)), 4),
        (jax.jit(lambda x: jnp.exp(x) * jnp.sin(x) - 1), 4),
        (lambda x: jax.lax.scan(lambda total, _: (total + jnp.exp(total), None), x, length=9)[0], 3),
        (lambda x: x.astype(jnp.float16), 1.5),
    ],
)
def test_each_value_is_held_until_its_last_use(function, rows):
    assert live_bytes(function, X) == pytest.approx(rows * ROW, abs=8)


def test_without_a_report_the_estimate_is_near_what_the_compiler_would_say(monkeypatch):
    def layer(params, x):
        hidden = jax.nn.relu(x @ params["up"])
        return x + hidden @ params["down"]

    arguments = {"up": jnp.zeros((64, 256)), "down": jnp.zeros((256, 64))}, jnp.zeros((512, 64))
    compiled = jax.jit(layer).lower(*arguments).compile()
    reported = program_bytes(compiled, layer, *arguments)
    assert reported > 4 * (2 * 64 * 256 + 2 * 512 * 64)
    monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: None)
    assert reported / 2 < program_bytes(compiled, layer, *arguments) < 3 * reported


def test_a_result_that_takes_an_arguments_place_is_counted_once():
    x = np.zeros(100_000, np.float32)
    double = jax.jit(lambda x: x * 2, donate_argnums=0).lower(x).compile()
    assert program_bytes(double, lambda x: x * 2, x) == pytest.approx(x.nbytes, rel=0.01)
