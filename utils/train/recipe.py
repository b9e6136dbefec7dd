"""The recipe of a training: a YAML of hyper-parameters, checked, with what the command line says instead."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import Any

from ultralytics.cfg import check_cfg
from ultralytics.utils import LOGGER

from models.errors import UserError, did_you_mean
from models.loss import AnchorGains
from utils.checkpoint.fields import described
from utils.data.description import read_yaml
from utils.paths import find_file
from utils.train.family import AUTO, STEEP
from utils.train.run import ANCHOR_FREE, CHECKED, HYPS, RECIPE, hyper_parameters

SGD_LR0 = 0.01  # of SGD and MuSGD; the recipes' lr0 is for AdamW
QAT_EPOCHS, QAT_LR = 5, 0.05  # of --qat: epochs, and the part of lr0 to start with, without warm-up
ANCHOR_GAINS = tuple(field.name for field in dataclasses.fields(AnchorGains))  # of the loss of heads with anchors
OPTION_OF = {"label_smoothing": "class_smoothing"}  # hyper-parameters whose option has another name
NOT_NUMBERS = ("optimizer", "cos_lr", "auto_augment")  # of a recipe
UNUSED = ("iou_t", "anchors")  # of YOLOv5's recipes: nothing reads the first; the other stands in the model YAML


def choose_recipe(args: argparse.Namespace, task: str = "detect") -> dict[str, Any]:
    """Return the hyper-parameters of a recipe for a task, with what flags say instead."""
    recipe = read_recipe(args, task)
    if args.label_smoothing is not None:
        if task == "classify":
            recipe["class_smoothing"] = args.label_smoothing
        else:
            recipe["anchor_gains"]["label_smoothing"] = args.label_smoothing
    if args.optimizer in STEEP and not args.hyp:
        recipe["lr0"] = SGD_LR0
    if args.qat and not args.hyp:
        recipe.update(lr0=QAT_LR * recipe["lr0"], warmup_epochs=0.0, epochs=QAT_EPOCHS)
    given = {key: getattr(args, key) for key in (*RECIPE, "optimizer") if getattr(args, key) is not None}
    for key, value in given.items():
        if args.hyp and recipe.get(key, value) != value:
            LOGGER.info(f"{key} is {value}, as the command line says, not {recipe[key]} of {args.hyp}")
    return {**recipe, **given}


def recipe_file(args: argparse.Namespace, task: str) -> Path:
    """Return the file of the recipe: that of `--hyp`, else the one of the task, for own data or for the built-in."""
    own, demo = HYPS[task]
    return find_file(args.hyp or (own if args.data else demo), "data/hyps")


def read_recipe(args: argparse.Namespace, task: str = "detect") -> dict[str, Any]:
    """Return the recipe YAML, checked, as ultralytics' options and `anchor_gains`.

    `box` and `cls` mean other losses with anchors and without. In a recipe that has `obj`, as YOLOv5's have, they are
    gains of heads with anchors, and those of heads without may stand under `anchor_free`.
    """
    path = recipe_file(args, task)
    content = read_yaml(path, "recipe", "lr0, momentum and mosaic")
    known = {*hyper_parameters(), *RECIPE, *UNUSED}
    without = content.pop(ANCHOR_FREE, {})
    if not isinstance(without, dict):
        raise UserError(f"{path}: {ANCHOR_FREE} must be a mapping of hyper-parameters, got {described(without)}")
    gains = {key: content.pop(key) for key in ANCHOR_GAINS if key in content} if "obj" in content else {}
    for key, value in (*gains.items(), *content.items(), *without.items()):
        if key not in known:
            raise UserError(f"{path}: unknown hyper-parameter '{key}'{did_you_mean(str(key), known)}")
        if key not in NOT_NUMBERS:
            check_number(path, key, value)
    for key, value in (*content.items(), *without.items()):  # ultralytics' cls_pw is not that of the gains
        check_range(path, key, value)
    try:
        AnchorGains(**gains)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if "anchors" in content:
        LOGGER.warning(f"{path.name}: anchors stand in the model YAML, those of the recipe are not used")
    content = {OPTION_OF.get(key, key): value for key, value in content.items() if key not in UNUSED}
    return {**content, **without, "anchor_gains": gains}


def check_number(path: Path, key: str, value: Any) -> None:
    """Raise UserError for a value of a recipe that is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{path}: {key} must be a number, got {described(value)}")
    if not math.isfinite(value):
        raise UserError(f"{path}: {key} must be a finite number, got {value}")


def check_range(path: Path, key: str, value: Any) -> None:
    """Raise UserError for a value of a recipe that ultralytics refuses, or that no run has."""
    if (key, value) == ("optimizer", AUTO):
        return
    expected, holds = CHECKED.get(OPTION_OF.get(key, key), ("", bool))
    if expected and not holds(value):
        raise UserError(f"{path}: {key} should be {expected}, not {described(value)}")
    try:
        check_cfg({OPTION_OF.get(key, key): value})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error
