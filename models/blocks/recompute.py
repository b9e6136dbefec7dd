"""Blocks whose inside is computed again in the backward pass rather than kept: less memory for more time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def run_blocks(blocks: nn.Module, x: Tensor, recompute: bool) -> Tensor:
    """Return `blocks(x)` of a sequence of blocks or of one.

    With `recompute` and a gradient, of each block only the input is kept until the backward pass.
    """
    if not (recompute and blocks.training and torch.is_grad_enabled()):
        return blocks(x)
    for block in blocks if isinstance(blocks, nn.Sequential) else [blocks]:
        x = checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block))
    return x


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return what stands around the first run of a block, and around the second."""
    return nullcontext(), _second_run(block)


@contextmanager
def _second_run(block: nn.Module) -> Iterator[None]:
    """While it lasts, BatchNorms leave their running statistics alone, which the first run has moved already."""
    norms: list[Any] = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)
