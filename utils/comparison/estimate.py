"""How long a training will take, from a few steps on noise."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils._pytree import tree_leaves
from ultralytics.utils.torch_utils import select_device, time_sync

from models import create_model

STEPS = 2  # that are timed, after one that is not
OVERHEAD = 1.25  # what loading pictures, the loss and the optimizer add, as a ratio


@dataclass(frozen=True)
class Work:
    """What one epoch of a training is.

    Attributes:
        train: pictures of the train split.
        val: pictures of the val split.
        batch: pictures a step.
        side: of the pictures, in pixels.
        channels: of the pictures.
        classes: of the data set.
        device: as --device names it.
    """

    train: int
    val: int
    batch: int
    side: int
    channels: int
    classes: int
    device: str = ""


def work_of(data: Mapping[str, Any], pictures: Mapping[str, Sequence[str]], args: argparse.Namespace) -> Work:
    """Return what an epoch on a data set is.

    Args:
        data: what `load_dataset` returned.
        pictures: of its splits, as `check_images` returned them.
        args: the options batch_size, imgsz and device, of which the first counts.
    """
    return Work(
        train=len(pictures["train"]),
        val=len(pictures["val"]),
        batch=args.batch_size,
        side=args.imgsz,
        channels=data["channels"],
        classes=data["nc"],
        device=args.device[0],
    )


def epoch_seconds(cfg: dict[str, Any], work: Work, teacher: Module | None = None) -> float:
    """Return about how long one epoch takes: steps on noise, forward and backward, and the val split forward.

    Args:
        cfg: the content of the model YAML.
        work: what an epoch is.
        teacher: a network that sees each picture of the train split as well.

    Raises:
        ConfigError, UserError: the model YAML is wrong, or takes no such pictures.
    """
    device = select_device(work.device, verbose=False)
    model = create_model(cfg, ch=work.channels, nc=work.classes).to(device)
    images = torch.rand(min(work.batch, work.train), work.channels, work.side, work.side, device=device)
    step = min(_step(model, images) for _ in range(1 + STEPS))
    step += _forward(teacher.to(device), images) if teacher else 0
    return (OVERHEAD * step * work.train + _forward(model, images) * work.val) / len(images)


def _forward(model: Module, images: Tensor) -> float:
    """Return the seconds of one pass forward."""
    with torch.inference_mode():
        start = time_sync()
        model.eval()(images)
        return time_sync() - start


def _step(model: Module, images: Tensor) -> float:
    """Return the seconds of one pass forward and backward."""
    start = time_sync()
    outputs = [leaf for leaf in tree_leaves(model.train()(images)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    torch.stack([output.float().mean() for output in outputs]).sum().backward()
    model.zero_grad()
    return time_sync() - start
