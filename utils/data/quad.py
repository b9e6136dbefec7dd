"""Batches of `--quad`: four pictures become one of twice the side, so that small ones are learnt from at a large size.

As in YOLOv5, by chance the first of the four is enlarged and the others are left out, or all four are put side by side.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ultralytics.data.dataset import YOLODataset

JOINED = 4  # pictures
OFFSETS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # of their places: right, down


def collate_quad(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch of a fourth of the samples, whose pictures (C, H, W) are (C, 2 * H, 2 * W).

    Args:
        samples: of ultralytics' data set; four at a time are joined, what is left over is left out.
    """
    whole = len(samples) // JOINED * JOINED
    return YOLODataset.collate_fn([join(samples[i : i + JOINED]) for i in range(0, whole, JOINED)])


def join(four: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one sample of four."""
    if random.random() < 0.5:
        larger = F.interpolate(four[0]["img"][None].float(), scale_factor=2, mode="bilinear", align_corners=False)[0]
        return {**four[0], "img": larger.round().to(four[0]["img"].dtype)}
    pictures = [sample["img"] for sample in four]
    boxes = [_placed(sample["bboxes"], offset) for sample, offset in zip(four, OFFSETS, strict=True)]
    joined = {key: torch.cat([sample[key] for sample in four]) for key in ("cls", "batch_idx")}
    rows = [torch.cat(pictures[i : i + 2], dim=2) for i in (0, 2)]
    return {**four[0], **joined, "bboxes": torch.cat(boxes), "img": torch.cat(rows, dim=1)}


def as_loss_of_four(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    """Return the loss of a batch as if its pictures had not been joined, since losses are sums over pictures.

    A forward hook; where the model was not given a batch to learn from, the output stays as it is.
    """
    if not (isinstance(inputs[0], dict) and torch.is_grad_enabled()):
        return output
    loss, parts = output
    return loss * JOINED, parts


def _placed(boxes: Tensor, offset: Tensor) -> Tensor:
    """Return boxes (n, 4) xywh of a picture, as fractions of it, as fractions of the joined one."""
    return torch.cat([boxes[:, :2] + offset, boxes[:, 2:]], dim=1) / 2
