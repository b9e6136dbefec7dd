"""timm when it is asked for: its word, its names and its weights, without the seconds that importing it takes.

What timm's models give and how they are run is in `from_timm.py`, which only `load` imports.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from models.backbones.base import BACKBONES, Backbone
from models.backbones.weights import SOURCES
from models.blocks.reparam import register_library


def load() -> ModuleType:
    """Return `from_timm`, imported if it was not yet."""
    with torch.device("cpu"):  # a model's layers are built without data first, but timm's constants need values
        from models.backbones import from_timm  # noqa: PLC0415 (slow, and only rows of timm need it)
    return from_timm


def is_timm_model(name: str) -> bool:
    """Return whether timm knows `name`, a tag of pretrained weights such as `.in1k` aside."""
    return load().is_timm_model(name)


def timm_models() -> list[str]:
    """Return the names of all timm models."""
    return load().timm_models()


def _backbone() -> type[Backbone]:
    return load().TimmBackbone


def _pretrained_tensors(name: str) -> dict[str, Tensor]:
    return load().pretrained_tensors(name)


BACKBONES.register_lazy("timm", _backbone)
SOURCES["timm/"] = _pretrained_tensors
register_library("timm", load)
