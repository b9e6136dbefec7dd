"""Does the proof refuse sound files, or pass wrong ones? Short trainings, each exported at several sizes, and mutants.

    python -m tests.prove.sweep                       # 30 trainings, 90 exports, 30 mutants; takes half an hour
    python -m tests.prove.sweep --trainings 3         # the first three families

A network trained for one epoch is the hardest to prove: its scores lie close together, and all over its thresholds.
Every second export ends in NMS. From each training one ONNX file gets a fault: a number of a weight, a class in
another's place, a branch without its bias, another activation, or half of a weight. The exit code is 1 when a sound
file was refused or a mutant passed. Written to runs/sweep/exp: sweep.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import ModelProto, numpy_helper

import train
from utils import cli
from utils.checkpoint import load_checkpoint
from utils.data.samples import make_pictures
from utils.data.shapes import NAMES, Recipe, ensure_shapes
from utils.deploy.ends import Nms
from utils.deploy.run import load_runner
from utils.export import Options, export
from utils.prove.compare import Tolerance
from utils.prove.reference import Reference

# isort: split
from ultralytics.utils import LOGGER

from utils.paths import increment_path

FAMILIES = (
    *(
        "yolov5n",
        "yolov5n-seg",
        "yolov5n-u",
        "riformer-yolo",
        "riformer-yolo-e2e",
        "repvgg-slim-yolo",
        "repvgg-yolo-e2e",
    ),
    *("timm-yolo", "yolov5s-ghost", "yolov5n-bifpn"),
)
SIZES = ((96, 96), (160, 96), (128, 192))
LEAST_EFFECT = 3.0  # of a fault, in what the proof allows
SIDE = 96  # pixels that are trained with


def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="python -m tests.prove.sweep", description=__doc__)
    parser.add_argument("--trainings", type=cli.positive_int, default=30, help="how many, family after family")
    parser.add_argument("--project", default="runs/sweep", help="results go to project/name")
    parser.add_argument("--name", default="exp", help="results go to project/name")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run the sweep, print each result, and return the exit code."""
    folder = increment_path(args.project, args.name).resolve()
    data = make_data(folder / "shapes")
    rows: list[dict[str, Any]] = []
    for number in range(args.trainings):
        family, seed = FAMILIES[number % len(FAMILIES)], number // len(FAMILIES)
        for row in one(folder / f"{family}-{seed}", family, seed, data, number):
            rows.append(row)
            LOGGER.info(json.dumps(row))
            (folder / "sweep.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    wrong = {what: [row for row in rows if row["what"] == what and not row["right"]] for what in ("export", "mutant")}
    for what, found in wrong.items():
        LOGGER.info(f"{what}s: {sum(row['what'] == what for row in rows)}, judged wrongly {len(found)}")
    LOGGER.info(f"Results saved to {folder}")
    return 1 if any(wrong.values()) else 0


def make_data(folder: Path) -> Path:
    """Draw a small data set and return its YAML."""
    ensure_shapes(folder, Recipe(side=SIDE, train=256, val=8, test=4, film_side=SIDE, film_frames=2))
    splits = {split: f"images/{split}" for split in ("train", "val", "test")}
    (folder / "data.yaml").write_text(yaml.safe_dump({"path": str(folder), **splits, "names": list(NAMES)}))
    return folder / "data.yaml"


def one(folder: Path, family: str, seed: int, data: Path, number: int) -> Iterator[dict[str, Any]]:
    """Train a network for an epoch, export it, break a file, and yield how each was judged."""
    run = train.run(
        cfg=f"{family}.yaml",
        data=data,
        epochs=1,
        imgsz=SIDE,
        batch_size=8,
        seed=seed,
        device="cpu",
        workers=0,
        noplots=True,
        project=folder,
    )
    model = load_checkpoint(run / "weights/best.pt")
    about = {"family": family, "seed": seed}
    whole = model.task == "detect" and not model.end2end
    for turn, size in enumerate(SIZES):
        nms = Nms() if whole and turn % 2 else None
        start = time.perf_counter()
        report = export(model, folder / str(turn), family, "best.pt", Options(size=size, formats=("onnx",), nms=nms))
        proof = report.as_dict()["formats"]["onnx"]
        yield {
            "what": "export",
            "right": report.ok,
            **about,
            "size": size,
            "nms": nms is not None,
            "seconds": round(time.perf_counter() - start, 1),
            "detections": proof.get("detections"),
            "divergence": proof.get("divergence"),
        }
    sound = folder / "0" / f"{family}.onnx"
    kind, effect = mutate(sound, folder / "broken.onnx", number)
    if not kind:
        LOGGER.warning(f"no fault changes the scores of {sound}, so nothing is judged")
        return
    cases = list(Reference(model).cases(folder / "broken.onnx", SIZES[0], 1, Tolerance(), "broken.onnx"))
    refused = not all(case.ok for case in cases)
    yield {"what": "mutant", "right": refused, **about, "kind": kind, "effect": round(effect, 1)}


# Mutations ------------------------------------------------------------------------------------------------------------
def weights(graph: ModelProto, least: int = 4) -> list[Any]:
    """Return the weights of convolutions."""
    return [tensor for tensor in graph.graph.initializer if len(tensor.dims) >= least and np.prod(tensor.dims) > 64]


def change(tensor: Any, values: np.ndarray) -> None:
    """Give a tensor other values."""
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))


def one_weight(graph: ModelProto) -> None:
    """Change the largest number of the last weight by half; what has hardly learnt damps a change further in front."""
    tensor = weights(graph)[-1]
    values = numpy_helper.to_array(tensor).copy()
    values.flat[np.abs(values).argmax()] *= 1.5
    change(tensor, values)


def swapped_channels(graph: ModelProto) -> None:
    """Put two output channels of the last large weight in each other's place: classes, or coordinates."""
    found = [tensor for tensor in weights(graph) if tensor.dims[0] > 4]
    values = numpy_helper.to_array(found[-1]).copy()
    values[[-1, -2]] = values[[-2, -1]]
    change(found[-1], values)


def forgotten_bias(graph: ModelProto) -> None:
    """Forget the largest of the biases, as fusing without a branch would."""
    found = [tensor for tensor in graph.graph.initializer if len(tensor.dims) == 1 and tensor.dims[0] > 8]
    tensor = max(found, key=lambda tensor: np.abs(numpy_helper.to_array(tensor)).max())
    change(tensor, np.zeros_like(numpy_helper.to_array(tensor)))


def other_activation(graph: ModelProto) -> None:
    """Compute another activation in the place of the first."""
    node = next(node for node in graph.graph.node if node.op_type in ("Sigmoid", "Relu", "Mul"))
    node.op_type = {"Sigmoid": "Tanh", "Relu": "Sigmoid", "Mul": "Add"}[node.op_type]


def half_a_weight(graph: ModelProto) -> None:
    """Halve a weight in the middle."""
    found = weights(graph)
    tensor = found[len(found) // 2]
    change(tensor, numpy_helper.to_array(tensor) / 2)


MUTATIONS: dict[str, Callable[[ModelProto], None]] = {
    "a weight": one_weight,
    "swapped channels": swapped_channels,
    "a forgotten bias": forgotten_bias,
    "another activation": other_activation,
    "half of a weight": half_a_weight,
}


def mutate(sound: Path, broken: Path, number: int) -> tuple[str, float]:
    """Write a file with the first fault, from that of a number on, that changes its outputs; return what and how far.

    The fault is "" where none of them does.

    What changes none of them by more than the proof allows is no fault: a network that has hardly learnt has many
    weights that count for nothing.
    """
    kinds = list(MUTATIONS)
    for turn in range(len(kinds)):
        kind = kinds[(number + turn) % len(kinds)]
        graph = onnx.load(sound)
        MUTATIONS[kind](graph)
        onnx.save(graph, broken)
        effect = distance(sound, broken)
        if effect > LEAST_EFFECT:
            return kind, effect
    return "", 0.0


def distance(sound: Path, broken: Path) -> float:
    """Return how far the boxes and scores of two files lie apart, in what the proof allows."""
    far = 0.0
    for images in make_pictures(SIZES[0]).values():
        old, new = (load_runner(path)(images[None])[0] for path in (sound, broken))
        if not new.isfinite().all():
            return math.inf
        ranked = old.shape[1] > old.shape[2]  # by score, without NMS: the order of those that tie says nothing
        scores = np.s_[..., 4] if ranked else np.s_[:, 4 : 4 + len(NAMES)]
        allowed, apart = Tolerance().for_scores(float(old[scores].max())), (old - new).abs()
        far = max(far, float(apart[scores].max()) / allowed.score)
        if not ranked:
            far = max(far, float(apart[:, :4].max()) / allowed.box_px)
    return far


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
