"""The checkpoint: plain data and tensors, written whole or not at all, from which nothing but our registry builds.

`torch.load(weights_only=True)` reads it, and no path, URL or class name in it is ever acted upon. `last.pt` holds what
resuming needs (model, EMA, optimizer, ...); `best.pt` holds the EMA weights alone, under the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models import DetectionModel, create_model
from models.backbones.weights import load_plain
from models.blocks.rounding import RANGE_LOW, start_rounding, stop_rounding
from models.errors import WeightsError
from models.plugins import MissingPlugin
from models.spec import load_spec
from utils.checkpoint.fields import why_damaged
from utils.checkpoint.foreign import find_model
from utils.checkpoint.unpickle import read_pickled
from utils.text import class_names
from utils.writing import remove_partials, replacing

FORMAT = "repyolo/1"


def pack_model(model: DetectionModel) -> dict[str, Any]:
    """Return everything but the weights that it takes to build `model` again: plain data only."""
    return {
        "format": FORMAT,
        "task": model.task,
        "yaml": model.spec.without_pretrained().as_dict(),
        "yaml_name": model.spec.name,
        "names": class_names(model.names),
        "strides": [float(s) for s in model.stride],
        "imgsz": plain(model.imgsz),
        **({"fused": True} if model.is_fused() else {}),
    }


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write `content` to `path` so that a crash or a stop at any moment leaves the old file or the new one.

    What killed processes have left of earlier attempts in the folder is removed.

    Args:
        content: dicts, lists, strings, numbers and tensors; NumPy's are turned into these, anything else is refused.
            With a `format`, a checkpoint, of which nothing is written that `read_checkpoint` would refuse.

    Raises:
        TypeError: `content` holds something else.
        WeightsError: a field of a checkpoint is missing, or of a wrong type, range or text.
        OSError: the disk is full or the folder cannot be written; nothing is left of the attempt.
    """
    written = plain(content)
    if "format" in written and (problem := why_damaged(written)):
        raise WeightsError(f"{path} is not written, as it could not be read again: {problem}")
    remove_partials(path.parent)
    with replacing(path) as file:
        torch.save(written, file)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint of ours holds, each field of which has the type, range and text that it should have.

    Raises:
        WeightsError: no such file, not a checkpoint of RepYOLO, or a damaged one; the message says what is wrong.
    """
    try:
        content = load_plain(path)
    except WeightsError as e:
        raise explain_foreign(path) or e from e
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise WeightsError(f"{path} is a file of tensors, but not a RepYOLO checkpoint (format {FORMAT})")
    if problem := why_damaged(content):
        raise WeightsError(f"{path} is a damaged checkpoint: {problem}")
    return content


def explain_foreign(path: str | Path) -> WeightsError | None:
    """Return the error that says what to do with what `utils.convert` reads; None for any other file."""
    try:
        if find_model(read_pickled(path)) is None:
            return None
    except WeightsError:
        return None
    return WeightsError(
        f"{path} is a checkpoint of YOLOv5, YOLOv7 or ultralytics, which holds pickled code that is not loaded: "
        f"python -m utils.convert {path} makes it usable here"
    )


def load_checkpoint(path: str | Path) -> DetectionModel:
    """Return the model of a checkpoint, float32 in eval mode on the CPU, with its class names and image size.

    Raises:
        WeightsError: no such file, not a checkpoint of RepYOLO, or its weights do not fit its own YAML.
    """
    return build_model(read_checkpoint(path), path)


def build_model(content: Mapping[str, Any], path: str | Path) -> DetectionModel:
    """Return the model of a checkpoint that `read_checkpoint` has read. `path` is for messages."""
    try:
        spec = load_spec({**content["yaml"], "yaml_file": content["yaml_name"]})
        model = create_model(spec.without_pretrained())  # a file names no other file and no download
        if spec.task != content["task"]:
            raise ValueError(f"its head is to {spec.task}, its field task says {content['task']}")
        model.names, model.imgsz = class_names(content["names"]), content["imgsz"]
        if content.get("fused"):
            model = model.fuse()
        rounding = {name: model.get_submodule(name) for name in rounding_layers(content["ema"])}
        for layer in dict.fromkeys(rounding.values()):  # one may have several names
            start_rounding(layer)
        check_tensors(content["ema"], model, "ema")
        model.load_state_dict({name: tensor.float() for name, tensor in content["ema"].items()})
        learnt = {layer: stop_rounding(layer) for layer in dict.fromkeys(rounding.values())}
        model.ranges = {name: learnt[layer] for name, layer in rounding.items() if any(learnt[layer])}
    except MissingPlugin as e:
        raise WeightsError(f"{path}: {e}") from e
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RuntimeError) as e:
        reason = " ".join(str(e).split())
        raise WeightsError(f"{path} is a damaged checkpoint: {reason[:300]}") from e
    model.pt_path = str(path)
    return model.eval()


def check_tensors(state: Mapping[str, Tensor], model: nn.Module, field: str) -> None:
    """Check that the tensors of a checkpoint's field are those of a network, in number, shape and kind, without NaN.

    Raises:
        ValueError: they are others; says in one sentence which.
    """
    own = model.state_dict()
    if missing := [name for name in own if name not in state]:
        raise ValueError(f"its field {field} lacks {len(missing)} of the network's {len(own)} tensors: {missing[0]}")
    if others := [name for name in state if name not in own]:
        raise ValueError(f"its field {field} has {len(others)} tensors that its network has not: {others[0]}")
    for name, tensor in own.items():
        if state[name].shape != tensor.shape:
            shapes = f"{tuple(state[name].shape)}, in the network {tuple(tensor.shape)}"
            raise ValueError(f"its field {field} has a tensor {name} of the shape {shapes}")
        if tensor.is_floating_point() and not state[name].is_floating_point():
            kind = str(state[name].dtype).removeprefix("torch.")
            raise ValueError(f"its field {field} has {name} in {kind}, where the network has fractions")
    if wrong := [name for name, tensor in state.items() if bool(tensor.isnan().any())]:
        raise ValueError(f"its field {field} holds NaN in {len(wrong)} of {len(state)} tensors: {wrong[0]}")


def plain(value: Any) -> Any:
    """Return `value` as dicts, lists, strings, numbers, None and tensors on the CPU.

    Raises:
        TypeError: it holds anything else, which a safe checkpoint cannot.
    """
    if isinstance(value, np.generic):  # before the others: NumPy's float64 is a float
        return value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {plain(key): plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(v) for v in value]
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def rounding_layers(state: Mapping[str, Tensor]) -> list[str]:
    """Return the paths of the modules that rounded when their tensors were saved."""
    return [name.removesuffix(f".{RANGE_LOW}") for name in state if name.endswith(f".{RANGE_LOW}")]
