"""State, step, loop, optimizer, parallelism, checkpoints and logging."""
