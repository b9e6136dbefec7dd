"""Several processes that share one training or validation, each with a device of its own."""
