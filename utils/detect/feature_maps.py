"""What a backbone, or each row, makes of a picture: its maps, drawn side by side as YOLOv5's --visualize does."""

from __future__ import annotations

import math
import re
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
from utils.writing import replacing

MAP_AXES = 4  # of a batch of maps
DRAWN_CHANNELS, DRAWN_COLUMNS = 32, 8  # of a drawing
DRAWN_SIDE = 96  # pixels of the shorter side of a drawn map, at least


class FeatureMaps:
    """Keeps the maps of some rows while a predictor detects, and writes them as pictures.

    Args:
        finder: what detects.
        of: "levels" of the backbone, or "all" rows but the head.
        arrays: write them as NumPy arrays (C, H, W) in float32 as well.

    Raises:
        UserError: the weights are an exported file, whose maps are out of reach, or several.
    """

    def __init__(self, finder: Finder, of: str = "levels", arrays: bool = False) -> None:
        if not isinstance(finder, Predictor) or finder.model.format != "pt":
            raise UserError("--visualize needs one file of PyTorch weights (.pt), whose feature maps can be reached")
        self.arrays = arrays
        self._maps: dict[str, Tensor] = {}
        self._seen: set[Path] = set()
        model: DetectionModel = finder.model.backend.model
        for name, (row, i) in OUTPUTS[of](model).items():
            model.model[row].register_forward_hook(self._keep(name, i))

    def _keep(self, name: str, i: int) -> Callable[..., None]:
        """Return a hook that keeps a row's map, the i-th one where it gives a list."""

        def keep(_module: nn.Module, _inputs: object, output: Tensor | list[Tensor]) -> None:
            maps = output if isinstance(output, Tensor) else output[i]
            if maps.ndim == MAP_AXES:
                self._maps[name] = maps

        return keep

    def writer(self, folder: Path) -> Step:
        """Return a step that writes the maps of the frame that was just looked at, of a video those of the first one.

        They go into `folder`/<name of the output files>.
        """

        def write(found: Found) -> Found:
            if found.frame.path not in self._seen:
                self._seen.add(found.frame.path)
                for name, maps in self._maps.items():
                    values = maps[0].float().cpu().numpy()
                    path = folder / found.frame.output_name / name
                    write_image(path.with_name(f"{name}.png"), draw_maps(values))
                    if self.arrays:
                        with replacing(path.with_name(f"{name}.npy")) as file:
                            np.save(file, values)
            return found

        return write


def level_outputs(model: DetectionModel) -> dict[str, tuple[int, int]]:
    """Return P1, P2, ... of the backbone → the row that gives it, and which of its outputs.

    Level Pk, of stride 2^k, is that of the last list backbone, else the last row of the YAML's backbone at that stride.
    """
    rows = list(enumerate(model.nodes[: model.spec.backbone_rows]))
    lists = [(row, node) for row, node in rows if node.writes_list]
    levels: dict[int, tuple[int, int]] = {}
    for row, node in [*rows, *lists]:
        levels |= {level_of(model.features[slot].stride): (row, i) for i, slot in enumerate(node.slots)}
    return {f"P{level}": output for level, output in levels.items() if level > 0}


def row_outputs(model: DetectionModel) -> dict[str, tuple[int, int]]:
    """Return `SLOT_WORD` of every row but the head → the row, and which of its outputs: slots are those of `from`."""
    named = {}
    for row, node in enumerate(model.nodes[:-1]):
        word = re.sub(r"[^\w.-]", "_", node.row.module)
        for i, slot in enumerate(node.slots):
            named[f"{slot:02d}_{word}" if isinstance(slot, int) else f"{slot}_{word}"] = (row, i)
    return named


OUTPUTS = {"levels": level_outputs, "all": row_outputs}  # by the words that --visualize takes


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
