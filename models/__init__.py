"""RepYOLO's networks: any list backbone under a YOLOv5 head, trained with branches, deployed as plain operators.

>>> from models import DetectionModel, create_backbone, list_backbones, switch_to_deploy
"""

import warnings

import models.environment  # noqa: F401  (before anything imports ultralytics)

from models.backbones import BACKBONES, Backbone, create_backbone, list_backbones  # isort: skip
from models.blocks.reparam import Reparameterizable, switch_to_deploy
from models.yolo import DetectionModel, SegmentationModel, create_model

warnings.filterwarnings("ignore", "'models.yolo' found in sys.modules", RuntimeWarning)  # python -m models.yolo

__all__ = [
    "BACKBONES",
    "Backbone",
    "DetectionModel",
    "Reparameterizable",
    "SegmentationModel",
    "create_backbone",
    "create_model",
    "list_backbones",
    "switch_to_deploy",
]
