"""Weights that are open: a checkpoint or an exported file, opened once for everything that runs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from ultralytics.utils.torch_utils import select_device

from models import DetectionModel
from models.errors import UserError, WeightsError
from models.files import why_no_file
from utils.checkpoint import load_checkpoint
from utils.data.description import read_names
from utils.deploy.backends import Backend
from utils.deploy.formats import FORMATS, Format, format_of
from utils.deploy.metadata import check_metadata
from utils.deploy.run import RUN_ERRORS, Outputs, load_runner
from utils.deploy.trust import check_trusted
from utils.sizes import check_imgsz

OutputShape = tuple[int | str, ...]  # a word stands for any number
UNNAMED = 999  # classes that ultralytics gives to weights without names
LOAD_ERRORS = (*RUN_ERRORS, TypeError, ValueError, LookupError, AttributeError, OSError, SystemError)


OTHERS = {"segment": "finds masks as well", "classify": "finds no boxes"}  # what others than detectors do, by task


@dataclass(frozen=True)
class OpenedWeights:
    """Weights that are open; `Predictor` and the validators take them.

    Attributes:
        path: of the checkpoint or the exported file.
        task: one of TASKS of models/spec.py.
        network: runs them: (B, 3, H, W) RGB in [0, 1] to raw outputs. A checkpoint is fused.
        model: the unfused model of a checkpoint; None for an exported file.
        size: that they were trained or exported at, one side or [height, width] in pixels; None where it is not known.
        fixed: they take no other size.
    """

    path: Path
    task: str
    network: Backend
    model: DetectionModel | None
    size: int | Sequence[int] | None
    fixed: bool

    @property
    def names(self) -> dict[int, str]:
        """Class number → name."""
        return self.network.names

    @property
    def is_named(self) -> bool:
        """Whether the classes have names, be it that ultralytics made them up from the outputs."""
        return len(self.names) != UNNAMED

    def name_classes(self, names: Mapping[int, str]) -> None:
        """Give classes that have no names those of a data set."""
        if not self.is_named:
            self.network.backend.names = dict(names)

    @property
    def takes_rectangles(self) -> bool:
        """Whether pictures may be cut to the rectangle that fits; otherwise all have the square of training."""
        return self.model is None or not self.model.wants_one_canvas

    def choose_imgsz(self, asked: Sequence[int] | None) -> list[int]:
        """Return [height, width]: what the user asked for if the weights take it, else their own size, else 640.

        Raises:
            UserError: they take another size only.
        """
        stride = int(self.network.stride)
        size = check_imgsz(asked or self.size or 640, stride)
        if self.fixed and self.size and size != check_imgsz(self.size, stride):
            own = [self.size] if isinstance(self.size, int) else self.size
            only = " ".join(map(str, own))
            raise UserError(f"{self.path.name} takes --imgsz {only} only, for which it was exported")
        return size

    @torch.inference_mode()
    def check_runs(self, size: Sequence[int]) -> None:
        """Run an exported file once on a picture of [height, width]; nothing is to be checked of a checkpoint.

        Raises:
            WeightsError: it cannot, or its outputs are not those of its task and classes.
        """
        if self.model is not None:
            return
        try:
            raw = self.network(torch.zeros(1, 3, *size, device=self.network.device))
        except LOAD_ERRORS as error:
            raise WeightsError(f"{self.path} does not run on a picture of {size[0]}x{size[1]} pixels") from error
        given = [tuple(getattr(output, "shape", ())) for output in (raw if isinstance(raw, (list, tuple)) else [raw])]
        needed = self._needed(given, size)
        if len(given) != len(needed) or not all(map(fits, given, needed)):
            what = f"its {len(self.names)} classes need" if self.is_named else f"the task {self.task} needs"
            raise WeightsError(f"{self.path} gives {shapes_text(given)} where {what} {shapes_text(needed)}")

    def _needed(self, given: Sequence[OutputShape], size: Sequence[int]) -> list[OutputShape]:
        """Return the shapes that the outputs must have, where these were given for a picture of `size`."""
        if self.task == "classify":
            return [(1, len(self.names) if self.is_named else "classes")]
        if self.task == "detect":
            return [self._boxes_needed()]
        masks = given[1][1] if len(given) == 2 and len(given[1]) == 4 else "masks"
        boxes = self._boxes_needed(masks if isinstance(masks, int) else 0)
        return [boxes, (1, masks, size[0] // 4, size[1] // 4)]

    def _boxes_needed(self, masks: int = 0) -> OutputShape:
        """Return the shape of the boxes, each with so many mask coefficients."""
        if self.network.end2end:
            return 1, "boxes", 6 + masks
        return 1, 4 + len(self.names) + masks if self.is_named else "4 + classes", "boxes"


def open_weights(
    path: Path, *, device: str = "", half: bool = False, data: Path | None = None, threads: int | None = None
) -> OpenedWeights:
    """Open a checkpoint of ours or an exported file.

    Args:
        path: .pt, or the file or folder of one of the formats.
        device: '', cpu, mps, or CUDA numbers.
        half: float16 on a GPU; with OpenVINO the precision that the processor likes best.
        data: a dataset YAML, read for the class names when the weights hold none.
        threads: that ONNX Runtime computes on; all cores, which it keeps busy while it waits, where None.

    Raises:
        WeightsError: the file is not one of ours, or damaged.
        UserError: the runtime of an exported file is not there, or the file is a program that nobody has trusted.
    """
    options = {"device": select_device(device), "fp16": half}
    if path.suffix == ".pt":
        model = load_checkpoint(path)
        return OpenedWeights(path, model.task, Backend(model, **options), model, model.imgsz, fixed=False)
    kind = check_export(path)
    check_trusted(path)
    task = check_metadata(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit is deprecated, and loads
            network = Backend(str(path), threads=threads, **options)
    except LOAD_ERRORS as error:
        raise WeightsError(f"{path} is damaged, or no {kind.name} file that runs here") from error
    own = getattr(network, "imgsz", None)
    sides = network.sides_in_graph()
    fixed = [side for side in sides if isinstance(side, int)]
    size = fixed if len(fixed) == 2 else own
    is_fixed = len(fixed) == 2 if sides else own is not None and not network.dynamic
    opened = OpenedWeights(path, task, network, None, size, is_fixed)
    if data and not opened.is_named:
        opened.name_classes(read_names(data))
    return opened


def check_export(path: Path) -> Format:
    """Return the format of an exported file.

    Raises:
        WeightsError: it is of none, or not complete.
        UserError: the format does not run here.
    """
    kind = format_of(path)
    if kind is None:
        raise WeightsError(f"{path} is none of .pt, {', '.join(row.ending for row in FORMATS.values())}")
    if kind.not_run:
        raise UserError(f"{path} does not run here: {kind.title} {kind.not_run}")
    if path.is_dir() and not kind.content:
        raise WeightsError(f"{path} is a folder, and {kind.title} models are files")
    if kind.content and not any(path.rglob(kind.content)):
        raise WeightsError(f"{path} is no {kind.title} model: that is a folder with a file {kind.content}")
    for inner in (path, *path.rglob("*")):
        if not inner.is_dir() and (problem := why_no_file(inner)):
            raise WeightsError(f"{inner} {problem}")
    return kind


def open_runner(path: Path, images: torch.Tensor, threads: int) -> Callable[[], Outputs]:
    """Return a function that runs an exported file, which may come from elsewhere, on a batch; it has run once.

    Args:
        path: the file or folder of one of the formats.
        images: (B, ch, H, W) float32 in [0, 1].
        threads: how many the runtime computes on.

    Raises:
        WeightsError: it is damaged, or takes no such batch.
        UserError: its runtime is not there, or it is a program that nobody has trusted.
    """
    kind = check_export(path)
    check_trusted(path)
    check_metadata(path)
    try:
        run = partial(load_runner(path, threads), images)
        run()
    except LOAD_ERRORS as error:
        raise WeightsError(f"{path} is damaged, or no {kind.name} file that runs on {tuple(images.shape)}") from error
    return run


def check_augment(weights: OpenedWeights) -> None:
    """Raise UserError for weights that do not run at several scales: an export, with masks or without NMS."""
    if weights.model is None:
        raise UserError(f"--augment needs PyTorch weights (.pt), not {weights.path.name}")
    if weights.task != "detect" or weights.model.end2end:
        what = "needs no NMS" if weights.model.end2end else OTHERS[weights.task]
        raise UserError(f"--augment joins boxes of several scales by NMS, but {weights.path.name} {what}: leave it out")


def fits(given: OutputShape, needed: OutputShape) -> bool:
    """Return whether a shape is one that is needed."""
    return len(given) == len(needed) and all(isinstance(n, str) or n == g for g, n in zip(given, needed, strict=True))


def shapes_text(shapes: Sequence[OutputShape]) -> str:
    """Return shapes for a message: `(1, 7, boxes) and (1, 32, 16, 16)`."""
    return " and ".join(f"({', '.join(map(str, shape))})" for shape in shapes) or "nothing"
