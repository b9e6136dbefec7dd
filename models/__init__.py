"""RepYOLO's networks: any list backbone under a YOLOv5 head, trained with branches, deployed as plain operators."""

import utils.environment  # noqa: F401  (before anything imports ultralytics)
