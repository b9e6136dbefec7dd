"""Turn a checkpoint of YOLOv5, YOLOv7 or ultralytics, which holds pickled modules, into one of ours, which holds data.

With `--arch`, turn published backbone weights into their deploy form, under the names that their authors give it.

    python -m utils.convert yolov5s.pt
    python -m utils.convert yolo11n.pt --output weights/yolo11n.pt
    python -m utils.convert RepVGG-A0-train.pth --arch RepVGG/A0 --output RepVGG-A0-deploy.safetensors

Nothing of the file is imported or run. Afterwards it is used like every other:

    python detect.py --weights yolov5s-repyolo.pt
    python train.py --weights yolov5s-repyolo.pt --data my-data.yaml --cfg riformer-yolo.yaml
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from models import DetectionModel, create_backbone, create_model
from models.backbones.names import split_name
from models.backbones.weights import Adapted, WeightsReport, copy_tensors
from models.errors import ConfigError, UserError, WeightsError
from utils import cli
from utils.checkpoint import pack_model, save_checkpoint
from utils.checkpoint.foreign import ForeignModel, differences, read_model
from utils.checkpoint.published import SAFETENSORS, SUFFIXES, check_target, count_classes, write_published
from utils.checkpoint.unpickle import read_pickled
from utils.text import quote


def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="python -m utils.convert", description=__doc__)
    parser.add_argument(
        "file", nargs="?", default="", help="checkpoint of YOLOv5, YOLOv7 or ultralytics (YOLOv8, YOLO11, YOLO26, ...)"
    )
    parser.add_argument(
        "--arch", metavar="NAME", default="", help="of backbone weights, such as RepVGG/A0: write their deploy form"
    )
    parser.add_argument(
        "--output", default="", help="file to write; empty: FILE-repyolo.pt beside it, or FILE-deploy.pth"
    )
    parser.add_argument("--exist-ok", action="store_true", help="replace the file to write if it exists")
    parser.add_argument("--allow-partial", action="store_true", help="keep whatever fits, even if it is little")
    return parser


def main(args: argparse.Namespace) -> Path:
    """Convert as `args` say and return the file that was written."""
    if not args.file:
        raise UserError("name a checkpoint of YOLOv5, YOLOv7 or ultralytics: python -m utils.convert FILE.pt")
    file = Path(args.file)
    if args.arch:
        return convert_backbone(file, args)
    output = Path(args.output) if args.output else file.with_name(f"{file.stem}-repyolo.pt")
    if output.is_dir() or (output.exists() and output.samefile(file)):
        raise UserError(
            f"{output} is {'a folder' if output.is_dir() else 'the file to convert'}, name another --output"
        )
    if output.exists() and not args.exist_ok:
        raise UserError(f"{output} exists: name another file with --output, or replace it with --exist-ok")
    foreign = read_model(read_pickled(file), str(file))
    model, report = convert(foreign, str(file), allow_partial=args.allow_partial)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint({**pack_model(model), "ema": model.state_dict()}, output)
    LOGGER.info(conversion_table(foreign, model, report))
    LOGGER.info(
        f"\nSaved {output} ({output.stat().st_size / 1e6:.1f} MB)"
        f"\nDetect:   python detect.py --weights {quote(output)}"
        f"\nValidate: python val.py --weights {quote(output)} --data DATA.yaml"
        f"\nTrain:    python train.py --weights {quote(output)} --data DATA.yaml"
    )
    return output


def convert_backbone(file: Path, args: argparse.Namespace) -> Path:
    """Write the deploy form of backbone weights, with their classification head if they have one; return its file."""
    suffix = SAFETENSORS if file.suffix == SAFETENSORS else SUFFIXES[0]
    output = Path(args.output) if args.output else file.with_name(f"{file.stem}-deploy{suffix}")
    check_target(output, file, "--output", args.exist_ok)
    kind, arch = split_name(args.arch)
    read = partial(create_backbone, kind, arch, num_classes=count_classes(kind, file), allow_partial=args.allow_partial)
    network = read(weights=file).eval()
    LOGGER.info(f"{args.arch}: {network.weights_report}")
    LOGGER.info(write_published(network, output, lambda written: read(weights=written)))
    return output


def convert(foreign: ForeignModel, name: str, allow_partial: bool = False) -> tuple[DetectionModel, WeightsReport]:
    """Return the model of RepYOLO that computes what a foreign one does, in eval mode, and what of it matched.

    Args:
        foreign: what was read from a file.
        name: of the file, for messages.
        allow_partial: keep whatever fits, and warn where the model computes something else.

    Raises:
        WeightsError: a row that there is not here, tensors that are missing or too many, modules that compute something
            else than ours, or a weight that is not finite.
    """
    try:
        model = create_model(foreign.yaml)
    except ConfigError as e:
        raise WeightsError(f"{name} holds a model that cannot be built here: {e}") from e
    report = copy_tensors(model, Adapted(foreign.tensors), name, allow_partial=allow_partial)
    if (report.missing or report.unexpected) and not allow_partial:
        raise WeightsError(f"{report} (--allow-partial keeps what fits, as a start for training)")
    different = differences(model, foreign.modules)
    if different:
        more = f" and {len(different) - 1} more" if len(different) > 1 else ""
        problem = f"{name} holds a model that computes something else than ours of its YAML: {different[0]}{more}"
        if not allow_partial:
            raise WeightsError(f"{problem} (--allow-partial keeps the weights, as a start for training)")
        LOGGER.warning(problem)
    model.names = foreign.names or model.names
    model.imgsz = foreign.imgsz
    return model.eval(), report


def conversion_table(foreign: ForeignModel, model: DetectionModel, report: WeightsReport) -> str:
    """Return what was read, and how many tensors matched, are missing and were not expected."""
    named = "" if foreign.names else ", without their names"
    lines = [f"{report.source}: {model.spec.name} of {foreign.maker}, to {model.task} {model.nc} classes{named}"]
    lines.append(f"  matched     {report.matched}")
    for title, names in (("missing", report.missing), ("unexpected", report.unexpected)):
        lines.append(f"  {title:<11} {len(names)}{'  ' if names else ''}{', '.join(names[:3])}{_more(names)}")
    if report.missing:
        lines.append("  the missing ones start new, so train before you use it")
    return "\n".join(lines)


def _more(names: tuple[str, ...]) -> str:
    return ", ..." if len(names) > 3 else ""


def run(file: str | Path, **options: Any) -> Path:
    """Convert with the options of the command line as keywords: `run("yolov5s.pt", output="weights/mine.pt")`."""
    args = make_parser().from_keywords(**options)
    args.file = file
    return main(args)


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
