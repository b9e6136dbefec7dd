"""Write a trained model for other programs, fused, and prove that every file computes what the model computes.

    python export.py                                                     # newest training, TorchScript and ONNX
    python export.py --weights runs/train/exp/weights/best.pt --include onnx --imgsz 480 640   # height and width
    python export.py --include onnx --dynamic --simplify --opset 18      # batch, height and width stay free
    python export.py --include onnx --dynamic batch                      # the batch alone, as servers like it
    python export.py --include openvino --half                           # a folder, best_openvino_model
    python export.py --include ncnn mnn litert executorch coreml         # for phones and boards
    python export.py --include onnx --nms --preprocess bgr               # bytes in, boxes out; thresholds are inputs
    python export.py --data my-data.yaml                                 # proven on the val split, and by its mAP
    python export.py --source my/pictures --pictures 500                 # proven on pictures without labels
    python export.py --include onnx --int8                               # quantized as well: best-int8.onnx
    python export.py --no-fuse                                           # keep the training branches
    python export.py --cfg riformer-yolo.yaml --output /tmp/timing       # freshly initialised weights, for timing
    python export.py --timm mobileone_s0 --weights FILE                  # timm's classifier, which takes RGB in [0, 1]

Written beside the weights: best.torchscript, best.onnx, and best.export.json with the errors that the proof found;
with --data or --source best.export.jpg as well, which shows the picture with the largest error from both sides.
A format that this machine can write but not run is marked as not proven, with the reason; one that it cannot write is
refused before anything is written, with what to install.
Fusing is the default, and --fuse says so. In Python: export.run(weights="best.pt", include=["onnx"]).
The exit code is 2 when the input was wrong, and 1 when a file disagrees with the unfused model: then none of the files
is written, but best.export-failed.json and .jpg, which say by how much and in which row of the YAML they part.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models import DetectionModel, create_model
from models.backbones.weights import SOURCES
from models.errors import UserError
from models.summary import count_parameters
from utils import cli
from utils.checkpoint import load_checkpoint
from utils.checkpoint.published import count_classes
from utils.data.description import load_dataset
from utils.data.files import check_images, data_of_run, files_of, find_data, list_images
from utils.data.pictures import is_readable
from utils.data.samples import PHOTOS
from utils.deploy.ends import ORDERS, Nms
from utils.deploy.files import size_of
from utils.deploy.formats import DEFAULT_FORMATS, FORMATS, check_formats, check_possible, format_of
from utils.deploy.fresh import fresh_model
from utils.deploy.write import ABLE, DEFAULT_OPSETS, EXPORTERS, ExportError, check_exporter, check_opset
from utils.detect.sources import Files
from utils.evaluate.accuracy import JUDGES
from utils.export import Options, Report, export
from utils.export.report import fused_text
from utils.int8.calibration import calibration_pictures
from utils.int8.search import MOST_IN_FLOAT, Int8, check_int8, curve_table, layer_table
from utils.prove.at_scale import ProofPictures, scale_table
from utils.prove.report import proof_table

# isort: split
import torch
from ultralytics.utils import LOGGER

from utils.paths import find_weights, increment_path, is_utf8
from utils.sizes import check_imgsz
from utils.text import printable, quote

FEW = 2  # pictures of one's own that take the place of the photographs in the proof of every size
IMAGENET_CLASSES = 1000  # of a timm classifier without weights
THINGS = {"detect": "boxes", "segment": "boxes", "classify": "classes"}  # what networks find, by task
MANY = 128  # pictures that --data and --source take by default


def make_parser() -> cli.Parser:
    """Return the options: YOLOv5's, and what fusing adds."""
    parser = cli.Parser(prog="export.py", description=__doc__)
    add, flag = parser.add_argument, {"action": "store_true"}
    add("--weights", default="", help="checkpoint; default: the newest runs/train/*/weights/best.pt")
    add(
        "--cfg",
        default="",
        help="model YAML, timm:NAME, ultralytics:NAME: export freshly initialised weights instead, for timing",
    )
    add("--timm", default="", metavar="NAME", help="timm's classifier of that name, with timm's file in --weights")
    add("--output", default="", help="folder of the files; default: beside the weights, with --cfg runs/export/exp*")
    add("--include", nargs="+", default=list(DEFAULT_FORMATS), metavar="FORMAT", help=f"of {', '.join(FORMATS)}")
    add("--data", default="", help="dataset YAML or class folders: prove on its val split, errors and accuracy")
    add("--source", nargs="+", default=[], help="pictures to prove on: files, folders, patterns, .txt lists of these")
    add("--pictures", type=cli.non_negative_int, default=MANY, help="of --data or --source, evenly taken; 0: all")
    add("--imgsz", "--img", "--img-size", nargs="+", type=cli.image_side, help="pixels; one side, or height width")
    add("--batch-size", type=cli.positive_int, default=1, help="pictures in one input")
    add("--device", type=cli.device, default="cpu", help="cpu, or a CUDA number; the proof runs on the CPU")
    add("--fuse", action=argparse.BooleanOptionalAction, default=True, help="fuse all that can be fused")
    add(
        "--dynamic",
        nargs="?",
        const=True,
        default=False,
        choices=["batch"],
        help="leave batch, height and width free, or the batch alone",
    )
    add("--half", **flag, help="float16 weights; what computes in float16, too, depends on the format")
    add("--int8", **flag, help="quantize as well, calibrated on the train split of --data, or of the weights' own")
    add("--max-drop", type=cli.finite_float, default=1.0, help="points of mAP50-95 or top-1 that --int8 may cost")
    add("--calibration-pictures", type=cli.positive_int, default=100, help="of the training split, for --int8")
    add("--reduce-range", **flag, help="7-bit weights in ONNX, for x86 processors without VNNI")
    add("--simplify", **flag, help="slim the ONNX graph with onnxslim")
    add("--opset", type=cli.positive_int, help=f"ONNX operator set; default: {DEFAULT_OPSETS}".replace("'", ""))
    add(
        "--exporter",
        choices=tuple(EXPORTERS),
        default="torchscript",
        help="of ONNX: torch's tracing one, or torch.export",
    )
    add("--preprocess", choices=ORDERS, help="take bytes (B, H, W, 3) in this order instead of numbers in [0, 1]")
    add("--nms", **flag, help="end in NMS, whose thresholds are inputs; ONNX only")
    add("--conf-thres", type=cli.fraction, default=Nms.conf_thres, help="with --nms: least confidence by default")
    add("--iou-thres", type=cli.fraction, default=Nms.iou_thres, help="with --nms: overlap by default")
    add("--agnostic-nms", **flag, help="with --nms: across classes by default")
    add("--max-det", "--topk-all", type=cli.positive_int, default=Nms.max_det, help="with --nms: boxes in one picture")
    add("--verbose", **flag, help="show what ultralytics and torch say while they write")
    cli.add_consents(parser)
    add_foreign(parser)
    return parser


def add_foreign(parser: cli.Parser) -> None:
    """Add the flags of YOLOv5's export.py that do not apply here."""
    parser.refuse("--optimize", reason="ExecuTorch has come after PyTorch Mobile; --include executorch writes it")
    parser.refuse("--train", reason="a file is for inference; --no-fuse keeps the branches of training in it")
    parser.ignore("--inplace", reason="no head computes in place, so there is nothing to choose")
    parser.ignore("--workspace", reason="TensorRT takes what memory the GPU has", values=1)
    parser.ignore("--cache", reason="TensorRT's timings are not kept", values=1)
    parser.refuse(
        "--keras", reason="no Keras models are written; --include litert gives TensorFlow's format for phones"
    )
    parser.refuse("--mlmodel", reason="an .mlpackage has taken the place of .mlmodel; --include coreml writes it")
    parser.refuse("--per-tensor", reason="INT8 weights have a scale for each channel, which is more accurate")
    parser.refuse("--topk-per-class", reason="boxes are counted in all classes together, by --max-det", values=1)


def run(**options: object) -> int:
    """Export from Python: `export.run(weights="best.pt", imgsz=[480, 640])`. Returns the exit code, 0 or 1.

    Raises:
        UserError: an option is wrong.
    """
    return main(make_parser().from_keywords(**options))


def main(args: argparse.Namespace) -> int:
    """Load, write, prove and report; return the exit code."""
    start = time.perf_counter()
    cli.log_options("export", args)
    cli.take_consents(args)
    asked = check_asked(args)
    model, path, folder = load_model(args)
    check_surroundings(args, model, asked.formats)
    options = add_pictures(asked, args, model, path)
    log_start(model, path, options)
    try:
        report = export(model, folder, path.stem, path.name, options)
    except ExportError as error:
        LOGGER.error(printable(error))
        return 1
    log_result(report, time.perf_counter() - start, args.data)
    return 0 if report.ok else 1


def check_asked(args: argparse.Namespace) -> Options:
    """Return the options that do not depend on the model; UserError for those that no model can be exported with."""
    formats, exporter = check_formats(args.include), check_exporter(args.exporter)
    opset = check_opset(args.opset or DEFAULT_OPSETS[exporter], exporter)
    gpu = args.device not in ("", "cpu", "mps")
    check_possible(formats, dynamic=args.dynamic, half=args.half, batch=args.batch_size, gpu=gpu)
    return Options(
        formats=formats,
        batch=args.batch_size,
        device=args.device,
        fuse=args.fuse,
        dynamic=args.dynamic,
        half=args.half,
        simplify=args.simplify,
        opset=opset,
        exporter=exporter,
        nms=Nms(args.conf_thres, args.iou_thres, args.agnostic_nms, args.max_det) if args.nms else None,
        preprocess=args.preprocess,
        verbose=args.verbose,
    )


def add_pictures(options: Options, args: argparse.Namespace, model: DetectionModel, path: Path) -> Options:
    """Return the options with the input size and the pictures for this model, which was read from `path`."""
    few, proof_pictures, listed = gather(args, model)
    read = (path, *args.plugins, *args.source, *listed)
    size = check_imgsz(args.imgsz or model.imgsz, int(model.stride.max()))
    if args.int8:
        check_int8(options.formats, options.opset, args.half, size, args.batch_size, args.max_drop, JUDGES[model.task])
    int8 = quantization(args, path, model) if args.int8 else None
    return dataclasses.replace(
        options, size=(size[0], size[1]), pictures=few, proof_pictures=proof_pictures, int8=int8, read=read
    )


def check_surroundings(args: argparse.Namespace, model: DetectionModel, formats: tuple[str, ...]) -> None:
    """Raise UserError for a model or a format that cannot have NMS or bytes around it."""
    for option, able in ABLE.items():
        unable = [name for name in formats if name not in able]
        if getattr(args, option) and unable:
            raise UserError(f"--{option} is not for {', '.join(unable)}: give --include {' '.join(able)}")
    if args.int8 and (args.nms or args.preprocess):
        raise UserError("--int8 quantizes the network alone: leave out --nms and --preprocess")
    if args.half and args.exporter == "dynamo" and "onnx" in formats:
        raise UserError("--half cannot convert what --exporter dynamo writes: leave out one of them")
    if model.task == "classify" and args.nms:
        raise UserError("a classifier has no boxes: leave out --nms")
    if args.nms and model.end2end:
        raise UserError("the model gives each object once and needs no NMS: leave out --nms")
    if args.preprocess and model.spec.ch != 3:
        raise UserError(f"--preprocess is for pictures of 3 channels, and the model takes {model.spec.ch}")


def load_model(args: argparse.Namespace) -> tuple[DetectionModel, Path, Path]:
    """Return the model, the file that it comes from, and the folder that its exports go to."""
    if args.cfg and (args.weights or args.timm):
        raise UserError("give --weights, or --cfg for freshly initialised ones, not both")
    if args.timm:
        return load_timm(args)
    if args.cfg:
        model = fresh_model(args.cfg)
        path = model.spec.file or Path(model.spec.name)
        return model, path, Path(args.output) if args.output else increment_path("runs/export", "exp")
    path = find_weights(args.weights)
    folder = Path(args.output) if args.output else path.parent
    if not is_utf8(folder.absolute() / path.name):
        raise UserError(f"the exports of {path} would be called what is not UTF-8, which torch cannot write: --output")
    return load_checkpoint(path), path, folder


def load_timm(args: argparse.Namespace) -> tuple[DetectionModel, Path, Path]:
    """Return timm's classifier of a name as `load_model` does, with the weights of a file or initialised ones."""
    weights = args.weights
    classes = count_classes("timm", weights) if weights else None
    row = ["picture", 1, "Classifier", ["timm", args.timm, *([weights] if weights else [])]]
    cfg = {"nc": classes or IMAGENET_CLASSES, "head": [row], "yaml_file": f"{args.timm}.yaml"}
    model = create_model(cfg).eval() if weights else fresh_model(cfg)
    height, width = model.example_input().shape[2:]
    model.imgsz = [height, width]
    is_file = weights and not weights.startswith(tuple(SOURCES))
    path = Path(weights) if is_file else Path(f"{args.timm}.yaml")
    own = path.parent if is_file else None
    return model, path, Path(args.output) if args.output else own or increment_path("runs/export", "exp")


def gather(
    args: argparse.Namespace, model: DetectionModel
) -> tuple[tuple[Path, ...], ProofPictures | None, tuple[str, ...]]:
    """Return a few pictures to prove every size on, the many that --data and --source name, other files of --data."""
    if not args.data and not args.source:
        return PHOTOS, None, ()
    source = " ".join(args.source)
    name = " and ".join(filter(None, (args.data, source)))
    files = list(Files(*args.source).pictures) if args.source else []
    if args.source and not files:
        raise UserError(f"there is no picture in the source {source}")
    data = load_dataset(args.data, task=model.task) if args.data else None
    pictures = [Path(image) for image in list_images(data["val"], data["path"])] if data else []
    few = readable(pictures + files, name)
    if data and not args.cfg and is_labelled(data, model.task):  # fresh weights have no accuracy
        check_classes(data, model)
        return few, ProofPictures(data, tuple(files), args.pictures, name), ()  # Options.sources lists those of `data`
    listed = tuple(files_of(data)) if data else ()
    return few, ProofPictures(None, tuple(pictures + files), args.pictures, name), listed


def readable(files: Sequence[Path], name: str) -> tuple[Path, ...]:
    """Return the first few pictures that can be read."""
    found = tuple(itertools.islice(filter(is_readable, files), FEW))
    if not found:
        raise UserError(f"none of the pictures of {name} can be read")
    return found


def quantization(args: argparse.Namespace, weights: Path, model: DetectionModel) -> Int8:
    """Return what to quantize with: the data set that --data names, else that of the weights' training."""
    data = find_data(args.data, weights, task=model.task)
    check_images(data, task=model.task)
    check_classes(data, model)
    pictures = calibration_pictures(data, args.calibration_pictures)
    LOGGER.info(f"INT8: {len(pictures)} calibration pictures of {printable(data['train'])}")
    return Int8(data, tuple(pictures), args.max_drop, args.reduce_range)


def is_labelled(data: dict[str, Any], task: str) -> bool:
    """Return whether the val split of a data set has labels, and say so if it has not."""
    try:
        check_images(data, ("val",), task=task)
    except UserError as error:
        LOGGER.warning(f"{error}; its pictures are compared, {JUDGES[task]} is not measured")
        return False
    return True


def check_classes(data: dict[str, Any], model: DetectionModel) -> None:
    """Raise UserError for a data set that is not of the model's kind."""
    given, known = (data["nc"], data["channels"]), (model.nc, model.spec.ch)
    if given != known:
        raise UserError(
            f"the weights know {known[0]} classes and {known[1]} channels, {Path(data['yaml_file']).name} has "
            f"{given[0]} and {given[1]}: name the data set that they were trained on, or pictures with --source"
        )


def log_start(model: DetectionModel, path: Path, options: Options) -> None:
    """Log where the export starts from."""
    with torch.no_grad():
        outputs = model.eval()(torch.zeros(options.batch, model.spec.ch, *options.size))[0]
    shapes = " and ".join(str(tuple(o.shape)) for o in (outputs if isinstance(outputs, tuple) else (outputs,)))
    fresh = path.suffix in (".yaml", ".yml")
    source, size = (f"fresh weights of {path.name}", "") if fresh else (path, f" ({_megabytes(path)})")
    LOGGER.info(printable(f"PyTorch: starting from {source} with output shape {shapes}{size}"))


def log_result(report: Report, seconds: float, data: str) -> None:
    """Log what fused, the proof, and where the files are or why there are none."""
    found = [*fused_lines(report), *written_lines(report), *proof_lines(report), *int8_lines(report)]
    LOGGER.info("\n".join(found))
    if not report.ok:
        LOGGER.error(refusal(report))
        return
    LOGGER.info("\n".join([*latency_lines(report), *saved_lines(report), *closing_lines(report, seconds, data)]))


def fused_lines(report: Report) -> list[str]:
    """Return what fused, and how many parameters that leaves."""
    before, after = count_parameters(report.model), count_parameters(report.deploy)
    return [
        f"Fused: {fused_text(report.deploy)}",
        f"Parameters: {before:,} in training, {after:,} in deployment",
        "",
    ]


def written_lines(report: Report) -> list[str]:
    """Return a line for each file on how long writing it took and how large it is."""
    lines = []
    for name, written in report.written.items():
        opset = f", opset {written.opset}, checked" if written.opset else ""
        lines.append(f"{FORMATS[name].title}: written in {written.seconds:.1f}s ({written.bytes / 1e6:.1f} MB{opset})")
    return lines


def proof_lines(report: Report) -> list[str]:
    """Return the table of the proof, and that of the proof on many pictures if there was one."""
    allowed = ", with the tolerance of float16" if report.options.half else ""
    lines = [
        "",
        f"Compared with the unfused model in float32{allowed}:",
        proof_table(report.proofs, THINGS[report.model.task]),
        "",
    ]
    if report.scale_proofs and report.options.proof_pictures:
        pictures, size = report.options.proof_pictures, report.options.size
        lines += [scale_table(report.scale_proofs, pictures, size, THINGS[report.model.task]), ""]
    return lines


def int8_lines(report: Report) -> list[str]:
    """Return what quantization did to the layers of each format, and what keeping some in float costs and brings."""
    lines = []
    for found in report.quantized.values():
        lines += [
            f"INT8 {found.format.title}, calibrated on {found.pictures} pictures; the layers that suffer most:",
            layer_table(found.layers),
            "",
            f"The worst layers in float, {JUDGES[report.model.task]} in points:",
            curve_table(found),
            *([f"In the file that is written, {found.share}."] if found.share else []),
            "",
        ]
    return lines


def refusal(report: Report) -> str:
    """Return why none of the files was put in its place."""
    if report.quantized:
        return (
            f"no INT8 file with at most {MOST_IN_FLOAT:.0%} of its layers in float stays within --max-drop; nothing "
            f"was written, and what was there before stays: train with --qat, or give a larger --max-drop"
        )
    shown = " and ".join(map(str, report.evidence))
    refused = "the files disagree with the model; none was written, and what was there before stays"
    return printable(f"{refused}. What was found: {shown}")


def latency_lines(report: Report) -> list[str]:
    """Return how long the model and each file take for one batch."""
    threads = torch.get_num_threads()
    lines = [f"Latency at batch {report.options.batch} on {threads} CPU thread(s), median (minimum):"]
    for name, latency in report.latency.items():
        title = FORMATS[name].title if name in FORMATS else f"PyTorch {name}"
        lines.append(f"{title:>18} {latency.median:8.1f} ms ({latency.minimum:.1f})")
    return lines


def saved_lines(report: Report) -> list[str]:
    """Return where each file is."""
    lines = []
    for name, written in report.written.items():
        place = next(path for path in report.files if format_of(path) == FORMATS[name])
        saved = f"saved as {place} ({_megabytes(place)})"
        lines.append(f"{FORMATS[name].title}: export success ✅ {written.seconds:.1f}s, {saved}")
    for found in report.quantized.values():
        place = report.files[-1].parent / str(found.file and found.file.name)
        lines.append(f"INT8 {found.format.title}: {found.speed:.2f}x as fast ✅ saved as {place}")
    return [printable(line) for line in lines]


def closing_lines(report: Report, seconds: float, data: str) -> list[str]:
    """Return how long it all took, where the report is, and what can be done with the files.

    `data` is the data set that the user named; without one, only files beside a training can be validated as they are.
    """
    place = report.files[-1]
    lines = [f"Results saved to {place.parent.resolve()}, the proof in {place}"]
    lines += [f"Worst case: {path}" for path in report.evidence[:1]]
    runs = [path for path in report.files if (kind := format_of(path)) and not kind.not_run]
    for path in runs[-1:]:
        weights = quote(path)
        lines.append(f"Detect:    python detect.py --weights {weights}")
        if data or data_of_run(path):
            lines.append(f"Validate:  python val.py --weights {weights}{f' --data {quote(data)}' if data else ''}")
    return [
        "",
        f"Export complete ({seconds:.1f}s)",
        *map(printable, lines),
        "Visualize: https://netron.app",
    ]


def _megabytes(path: Path) -> str:
    return f"{size_of(path) / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
