"""Any timm model with feature maps as a backbone (https://github.com/huggingface/pytorch-image-models).

Channels and strides come from timm's `feature_info`, and the first maps show whether it is right. timm's own blocks
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
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn

from models.backbones.base import BACKBONES, Backbone, select_strides
from models.blocks.reparam import register_batch_norm, register_fuser, register_linear
from models.errors import ConfigError, UserError, did_you_mean

RESERVED = ("in_chans", "out_indices", "features_only")  # follow from the rest of a YAML
FUSE_METHODS = ("fuse", "reparameterize", "switch_to_deploy")  # timm's three names for one act

register_linear(Conv2dSame)  # a convolution that pads by itself
register_batch_norm(BatchNormAct2d)  # a BatchNorm, then its drop and act
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
            raise ConfigError(f"timm has no model '{arch}'{did_you_mean(str(arch), timm_models())}")
        for option in RESERVED:
            if option in options:
                raise ConfigError(f"timm's {option} follows from the rest of the YAML and is not an option")
        self.in_channels = in_channels
        self.options = options
        self.arch = arch
        with torch.device("meta"):  # only to read what it would give
            strides = _create(arch, **options).feature_info.reduction()
        if len(set(strides)) < len(strides):
            listed = ", ".join(map(str, strides))
            raise ConfigError(f"timm's {arch} is no pyramid: its feature maps have the strides {listed}")
        self.strides = select_strides(out_strides, strides, f"timm's {arch}")
        indices = [strides.index(stride) for stride in self.strides]
        self.body = _create(arch, in_chans=in_channels, out_indices=indices, pretrained=pretrained, **options)
        self.channels = tuple(self.body.feature_info.channels())
        self.channels_last = _is_channels_last(self.body)

    @property
    def example_side(self) -> int:
        """The side of a small picture that the model takes: its own, where `img_size` gives it one."""
        size = self.options.get("img_size", 2 * self.strides[-1])
        return int(size if isinstance(size, int) else max(size))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps; UserError if the model takes no such picture, or its maps have not the declared strides."""
        try:
            maps = self.body(x)
        except AssertionError as e:  # how timm's models of one size complain
            height, width = x.shape[2:]
            hint = f"a model of one size wants it in its options, for instance {{img_size: {max(height, width)}}}"
            raise UserError(f"timm's {self.arch} takes no picture of {height}x{width}, {hint}: {_first_line(e)}") from e
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        if not torch.jit.is_tracing():
            self.check_strides(x, maps)
        return list(maps)

    def check_strides(self, x: Tensor, maps: Sequence[Tensor]) -> None:
        """Raise UserError where a map is not as large as its stride says: timm declares some wrongly."""
        for stride, feature in zip(self.strides, maps, strict=True):
            if abs(x.shape[2] / stride - feature.shape[2]) >= 1:
                raise UserError(
                    f"timm's {self.arch} declares a map of stride {stride}, but gives {feature.shape[2]} rows for a "
                    f"picture of {x.shape[2]}, so its boxes would be in the wrong place"
                )


def is_timm_model(name: str) -> bool:
    """Return whether timm knows `name`, a tag of pretrained weights such as `.in1k` aside."""
    return isinstance(name, str) and timm.is_model(name.partition(".")[0])


def timm_models() -> list[str]:
    """Return the names of all timm models."""
    return timm.list_models()


def _is_channels_last(body: Any) -> bool:
    return str(getattr(body, "output_fmt", "NCHW")).upper().endswith("NHWC")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@register_fuser
def fuse_timm_block(module: nn.Module) -> nn.Module | None:
    """Return timm's own fused form of one of its blocks; None for other modules and for fused ones."""
    if not type(module).__module__.startswith("timm."):
        return None
    method = next((m for m in FUSE_METHODS if callable(getattr(module, m, None))), None)
    if method is None:
        return None
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    fused = copy.deepcopy(module).double()
    former = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # some of timm's fusing makes convolutions of the default dtype
    try:
        result = getattr(fused, method)()
    finally:
        torch.set_default_dtype(former)
    fused = (result if isinstance(result, nn.Module) else fused).to(dtype)
    return fused if fused.state_dict().keys() != module.state_dict().keys() else None


def _create(arch: str, **options: Any) -> Any:
    """Call `timm.create_model` for feature maps and turn its refusals into one sentence."""
    try:
        return timm.create_model(arch, features_only=True, **options)
    except (RuntimeError, AttributeError, TypeError, AssertionError, ValueError, OSError) as e:
        raise UserError(f"timm cannot build {arch} as a backbone: {_first_line(e)}") from e
