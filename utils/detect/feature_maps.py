"""What a backbone makes of a picture: its maps at each level, drawn side by side as YOLOv5's --visualize does."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor, nn

from models import DetectionModel
from models.errors import UserError
from utils.detect.frame import Finder, Found, Step
from utils.detect.predictor import Predictor
from utils.detect.writers import write_image

DRAWN_CHANNELS, DRAWN_COLUMNS = 32, 8  # of a drawing
DRAWN_SIDE = 96  # pixels of the shorter side of a drawn map, at least


class FeatureMaps:
    """Keeps the last maps of each level while a predictor detects, and writes them as pictures.

    Level Pk, of stride 2^k, is the last row of the YAML's backbone at that stride.

    Raises:
        UserError: the weights are an exported file, whose maps are out of reach, or several.
    """

    def __init__(self, finder: Finder) -> None:
        if not isinstance(finder, Predictor) or finder.model.format != "pt":
            raise UserError("--visualize needs one file of PyTorch weights (.pt), whose feature maps can be reached")
        self._maps: dict[str, Tensor] = {}
        self._seen: set[Path] = set()
        model: DetectionModel = finder.model.backend.model
        levels: dict[int, tuple[int, int]] = {}  # → row and output; the later of two rows at the same stride counts
        for row, node in enumerate(model.nodes[: model.spec.backbone_rows]):
            levels |= {level_of(model.features[slot].stride): (row, i) for i, slot in enumerate(node.slots)}
        for level, (row, i) in levels.items():
            if level > 0:
                model.model[row].register_forward_hook(self._keep(f"P{level}", i))

    def _keep(self, name: str, i: int) -> Callable[..., None]:
        """Return a hook that keeps a row's map, the i-th one where it gives a list."""

        def keep(_module: nn.Module, _inputs: object, output: Tensor | list[Tensor]) -> None:
            self._maps[name] = output if isinstance(output, Tensor) else output[i]

        return keep

    def writer(self, folder: Path) -> Step:
        """Return a step that writes the maps of the frame that was just looked at, of a video those of the first one.

        They go into `folder`/<name of the output files>.
        """

        def write(found: Found) -> Found:
            if found.frame.path not in self._seen:
                self._seen.add(found.frame.path)
                for name, maps in self._maps.items():
                    drawn = draw_maps(maps[0].float().cpu().numpy())
                    write_image(folder / found.frame.output_name / f"{name}.png", drawn)
            return found

        return write


def level_of(stride: float) -> int:
    """Return k of the level Pk; 0 where the stride is no power of two from 2 on."""
    level = round(math.log2(stride))
    return level if 2**level == stride else 0


def draw_maps(maps: np.ndarray) -> np.ndarray:
    """Return the first channels of (C, H, W) side by side, each from its least to its largest number; uint8 BGR."""
    maps = maps[:DRAWN_CHANNELS]
    low, high = (f(maps, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
    grey = (255 * (maps - low) / np.maximum(high - low, 1e-9)).astype(np.uint8)
    scale = max(1, math.ceil(DRAWN_SIDE / min(grey.shape[1:])))
    grey = np.pad(grey.repeat(scale, 1).repeat(scale, 2), ((0, -len(grey) % DRAWN_COLUMNS), (1, 1), (1, 1)))
    rows = [np.concatenate(list(grey[i : i + DRAWN_COLUMNS]), 1) for i in range(0, len(grey), DRAWN_COLUMNS)]
    return cv2.applyColorMap(np.concatenate(rows), cv2.COLORMAP_VIRIDIS)
