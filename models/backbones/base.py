"""What a backbone promises: how many channels at which strides, said before it is run, and a list of feature maps.

A backbone registers under the word that a YAML row uses:

    @BACKBONES.register("MyNet")
    class MyNet(Backbone): ...
"""

from __future__ import annotations

import inspect
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

    @property
    def example_side(self) -> int:
        """The side in pixels of a small picture that the network takes."""
        return 2 * self.strides[-1]

    def example_input(self) -> Tensor:
        """Return a small input of zeros, (1, in_channels, H, W), with the dtype and device of the weights."""
        return next(self.parameters()).new_zeros(1, self.in_channels, self.example_side, self.example_side)


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
    if not isinstance(in_channels, int) or in_channels < 1:
        raise UserError(f"{name} needs a picture of at least one channel, got in_channels={in_channels!r}")
    arguments = {"in_channels": in_channels, "out_strides": out_strides, **options}
    try:
        inspect.signature(kind).bind(arch, **arguments)
    except TypeError as e:
        raise UserError(f"{name} {e}, its options are {', '.join(_options(kind))}") from e
    return kind(arch, **arguments)


def _options(kind: type[Backbone]) -> list[str]:
    """Return the names of the arguments that a YAML can give in its mapping."""
    return [name for name in inspect.signature(kind).parameters if name not in ("in_channels", "out_strides")]


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

    Statistics and training modes stay as they are.

    Raises:
        UserError: it does not return a list of maps, or one differs from `channels` and `strides`.
    """
    name, channels, strides = type(backbone).__name__, backbone.channels, backbone.strides
    if len(channels) != len(strides) or list(strides) != sorted(set(strides)):
        raise UserError(f"{name} must declare as many channels as ascending strides, but has {channels} and {strides}")
    modes = {module: module.training for module in backbone.modules()}
    try:
        maps = backbone.eval()(backbone.example_input().new_zeros(2, backbone.in_channels, *size))
    finally:
        for module, training in modes.items():
            module.training = training
    if not isinstance(maps, list) or not all(isinstance(m, Tensor) for m in maps):
        raise UserError(f"{name} must return a list of feature maps, but returned a {type(maps).__name__}")
    said = [(2, c, size[0] // s, size[1] // s) for c, s in zip(channels, strides, strict=True)]
    came = [tuple(m.shape) for m in maps]
    if said != came:
        raise UserError(f"{name} declares maps of shapes {said} for a picture of {size}, but returned {came}")
