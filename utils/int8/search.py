"""The search for the INT8 file that is fast enough and good enough: which layers stay in float, and what that costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from torch import Tensor
from ultralytics.utils import LOGGER

from models import DetectionModel
from models.errors import UserError
from utils.deploy.files import digest, size_of
from utils.deploy.formats import FORMATS, Format
from utils.deploy.run import load_runner
from utils.evaluate.accuracy import Accuracy, measure_file
from utils.int8.calibration import batches
from utils.int8.quantize import MIN_OPSET, FloatGraph, LayerNoise, import_nncf, quantize_openvino
from utils.int8.share import Share, layers_of_onnx, layers_of_openvino, share_of
from utils.latency import Latency, measure

FORMATS_WITH_INT8 = ("onnx", "openvino")
MOST_IN_FLOAT = 0.5  # of the layers may stay in float; the rest would hardly be an INT8 file
LARGEST_MAX_DROP = 100.0  # points
NOISE_PICTURES = 16  # pictures that signal-to-noise ratios are measured on
INT8_ROUNDS = 5  # of measuring latency


@dataclass(frozen=True)
class Int8:
    """What to quantize with, and what it may cost."""

    data: dict[str, Any]  # what `load_dataset` gave: its val split judges
    pictures: tuple[Path, ...]  # of its training split, to calibrate on
    max_drop: float = 1.0  # points of mAP50-95 or top-1 below the float file
    reduce_range: bool = False  # 7 bits for the weights of ONNX files


@dataclass(frozen=True)
class Point:
    """One file of the search: so many of the worst layers in float, and what came of it."""

    floats: int
    accuracy: Accuracy
    drop: float  # points of mAP50-95 or top-1 below the float file
    path: Path  # in the temporary folder
    bytes: int


@dataclass
class Quantization:
    """The search for one format; `path` is the file with the fewest layers in float that drops no more than allowed."""

    format: Format
    layers: list[LayerNoise]  # worst first
    points: list[Point]  # in the order of `floats`; the last one is the float file
    max_drop: float
    pictures: int  # it was calibrated on
    data: str  # the data set's file
    latency: dict[int, Latency] = field(default_factory=dict)  # floats → of the file
    file: Path | None = None  # the chosen one, under its final name
    share: Share | None = None  # of the network that is in INT8 in it

    @property
    def chosen(self) -> Point | None:
        """The file to publish; None when no file of at most half of the layers in float was good enough."""
        good = [point for point in self.points[:-1] if point.drop <= self.max_drop]
        return min(good, key=lambda point: point.floats) if good else None

    @property
    def ok(self) -> bool:
        """Whether there is a file to publish."""
        return self.chosen is not None

    @property
    def kept(self) -> list[str]:
        """The layers that are in float."""
        return [layer.name for layer in self.layers[: self.chosen.floats if self.chosen else 0]]

    @property
    def speed(self) -> float:
        """How many times as fast as the float file the chosen one is."""
        fast = {floats: latency.minimum for floats, latency in self.latency.items()}
        return fast[len(self.layers)] / fast[self.chosen.floats] if self.chosen else 0.0

    def take(self, folder: Path, stem: str) -> Path:
        """Move the chosen file into `folder` as `stem`-int8 with the format's ending, and return its path there."""
        if self.chosen is None:
            raise ValueError("there is no file that is good enough")
        self.file = self.chosen.path.replace(folder / f"{stem}-int8{self.format.ending}")
        return self.file

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        chosen, fast = self.chosen, {floats: latency.minimum for floats, latency in self.latency.items()}
        return {
            "data": self.data,
            "calibration_pictures": self.pictures,
            "max_drop": self.max_drop,
            **({"file": self.file.name, "bytes": size_of(self.file), "sha256": digest(self.file)} if self.file else {}),
            "drop": round(chosen.drop, 3) if chosen else None,
            "speedup": round(self.speed, 3) if chosen else None,
            "share": dataclasses.asdict(self.share) if self.share else None,
            "float_layers": self.kept,
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "curve": [
                {
                    "float_layers": point.floats,
                    **{metric.key: round(value, 3) for metric, value in point.accuracy.points.items()},
                    "drop": round(point.drop, 3),
                    "latency_min_ms": round(fast[point.floats], 3),
                    "bytes": point.bytes,
                }
                for point in self.points
            ],
            "ok": self.ok,
        }


# The whole of it ------------------------------------------------------------------------------------------------------
def check_int8(
    formats: Sequence[str], opset: int, half: bool, size: Sequence[int], batch: int, max_drop: float, judge: str
) -> None:
    """Raise UserError for options of an export that do not go with `--int8`."""
    if half:
        raise UserError("--int8 and --half are two precisions: choose one")
    if not 0 <= max_drop <= LARGEST_MAX_DROP:
        raise UserError(f"--max-drop is a number of points of {judge} from 0 to {LARGEST_MAX_DROP:g}, not {max_drop:g}")
    if not set(formats) & set(FORMATS_WITH_INT8):
        raise UserError(f"--int8 is for {' and '.join(FORMATS_WITH_INT8)}, of which --include names none")
    if opset < MIN_OPSET:
        raise UserError(f"--int8 needs an --opset of at least {MIN_OPSET}, in which scales may differ between channels")
    if size[0] != size[1]:
        raise UserError(
            f"--int8 is judged by {judge}, on square pictures: --imgsz of one side, not {size[0]} {size[1]}"
        )
    if batch > 1:
        raise UserError(f"--int8 is judged by {judge}, a picture at a time: --batch-size 1, not {batch}")
    if "openvino" in formats:
        import_nncf()


def quantize(
    files: Mapping[str, Path], graph_file: Path, model: DetectionModel, shape: Sequence[int], options: Int8
) -> dict[str, Quantization]:
    """Quantize the float files of an export; what is tried is written beside `graph_file`.

    Args:
        files: format → float file or folder.
        graph_file: the float ONNX file, on which layers are looked at.
        model: the fused one that the files hold; its `ranges` are those that training for INT8 has found.
        shape: of the input: batch, channels, height, width.
        options: what to quantize with.

    Returns:
        format → what was found, for those of `files` that have INT8.
    """
    graph, folder = FloatGraph(graph_file), graph_file.parent

    def inputs(what: str, most: int | None = None) -> Iterator[Tensor]:
        return batches(options.pictures[:most], shape, f"INT8: {what}", model.task)

    ranges = graph.calibrate(inputs("calibrating"), folder, model.ranges)
    whole = graph.quantized(ranges, reduce_range=options.reduce_range)
    layers = graph.measure_noise(whole, inputs("signal-to-noise ratios", NOISE_PICTURES))

    def write_onnx(path: Path, floats: Collection[str]) -> None:
        onnx.save(graph.quantized(ranges, floats, options.reduce_range), str(path))

    def write_openvino(path: Path, floats: Collection[str]) -> None:
        quantize_openvino(files["openvino"], path, inputs("calibrating OpenVINO"), graph.ends, floats)

    writers = {"onnx": write_onnx, "openvino": write_openvino}
    readers: dict[str, Callable[[Path], list[str]]] = {
        "onnx": partial(layers_of_onnx, graph),
        "openvino": layers_of_openvino,
    }
    evaluate = partial(measure_file, model=model, data=options.data, size=(shape[-2], shape[-1]))
    image = next(inputs("latency", 1))
    found = {}
    for name in (name for name in files if name in FORMATS_WITH_INT8):
        points = search(
            FORMATS[name],
            layers,
            partial(_write, writers[name], folder, FORMATS[name].ending),
            files[name],
            evaluate,
            options.max_drop,
        )
        found[name] = Quantization(
            FORMATS[name], layers, points, options.max_drop, len(options.pictures), options.data["yaml_file"]
        )
        found[name].latency = measure_points(points, image)
        if chosen := found[name].chosen:
            found[name].share = share_of(model, readers[name](chosen.path), (shape[-2], shape[-1]))
    return found


def _write(writer: Callable[[Path, Collection[str]], None], folder: Path, ending: str, floats: Collection[str]) -> Path:
    """Return the file that `writer` wrote with some layers in float, whose name is their number."""
    path = folder / f"{len(floats)}{ending}"
    writer(path, floats)
    return path


# The search -----------------------------------------------------------------------------------------------------------
def search(
    kind: Format,
    layers: list[LayerNoise],
    write: Callable[[Collection[str]], Path],
    reference: Path,
    evaluate: Callable[[Path], Accuracy],
    max_drop: float,
) -> list[Point]:
    """Return files with more and more of the worst layers in float, until one drops no more than `max_drop`.

    Their number doubles until the drop is small enough, and is halved back to the smallest that is.

    Args:
        kind: the format.
        layers: worst first.
        write: writes a file with some layers in float.
        reference: the float file.
        evaluate: measures a file's accuracy.
        max_drop: points of mAP50-95 or top-1.

    Returns:
        one point for each file, in the order of the layers in float; the last one is the float file.
    """
    whole = evaluate(reference)
    last = Point(len(layers), whole, 0.0, reference, size_of(reference))
    _log_point(kind, last, len(layers))
    found: dict[int, Point] = {}

    def attempt(floats: int) -> bool:
        path = write([layer.name for layer in layers[:floats]])
        accuracy = evaluate(path)
        found[floats] = Point(floats, accuracy, whole.drop_to(accuracy), path, size_of(path))
        _log_point(kind, found[floats], len(layers))
        return found[floats].drop <= max_drop

    most = int(MOST_IN_FLOAT * len(layers))
    steps = [0, *(2**i for i in range(most.bit_length()) if 2**i <= most)]
    bad = -1
    for floats in steps:
        if attempt(floats):
            while floats - bad > 1:
                middle = (floats + bad) // 2
                floats, bad = (middle, bad) if attempt(middle) else (floats, middle)  # noqa: PLW2901
            break
        bad = floats
    return [*(found[floats] for floats in sorted(found)), last]


def _log_point(kind: Format, point: Point, layers: int) -> None:
    what = "float" if point.floats == layers else f"{point.floats} of {layers} layers in float"
    accuracy = ", ".join(f"{metric.title} {value:.2f}" for metric, value in point.accuracy.points.items())
    LOGGER.info(f"INT8 {kind.title}: {what}: {accuracy}, drop {point.drop:.2f}")


def measure_points(points: Sequence[Point], images: Tensor) -> dict[int, Latency]:
    """Return how long each file takes for one batch, in turns: number of layers in float → latency."""
    return measure({point.floats: partial(load_runner(point.path), images) for point in points}, INT8_ROUNDS)


# Output ---------------------------------------------------------------------------------------------------------------
def layer_table(layers: Sequence[LayerNoise], count: int = 10) -> str:
    """Return the `count` worst layers as text."""
    shown = layers[:count]
    width = max(len("layer"), *(len(layer.name) for layer in shown)) + 2
    lines = [f"{'layer':<{width}}{'SQNR':>8}{'max/std of the weights':>25}{'median channel':>17}"]
    lines += [
        f"{layer.name:<{width}}{layer.sqnr:>5.1f} dB{layer.weight_range:>25.1f}{layer.typical_range:>17.1f}"
        for layer in shown
    ]
    if len(layers) > count:
        lines.append(f"{len(layers) - count} more have a ratio of {layers[count].sqnr:.1f} dB and above")
    return "\n".join(lines)


def curve_table(found: Quantization) -> str:
    """Return the curve of drop against speed as text, the chosen file marked."""
    whole = found.latency[len(found.layers)].minimum
    titles = "".join(f"{metric.title:>10}" for metric in found.points[0].accuracy.points)
    lines = [f"{'layers in float':>16}{titles}{'drop':>8}{'latency':>13}{'speed':>8}{'size':>11}"]
    for point in found.points:
        latency = found.latency[point.floats].minimum
        accuracy = "".join(f"{value:>10.2f}" for value in point.accuracy.points.values())
        lines.append(
            f"{point.floats:>12}/{len(found.layers):<3}{accuracy}{point.drop:>8.2f}"
            f"{latency:>10.1f} ms{whole / latency:>7.2f}x{point.bytes / 1e6:>8.1f} MB"
            f"{'  <- written' if point is found.chosen else ''}"
        )
    return "\n".join(lines)


def draw_curves(found: Sequence[Quantization], path: Path) -> Path:
    """Write a picture of drop against latency, each point labelled with its layers in float; return its path."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (slow, and only this picture needs it)

    judge = next(iter(found[0].points[0].accuracy.points))
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for one in found:
        x = [one.latency[point.floats].minimum for point in one.points]
        y = [point.drop for point in one.points]
        axes.plot(x, y, marker="o", label=f"{one.format.title}, {len(one.layers)} layers")
        for point, *place in zip(one.points, x, y, strict=True):
            axes.annotate(str(point.floats), (place[0], place[1]), textcoords="offset points", xytext=(4, 4))
    axes.axhline(found[0].max_drop, color="gray", linestyle=":", label="--max-drop")
    axes.set(xlabel="latency on the CPU in ms", ylabel=f"drop of {judge.title} in points", title="Layers left in float")
    axes.legend()
    figure.savefig(path, dpi=120)
    return path
