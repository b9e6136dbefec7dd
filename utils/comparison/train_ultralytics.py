"""Train a model of ultralytics by its own trainer and recipe, for a comparison with what train.py makes of it.

    python -m utils.comparison.train_ultralytics --cfg yolo11n --data my-data.yaml --epochs 50
    python -m utils.convert runs/ultralytics/exp/weights/best.pt             # then it is a checkpoint like every other

Augmentation, loss, optimizer and its settings are ultralytics' defaults; weights start new, and no early stop ends the
training. The data set is described, scanned and read as for train.py, nothing is looked up or reported anywhere, and no
file of the run is read back. A training that was stopped starts anew.

Written to runs/ultralytics/exp, exp2, …: weights/best.pt and last.pt, results.csv and args.yaml, all as ultralytics
writes them; the weights are pickled modules, which `python -m utils.convert` reads without running anything.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from utils import cli

# isort: split
import torch
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import unwrap_model

import utils.train.trainer  # noqa: F401 (with it, ultralytics' trainer neither downloads nor reports)
from models.spec import load_spec
from models.yaml_sources import ULTRALYTICS, read_config
from utils.comparison.entries import check_tasks
from utils.data.dataset import build_dataset
from utils.data.description import BUILT_IN, load_dataset
from utils.data.files import check_images, sources_of
from utils.distributed.group import threads_of_process
from utils.paths import increment_path
from utils.text import printable, quote

WRITTEN = ("weights/best.pt", "weights/last.pt", "results.csv", "args.yaml")  # in the folder of a run


class Own(BaseTrainer):
    """What of ultralytics' trainers is ours: how the data set is read, and that no pickle is.

    Args:
        content: of the model YAML.
        data: what `load_dataset` returned.
        options: of the training, by ultralytics' names.
    """

    def __init__(self, content: dict[str, Any], data: dict[str, Any], options: dict[str, Any]) -> None:
        self.content, self.own_data = content, data
        super().__init__(overrides=options)
        if self.device.type == "cpu":
            torch.set_num_threads(threads_of_process())  # as train.py; ultralytics leaves one core for loading

    def get_dataset(self) -> dict[str, Any]:
        """Return the data set as it was checked; ultralytics would run what its YAML says of a download."""
        return self.own_data

    def build_dataset(self, img_path: str, mode: str = "train", batch: int = 1) -> Any:
        """Return the data set of one split: ultralytics', without caches and .npy files that lie beside pictures."""
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        return build_dataset(self.args, img_path, batch, self.data, mode=mode, rect=mode == "val", stride=stride)

    def get_model(self, cfg: object = None, weights: Any = None, verbose: bool = True) -> Any:  # noqa: ARG002
        """Return the model of the YAML that was read already."""
        return super().get_model(self.content, weights, verbose)

    def final_eval(self) -> None:
        """Leave best.pt as it is: it is measured as all files of a comparison are, and need not be read here."""


class OwnDetectionTrainer(Own, DetectionTrainer):
    """ultralytics' trainer of detectors."""


class OwnSegmentationTrainer(Own, SegmentationTrainer):
    """ultralytics' trainer of detectors with masks."""


TRAINERS = {"detect": OwnDetectionTrainer, "segment": OwnSegmentationTrainer}


def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="python -m utils.comparison.train_ultralytics", description=__doc__)
    add = parser.add_argument
    add("--cfg", required=True, metavar="NAME", help="as ultralytics calls it: yolov8n, yolo11n, yolo26n, yolo11n-seg")
    add("--data", default="", help="data set YAML; default: the built-in shapes")
    add("--epochs", type=cli.positive_int, default=100, help="how often every picture is seen")
    add("--imgsz", "--img", "--img-size", type=cli.image_side, default=640, help="side of the pictures in pixels")
    add("--batch-size", type=cli.positive_int, default=16, help="pictures a step")
    add("--seed", type=cli.non_negative_int, default=0, help="of all random numbers")
    add("--device", type=cli.device, default="", help="cpu, or a GPU by its number; default: the first GPU or the CPU")
    add("--project", default="runs/ultralytics", help="results go to project/name")
    add("--name", default="exp", help="results go to project/name")
    add("--exist-ok", action="store_true", help="replace the run of that name")
    cli.add_consents(parser)
    return parser


def run(**options: object) -> Path:
    """Train from Python: `train_ultralytics.run(cfg="yolo11n", epochs=3)`. Returns the folder of the run.

    Raises:
        UserError: an option is wrong.
    """
    return main(make_parser().from_keywords(**options))


def main(args: argparse.Namespace) -> Path:
    """Check, train, and return the folder of the run."""
    cli.log_options("train_ultralytics", args)
    cli.take_consents(args)
    config = read_config(ULTRALYTICS + args.cfg)
    spec = load_spec(config)
    check_tasks({args.cfg: spec})
    task = spec.task
    data = load_dataset(args.data or BUILT_IN[task], task=task)
    check_images(data, training=True, task=task)
    folder = increment_path(args.project, args.name, args.exist_ok, sources_of(data) if args.exist_ok else ())
    content = {**config.content, "yaml_file": f"{args.cfg}.yaml"}
    for name in WRITTEN:  # ultralytics writes into what is there, a link's target included
        (folder / name).unlink(missing_ok=True)
    place = {"project": args.project, "name": folder.name, "save_dir": str(folder.resolve()), "exist_ok": True}
    asked = {"epochs": args.epochs, "imgsz": args.imgsz, "batch": args.batch_size, "seed": args.seed}
    fixed = {"mode": "train", "task": task, "pretrained": False, "patience": 0, "plots": False}
    options = {**place, **asked, **fixed, "model": content["yaml_file"], "data": data["yaml_file"]}
    TRAINERS[task](content, data, {**options, "device": args.device}).train()
    best = folder / WRITTEN[0]
    LOGGER.info(printable(f"Results saved to {folder.resolve()}\nConvert: python -m utils.convert {quote(best)}"))
    return folder


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
