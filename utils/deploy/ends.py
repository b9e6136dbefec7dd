"""What an exported file may have around its network: pictures as bytes before it, non-maximum suppression behind it.

A file says both in its metadata: `preprocess`, the order of the bytes, and `nms`, the fields of `Nms`.
"""

from __future__ import annotations

import ast
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ORDERS = ("bgr", "rgb")  # of the bytes of a pixel
CLASS_STEP = 7680  # pixels that NMS moves the classes apart; in files as in ultralytics, so that rounding is the same


@dataclass(frozen=True)
class Nms:
    """Non-maximum suppression in a file, of which all but `max_det` can be set when it is run here."""

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    agnostic_nms: bool = False  # boxes of different classes suppress each other too
    max_det: int = 300  # boxes in one picture

    @property
    def inputs(self) -> dict[str, Any]:
        """The thresholds, by the names that they have in a file."""
        return {name: value for name, value in asdict(self).items() if name != "max_det"}


def nms_of(metadata: dict[str, Any]) -> Nms | None:
    """Return the NMS in a file with these metadata, None where there is none."""
    value = metadata.get("nms")
    return None if value is None else Nms(**(ast.literal_eval(value) if isinstance(value, str) else value))


def threshold_inputs(conf_thres: float, iou_thres: float, agnostic_nms: bool = False) -> dict[str, np.ndarray]:
    """Return thresholds as the inputs of a file with NMS take them."""
    numbers = {"conf_thres": [conf_thres], "iou_thres": [iou_thres]}
    return {
        **{name: np.array(value, np.float32) for name, value in numbers.items()},
        "agnostic_nms": np.array([agnostic_nms]),
    }


# Pictures -------------------------------------------------------------------------------------------------------------
class Preprocess(nn.Module):
    """A network that takes pictures as they are in memory: bytes (B, H, W, 3), already of the right size.

    Args:
        model: takes (B, 3, H, W) RGB in [0, 1].
        order: of the bytes, one of `ORDERS`.
        dtype: that the model computes in.
    """

    def __init__(self, model: nn.Module, order: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network, self.order, self.dtype = model, order, dtype
        self.task, self.names = model.task, model.names  # ultralytics' Exporter reads them

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return what the model gives for bytes (B, H, W, 3)."""
        planes = images.permute(0, 3, 1, 2)
        rgb = planes.flip(1) if self.order == "bgr" else planes
        return self.network(rgb.float().div(255).to(self.dtype))


def as_bytes(images: Tensor, order: str) -> Tensor:
    """Return pictures (B, 3, H, W), RGB in [0, 1], as the bytes (B, H, W, 3) that a file with `order` takes."""
    whole = images.float().mul(255).round().to(torch.uint8)
    return (whole.flip(1) if order == "bgr" else whole).permute(0, 2, 3, 1).contiguous()
