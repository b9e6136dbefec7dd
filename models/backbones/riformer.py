"""RIFormer: a vision transformer without a token mixer (https://arxiv.org/abs/2304.05659).

patch_embed 7x7/4, then four stages of blocks with 3x3/2 convolutions between them; a GroupNorm on every map that is
given out. Names follow the published checkpoints: `network.{0,2,4,6}` are the stages, `network.{1,3,5}` the
convolutions between, `norm{0,2,4,6}` the output norms (of which the ImageNet files hold only `norm6`).

Its statistics are taken over a whole picture, so features depend on the padding around it: train and predict with
pictures of one shape where you can.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from models.backbones import options
from models.backbones.base import BACKBONES, Backbone, select_strides
from models.backbones.weights import Adapted, Dialect
from models.blocks.riformer import RIFormerBlock
from models.errors import UserError

STRIDES = (4, 8, 16, 32)


class Arch(NamedTuple):
    """Blocks and channels of the four stages, where the layer scales start, and how much wider perceptrons are."""

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    layer_scale_init: float
    mlp_ratios: tuple[float, ...] = (4.0, 4.0, 4.0, 4.0)


SMALL, MEDIUM = (64, 128, 320, 512), (96, 192, 384, 768)
ARCHS = {
    "s12": Arch((2, 2, 6, 2), SMALL, 1e-5),
    "s24": Arch((4, 4, 12, 4), SMALL, 1e-5),
    "s36": Arch((6, 6, 18, 6), SMALL, 1e-6),
    "m36": Arch((6, 6, 18, 6), MEDIUM, 1e-6),
    "m48": Arch((8, 8, 24, 8), MEDIUM, 1e-6),
}

UNPUBLISHED_NORMS = r"norm[024]\."
OFFICIAL = Dialect("mmpretrain", r"\.token_mixer\.affine\.", absent=UNPUBLISHED_NORMS)
DEPLOY = Dialect(
    "mmpretrain, deploy form",
    r"\.norm_reparam\.",
    renames=((r"\.norm_reparam\.", ".norm1."),),
    deploy=True,
    absent=UNPUBLISHED_NORMS,
    written=((r"^(?!head\.)", "backbone."),),
)
POOLFORMER = Dialect(
    "timm's PoolFormer",
    r"^stages[._]\d+\.blocks\.\d+\.layer_scale1\.scale$",
    renames=(
        (r"^stem\.conv\.", "patch_embed.proj."),
        (r"^stages[._](\d+)\.blocks\.(\d+)\.", lambda m: f"network.{2 * int(m[1])}.{m[2]}."),
        (r"^stages[._](\d+)\.downsample\.conv\.", lambda m: f"network.{2 * int(m[1]) - 1}.proj."),
        (r"\.layer_scale([12])\.scale$", r".layer_scale_\1"),
        (r"^head\.norm\.", "norm6."),
    ),
    absent=UNPUBLISHED_NORMS,
)


class PatchEmbed(nn.Module):
    """A convolution that shortens both sides by its stride, (B, C, H, W) to (B, dim, H / stride, W / stride)."""

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


@BACKBONES.register("RIFormer")
class RIFormer(Backbone):
    """RIFormer as a backbone with maps at strides 4, 8, 16 and 32.

    Args:
        arch: one of `archs`.
        in_channels: channels of the input picture.
        out_strides: the strides whose maps are wanted, all by default; stages behind the last one are not built.
        drop_path: stochastic depth rate of the last block; it rises linearly from 0.
        frozen_stages: how many stages, from the first, are not trained; the stem goes with the first. -1 or 0: none.
        layers: blocks of the four stages instead of the architecture's.
        embed_dims: their channels.
        mlp_ratios: channels inside of their perceptrons, as multiples of these.
        layer_scale_init_value: where the layer scales start.
        drop_rate: dropout rate of the perceptrons.
        drop_path_rate: another name of drop_path.

    Raises:
        UserError: a value that an option does not take.
    """

    archs: ClassVar[tuple[str, ...]] = tuple(ARCHS)
    dialects: ClassVar[tuple[Dialect, ...]] = (OFFICIAL, DEPLOY, POOLFORMER)
    trained_by = ("AdamW", "as in RIFormer's paper: learning rate 0.001 for 1024 pictures, cosine, weight decay 0.05")

    def __init__(
        self,
        arch: str = "s12",
        in_channels: int = 3,
        out_strides: Sequence[int] | None = None,
        drop_path: float = 0.0,
        frozen_stages: int = 0,
        layers: Sequence[int] | None = None,
        embed_dims: Sequence[int] | None = None,
        mlp_ratios: Sequence[float] | None = None,
        layer_scale_init_value: float | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
    ) -> None:
        super().__init__()
        plan = customized(arch, layers, embed_dims, mlp_ratios, layer_scale_init_value)
        depths, dims = plan.depths, plan.dims
        drop_path = _drop_path(drop_path, drop_path_rate)
        options.rate("RIFormer's drop_rate", drop_rate)
        options.whole("RIFormer's frozen_stages", frozen_stages, -1, len(STRIDES))
        self.in_channels = in_channels
        self.strides = select_strides(out_strides, STRIDES, f"RIFormer {arch}")
        self.channels = tuple(dims[STRIDES.index(stride)] for stride in self.strides)
        self.taps = tuple(2 * STRIDES.index(stride) for stride in self.strides)  # indices into network

        blocks_before = [sum(depths[:stage]) for stage in range(len(depths))]
        rate_step = drop_path / (sum(depths) - 1)
        self.patch_embed = PatchEmbed(in_channels, dims[0], kernel=7, stride=4, padding=2)
        self.network = nn.ModuleList()
        for stage, (dim, depth, first) in enumerate(zip(dims, depths, blocks_before, strict=True)):
            if stage > 0:
                self.network.append(PatchEmbed(dims[stage - 1], dim, kernel=3, stride=2, padding=1))
            rates = (rate_step * block for block in range(first, first + depth))
            ratio, scale = plan.mlp_ratios[stage], plan.layer_scale_init
            self.network.append(nn.Sequential(*(RIFormerBlock(dim, ratio, scale, rate, drop_rate) for rate in rates)))
        del self.network[self.taps[-1] + 1 :]
        for tap, dim in zip(self.taps, self.channels, strict=True):
            self.add_module(f"norm{tap}", nn.GroupNorm(1, dim))
        frozen = [f"network.{i}" for i in range(min(2 * frozen_stages - 1, len(self.network)))]
        self.frozen = ("patch_embed", *frozen) if frozen_stages > 0 else ()
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.patch_embed(x)
        maps = []
        for i, stage in enumerate(self.network):
            x = stage(x)
            if i in self.taps:
                maps.append(self.get_submodule(f"norm{i}")(x))
        return maps

    def adapt(self, tensors: dict[str, Tensor], dialect: Dialect) -> Adapted:
        """Give files that hold no affine token mixer the one that changes nothing of what they compute.

        The deploy form has it folded into norm1, so that it passes on norm1's output here; PoolFormer has pooling in
        its place, so that it starts with no output at all. The paper: "load the teacher's weights except the mixer".
        """
        if dialect not in (DEPLOY, POOLFORMER):
            return Adapted(tensors)
        factor, note = (2.0, "") if dialect is DEPLOY else (1.0, "the affine token mixers start with no effect")
        affine = {k: v for k, v in self.state_dict().items() if ".token_mixer.affine." in k}
        made = {k: torch.full_like(v, factor if k.endswith("weight") else 0.0) for k, v in affine.items()}
        return Adapted({**tensors, **made}, tuple(made), (note,) if note else ())

    def adapt_back(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return fused blocks as published ones, in which the second norm and the scales change nothing."""
        found = {}
        for name, tensor in tensors.items():
            block, inner = re.match(r"(network\.\d+\.\d+\.)?(.*)", name).groups()  # type: ignore[union-attr]
            if block is None:
                found[name] = tensor
            elif inner in ("weight", "bias"):  # of the one norm that is left
                found[f"{block}norm_reparam.{inner}"] = tensor
                found[f"{block}norm2.{inner}"] = torch.full_like(tensor, float(inner == "weight"))
            else:
                found[f"{block}mlp.{inner}"] = tensor
            if block and inner == "weight":
                found |= {f"{block}layer_scale_{i}": torch.ones_like(tensor) for i in (1, 2)}
        return found

    def make_head(self, num_classes: int) -> nn.Module:
        """Return the published head: global average pooling and a linear layer."""
        return nn.Sequential(
            OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(self.channels[-1], num_classes))
        )


def customized(arch: str, layers: Any, embed_dims: Any, mlp_ratios: Any, layer_scale_init: Any) -> Arch:
    """Return an architecture with other depths, widths and layer scales, where they are given.

    Raises:
        UserError: not four numbers each, a perceptron without channels, or no scale above 0.
    """
    plan = ARCHS[arch]
    plan = Arch(
        options.wholes("RIFormer's layers", layers, plan.depths, options.MAX_BLOCKS),
        options.wholes("RIFormer's embed_dims", embed_dims, plan.dims, options.MAX_CHANNELS),
        plan.layer_scale_init if layer_scale_init is None else layer_scale_init,
        options.factors("RIFormer's mlp_ratios", mlp_ratios, plan.mlp_ratios),
    )
    scale = plan.layer_scale_init
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale <= 1:
        raise UserError(f"RIFormer's layer_scale_init_value must be a number above 0 to 1, got {scale!r:.80}")
    for dim, ratio in zip(plan.dims, plan.mlp_ratios, strict=True):
        if int(dim * ratio) < 1:
            raise UserError(f"RIFormer's mlp_ratios give {ratio:g} times {dim} channels, which is less than one")
    return plan


def _drop_path(drop_path: Any, drop_path_rate: Any) -> float:
    """Return the stochastic depth rate by either of its names; UserError for both, or for anything else than a rate."""
    if drop_path_rate is None:
        return options.rate("RIFormer's drop_path", drop_path)
    if drop_path:
        raise UserError("RIFormer's drop_path and drop_path_rate are one option, give one of them")
    return options.rate("RIFormer's drop_path_rate", drop_path_rate)


def _init_weights(module: nn.Module) -> None:
    """Convolutions from a truncated normal of 0.02, biases 0, as the paper's configuration has it."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
