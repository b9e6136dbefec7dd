"""The optimizer of a run that names none: that by which the authors of its backbone train it, and why it was taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models import DetectionModel
from models.errors import UserError
from models.parts import backbone_roots
from utils.train.gradients import OPTIMIZERS as SCALED
from utils.train.run import OPTIMIZERS

AUTO = "auto"  # what a recipe says that leaves it to the family of the backbone
DEFAULT = "MuSGD"  # of backbones whose authors say nothing
SMALL_STEPS = "AdamW"
LR0 = 0.001  # of AdamW, for a recipe that names none
STEEP = ("SGD", "MuSGD")  # optimizers that want a learning rate STEEPER times that of AdamW
STEEPER = 10.0
YOLOV5 = "SGD"  # for which the recipes of YOLOv5 are, which name none


def family_optimizer(model: DetectionModel) -> tuple[str, str]:
    """Return the optimizer for a model, and the reason: its backbone's `trained_by`, else DEFAULT.

    Raises:
        UserError: the backbone names an optimizer that there is not.
    """
    for module in backbone_roots(model).values():
        if trained_by := getattr(module, "trained_by", None):
            name, reason = trained_by
            if name not in OPTIMIZERS:
                kind = type(module).__name__
                raise UserError(f"{kind} is trained_by '{name}', which is none of {', '.join(OPTIMIZERS)}")
            return name, reason
    return DEFAULT, "by which convolutional networks learn fastest from new weights"


def chosen_optimizer(model: DetectionModel, options: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the options `optimizer` and `lr0` of a new run, and a reason for the log where neither was given by name.

    Args:
        model: to train.
        options: of its recipe and its flags. Without `optimizer`, they are those of a recipe of YOLOv5's; where it is
            AUTO, `lr0` is meant for AdamW.
    """
    name = options.get("optimizer")
    if name is None:
        return {"optimizer": YOLOV5}, "for which the recipes of YOLOv5 are, which name none"
    if name != AUTO:
        return {}, ""
    name, reason = family_optimizer(model)
    if options["qat"]:
        name, reason = SMALL_STEPS, "for the small steps of --qat"
    elif options["rep_optimizer"] and name not in SCALED:
        name, reason = SMALL_STEPS, f"as --rep-optimizer scales the steps of {' or '.join(SCALED)}"
    return {"optimizer": name, "lr0": options.get("lr0", LR0) * (STEEPER if name in STEEP else 1.0)}, reason
