"""ultralytics' validators on our data sets, for boxes, for masks and for classes of pictures."""

from __future__ import annotations

import math
from typing import Any

import matplotlib
from torch import Tensor
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.yolo import segment
from ultralytics.models.yolo.classify import ClassificationValidator
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import LOGGER, colorstr
from ultralytics.utils.ops import scale_boxes

from models.environment import patch_ultralytics
from models.errors import UserError
from utils.data.classes import ClassFolders
from utils.data.dataset import build_dataset
from utils.deploy.backends import Backend, share_options
from utils.distributed.gradients import mean_over_batches
from utils.distributed.group import await_all, first_before_others, gather_lists, group_size, is_shared
from utils.distributed.shards import Shard, shard_loader
from utils.drawing.fonts import use_in_plots
from utils.evaluate.coco import SIZES, PictureBoxes, count_sizes, mean_average_precisions

matplotlib.rcParams["text.parse_math"] = False  # the names of classes in its plots are no formulas
MOST_PLOTTED = 5_000  # classes; a confusion matrix of them has 200 MB, and drawing it takes three times as much


class OwnData:
    """What validators have in common here: they run what is open, on our data sets, and check its classes."""

    args: Any
    data: Any
    device: Any
    dataloader: Any
    training: bool
    loss: dict[str, Tensor]  # sums over the batches

    def get_model(self, model: Any, trainer: Any = None) -> Any:
        """Return the network to validate; one that is open already is taken as it is, others are copied."""
        return model if isinstance(model, Backend) else super().get_model(model, trainer)  # type: ignore[misc]

    def init_metrics(self, model: Any) -> None:
        """Start to measure; UserError when the weights know other classes than the data set."""
        known, described = len(model.names), len(self.data["names"])
        if known != described and not self.args.single_cls:
            raise UserError(
                f"the weights know {known} classes and the data set has {described}: name the data set that they were "
                f"trained on, or treat all classes as one with --single-cls"
            )
        if self.args.plots and described > MOST_PLOTTED:
            LOGGER.warning(f"nothing is plotted: a confusion matrix of {described:,} classes would not fit in memory")
            self.args.plots = False
        if self.args.plots:
            use_in_plots("".join(self.data["names"].values()))
        super().init_metrics(model)  # type: ignore[misc]
        share_options(model, self.args)

    def get_dataloader(self, dataset_path: str, batch_size: int) -> Any:
        """Return the loader of a split, or of this process's part of each batch."""
        batch_size = math.ceil(batch_size / group_size()) * group_size()
        with first_before_others():
            loader = super().get_dataloader(dataset_path, batch_size)  # type: ignore[misc]
        if not is_shared():
            return loader
        shard = Shard(len(loader.dataset), batch_size, shuffle=False, least=0)
        return shard_loader(loader.dataset, shard, self.args.workers, self.device)

    def gather_stats(self) -> None:
        """Bring together what the processes have found, each in its own pictures."""
        await_all()
        super().gather_stats()  # type: ignore[misc]
        if self.training and is_shared():
            means = mean_over_batches(self.loss, len(self.dataloader))
            self.loss = {name: mean * len(self.dataloader) for name, mean in means.items()}  # by which it is divided


class Validator(OwnData, DetectionValidator):
    """ultralytics' validator on our data sets. `args.data` is a file that `write_data_yaml` wrote.

    Attributes:
        boxes: what was found in each picture and what is there; none while training.
    """

    keeps_boxes = True  # for what COCO measures

    def init_metrics(self, model: Any) -> None:
        """Start to measure."""
        super().init_metrics(model)
        self.boxes: list[PictureBoxes] = []

    def _process_batch(self, preds: dict[str, Tensor], batch: dict[str, Any]) -> Any:
        """Return what of one picture is right, and keep its boxes."""
        if self.keeps_boxes and not self.training:
            self.boxes.append(boxes_of(preds, batch))
        return super()._process_batch(preds, batch)

    def gather_stats(self) -> None:
        """Bring together what the processes have found, each in its own pictures."""
        super().gather_stats()
        self.boxes = gather_lists(self.boxes)

    def get_stats(self) -> dict[str, Any]:
        """Return the statistics, with COCO's of objects by size where there are any."""
        stats = super().get_stats()
        if self.boxes:
            sizes = mean_average_precisions(self.boxes)
            stats = {key: value for key, value in stats.items() if key not in SIZE_KEYS.values()}
            stats |= {SIZE_KEYS[size]: sizes[size] for size in SIZES if size in sizes}
            self.by_size = by_size_line(sizes, count_sizes(self.boxes))
        return stats

    def print_results(self) -> None:
        """Log the table, and the accuracy by size below it."""
        super().print_results()
        if self.boxes:
            LOGGER.info(self.by_size)

    def eval_json(self, stats: dict[str, Any]) -> dict[str, Any]:
        """Return the statistics as they are: ultralytics would measure COCO's here, if it finds a package for that."""
        return super().eval_json(stats) if self.is_coco or self.is_lvis else stats

    def build_dataset(self, img_path: str, mode: str = "val", batch: int = 1) -> Any:
        """Return the data set of one split, grouped by shape."""
        stride = max(int(self.stride), 32)
        return build_dataset(self.args, img_path, batch, self.data, mode=mode, rect=self.args.rect, stride=stride)


SIZE_KEYS = {size: f"metrics/mAP_{size}(B)" for size in SIZES}  # ultralytics' names


def boxes_of(preds: dict[str, Tensor], batch: dict[str, Any]) -> PictureBoxes:
    """Return the boxes of a picture, in its own pixels; arguments are those of `_process_batch`."""

    def original(boxes: Tensor) -> Any:
        scaled = scale_boxes(batch["imgsz"], boxes.clone(), batch["ori_shape"], ratio_pad=batch["ratio_pad"])
        return scaled.cpu().double().numpy()

    return PictureBoxes(
        found=original(preds["bboxes"]),
        conf=preds["conf"].cpu().double().numpy(),
        cls=preds["cls"].cpu().long().numpy(),
        true=original(batch["bboxes"]),
        true_cls=batch["cls"].cpu().long().numpy(),
    )


def by_size_line(precisions: dict[str, float], counts: dict[str, int]) -> str:
    """Return the accuracy by size as a line of text."""
    parts = [f"{size} {precisions[size]:.3g} ({counts[size]} objects)" for size in SIZES if size in precisions]
    return f"By COCO's rules mAP50-95 is {precisions.get('all', 0):.3g}; of it {', '.join(parts)}"


class SegmentationValidator(Validator, segment.SegmentationValidator):
    """Measures masks as well as boxes; a `Validator` in all else."""


class ClassValidator(OwnData, ClassificationValidator):
    """Measures top-1 and top-5 of a classifier: how often the class is the most probable one, or among the five."""

    def build_dataset(self, img_path: str) -> ClassFolders:
        """Return the data set of one split."""
        prefix = colorstr(f"{self.args.split}: ")
        return ClassFolders(img_path, self.args, augment=False, prefix=prefix, names=self.data["names"])


patch_ultralytics(check_cls_dataset=check_det_dataset)
VALIDATORS: dict[str, type[Validator | ClassValidator]] = {
    "detect": Validator,
    "segment": SegmentationValidator,
    "classify": ClassValidator,
}
