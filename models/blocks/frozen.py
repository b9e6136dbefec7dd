"""BatchNorms whose statistics and affine factors are constants: torchvision's and timm's become torch's, which fold."""

from __future__ import annotations

from typing import Any

from torch import nn

from models.blocks.reparam import register_fuser, register_library


def thaw(frozen: Any) -> nn.BatchNorm2d:
    """Return torch's BatchNorm2d, in eval mode, that computes what a frozen one does.

    Args:
        frozen: holds `weight`, `bias`, `running_mean`, `running_var`, (C,) each, and `eps`; takes (B, C, H, W).
    """
    norm = nn.BatchNorm2d(len(frozen.weight), frozen.eps, device=frozen.weight.device, dtype=frozen.weight.dtype)
    norm.load_state_dict(frozen.state_dict(), strict=False)
    return norm.requires_grad_(False).eval()


def _register_torchvision() -> None:
    from torchvision.ops import FrozenBatchNorm2d  # noqa: PLC0415 (it has been imported where there is one)

    @register_fuser
    def fuse_frozen(module: nn.Module) -> nn.Module | None:
        """Return torchvision's FrozenBatchNorm2d as torch's; None for others."""
        return thaw(module) if type(module) is FrozenBatchNorm2d else None


register_library("torchvision", _register_torchvision)
