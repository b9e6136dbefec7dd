"""What a student learns from the outputs of a teacher: class scores and boxes of detectors, classes of pictures.

As BCKD does (https://arxiv.org/abs/2308.14286): scores by the binary cross-entropy with the teacher's, boxes by the
GIoU with the teacher's in the same place, both weighted by how far the scores are apart. Heads without NMS teach and
learn by their dense branch alone, as one that gives each object once has nothing to say of the places beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from ultralytics.nn.modules import Detect
from ultralytics.utils.ops import xywh2xyxy
from ultralytics.utils.tal import dist2bbox, make_anchors

from models import DetectionModel
from models.heads import AnchorDetect
from models.loss import CLASSES, OBJECTNESS, in_full
from utils.train.classes import match_classes
from utils.train.teaching.losses import binary_divergence, box_gap, class_divergence, mean_by, score_gap

BOX_GAIN = 2.0  # of BCKD, beside the gain of the head's own boxes; that of scores is 1


class Gains(NamedTuple):
    """What the boxes and the class scores of a head weigh in its own loss, as means over what it should find."""

    box: float
    cls: float


class Dense(NamedTuple):
    """What a head gives in every place, N of them."""

    boxes: Tensor  # (B, N, 4) x1 y1 x2 y2 in pixels
    classes: Tensor  # (B, N, nc) logits
    objectness: Tensor | None  # (B, N, 1) logits, of heads with anchors


def gains_of(model: DetectionModel) -> Gains:
    """Return the gains of a model's own loss; of a classifier such that one of boxes would weigh twice the classes."""
    head = model.model[-1]
    if isinstance(head, AnchorDetect):
        gains = model.init_criterion().gains
        return Gains(gains.box * head.nl, gains.cls * head.nl)  # of means over the positives of each level, added up
    if isinstance(head, Detect):
        return Gains(model.args.box, model.args.cls)
    return Gains(2.0, 1.0)


class Outputs:
    """The losses of a student's outputs by a teacher's.

    Args:
        teacher: network of the teacher.
        student: the model that is trained, with the names of its classes.

    Attributes:
        why_not: why nothing can be learnt from the outputs, as half a sentence; empty: something can.
        own: numbers of the student's classes that the teacher knows, by name.
        theirs: their numbers in the teacher.
    """

    def __init__(self, teacher: DetectionModel, student: DetectionModel) -> None:
        partners = match_classes(teacher.names, student.names, {})
        self.own = [i for i, partner in enumerate(partners) if partner is not None]
        self.theirs = [partner for partner in partners if partner is not None]
        self.has_boxes = isinstance(student.model[-1], Detect)
        self.why_not = self._why_not(teacher, student)

    def _why_not(self, teacher: DetectionModel, student: DetectionModel) -> str:
        """Return the first reason that holds, or nothing."""
        head, other = student.model[-1], teacher.model[-1]
        boxes, anchors = self.has_boxes, isinstance(head, AnchorDetect)
        unknown = len(student.names) - len(self.own)
        reasons = {
            f"it is to {teacher.task}, the model to {student.task}": boxes != isinstance(other, Detect),
            "it knows none of the data set's classes by name": not self.own,
            f"it does not know {unknown} of the data set's classes": not boxes and unknown > 0,
            "one head has anchors, the other has none": anchors != isinstance(other, AnchorDetect),
            "its head reads other levels": boxes and teacher.stride.tolist() != student.stride.tolist(),
            "its head has other anchors": anchors and not _same_anchors(head, other),
            "its head has lost the dense branch by which it was trained": boxes and not has_dense(other),
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def names(self) -> tuple[str, ...]:
        """Return what the losses are called."""
        return ("kdbox_loss", "kdcls_loss") if self.has_boxes else ("kdcls_loss",)

    def losses(self, heads: tuple[Any, Any], student: Any, teacher: Any, gains: Gains) -> dict[str, Tensor]:
        """Return the losses by name, means over the pictures or over what the teacher has found.

        Args:
            heads: of the student and of the teacher.
            student: the raw output of its head.
            teacher: that of the teacher's.
            gains: of the student's own loss.
        """
        if not self.has_boxes:
            classes = class_divergence(student[:, self.own], teacher[:, self.theirs])
            return {"kdcls_loss": gains.cls * classes}
        own, wanted = (dense(head, raw) for head, raw in zip(heads, (student, teacher), strict=True))
        box, cls = dense_losses(
            own._replace(classes=own.classes[..., self.own]),
            wanted._replace(classes=wanted.classes[..., self.theirs]),
            learns_classes=all(head.nc > 1 for head in heads),
        )
        return {"kdbox_loss": BOX_GAIN * gains.box * box, "kdcls_loss": gains.cls * cls}


def dense_losses(student: Dense, teacher: Dense, learns_classes: bool = True) -> tuple[Tensor, Tensor]:
    """Return the losses of boxes and of scores, over the sum of the teacher's highest score in each place.

    Objectness is one more class, which the others are weighted by; a head with anchors for a single class has learnt
    nothing else.

    Args:
        student: of the same places and classes as the teacher's.
        teacher: what it gives, without gradients.
        learns_classes: False: of heads with anchors that know one class.
    """
    if student.objectness is None or teacher.objectness is None:
        joint, wanted = student.classes, teacher.classes
        losses = binary_divergence(joint, wanted).sum(2)
        gap, certain = score_gap(joint, wanted).amax(2), wanted.sigmoid().amax(2)
    else:
        there = teacher.objectness.sigmoid()
        losses = binary_divergence(student.objectness, teacher.objectness).sum(2)
        joint, wanted = student.objectness.detach().sigmoid(), there
        if learns_classes:
            losses = losses + (there * binary_divergence(student.classes, teacher.classes)).sum(2)
            joint, wanted = joint * student.classes.detach().sigmoid(), wanted * teacher.classes.sigmoid()
        gap, certain = (joint - wanted).abs().amax(2), wanted.amax(2)
    return mean_by(box_gap(student.boxes, teacher.boxes) * gap, certain), mean_by(losses, certain)


def dense(head: Any, raw: Mapping[str, Any]) -> Dense:
    """Return what a head gives in every place, from its raw output; of one without NMS what its dense branch does."""
    raw = raw.get("one2many", raw)
    if isinstance(head, AnchorDetect):
        return anchor_dense(head, raw["maps"])
    places, strides = make_anchors(raw["feats"], head.stride.to(raw["boxes"]), 0.5)
    sides = head.dfl(in_full(raw["boxes"])).transpose(1, 2).clamp(min=0)
    boxes = dist2bbox(sides, places[None].to(sides), xywh=False) * strides.to(sides)
    return Dense(boxes, in_full(raw["scores"]).transpose(1, 2), None)


def anchor_dense(head: AnchorDetect, maps: Sequence[Tensor]) -> Dense:
    """Return what a head with anchors gives in every place: in each cell of each level, by each anchor.

    Args:
        head: whose anchors and strides they are.
        maps: raw predictions (B, anchors, H, W, 5 + nc + ...) of each level.
    """
    boxes, scores = [], []
    for level, anchors, stride in zip(maps, head.anchor_sizes, head.cells, strict=True):
        raw = in_full(level[..., : CLASSES + head.nc])
        rows, columns = (torch.arange(side, device=raw.device).to(raw) for side in raw.shape[2:4])
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), 2)
        sides = (raw[..., 2:OBJECTNESS].sigmoid() * 2) ** 2 * anchors[:, None, None].to(raw)
        centres = (raw[..., :2].sigmoid() * 2 - 0.5 + grid) * stride
        boxes.append(xywh2xyxy(torch.cat([centres, sides], 4)).flatten(1, 3))
        scores.append(raw[..., OBJECTNESS:].flatten(1, 3))
    objectness, classes = torch.cat(scores, 1).split((1, head.nc), 2)
    return Dense(torch.cat(boxes, 1), classes, objectness)


def cell_scores(head: Any, raw: Mapping[str, Any], shapes: Mapping[float, Sequence[int]]) -> dict[float, Tensor]:
    """Return how sure a head is of an object in each cell, (B, 1, H, W) by stride.

    Args:
        head: of a detector.
        raw: its raw output.
        shapes: H and W of the maps that it has read, by stride, ascending.
    """
    found, places = dense(head, raw), getattr(head, "na", 1)
    scores = found.classes.sigmoid().amax(2)
    if found.objectness is not None:
        scores = found.objectness.sigmoid()[..., 0] * (scores if head.nc > 1 else 1)
    levels = scores.split([places * height * width for height, width in shapes.values()], 1)
    return {
        stride: level.view(len(level), places, *shape).amax(1, keepdim=True)
        for (stride, shape), level in zip(shapes.items(), levels, strict=True)
    }


def has_dense(head: Any) -> bool:
    """Return whether a head for objects gives something in every place; fused ones without NMS do not."""
    return isinstance(head, AnchorDetect) or getattr(head, "cv2", None) is not None


def _same_anchors(head: Any, other: Any) -> bool:
    if not isinstance(other, AnchorDetect):
        return False
    own, theirs = head.anchor_sizes.cpu(), other.anchor_sizes.cpu()
    return own.shape == theirs.shape and torch.allclose(own, theirs, rtol=1e-3)
