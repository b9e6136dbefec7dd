"""Networks that always see the same, as the files that export.py would write of them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from utils.deploy.trust import trust

NAMES = {0: "circle", 1: "square", 2: "star"}


class Disc(nn.Module):
    """Sees a disc in the middle of the picture as class 1, and a line too thin to have an outline as class 2.

    Args:
        height: of the pictures, in pixels.
        width: of the pictures, in pixels.
        end2end: give boxes as a network without NMS does.
        masks: give masks; boxes alone otherwise.
        shift: move the disc, but not its box, by so many pixels.
    """

    def __init__(
        self, height: int = 64, width: int = 96, end2end: bool = False, masks: bool = True, shift: float = 0.0
    ) -> None:
        super().__init__()
        x, y, r = width / 2, height / 2, 3 / 8 * height
        rows, columns = torch.meshgrid(torch.arange(2.0, height, 4), torch.arange(2.0, width, 4), indexing="ij")
        inside = r - ((columns - x - shift) ** 2 + (rows - y) ** 2).sqrt()
        if end2end:  # x1 y1 x2 y2 score class, then a coefficient for each prototype
            found = torch.tensor([[[x - r, y - r, x + r, y + r, 0.9, 1, 1, 0], [22, 9, 23, 11, 0.6, 2, 0, 1]]])
        else:  # cx cy w h, scores
            found = torch.tensor([[[x, y, 2 * r, 2 * r, 0, 0.9, 0, 1, 0], [22.5, 10, 1, 2, 0, 0, 0.6, 0, 1]]]).mT
        self.register_buffer("found", found if masks else found[..., :6] if end2end else found[:, :7])
        self.register_buffer("proto", torch.stack([inside, torch.ones_like(inside)])[None])
        self.masks = masks
        self.shape = (1, 3, height, width)
        self.metadata = {
            "stride": 32,
            "task": "segment" if masks else "detect",
            "batch": 1,
            "imgsz": [height, width],
            "names": NAMES,
            "channels": 3,
            "end2end": end2end,
        }

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        nothing = 0 * x.mean()
        return (self.found + nothing, self.proto + nothing) if self.masks else self.found + nothing


def write_export(folder: Path, network: Disc, suffix: str, **changes: object) -> Path:
    """Write a network as `onnx` or `torchscript`, with `changes` to its metadata, and return the file."""
    path = folder / f"disc.{suffix}"
    metadata = network.metadata | changes
    example = torch.zeros(network.shape)
    if suffix == "torchscript":
        scripted = torch.jit.trace(network, example, check_trace=False)
        scripted.save(str(path), _extra_files={"config.txt": json.dumps(metadata)})
        trust(path)
        return path
    torch.onnx.export(network, (example,), path, opset_version=17, dynamo=False)
    graph = onnx.load(path)
    for key, value in metadata.items():
        graph.metadata_props.add(key=key, value=str(value))
    onnx.save(graph, path)
    return path
