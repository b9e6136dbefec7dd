"""The detection model, which runs the rows of a YAML in order.

    model = DetectionModel("riformer-yolo.yaml", nc=4)
    deploy = switch_to_deploy(model)

It is an ultralytics model to ultralytics' trainer, validator, predictor and exporter, which read `model` (an
`nn.Sequential` with the head last), `stride`, `names`, `yaml`, `task` and `args`, and call `fuse()` before predicting.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER
from ultralytics.utils.loss import E2ELoss
from ultralytics.utils.torch_utils import scale_img

from models.backbones.base import Backbone
from models.blocks.reparam import switch_to_deploy
from models.blocks.widen import widen
from models.errors import ConfigError
from models.heads import AnchorDetect, PublishedClassifier
from models.loss import AnchorGains, AnchorLoss
from models.parser import MAX_PARAMETERS, PICTURE, Slot, common_side, parse_model, with_forms
from models.row_times import row_times_table, time_rows
from models.shared_loss import SharedClassificationLoss, shared_loss
from models.spec import ModelSpec, load_spec
from models.summary import model_table

VIEWS = ((1.0, None), (0.83, 3), (0.67, None))  # of test-time augmentation: scale, and the axis that is mirrored


class DetectionModel(tasks.DetectionModel):
    """A detector built from a model YAML.

    In eval mode `model(x)` of a picture batch (B, ch, H, W), RGB in [0, 1], returns a tuple whose first entry is
    (B, 4 + nc, N): boxes xywh in input pixels and class scores in [0, 1]. In training mode it returns the head's raw
    maps; given a batch dict it returns the loss.

    Args:
        cfg: a YAML's path, the bare name of a file in models/configs, a dict, or a `ModelSpec`.
        ch: channels of the input picture; the YAML's by default.
        nc: number of classes; the YAML's by default.
        verbose: log the table of rows.

    Raises:
        ConfigError: the YAML is wrong; file, row and what was expected are named.
    """

    task = "detect"
    inplace = True  # ultralytics' heads ask for it
    stride: Tensor  # of the head's maps, (levels,)
    names: dict[int, str]

    def __init__(
        self,
        cfg: str | Path | Mapping[str, Any] | ModelSpec = "riformer-yolo.yaml",
        ch: int | None = None,
        nc: int | None = None,
        verbose: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # ultralytics' own constructor would parse the YAML its way
        self.spec = load_spec(cfg).replace(nc=nc, ch=ch)
        if self.spec.task != self.task:
            raise ConfigError(f"{self.spec.name} has a head to {self.spec.task}, which create_model builds")
        graph = parse_model(self.spec)
        self.spec = with_forms(self.spec, graph)
        self.model = nn.Sequential(*graph.modules)
        self.nodes = graph.nodes
        self.features = graph.features
        self.nc = self.spec.nc
        self.names = {i: f"class{i}" for i in range(self.nc)}
        self.stride = cast(Tensor, self.model[-1].stride)
        self.imgsz: int | list[int] = 640  # that it was trained at
        self.ranges: dict[str, tuple[float, float]] = {}  # of a layer's input, where training has learnt them for INT8
        if self.spec.overparameterize:
            self.widen(**self.spec.overparameterize, trained=self.pretrained_modules())
        if verbose:
            self.info()

    @property
    def yaml(self) -> dict[str, Any]:
        """The YAML as ultralytics keeps it."""
        return {**self.spec.as_dict(), "channels": self.spec.ch, "yaml_file": self.spec.name}

    def pretrained_modules(self) -> set[nn.Module]:
        """Return all modules of the rows whose first weights come from a file or a download."""
        rows = zip(self.model, self.nodes, strict=True)
        return {module for row, node in rows if node.row.starts_pretrained for module in row.modules()}

    def widen(self, style: str, trained: Collection[nn.Module] | None = None) -> None:
        """Give the convolutions branches to train with, in place, as the YAML's `overparameterize` does.

        The fused form has nothing more than it had.

        Args:
            style: one of `STYLES` in models/blocks/branches.py.
            trained: modules that have learnt something, and compute with their branches what they did. All by default;
                of the others the branches count as much as the convolutions from the first step on.

        Raises:
            ConfigError: an unknown style, no convolution that could get branches, or too many parameters.
        """
        try:
            widen(self, style, self.example_input(), MAX_PARAMETERS, trained)
        except ConfigError as e:
            raise ConfigError(f"{self.spec.name}: {e}") from e
        self.spec = self.spec.with_branches(style)

    def _predict_once(self, x: Tensor, profile: bool = False, embed: list[int] | None = None) -> Any:
        """Run the rows in order; a slot is let go after its last reader. `profile` logs how long each row takes."""
        if embed:
            raise NotImplementedError("RepYOLO's models give no embeddings")
        if profile:
            return self._profile(x)
        slots: dict[Slot, Any] = {PICTURE: x}
        for module, node in zip(self.model, self.nodes, strict=True):
            inputs = [slots[slot] for slot in node.sources]
            output = module(inputs if node.reads_list else inputs[0])
            slots.update(zip(node.slots, output if node.writes_list else (output,), strict=True))
            for slot in node.last_use:
                del slots[slot]
        return output

    def _profile(self, x: Tensor) -> Any:
        """Return what the rows give, and log how long each of them took; the first run is not counted in eval mode."""
        if not self.training:
            self._predict_once(x)
        output, times = time_rows(self, lambda: self._predict_once(x))
        LOGGER.info(row_times_table(self, times))
        return output

    def _predict_augment(self, x: Tensor) -> Any:
        """Return what is found in three views of the pictures, as YOLOv5 does; ultralytics has it for its own head."""
        if type(self.model[-1]) is not AnchorDetect:
            return super()._predict_augment(x)
        found = []
        for scale, axis in VIEWS:
            view = scale_img(x if axis is None else x.flip(axis), scale, gs=int(self.stride.max()))
            found.append(self._descale_pred(self._predict_once(view)[0], axis, scale, x.shape[2:]))
        return torch.cat(self._clip_augmented(found), -1), None

    def init_criterion(self) -> Any:
        """Return the loss of this head; `args`, which the trainer sets, holds its gains."""
        head = self.model[-1]
        if not isinstance(head, AnchorDetect):
            return E2ELoss(self, shared_loss(head)) if self.end2end else shared_loss(head)(self)
        args = getattr(self, "args", None)
        gains = AnchorGains(**getattr(args, "anchor_gains", {}))
        scaled = gains.scaled(head.nl, head.nc, max(self.imgsz) if isinstance(self.imgsz, list) else self.imgsz)
        return AnchorLoss(head.anchor_sizes, head.stride, head.nc, scaled, getattr(args, "overlap_mask", True))

    def fuse(self, verbose: bool = True, imgsz: int | list[int] = 640) -> DetectionModel:
        """Return the fused copy, as `switch_to_deploy` does; ultralytics' predictor, validator and exporter ask so."""
        return switch_to_deploy(self)

    def is_fused(self) -> bool:
        """Return whether `fuse` has been here."""
        return hasattr(self, "report")

    @property
    def end2end(self) -> bool:
        """Whether predictions need no NMS: what the YAML says, not the option by which ultralytics sets it."""
        return self.spec.end2end

    @end2end.setter
    def end2end(self, value: bool) -> None:
        pass

    @property
    def wants_one_canvas(self) -> bool:
        """Whether features depend on the padding around a picture, as those of a GroupNorm over all of it do.

        Such a model detects and validates on the square canvas that it was trained on, not on a rectangle cut to fit.
        """
        whole = any(isinstance(m, nn.GroupNorm) and m.num_groups == 1 for m in self.modules())
        return whole or self.only_size is not None

    @property
    def only_size(self) -> tuple[int, int] | None:
        """Height and width of the only pictures that the model takes, as some of timm's do; None: any."""
        for backbone, stride in self._backbones():
            if backbone.size:
                height, width = backbone.size
                return round(height * stride), round(width * stride)
        return None

    def _backbones(self) -> Iterator[tuple[Backbone | PublishedClassifier, float]]:
        """Yield the list backbones and the published classifier, with the stride of what each reads."""
        for module, node in zip(self.model, self.nodes, strict=True):
            if isinstance(module, Backbone | PublishedClassifier):
                yield module, self.features[node.sources[0]].stride

    def example_input(self) -> Tensor:
        """Return a small input of zeros, (1, ch, H, W), with the dtype and device of the weights."""
        sides = [round(backbone.example_side * stride) for backbone, stride in self._backbones()]
        least = max(*sides, *(2 * int(feature.stride) for feature in self.features.values()))
        step = common_side(self.features.values())
        side = math.ceil(least / step) * step
        return next(self.parameters()).new_zeros(1, self.spec.ch, *(self.only_size or (side, side)))

    def info(self, detailed: bool = False, verbose: bool = True, imgsz: int | list[int] = 640) -> None:
        """Log the table of rows. The arguments are ultralytics'; the image size decides nothing here."""
        if verbose:
            LOGGER.info(model_table(self))


class SegmentationModel(DetectionModel, tasks.SegmentationModel):
    """A segmenter: a `DetectionModel` whose head gives masks as well.

    In eval mode the first entry of `model(x)` is (predictions (B, 4 + nc + nm, N), prototypes (B, nm, H / 4, W / 4)):
    a box's mask is the sum of the prototypes by its last nm numbers, of which what is above 0 belongs to the object.
    """

    task = "segment"


class ClassificationModel(DetectionModel):
    """A classifier: a model whose head says what a whole picture shows.

    In eval mode `model(x)` is (probabilities (B, nc), logits (B, nc)), in training mode the logits alone.
    """

    task = "classify"

    def init_criterion(self) -> Any:
        """Return cross-entropy; the classes of a batch are numbers (B,) or parts of each (B, nc)."""
        return SharedClassificationLoss()


MODELS = {kind.task: kind for kind in (DetectionModel, SegmentationModel, ClassificationModel)}


def create_model(cfg: str | Path | Mapping[str, Any] | ModelSpec, **options: Any) -> DetectionModel:
    """Return the model that the head of a YAML asks for; arguments and errors are those of `DetectionModel`."""
    spec = load_spec(cfg)
    return MODELS[spec.task](spec, **options)


if __name__ == "__main__":
    import sys

    from utils import cli, describe_model

    sys.exit(cli.run_script(describe_model.main, describe_model.make_parser()))
