"""RepMLPNet: tiles through fully connected layers that swallow convolutions (https://arxiv.org/abs/2112.11081).

A 4x4/4 convolution, then four stages of units with 2x2/2 convolutions between them. Maps are taken before those, at
strides 4, 8, 16 and 32. Names follow the published checkpoints, with one part more: what fuses is the `local` of a
block.

A unit cuts its map into tiles, whose size is that of the weights of its fully connected layer, so that the published
networks are made for pictures of 224 or 256 pixels. Here every size works: maps are padded to whole tiles and cropped
afterwards. For pictures of 640, `hs` and `ws` of (40, 20, 10, 5) need no padding and a quarter of the weights.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones import options
from models.backbones.base import BACKBONES, Backbone, select_strides
from models.backbones.weights import Adapted, Dialect
from models.blocks.recompute import run_blocks
from models.blocks.repconv import ConvNorm
from models.blocks.repmlp import RepMLPBlock
from models.errors import UserError, WeightsError

PATCHES = (2, 4, 8, 16)  # pixels a side of what the first convolution reads at once, which are the first stride
KERNELS, REDUCTION = (1, 3), 4  # of the convolutions beside the layers, and of the global perceptrons
MAX_TILE = 256  # pixels a side
MAX_KERNEL = 31


class Arch(NamedTuple):
    """Channels, units and sharesets of the four stages, and the sides of their tiles."""

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    sharesets: tuple[int, ...]
    tiles: tuple[int, ...]


T, B, D = (64, 128, 256, 512), (96, 192, 384, 768), (80, 160, 320, 640)
AT_224, AT_256 = (56, 28, 14, 7), (64, 32, 16, 8)
ARCHS = {
    "T224": Arch(T, (2, 2, 6, 2), (1, 4, 16, 128), AT_224),
    "T256": Arch(T, (2, 2, 6, 2), (1, 4, 16, 128), AT_256),
    "B224": Arch(B, (2, 2, 12, 2), (1, 4, 32, 128), AT_224),
    "B256": Arch(B, (2, 2, 12, 2), (1, 4, 32, 128), AT_256),
    "D256": Arch(D, (2, 2, 18, 2), (1, 4, 16, 128), AT_256),
    "L256": Arch(B, (2, 2, 18, 2), (1, 4, 32, 256), AT_256),
}

LOCAL = ((r"\.repmlp_block\.(fc3_bn|fc3|repconv\d)\.", r".repmlp_block.local.\1."),)
DEPLOY_LOCAL = ((r"\.repmlp_block\.fc3\.", ".repmlp_block.local."),)
HEAD = ((r"^head_norm\.", "head.norm."), (r"^head\.(weight|bias)$", r"head.fc.\1"))
MM = (
    (r"^patch_embed\.projection\.", "conv_embedding.conv."),
    (r"^patch_embed\.norm\.", "conv_embedding.bn."),
    (r"^downsample_layers\.", "embeds."),
    (r"\.gp\.conv([12])\.conv\.", r".gp.fc\1."),
    (r"^(stages\.\d+\.\d+)\.norm([12])\.", r"\1.prebn\2."),
    (r"^final_norm\.", "head.norm."),
)
OFFICIAL_GATE, MM_GATE = r"\.repmlp_block\.gp\.fc1\.", r"\.repmlp_block\.gp\.conv1\.conv\."
TRAIN, DEPLOY = r"\.repmlp_block\.fc3_bn\.", r"\.repmlp_block\.fc3\.bias$"
DIALECTS = (
    Dialect("the authors of RepMLPNet", (OFFICIAL_GATE, TRAIN), renames=(*LOCAL, *HEAD)),
    Dialect(
        "the authors of RepMLPNet, deploy form",
        (OFFICIAL_GATE, DEPLOY),
        (*DEPLOY_LOCAL, *HEAD),
        deploy=True,
        written=(
            (r"\.repmlp_block\.local\.", ".repmlp_block.fc3."),
            (r"^head\.norm\.", "head_norm."),
            (r"^head\.fc\.", "head."),
        ),
    ),
    Dialect("mmpretrain's RepMLP", (MM_GATE, TRAIN), renames=(*LOCAL, *MM)),
    Dialect("mmpretrain's RepMLP, deploy form", (MM_GATE, DEPLOY), (*DEPLOY_LOCAL, *MM), deploy=True),
)


class FeedForward(nn.Module):
    """Two 1x1 convolutions with BatchNorm around a GELU, (B, C, H, W) to (B, C, H, W)."""

    def __init__(self, channels: int, expansion: int = 4) -> None:
        super().__init__()
        self.ffn_fc1 = _conv_bn(channels, expansion * channels, 1)
        self.act = nn.GELU()
        self.ffn_fc2 = _conv_bn(expansion * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.ffn_fc2(self.act(self.ffn_fc1(x)))


class RepMLPNetUnit(nn.Module):
    """A RepMLP block and a feed-forward, each behind a BatchNorm and beside the identity: (B, C, H, W) to the same."""

    def __init__(
        self,
        channels: int,
        h: int,
        w: int,
        sharesets: int,
        kernels: Sequence[int] = KERNELS,
        reduction: int = REDUCTION,
    ) -> None:
        super().__init__()
        self.prebn1 = nn.BatchNorm2d(channels)
        self.repmlp_block = RepMLPBlock(channels, h, w, sharesets, kernels, reduction)
        self.prebn2 = nn.BatchNorm2d(channels)
        self.ffn_block = FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.repmlp_block(self.prebn1(x))
        return x + self.ffn_block(self.prebn2(x))


@BACKBONES.register("RepMLPNet")
class RepMLPNet(Backbone):
    """RepMLPNet as a backbone with maps at strides 4, 8, 16 and 32, for pictures of any size from 32 pixels.

    Args:
        arch: one of `archs`.
        in_channels: channels of the input picture.
        out_strides: the strides whose maps are wanted, all by default; stages behind the last one are not built.
        hs: heights of the tiles of the four stages, those of the architecture by default.
        ws: their widths, the heights by default.
        num_blocks: units of the four stages instead of the architecture's.
        channels: their channels.
        sharesets_nums: how many different layers a unit of each has.
        reparam_conv_k: sides of the convolutions beside the layers, [1, 3] as in the published networks.
        globalperceptron_reduce: how many times fewer channels the global perceptrons have inside.
        patch_size: side of what the first convolution reads at once, which is the first of the four strides.
        use_checkpoint: compute the inside of units again in the backward pass rather than keep it.

    Raises:
        UserError: a value that an option does not take.
    """

    archs: ClassVar[tuple[str, ...]] = tuple(ARCHS)
    dialects: ClassVar[tuple[Dialect, ...]] = DIALECTS
    trained_by = ("AdamW", "as RepMLPNet's authors: learning rate 0.001, cosine, weight decay 0.1")

    def __init__(
        self,
        arch: str = "T224",
        in_channels: int = 3,
        out_strides: Sequence[int] | None = None,
        hs: Sequence[int] | None = None,
        ws: Sequence[int] | None = None,
        num_blocks: Sequence[int] | None = None,
        channels: Sequence[int] | None = None,
        sharesets_nums: Sequence[int] | None = None,
        reparam_conv_k: Sequence[int] | None = None,
        globalperceptron_reduce: int = REDUCTION,
        patch_size: int = 4,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        plan = customized(arch, num_blocks, channels, sharesets_nums)
        kernels = options.kernels("RepMLPNet's reparam_conv_k", reparam_conv_k, KERNELS, MAX_KERNEL)
        reduction = options.whole("RepMLPNet's globalperceptron_reduce", globalperceptron_reduce, 1, min(plan.channels))
        self.use_checkpoint = options.flag("RepMLPNet's use_checkpoint", use_checkpoint)
        patch = _patch(patch_size)
        self.all_strides = tuple(patch * 2**stage for stage in range(options.STAGES))
        self.hs = _tiles(hs, plan.tiles, "hs")
        self.ws = _tiles(ws, self.hs, "ws")
        self.in_channels = in_channels
        self.strides = select_strides(out_strides, self.all_strides, f"RepMLPNet {arch}")
        self.channels = tuple(plan.channels[self.all_strides.index(stride)] for stride in self.strides)
        built = self.all_strides.index(self.strides[-1]) + 1
        self.conv_embedding = _conv_bn(in_channels, plan.channels[0], patch)
        self.stages, self.embeds = nn.ModuleList(), nn.ModuleList()
        for stage in range(built):
            width, h, w, sharesets = plan.channels[stage], self.hs[stage], self.ws[stage], plan.sharesets[stage]
            units = (RepMLPNetUnit(width, h, w, sharesets, kernels, reduction) for _ in range(plan.depths[stage]))
            self.stages.append(nn.Sequential(*units))
            if stage + 1 < built:
                self.embeds.append(_conv_bn(width, plan.channels[stage + 1], 2))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.relu(self.conv_embedding(x))
        maps = []
        for i, stage in enumerate(self.stages):
            x = run_blocks(stage, x if i == 0 else F.relu(self.embeds[i - 1](x)), self.use_checkpoint)
            if self.all_strides[i] in self.strides:
                maps.append(x)
        return maps

    def make_head(self, num_classes: int) -> nn.Module:
        """Return the published head: BatchNorm, global average pooling and a linear layer."""
        channels = self.channels[-1]
        pool, fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, num_classes)
        return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(channels), pool=pool, flat=nn.Flatten(), fc=fc))

    def adapt(self, tensors: dict[str, Tensor], dialect: Dialect) -> Adapted:
        """Resample the fully connected layers of a file for other tiles; its convolutions fit tiles of any size.

        Raises:
            WeightsError: the file has deploy form, in which the layers hold the convolutions, which do not stretch.
        """
        own, fitted, sizes = self.state_dict(), {}, []
        for name, tensor in tensors.items():
            stage = name.split(".")[1] if name.startswith("stages.") else ""
            if not stage.isdecimal() or int(stage) >= len(self.stages) or not _is_fc(name, dialect.deploy):
                continue
            came, tile = math.isqrt(tensor.shape[1]), (self.hs[int(stage)], self.ws[int(stage)])
            if tensor.shape[1] == tile[0] * tile[1] or came * came != tensor.shape[1]:
                continue
            if dialect.deploy:
                raise WeightsError(
                    f"the weights have deploy form for tiles of {came}x{came} in stage {stage}, this network has "
                    f"{tile[0]}x{tile[1]}: only the training form can be resampled"
                )
            fitted[name] = resample_fc(tensor, (came, came), tile).to(own[name])
            sizes.append(f"{came}x{came} to {tile[0]}x{tile[1]}")
        if not fitted:
            return Adapted(tensors)
        changes = ", ".join(dict.fromkeys(sizes))
        note = f"{len(fitted)} fully connected layers resampled for other tiles ({changes}): train them on"
        return Adapted({**tensors, **fitted}, notes=(note,))


def customized(arch: str, num_blocks: Any, channels: Any, sharesets_nums: Any) -> Arch:
    """Return an architecture with other depths, widths and sharesets, where they are given.

    Raises:
        UserError: not four numbers each, or sharesets that do not divide the channels.
    """
    plan = ARCHS[arch]
    plan = Arch(
        options.wholes("RepMLPNet's channels", channels, plan.channels, options.MAX_CHANNELS),
        options.wholes("RepMLPNet's num_blocks", num_blocks, plan.depths, options.MAX_BLOCKS),
        options.wholes("RepMLPNet's sharesets_nums", sharesets_nums, plan.sharesets, options.MAX_CHANNELS),
        plan.tiles,
    )
    for width, sharesets in zip(plan.channels, plan.sharesets, strict=True):
        if width % sharesets:
            raise UserError(
                f"RepMLPNet's sharesets_nums {list(plan.sharesets)} must divide its channels {list(plan.channels)}, "
                f"but {sharesets} does not divide {width}"
            )
    return plan


def _patch(value: Any) -> int:
    """Return the side of a patch, which the published networks give as [4, 4]; UserError unless it is a stride."""
    side = value[0] if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1] else value
    if type(side) is not int or side not in PATCHES:
        raise UserError(f"RepMLPNet's patch_size is one of {', '.join(map(str, PATCHES))}, got {options.listed(value)}")
    return side


def resample_fc(weight: Tensor, came: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Return the weights of a fully connected layer between tiles of another size.

    They are a function of two pixels, (S, h, w, h, w), which is interpolated in both. Sums over a tile keep their size.

    Args:
        weight: (S * h * w, h * w, 1, 1).
        came: height and width of the tiles that they are for.
        wanted: those of the tiles that are wanted.
    """
    shares = len(weight) // (came[0] * came[1])
    x = _interpolated(weight.double().view(shares, -1, *came), wanted)  # (S, from, h, w): the pixel that is read
    x = x.flatten(2).transpose(1, 2)  # (S, read, written)
    x = _interpolated(x.reshape(shares, -1, *came), wanted).flatten(2).transpose(1, 2)
    scale = came[0] * came[1] / (wanted[0] * wanted[1])
    return (x * scale).reshape(-1, wanted[0] * wanted[1], 1, 1).to(weight.dtype)


def _interpolated(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)


def _is_fc(name: str, deploy: bool) -> bool:
    return name.endswith(".repmlp_block.local.weight" if deploy else ".repmlp_block.local.fc3.weight")


def _tiles(values: Any, default: Sequence[int], what: str) -> tuple[int, ...]:
    """Return the heights or widths of the tiles of the four stages.

    Raises:
        UserError: not four whole numbers from 1.
    """
    each = "the sides of the tiles of its stages in pixels of their maps"
    return options.wholes(f"RepMLPNet's {what}", values, default, MAX_TILE, each)


def _conv_bn(c1: int, c2: int, patch: int) -> ConvNorm:
    """Return a convolution of patches that do not overlap, and its BatchNorm."""
    return ConvNorm(nn.Conv2d(c1, c2, patch, patch, bias=False), nn.BatchNorm2d(c2))
