"""What the scripts do with a model: data, training, checkpoints, prediction, export and its proof."""
