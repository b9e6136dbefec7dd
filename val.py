"""Measure how well weights detect the objects of a data set: precision, recall, mAP50 and mAP50-95 per class.

Of a classifier it is top-1 and top-5: how often the right class is the most probable one, or among the five most so.

    python val.py                                      # the newest weights of runs/train on their own data set
    python val.py --weights best.pt --data my-data.yaml --task test
    python val.py --weights best.onnx --data my-data.yaml
    python val.py --weights best_openvino_model --data my-data.yaml      # any format that export.py writes

A `.pt` file is fused first, as it is for detection. Exports run at the size they were exported with, OpenVINO's in
float32 unless --half lets it choose. Weights that segment have their masks measured as well as their boxes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils import cli

# isort: split
from ultralytics.utils import LOGGER

from models.errors import UserError
from utils.data.description import write_data_yaml
from utils.data.files import check_images, find_data, sources_of
from utils.deploy.opened import OpenedWeights, check_augment, open_weights
from utils.deploy.trust import trust_weights
from utils.distributed.group import from_first, process_group
from utils.distributed.launch import launch, wants_several
from utils.drawing.fonts import use_font
from utils.evaluate.coco import PictureBoxes, find_package, measure_with
from utils.evaluate.validator import VALIDATORS, Validator
from utils.paths import find_weights, increment_path


def make_parser() -> cli.Parser:
    """Return the options; names and meanings are YOLOv5's."""
    parser = cli.Parser(prog="val.py", description=__doc__)
    add = parser.add_argument
    add("--weights", default="", help=".pt or an export; empty: the newest best.pt of runs/train")
    add("--data", default="", help="data set YAML, a path or a name in data; empty: that of the weights' training")
    add("--batch-size", type=cli.positive_int, default=32, help="pictures a step")
    side = {"nargs": "+", "type": cli.image_side, "action": cli.OneSide}
    add("--imgsz", "--img", "--img-size", **side, help="side in pixels; that of the weights by default")
    add("--conf-thres", type=cli.fraction, default=0.001, help="scores below it are dropped")
    add("--iou-thres", type=cli.fraction, default=0.6, help="overlap from which boxes of a class are one object")
    add("--max-det", type=cli.positive_int, default=300, help="boxes a picture")
    add("--task", choices=("train", "val", "test"), default="val", help="which split")
    add("--device", type=cli.devices, default="", help="cpu, 0, mps; 0,1 or cpu,cpu: a process each; empty: a GPU")
    add("--workers", type=cli.non_negative_int, default=8, help="loader processes on a GPU")
    add("--single-cls", action="store_true", help="treat all classes as one")
    add("--augment", action="store_true", help="test-time augmentation: three scales, mirrored")
    add("--verbose", action="store_true", help="accepted; classes are always listed")
    add("--save-txt", action="store_true", help="write boxes, or outlines of masks, to labels/*.txt")
    add("--save-conf", action="store_true", help="with the score, in --save-txt files")
    add("--save-json", action="store_true", help="write predictions.json in COCO's form")
    add("--coco-json", action="store_true", help="so too, and measure with COCO's own code, a package")
    add("--half", action="store_true", help="16-bit floats on a GPU; OpenVINO chooses its precision")
    add("--project", default="runs/val", help="folder of the runs")
    add("--name", default="exp", help="name of the run")
    add("--exist-ok", action="store_true", help="write into an existing run's folder")
    cli.add_font(parser)
    add("--trust", action="store_true", help="run a .torchscript file from elsewhere, a program, now and later")
    cli.add_consents(parser)
    parser.ignore("--dnn", reason="ONNX files run in ONNX Runtime, which gives the same boxes")
    parser.refuse("--save-hybrid", reason="labels are not mixed into predictions, which would be measured as found")
    return parser


def main(args: argparse.Namespace) -> dict[str, float]:
    """Validate as `args` say and return the metrics."""
    if wants_several(args.device):
        launch("val.py", args.words, args.device)
        return {}
    cli.log_options("val", args)
    cli.take_consents(args)
    use_font(args.font)
    with process_group(args.device) as device:
        own = str(device or args.device)
        opened: list[OpenedWeights] = []
        told = from_first(lambda: prepare(args, own, opened))
        if not opened:
            opened.append(open_weights(Path(told["weights"]), device=own, half=args.half))
            opened[0].name_classes(told["names"])
        weights, save_dir = opened[0], Path(told["folder"])
        validator = VALIDATORS[weights.task](
            save_dir=save_dir, args=validator_options(args, weights, told["side"], save_dir)
        )
        metrics = validator(model=weights.network)
        if args.coco_json and isinstance(validator, Validator) and validator.boxes:
            metrics |= measure_as_coco(validator.boxes, len(weights.names))
        return metrics


def measure_as_coco(pictures: Sequence[PictureBoxes], classes: int) -> dict[str, float]:
    """Log what COCO's own code says, and return it as "coco/AP", "coco/AP50" and so on; nothing without a package."""
    package = find_package()
    if package is None:
        return {}
    measured = measure_with(package, pictures, classes)
    shown = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
    LOGGER.info(f"COCO's own code ({package.partition('.')[0]}): {shown}")
    return {f"coco/{name}": value for name, value in measured.items()}


def prepare(args: argparse.Namespace, device: str, opened: list[OpenedWeights]) -> dict[str, Any]:
    """Check all that a validation starts from, and make its folder.

    Args:
        args: the options.
        device: of this process.
        opened: receives the weights.

    Returns:
        what other processes need: the path of the weights, their side in pixels, the names of classes, the folder.
    """
    if args.trust:
        trust_weights([args.weights])
    weights = open_weights(find_weights(args.weights), device=device, half=args.half)
    opened.append(weights)
    if args.augment:
        check_augment(weights)
    if args.coco_json:
        check_coco(weights)
    side = choose_side(weights, args.imgsz)
    data = find_data(args.data, weights.path, split=args.task, task=weights.task)
    check_images(data, (args.task,), task=weights.task)
    weights.name_classes(data["names"])
    sources = [str(weights.path), *sources_of(data)] if args.exist_ok else []
    save_dir = increment_path(args.project, args.name, args.exist_ok, sources)
    write_data_yaml(data, save_dir / "data.yaml")
    return {"weights": str(weights.path), "side": side, "names": data["names"], "folder": str(save_dir)}


def check_coco(weights: OpenedWeights) -> None:
    """Say where no package measures as COCO does; UserError for weights that find no boxes."""
    if weights.task == "classify":
        raise UserError(f"--coco-json is for weights that find objects, and {weights.path} classifies: leave it out")
    if find_package() is None:
        LOGGER.warning(
            "--coco-json writes predictions.json, but COCO's own code is not installed, which would measure them too: "
            "pip install faster-coco-eval"
        )


def run(**options: Any) -> dict[str, float]:
    """Validate with the options of the command line as keywords: `run(weights="best.pt", task="test")`."""
    return main(make_parser().from_keywords(**options))


def choose_side(weights: OpenedWeights, asked: int | None) -> int:
    """Return the side in pixels to validate at: `--imgsz`, else that of the weights, else 640.

    An exported file with metadata runs at its own size whatever is asked for, as ultralytics' validator reads it there.

    Raises:
        WeightsError: an exported file does not run.
        UserError: the graph of one without metadata takes another side than `--imgsz`, or is not square.
    """
    has_metadata = hasattr(weights.network, "imgsz")
    size = weights.choose_imgsz([asked] if asked and not (weights.fixed and has_metadata) else None)
    weights.check_runs(size)
    if weights.model is None and not has_metadata and size[0] != size[1]:
        raise UserError(
            f"{weights.path} has no metadata and takes {size[0]}x{size[1]} pixels: export it again to validate it"
        )
    return asked or max(size)


def validator_options(args: argparse.Namespace, weights: OpenedWeights, side: int, save_dir: Path) -> dict[str, Any]:
    """Return ultralytics' options of this validation."""
    return {
        "mode": "val",
        "task": weights.task,
        "data": str(save_dir / "data.yaml"),
        "split": args.task,
        "batch": args.batch_size,
        "imgsz": side,
        "conf": args.conf_thres,
        "iou": args.iou_thres,
        "max_det": args.max_det,
        "device": args.device or None,
        "workers": args.workers,
        "single_cls": args.single_cls,
        "augment": args.augment,
        "save_txt": args.save_txt,
        "save_conf": args.save_conf,
        "save_json": args.save_json or args.coco_json,
        "quantize": 16 if args.half else None,
        "rect": weights.takes_rectangles,
    }


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
