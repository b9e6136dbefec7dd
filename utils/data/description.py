"""The YAML that describes a data set, read as data and checked.

A data set is data from a stranger: its YAML runs nothing, and `download:` is ignored.
"""

from __future__ import annotations

import math
import os
import re
import reprlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from ultralytics.nn.autobackend import check_class_names
from ultralytics.utils import LOGGER

from models.errors import UserError, did_you_mean
from models.files import why_no_file
from models.spec import MAX_CLASSES
from models.yaml_numbers import load_yaml
from utils.data import scenes, shapes
from utils.data.drawn import DrawnSet, drawn_folder, ensure_drawn
from utils.data.labels import foreign_labels, form_of, source_folder
from utils.paths import ROOT, find_file, is_path, spellings, without_dots
from utils.text import class_names, printable
from utils.writing import write_text

SHAPES, CUT_OUTS, SCENES = (ROOT / "data" / name for name in ("shapes.yaml", "cutouts.yaml", "scenes.yaml"))
BUILT_IN = {"detect": SHAPES, "segment": SHAPES, "classify": CUT_OUTS}  # by task: what is used where no data is named
DRAWN: dict[Path, DrawnSet] = {SHAPES: shapes.Recipe(), CUT_OUTS: shapes.Recipe(), SCENES: scenes.Recipe()}
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}  # as tools name them
SPLIT_OF = {word: split for split, words in SPLIT_FOLDERS.items() for word in words}
DATA_KEYS = (
    "path",
    "train",
    "val",
    "validation",
    "test",
    "names",
    "nc",
    "channels",
    "kpt_shape",
    "flip_idx",
    "download",
)
MAX_YAML = 1 << 20  # bytes


def load_dataset(data: str | Path, split: str = "val", root: str | None = None, task: str = "detect") -> dict[str, Any]:
    """Return the checked description of a data set, in the form that ultralytics keeps in `self.data`.

    Args:
        data: a YAML file, or its bare name in this repository's data folder (`shapes`, `coco128.yaml`). A built-in
            set is drawn when it is not there yet. To classify also a folder with train/CLASS and val/CLASS.
        split: the split that will be validated; 'test' must then be described as well as 'train' and 'val'.
        root: where the data set's folder was before: there it is looked for first, if `path` can mean that.
        task: that it is for.

    Returns:
        train, val, test: absolute path of a folder or a list file, or a list of them (test may be None); nc; names
        {int: str}; channels; path: the root folder; yaml_file; kpt_shape where the file has it.

    Raises:
        UserError: anything is wrong or missing; the message names the file and the key.
    """
    if task == "classify" and Path(data).is_dir():
        file = Path(data).resolve()
        described = describe_folders(file)
    else:
        if foreign := foreign_source(Path(data)):
            raise UserError(f"a data set is named by its YAML, not by {data}{foreign}")
        file = find_file(data, "data").resolve()
        described = read_yaml(file)
    if "download" in described:
        LOGGER.warning(f"{file.name}: the key 'download' is ignored, nothing is downloaded or run")
    if recipe := DRAWN.get(file):
        described["path"] = str(ensure_drawn(drawn_folder(file.parent, recipe), recipe).parent / described["path"])
    if described.get("val") is None and "validation" in described:  # as ultralytics has it
        described["val"] = described["validation"]
    required = ("train", "val", "test") if split == "test" else ("train", "val")
    check_keys(described, required, file)
    names = names_of(described, file)
    roots = find_roots(described.get("path"), file, root)
    found = {key: find_split(described.get(key), key, roots, file, key in required) for key in ("train", "val", "test")}
    keypoints = {"kpt_shape": check_kpt_shape(described["kpt_shape"], file)} if "kpt_shape" in described else {}
    return {
        **found,
        **keypoints,
        "nc": len(names),
        "names": names,
        "channels": check_channels(described.get("channels", 3), file),
        "path": roots[0],
        "yaml_file": str(file),
    }


def foreign_source(path: Path) -> str:
    """Return the end of a sentence that names labels of another tool in a file, or in a folder; empty without any."""
    if path.is_dir():
        return foreign_labels([], path)
    form = form_of(path)
    if form is None:
        return ""
    source = path if form.many and split_in([path.stem]) is None else source_folder(path)
    return f", which holds {form.what_to_do(source)}"


def split_in(names: Iterable[str]) -> str | None:
    """Return the split that the first of some names says that says one, such as valid or instances_train2017."""
    words = (word for name in names for word in re.findall(r"[a-z]+", name.lower()))
    return next((SPLIT_OF[word] for word in words if word in SPLIT_OF), None)


def describe_folders(folder: Path) -> dict[str, Any]:
    """Return the description of a data set of class folders, such as train/cat and val/cat.

    Classes are numbered by the names of their folders, in order; ImageNet's codes stand for its names.

    Raises:
        UserError: there is no train or no val folder, or no class in the first.
    """
    found = {
        split: next((name for name in names if (folder / name).is_dir()), None)
        for split, names in SPLIT_FOLDERS.items()
    }
    for split in ("train", "val"):
        if found[split] is None:
            raise UserError(
                f"{folder} has no folder {split}: expected train/CLASS/*.jpg and val/CLASS/*.jpg, with a folder for "
                f"each class"
            )
    classes = class_folders(folder / str(found["train"]))
    if not classes:
        raise UserError(f"{folder / str(found['train'])} has no folders, expected one for each class")
    return {"path": str(folder), **found, "names": codes_as_names(classes)}


def class_folders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without hidden ones and links to a folder above."""
    above = {place := Path(os.path.realpath(folder)), *place.parents}
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith(".") and Path(os.path.realpath(entry)) not in above
    )


def codes_as_names(names: list[str] | dict[int, str]) -> dict[int, str]:
    """Return names of classes by number, with ImageNet's names for its codes, such as n01440764."""
    return check_class_names(names) if names else {}


def read_yaml(file: Path, what: str = "data set", keys: str = "train, val and names") -> dict[str, Any]:
    """Return the mapping in `file`, read as plain data.

    Args:
        file: one that is there.
        what: it should describe, for messages.
        keys: examples of those that it should have.

    Raises:
        UserError: it is no YAML, or no mapping.
    """
    if problem := why_no_file(file):
        raise UserError(f"{file} {problem}")
    if file.stat().st_size > MAX_YAML:
        raise UserError(f"{file} is larger than {MAX_YAML >> 20} MB, so it is not the YAML of a {what}")
    try:
        described = load_yaml(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{file} is not valid YAML: {line}{error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(described, dict):
        raise UserError(f"{file}: expected keys such as {keys}, got {kind_of(described)}")
    return described


def kind_of(value: object) -> str:
    """Return a short description of a value that a YAML file holds, for a message."""
    return "nothing" if value is None else f"{type(value).__name__} {reprlib.repr(value)}"


def check_keys(described: dict[str, Any], required: Iterable[str], file: Path) -> None:
    """Raise UserError when a required key is missing, with the key that was perhaps meant to be it."""
    for key in required:
        if described.get(key) is None:
            unknown = (str(k) for k in described if k not in DATA_KEYS)
            guesses = (f"; '{k}' is unknown{hint}" for k in unknown if (hint := did_you_mean(k, DATA_KEYS)))
            state = "is empty" if key in described else "is missing"
            raise UserError(f"{file}: the key '{key}' {state}{next(guesses, '')}")


def read_names(file: Path) -> dict[int, str]:
    """Return the class names of a data set, whose pictures need not be there; UserError when it is wrong."""
    return names_of(read_yaml(file), file)


def names_of(described: dict[str, Any], file: Path) -> dict[int, str]:
    """Return the class names that a YAML has, or else those of as many classes as it says."""
    nc = check_nc(described.get("nc"), file)
    if nc is None:
        check_keys(described, ("names",), file)
    return check_names(described.get("names"), nc, file)


def check_names(names: object, nc: int | None, file: Path) -> dict[int, str]:
    """Return the class names as {0: name, 1: name, …}; without any, those that ultralytics gives to `nc` classes."""
    if names is None and nc is not None:
        return {key: f"class_{key}" for key in range(nc)}
    if not isinstance(names, (list, dict)) or not names:
        raise UserError(f"{file}: names must be a list, or a mapping from 0, 1, … to names, not {kind_of(names)}")
    if nc not in (None, len(names)):
        raise UserError(f"{file}: nc is {nc}, but names has {len(names)} classes")
    names = numbered(names.items(), file) if isinstance(names, dict) else dict(enumerate(names))
    ordered = {key: check_name(names[key], key, file) for key in sorted(names)}
    try:
        class_names(ordered)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    name, count = Counter(ordered.values()).most_common(1)[0]
    if count > 1:
        raise UserError(f"{file}: names has '{name}' {count} times, so its classes cannot be told apart")
    return ordered


def numbered(names: Iterable[tuple[object, object]], file: Path) -> dict[int, object]:
    """Return names by their number, which a YAML may have as a text."""
    items = [
        (int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 10 else key, name) for key, name in names
    ]
    for key, _ in items:
        if not isinstance(key, int) or isinstance(key, bool) or not 0 <= key < len(items):
            raise UserError(
                f"{file}: names must be numbered from 0 to {len(items) - 1} without gaps, but has {kind_of(key)}"
            )
    named = {key: name for key, name in items if isinstance(key, int)}
    if len(named) < len(items):
        twice = next(key for key, count in Counter(key for key, _ in items).items() if count > 1)
        raise UserError(f"{file}: names has class {twice} more than once")
    return named


def check_name(name: object, key: int, file: Path) -> str:
    """Return one class name as text; a number is a name too, such as a digit's or a coin's."""
    if isinstance(name, bool):
        raise UserError(
            f"{file}: class {key} of names is {str(name).lower()}, so put it in quotes: YAML takes yes, no, on and off "
            "for true and false"
        )
    if not isinstance(name, (str, int, float)) or not str(name).strip():
        raise UserError(f"{file}: class {key} of names must be a text, not {kind_of(name)}")
    if str(name) != printable(name):
        raise UserError(f"{file}: class {key} of names holds characters that cannot be printed: {name!r}")
    return str(name)


def check_nc(nc: object, file: Path) -> int | None:
    """Return the number of classes that the file says, if it does."""
    count = whole(nc)
    if nc is not None and (count is None or not 1 <= count <= MAX_CLASSES):
        raise UserError(f"{file}: nc must be a whole number from 1 to {MAX_CLASSES}, not {kind_of(nc)}")
    return count


def check_channels(channels: object, file: Path) -> int:
    """Return the number of channels of the pictures."""
    count = whole(channels)
    if count is None or count < 1:
        raise UserError(f"{file}: channels must be a whole number of at least 1, not {kind_of(channels)}")
    return count


def whole(value: object) -> int | None:
    """Return a whole number, which a YAML may also have as a text or as a float, as ultralytics takes it."""
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float, str)) else float(value)
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None


def check_kpt_shape(shape: object, file: Path) -> list[int]:
    """Return the number of keypoints and of their coordinates; detection skips those columns of the labels."""
    if isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape):
        return shape
    raise UserError(f"{file}: kpt_shape must be two whole numbers, such as [17, 3], not {kind_of(shape)}")


def find_roots(path: object, file: Path, before: str | None = None) -> list[Path]:
    """Return the folders that splits may be relative to: beside the file first, then as YOLOv5 understands `path`.

    What a relative `path` means depends on the current folder; if it can mean the folder `before`, that is the first.
    """
    if path is not None and not is_path(path):
        raise UserError(f"{file}: path must be the data set's folder, not {kind_of(path)}")
    candidates = [
        without_dots(base / Path(spelt).expanduser())
        for spelt in spellings(path or "")
        for base in (file.parent, Path.cwd(), ROOT)
    ]
    for spelt in spellings(path or ""):
        tail = [part for part in Path(spelt).parts if part not in ("..", "~")]
        if before is not None and tail and [*Path(before).parts[-len(tail) :]] == tail:
            candidates.insert(0, Path(before))
    roots = [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]
    if not roots:
        looked = " and ".join(map(str, dict.fromkeys(candidates)))
        raise UserError(f"{file}: the data set's folder (path: {path}) is not there; looked for {looked}")
    return roots


def find_split(value: object, key: str, roots: list[Path], file: Path, required: bool) -> str | list[str] | None:
    """Return the absolute path or paths of a split; one that is not required may be missing."""
    if value is None:
        return None
    paths = []
    for entry in (value if isinstance(value, list) else [value]) or [value]:
        if not is_path(entry):
            raise UserError(f"{file}: {key} must be a folder, a list file or a list of them, not {kind_of(entry)}")
        paths.append(find_source(entry, key, roots, file, required))
    return paths if isinstance(value, list) else paths[0]


def find_source(entry: str, key: str, roots: list[Path], file: Path, required: bool) -> str:
    """Return the absolute path of one folder or list file of a split."""
    parts = [part for spelt in spellings(entry) for part in (spelt, spelt.removeprefix("../"))]  # Roboflow's ../train
    choices = [root / part for root in roots for part in parts]
    path = next((choice for choice in choices if choice.exists()), choices[0])
    path = path.resolve() if path.is_file() else without_dots(path)
    if required and not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise UserError(f"{file}: {key} names {path}, which is not there{near}")
    if path.is_file() and path.suffix.lower() != ".txt":
        raise UserError(
            f"{file}: {key} must be a folder of pictures or a .txt list of them, not {path}{foreign_source(path)}"
        )
    return str(path)


def write_data_yaml(data: dict[str, Any], path: Path) -> None:
    """Write a checked data set with absolute paths, in the form that ultralytics' validator reads."""
    keys = ("train", "val", "test", "nc", "names", "channels", "kpt_shape")
    described = {"path": str(data["path"]), **{key: data[key] for key in keys if data.get(key) is not None}}
    write_text(path, yaml.safe_dump(described, sort_keys=False))
