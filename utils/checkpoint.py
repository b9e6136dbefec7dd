"""The checkpoint: plain data and tensors, written whole or not at all, from which nothing but our registry builds.

`torch.load(weights_only=True)` reads it, and no path, URL or class name in it is ever acted upon. `last.pt` holds what
resuming needs (model, EMA, optimizer, ...); `best.pt` holds the EMA weights alone, under the same keys.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models import DetectionModel
from models.errors import ConfigError, UserError, WeightsError

FORMAT = "repyolo/1"
MAX_INFLATION = 1.05  # uncompressed to file size: torch does not compress, so more is a decompression bomb


def pack_model(model: DetectionModel) -> dict[str, Any]:
    """Return everything but the weights that it takes to build `model` again: plain data only."""
    names = model.names if isinstance(model.names, Mapping) else dict(enumerate(model.names))
    return {
        "format": FORMAT,
        "task": model.task,
        "yaml": model.spec.without_pretrained().as_dict(),
        "yaml_name": model.spec.name,
        "names": {int(i): str(name) for i, name in names.items()},
        "strides": [float(s) for s in model.stride],
        "imgsz": plain(model.imgsz),
    }


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write `content` to `path` so that a crash at any moment leaves the old file or the new one.

    Args:
        content: dicts, lists, strings, numbers and tensors; NumPy's are turned into these, anything else is refused.

    Raises:
        TypeError: `content` holds something else.
        OSError: the disk is full or the folder cannot be written; nothing is left of the attempt.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as f:
            torch.save(plain(content), f)
            f.flush()
            os.fsync(f.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name survives a power cut as well
    finally:
        os.close(folder)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint of ours holds.

    Raises:
        WeightsError: no such file, or not a checkpoint of RepYOLO; the message says what it seems to be.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            inflated = sum(entry.file_size for entry in archive.infolist())
        if inflated > MAX_INFLATION * path.stat().st_size + 1e6:
            raise WeightsError(f"{path} would unpack to {inflated / path.stat().st_size:.0f} times its size")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, EOFError, RuntimeError) as e:
        raise WeightsError(f"{path} is not a checkpoint: it is empty, truncated or another kind of file") from e
    except pickle.UnpicklingError as e:
        raise WeightsError(
            f"{path} holds pickled code, as YOLOv5 and ultralytics checkpoints do, and is not loaded: "
            "train from a YAML, or export it with the tool that made it"
        ) from e
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WeightsError(f"{path} is a file of tensors, but not a RepYOLO checkpoint (format {FORMAT})")
    return content


def load_checkpoint(path: str | Path) -> DetectionModel:
    """Return the model of a checkpoint, float32 in eval mode on the CPU, with its class names and image size.

    Raises:
        WeightsError: no such file, not a checkpoint of RepYOLO, or its weights do not fit its own YAML.
    """
    return build_model(read_checkpoint(path), path)


def build_model(content: Mapping[str, Any], path: str | Path) -> DetectionModel:
    """Return the model of a checkpoint that `read_checkpoint` has read. `path` is for messages."""
    try:
        model = DetectionModel({**content["yaml"], "yaml_file": str(content["yaml_name"])})
        names = {int(i): str(name) for i, name in content["names"].items()}
        if sorted(names) != list(range(model.nc)):
            raise ConfigError(f"{len(names)} class names for {model.nc} classes")
        model.names = names
        model.imgsz = content["imgsz"]
        model.load_state_dict({name: tensor.float() for name, tensor in content["ema"].items()})
    except (KeyError, TypeError, AttributeError, RuntimeError, UserError) as e:
        reason = " ".join(str(e).split())
        raise WeightsError(f"{path} is a damaged checkpoint: {reason[:300]}") from e
    model.pt_path = str(path)
    return model.eval()


def plain(value: Any) -> Any:
    """Return `value` as dicts, lists, strings, numbers, None and tensors on the CPU.

    Raises:
        TypeError: it holds anything else, which a safe checkpoint cannot.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")
