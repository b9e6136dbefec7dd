"""Norms that are BatchNorms in eval mode become torch's, which fold: frozen ones of torchvision and timm, InstanceNorm.

InstanceNorm is one where it tracks running statistics; otherwise it depends on the picture and stays.
"""

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


INSTANCE_NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.InstanceNorm1d: nn.BatchNorm1d,
    nn.InstanceNorm2d: nn.BatchNorm2d,
    nn.InstanceNorm3d: nn.BatchNorm3d,
}


@register_fuser
def fuse_instance_norm(module: Any) -> nn.Module | None:
    """Return an InstanceNorm with running statistics as the BatchNorm that it is in eval mode; None for others."""
    kind: Any = INSTANCE_NORMS.get(type(module))
    if kind is None or module.running_mean is None:
        return None
    like = module.running_mean
    norm = kind(module.num_features, module.eps, affine=module.affine, device=like.device, dtype=like.dtype)
    norm.load_state_dict(module.state_dict())
    return norm.eval()


def _register_torchvision() -> None:
    from torchvision.ops import FrozenBatchNorm2d  # noqa: PLC0415 (it has been imported where there is one)

    @register_fuser
    def fuse_frozen(module: nn.Module) -> nn.Module | None:
        """Return torchvision's FrozenBatchNorm2d as torch's; None for others."""
        return thaw(module) if type(module) is FrozenBatchNorm2d else None


register_library("torchvision", _register_torchvision)
