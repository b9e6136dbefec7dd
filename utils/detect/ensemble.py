"""Several networks as one: their boxes are joined before NMS, which keeps the most confident one of each object.

As YOLOv5 does it. The networks may be files of several formats and take pictures of several sizes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import UserError
from utils.deploy.opened import OTHERS
from utils.detect.frame import Found, Frame
from utils.detect.predictor import Predictor, create_predictor


class Ensemble:
    """Finds the boxes in one frame with several predictors; the first one's options count for NMS.

    Attributes:
        names: class number → name.
        workers: how many threads may call `detect` at once.

    Raises:
        UserError: they know different classes, or one of them finds masks or needs no NMS.
    """

    def __init__(self, members: Sequence[Predictor], files: Sequence[Path]) -> None:
        self.members = tuple(members)
        self.files = tuple(files)
        self.names = members[0].names
        self.workers = min(member.workers for member in members)
        for member, file in zip(members, files, strict=True):
            if member.weights.task != "detect" or member.model.end2end:
                what = OTHERS.get(member.weights.task, "needs no NMS")
                raise UserError(f"several --weights are joined by NMS, but {file.name} {what}: use it alone")
            if dict(member.names) != dict(self.names):
                known = [", ".join(list(names.values())[:5]) for names in (self.names, member.names)]
                raise UserError(
                    f"several --weights must know the same classes, but {files[0].name} knows {len(self.names)} "
                    f"({known[0]}) and {file.name} {len(member.names)} ({known[1]})"
                )

    @torch.inference_mode()
    def detect(self, frame: Frame) -> Found:
        """Return what is found in one frame."""
        start = time.perf_counter()
        inputs = [member.preprocess([frame.image]) for member in self.members]
        prepared = time.perf_counter()
        raw = [self._boxes(i, images) for i, images in enumerate(inputs)]
        computed = time.perf_counter()
        picture, sizes = frame.image.shape[:2], [images.shape[2:] for images in inputs]
        moved = [move(boxes, size, sizes[0], picture) for boxes, size in zip(raw, sizes, strict=True)]
        result = self.members[0].finish(torch.cat(moved, 2), inputs[0], frame)
        seconds = (prepared - start, computed - prepared, time.perf_counter() - computed)
        return Found(frame, result, tuple(inputs[0].shape), seconds)

    def _boxes(self, i: int, images: Tensor) -> Tensor:
        """Return the boxes of one member before NMS, (1, 4 + classes, boxes)."""
        raw = self.members[i].inference(images)
        boxes = raw[0] if isinstance(raw, (list, tuple)) else raw
        if boxes.shape[1] != 4 + len(self.names):
            raise UserError(f"several --weights are joined by NMS, which {self.files[i].name} has done: use it alone")
        return boxes.float().to(self.members[0].device)


def create_ensemble(files: Sequence[Path], **options: Any) -> Predictor | Ensemble:
    """Return the predictor of a weights file, or of several as one; options and errors are those of `Predictor`."""
    members = [create_predictor(file, **options) for file in files]
    return Ensemble(members, files) if len(members) > 1 else members[0]


def move(boxes: Tensor, source: Sequence[int], target: Sequence[int], picture: Sequence[int]) -> Tensor:
    """Return boxes in one input's pixels as boxes in another's, both of which hold the same picture.

    Args:
        boxes: (1, 4 + classes, boxes), xywh first.
        source: height and width of the input that they were found in.
        target: height and width of the other.
        picture: height and width of the picture that was fitted into both.
    """
    if tuple(source) == tuple(target):
        return boxes
    (gain, *corner), (other_gain, *other_corner) = (placement(size, picture) for size in (source, target))
    scale = other_gain / gain
    centres = (boxes[:, :2] - boxes.new_tensor(corner)[:, None]) * scale + boxes.new_tensor(other_corner)[:, None]
    return torch.cat([centres, boxes[:, 2:4] * scale, boxes[:, 4:]], 1)


def placement(size: Sequence[int], picture: Sequence[int]) -> tuple[float, int, int]:
    """Return by which factor a picture was scaled to fit, and how many pixels are left of and above it."""
    gain = min(side / length for side, length in zip(size, picture, strict=True))
    above, left = (round((side - round(length * gain)) / 2 - 0.1) for side, length in zip(size, picture, strict=True))
    return gain, left, above
