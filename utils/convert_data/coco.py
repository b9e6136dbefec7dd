"""COCO's JSON: pictures, categories and annotations in one file for each split; LVIS and Roboflow write it too."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.convert_data.annotations import Annotation, Losses, Mask, Picture, Points
from utils.convert_data.reading import (
    as_key,
    as_list,
    as_mapping,
    as_number,
    as_numbers,
    as_size,
    as_text,
    kind_of,
    read_json,
)
from utils.convert_data.source import Source, bad_file

INSTANCES = "instances"  # what COCO's files with boxes begin with; beside them are keypoints and captions
MOST_RUNS = 1 << 26  # of a mask


def read(source: Source, losses: Losses) -> Iterator[Picture]:
    """Yield the pictures of COCO files, and add their categories to the classes of the source.

    Raises:
        UserError: a file is no COCO JSON.
    """
    for file in choose_files(source.files, losses):
        with bad_file(file):
            content = as_mapping(read_json(file), "its content")
            if "annotations" not in content or "categories" not in content:
                losses.add("unused_files", file, "without annotations or categories")
                continue
            names = read_categories(as_list(content["categories"], "categories"), source, file, losses)
            entries = as_list(content.get("images"), "images")
            found = group(as_list(content["annotations"], "annotations"), names, file, losses)
        split = source.split_of(file)
        for number, entry in enumerate(entries):
            where = f"{file}: images[{number}]"
            with losses.malformed(where):
                image = as_mapping(entry, "it")
                key = as_key(image.get("id"), "id")
                name, size = name_of(image), as_size(image.get("width"), image.get("height"))
                if size is None:
                    losses.add("no_size", where)
                yield Picture((name,), file, found.pop(key, []), size, split=split)
        for key, orphans in found.items():
            losses.add("no_picture", orphans[0].where, f"image_id {key}", len(orphans))


def choose_files(files: Sequence[Path], losses: Losses) -> Sequence[Path]:
    """Return those that begin with `instances`, if there are any among several, else all."""
    chosen = [file for file in files if file.name.startswith(INSTANCES)] or files
    for file in files:
        if file not in chosen:
            losses.add("unused_files", file, f"beside files called {INSTANCES}…")
    return chosen


def read_categories(entries: list[Any], source: Source, file: Path, losses: Losses) -> dict[int | str, str]:
    """Return the name of each category by its id."""
    names = {}
    for number, entry in enumerate(entries):
        with losses.malformed(f"{file}: categories[{number}]"):
            category = as_mapping(entry, "it")
            names[as_key(category.get("id"), "id")] = name = as_text(category.get("name"), "name")
            source.classes[name] = None
    return names


def group(
    entries: list[Any], names: dict[int | str, str], file: Path, losses: Losses
) -> dict[int | str, list[Annotation]]:
    """Return the annotations by the id of their picture."""
    found: dict[int | str, list[Annotation]] = {}
    for number, entry in enumerate(entries):
        where = f"{file}: annotations[{number}]"
        with losses.malformed(where):
            annotation = as_mapping(entry, "it")
            key = as_key(annotation.get("image_id"), "image_id")
            category = as_key(annotation.get("category_id"), "category_id")
            if category not in names:
                losses.add("unknown_classes", where, f"category_id {category}")
                continue
            one = read_annotation(annotation, names[category], where)
            found.setdefault(key, []).append(one)
    return found


def name_of(image: dict[str, Any]) -> str:
    """Return the name of a picture's file; LVIS has only the address that it was loaded from."""
    if "file_name" in image:
        return as_text(image["file_name"], "file_name")
    path = urllib.parse.urlsplit(as_text(image.get("coco_url"), "file_name")).path
    return "/".join(path.split("/")[-2:])


def read_annotation(entry: dict[str, Any], label: str, where: str) -> Annotation:
    """Return one annotation; without a box it has that of its outline."""
    parts, mask = read_outline(entry.get("segmentation"))
    if entry.get("bbox"):
        x, y, w, h = as_numbers(entry["bbox"], "bbox", 4)
        box = x, y, x + w, y + h
    elif parts:
        points = np.concatenate(parts)
        box = (*points.min(0).tolist(), *points.max(0).tolist())
    else:
        raise ValueError("it has no bbox")
    return Annotation(label, box, where, parts, mask, crowd=bool(entry.get("iscrowd")))


def read_outline(value: object) -> tuple[tuple[Points, ...], Mask | None]:
    """Return the parts of an outline, lists of x1 y1 x2 y2 …, or its mask, which has counts and a size."""
    if isinstance(value, dict):
        return (), read_mask(value)
    parts = []
    for part in as_list(value or [], "segmentation"):
        numbers = [as_number(number, "segmentation") for number in as_list(part, "segmentation")]
        if len(numbers) % 2:
            raise ValueError(f"segmentation has an odd number of coordinates, {len(numbers)}")
        if len(numbers) >= 6:
            parts.append(np.array(numbers).reshape(-1, 2))
    return tuple(parts), None


def read_mask(value: dict[str, Any]) -> Mask:
    """Return a mask whose runs fill its size."""
    height, width = (int(side) for side in as_numbers(value.get("size"), "size of the mask", 2))
    counts = value.get("counts")
    runs = unpack(counts) if isinstance(counts, str) else as_list(counts, "counts")
    if not all(type(run) is int and run >= 0 for run in runs) or len(runs) > MOST_RUNS:
        raise ValueError(f"counts must be whole numbers, not {kind_of(counts)}")
    if min(height, width) < 1 or sum(runs) != height * width:
        raise ValueError(f"the mask has {sum(runs)} pixels, but its size is {width}x{height}")
    return Mask(tuple(runs), (height, width))


def unpack(text: str) -> list[int]:
    """Return the runs of a compressed mask.

    As in COCO's API: each number in groups of 5 bits, the lowest first, a character each; bit 6 says that another
    follows, and from the fourth number on, it is the difference from the one before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise ValueError(f"counts has the character {character!r}, which no mask has")
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            value -= (1 << shift) if code & 16 else 0
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("counts ends in the middle of a number")
    return runs
