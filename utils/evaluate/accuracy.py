"""How well several networks do their task on one data set: ultralytics' validator, one pass over the pictures.

Every picture is read and prepared once and given to all networks, so that they are compared on the same numbers, and
whoever wants to compare their raw outputs can look on.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from ultralytics.utils import LOGGER

from models import DetectionModel
from utils.data.description import write_data_yaml
from utils.data.samples import evenly
from utils.deploy.run import Outputs, Runner, load_runner
from utils.evaluate.validator import ClassValidator, SegmentationValidator, Validator

Observe = Callable[[Sequence[str], Tensor, Mapping[str, Outputs]], None]  # file names, (B, ch, H, W), network → outputs

VAL_CONF, VAL_IOU, VAL_MAX_DET = 0.001, 0.6, 300  # val.py's defaults


class Metric(NamedTuple):
    """One of the numbers of an `Accuracy`."""

    statistic: str  # ultralytics' name of it
    title: str  # in tables
    key: str  # in reports, of points
    judges: bool = False  # networks are compared by it
    shown: bool = True  # in tables and reports, beside the drop


METRICS = {  # by the names of the attributes of `Accuracy`; of a task the judge comes first
    "map": Metric("metrics/mAP50-95(B)", "mAP50-95", "map50_95", judges=True),
    "map50": Metric("metrics/mAP50(B)", "mAP50", "map50"),
    "mask_map": Metric("metrics/mAP50-95(M)", "mask mAP50-95", "mask_map50_95", judges=True, shown=False),
    "mask_map50": Metric("metrics/mAP50(M)", "mask mAP50", "mask_map50", shown=False),
    "top1": Metric("metrics/accuracy_top1", "top-1", "top1", judges=True),
    "top5": Metric("metrics/accuracy_top5", "top-5", "top5"),
}
JUDGES = {  # task: what its networks are compared by, for messages
    "detect": METRICS["map"].title,
    "segment": METRICS["map"].title,
    "classify": METRICS["top1"].title,
}


@dataclass(frozen=True)
class Accuracy:
    """How well a network does its task, each number in [0, 1]; those of other tasks are None.

    Attributes:
        map50: mAP of the boxes at IoU 0.5.
        map: the mean over IoU 0.5 to 0.95.
        mask_map50: of a segmenter the same of its masks.
        mask_map: likewise.
        top1: of a classifier the part of the pictures whose class is the most probable one.
        top5: or among the five most probable ones.
    """

    map50: float | None = None
    map: float | None = None
    mask_map50: float | None = None
    mask_map: float | None = None
    top1: float | None = None
    top5: float | None = None

    def as_dict(self) -> dict[str, float]:
        """Return what there is."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    @property
    def points(self) -> dict[Metric, float]:
        """What tables show, in points, the one that judges first."""
        found = self.as_dict()
        return {metric: 100 * found[name] for name, metric in METRICS.items() if name in found and metric.shown}

    def drop_to(self, other: Accuracy) -> float:
        """Return by how many points `other` is worse: mAP of boxes or masks, whichever lost more, or top-1."""
        mine, theirs = self.as_dict(), other.as_dict()
        return 100 * max(mine[key] - theirs[key] for key, m in METRICS.items() if m.judges and key in mine)


def measure_accuracy(
    networks: Mapping[str, Runner],
    model: DetectionModel,
    data: dict[str, Any],
    size: tuple[int, int],
    batch: int = 1,
    most: int = 0,
    observe: Observe = lambda *_: None,
) -> dict[str, Accuracy]:
    """Return the accuracy of each network on the val split of a data set.

    Args:
        networks: name → what runs it; they all do the task of `model`, with its classes.
        model: says what the outputs mean.
        data: what `load_dataset` returned.
        size: height and width that the pictures are letterboxed to; those to classify are scaled and cropped.
        batch: pictures at a time; the last batch may hold fewer.
        most: the number of pictures, taken evenly from the split; 0 takes all.
        observe: called with every batch and what the networks put out for it.

    Raises:
        UserError: the data set has other classes, or nothing that can be used.
    """
    several = SeveralNetworks(model, networks)
    with tempfile.TemporaryDirectory() as folder, _without_talk():
        write_data_yaml(data, Path(folder) / "data.yaml")
        options = _options(model.task, Path(folder), max(size), batch)
        validator = COMPARISONS[model.task](several, most, observe, save_dir=Path(folder), args=options)
        validator.args.imgsz = list(size)
        stats = validator(model=several)
    return {name: _accuracy(stats[name]) for name in networks}


def measure_file(path: Path, model: DetectionModel, data: dict[str, Any], size: tuple[int, int]) -> Accuracy:
    """Return the accuracy of one exported file of `model` on the val split of a data set; arguments are those above."""
    return measure_accuracy({path.name: load_runner(path)}, model, data, size)[path.name]


class SeveralNetworks(nn.Module):
    """Several networks as one that ultralytics validates: it returns the outputs of the first and keeps those of all.

    Args:
        model: says what the outputs mean.
        networks: name → what runs it.

    Attributes:
        outputs: name → what that network put out for the last batch.
    """

    def __init__(self, model: DetectionModel, networks: Mapping[str, Runner]) -> None:
        super().__init__()
        self.networks = networks
        self.outputs: dict[str, Outputs] = {}
        self.names, self.stride, self.end2end, self.yaml = model.names, model.stride, model.end2end, model.yaml

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """Run all networks on (B, ch, H, W)."""
        self.outputs = {name: run(images) for name, run in self.networks.items()}
        return self.output_of(next(iter(self.outputs)))

    def output_of(self, name: str) -> Tensor | Outputs:
        """Return what one network put out for the last batch, as ultralytics takes it: a single tensor by itself."""
        outputs = self.outputs[name]
        return outputs if len(outputs) > 1 else outputs[0]


class Comparison:
    """What validators have in common that validate several networks in one pass over the pictures.

    ultralytics keeps what it measures of a network in a few attributes, which are exchanged for each of them in turn.
    The validation returns a dictionary of name → statistics.

    Args:
        several: what is validated.
        most: the number of pictures, taken evenly from the split; 0 takes all.
        observe: called with every batch and what the networks put out for it.
        settings: of ultralytics' validator.
    """

    measured: tuple[str, ...] = ("metrics",)  # the attributes
    args: Any
    keeps_boxes = False

    def __init__(self, several: SeveralNetworks, most: int, observe: Observe, **settings: Any) -> None:
        super().__init__(**settings)
        self.several, self.most, self.observe = several, most, observe

    def get_model(self, model: Any, trainer: Any = None) -> Any:  # noqa: ARG002
        """Return the model itself: ultralytics would copy it, which sessions do not allow."""
        return model

    def get_dataloader(self, dataset_path: str, batch_size: int) -> DataLoader:
        """Return batches of the pictures that were chosen."""
        dataset = self.build_dataset(dataset_path)  # type: ignore[attr-defined]
        chosen = Subset(dataset, evenly(range(len(dataset)), self.most))
        return DataLoader(chosen, batch_size, collate_fn=getattr(dataset, "collate_fn", None))

    def init_metrics(self, model: Any) -> None:
        """Start to measure each network."""
        super().init_metrics(model)  # type: ignore[misc]
        self.args.save_json = False  # ultralytics would measure COCO a second time
        start = {key: getattr(self, key) for key in self.measured}
        self.measured_of = {name: copy.deepcopy(start) for name in self.several.networks}

    def update_metrics(self, preds: Any, batch: dict[str, Any]) -> None:
        """Measure all networks on one batch, of which `preds` are the first one's, after NMS if there is any."""
        for i, (name, measured) in enumerate(self.measured_of.items()):
            vars(self).update(measured)
            own = self.postprocess(self.several.output_of(name)) if i else preds  # type: ignore[attr-defined]
            super().update_metrics(own, batch)  # type: ignore[misc]
        self.observe(batch["im_file"], batch["img"], self.several.outputs)

    def get_stats(self) -> dict[str, Any]:
        """Return the statistics of each network by its name."""
        stats = {}
        for name, measured in self.measured_of.items():
            vars(self).update(measured)
            stats[name] = super().get_stats()  # type: ignore[misc]
        return stats

    def get_desc(self) -> str:
        """Return the title of the progress bar."""
        return "comparing pictures of the val split"

    def print_results(self) -> None:
        """Print nothing: one table reports on all networks."""


class ComparisonValidator(Comparison, Validator):
    """Measures the boxes of several networks."""


class SegmentationComparisonValidator(Comparison, SegmentationValidator):
    """Measures masks as well as boxes."""


class ClassComparisonValidator(Comparison, ClassValidator):
    """Measures the classes that several networks give pictures."""

    measured = ("metrics", "pred", "targets")


COMPARISONS: dict[str, Any] = {
    "detect": ComparisonValidator,
    "segment": SegmentationComparisonValidator,
    "classify": ClassComparisonValidator,
}


def _options(task: str, folder: Path, side: int, batch: int) -> dict[str, Any]:
    """Return ultralytics' options of this validation."""
    options: dict[str, Any] = {"mode": "val", "task": task, "data": str(folder / "data.yaml"), "split": "val"}
    options |= {
        "batch": batch,
        "imgsz": side,
        "conf": VAL_CONF,
        "iou": VAL_IOU,
        "max_det": VAL_MAX_DET,
        "device": "cpu",
    }
    return options | {"workers": 0, "plots": False, "rect": False}


def _accuracy(stats: dict[str, float]) -> Accuracy:
    return Accuracy(**{key: float(stats[m.statistic]) for key, m in METRICS.items() if m.statistic in stats})


@contextmanager
def _without_talk() -> Iterator[None]:
    """Keep ultralytics from logging a validation; its warnings and its progress bar stay."""

    def is_worth_saying(record: Any) -> bool:
        return record.levelno > LOGGER.level

    LOGGER.addFilter(is_worth_saying)
    try:
        yield
    finally:
        LOGGER.removeFilter(is_worth_saying)
