"""How long each row of a model takes in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from models.summary import RowModel, slots_text


def time_rows(model: RowModel, run: Callable[[], Any]) -> tuple[Any, list[float]]:
    """Return what a run of a model gives, and how long each of its rows took, in milliseconds.

    Args:
        model: whose rows are timed.
        run: runs it once, row after row.
    """
    starts: list[float] = []
    ends: list[float] = []
    hooks = []
    for module in model.model:
        hooks += [
            module.register_forward_pre_hook(lambda *_: starts.append(_now())),
            module.register_forward_hook(lambda *_: ends.append(_now())),
        ]
    try:
        output = run()
    finally:
        for hook in hooks:
            hook.remove()
    return output, [(end - start) * 1e3 for start, end in zip(starts, ends, strict=True)]


def _now() -> float:
    """Return the time in seconds, when a GPU has done what it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def row_times_table(model: RowModel, times: list[float]) -> str:
    """Return the rows of a model with their times in milliseconds as text, and the share that each has."""
    total = sum(times)
    lines = [f"{'slot':>5}  {'module':<24}{'ms':>9}{'share':>8}"]
    for node, spent in zip(model.nodes, times, strict=True):
        lines.append(f"{slots_text(node):>5}  {node.row.module:<24}{spent:>9.2f}{spent / total:>8.1%}")
    return "\n".join([*lines, f"{'':>5}  {'all rows':<24}{total:>9.2f}{1:>8.1%}"])
