"""Find objects, and their masks, in pictures and videos with trained or exported weights.

    python detect.py                                                     # newest training, the pictures in data/images
    python detect.py --weights runs/train/exp/weights/best.pt --source photo.jpg
                                                              --source clip.mp4
                                                              --source folder/
                                                              --source 'folder/*.jpg'
                                                              --source list.txt          # a path on each line
                                                              --source 0 1               # two cameras
                                                              --source rtsp://… http://… # streams
                                                              --source cameras.streams   # an address on each line
                                                              --source screen 0 0 640 480
    python detect.py --weights best.onnx --source folder/ --save-txt --save-conf --save-crop --save-csv
    python detect.py --weights a.pt b.onnx --source folder/                              # both, joined by NMS
    python detect.py --source clip.mp4 --track bytetrack --save-txt                      # numbers for objects
    python detect.py --source folder/ --device 0,1                       # shared by two GPUs; cpu,cpu: two processes
    python detect.py --web                                               # a page to drop pictures and videos on
    python detect.py --conf 0.4 --iou 0.5 --classes 0 2 --max-det 100 --img 320 480      # height and width

Weights are .pt (ours) or exports. Written to runs/detect/exp, exp2, …: pictures as .jpg, videos as .mp4,
labels/<name>.txt, crops/<class>/<name>.jpg, predictions.csv. In Python: detect.run(source="photo.jpg").
A stream that is lost is connected to again (--reconnect); one with an end, such as a video's address, ends there.
Weights that segment have masks drawn and polygons for labels. Those of a classifier have the five most probable classes
drawn and printed; --save-txt and --save-csv write them.
The exit code is 1 when a file could not be read (the others are done), 2 when the input was wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from models.errors import UserError
from utils import cli
from utils.data.labels import label_paths
from utils.deploy.trust import trust_weights
from utils.detect.ensemble import Ensemble, create_ensemble
from utils.detect.feature_maps import OUTPUTS, FeatureMaps
from utils.detect.frame import Found
from utils.detect.loop import Speed, predict
from utils.detect.predictor import Predictor
from utils.detect.shared import SharedWriters, check_shareable, check_splits, join_findings, share_of_machine
from utils.detect.sources import AnySource, Files, has_pictures, open_source
from utils.detect.tracking import LOW_CONF, TRACKERS, Tracking
from utils.detect.writers import Wanted, Writers
from utils.distributed.group import from_first, group_size, is_first, is_shared, is_true_of_all, process_group
from utils.distributed.launch import launch, wants_several
from utils.drawing.fonts import use_font

# isort: split
from ultralytics.engine.results import Results
from ultralytics.utils import ASSETS, LOGGER, RANK
from ultralytics.utils.checks import check_imshow

from utils.paths import ROOT, find_file, find_weights, increment_path
from utils.text import printable

PAGE_OPTIONS = ("imgsz", "conf_thres", "iou_thres", "max_det", "device", "classes", "agnostic_nms", "half")
WEB = {
    *PAGE_OPTIONS,
    "web",
    "port",
    "weights",
    "plugins",
    "download",
    "trust",
    "line_thickness",
    "hide_labels",
    "hide_conf",
    "font",
}  # with --web


def make_parser() -> cli.Parser:
    """Return the options: YOLOv5's."""
    parser = cli.Parser(prog="detect.py", description=__doc__)
    add, flag = parser.add_argument, {"action": "store_true"}
    add("--weights", nargs="+", default=[], help="one or several, joined; default: newest runs/train/*/weights/best.pt")
    add("--source", nargs="+", default=[], help="files, folders, patterns, list.txt; or cameras, addresses, screen")
    add("--data", default="", help="dataset YAML, for class names when the weights hold none")
    add("--imgsz", "--img", "--img-size", nargs="+", type=cli.image_side, help="pixels; one side, or height width")
    add("--conf-thres", type=cli.fraction, default=0.25, help="least confidence of a box")
    add("--iou-thres", type=cli.fraction, default=0.45, help="overlap above which the less confident box goes")
    add("--max-det", type=cli.positive_int, default=1000, help="most boxes in one picture")
    add("--device", type=cli.devices, default="", help="cpu, 0, mps; 0,1 or cpu,cpu: a process each; empty: a GPU")
    add("--view-img", **flag, help="show the results in a window; q ends")
    add("--save-txt", **flag, help="write labels/<name>.txt")
    add("--save-format", type=int, choices=(0, 1), default=0, help="0: cx cy w h, or a mask's outline; 1: x1 y1 x2 y2")
    add("--save-conf", **flag, help="add the confidence to the labels")
    add("--save-crop", **flag, help="write each box as a picture")
    add("--save-csv", **flag, help="write predictions.csv")
    add("--nosave", **flag, help="write no pictures and no videos")
    add("--classes", nargs="+", help="keep these classes only, by number or name: 0 2, or 0,2, or cat 'traffic light'")
    add("--agnostic-nms", **flag, help="boxes of different classes suppress each other too")
    add("--augment", **flag, help="run at several scales and mirrored as well")
    add("--track", choices=TRACKERS, help="follow objects through videos and streams, and number them")
    add(
        "--visualize",
        nargs="?",
        const="levels",
        choices=tuple(OUTPUTS),
        help="write features/<name>/P3.png and so on, the maps of the backbone's levels, or of all rows",
    )
    add("--save-npy", **flag, help="write the maps of --visualize as features/<name>/P3.npy and so on as well")
    add("--project", default="runs/detect", help="results go to project/name")
    add("--name", default="exp", help="results go to project/name")
    add("--exist-ok", **flag, help="use project/name again instead of counting up")
    add("--line-thickness", type=cli.non_negative_int, help="of boxes, in pixels; 0, the default, fits the picture")
    add("--hide-labels", **flag, help="draw boxes only")
    add("--hide-conf", **flag, help="draw names without confidences")
    add("--retina-masks", **flag, help="masks as fine as the picture, not as the network's input")
    add("--half", **flag, help="compute in float16 on a GPU; OpenVINO chooses its precision")
    add("--vid-stride", type=cli.positive_int, default=1, help="take every n-th frame of a video")
    add("--reconnect", type=cli.non_negative_int, default=300, help="seconds to connect to a lost stream again; 0: end")
    add("--web", **flag, help="serve a page on this machine to drop pictures and videos on")
    add("--port", type=cli.positive_int, help="of the page of --web; default: the first free one from 7860 on")
    cli.add_font(parser)
    add("--trust", **flag, help="run .torchscript files from elsewhere, which are programs, now and later")
    cli.add_consents(parser)
    parser.ignore("--dnn", reason="ONNX files run in ONNX Runtime, which gives the same boxes")
    parser.ignore("--update", reason="weights/best.pt holds nothing that only training needs")
    return parser


def run(**options: object) -> list[Results]:
    """Detect with the options of the command line as keywords: `detect.run(source="photo.jpg", conf_thres=0.4)`.

    Returns:
        ultralytics' `Results` of each picture and frame in their order, with tensors on the CPU. Those of frames come
        without the frame (`orig_img` is None), which would fill the memory. Of live streams, which may have no end, and
        of the page nothing is kept: `models.load` gives the results of a stream as they come.

    Raises:
        UserError: an option or the input is wrong, or nothing could be read. Broken files among others are logged.
    """
    args = make_parser().from_keywords(**options)
    if wants_several(args.device):
        raise UserError(f"run() returns what one process finds: give one device, or start detect.py with {args.device}")
    kept: list[Results] = []
    source = detect(args, kept)
    if source and source.unreadable and not kept:
        path, reason = next(iter(source.unreadable.items()))
        raise UserError(f"{path} cannot be read: {reason}")
    return kept


def main(args: argparse.Namespace) -> int:
    """Detect, say what was done, and return the exit code."""
    if wants_several(args.device):
        check_shareable(args)
        launch("detect.py", args.words, args.device)
        return 0
    with process_group(args.device) as device:
        if device is not None:
            check_shareable(args)
            args.device = str(device)
        source = detect(args)
        return 0 if is_true_of_all(not (source and source.unreadable)) else 1


def detect(args: argparse.Namespace, kept: list[Results] | None = None) -> AnySource | None:
    """Detect and say what was done.

    Args:
        args: the options.
        kept: takes the results of a source with an end.

    Returns:
        the source, which knows what could not be read; None after --web.

    Raises:
        UserError: an option or the input is wrong.
    """
    cli.log_options("detect", args)
    cli.take_consents(args)
    use_font(args.font)
    if args.web:
        if args.trust:
            trust_weights(args.weights)
        open_page(args)
        return None
    if args.port:
        raise UserError("--port goes with --web")
    if args.save_npy and not args.visualize:
        raise UserError("--save-npy writes the maps of --visualize: give that as well")
    tracking = Tracking(args.track, args.conf_thres) if args.track else None
    own: list[Opened] = []
    told = from_first(lambda: prepare(args, own))
    if not own:
        own.append(opened(args, told["weights"], Files(*told["files"], vid_stride=args.vid_stride)))
    source, finder, features = own[0]
    if isinstance(source, Files):
        source.share = (max(RANK, 0), group_size())
    folder = Path(told["folder"])
    outputs = (SharedWriters if is_shared() else Writers)(folder, wanted_files(args))
    steps = ([tracking.follow] if tracking else []) + ([features.writer(folder / "features")] if features else [])
    if kept is not None and not source.live:
        steps.append(partial(keep, kept))
    with share_of_machine():
        speed = predict(finder, source, outputs, args.view_img and check_imshow(warn=True), steps)
    speed = join_findings(speed, source, outputs)
    if is_first():
        log_report(speed, source, outputs)
    return source


class Opened(NamedTuple):
    """What a process reads from, what detects in it, and what keeps the maps of --visualize, if that is given."""

    source: AnySource
    finder: Predictor | Ensemble
    features: FeatureMaps | None


def prepare(args: argparse.Namespace, own: list[Opened]) -> dict[str, Any]:
    """Open the source and the weights, check that they go with the options, and make the folder of the run.

    Args:
        args: the options.
        own: receives what was opened.

    Returns:
        what other processes need: the files of the source, those of the weights, the folder.
    """
    if args.trust:
        trust_weights(args.weights)
    source = open_source(args.source or default_source(), args.vid_stride, args.reconnect)
    check_splits(source)
    weights = [str(find_weights(name)) for name in args.weights or [None]]
    own.append(opened(args, weights, source))
    files = list(map(str, source.files))
    labels = label_paths(files) if args.exist_ok else []
    sources = [*args.source, *files, *labels]
    wanted = wanted_files(args).anything
    folder = increment_path(args.project, args.name, args.exist_ok, sources) if wanted else Path()
    return {"files": files, "weights": weights, "folder": str(folder)}


def opened(args: argparse.Namespace, weights: Sequence[str], source: AnySource) -> Opened:
    """Open weights for a source.

    Args:
        args: the options.
        weights: paths of the files.
        source: that is read from.

    Raises:
        UserError: the weights cannot be used, or not with these options.
    """
    finder = create_ensemble(
        list(map(Path, weights)),
        imgsz=args.imgsz,
        conf_thres=min(args.conf_thres, LOW_CONF) if args.track else args.conf_thres,
        iou_thres=args.iou_thres,
        max_det=args.max_det,
        classes=args.classes,
        agnostic_nms=args.agnostic_nms,
        augment=args.augment,
        half=args.half,
        device=args.device,
        data=find_file(args.data, "data") if args.data else None,
        retina_masks=args.retina_masks,
        many=not source.live,
    )
    check_finds_boxes(args, finder)
    return Opened(source, finder, FeatureMaps(finder, args.visualize, args.save_npy) if args.visualize else None)


def check_finds_boxes(args: argparse.Namespace, finder: Predictor | Ensemble) -> None:
    """Raise UserError for an option that needs boxes where the weights are a classifier's."""
    if isinstance(finder, Ensemble) or finder.weights.task != "classify":
        return
    for name in ("track", "save_crop"):
        if getattr(args, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag} needs boxes, but {finder.weights.path.name} is a classifier: leave it out")


def keep(results: list[Results], found: Found) -> Found:
    """Add what was found in a frame to results, as `run` returns them, and pass it on."""
    results.append(found.as_tensors(with_image=found.frame.number is None))
    return found


def open_page(args: argparse.Namespace) -> None:
    """Serve the page of --web until Ctrl-C; UserError for an option that the page does not have."""
    from utils.web import find_listed, serve  # noqa: PLC0415 (it exports too, which takes a while to import)

    defaults = vars(make_parser().parse_args([]))
    for name, value in vars(args).items():
        if value != defaults[name] and name not in WEB:
            raise UserError(f"--{name.replace('_', '-')} does not go with --web, whose page takes and shows everything")
    serve(
        find_listed(args.weights),
        args.port,
        wanted_files(args),
        **{name: getattr(args, name) for name in PAGE_OPTIONS},
    )


def default_source() -> Path:
    """Return data/images if there are pictures in it, else the photographs that ship with ultralytics; log which."""
    own = ROOT / "data" / "images"
    source = own if has_pictures(own) else ASSETS
    LOGGER.info(f"no --source given, using {source}")
    return source


def wanted_files(args: argparse.Namespace) -> Wanted:
    """Return which files the options ask for."""
    return Wanted(
        pictures=not args.nosave,
        labels=args.save_txt,
        crops=args.save_crop,
        table=args.save_csv,
        confidence=args.save_conf,
        corners=args.save_format == 1,
        line_width=args.line_thickness,
        draw_names=not args.hide_labels,
        draw_confidence=not args.hide_conf,
        features=bool(args.visualize),
    )


def log_report(speed: Speed, source: AnySource, outputs: Writers) -> None:
    """Log the speed, where the results are, and the files that could not be read."""
    if speed.seen:
        LOGGER.info(speed.line())
        LOGGER.info(f"Total: {speed.seen} images in {speed.total:.1f}s, {speed.seen / speed.total:.1f} a second")
        if outputs.wanted.anything:
            LOGGER.info(printable(f"Results saved to {outputs.folder}"))
        if outputs.wanted.labels:
            LOGGER.info(printable(f"{outputs.label_files} labels saved to {outputs.folder / 'labels'}"))
    if source.unreadable:
        others = source.unreadable.keys() - set(source.files) if isinstance(source, Files) else ()  # not to be found
        LOGGER.warning(f"{len(source.unreadable)} of {len(source) + len(others)} files could not be read:")
        for path, reason in source.unreadable.items():
            LOGGER.info(f"  {printable(path)}: {reason}")


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
