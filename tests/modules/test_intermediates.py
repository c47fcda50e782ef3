"""Intermediate values cost nothing unless somebody asked."""

import jax.numpy as jnp

from flaxformer_lab.modules.intermediates import DISABLED, Intermediates


def test_values_are_collected_under_dotted_names():
    intermediates = Intermediates()
    intermediates.add("input", lambda: jnp.ones(1))
    intermediates.within("blocks.0").within("attention").add("weights", lambda: jnp.zeros(2))
    assert {name: value.tolist() for name, value in intermediates.values.items()} == {
        "input": [1.0],
        "blocks.0.attention.weights": [0.0, 0.0],
    }


def test_fresh_intermediates_keep_the_prefix_and_collect_apart():
    intermediates = Intermediates().within("blocks.1")
    fresh = intermediates.fresh()
    fresh.add("output", lambda: jnp.ones(1))
    assert list(fresh.values) == ["blocks.1.output"]
    assert not intermediates.values


def test_disabled_intermediates_compute_nothing():
    def never():
        raise AssertionError("computed although nobody asked")

    for intermediates in (DISABLED, DISABLED.within("blocks.0"), DISABLED.fresh()):
        intermediates.add("output", never)
        assert intermediates.hook_point("output", value := jnp.ones(2)) is value
        assert intermediates.values == {}
