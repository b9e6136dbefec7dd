"""Quantization-aware fine-tuning: the fused network learns with the rounding that INT8 will bring.

Each convolution and each fully connected layer but the last ones of the head rounds as `models/blocks/rounding.py`
says. The ranges of the inputs go with the weights into the checkpoint, so that `export.py --int8` uses them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv

from models import DetectionModel
from models.blocks.rounding import KINDS, start_rounding


def insert_rounding(deploy: DetectionModel) -> None:
    """Let the layers of a fused model round, in place. Those whose range is in `deploy.ranges` start with it."""
    head = deploy.model[-1]
    ends = {m for m in head.modules() if type(m) in KINDS}
    ends -= {child for m in head.modules() if isinstance(m, Conv) for child in m.modules()}
    for name, module in list(deploy.named_modules()):
        if type(module) in KINDS and module not in ends:
            start_rounding(module, *deploy.ranges.get(name, ()))


@torch.no_grad()
def observe(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give every layer that rounds a range, that of a few batches (B, ch, H, W); ends in training mode."""
    model.train()
    for images in batches:
        model(images)
