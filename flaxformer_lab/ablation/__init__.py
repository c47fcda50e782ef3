"""Named variants of the model, and grids of runs that compare them with a baseline."""
