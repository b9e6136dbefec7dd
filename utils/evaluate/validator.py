"""ultralytics' validators on our data sets, for boxes and for masks."""

from __future__ import annotations

from typing import Any

import matplotlib
from ultralytics.models.yolo import segment
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import LOGGER

from models.errors import UserError
from utils.data.dataset import build_dataset
from utils.deploy.backends import Backend, share_options
from utils.drawing.fonts import use_in_plots

matplotlib.rcParams["text.parse_math"] = False  # the names of classes in its plots are no formulas
MOST_PLOTTED = 5_000  # classes; a confusion matrix of them has 200 MB, and drawing it takes three times as much


class Validator(DetectionValidator):
    """ultralytics' validator on our data sets. `args.data` is a file that `write_data_yaml` wrote."""

    def get_model(self, model: Any, trainer: Any = None) -> Any:
        """Return the network to validate; one that is open already is taken as it is, others are copied."""
        return model if isinstance(model, Backend) else super().get_model(model, trainer)

    def build_dataset(self, img_path: str, mode: str = "val", batch: int = 1) -> Any:
        """Return the data set of one split, grouped by shape."""
        stride = max(int(self.stride), 32)
        return build_dataset(self.args, img_path, batch, self.data, mode=mode, rect=self.args.rect, stride=stride)

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
        super().init_metrics(model)
        share_options(model, self.args)


class SegmentationValidator(Validator, segment.SegmentationValidator):
    """Measures masks as well as boxes; a `Validator` in all else."""


VALIDATORS = {"detect": Validator, "segment": SegmentationValidator}
