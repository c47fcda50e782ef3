"""Where examples come from: the embedded data sets, any TFDS data set, and the order in which they are read."""
