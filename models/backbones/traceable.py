"""What torch's tracing exporter cannot write, in operators that it can, for as long as a model is traced.

timm's models resample position embeddings, pool to grids that do not divide the map, and cut and join overlapping
windows; ONNX has operators for these only from opset 18 on, or none. All of that is linear in what it reads, so that
matrices and kernels of constants do the same. RMSNorm is written in full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


class Traceable(TorchFunctionMode):
    """Within it, functions that cannot be exported are written out; their results stay the same."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        written = WRITTEN[func](*args, **kwargs) if func in WRITTEN else None
        return func(*args, **kwargs) if written is None else written


def as_constant(tensor: Tensor) -> Tensor:
    """Return a copy of `tensor` that a trace holds as numbers: it does not follow what passes through NumPy."""
    numbers = tensor.detach().double().cpu().numpy()
    return torch.tensor(numbers, dtype=tensor.dtype, device=tensor.device)


def resize(
    x: Tensor,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Tensor | None:
    """Do what `F.interpolate` does to a given size with antialiasing; None otherwise."""
    if not antialias or size is None or align_corners or scale_factor or recompute_scale_factor:
        return None
    rows, columns = _pair(size)

    def along(eye: Tensor, length: int) -> Tensor:
        return F.interpolate(eye, (length, eye.shape[3]), mode=mode, antialias=True)

    return _separable(x, along, rows, columns)


def adaptive_avg_pool2d(x: Tensor, output_size: Any) -> Tensor | None:
    """Do what the function of that name does where its cells differ in size; None where they do not."""
    if output_size is None or (isinstance(output_size, Sequence) and None in output_size):
        return None
    rows, columns = _pair(output_size)
    if int(x.shape[2]) % rows == 0 and int(x.shape[3]) % columns == 0:
        return None
    return _separable(x, lambda eye, length: F.adaptive_avg_pool2d(eye, (length, eye.shape[3])), rows, columns)


def fold(
    x: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor | None:
    """Do what `F.fold` does, as a transposed convolution with a kernel per place in a window."""
    kernel, pad, step = _pair(kernel_size), _pair(padding), _pair(stride)
    if _pair(dilation) != (1, 1):
        return None
    size, places = _pair(output_size), kernel[0] * kernel[1]
    counts = [(size[i] + 2 * pad[i] - kernel[i]) // step[i] + 1 for i in (0, 1)]  # of windows
    rest = [size[i] - (counts[i] - 1) * step[i] + 2 * pad[i] - kernel[i] for i in (0, 1)]
    channels = int(x.shape[1]) // places
    weight = as_constant(torch.eye(places).view(places, 1, *kernel).repeat(channels, 1, 1, 1)).to(x)
    return F.conv_transpose2d(x.unflatten(2, counts), weight, None, step, pad, rest, channels)


def unfold(x: Tensor, dimension: int, size: int, step: int) -> Tensor:
    """Do what `Tensor.unfold` does, as a choice of rows: overlapping windows of `size`, in a last axis of their own."""
    starts = torch.arange(0, int(x.shape[dimension]) - size + 1, step, device=x.device)
    rows = as_constant(starts[:, None] + torch.arange(size, device=x.device))
    chosen = x.index_select(dimension, rows.flatten()).unflatten(dimension, list(rows.shape))
    return chosen.movedim(dimension + 1, -1)


def roll(x: Tensor, shifts: Any, dims: Any = None) -> Tensor | None:
    """Do what `torch.roll` does with shifts within the sizes: the exporter gets wider ones wrong; None for one axis."""
    if not isinstance(shifts, list | tuple) or not isinstance(dims, list | tuple):
        return None
    return torch.roll(x, [int(shift) % int(x.shape[d]) for shift, d in zip(shifts, dims, strict=True)], list(dims))


def rms_norm(x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Do what `F.rms_norm` does."""
    axes = [-1 - i for i in range(len(normalized_shape))]
    normal = x * (x.square().mean(axes, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return normal if weight is None else normal * weight


WRITTEN: dict[Any, Callable[..., Tensor | None]] = {
    F.interpolate: resize,
    F.adaptive_avg_pool2d: adaptive_avg_pool2d,
    F.fold: fold,
    Tensor.unfold: unfold,
    torch.roll: roll,
    F.rms_norm: rms_norm,
}


def _separable(x: Tensor, along: Callable[[Tensor, int], Tensor], rows: int, columns: int) -> Tensor:
    """Return (B, C, rows, columns): `along`, which changes the length of a map's columns, done on columns and rows."""
    down, across = _matrix(x, along, int(x.shape[2]), rows), _matrix(x, along, int(x.shape[3]), columns)
    return down @ x @ across.T


def _matrix(x: Tensor, along: Callable[[Tensor, int], Tensor], length: int, new_length: int) -> Tensor:
    eye = torch.eye(length, dtype=torch.float64)[None, None]
    return as_constant(along(eye, new_length)[0, 0]).to(x)


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    first, second = value if isinstance(value, Sequence) else (value, value)
    return int(first), int(second)
