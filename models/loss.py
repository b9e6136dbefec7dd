"""The loss of YOLOv5, for heads with anchors (https://github.com/ultralytics/yolov5).

An anchor of a cell answers for a target when their sizes are alike and the target's centre is in the cell or near it.
Such positives learn the target's box (CIoU), class and mask; all anchors learn their objectness, which is the IoU of
what they predict with what they should.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.ops import crop_mask, xywh2xyxy

from models.errors import UserError
from models.shared_loss import shared_factor

OBJECTNESS = 4  # its place in a prediction, after x, y, w, h
CLASSES = 5  # where the classes begin, after which come the mask coefficients
BIAS = 0.5  # cells; how near a centre is to a neighbouring cell that answers for it too
OFFSETS = ((0.0, 0.0), (BIAS, 0.0), (0.0, BIAS), (-BIAS, 0.0), (0.0, -BIAS))  # to its cell, left, up, right, down
BALANCE = {3: (4.0, 1.0, 0.4)}  # weights of the levels' objectness, by the number of levels
OTHER_BALANCE = (4.0, 1.0, 0.25, 0.06, 0.02)  # for other numbers; more levels weigh as the last does
FOCAL_ALPHA = 0.25  # weight of positives in the focal loss, 1 - this of negatives
MIN_SIDE = 1e-6  # cells; of a predicted box, whose ratio of sides has no gradient at 0


@dataclass(frozen=True)
class AnchorGains:
    """The hyper-parameters of the loss, by YOLOv5's names and with its defaults.

    Args:
        box, cls, obj: gains of the box (and mask), class and objectness losses.
        cls_pw, obj_pw: weights of positives in the two cross entropies.
        anchor_t: an anchor may be this many times wider, narrower, higher or lower than a target.
        fl_gamma: focus of the focal loss (https://arxiv.org/abs/1708.02002); 0 is cross entropy.
        label_smoothing: class targets are half of this above 0 and below 1.

    Raises:
        UserError: a value that is no number or out of its range.
    """

    box: float = 0.05
    cls: float = 0.5
    obj: float = 1.0
    cls_pw: float = 1.0
    obj_pw: float = 1.0
    anchor_t: float = 4.0
    fl_gamma: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        lowest = {"anchor_t": 1.0}
        highest = {"label_smoothing": 1.0}
        for name, value in asdict(self).items():
            low, high = lowest.get(name, 0.0), highest.get(name, math.inf)
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not is_number or not low <= value <= high:
                expected = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
                raise UserError(f"the hyper-parameter {name} must be a number {expected}, not {value!r}")

    def scaled(self, nl: int, nc: int, imgsz: int) -> AnchorGains:
        """Return them for `nl` levels, `nc` classes and pictures of `imgsz` pixels; they are for 3, 80 and 640."""
        return replace(
            self,
            box=self.box * (3 / nl),
            cls=self.cls * (nc / 80 * 3 / nl),
            obj=self.obj * ((imgsz / 640) ** 2 * 3 / nl),
        )


class Targets(NamedTuple):
    """The n labels of a batch."""

    image: Tensor  # (n,) place of the picture in the batch
    label: Tensor  # (n,) class
    box: Tensor  # (n, 4) xywh as fractions of the picture


class Positives(NamedTuple):
    """The n anchors of one level that answer for a target; one may be there several times, for several targets."""

    image: Tensor  # (n,) place of the picture in the batch
    anchor: Tensor  # (n,)
    row: Tensor  # (n,) of the cell
    column: Tensor  # (n,)
    target: Tensor  # (n,) place of the target among the batch's
    box: Tensor  # (n, 4) the target's xywh in cells, from the corner of the cell


class AnchorLoss:
    """The criterion of a head with anchors, called as ultralytics' criteria are.

    Args:
        anchors: (levels, anchors per level, 2) width and height in pixels.
        strides: (levels,) pixels per cell.
        nc: number of classes.
        gains: hyper-parameters, scaled for the head and the picture's size.
        overlap_mask: how a batch holds its masks: one map per picture, in which pixels of its first object are 1, of
            its second 2 and so on, or one map per object.
    """

    def __init__(
        self, anchors: Tensor, strides: Tensor, nc: int, gains: AnchorGains, overlap_mask: bool = True
    ) -> None:
        self.anchors = (anchors / strides.view(-1, 1, 1).to(anchors)).detach()  # in cells
        self.nc = nc
        self.gains = gains
        self.overlap_mask = overlap_mask
        self.balance = level_balance(len(anchors))

    def __call__(
        self, preds: Mapping[str, Any] | tuple[Any, ...], batch: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss components times the batch size, (3,) or with masks (4,), and each by name, detached.

        Args:
            preds: a dict with `maps`, raw predictions (B, anchors, H, W, 5 + nc + coefficients) of each level, and for
                segmentation `proto` (B, coefficients, H, W); or a tuple that ends with it.
            batch: ultralytics' batch: `batch_idx` (n,), `cls` (n, 1), `bboxes` (n, 4) xywh as fractions of the picture
                and for segmentation `masks` (B, H, W), or (n, H, W) without `overlap_mask`.
        """
        raw = preds[-1] if isinstance(preds, tuple) else preds
        maps, proto = raw["maps"], raw.get("proto")
        targets = read_targets(batch, maps[0])
        anchors = self.anchors.to(targets.box)
        levels = [self.level_loss(*level, targets) for level in zip(maps, anchors, self.balance, strict=True)]
        box, obj, cls = torch.stack([losses for losses, _, _ in levels]).sum(0)
        components = {"box_loss": self.gains.box * box}
        if proto is not None:
            found = [(positives, coefficients) for _, positives, coefficients in levels]
            seg = self.mask_loss(found, in_full(proto), batch["masks"].to(proto.device), targets)
            components["seg_loss"] = self.gains.box * seg
        components |= {"obj_loss": self.gains.obj * obj, "cls_loss": self.gains.cls * cls}
        loss = torch.stack(list(components.values()))
        return loss * len(maps[0]), dict(zip(components, loss.detach(), strict=True))

    def level_loss(
        self, level: Tensor, anchors: Tensor, balance: float, targets: Targets
    ) -> tuple[Tensor, Positives, Tensor]:
        """Return (box, objectness, class) losses (3,) of one level, its positives and their mask coefficients (n, …).

        Args:
            level: raw predictions (B, anchors, H, W, 5 + nc + …).
            anchors: (anchors, 2) in cells.
            balance: weight of the objectness.
            targets: the labels of the batch.
        """
        positives = assign_targets(targets, anchors, level.shape[2:4], self.gains.anchor_t)
        predicted = in_full(level[positives.image, positives.anchor, positives.row, positives.column])
        iou = bbox_iou(decode(predicted, anchors[positives.anchor]), positives.box, CIoU=True).squeeze(-1)
        wanted = objectness_targets(positives, iou.detach(), level.shape[:4])
        objectness = self.cross_entropy(in_full(level[..., OBJECTNESS]), wanted, self.gains.obj_pw)
        classes = self.class_loss(predicted, targets.label[positives.target])
        factor = shared_factor(iou.new_tensor(float(len(iou))), len(level))
        losses = torch.stack([mean(1 - iou) * factor, balance * objectness, classes * factor])
        return losses, positives, predicted[:, CLASSES + self.nc :]

    def class_loss(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy of the classes of predictions (n, 5 + nc + …); 0 for a single class."""
        if self.nc == 1:
            return predicted.new_zeros(())
        smoothing = self.gains.label_smoothing
        wanted = F.one_hot(labels, self.nc).to(predicted) * (1 - smoothing) + smoothing / 2
        return self.cross_entropy(predicted[:, CLASSES : CLASSES + self.nc], wanted, self.gains.cls_pw)

    def cross_entropy(self, logits: Tensor, wanted: Tensor, positive_weight: float) -> Tensor:
        """Return the mean cross entropy, or focal loss, of logits and wanted probabilities of one shape."""
        weight = logits.new_full((1,), positive_weight)
        loss = F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weight, reduction="none")
        if self.gains.fl_gamma > 0:
            p = logits.sigmoid()
            missed = (wanted * (1 - p) + (1 - wanted) * p).clamp(min=1e-7)  # powers below 1 have no gradient at 0
            loss = loss * (wanted * FOCAL_ALPHA + (1 - wanted) * (1 - FOCAL_ALPHA)) * missed**self.gains.fl_gamma
        return mean(loss)

    def mask_loss(
        self, found: Sequence[tuple[Positives, Tensor]], proto: Tensor, masks: Tensor, targets: Targets
    ) -> Tensor:
        """Return the sum over levels of the mean over pictures of the mean over its positives of their mask loss.

        Args:
            found: positives and their mask coefficients (n, coefficients), of each level.
            proto: (B, coefficients, H, W), whose combinations the masks are.
            masks: as in the batch; they are brought to H and W.
            targets: the labels of the batch.
        """
        batch_size, _, height, width = proto.shape
        if masks.shape[-2:] != proto.shape[-2:]:
            masks = F.interpolate(masks[:, None].float(), (height, width), mode="nearest")[:, 0]
        image = torch.cat([positives.image for positives, _ in found])
        target = torch.cat([positives.target for positives, _ in found])
        count = torch.cat([positives.image.bincount()[positives.image] for positives, _ in found])
        coefficients = torch.cat([coefficients for _, coefficients in found])
        corners = xywh2xyxy(targets.box) * targets.box.new_tensor([width, height, width, height])
        number = place_in_image(targets.image, batch_size) + 1
        total = proto[:0].sum()  # so that it has a gradient without positives too, which distributed training wants
        for i in image.unique().tolist():
            here = (image == i).nonzero()[:, 0]
            of = target[here]
            wanted = masks[i] == number[of, None, None] if self.overlap_mask else masks[of]
            logits = torch.einsum("kc,chw->khw", coefficients[here], proto[i])
            loss = F.binary_cross_entropy_with_logits(logits, wanted.to(logits), reduction="none")
            area = targets.box[of, 2:].prod(1)
            total = total + (crop_mask(loss, corners[of]).mean((1, 2)) / area / count[here]).sum()
        return total / batch_size


def level_balance(nl: int) -> tuple[float, ...]:
    """Return the weights of the objectness losses of `nl` levels, from high to low resolution."""
    more = OTHER_BALANCE + OTHER_BALANCE[-1:] * (nl - len(OTHER_BALANCE))
    return BALANCE.get(nl, more[:nl])


def read_targets(batch: Mapping[str, Tensor], like: Tensor) -> Targets:
    """Return the labels of a batch on the device of `like`, in its precision but at least in float32."""
    device = like.device
    return Targets(
        image=batch["batch_idx"].view(-1).to(device).long(),
        label=batch["cls"].view(-1).to(device).long(),
        box=batch["bboxes"].view(-1, 4).to(device, torch.promote_types(like.dtype, torch.float32)),
    )


def assign_targets(targets: Targets, anchors: Tensor, shape: Sequence[int], anchor_t: float) -> Positives:
    """Return which anchors of one level answer for which targets.

    An anchor answers for a target when neither side is `anchor_t` times the other's or more. It does so in the cell of
    the target's centre and in those next to it, left or right and up or down, to which the centre is nearer. The cell
    of a centre that lies exactly between two counts twice, as it does in YOLOv5.

    Args:
        targets: the labels of a batch.
        anchors: (anchors, 2) width and height in cells.
        shape: height and width of the level, in cells.
        anchor_t: see above.
    """
    size = anchors.new_tensor([shape[1], shape[0]])
    centres, sides = targets.box[:, :2] * size, targets.box[:, 2:] * size
    ratio = sides / anchors[:, None]
    anchor, target = (torch.maximum(ratio, 1 / ratio).amax(2) < anchor_t).nonzero(as_tuple=True)
    centre = centres[target]
    from_end = size - centre
    nearer = torch.cat([(x % 1 < BIAS) & (x > 1) for x in (centre, from_end)], dim=1)  # to left, up, right, down
    which, offset = F.pad(nearer, (1, 0), value=True).nonzero(as_tuple=True)
    anchor, target, centre = anchor[which], target[which], centre[which]
    cell = (centre - anchors.new_tensor(OFFSETS)[offset]).floor()
    cell = torch.minimum(cell.clamp(min=0), size - 1)
    column, row = cell.long().unbind(1)
    box = torch.cat([centre - cell, sides[target]], dim=1)
    return Positives(targets.image[target], anchor, row, column, target, box)


def decode(predicted: Tensor, anchors: Tensor) -> Tensor:
    """Return boxes (n, 4), xywh in cells from the corner of their cell, of raw predictions and anchors (n, 2)."""
    p = predicted[:, :OBJECTNESS].sigmoid() * 2
    return torch.cat([p[:, :2] - 0.5, (p[:, 2:] ** 2 * anchors).clamp(min=MIN_SIDE)], dim=1)


def objectness_targets(positives: Positives, iou: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the wanted objectness (B, anchors, H, W): the IoU of positives or 0 if it is negative, 0 of the others.

    An anchor that answers for several targets takes the highest of their IoUs, whatever their order.
    """
    _, anchors, height, width = shape
    place = ((positives.image * anchors + positives.anchor) * height + positives.row) * width + positives.column
    wanted = iou.new_zeros(math.prod(shape))
    return wanted.scatter_reduce_(0, place, iou, "amax").view(*shape)


def place_in_image(image: Tensor, batch_size: int) -> Tensor:
    """Return (n,) for each target how many targets of its picture come before it."""
    return F.one_hot(image, batch_size).cumsum(0).gather(1, image[:, None])[:, 0] - 1


def in_full(x: Tensor) -> Tensor:
    """Return `x` in at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mean(x: Tensor) -> Tensor:
    """Return the mean, 0 of nothing."""
    return x.sum() / max(x.numel(), 1)
