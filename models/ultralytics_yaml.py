"""ultralytics' model YAMLs in our language: one file for all sizes, and the rules by which its parser reads rows.

`scales` holds depth, width and the most channels of each size. Which of them is built, the file's name says, as it does
to ultralytics: yolo11s-mine.yaml is size s. The YAMLs of YOLOv3 and YOLOv9 have no `scales`, nor had those of YOLOv6
and YOLOv8 once. Checkpoints hold such YAMLs as well.
"""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ultralytics.utils import LOGGER

from models.errors import ConfigError

KEYS = ("scales", "scale", "reg_max")  # that no other model YAML has
OLD_NAME = re.compile(r"yolov[3689]")  # of files without these keys; YOLOv5's, of the same names, have anchors
DARKNETS = {"Conv", "Bottleneck"}, {"Conv", "nn.MaxPool2d", "nn.ZeroPad2d"}  # the words of YOLOv3's backbones
GELAN = {"RepNCSPELAN4", "ELAN1", "AConv", "ADown", "SPPELAN"}  # words of YOLOv9
SCALES = ("depth_multiple", "width_multiple", "max_channels")  # what `scales` gives of each size, by our keys
C3K_SIZES, RESIDUAL_SIZES = ("m", "l", "x"), ("l", "x")  # in which C3k2 and A2C2f have more inside
THEIR_HEADS: dict[str, tuple[str, dict[str, Any]]] = {  # of boxes; our head and its options for each
    "Detect": ("Detect", {}),
    "Segment": ("Segment", {}),
    "v10Detect": ("Detect", {}),
    "Segment26": ("Segment", {"all_levels": True}),
}
CLASS_HEADS = ("Classify",)  # of whole pictures, which are the same here
DEPTHWISE = {"C3k2", "A2C2f", "C2fCIB", "v10Detect"}  # words of YOLOs whose class scores come from depthwise ones


def is_theirs(content: Mapping[str, Any], name: str = "") -> bool:
    """Return whether a YAML is to be read by the rules of ultralytics.

    Those of YOLOv3 and YOLOv9 have no key that says so. Their heads have no anchors, and the name of the file is
    theirs, or its backbone has the words of YOLOv3's and no other, or there are words of YOLOv9 and neither
    depth_multiple nor width_multiple, which YAMLs of our own have. Heads that ultralytics alone has say so as well.

    Args:
        content: the YAML.
        name: of its file; empty for one that is read already, as checkpoints hold them.
    """
    if any(key in content for key in KEYS):
        return True
    words = {key: [row[2] for row in rows if _is_row(row)] for key, rows in _sections(content).items()}
    head: Any = content["head"][-1] if words.get("head") else None
    if not _is_row(head) or head[2] not in THEIR_HEADS or content.get("anchors") or _has_anchors(head[3]):
        return False
    unscaled = not {"depth_multiple", "width_multiple"} & content.keys()
    return (
        THEIR_HEADS[head[2]] != (head[2], {})
        or bool(OLD_NAME.search(name))
        or (bool(name) and set(words.get("backbone", ())) in DARKNETS)
        or (unscaled and not GELAN.isdisjoint(itertools.chain(*words.values())))
    )


def translate(content: Mapping[str, Any], name: str, legacy: bool | None = None) -> dict[str, Any]:
    """Return an ultralytics YAML, of the size that is meant, in our language; what is no row stays as it is.

    Args:
        content: the YAML.
        name: of its file.
        legacy: whether plain convolutions lead to the head's class scores; None: as ultralytics builds it today.

    Raises:
        ConfigError: `scales` is no mapping of sizes to three numbers each, or has not the size that is meant.
    """
    found = {key: value for key, value in content.items() if key not in KEYS}
    size = ""
    if content.get("scales"):
        size = _choose_size(content["scales"], content.get("scale"), name)
        found |= zip(SCALES, content["scales"][size], strict=True)
    sections = _sections(found)
    words = {row[2] for rows in sections.values() for row in rows if _is_row(row)}
    if "v10Detect" in words:
        found["end2end"] = True
    for key, rows in sections.items():
        found[key] = [_translate_row(row, size) if _is_row(row) else row for row in rows]
    if sections.get("head") and _is_row(found["head"][-1]) and found["head"][-1][2] in THEIR_HEADS:
        legacy = not words & DEPTHWISE if legacy is None else legacy
        _describe_head(found["head"][-1][3], content.get("reg_max"), legacy)
    return found


def _choose_size(scales: Any, scale: Any, name: str) -> str:
    """Return the size that a YAML means: by its key `scale`, else by the letter in its name, else the first."""
    if not isinstance(scales, Mapping) or not all(
        isinstance(size, str) and isinstance(numbers, list | tuple) and len(numbers) == len(SCALES)
        for size, numbers in scales.items()
    ):
        form = "n: [0.5, 0.25, 1024], which are depth, width and the most channels"
        raise ConfigError(f"{name}: scales must give three numbers for each size, such as {form}")
    sizes = ", ".join(scales)
    letter = re.search(r"yolo(?:e-)?v?\d+([nslmx])", name)
    size = scale or (letter[1] if letter else "")
    if not size:
        size = next(iter(scales))
        if len(scales) > 1:
            LOGGER.warning(
                f"{name} is built in size {size}, the first of {sizes}: its name has no letter of a size, such as the "
                "s of yolo11s-mine.yaml"
            )
    if not isinstance(size, str) or size not in scales:
        by = "key scale" if scale else "name"
        raise ConfigError(f"{name} means size {size!r} by its {by}, but its scales are {sizes}")
    return size


def _sections(content: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return the lists of rows of a YAML, by key."""
    return {key: content[key] for key in ("backbone", "head") if isinstance(content.get(key), list)}


def _is_row(row: Any) -> bool:
    """Return whether a value has the form [from, number, module, args]."""
    return isinstance(row, list | tuple) and len(row) == 4 and isinstance(row[2], str) and isinstance(row[3], list)


def _translate_row(row: list[Any], size: str) -> list[Any]:
    """Return a row with the arguments that our word takes; a trailing mapping is in our language already."""
    source, number, word, args = row
    args = [_literal(arg) for arg in args]
    options = dict(args.pop()) if args and isinstance(args[-1], Mapping) else {}
    if word == "C3k2" and size in C3K_SIZES:
        args[1:2] = [True]
    elif word == "A2C2f":
        args += [True, 1.2] if size in RESIDUAL_SIZES else []
        args[2:3] = [1 if area == -1 else area for area in args[2:3]]  # -1 where there is no attention
    elif word == "Bottleneck":
        names = dict(zip(("shortcut", "g", "k", "e"), args[1:], strict=False))
        args, options = args[:1], {"k": [3, 3], **names, **options}
    elif word in THEIR_HEADS:
        word, more = THEIR_HEADS[word]
        options = {**more, **options}
    return [source, number, word, [*args, options] if options else args]


def _literal(value: Any) -> Any:
    """Return what text such as "None" means in a row; other text stays."""
    if isinstance(value, str) and len(value) < 100:
        with suppress(ValueError, SyntaxError):
            return ast.literal_eval(value)
    return value


def _describe_head(args: list[Any], reg_max: Any, legacy: bool) -> None:
    """Say in the arguments of a head without anchors what ultralytics takes from other rows and from a key."""
    given = args.pop() if args and isinstance(args[-1], dict) else {}
    options = {"legacy": True} if legacy else {}
    options |= {"reg_max": reg_max} if reg_max is not None else {}
    args += filter(None, [{**({} if _has_anchors([*args, given]) else options), **given}])


def _has_anchors(args: list[Any]) -> bool:
    """Return whether the arguments of a head name or hold anchors."""
    return any(
        isinstance(arg, list) or arg == "anchors" or (isinstance(arg, dict) and "anchors" in arg) for arg in args
    )
