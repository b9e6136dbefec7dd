"""Networks without data, on torch's meta device: what passes through them are shapes alone, at next to no cost."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

M = TypeVar("M", bound=nn.Module)


class _NormsPass(TorchFunctionMode):
    """BatchNorms pass their input on: torch computes them in Python without data, and they change no shape."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func is F.batch_norm else func(*args, **(kwargs or {}))


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Make tensors without data; modules that have none compute the shapes of their outputs, without gradients."""
    with torch.device("meta"), torch.no_grad(), _NormsPass():
        yield


def without_data(module: M) -> M:
    """Return a copy of a module in eval mode that has shapes but no data."""
    shapes: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in module.parameters()}
    shapes |= {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    return copy.deepcopy(module, shapes).eval()
