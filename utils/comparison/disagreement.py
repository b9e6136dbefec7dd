"""Pictures on which two networks disagree most, with what each of them finds, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from utils.comparison.detections import Detections
from utils.detect.api import load
from utils.writing import replacing

MOST = 4  # pictures
HEIGHT = 320  # of each, in pixels
BAND = 24  # above them, for the name of the network


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
    columns = []
    for name in names:
        detector = load(files[name])
        parts = [_title(_fit(detector(path)[0].plot()), name) for path in chosen]
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


def _title(picture: np.ndarray, text: str) -> np.ndarray:
    """Return a picture with a line of text above it."""
    banded = cv2.copyMakeBorder(picture, BAND, 0, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return cv2.putText(banded, text, (4, BAND - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
