"""RepYOLO's networks: any list backbone under a YOLOv5 head, trained with branches, deployed as plain operators.

>>> from models import DetectionModel, create_backbone, list_backbones, load, switch_to_deploy

Importing the package alone loads no torch: its names and modules are imported when they are first asked for. `load` is
a function of `utils` that runs trained and exported weights: this package offers it and uses nothing of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models.environment  # noqa: F401  (before anything imports ultralytics)
from models.errors import UserError

if TYPE_CHECKING:
    from models.backbones import BACKBONES, Backbone, create_backbone, list_backbones
    from models.blocks.reparam import Reparameterizable, switch_to_deploy
    from models.yolo import ClassificationModel, DetectionModel, SegmentationModel, create_model
    from utils.detect.api import load

__all__ = [
    "BACKBONES",
    "Backbone",
    "ClassificationModel",
    "DetectionModel",
    "Reparameterizable",
    "SegmentationModel",
    "create_backbone",
    "create_model",
    "list_backbones",
    "load",
    "switch_to_deploy",
]
HOMES = {  # of those names: the modules that they are imported from
    "BACKBONES": "models.backbones",
    "Backbone": "models.backbones",
    "ClassificationModel": "models.yolo",
    "DetectionModel": "models.yolo",
    "Reparameterizable": "models.blocks.reparam",
    "SegmentationModel": "models.yolo",
    "create_backbone": "models.backbones",
    "create_model": "models.yolo",
    "list_backbones": "models.backbones",
    "load": "utils.detect.api",
    "switch_to_deploy": "models.blocks.reparam",
}
REPOSITORY = Path(__file__).resolve().parents[1]
SUBMODULES = [module.name for module in pkgutil.iter_modules(__path__)]


def check_is_ours(package: str) -> None:
    """Raise UserError where Python finds another package of this name than the one beside `models`."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    if REPOSITORY / package not in [Path(place).resolve() for place in places or []]:
        found = (spec and spec.origin) or ", ".join(places or []) or "nothing"
        raise UserError(
            f"RepYOLO's package '{package}' is in {REPOSITORY}, but Python finds {found} under that name: rename your "
            f"'{package}', or run RepYOLO in a process of its own, with {REPOSITORY} first in PYTHONPATH"
        )


def __dir__() -> list[str]:
    return sorted([*__all__, *SUBMODULES])


if not TYPE_CHECKING:  # a type checker that sees `__getattr__` takes every name for one of the package's

    def __getattr__(name: str) -> Any:
        if name in SUBMODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in HOMES:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        if HOMES[name].split(".")[0] != __name__:
            check_is_ours(HOMES[name].split(".")[0])
        importlib.import_module("models.yolo")  # registers every word, backbone and way to fuse, whatever is asked for
        return getattr(importlib.import_module(HOMES[name]), name)
