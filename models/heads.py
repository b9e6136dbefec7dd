"""Heads: what stands in the last row of a YAML and turns feature maps into boxes, class scores, masks or classes.

Every head that finds objects is an ultralytics `Detect` to whoever runs it. In eval mode it returns predictions
(B, 4 + nc, N), boxes xywh in input pixels and scores in [0, 1], with what its loss reads; a head that segments adds nm
mask coefficients to each box and prototypes (B, nm, H / 4, W / 4); one without NMS returns (B, 300, 6),
x1 y1 x2 y2 score class.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Classify, Conv, Detect, Segment, Segment26
from ultralytics.utils import LOGGER

from models.blocks.reparam import register_fuser
from models.errors import ConfigError

OBJECTS = 8.0  # that a head with anchors expects in a picture of 640 x 640 before it has seen one
BRANCHES = ("cv2", "cv3", "cv4")  # of ultralytics' heads: boxes, class scores, mask coefficients
COARSEST = 32  # stride of the networks that classify
MAX_ANCHORS = 100  # a level
MAX_ANCHOR = 100_000.0  # pixels
Anchors = tuple[tuple[tuple[float, float], ...], ...]  # of each level, width and height in input pixels


class AnchorDetect(Detect):
    """YOLOv5's head: a 1x1 convolution gives for each cell and anchor a box, its objectness and class scores.

    With t the raw numbers of an anchor (w, h) in the cell (i, j): x = (2 sigmoid(t_x) - 0.5 + j) stride and y alike,
    width = (2 sigmoid(t_w))^2 w and the height alike, score = sigmoid(t_objectness) sigmoid(t_class).
    (https://github.com/ultralytics/yolov5)

    In training `forward` returns {"maps": one (B, na, H, W, 5 + nc + nm) per level}, in eval mode (predictions, that).

    Args:
        nc: number of classes.
        anchors: of each level, width and height in input pixels.
        channels: of the feature maps.
        strides: of the feature maps, ascending.
        nm: mask coefficients of each box.

    Attributes:
        anchor_sizes: the anchors, (nl, na, 2), in input pixels; a checkpoint holds them.
        m: the convolution of each level, by YOLOv5's name.
    """

    anchor_sizes: Tensor

    def __init__(
        self, nc: int, anchors: Anchors, channels: Sequence[int], strides: Sequence[float], nm: int = 0
    ) -> None:
        nn.Module.__init__(self)  # ultralytics' own constructor would build the anchor-free head
        self.nc = nc
        self.nl, self.na = len(anchors), len(anchors[0])
        self.nm = nm
        self.no = 5 + nc + nm  # outputs of an anchor
        self.cells = tuple(strides)  # in pixels, as plain numbers, which shapes alone can be computed with
        self.stride = torch.tensor(strides, dtype=torch.float32, device="cpu")
        self.register_buffer("anchor_sizes", torch.tensor(anchors, dtype=torch.float32))
        self.m = nn.ModuleList(nn.Conv2d(c, self.na * self.no, 1) for c in channels)

    def bias_init(self) -> None:
        """Let objectness and classes start with the frequency of objects that is to be expected."""
        with torch.no_grad():
            for conv, stride in zip(self.m, self.cells, strict=True):
                bias = cast(Tensor, conv.bias).view(self.na, self.no)
                bias[:, 4] += math.log(OBJECTS / (640 / stride) ** 2)
                bias[:, 5 : 5 + self.nc] += math.log(0.6 / (self.nc - 0.99999))

    def forward(self, x: list[Tensor]) -> Any:
        maps = [conv(level) for conv, level in zip(self.m, x, strict=True)]
        if self.training:
            return self._raw(maps)
        boxes = torch.cat([self._decode(i, level) for i, level in enumerate(maps)], 2)
        return boxes if self.export else (boxes, self._raw(maps))

    def _raw(self, maps: list[Tensor]) -> dict[str, Any]:
        return {"maps": [level.unflatten(1, (self.na, self.no)).permute(0, 1, 3, 4, 2) for level in maps]}

    def _decode(self, i: int, level: Tensor) -> Tensor:
        """Return the predictions (B, 4 + nc + nm, na H W) of level i's raw numbers (B, na no, H, W).

        It keeps to four dimensions and to operations that every format knows.
        """
        height, width = level.shape[2], level.shape[3]
        if self.export and not self.dynamic:
            height, width = int(height), int(width)  # numbers in the file, whether its batch is free or not
        rows, columns = (self._count(side, level) for side in (height, width))
        grid = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)]).flatten(1)
        t = level.reshape(-1, self.na, self.no, height * width)
        xy, wh, objectness, classes = t[:, :, : 5 + self.nc].sigmoid().split((2, 2, 1, self.nc), 2)
        xy = (xy * 2 - 0.5 + grid) * self.cells[i]
        wh = (wh * 2) ** 2 * self.anchor_sizes[i][:, :, None]
        parts = [xy, wh, objectness * classes, *([t[:, :, 5 + self.nc :]] if self.nm else [])]
        return torch.cat(parts, 2).transpose(1, 2).flatten(2)

    def _count(self, side: int, level: Tensor) -> Tensor:
        """Return 0, 1, … side - 1 in the type and on the device of `level`, in a traced graph too.

        `to` puts the device of the tracing into the graph; `type_as` does not, but NCNN lacks it and has no devices.
        """
        numbers = torch.arange(side)
        return numbers.to(level) if self.export and self.format == "ncnn" else numbers.type_as(level)


class Proto(nn.Module):
    """YOLOv5's mask prototypes: (B, c1, H, W) to (B, nm, 2 H, 2 W); ultralytics' upsamples by a convolution."""

    def __init__(self, c1: int, hidden: int, nm: int) -> None:
        super().__init__()
        self.cv1 = Conv(c1, hidden, 3)
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.cv2 = Conv(hidden, hidden, 3)
        self.cv3 = Conv(hidden, nm)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(self.cv2(self.upsample(self.cv1(x))))


class AnchorSegment(AnchorDetect):
    """YOLOv5's head for segmentation: each box has nm coefficients, by which prototypes add up to its mask.

    In training `forward` returns `AnchorDetect`'s dictionary with "proto", in eval mode ((predictions, proto), that).
    """

    def __init__(
        self, nc: int, anchors: Anchors, channels: Sequence[int], strides: Sequence[float], nm: int = 32, npr: int = 256
    ) -> None:
        super().__init__(nc, anchors, channels, strides, nm)
        self.proto = Proto(channels[0], npr, nm)

    def forward(self, x: list[Tensor]) -> Any:
        proto, output = self.proto(x[0]), super().forward(x)
        if self.training:
            return {**output, "proto": proto}
        return (output, proto) if self.export else ((output[0], proto), {**output[1], "proto": proto})


class Masks(NamedTuple):
    """How a head without anchors makes masks.

    Attributes:
        nm: prototypes, and coefficients of each box.
        npr: channels of the layers that make the prototypes.
        all_levels: they read all maps, not the finest alone, and learn beside a branch for the class of every pixel.
    """

    nm: int
    npr: int
    all_levels: bool = False


class Branches(NamedTuple):
    """How a head without anchors goes from each map to boxes and to class scores.

    Attributes:
        reg_max: bins of the distribution over each side of a box; 1: the side itself.
        legacy: plain convolutions lead to the class scores, as before YOLO11.
        convs: 3x3 convolutions of each branch before its last 1x1, at most 2, as in ultralytics' heads.
    """

    reg_max: int = 16
    legacy: bool = False
    convs: int = 2


def build_anchor_free(
    nc: int,
    channels: Sequence[int],
    strides: Sequence[float],
    masks: Masks | None,
    end2end: bool,
    branches: Branches = Branches(),  # noqa: B008 (immutable)
) -> Detect:
    """Return ultralytics' head: `Detect`, or with `masks` `Segment`; with `end2end` one that needs no NMS.

    Args:
        nc: number of classes.
        channels: of the feature maps.
        strides: of the feature maps, ascending.
        masks: how it makes masks.
        end2end: whether one branch gives each object once.
        branches: what leads to boxes and class scores.
    """
    options: dict[str, Any] = {"nc": nc, "reg_max": branches.reg_max, "end2end": end2end, "ch": tuple(channels)}
    kind: Any = Detect
    if masks is not None:
        kind = Segment26 if masks.all_levels else Segment
        options.update(nm=masks.nm, npr=masks.npr)
    head = kind.__new__(kind)
    head.legacy = branches.legacy  # of this head: the class's is that of the model which ultralytics built last
    kind.__init__(head, **options)
    head.stride = torch.tensor(strides, dtype=torch.float32, device="cpu")  # has values on a meta device too
    shorten(head, channels, branches.convs)
    if end2end:
        head.end2end = True  # and not the branch that NMS is for, which trains beside it
    return head


def shorten(head: Detect, channels: Sequence[int], convs: int) -> None:
    """Leave so many of the convolutions before the last one in every branch of a head, in place."""
    for name, branch in head.named_children():
        if name.removeprefix("one2one_") not in BRANCHES:
            continue
        for i, (level, c1) in enumerate(zip(branch, channels, strict=True)):
            *first, last = level
            if convs == 0:
                last = nn.Conv2d(c1, last.out_channels, 1)
            branch[i] = nn.Sequential(*first[:convs], last)


def build_classify(
    nc: int,
    channels: int,
    stride: float,
    k: int = 1,
    s: int = 1,
    p: int | None = None,
    g: int = 1,
    dropout: float = 0.0,
) -> Classify:
    """Return ultralytics' head for classes: a convolution to 1280 channels, global average pooling, a linear layer.

    It maps (B, channels, H, W) in training to logits (B, nc), in eval mode to (probabilities (B, nc), logits).

    Args:
        nc: number of classes.
        channels: of the feature map.
        stride: of the feature map.
        k: side of the convolution's kernel; s, p and g are its stride, padding and groups.
        dropout: part of the 1280 numbers that are dropped in training.
    """
    head = Classify(channels, nc, k, s, p, g)
    head.drop.p = dropout
    head.stride = torch.tensor([stride], dtype=torch.float32, device="cpu")
    return head


def describe_head(head: nn.Module) -> str:
    """Return in one line which of the heads it is, and for one without anchors what leads to its class scores."""
    if isinstance(head, AnchorDetect):
        return f"with {head.na} anchors a level"
    if not isinstance(head, Detect):
        return type(head).__name__
    plain = "plain 3x3 convolutions, as of YOLOv8 (legacy: true)"
    scores = plain if head.legacy else "depthwise and 1x1 convolutions, as of YOLO11 (legacy: false)"
    levels = (head.one2one if head.end2end else head.one2many)["cls_head"]
    if len(levels[0]) == 1:
        scores = "1x1 convolutions alone (convs: 0)"
    return f"without anchors{' and NMS' if head.end2end else ''}; class scores by {scores}"


class PublishedClassifier(Classify):
    """A network as it was published for classification, (B, C, H, W) in [0, 1] to what ultralytics' Classify gives.

    Args:
        network: gives logits (B, nc); has `example_input`, and `only_size` where it takes pictures of one size alone.
        mean: of the channels of the pictures that the network was trained on.
        std: their standard deviation.

    Attributes:
        size: height and width of the only pictures that it takes; None: any.
        example_side: the side of a picture that it takes.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: Any, mean: Sequence[float], std: Sequence[float]) -> None:
        nn.Module.__init__(self)  # ultralytics' own constructor would build the head alone
        self.network = network
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        height, width = network.example_input().shape[2:]
        self.size: tuple[int, int] | None = getattr(network, "only_size", None)
        self.example_side = max(height, width)
        self.stride = torch.tensor([float(math.gcd(COARSEST, height, width))], device="cpu")

    def forward(self, x: Tensor) -> Any:
        logits = self.network((x - self.mean) / self.std)
        if self.training:
            return logits
        probabilities = logits.softmax(1)
        return probabilities if self.export else (probabilities, logits)


@register_fuser
def drop_training_branch(module: Any) -> nn.Module | None:
    """Return a head that has lost what only trains: a second branch, or classes of pixels; None for other modules."""
    branch = isinstance(module, Detect) and module.end2end and module.cv2 is not None
    pixels = isinstance(module, Segment26) and module.proto.semseg is not None
    if not branch and not pixels:
        return None
    fused = copy.deepcopy(module)
    fused.fuse()
    return fused


# Anchors --------------------------------------------------------------------------------------------------------------
def parse_anchors(value: Any, strides: Sequence[float]) -> Anchors:
    """Return the anchors that a YAML means, small ones on fine levels.

    Args:
        value: for each level its widths and heights in turn; or how many a level has, which AutoAnchor sizes.
        strides: of the levels, ascending.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return _initial_anchors(value, strides)
    anchors = _anchor_pairs(value, len(strides))
    areas = [sum(width * height for width, height in level) for level in anchors]
    if areas[0] > areas[-1]:
        LOGGER.warning("the anchors go from large to small, but the head's maps from fine to coarse: reversed")
        return anchors[::-1]
    return anchors


def _initial_anchors(count: int, strides: Sequence[float]) -> Anchors:
    """Return so many squares for each level, which stay until AutoAnchor has seen the objects."""
    if not 1 <= count <= MAX_ANCHORS:
        raise ConfigError(f"anchors must be 1 to {MAX_ANCHORS} a level, got {count}")
    sides = [[4 * stride * 2 ** (i / count) for i in range(count)] for stride in strides]
    return tuple(tuple((side, side) for side in level) for level in sides)


def _anchor_pairs(value: Any, levels: int) -> Anchors:
    """Return anchors that are written out, in the order in which they stand; ConfigError for anything else."""
    if not isinstance(value, tuple) or not all(isinstance(level, tuple) for level in value):
        raise ConfigError(f"anchors must be a list of numbers for each level, or how many a level has, got {value!r}")
    if len(value) != levels:
        raise ConfigError(f"anchors are given for {len(value)} levels, but the head reads {levels} maps")
    lengths = {len(level) for level in value}
    if len(lengths) > 1 or not 0 < (length := lengths.pop()) <= 2 * MAX_ANCHORS or length % 2:
        raise ConfigError("anchors must be as many pairs of width and height on each level")
    if not all(_is_length(side) for level in value for side in level):
        raise ConfigError(f"anchors must be widths and heights in pixels, above 0 and at most {MAX_ANCHOR:g}")
    return tuple(tuple(zip(level[::2], level[1::2], strict=True)) for level in value)


def _is_length(side: Any) -> bool:
    return isinstance(side, int | float) and not isinstance(side, bool) and 0 < side <= MAX_ANCHOR
