"""Quantization-aware fine-tuning: the fused network learns with the rounding that INT8 will bring.

Each convolution, transposed or not, and each fully connected layer rounds as `models/blocks/rounding.py` says, but for
those that no other one reads: they put out what is found, and stay in float in INT8 files. The ranges of the inputs go
with the weights into the checkpoint, so that `export.py --int8` uses them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import DFL

from models import DetectionModel
from models.blocks.dataflow import feeding_modules
from models.blocks.rounding import KINDS, start_rounding


def insert_rounding(deploy: DetectionModel) -> None:
    """Let the layers of a fused model round, in place. Those whose range is in `deploy.ranges` start with it."""
    decoding = {child for module in deploy.modules() if isinstance(module, DFL) for child in module.modules()}
    layers = [m for m in deploy.modules() if type(m) in KINDS and m not in decoding]
    inner = feeding_modules(deploy.eval(), deploy.example_input(), layers)
    for name, module in list(deploy.named_modules()):
        if module in inner:
            start_rounding(module, *deploy.ranges.get(name, ()))


@torch.no_grad()
def observe(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give every layer that rounds a range, that of a few batches (B, ch, H, W); ends in training mode."""
    model.train()
    for images in batches:
        model(images)
