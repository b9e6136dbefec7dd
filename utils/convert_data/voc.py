"""Pascal VOC: an XML file for each picture in Annotations, and lists of pictures for each split in ImageSets/Main."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element

from models.errors import UserError
from utils.convert_data.annotations import Annotation, Losses, Picture
from utils.convert_data.reading import as_number, as_size, as_text, read_bytes, read_xml
from utils.convert_data.source import Source
from utils.text import decode

LISTS = {"train": "train", "val": "val", "test": "test", "trainval": "train"}  # list: split; trainval without train
MAX_LIST = 64 << 20  # bytes
OFFICIAL = "The VOC"  # database of VOC's own files, whose pixels are counted from 1, the last one included


def read(source: Source, losses: Losses) -> Iterator[Picture]:
    """Yield the pictures of VOC files, once for each split whose list names them.

    Raises:
        UserError: a list cannot be read.
    """
    folders = dict.fromkeys(file.parent for file in source.files)
    lists = {folder: read_lists(folder.parent / "ImageSets/Main") for folder in folders}
    for folder, splits in lists.items():
        stems = {file.stem for file in source.files if file.parent == folder}
        for split, names in splits.items():
            for name in sorted(names - stems):
                losses.add("malformed", f"{folder.parent}/ImageSets/Main", f"{name} of {split} has no XML file")
    for file in source.files:
        splits = lists[file.parent]
        mine: list[str | None] = [name for name, stems in splits.items() if file.stem in stems]
        if splits and not mine:
            losses.add("no_split", file)
            continue
        with losses.malformed(str(file)):
            picture = read_picture(file, losses)
            for each in mine or [source.split_of(file)]:
                yield replace(picture, split=each)


def read_lists(folder: Path) -> dict[str, set[str]]:
    """Return the names on the list of each split, of those that there are."""
    there = {name: folder / f"{name}.txt" for name in LISTS if (folder / f"{name}.txt").is_file()}
    if "train" in there:
        there.pop("trainval", None)
    return {LISTS[name]: set(read_list(path)) for name, path in there.items()}


def read_list(path: Path) -> Iterator[str]:
    """Yield the names on a list; those of one class have -1, 0 or 1 behind each."""
    try:
        lines = decode(read_bytes(path, MAX_LIST)).splitlines()
    except ValueError as error:
        raise UserError(f"{path} {error}") from error
    for line in filter(None, map(str.strip, lines)):
        name, _, mark = line.rpartition(" ")
        yield name.strip() if mark in ("-1", "0", "1") and name else line


def read_picture(file: Path, losses: Losses) -> Picture:
    """Return the picture that an XML file describes; its name is that of the file, and the one said in it."""
    root = read_xml(file)
    if root.tag != "annotation":
        raise ValueError(f"expected <annotation>, got <{root.tag[:100]}>")
    size = as_size(text_of(root, "size/width"), text_of(root, "size/height"))
    shift = 1 if text_of(root, "source/database").startswith(OFFICIAL) else 0
    annotations = []
    for number, element in enumerate(root.findall("object"), 1):
        where = f"{file}: object {number}"
        with losses.malformed(where):
            annotations.append(read_object(element, shift, where))
    names = (file.stem, *filter(None, [text_of(root, "filename")]))
    if size is None:
        losses.add("no_size", file)
    return Picture(names, file, annotations, size)


def read_object(element: Element, shift: int, where: str) -> Annotation:
    """Return one object; `shift` is the number of the first pixel."""
    label = as_text(text_of(element, "name"), "name")
    left, top, right, bottom = (
        as_number(text_of(element, f"bndbox/{key}"), key) for key in ("xmin", "ymin", "xmax", "ymax")
    )
    difficult = text_of(element, "difficult") == "1"
    return Annotation(label, (left - shift, top - shift, right, bottom), where, difficult=difficult)


def text_of(element: Element, path: str) -> str:
    """Return the text of an element below another, empty where there is none."""
    return (element.findtext(path) or "").strip()
