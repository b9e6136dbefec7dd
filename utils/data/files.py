"""The pictures of a data set's splits, as lists of files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from models.errors import UserError
from models.files import is_of_kernel, why_no_file
from utils.data.description import BUILT_IN, class_folders, codes_as_names, load_dataset
from utils.data.labels import check_label_files, check_objects, check_outlines, foreign_labels, label_paths
from utils.data.pictures import PICTURES, is_picture
from utils.data.scan import Settings
from utils.paths import spellings
from utils.text import decode, printable, shorten


def list_images(source: str | Sequence[str], root: str | Path = "") -> list[str]:
    """Return the sorted paths of all pictures of a split.

    Args:
        source: a folder, searched in depth; a `.txt` file with one path a line, relative to the list, to the data set
            or to the current folder; or several of them.
        root: the data set's folder.
    """
    sources = [source] if isinstance(source, str) else source
    files = [
        path for one in sources for path in (walk(one) if Path(one).is_dir() else read_image_list(Path(one), root))
    ]
    images = sorted(filter(is_picture, files))
    if not images:
        listed = f"; its first line is '{shorten(files[0])}'" if files and not Path(sources[0]).is_dir() else ""
        foreign = foreign_labels(sources, root) if root else ""
        looked = f"looked for {known_endings()}"
        raise UserError(f"there are no pictures in {', '.join(sources)} ({looked}){listed}{foreign}")
    if not any(map(os.path.lexists, images)):
        raise UserError(
            f"none of the {len(images)} pictures on {', '.join(sources)} is there, such as {shorten(images[0])}"
        )
    return images


def walk(folder: str) -> Iterable[str]:
    """Yield the files below `folder`, through links, without hidden ones."""
    for parent, files in folders_below(folder):
        yield from (os.path.join(parent, name) for name in files if not name.startswith("."))  # noqa: PTH118


def folders_below(folder: str) -> Iterable[tuple[str, list[str]]]:
    """Yield `folder` and those below it with the names of their files, through links, each once, hidden ones left out.

    One that cannot be read is named in a warning.
    """
    visited = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_warn):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        real = os.path.realpath(parent)
        if real in visited or is_of_kernel(real):  # a link to a folder above, or files without an end
            folders.clear()
            continue
        visited.add(real)
        yield parent, files


def _warn(error: OSError) -> None:
    LOGGER.warning(printable(f"the folder {error.filename} cannot be read: {error.strerror}"))


def read_image_list(file: Path, root: str | Path) -> Iterable[str]:
    """Yield the paths that a list of pictures names; where none of the folders has one, that of the current folder.

    Those that begin with `./` are relative to the list, as in YOLOv5.
    """
    if problem := why_no_file(file):
        raise UserError(f"the list of pictures {file} {problem}")
    try:
        lines = decode(file.read_bytes()).splitlines()
    except OSError as error:
        raise UserError(f"the list of pictures {file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"the list of pictures {file} {error}") from error
    for line in filter(None, map(str.strip, lines)):
        choices = [path for name in spellings(line) for path in listed_paths(name, file.parent, root)]
        yield next(filter(os.path.exists, choices), choices[0])


def listed_paths(name: str, folder: Path, root: str | Path) -> list[str]:
    """Return what a relative name on a list in `folder` may mean, the likeliest first."""
    beside = str(folder / name)
    return [beside] if name.startswith("./") else [name, beside, str(Path(root) / name)]


def check_images(
    data: dict[str, Any],
    splits: Iterable[str] = ("train", "val"),
    single_cls: bool = False,
    training: bool = False,
    task: str = "detect",
) -> dict[str, list[str]]:
    """Return the pictures of some splits, checked, and that there are labels; before any model is built.

    Args:
        data: what `load_dataset` returned.
        splits: those that will be used.
        single_cls: all classes are taken for one.
        training: the train split will be trained on.
        task: what the network does.

    Raises:
        UserError: a split has no pictures, or no label file for any of them, or there is nothing to train on; or
            pictures to classify are not in folders of known classes.
    """
    pictures = {}
    for split in splits:
        if not data.get(split):
            raise UserError(f"{data['yaml_file']} describes no {split} split")
        if task == "classify":
            check_class_folders(data, split)
            pictures[split] = [path for path, _ in class_pictures(data[split])]
            continue
        pictures[split] = list_images(data[split], data["path"])
        labels = check_label_files(pictures[split], split, data["path"])
        if training and split == "train":
            check_objects(labels, split, Settings.of(data, single_cls))
        if training and task == "segment":
            check_outlines(labels, split, Settings.of(data, single_cls))
    return pictures


def check_class_folders(data: dict[str, Any], split: str) -> None:
    """Raise UserError unless a split is one folder that holds folders of the classes of a data set alone."""
    if not isinstance(data[split], str) or not Path(data[split]).is_dir():
        raise UserError(f"{data['yaml_file']}: {split} must be one folder with a folder for each class")
    classes = codes_as_names(class_folders(Path(data[split])))
    known = set(codes_as_names(data["names"]).values())
    for name in classes.values():
        if name not in known:
            raise UserError(f"{data[split]} has a folder {name}, which is none of the {len(known)} classes of the set")
    if not classes:
        raise UserError(f"{data[split]} has no folders, expected one for each class")


def class_pictures(folder: str) -> list[tuple[str, str]]:
    """Return the path and the class of each picture of a split of class folders.

    Raises:
        UserError: there is none.
    """
    classes = class_folders(Path(folder))
    found = [
        (path, name)
        for file, name in zip(classes, codes_as_names(classes).values(), strict=True)
        for path in sorted(filter(is_picture, walk(str(Path(folder) / file))))
    ]
    if not found:
        raise UserError(f"there are no pictures in the class folders of {folder} (looked for {known_endings()})")
    return found


def known_endings() -> str:
    """Return the suffixes of pictures, for messages."""
    return ", ".join(sorted(PICTURES))


def files_of(data: dict[str, Any]) -> Iterable[str]:
    """Yield the files that make up a data set: its YAML, and of all its splits the lists, pictures and label files.

    Label files need not be there.
    """
    yield str(data["yaml_file"])
    for split in filter(data.get, ("train", "val", "test")):
        sources = [data[split]] if isinstance(data[split], str) else data[split]
        yield from filter(os.path.isfile, sources)
        with suppress(UserError):  # a split that this run does not use
            pictures = list_images(sources, data["path"])
            yield from pictures
            yield from label_paths(pictures)


def sources_of(data: dict[str, Any]) -> list[str]:
    """Return what a run must not write into: the folders of a data set's files, and those of them that are links."""
    folders, links = set(), set()
    for path in files_of(data):
        folders.add(os.path.dirname(path) or os.curdir)  # noqa: PTH120
        if os.path.islink(path):  # noqa: PTH114
            links.add(path)
    return [str(data["yaml_file"]), *sorted(folders), *sorted(links)]


def data_of_run(weights: Path) -> Path | None:
    """Return the data.yaml that a training leaves beside the folder of its weights; None where there is none."""
    left = weights.absolute().parent.parent / "data.yaml"
    return left if left.is_file() else None


def find_data(data: str, weights: Path, split: str = "val", task: str = "detect") -> dict[str, Any]:
    """Return a checked data set: the one named, else that of the weights' training, else the built-in one; log which.

    Args:
        data: a data set YAML, a path or a name in data; empty: none was named.
        weights: a file.
        split: 'test' must be described, if it is to be used.
        task: what the weights do.

    Raises:
        UserError: its description is wrong.
    """
    source = data or data_of_run(weights) or BUILT_IN[task]
    if not data:
        LOGGER.info(printable(f"no --data given, using {source}"))
    return load_dataset(source, split, task=task)
