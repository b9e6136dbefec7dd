"""How well several networks detect the objects of one data set: ultralytics' validator, one pass over the pictures.

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
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from ultralytics.utils import LOGGER

from models import DetectionModel
from utils.data.description import write_data_yaml
from utils.data.samples import evenly
from utils.deploy.run import Outputs, Runner, load_runner
from utils.evaluate.validator import SegmentationValidator, Validator

Observe = Callable[[Sequence[str], Tensor, Mapping[str, Outputs]], None]  # file names, (B, ch, H, W), network → outputs

VAL_CONF, VAL_IOU, VAL_MAX_DET = 0.001, 0.6, 300  # val.py's defaults


@dataclass(frozen=True)
class Accuracy:
    """mAP in [0, 1]: at IoU 0.5, and the mean over IoU 0.5 to 0.95; of a segmenter that of its masks as well."""

    map50: float
    map: float
    mask_map50: float | None = None
    mask_map: float | None = None

    def as_dict(self) -> dict[str, float]:
        """Return what there is."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def drop_to(self, other: Accuracy) -> float:
        """Return by how many points the mAP of `other` is lower, boxes or masks, whichever lost more."""
        pairs = [(self.map, other.map), (self.mask_map, other.mask_map)]
        return 100 * max(mine - theirs for mine, theirs in pairs if mine is not None and theirs is not None)


def measure_accuracy(
    networks: Mapping[str, Runner],
    model: DetectionModel,
    data: dict[str, Any],
    size: tuple[int, int],
    batch: int = 1,
    most: int = 0,
    observe: Observe = lambda *_: None,
) -> dict[str, Accuracy]:
    """Return the mAP of each network on the val split of a data set.

    Args:
        networks: name → what runs it; they all do the task of `model`, with its classes.
        model: says what the outputs mean.
        data: what `load_dataset` returned.
        size: height and width that the pictures are letterboxed to.
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
    """Return the mAP of one exported file of `model` on the val split of a data set; arguments are those above."""
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


class ComparisonValidator(Validator):
    """Validates several networks in one pass over the pictures, each with metrics of its own.

    What ultralytics measures of a network is in `self.metrics` alone, so this is exchanged for each of them in turn.
    The validation returns a dictionary of name → statistics.

    Args:
        several: what is validated.
        most: the number of pictures, taken evenly from the split; 0 takes all.
        observe: called with every batch and what the networks put out for it.
        settings: of ultralytics' validator.
    """

    metrics: Any  # of the network that is being measured
    keeps_boxes = False

    def __init__(self, several: SeveralNetworks, most: int, observe: Observe, **settings: Any) -> None:
        super().__init__(**settings)
        self.several, self.most, self.observe = several, most, observe

    def get_model(self, model: Any, trainer: Any = None) -> Any:  # noqa: ARG002
        """Return the model itself: ultralytics would copy it, which sessions do not allow."""
        return model

    def get_dataloader(self, dataset_path: str, batch_size: int) -> DataLoader:
        """Return batches of the pictures that were chosen."""
        dataset = self.build_dataset(dataset_path, batch=batch_size)
        chosen = Subset(dataset, evenly(range(len(dataset)), self.most))
        return DataLoader(chosen, batch_size, collate_fn=dataset.collate_fn)

    def init_metrics(self, model: Any) -> None:
        """Start to measure each network."""
        super().init_metrics(model)
        self.args.save_json = False  # ultralytics would measure COCO a second time
        self.metrics_of = {name: copy.deepcopy(self.metrics) for name in self.several.networks}

    def update_metrics(self, preds: Any, batch: dict[str, Any]) -> None:
        """Measure all networks on one batch, of which `preds` are the first one's boxes."""
        for i, (name, metrics) in enumerate(self.metrics_of.items()):
            self.metrics = metrics
            super().update_metrics(self.postprocess(self.several.output_of(name)) if i else preds, batch)
        self.observe(batch["im_file"], batch["img"], self.several.outputs)

    def get_stats(self) -> dict[str, Any]:
        """Return the statistics of each network by its name."""
        stats = {}
        for name, metrics in self.metrics_of.items():
            self.metrics = metrics
            stats[name] = super().get_stats()
        return stats

    def get_desc(self) -> str:
        """Return the title of the progress bar."""
        return "comparing pictures of the val split"

    def print_results(self) -> None:
        """Print nothing: one table reports on all networks."""


class SegmentationComparisonValidator(ComparisonValidator, SegmentationValidator):
    """Measures masks as well as boxes; a `ComparisonValidator` in all else."""


COMPARISONS = {"detect": ComparisonValidator, "segment": SegmentationComparisonValidator}


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
    keys = {"map50": "mAP50(B)", "map": "mAP50-95(B)", "mask_map50": "mAP50(M)", "mask_map": "mAP50-95(M)"}
    return Accuracy(**{key: float(stats[f"metrics/{of}"]) for key, of in keys.items() if f"metrics/{of}" in stats})


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
