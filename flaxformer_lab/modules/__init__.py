"""Flax NNX modules: they own the parameters and call `functional` for the mathematics."""
