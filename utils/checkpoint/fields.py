"""The fields of a checkpoint: type, range and text of each, checked by one table before it is written and once read."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from models.backbones.weights import has_usual_form
from models.errors import UserError
from models.spec import MAX_CLASSES, TASKS
from utils.paths import is_path, is_utf8
from utils.sizes import MAX_IMGSZ
from utils.text import MAX_NAME, class_names, printable, shorten

MAX_COUNT = 2**63  # of epochs, steps and the like
MAX_RESUMED = MAX_COUNT // 2  # which leaves room for the steps that a resumed training takes


# Kinds of values ------------------------------------------------------------------------------------------------------
def is_count(value: Any) -> bool:
    """Return whether a value is a whole number of at least 0."""
    return type(value) is int and 0 <= value < MAX_COUNT


def is_number(value: Any) -> bool:
    """Return whether a value is a number, not finite ones included."""
    return type(value) in (int, float)


def is_finite(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return is_number(value) and math.isfinite(value)


def is_score(value: Any) -> bool:
    """Return whether a value is a finite number, or None where nothing was validated yet."""
    return value is None or is_finite(value)


def is_mapping(value: Any, holds: Callable[[Any], bool] = lambda _: True, keys: type = str) -> bool:
    """Return whether a value is a mapping whose keys are of one type and whose values are all of one kind."""
    return isinstance(value, Mapping) and all(type(key) is keys and holds(held) for key, held in value.items())


def is_list(value: Any, holds: Callable[[Any], bool]) -> bool:
    """Return whether a value is a list whose values are all of one kind."""
    return isinstance(value, list) and all(map(holds, value))


def is_text(value: Any) -> bool:
    """Return whether a value is a text that UTF-8 can hold."""
    return isinstance(value, str) and is_utf8(value)


def is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor of a form that networks here have."""
    return isinstance(value, Tensor) and has_usual_form(value)


def is_imgsz(value: Any) -> bool:
    """Return whether a value is an image size: one side, or a list of it or of height and width, in pixels."""
    sides = value if isinstance(value, list) else [value]
    return len(sides) in (1, 2) and all(type(side) is int and 0 < side <= MAX_IMGSZ for side in sides)


def is_plain(value: Any, levels: int = 4) -> bool:
    """Return whether a value is None, a number, a text, or lists and mappings of these, on so many levels."""
    if isinstance(value, Mapping | list):
        return levels > 0 and any(kind(value, lambda v: is_plain(v, levels - 1)) for kind in (is_list, is_mapping))
    return value is None or type(value) in (bool, int, float, str)


def is_names(value: Any) -> bool:
    """Return whether a value is the names of classes, numbered from 0, neither too many nor too long."""
    try:
        class_names(value)
    except UserError:
        return False
    return is_mapping(value, is_text, int)


def is_optimizer(value: Any) -> bool:
    """Return whether a value has the form of an optimizer's state: of each weight by number, and groups of them."""
    if not is_mapping(value) or not {"state", "param_groups"} <= value.keys():
        return False

    def is_setting(held: Any) -> bool:
        return held is None or type(held) in (bool, str) or is_finite(held) or is_list(held, is_finite)

    def is_group(group: Any) -> bool:
        return is_mapping(group, is_setting) and is_list(group.get("params"), is_count)

    def is_state(state: Any) -> bool:
        return is_mapping(state, lambda held: held is None or is_finite(held) or is_tensor(held))

    return is_mapping(value["state"], is_state, int) and is_list(value["param_groups"], is_group)


def is_splits(value: Any) -> bool:
    """Return whether a value is what a run remembers of its data set."""

    def is_split(held: Any) -> bool:
        counts = is_mapping(held) and all(is_count(held.get(key)) for key in ("pictures", "objects"))
        return counts and isinstance(held.get("names"), str) and isinstance(held.get("source"), str | list)

    return (
        is_mapping(value)
        and isinstance(value.get("path"), str)
        and all(is_split(value.get(split)) for split in ("train", "val"))
    )


def is_stopper(value: Any) -> bool:
    """Return whether a value is what early stopping remembers."""
    return is_mapping(value) and is_finite(value.get("best_fitness")) and is_count(value.get("best_epoch"))


def is_teaching(value: Any) -> bool:
    """Return whether a value is what a run remembers of its teacher."""
    return is_mapping(value) and is_mapping(value.get("adapters"), is_tensor) and isinstance(value.get("teacher"), str)


# The table ------------------------------------------------------------------------------------------------------------
Fields = dict[str, tuple[str, Callable[[Any], bool]]]  # what is expected, in words, and whether a value is that

MODEL: Fields = {  # of every checkpoint
    "task": (f"one of {', '.join(TASKS)}", lambda value: value in TASKS),
    "yaml": ("the keys of a model YAML", is_mapping),
    "yaml_name": ("the name of a file, in UTF-8", lambda value: is_path(value) and value not in (".", "..")),
    "names": (f"a text in UTF-8 of up to {MAX_NAME} characters for each of up to {MAX_CLASSES} classes", is_names),
    "strides": ("numbers above 0", lambda value: is_list(value, lambda one: is_finite(one) and one > 0)),
    "imgsz": (f"one side or height and width, of 1 to {MAX_IMGSZ} pixels", is_imgsz),
    "ema": ("tensors by name", lambda value: is_mapping(value, is_tensor)),
}
TRAINING: Fields = {  # of those that hold a training to resume, beside the others
    "model": ("tensors by name", lambda value: is_mapping(value, is_tensor)),
    "optimizer": ("the state of an optimizer", is_optimizer),
    "scaler": ("numbers by name", lambda value: is_mapping(value, is_finite)),
    "updates": ("a whole number of at least 0", is_count),
    "epoch": ("a whole number of at least 0", is_count),
    "epochs": ("a whole number of at least 1", lambda value: is_count(value) and value > 0),
    "best_fitness": ("a finite number or None", is_score),
    "stopper": ("best_fitness, a finite number, and best_epoch, a whole number", is_stopper),
    "history": ("numbers by name for each epoch", lambda value: is_list(value, lambda row: is_mapping(row, is_number))),
    "seed": ("a whole number of at least 0 or None", lambda value: value is None or is_count(value)),
}
KEPT: Fields = {  # of those that hold a training to resume, if no former version wrote them
    "options": ("options by name", lambda value: is_mapping(value, is_plain)),
    "splits": ("path, train and val of a data set", is_splits),
    "batch": ("a whole number of at least 1", lambda value: is_count(value) and value > 0),
}
OTHERS: Fields = {  # that need not be there
    "fused": ("True or False", lambda value: isinstance(value, bool)),
    "fitness": ("a finite number or None", is_score),
    "metrics": ("numbers by name", lambda value: is_mapping(value, is_number)),
    "teaching": ("adapters, tensors by name, and the digest of a teacher", is_teaching),
    "maps": ("a number of each class", lambda value: is_list(value, is_finite)),
}
FIELDS: Fields = {**MODEL, **TRAINING, **KEPT, **OTHERS}


def why_damaged(content: Mapping[str, Any]) -> str:
    """Return which field of a checkpoint of ours is missing or cannot be used, and what it should be, or nothing.

    Fields of other names are not looked at.
    """
    required = {**MODEL, **(TRAINING if "optimizer" in content else {}), **(KEPT if "options" in content else {})}
    if missing := next((name for name in required if name not in content), None):
        return f"its field {missing} is missing"
    for name in FIELDS:
        if name in content and (problem := why_wrong(name, content[name])):
            return f"its field {problem}"
    nc, names = content["yaml"].get("nc"), content["names"]
    if nc != len(names):
        return f"its field names has {len(names)} names, its field yaml {described(nc)} classes"
    return ""


def why_not_resumed(content: Mapping[str, Any]) -> str:
    """Return why a training cannot go on from the fields of a checkpoint, each of which is right by itself."""
    for name in ("updates", "epoch", "seed"):
        if (content[name] or 0) >= MAX_RESUMED:
            return f"its field {name} is {described(content[name])}, which no training comes to"
    done, best = content["epoch"] + 1, content["stopper"]["best_epoch"]
    return f"its field stopper has the best epoch {best}, of {done} epochs" if best > done else ""


def why_wrong(name: str, value: Any) -> str:
    """Return what a field of this name should be, if `value` is not that, or nothing."""
    expected, holds = FIELDS[name]
    return "" if holds(value) else f"{name} should be {expected}, not {described(value)}"


def described(value: Any) -> str:
    """Return what a field holds, in a few words."""
    if isinstance(value, Mapping | list):
        return f"a {type(value).__name__} such as {shorten(printable(reprlib.repr(value)))}"
    if isinstance(value, str):
        return shorten(printable(repr(value)))
    return "a tensor" if isinstance(value, Tensor) else shorten(printable(reprlib.repr(value)))
