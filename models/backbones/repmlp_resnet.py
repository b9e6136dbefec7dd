"""ResNet-50 with RepMLP, the first version, in its stages 2 and 3 (https://arxiv.org/abs/2105.01883).

Names follow the published checkpoints, with a part more where something fuses: `local` for the layer over a tile and
`perceptron` for the layers over all tiles.

The published networks are made for pictures of 224 pixels, whose maps have 4x4 and 2x2 tiles of 7x7. Pictures of other
sizes have other grids of tiles: the means of the tiles are resampled to the grid of the weights and what the perceptron
says of them back to their own. So every size works, the published weights load as they are, and at 224 nothing changes;
building the layers for the grid of 640 instead would give each of them eighty times as many weights.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones import options
from models.backbones.base import BACKBONES, Backbone, select_strides
from models.backbones.weights import Dialect
from models.blocks.repconv import ConvNorm
from models.blocks.repmlp import RepMLP
from models.errors import UserError

STRIDES = (4, 8, 16, 32)
DEPTHS, WIDTHS = (3, 4, 6, 3), (256, 512, 1024, 2048)
TILE = (7, 7)
MAX_KERNEL = 13  # which covers a tile from any of its pixels
STAGES = {1: 8, 2: 16}  # indices of the stages with RepMLP, and their strides


class Arch(NamedTuple):
    """The block around a RepMLP, its groups, the side of the picture, and how much narrower a stage's RepMLP is.

    Then the convolutions beside its layers, and how many times fewer neurons its perceptrons have inside.
    """

    block: str
    groups: int
    img_size: int
    narrower: dict[int, int]
    kernels: tuple[int, ...] = (1, 3, 5)
    reduction: int = 1

    def repmlp(self, channels: int, stage: int) -> RepMLP:
        """Return the RepMLP of a stage."""
        side = self.img_size // STAGES[stage] // TILE[0]
        return RepMLP(channels, TILE, (side, side), self.groups, self.kernels, self.reduction)


ARCHS = {
    "bottleneck-224": Arch("bottleneck", 8, 224, {1: 2, 2: 4}),
    "light-224": Arch("light", 4, 224, {}),
}

REPMLP = r"\.(light|btnk)_repmlp\."
LINEAR = ((r"^linear\.", "head.fc."),)
DIALECTS = (
    Dialect(
        "the authors of RepMLP",
        REPMLP + r"fc3_bn\.",
        renames=(
            (REPMLP + r"(fc3_bn|fc3|repconv\d)\.", r".\1_repmlp.local.\2."),
            (REPMLP + r"avg\.bn\.", r".\1_repmlp.perceptron.fc1.bn."),
            (REPMLP + r"fc1_fc2\.fc1\.", r".\1_repmlp.perceptron.fc1.fc."),
            (REPMLP + r"fc1_fc2\.fc2\.", r".\1_repmlp.perceptron.fc2."),
            *LINEAR,
        ),
    ),
    Dialect(
        "the authors of RepMLP, deploy form",
        REPMLP + r"fc3\.bias$",
        renames=(
            (REPMLP + r"fc3\.", r".\1_repmlp.local."),
            (REPMLP + r"fc1_fc2\.", r".\1_repmlp.perceptron."),
            *LINEAR,
        ),
        deploy=True,
        written=(
            (REPMLP + r"local\.", r".\1_repmlp.fc3."),
            (REPMLP + r"perceptron\.", r".\1_repmlp.fc1_fc2."),
            (r"^head\.fc\.", "linear."),
        ),
        form="all",
    ),
)


class Bottleneck(nn.Module):
    """ResNet's bottleneck, (B, c1, H, W) to (B, c2, H / s, W / s)."""

    def __init__(self, c1: int, c2: int, s: int = 1) -> None:
        super().__init__()
        hidden = c2 // 4
        self.conv1 = _conv_bn(c1, hidden, 1)
        self.conv2 = _conv_bn(hidden, hidden, 3, s)
        self.conv3 = _conv_bn(hidden, c2, 1)
        self.shortcut = _conv_bn(c1, c2, 1, s) if c1 != c2 or s > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv2(F.relu(self.conv1(x))))
        return F.relu(self.conv3(y) + self.shortcut(x))


class LightBlock(nn.Module):
    """1x1 convolution, RepMLP, 1x1 convolution beside the identity; (B, channels, H, W) to the same."""

    def __init__(self, channels: int, make: Callable[[int], RepMLP]) -> None:
        super().__init__()
        hidden = channels // 8
        self.light_conv1 = _conv_bn(channels, hidden, 1)
        self.light_repmlp = make(hidden)
        self.light_conv3 = _conv_bn(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.light_repmlp(F.relu(self.light_conv1(x))))
        return F.relu(self.light_conv3(y) + x)


class BottleneckBlock(nn.Module):
    """1x1 and 3x3 convolution, RepMLP, 3x3 and 1x1 convolution beside the identity; (B, channels, H, W) to the same."""

    def __init__(self, channels: int, narrower: int, make: Callable[[int], RepMLP]) -> None:
        super().__init__()
        hidden = channels // 4
        narrow = hidden // narrower
        self.btnk_conv1 = _conv_bn(channels, hidden, 1)
        self.btnk_conv2 = _conv_bn(hidden, narrow, 3)
        self.btnk_repmlp = make(narrow)
        self.btnk_conv4 = _conv_bn(narrow, hidden, 3)
        self.btnk_conv5 = _conv_bn(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.btnk_conv2(F.relu(self.btnk_conv1(x))))
        y = F.relu(self.btnk_conv4(F.relu(self.btnk_repmlp(y))))
        return F.relu(self.btnk_conv5(y) + x)


@BACKBONES.register("RepMLPResNet")
class RepMLPResNet(Backbone):
    """ResNet-50 with RepMLP as a backbone with maps at strides 4, 8, 16 and 32, for pictures of any size.

    Args:
        arch: one of `archs`; the number is the side of the pictures that its weights are made for.
        in_channels: channels of the input picture.
        out_strides: the strides whose maps are wanted, all by default; stages behind the last one are not built.
        img_size: another side of pictures, a multiple of 112, whose grid of tiles the perceptrons are made for.
        groups: of channels in the layers over tiles, instead of the architecture's.
        kernels: sides of the convolutions beside these layers, [1, 3, 5] as in the published networks.
        reduction: how many times fewer neurons the perceptrons over all tiles have inside.

    Raises:
        UserError: a value that an option does not take.
    """

    archs: ClassVar[tuple[str, ...]] = tuple(ARCHS)
    dialects: ClassVar[tuple[Dialect, ...]] = DIALECTS
    trained_by = ("SGD", "as in RepMLP's paper: learning rate 0.1 for 256 pictures, cosine, momentum 0.9")

    def __init__(
        self,
        arch: str = "bottleneck-224",
        in_channels: int = 3,
        out_strides: Sequence[int] | None = None,
        img_size: int | None = None,
        groups: int | None = None,
        kernels: Sequence[int] | None = None,
        reduction: int = 1,
    ) -> None:
        super().__init__()
        plan = ARCHS[arch]
        self.plan = plan._replace(
            img_size=_img_size(img_size, plan.img_size),
            groups=_groups(groups, plan),
            kernels=options.kernels("RepMLPResNet's kernels", kernels, plan.kernels, MAX_KERNEL),
            reduction=options.whole("RepMLPResNet's reduction", reduction, 1, min(_repmlp_widths(plan))),
        )
        self.in_channels = in_channels
        self.strides = select_strides(out_strides, STRIDES, f"RepMLPResNet {arch}")
        self.channels = tuple(WIDTHS[STRIDES.index(stride)] for stride in self.strides)
        self.stage0 = nn.Sequential(_conv_bn(in_channels, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.built = STRIDES.index(self.strides[-1]) + 1
        for stage in range(self.built):
            self.add_module(f"stage{stage + 1}", self._stage(stage))

    def _stage(self, stage: int) -> nn.Sequential:
        """Return the blocks of a stage, RepMLP blocks behind the first in the two middle ones."""
        c1, c2 = (64, *WIDTHS)[stage : stage + 2]
        first = Bottleneck(c1, c2, s=1 if stage == 0 else 2)
        return nn.Sequential(first, *(self._block(stage) for _ in range(DEPTHS[stage] - 1)))

    def _block(self, stage: int) -> nn.Module:
        channels = WIDTHS[stage]
        if stage not in STAGES:
            return Bottleneck(channels, channels)
        make = partial(self.plan.repmlp, stage=stage)
        if self.plan.block == "light":
            return LightBlock(channels, make)
        return BottleneckBlock(channels, self.plan.narrower[stage], make)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.stage0(x)
        maps = []
        for i in range(self.built):
            x = self.get_submodule(f"stage{i + 1}")(x)
            if STRIDES[i] in self.strides:
                maps.append(x)
        return maps

    def make_head(self, num_classes: int) -> nn.Module:
        """Return the published head: global average pooling and a linear layer."""
        pool, fc = nn.AdaptiveAvgPool2d(1), nn.Linear(self.channels[-1], num_classes)
        return nn.Sequential(OrderedDict(pool=pool, flat=nn.Flatten(), fc=fc))


def _repmlp_widths(plan: Arch) -> list[int]:
    """Return the channels of the RepMLP of each stage that has one."""
    return [
        WIDTHS[stage] // 8 if plan.block == "light" else WIDTHS[stage] // 4 // plan.narrower[stage] for stage in STAGES
    ]


def _groups(value: object, plan: Arch) -> int:
    """Return the groups of the layers over tiles; UserError unless they divide the channels of every RepMLP."""
    if value is None:
        return plan.groups
    widths = _repmlp_widths(plan)
    most = math.gcd(*widths)
    if type(value) is not int or value < 1 or most % value:
        raise UserError(
            f"RepMLPResNet's groups must divide its channels, {most} and multiples of it, got {value!r:.80}"
        )
    return value


def _img_size(value: object, default: int) -> int:
    """Return the side of the pictures whose grid of tiles the perceptrons are made for.

    Raises:
        UserError: its maps are no whole number of tiles.
    """
    if value is None:
        return default
    unit = TILE[0] * max(STAGES.values())
    if type(value) is not int or value % unit or not 0 < value <= 10 * unit:
        sizes = ", ".join(str(unit * i) for i in range(1, 11))
        raise UserError(f"RepMLPResNet's img_size is one of {sizes} (pictures may have any size), got {value!r:.80}")
    return value


def _conv_bn(c1: int, c2: int, k: int, s: int = 1) -> ConvNorm:
    return ConvNorm(nn.Conv2d(c1, c2, k, s, k // 2, bias=False), nn.BatchNorm2d(c2))
