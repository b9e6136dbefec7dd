"""What a backbone promises: how many channels at which strides, said before it is run, and a list of feature maps.

A backbone registers under the word that a YAML row uses:

    @BACKBONES.register("MyNet")
    class MyNet(Backbone): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from models.errors import ConfigError, UserError, did_you_mean
from models.registry import Registry


class MissingLevel(ConfigError):
    """A level is read that the backbone does not give."""

    def __init__(self, message: str, stride: int) -> None:
        super().__init__(message)
        self.slot = stride.bit_length() - 2


class Backbone(nn.Module, ABC):
    """A network that returns one feature map per stride, high to low resolution.

    Attributes:
        archs: the architectures that the class builds; the first is the default. Empty: any name.
        channels: channels of each map.
        strides: stride of each map in input pixels, ascending, for instance (4, 8, 16, 32).
        in_channels: channels of the input picture.
    """

    archs: ClassVar[tuple[str, ...]] = ()
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    in_channels: int

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Map (B, in_channels, H, W) to one (B, channels[i], H / strides[i], W / strides[i]) per stride."""

    def example_input(self) -> Tensor:
        """Return a small input of zeros, (1, in_channels, H, W), with the dtype and device of the weights."""
        side = 2 * self.strides[-1]
        return next(self.parameters()).new_zeros(1, self.in_channels, side, side)


BACKBONES = Registry[type[Backbone]]("backbone")


def create_backbone(
    name: str,
    arch: str | None = None,
    *,
    in_channels: int = 3,
    out_strides: Sequence[int] | None = None,
    **options: Any,
) -> Backbone:
    """Build a registered backbone.

    Args:
        name: a word of `BACKBONES`, for instance "RIFormer" or "timm".
        arch: the architecture; the class's first one by default.
        in_channels: channels of the input picture.
        out_strides: the strides whose maps are wanted, all by default. What only serves others is not built.
        options: further arguments of the class, for instance `weights="riformer-s12.pth"`.

    Raises:
        UserError: an unknown name, architecture or option, or a stride that the backbone does not have.
    """
    kind = BACKBONES[name]
    if arch is None:
        if not kind.archs:
            raise UserError(f"{name} needs an architecture, for instance create_backbone('{name}', arch=...)")
        arch = kind.archs[0]
    if kind.archs and arch not in kind.archs:
        hint = did_you_mean(str(arch), kind.archs)
        raise UserError(f"{name} has no architecture {arch!r}{hint}, expected one of {', '.join(kind.archs)}")
    try:
        return kind(arch, in_channels=in_channels, out_strides=out_strides, **options)
    except TypeError as e:
        if "unexpected keyword argument" not in str(e):
            raise
        raise UserError(f"{name} {str(e).split('() ')[-1]}") from e


def list_backbones() -> dict[str, tuple[str, ...]]:
    """Return the registered backbones and their architectures; an empty tuple means any name of that library."""
    return {name: kind.archs for name, kind in BACKBONES.items()}


def select_strides(wanted: Sequence[int] | None, has: Sequence[int], what: str) -> tuple[int, ...]:
    """Return the `wanted` strides in ascending order, all of `has` if None.

    Raises:
        MissingLevel: a stride is wanted that `what` does not have.
    """
    missing = sorted(set(wanted or ()) - set(has))
    if missing:
        gives = ", ".join(map(level_name, has))
        raise MissingLevel(f"{what} has no map at {level_name(missing[0])}, it gives {gives}", missing[0])
    return tuple(sorted(set(wanted))) if wanted else tuple(has)


def level_name(stride: int) -> str:
    """Return how people call a stride: 8 is "P3 (stride 8)"."""
    return f"P{stride.bit_length() - 1} (stride {stride})"


@torch.no_grad()
def check_backbone(backbone: Backbone, size: tuple[int, int] = (128, 192)) -> None:
    """Run `backbone` on zeros of `size` (H, W), multiples of its last stride, and compare with what it declares.

    Raises:
        UserError: it does not return a list of maps, or one differs from `channels` and `strides`.
    """
    was_training = backbone.training
    example = backbone.example_input().new_zeros(2, backbone.in_channels, *size)
    maps = backbone.eval()(example)
    backbone.train(was_training)
    name = type(backbone).__name__
    if not isinstance(maps, list) or not all(isinstance(m, Tensor) for m in maps):
        raise UserError(f"{name} must return a list of feature maps, but returned a {type(maps).__name__}")
    said = [(2, c, size[0] // s, size[1] // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
    came = [tuple(m.shape) for m in maps]
    if said != came:
        raise UserError(f"{name} declares maps of shapes {said} for a picture of {size}, but returned {came}")
