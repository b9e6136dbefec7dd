"""Quantization-aware fine-tuning: the fused network learns with the rounding that INT8 will bring.

Each convolution but the last ones of the head rounds its weights per output channel and its input per tensor, as
`utils/int8/quantize.py` does; gradients pass the rounding as if it were not there (https://arxiv.org/abs/1308.3432,
https://arxiv.org/abs/1712.05877). The ranges of the inputs follow what is seen, and go with the weights into the
checkpoint, so that `export.py --int8` uses them.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Conv

from models import DetectionModel
from utils.checkpoint.file import RANGE_HIGH, RANGE_LOW

MOMENTUM = 0.01  # of the ranges
ACTIVATION_LEVELS, LARGEST_WEIGHT = 255, 127  # of an activation, of a weight
TINY = 1e-12  # the least scale, for channels of zeros


class RoundingConv(nn.Conv2d):
    """A convolution that rounds its input and its weights to 8 bits. It takes over the parameters of `conv`."""

    input_low: Tensor
    input_high: Tensor

    def __init__(self, conv: nn.Conv2d, low: float = 0.0, high: float = 0.0) -> None:
        sizes = (conv.in_channels, conv.out_channels, conv.kernel_size)
        super().__init__(
            *sizes,  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.register_buffer(RANGE_LOW, conv.weight.new_tensor(low))
        self.register_buffer(RANGE_HIGH, conv.weight.new_tensor(high))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.observe(x.detach(), MOMENTUM)
        scale = ((self.input_high - self.input_low) / ACTIVATION_LEVELS).clamp(min=TINY)
        zero = (-self.input_low / scale).round().clamp(0, ACTIVATION_LEVELS).int()
        seen = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, ACTIVATION_LEVELS)
        steps = (self.weight.detach().abs().flatten(1).amax(1) / LARGEST_WEIGHT).clamp(min=TINY)
        zeros = torch.zeros_like(steps, dtype=torch.int32)
        weight = torch.fake_quantize_per_channel_affine(self.weight, steps, zeros, 0, -LARGEST_WEIGHT, LARGEST_WEIGHT)
        return self._conv_forward(seen, weight, self.bias)

    @torch.no_grad()
    def observe(self, x: Tensor, momentum: float) -> None:
        """Move the range towards that of `x`; a range that has seen nothing takes it over."""
        step = momentum if bool(self.input_high > self.input_low) else 1.0
        self.input_low.lerp_(x.amin().clamp(max=0), step)
        self.input_high.lerp_(x.amax().clamp(min=0), step)


def insert_rounding(deploy: DetectionModel) -> None:
    """Let the convolutions of a fused model round, in place. Those whose range is in `deploy.ranges` start with it."""
    head = deploy.model[-1]
    ends = {m for m in head.modules() if isinstance(m, nn.Conv2d)}
    ends -= {child for m in head.modules() if isinstance(m, Conv) for child in m.modules()}
    for name, module in list(deploy.named_modules()):
        if type(module) is nn.Conv2d and module not in ends:
            parent, _, last = name.rpartition(".")
            setattr(deploy.get_submodule(parent), last, RoundingConv(module, *deploy.ranges.get(name, ())))


@torch.no_grad()
def observe(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give every rounding convolution a range, that of a few batches (B, ch, H, W); ends in training mode."""
    model.train()
    for images in batches:
        model(images)
