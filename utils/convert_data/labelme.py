"""LabelMe: a JSON file for each picture, with shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.convert_data.annotations import Annotation, Losses, Picture, Points
from utils.convert_data.reading import as_list, as_mapping, as_numbers, as_size, as_text, read_json
from utils.convert_data.source import Source

BOXES, OUTLINES = ("rectangle", "mask"), ("polygon", "rotation", "circle")  # types of shapes that have an area
CORNERS = 36  # of a circle's outline


def read(source: Source, losses: Losses) -> Iterator[Picture]:
    """Yield the pictures of LabelMe files."""
    for file in source.files:
        with losses.malformed(str(file)):
            content = as_mapping(read_json(file), "its content")
            annotations = read_shapes(as_list(content.get("shapes"), "shapes"), file, losses)
            size = as_size(content.get("imageWidth"), content.get("imageHeight"))
            if size is None:
                losses.add("no_size", file)
            said = content.get("imagePath")
            names = (*((said,) if isinstance(said, str) and said.strip() else ()), file.stem)
            yield Picture(names, file, annotations, size, split=source.split_of(file))


def read_shapes(entries: list[Any], file: Path, losses: Losses) -> list[Annotation]:
    """Return the objects of a picture; shapes of one class and one group are parts of one object."""
    found: dict[object, Annotation] = {}
    for number, entry in enumerate(entries):
        where = f"{file}: shapes[{number}]"
        with losses.malformed(where):
            shape = as_mapping(entry, "it")
            label = as_text(shape.get("label"), "label")
            kind = shape.get("shape_type") or "polygon"
            if kind not in (*BOXES, *OUTLINES):
                losses.add("no_area_shapes", where, f"{kind}")
                continue
            points = np.array([as_numbers(p, "a point", 2) for p in as_list(shape.get("points"), "points")])
            annotation = read_shape(str(kind), points, label, where)
            group = shape.get("group_id")
            key: object = number if group is None else (label, str(group))
            found[key] = joined(found[key], annotation) if key in found else annotation
    return list(found.values())


def read_shape(kind: str, points: Points, label: str, where: str) -> Annotation:
    """Return one shape as an object."""
    if len(points) < (2 if kind in (*BOXES, "circle") else 3):
        raise ValueError(f"a {kind} of {len(points)} points has no area")
    if kind == "circle":
        angles = np.arange(CORNERS) * 2 * math.pi / CORNERS
        points = points[0] + math.dist(points[0], points[1]) * np.stack([np.cos(angles), np.sin(angles)], 1)
    (left, top), (right, bottom) = points.min(0), points.max(0)
    return Annotation(label, (left, top, right, bottom), where, (points,) if kind in OUTLINES else ())


def joined(one: Annotation, other: Annotation) -> Annotation:
    """Return two parts as one object."""
    boxes = np.array([one.box, other.box])
    (left, top), (right, bottom) = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    return Annotation(one.label, (left, top, right, bottom), one.where, (*one.parts, *other.parts))
