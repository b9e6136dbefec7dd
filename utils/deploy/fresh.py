"""Models without training: initial weights with calibrated BatchNorms, and random ones for comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models import DetectionModel, create_model
from models.spec import ModelSpec
from models.summary import check_levels
from utils.data.samples import make_pictures
from utils.deploy.randomize import norms_with_statistics, randomize_
from utils.sizes import other_shape, third_shape

VARIANCE_MARGIN = 1.35  # of the variances of fresh weights
LEAST_VARIANCE = 3  # of a BatchNorm, in squares of its mean
MAP_CELLS = 4  # of the coarsest map, along a side of a picture
MAP_CELLS_END2END = 6  # so that the smallest picture has as many candidates as a head without NMS gives boxes


def fresh_model(cfg: str | Path | Mapping[str, Any] | ModelSpec) -> DetectionModel:
    """Return a model with the initial weights of seed 0, whose BatchNorms have seen the real photographs.

    With the statistics that BatchNorms start from, the numbers in a deep network of many branches grow beyond what
    float32 can compare.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(cfg)
        side = 4 * int(model.stride.max())
        size = model.only_size or (side, side)
        check_levels(model, size)
        calibrate_batch_norms(model, torch.stack(list(make_pictures(size, model.spec.ch).values())))
    return model


def calibrate_batch_norms(model: nn.Module, images: Tensor) -> None:
    """Set the statistics of all BatchNorms to those of one batch (B, ch, H, W), and leave `model` in eval mode.

    Variances are set a little larger than seen: exactly normalized, a deep random network multiplies differences by
    so much that rounding shows in its boxes.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean of what it sees
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        if norm.running_var is not None:
            norm.running_var *= VARIANCE_MARGIN
    model.eval()


def random_model(cfg: str | Path | Mapping[str, Any] | ModelSpec, seed: int = 0) -> DetectionModel:
    """Return a model in which every term counts, and whose boxes differ from picture to picture.

    Statistics of BatchNorms are those of pictures, each moved by a random share: with statistics that have nothing to
    do with what they see, deep networks forget what they are shown. No mean comes near its spread: a difference of two
    large numbers would show rounding, not what fusing or writing does.
    """
    model = create_model(cfg)
    randomize_(model, seed)
    calibrate_batch_norms(model, torch.stack(list(make_pictures(sizes_for(model)[0], model.spec.ch).values())))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in norms_with_statistics(model):
            shift = torch.empty_like(norm.running_mean).normal_(0, 0.1, generator=generator)
            norm.running_mean += shift * norm.running_var.sqrt()
            norm.running_var *= torch.empty_like(shift).uniform_(0.8, 1.25, generator=generator)
            norm.running_var.copy_(norm.running_var.maximum(LEAST_VARIANCE * norm.running_mean.square()))
    return model


def sizes_for(model: DetectionModel) -> tuple[tuple[int, int], ...]:
    """Return the sizes that a model is compared at, a square first, then others; one alone where it takes no other."""
    if model.only_size:
        return (model.only_size,)
    stride = int(model.stride.max())
    side = stride * (MAP_CELLS_END2END if model.end2end else MAP_CELLS)
    return (side, side), other_shape((side, side), stride), third_shape((side, side), stride)
