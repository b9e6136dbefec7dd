"""Annotations as rows of YOLO's label files: parts of the width and the height, inside of the picture, each once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from ultralytics.data.converter import merge_multi_segment

from utils.convert_data.annotations import Annotation, Losses, Mask, Picture, Points
from utils.data.pictures import LIMIT

Row = tuple[str, tuple[float, ...]]  # class; x y w h or x1 y1 x2 y2 x3 y3 …

DECIMALS = 6
MOST_POINTS, MOST_PARTS = 1000, 100  # of an outline, in each part; joining them compares all points of two parts
TOLERANCE = 0.01  # pixels that a box may reach out of its picture without a word


@dataclass(frozen=True)
class Wanted:
    """What is to be written.

    Attributes:
        outlines: of the objects that have one, instead of boxes.
        crowds: too, as one object each.
        difficult: objects too.
    """

    outlines: bool = False
    crowds: bool = False
    difficult: bool = False


def rows_of(picture: Picture, size: tuple[int, int], wanted: Wanted, losses: Losses) -> list[Row]:
    """Return the rows of a picture.

    Args:
        picture: as the source describes it.
        size: width and height of the file, as it is shown, in pixels.
        wanted: what is to be written.
        losses: receives what is left out or changed.
    """
    unit = np.array((1.0, 1.0) if picture.fractions else picture.size or size)
    rows: dict[Row, None] = {}
    for annotation in picture.annotations:
        if annotation.crowd and not wanted.crowds:
            losses.add("crowds", annotation.where)
        elif annotation.difficult and not wanted.difficult:
            losses.add("difficult", annotation.where)
        elif numbers := numbers_of(annotation, unit, size, wanted.outlines, losses):
            row = annotation.label, tuple(round(number, DECIMALS) for number in numbers)
            if row in rows:
                losses.add("repeated", annotation.where)
            rows[row] = None
    return list(rows)


def numbers_of(
    annotation: Annotation, unit: Points, size: tuple[int, int], outlines: bool, losses: Losses
) -> list[float]:
    """Return the numbers of one row, none for an object that is left out.

    Args:
        annotation: the object.
        unit: width and height of the picture, in the unit of its coordinates.
        size: width and height of the picture, in pixels.
        outlines: write the outline.
        losses: receives what is left out or changed.
    """
    corners = np.array(annotation.box).reshape(2, 2) / unit  # left top, right bottom
    if (corners[1] - corners[0] < 10**-DECIMALS).any():
        losses.add("zero_area", annotation.where)
        return []
    inside = corners.clip(0, 1)
    if (inside[1] - inside[0] < 10**-DECIMALS).any():
        losses.add("outside", annotation.where)
        return []
    if (np.abs(inside - corners) * size > TOLERANCE).any():
        losses.add("clipped", annotation.where)
    if outlines:
        try:
            return [float(number) for number in outline_of(annotation, unit, losses).ravel()]
        except ValueError as error:
            losses.add("no_outline", annotation.where, error)
    return [*((inside[0] + inside[1]) / 2).tolist(), *(inside[1] - inside[0]).tolist()]


def outline_of(annotation: Annotation, unit: Points, losses: Losses) -> Points:
    """Return the outline of an object, (points, 2) in [0, 1], as one polygon; ValueError where it has none."""
    parts = list(annotation.parts)
    if annotation.mask:
        parts = trace(annotation.mask, unit, annotation.where, losses)
    parts = [part for part in ((part / unit).clip(0, 1) for part in parts) if area(part) > 0]
    if not parts:
        raise ValueError("there is none that has an area")
    thin = sorted(parts, key=area, reverse=True)[:MOST_PARTS]
    thin = [part[:: math.ceil(len(part) / MOST_POINTS)] for part in thin]
    if sum(map(len, thin)) < sum(map(len, parts)):
        losses.add("thinned", annotation.where)
    if len(thin) > 1:
        losses.add("parts", annotation.where)
        thin = merge_multi_segment(thin)
    return np.concatenate(thin)


def area(points: Points) -> float:
    """Return the area of a polygon (points, 2), by the shoelace formula."""
    x, y = points.T
    return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2


def trace(mask: Mask, unit: Points, where: str, losses: Losses) -> list[Points]:
    """Return the outlines of a mask, in pixels; ValueError where it is not one of this picture.

    They are taken at twice the size, so that what is one pixel wide has an area.
    """
    height, width = mask.size
    if (width, height) != tuple(unit) or width * height > LIMIT["megapixels"] * 10**6:
        raise ValueError(f"its mask is one of a picture of {width}x{height}")
    values = np.arange(len(mask.runs), dtype=np.int64) % 2
    pixels = np.repeat(values.astype(np.uint8), mask.runs).reshape(width, height).T
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    if not len(rows):
        return []
    top, left = rows[0], columns[0]
    region = pixels[top : rows[-1] + 1, left : columns[-1] + 1]
    doubled = np.ascontiguousarray(region.repeat(2, 0).repeat(2, 1))
    contours, levels = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = [contour for contour, level in zip(contours, levels[0], strict=True) if level[3] < 0]
    if len(outer) < len(contours):
        losses.add("holes", where)
    return [(contour.reshape(-1, 2) + 0.5) / 2 + (left, top) for contour in outer]
