"""Random parameters and statistics in which a term that fusing or writing forgets would show."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

SCALES = ("layer_scale", "gamma")  # names of layer scales, here and in timm


@torch.no_grad()
def randomize_(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and every statistic a value that a forgotten term would show in; return `module`.

    Weights keep the size of their inputs, so that deep networks stay finite; frozen parameters stay.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if any(scale in name for scale in SCALES):
            parameter.uniform_(0.1, 0.5, generator=generator)
        elif parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        elif name.endswith("weight"):
            parameter.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.normal_(0, 0.3, generator=generator)
    for norm in norms_with_statistics(module):
        norm.running_mean.normal_(0, 0.5, generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
    return module


def norms_with_statistics(module: nn.Module) -> Iterator[Any]:
    """Yield the BatchNorms that have statistics."""
    return (m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None)
