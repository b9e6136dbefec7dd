"""Training of classifiers: ultralytics' class folders and augmentations, and batches that are mixed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.utils import colorstr

from utils.data.classes import ClassFolders
from utils.train.trainer import Trainer

MIXUP_ALPHA, CUTMIX_ALPHA = 0.2, 1.0  # of the beta distributions, as in the papers' experiments on ImageNet


class ClassTrainer(Trainer):
    """Trains a `ClassificationModel`: a `Trainer` whose batches are pictures with a class each.

    Of its options `class_smoothing` is ours, the recipe's label_smoothing; `mixup` and `cutmix` are the probabilities
    that a batch is mixed.
    """

    progress_string = ClassificationTrainer.progress_string

    def build_dataset(self, img_path: str, mode: str = "train", batch: int = 1) -> ClassFolders:  # noqa: ARG002
        """Return the data set of one split; that of training is augmented."""
        training = mode == "train"
        return ClassFolders(img_path, self.args, training, colorstr(f"{mode}: "), self.data["names"])

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch on the device, perhaps mixed, with the part that each picture has of each class."""
        batch = ClassificationTrainer.preprocess_batch(self, batch)
        mixed = mix(batch["img"], batch["cls"], self.data["nc"], self.args.mixup, self.args.cutmix)
        batch["img"], targets = mixed
        batch["cls"] = smooth(targets, self.args.class_smoothing)
        return batch

    def plot_training_samples(self, batch: dict[str, Any], ni: int) -> None:
        """Plot a batch, each picture with the class that it has most of."""
        ClassificationTrainer.plot_training_samples(self, {**batch, "cls": batch["cls"].argmax(1)}, ni)

    def plot_training_labels(self) -> None:
        """Plot nothing: there are no boxes."""

    def measured_batch(self) -> int:
        """Return how many pictures a step fit the GPU."""
        return BaseTrainer.auto_batch(self)


def mix(images: Tensor, classes: Tensor, nc: int, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Return pictures (B, C, H, W) and the parts of classes (B, nc) in them, mixed with each other by chance.

    Args:
        images: (B, C, H, W).
        classes: numbers of their classes (B,).
        nc: number of classes.
        mixup: probability that pictures are blended, two by two (https://arxiv.org/abs/1710.09412).
        cutmix: probability that each gets a rectangle of another one (https://arxiv.org/abs/1905.04899).
    """
    from torchvision.transforms import v2  # noqa: PLC0415 (slow, and only classifiers need it)

    drawn = torch.rand(()).item()
    if drawn < cutmix:
        return v2.CutMix(alpha=CUTMIX_ALPHA, num_classes=nc)(images, classes)
    if drawn < cutmix + mixup:
        return v2.MixUp(alpha=MIXUP_ALPHA, num_classes=nc)(images, classes)
    return images, F.one_hot(classes, nc).to(images.dtype)


def smooth(targets: Tensor, part: float) -> Tensor:
    """Return parts of classes (B, nc) of which `part` is spread over all classes alike."""
    return targets * (1 - part) + part / targets.shape[1]
