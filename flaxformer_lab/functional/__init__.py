"""The mathematics: pure functions on arrays, without parameters, state or config."""
