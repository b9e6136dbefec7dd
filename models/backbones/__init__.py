"""The backbones. Importing this package registers every one of them."""

from models.backbones import lazy_timm, repmlp_resnet, repmlpnet, repvgg, riformer
from models.backbones.base import BACKBONES, Backbone, check_backbone, create_backbone, list_backbones

__all__ = [
    "BACKBONES",
    "Backbone",
    "check_backbone",
    "create_backbone",
    "lazy_timm",
    "list_backbones",
    "repmlp_resnet",
    "repmlpnet",
    "repvgg",
    "riformer",
]
