"""Measures of mixing, rank, diversity and cost: pure functions of a network's function and of inputs."""
