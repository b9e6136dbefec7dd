"""RepVGG: 3x3 convolutions and ReLU in deployment, parallel branches in training (https://arxiv.org/abs/2101.03697).

stage0 is one block of stride 2, stages 1 to 4 are chains of blocks whose first has stride 2, so that maps have strides
2, 4, 8, 16 and 32. Names follow the published checkpoints, with one part more: what fuses is the `conv` of a block
(`stage1.0.conv.rbr_dense.conv.weight`), which deployment replaces (`stage1.0.conv.weight`).

Style `qarep` is that of QARepVGG (https://arxiv.org/abs/2212.01593): the same network in deployment, friendly to INT8.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from models.backbones import options
from models.backbones.base import BACKBONES, Backbone, select_strides
from models.backbones.weights import Adapted, Dialect
from models.blocks.recompute import run_blocks
from models.blocks.repconv import RepConv, RepVGGBlock
from models.errors import UserError, WeightsError

STRIDES = (2, 4, 8, 16, 32)
BASE_WIDTHS = (64, 128, 256, 512)  # of stages 1 to 4 at a multiplier of 1
EACH = "one for each stage behind the stem"  # what num_blocks and width_multiplier are
MAX_GROUPS = 8192  # of a block


class Arch(NamedTuple):
    """Blocks and width multipliers of stages 1 to 4, groups of every second block, and whether blocks have SE.

    With `groups_map` it is the groups of some blocks by their number, counted from 1 behind the stem.
    """

    num_blocks: tuple[int, ...]
    width_multiplier: tuple[float, ...]
    groups: int = 1
    squeeze: bool = False
    groups_map: Mapping[int, int] | None = None

    def groups_of(self, block: int) -> int:
        """Return the groups of a block, counted from 1 behind the stem."""
        if self.groups_map is not None:
            return self.groups_map.get(block, 1)
        return 1 if block % 2 else self.groups

    def stage_of(self, block: int) -> int:
        """Return the stage, from 1, of a block, counted from 1 behind the stem."""
        return next(stage for stage in range(1, 5) if block <= sum(self.num_blocks[:stage]))

    @property
    def widths(self) -> tuple[int, ...]:
        """The channels of stages 0 to 4."""
        widths = [int(base * factor) for base, factor in zip(BASE_WIDTHS, self.width_multiplier, strict=True)]
        return min(BASE_WIDTHS[0], widths[0]), *widths


A_BLOCKS, B_BLOCKS, D_BLOCKS = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)
B1_WIDTHS, B2_WIDTHS, B3_WIDTHS = (2, 2, 2, 4), (2.5, 2.5, 2.5, 5), (3, 3, 3, 5)
ARCHS = {
    "A0": Arch(A_BLOCKS, (0.75, 0.75, 0.75, 2.5)),
    "A1": Arch(A_BLOCKS, (1, 1, 1, 2.5)),
    "A2": Arch(A_BLOCKS, (1.5, 1.5, 1.5, 2.75)),
    "B0": Arch(B_BLOCKS, (1, 1, 1, 2.5)),
    "B1": Arch(B_BLOCKS, B1_WIDTHS),
    "B1g2": Arch(B_BLOCKS, B1_WIDTHS, groups=2),
    "B1g4": Arch(B_BLOCKS, B1_WIDTHS, groups=4),
    "B2": Arch(B_BLOCKS, B2_WIDTHS),
    "B2g2": Arch(B_BLOCKS, B2_WIDTHS, groups=2),
    "B2g4": Arch(B_BLOCKS, B2_WIDTHS, groups=4),
    "B3": Arch(B_BLOCKS, B3_WIDTHS),
    "B3g2": Arch(B_BLOCKS, B3_WIDTHS, groups=2),
    "B3g4": Arch(B_BLOCKS, B3_WIDTHS, groups=4),
    "D2se": Arch(D_BLOCKS, B2_WIDTHS, squeeze=True),
}

BLOCK = r"^(stage\d(?:\.\d+)?)\."
TIMM_STAGES = ((r"^stem\.", "stage0."), (r"^stages[._](\d)\.", lambda m: f"stage{int(m[1]) + 1}."))
TIMM_SE = ((r"\.attn\.fc1\.", ".se.down."), (r"\.attn\.fc2\.", ".se.up."))
MM_STAGES = ((r"^stem\.", "stage0."), (r"^stage_(\d)\.", r"stage\1."))
MM_SE = ((r"\.se_layer\.conv1\.conv\.", ".se.down."), (r"\.se_layer\.conv2\.conv\.", ".se.up."))
DIALECTS = (
    Dialect(
        "the authors of RepVGG",
        BLOCK + r"rbr_dense\.",
        renames=((BLOCK + r"(rbr_\w+)\.", r"\1.conv.\2."), (r"^linear\.", "head.fc.")),
    ),
    Dialect(
        "the authors of RepVGG, deploy form",
        BLOCK + r"rbr_reparam\.",
        renames=((BLOCK + r"rbr_reparam\.", r"\1.conv."), (r"^linear\.", "head.fc.")),
        deploy=True,
        written=((BLOCK + r"conv\.", r"\1.rbr_reparam."), (r"^head\.fc\.", "linear.")),
    ),
    Dialect(
        "timm's RepVGG",
        r"^stem\.conv_kxk\.conv\.",
        renames=(
            *TIMM_STAGES,
            *TIMM_SE,
            (r"\.conv_kxk\.", ".conv.rbr_dense."),
            (r"\.conv_1x1\.", ".conv.rbr_1x1."),
            (r"\.identity\.", ".conv.rbr_identity."),
        ),
    ),
    Dialect(
        "timm's RepVGG, deploy form",
        r"^stem\.reparam_conv\.",
        renames=(*TIMM_STAGES, *TIMM_SE, (r"\.reparam_conv\.", ".conv.")),
        deploy=True,
    ),
    Dialect(
        "mmpretrain's RepVGG",
        r"^stem\.branch_3x3\.conv\.",
        renames=(
            *MM_STAGES,
            *MM_SE,
            (r"\.branch_3x3\.norm\.", ".branch_3x3.bn."),
            (r"\.branch_1x1\.norm\.", ".branch_1x1.bn."),
            (r"\.branch_3x3\.", ".conv.rbr_dense."),
            (r"\.branch_1x1\.", ".conv.rbr_1x1."),
            (r"\.branch_norm\.", ".conv.rbr_identity."),
        ),
    ),
    Dialect(
        "mmpretrain's RepVGG, deploy form",
        r"^stem\.branch_reparam\.",
        renames=(*MM_STAGES, *MM_SE, (r"\.branch_reparam\.", ".conv.")),
        deploy=True,
    ),
)


@BACKBONES.register("RepVGG")
class RepVGG(Backbone):
    """RepVGG as a backbone with maps at strides 2, 4, 8, 16 and 32.

    Args:
        arch: one of `archs`; it says groups and squeeze-excite also where widths and depths are one's own.
        in_channels: channels of the input picture.
        out_strides: the strides whose maps are wanted, all by default; stages behind the last one are not built.
        style: `repvgg`, or `qarep` for training that INT8 quantization does not spoil.
        num_blocks: blocks of stages 1 to 4 instead of the architecture's.
        width_multiplier: their channels as multiples of 64, 128, 256 and 512 instead of the architecture's, whose last
            stage is wider than detection needs.
        use_se: whether blocks have squeeze-excite; the architecture says so by default.
        override_groups_map: groups of blocks by their number, counted from 1 behind the stem, instead of the
            architecture's; other blocks have one.
        use_checkpoint: compute the inside of blocks again in the backward pass rather than keep it.

    Raises:
        UserError: a value that an option does not take.
    """

    archs: ClassVar[tuple[str, ...]] = tuple(ARCHS)
    dialects: ClassVar[tuple[Dialect, ...]] = DIALECTS

    def __init__(
        self,
        arch: str = "A0",
        in_channels: int = 3,
        out_strides: Sequence[int] | None = None,
        style: str = "repvgg",
        num_blocks: Sequence[int] | None = None,
        width_multiplier: Sequence[float] | None = None,
        use_se: bool | None = None,
        override_groups_map: Mapping[int | str, int] | None = None,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.arch, self.style = arch, style
        self.plan = customized(arch, num_blocks, width_multiplier, use_se, override_groups_map)
        self.use_checkpoint = options.flag("RepVGG's use_checkpoint", use_checkpoint)
        self.in_channels = in_channels
        self.strides = select_strides(out_strides, STRIDES, f"RepVGG {arch}")
        self.channels = tuple(self.plan.widths[STRIDES.index(stride)] for stride in self.strides)
        self.stage0 = self._block(in_channels, self.plan.widths[0], s=2)
        self.built = STRIDES[: STRIDES.index(self.strides[-1]) + 1]
        for stage in range(1, len(self.built)):
            self.add_module(f"stage{stage}", self._stage(stage))

    def _stage(self, stage: int) -> nn.Sequential:
        """Return the blocks of a stage from 1."""
        c1, c2 = self.plan.widths[stage - 1 : stage + 1]
        first = 1 + sum(self.plan.num_blocks[: stage - 1])
        number = range(first, first + self.plan.num_blocks[stage - 1])
        groups = [self.plan.groups_of(i) for i in number]
        return nn.Sequential(self._block(c1, c2, s=2, g=groups[0]), *(self._block(c2, c2, g=g) for g in groups[1:]))

    def _block(self, c1: int, c2: int, s: int = 1, g: int = 1) -> RepVGGBlock:
        conv = RepConv(c1, c2, s=s, g=g, identity=c1 == c2 and s == 1, style=self.style)
        return RepVGGBlock(conv, nn.ReLU(), self.plan.squeeze)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for i, stride in enumerate(self.built):
            x = run_blocks(self.get_submodule(f"stage{i}"), x, self.use_checkpoint)
            if stride in self.strides:
                maps.append(x)
        return maps

    def adapt(self, tensors: dict[str, Tensor], dialect: Dialect) -> Adapted:  # noqa: ARG002
        """Leave the tensors as they are, but refuse those of a look-alike: all names of A1 are in a file of B0 too.

        Raises:
            WeightsError: they are of other depths than the architecture's, of other groups or of the other style.
        """
        misfit = self._other_depth(tensors) or self._other_groups(tensors) or self._other_style(tensors)
        if misfit:
            raise WeightsError(f"the weights are not of this RepVGG {self.arch}: {misfit}")
        return Adapted(tensors)

    def _other_depth(self, tensors: dict[str, Tensor]) -> str | None:
        """Return what is wrong with the number of blocks, unless that of the network is one's own choice."""
        for stage, depth in enumerate(self.plan.num_blocks[: len(self.built) - 1], start=1):
            came = len({name.split(".")[1] for name in tensors if name.startswith(f"stage{stage}.")})
            if came not in (0, depth) and self.plan.num_blocks == ARCHS[self.arch].num_blocks:
                return f"stage {stage} has {depth} blocks, theirs {came} (num_blocks would take a part of them)"
        return None

    def _other_groups(self, tensors: dict[str, Tensor]) -> str | None:
        """Return what is wrong with the groups of a block, which only one number in the shape of its kernels shows."""
        for name, block in self.named_modules():
            if isinstance(block, RepConv):
                own = block.rbr_dense.conv
                kernel = tensors.get(f"{name}.rbr_dense.conv.weight", tensors.get(f"{name}.weight", own.weight))
                came, has = tuple(kernel.shape), tuple(own.weight.shape)
                if block.rbr_identity is not None and came[:1] == has[:1] and came != has:
                    return f"the kernels of {name} are {has}, theirs {came}, of other groups"
        return None

    def _other_style(self, tensors: dict[str, Tensor]) -> str | None:
        """Return what is wrong with the branches; deploy form has none, and fits both styles."""
        came = "repvgg" if "stage0.conv.rbr_1x1.bn.weight" in tensors else "qarep"
        if "stage0.conv.rbr_dense.conv.weight" not in tensors or came == self.style:
            return None
        return f"its style is {self.style}, theirs {came} (a file in deploy form fits both)"

    def make_head(self, num_classes: int) -> nn.Module:
        """Return the published head: global average pooling and a linear layer."""
        return nn.Sequential(
            OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(self.channels[-1], num_classes))
        )


def customized(arch: str, num_blocks: Any, width_multiplier: Any, use_se: Any, groups_map: Any) -> Arch:
    """Return an architecture with other depths, widths, squeeze-excite and groups, where they are given.

    Raises:
        UserError: not four numbers each, not true or false, or groups of no block or that do not divide its widths.
    """
    plan = ARCHS[arch]
    plan = Arch(
        options.wholes("RepVGG's num_blocks", num_blocks, plan.num_blocks, options.MAX_BLOCKS, EACH),
        options.factors("RepVGG's width_multiplier", width_multiplier, plan.width_multiplier, EACH),
        plan.groups,
        plan.squeeze if use_se is None else options.flag("RepVGG's use_se", use_se),
        None if groups_map is None else _groups_map(groups_map),
    )
    _check_widths(arch, plan)
    return plan


def _groups_map(value: Any) -> dict[int, int]:
    """Return the groups of blocks by their number, which a YAML holds as text."""
    if not isinstance(value, Mapping):
        raise UserError(
            f"RepVGG's override_groups_map names blocks and their groups, such as {{2: 4, 4: 4}}, got {value!r:.80}"
        )
    found = {}
    for block, groups in value.items():
        if not str(block).isdecimal() or len(str(block)) > 3:
            raise UserError(f"RepVGG's override_groups_map names blocks by their number from 1, got {block!r:.80}")
        found[int(block)] = options.whole(f"RepVGG's override_groups_map of block {block}", groups, 1, MAX_GROUPS)
    return found


def _check_widths(arch: str, plan: Arch) -> None:
    """Raise UserError unless every stage has channels, and every block as many as its groups divide."""
    for stage, width in enumerate(plan.widths[1:], start=1):
        groups = plan.groups if plan.groups_map is None else 1
        if width < 1 or width % groups:
            raise UserError(
                f"RepVGG {arch} needs a multiple of {groups} channels in each stage, but the width_multiplier "
                f"{plan.width_multiplier[stage - 1]:g} gives stage {stage} {width} of them"
            )
    for block, groups in (plan.groups_map or {}).items():
        if not 1 <= block <= sum(plan.num_blocks):
            raise UserError(
                f"RepVGG's override_groups_map names block {block}, but there are 1 to {sum(plan.num_blocks)}"
            )
        stage = plan.stage_of(block)
        first = block == 1 + sum(plan.num_blocks[: stage - 1])
        for width in plan.widths[stage - 1 if first else stage : stage + 1]:
            if width % groups:
                raise UserError(
                    f"RepVGG's override_groups_map gives block {block} {groups} groups, which do not divide its "
                    f"{width} channels"
                )
