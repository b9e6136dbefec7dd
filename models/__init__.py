"""RepYOLO's networks: any list backbone under a YOLOv5 head, trained with branches, deployed as plain operators.

>>> from models import DetectionModel, create_backbone, list_backbones, switch_to_deploy

Importing the package alone loads no torch: its names and modules are imported when they are first asked for.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

import models.environment  # noqa: F401  (before anything imports ultralytics)

if TYPE_CHECKING:
    from models.backbones import BACKBONES, Backbone, create_backbone, list_backbones
    from models.blocks.reparam import Reparameterizable, switch_to_deploy
    from models.yolo import DetectionModel, SegmentationModel, create_model

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
HOMES = {  # of those names: the modules that they are imported from
    "BACKBONES": "models.backbones",
    "Backbone": "models.backbones",
    "DetectionModel": "models.yolo",
    "Reparameterizable": "models.blocks.reparam",
    "SegmentationModel": "models.yolo",
    "create_backbone": "models.backbones",
    "create_model": "models.yolo",
    "list_backbones": "models.backbones",
    "switch_to_deploy": "models.blocks.reparam",
}
SUBMODULES = [module.name for module in pkgutil.iter_modules(__path__)]


def __dir__() -> list[str]:
    return sorted([*__all__, *SUBMODULES])


if not TYPE_CHECKING:  # a type checker that sees `__getattr__` takes every name for one of the package's

    def __getattr__(name: str) -> Any:
        if name in SUBMODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in HOMES:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        importlib.import_module("models.yolo")  # registers every word, backbone and way to fuse, whatever is asked for
        return getattr(importlib.import_module(HOMES[name]), name)
