"""Batches that a model can be trained on: of pictures of a size that it takes, and of several where it needs that.

A network with BatchNorm does not train on one picture where its maps hold a single value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from ultralytics.cfg import get_cfg

from models import DetectionModel
from models.errors import UserError
from models.summary import BATCH_NORMS, on_meta, run_on_meta
from utils.data.quad import JOINED
from utils.distributed.group import group_size, is_shared
from utils.distributed.shards import share_of_batch


def check_batches(model: DetectionModel, options: dict[str, Any], pictures: int) -> None:
    """Check the options of a new run that make its batches.

    Args:
        model: the one to train.
        options: of the run; those that are missing are ultralytics' defaults.
        pictures: that it is trained on.

    Raises:
        UserError: the model takes no such batches.
    """
    options = {**vars(get_cfg()), **options}
    if model.only_size:
        check_only_size(model, options)
    if pictures < group_size():
        raise UserError(f"{group_size()} processes cannot share {pictures} pictures to train on: start fewer")
    share = min(pictures // group_size(), share_of_batch(options["batch"]))
    if options.get("image_weights") and options["rect"]:
        raise UserError("--image-weights shows pictures in any order, --rect by their shape: leave one of them out")
    if options.get("quad"):
        check_joins(options, share)
        share //= JOINED
    if share == 1 and not (is_shared() and options["sync_bn"]):
        check_trains_on_one(model, batch_side(options), options["multi_scale"])


def check_joins(options: dict[str, Any], share: int) -> None:
    """Raise UserError unless `share` pictures, those of a batch that a process has, can be joined four at a time."""
    if options["multi_scale"]:
        raise UserError("--multi-scale takes back what --quad enlarges: leave one of them out")
    if options["batch"] % (JOINED * group_size()) or share < JOINED:
        processes = f" in each of {group_size()} processes" if is_shared() else ""
        has = f"{share} pictures{processes}" if share > 0 else "a number of pictures that is not known before"
        raise UserError(f"--quad joins {JOINED} pictures: give a --batch-size that is a multiple of that, not {has}")


def batch_side(options: Mapping[str, Any]) -> int:
    """Return the side in pixels of the pictures of a batch: --imgsz, or that of four that are joined."""
    return options["imgsz"] * (2 if options.get("quad") else 1)


def check_only_size(model: DetectionModel, options: dict[str, Any]) -> None:
    """Raise UserError when a model that takes pictures of one size is to be trained on others."""
    height, width = model.only_size or (0, 0)
    only = f"{model.spec.name} takes pictures of {height}x{width} pixels only"
    if height != width:
        raise UserError(f"{only}, and training pictures are square: build it for a square with img_size")
    for key, flag in {"rect": "--rect", "multi_scale": "--multi-scale", "quad": "--quad"}.items():
        if options.get(key):
            raise UserError(f"{only}: leave out {flag}")
    if rounded_side(model, options["imgsz"]) != height:
        raise UserError(f"{only}, not of {options['imgsz']}: give --imgsz {height}, or the YAML another img_size")


def trains_on_one(model: DetectionModel, imgsz: int, multi_scale: float) -> bool:
    """Return whether a model trains on a batch of one picture; BatchNorm needs two values of a channel.

    Args:
        model: the one to train.
        imgsz: side of the pictures in pixels.
        multi_scale: part by which it is varied.
    """
    side = smallest_side(model, imgsz, multi_scale)
    return side > least_side(model) and fewest_values(model, side) > 1


def check_trains_on_one(model: DetectionModel, imgsz: int, multi_scale: float) -> None:
    """Raise UserError when a model does not train on a batch of one picture; arguments as above."""
    if not trains_on_one(model, imgsz, multi_scale):
        side = smallest_side(model, imgsz, multi_scale)
        varied = " (--multi-scale)" if multi_scale else ""
        raise UserError(
            f"{model.spec.name} does not train on one picture of {side}x{side} pixels{varied} at a time, which can "
            "leave BatchNorm a single value: give a larger --batch-size, more pictures, or a larger --imgsz"
        )


def smallest_side(model: DetectionModel, imgsz: int, multi_scale: float) -> int:
    """Return the least side in pixels of the batches of a training, as ultralytics makes them; arguments as above."""
    stride = least_side(model)
    return max(stride, int(rounded_side(model, imgsz) * (1 - multi_scale))) // stride * stride


def rounded_side(model: DetectionModel, imgsz: int) -> int:
    """Return the side in pixels that ultralytics makes of `--imgsz`."""
    return math.ceil(imgsz / least_side(model)) * least_side(model)


def least_side(model: DetectionModel) -> int:
    """Return the side in pixels that ultralytics trains on at least, and by multiples of which it varies sides.

    It trains on no single picture of that side, whatever the norms of the network.
    """
    return max(int(model.stride.max()), 32)


def fewest_values(model: DetectionModel, side: int) -> float:
    """Return of how many values of a channel, at least, a BatchNorm takes the mean in a picture of a side in pixels."""
    counts = [math.inf]

    def count(x: Tensor) -> Tensor:
        counts.append(x.numel() / x.shape[1])
        return x

    ghost = on_meta(model)
    norms = [m for m in ghost.modules() if type(m) in BATCH_NORMS]
    for norm in norms:
        norm.__dict__["forward"] = count
    if norms:
        run_on_meta(ghost, (side, side))
    return min(counts)
