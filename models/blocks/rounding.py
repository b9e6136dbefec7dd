"""Layers that round as an INT8 file does, so that a network learns with it.

A layer rounds its weights per output channel and its input per tensor, as `utils/int8/quantize.py` does; gradients pass
the rounding as if it were not there (https://arxiv.org/abs/1308.3432, https://arxiv.org/abs/1712.05877). The range of
the input follows what is seen.

A fully connected layer over the pixels of a tile gets a BatchNorm behind it, by which it learns best what rounding has
cost: what the authors of RepMLP advise (https://github.com/DingXiaoH/RepMLP, on quantization). It is folded when
the rounding ends, which changes nothing, as a row of weights and its step of rounding grow alike.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.blocks.reparam import bn_scale_shift
from models.blocks.repmlp import TileFC

RANGE_LOW, RANGE_HIGH = "input_low", "input_high"  # buffers of a layer that rounds
MOMENTUM = 0.01  # of the ranges
ACTIVATION_LEVELS, LARGEST_WEIGHT = 255, 127  # of an activation, of a weight
TINY = 1e-12  # the least scale, for channels of zeros


class Rounding(nn.Module):
    """What a layer that rounds has beside what it is; see `start_rounding`."""

    channel_axis = 0  # of the output channels in the weight

    weight: Tensor
    input_low: Tensor
    input_high: Tensor

    def rounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input and the weight, both rounded; in training, the range follows the input."""
        if self.training:
            self.observe(x.detach(), MOMENTUM)
        scale = ((self.input_high - self.input_low) / ACTIVATION_LEVELS).clamp(min=TINY)
        zero = (-self.input_low / scale).round().clamp(0, ACTIVATION_LEVELS).int()
        seen = torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, ACTIVATION_LEVELS)
        return seen, self._rounded_weight()

    def _rounded_weight(self) -> Tensor:
        axis = self.channel_axis
        largest = self.weight.detach().abs().transpose(0, axis).flatten(1).amax(1)
        steps = (largest / LARGEST_WEIGHT).clamp(min=TINY)
        zeros = torch.zeros_like(steps, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(self.weight, steps, zeros, axis, -LARGEST_WEIGHT, LARGEST_WEIGHT)

    @torch.no_grad()
    def observe(self, x: Tensor, momentum: float) -> None:
        """Move the range towards that of `x`; a range that has seen nothing takes it over."""
        step = momentum if bool(self.input_high > self.input_low) else 1.0
        self.input_low.lerp_(x.amin().clamp(max=0), step)
        self.input_high.lerp_(x.amax().clamp(min=0), step)


class RoundingConv(Rounding, nn.Conv2d):
    """A convolution that rounds."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(*self.rounded(x), self.bias)


class RoundingConvTranspose(Rounding, nn.ConvTranspose2d):
    """A transposed convolution that rounds; with groups, one step serves a channel of each of them, as in ONNX."""

    channel_axis = 1

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        seen, weight = self.rounded(x)
        like: Any = self  # torch types these as of any length
        size = self._output_padding(seen, output_size, like.stride, like.padding, like.kernel_size, 2, like.dilation)
        return F.conv_transpose2d(
            seen, weight, self.bias, like.stride, like.padding, tuple(size), self.groups, like.dilation
        )


class RoundingLinear(Rounding, nn.Linear):
    """A linear layer that rounds."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(*self.rounded(x), self.bias)


class RoundingTileFC(Rounding, TileFC):
    """A fully connected layer over the pixels of a tile that rounds, and a BatchNorm behind it.

    The norm starts with what it sees first, whose mean and deviation it takes over, so that it changes nothing.
    """

    norm: nn.BatchNorm2d

    def forward(self, x: Tensor) -> Tensor:
        y = self.multiply(*self.rounded(x))
        if self.training and not self.norm.num_batches_tracked:
            self._start_norm(y.detach())
        return self.norm(y)

    @torch.no_grad()
    def _start_norm(self, y: Tensor) -> None:
        variance, mean = torch.var_mean(y.float(), (0, 2, 3), correction=0)
        scale = (variance + self.norm.eps).sqrt()
        start = {"running_mean": mean, "running_var": variance, "weight": scale, "bias": mean}
        self.norm.load_state_dict(start, strict=False)


KINDS: dict[type[nn.Module], type[Rounding]] = {  # what can round, by its exact type, and what it is while it does
    nn.Conv2d: RoundingConv,
    nn.ConvTranspose2d: RoundingConvTranspose,
    nn.Linear: RoundingLinear,
    TileFC: RoundingTileFC,
}


def start_rounding(layer: Any, low: float = 0.0, high: float = 0.0) -> Rounding:
    """Let a layer round, in place, and return it.

    Args:
        layer: of one of the types in `KINDS`.
        low: least value of its input, at most 0.
        high: largest one, at least 0; with both 0 the first input gives the range.

    Raises:
        KeyError: it is of another type.
    """
    layer.__class__ = KINDS[type(layer)]
    layer.register_buffer(RANGE_LOW, layer.weight.new_tensor(low))
    layer.register_buffer(RANGE_HIGH, layer.weight.new_tensor(high))
    if isinstance(layer, RoundingTileFC):
        layer.norm = nn.BatchNorm2d(layer.shape[0]).to(layer.weight)
    return layer


def stop_rounding(layer: Any) -> tuple[float, float]:
    """Undo `start_rounding` in place, the BatchNorm folded, and return the range that the layer has learnt."""
    found = float(layer.input_low), float(layer.input_high)
    if isinstance(layer, RoundingTileFC):
        _fold_norm(layer)
    del layer.input_low, layer.input_high
    layer.__class__ = next(kind for kind, rounding in KINDS.items() if type(layer) is rounding)
    return found


def _fold_norm(layer: RoundingTileFC) -> None:
    """Take the BatchNorm, whose running statistics are used from then on, into the weight and bias of the layer."""
    pixels = len(layer.weight) // layer.norm.num_features
    scale, shift = (v.detach().repeat_interleave(pixels) for v in bn_scale_shift(layer.norm))
    bias = shift if layer.bias is None else shift + scale * layer.bias.detach().double()
    weight = layer.weight.detach().double() * scale[:, None, None, None]
    layer.weight, layer.bias = (nn.Parameter(v.to(layer.weight)) for v in (weight, bias))
    del layer.norm


def rounded_share(model: nn.Module) -> float:
    """Return which part of the parameters of a model, from 0 to 1, are weights that are rounded."""
    rounded = sum(m.weight.numel() for m in model.modules() if isinstance(m, Rounding))
    return rounded / sum(p.numel() for p in model.parameters())
