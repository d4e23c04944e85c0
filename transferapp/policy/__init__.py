"""The decision: how large the data are, how similar to ImageNet, and what follows. Pure functions with named thresholds."""
