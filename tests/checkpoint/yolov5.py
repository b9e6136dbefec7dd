"""Models of ours, written as YOLOv5 writes its own."""

import sys
import types

import numpy as np
import torch
from torch import nn

from tests.helpers import tiny

PLACES = {"AnchorDetect": "models.yolo", "AnchorSegment": "models.yolo"}  # of YOLOv5's classes; others: models.common
CLASSES = {"AnchorDetect": "Detect", "AnchorSegment": "Segment"}
ANCHORED = {"anchors": [[10, 13, 16, 30], [60, 90, 110, 70]], "head": [*tiny()["head"][:-1], [[5, 3], 1, "Detect"]]}
ANCHORED["head"][-1] = [[5, 3], 1, "Detect", ["nc", "anchors"]]


def as_yolov5(module, fakes):
    """Return a module whose classes are at the places where YOLOv5 has them, with the same attributes and children."""
    name = type(module).__name__
    kind = type(module)
    if not kind.__module__.startswith("torch."):
        place, name = fakes[PLACES.get(name, "models.common")], CLASSES.get(name, name)
        if not hasattr(place, name):
            setattr(place, name, type(name, (nn.Module,), {"__module__": place.__name__, "__qualname__": name}))
        kind = getattr(place, name)
    made = kind.__new__(kind)
    made.__dict__.update(module.__dict__)
    made._modules = {key: as_yolov5(child, fakes) for key, child in module._modules.items()}
    return made


def save_as_yolov5(model, path, monkeypatch, key="ema", buffers=(), **options):
    """Write a model of ours as YOLOv5 does: its classes, its attributes, anchors in cells."""
    fakes = {name: types.ModuleType(name) for name in ("models.yolo", "models.common")}
    head = model.model[-1]
    body = as_yolov5(model.half().model, fakes)
    last = list(body._modules.values())[-1]
    last._buffers = {"anchors": head.anchor_sizes / head.stride.view(-1, 1, 1), **dict(buffers)}
    for name in ("cells", "anchor_sizes"):
        last.__dict__.pop(name, None)
    fakes["models.yolo"].DetectionModel = type("DetectionModel", (nn.Module,), {"__module__": "models.yolo"})
    root = fakes["models.yolo"].DetectionModel()
    root.model, root.names, root.stride = body, [f"name {i}" for i in range(model.nc)], head.stride
    root.yaml = {**model.spec.as_dict(), "ch": 3, "yaml_file": "yolov5t.yaml"}
    content = {
        "epoch": -1,
        "best_fitness": np.array([0.5]),
        "model": None,
        "ema": None,
        "updates": 9,
        "optimizer": None,
    }
    with monkeypatch.context() as patch:
        for name, fake in fakes.items():
            patch.setitem(sys.modules, name, fake)
        torch.save(
            {**content, key: root, "opt": {"imgsz": 320, "cfg": "x.yaml"}, "git": {}, "date": "now"}, path, **options
        )
    model.float()
    return path
