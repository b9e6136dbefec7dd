"""Several backbones trained alike on one data set: what to train, what is left to do, and what can be said of it."""
