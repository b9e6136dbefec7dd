"""What the scripts do with a model: data, training, checkpoints, detection, export and its proof."""

import models.environment  # noqa: F401  (before anything imports ultralytics)
