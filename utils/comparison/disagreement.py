"""Pictures on which two networks disagree most, with what each of them finds, side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.comparison.detections import Detections
from utils.detect.api import load
from utils.writing import replacing

MOST = 4  # pictures
HEIGHT = 320  # of each, in pixels
LINE = 24  # pixels of a line of the name of the network above them
LETTER = 10  # pixels of a letter of it


def draw_disagreements(files: Mapping[str, Path], found: Mapping[str, Detections], path: Path) -> Path:
    """Draw the pictures of the val split whose F1 scores differ most, a row for each, and return the file.

    Args:
        files: name of each of two networks → the file that runs it.
        found: what they find on the val split.
        path: where to write, a .jpg.
    """
    names = list(files)
    a, b = (found[name] for name in names)
    differences = np.abs(a.f1() - b.f1())
    chosen = [a.names[i] for i in np.argsort(-differences, kind="stable")[:MOST]]
    pictures = {}
    for name in names:
        detector = load(files[name])
        pictures[name] = [_fit(detector(path)[0].plot()) for path in chosen]
    narrowest = min(picture.shape[1] for several in pictures.values() for picture in several)
    titles = {name: textwrap.wrap(name, max(1, narrowest // LETTER)) for name in names}
    band = LINE * max(map(len, titles.values()))
    columns = []
    for name in names:
        parts = [_title(picture, titles[name], band) for picture in pictures[name]]
        width = max(part.shape[1] for part in parts)
        columns.append(
            np.vstack([cv2.copyMakeBorder(p, 0, 0, 0, width - p.shape[1], cv2.BORDER_CONSTANT) for p in parts])
        )
    with replacing(path) as file:
        file.write(cv2.imencode(path.suffix, np.hstack(columns))[1].tobytes())
    return path


def _fit(picture: np.ndarray) -> np.ndarray:
    """Return a picture (H, W, 3) of the height of all."""
    height, width = picture.shape[:2]
    return cv2.resize(picture, (max(1, round(width * HEIGHT / height)), HEIGHT))


def _title(picture: np.ndarray, lines: Sequence[str], height: int) -> np.ndarray:
    """Return a picture with lines of text in a band of `height` pixels above it."""
    banded = cv2.copyMakeBorder(picture, height, 0, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    for number, text in enumerate(lines, 1):
        place = (4, LINE * number - 7)
        cv2.putText(banded, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return banded
