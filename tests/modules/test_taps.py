"""Intermediate values cost nothing unless somebody asked."""

import jax.numpy as jnp

from flaxformer_lab.modules.taps import CLOSED, Taps


def test_values_are_collected_under_dotted_names():
    taps = Taps()
    taps.add("input", lambda: jnp.ones(1))
    taps.within("blocks.0").within("attention").add("weights", lambda: jnp.zeros(2))
    assert {name: value.tolist() for name, value in taps.values.items()} == {
        "input": [1.0],
        "blocks.0.attention.weights": [0.0, 0.0],
    }


def test_fresh_taps_keep_the_prefix_and_collect_apart():
    taps = Taps().within("blocks.1")
    fresh = taps.fresh()
    fresh.add("output", lambda: jnp.ones(1))
    assert list(fresh.values) == ["blocks.1.output"]
    assert not taps.values


def test_closed_taps_compute_nothing():
    def never():
        raise AssertionError("computed although nobody asked")

    for taps in (CLOSED, CLOSED.within("blocks.0"), CLOSED.fresh()):
        taps.add("output", never)
        assert taps.values == {}
