"""The sound files that attacks are made from: pictures, data sets, a run, its checkpoint, exports and a comparison."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import yaml

import compare
import export
import train
from tests.comparisons import make_comparison
from tests.helpers import tiny
from tests.runs import make_folders

CLASSES = ["person", "car"]
COMPARISON = "comparison"  # a folder
SIZE = 64


def make_base(folder: Path) -> None:
    """Write them into a folder: model.yaml, data.yaml, set/, photo.png, clip.avi, run/, best.pt, best.onnx, …

    To classify there are classifier.yaml and folders/; and comparison/ has come to its end.
    """
    os.chdir(folder)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(2):
            image = rng.integers(0, 255, (48, 64, 3), np.uint8)
            for kind in ("images", "labels"):
                (folder / "set" / kind / split).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"set/images/{split}/{i}.png"), image)
            (folder / f"set/labels/{split}/{i}.txt").write_text(f"{i} 0.5 0.5 0.4 0.4\n")
    shutil.copy("set/images/train/0.png", "photo.png")
    film = cv2.VideoWriter("clip.avi", cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for i in range(3):
        film.write(np.full((48, 64, 3), 60 * i, np.uint8))
    film.release()
    Path("model.yaml").write_text(yaml.safe_dump(tiny()))
    data = {"path": str(folder / "set"), "train": "images/train", "val": "images/val", "names": CLASSES}
    Path("data.yaml").write_text(yaml.safe_dump(data))
    run = train.run(
        cfg="model.yaml", data="data.yaml", epochs=1, imgsz=SIZE, batch_size=2, noplots=True, device="cpu", workers=0
    )
    shutil.move(run, "run")
    shutil.copy("run/weights/best.pt", "best.pt")
    export.run(weights="best.pt", include=["onnx", "torchscript", "openvino"], imgsz=SIZE)
    make_folders(folder / "folders", train=2, val=1)
    Path("classifier.yaml").write_text(yaml.safe_dump(tiny(nc=3, head=[[-1, 1, "Classify", ["nc"]]])))
    network = tiny(), folder / "best.pt", folder / "best.onnx"
    plan = make_comparison(folder / COMPARISON, folder / "data.yaml", {"a": network, "b": network})
    for job in plan.jobs():
        compare.finish(job)
