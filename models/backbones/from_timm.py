"""Any timm model with feature maps as a backbone (https://github.com/huggingface/pytorch-image-models).

Channels and strides come from timm's `feature_info`, before anything is run. timm's own re-parameterizable blocks
(RepVGG, MobileOne, FastViT, RepViT, ...) are fused by timm's methods, its convolution + BatchNormAct2d pairs by ours.
This is the only file that imports timm.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, ClassVar

import timm
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from models.backbones.base import BACKBONES, Backbone, select_strides
from models.blocks.reparam import register_fuser, register_linear
from models.errors import ConfigError, UserError, did_you_mean

FUSE_METHODS = ("fuse", "reparameterize", "switch_to_deploy")  # timm's three names for one act

register_linear(Conv2dSame)  # a convolution that pads by itself
logging.getLogger("timm.models._builder").setLevel(logging.WARNING)  # its log of unused classifier weights


@BACKBONES.register("timm")
class TimmBackbone(Backbone):
    """The feature maps of the timm model `arch`.

    Args:
        arch: a timm name, for instance "mobileone_s0".
        in_channels: channels of the input picture; timm adapts pretrained stems to it.
        out_strides: the strides whose maps are wanted, all by default.
        pretrained: let timm download its weights. Off, nothing touches the network.
        options: further arguments of `timm.create_model`.

    Raises:
        ConfigError: timm has no such model, or the model has no pyramid of feature maps or not the wanted strides.
    """

    archs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        arch: str,
        in_channels: int = 3,
        out_strides: Sequence[int] | None = None,
        pretrained: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if not is_timm_model(arch):
            raise ConfigError(f"timm has no model '{arch}'{did_you_mean(arch, timm.list_models())}")
        self.in_channels = in_channels
        with torch.device("meta"):  # only to read what it would give
            reductions = _create(arch, **options).feature_info.reduction()
        if len(set(reductions)) < len(reductions):
            strides = ", ".join(map(str, reductions))
            raise ConfigError(f"timm's {arch} is no pyramid: its feature maps have the strides {strides}")
        self.strides = select_strides(out_strides, reductions, f"timm's {arch}")
        indices = [reductions.index(stride) for stride in self.strides]
        self.body = _create(arch, in_chans=in_channels, out_indices=indices, pretrained=pretrained, **options)
        self.channels = tuple(self.body.feature_info.channels())
        self.channels_last = str(getattr(self.body, "output_fmt", "NCHW")).upper().endswith("NHWC")

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.body(x)
        return [m.permute(0, 3, 1, 2).contiguous() for m in maps] if self.channels_last else list(maps)


def is_timm_model(name: str) -> bool:
    """Return whether timm knows `name`, a tag of pretrained weights such as `.in1k` aside."""
    return timm.is_model(name.partition(".")[0])


@register_fuser
def fuse_timm_block(module: nn.Module) -> nn.Module | None:
    """Return timm's own fused form of one of its blocks; None for other modules and for fused ones."""
    if not type(module).__module__.startswith("timm."):
        return None
    method = next((m for m in FUSE_METHODS if callable(getattr(module, m, None))), None)
    if method is None:
        return None
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    fused = copy.deepcopy(module).double()  # some of timm's fusing is written for one dtype
    result = getattr(fused, method)()
    fused = (result if isinstance(result, nn.Module) else fused).to(dtype)
    return fused if fused.state_dict().keys() != module.state_dict().keys() else None


def _create(arch: str, **options: Any) -> Any:
    """Call `timm.create_model` for feature maps and turn its refusals into one sentence."""
    try:
        return timm.create_model(arch, features_only=True, **options)
    except (RuntimeError, AttributeError, TypeError, AssertionError, ValueError, OSError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise UserError(f"timm cannot build {arch} as a backbone: {reason}") from e
