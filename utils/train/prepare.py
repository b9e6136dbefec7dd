"""What a new training starts from, read and checked before anything is written."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER

from models import DetectionModel
from models.errors import UserError
from models.layers import is_backbone
from models.spec import ModelSpec, load_spec
from utils.checkpoint import load_checkpoint
from utils.checkpoint.fields import why_wrong
from utils.data.description import BUILT_IN, load_dataset
from utils.data.files import check_images
from utils.train.batches import check_batches
from utils.train.classes import read_class_map
from utils.train.family import chosen_optimizer
from utils.train.freezing import read_freeze
from utils.train.loggers import check_loggers, chosen_loggers
from utils.train.recipe import choose_recipe
from utils.train.run import defaults, describe_splits, find_teacher
from utils.train.teaching.lesson import Lesson
from utils.train.teaching.teacher import EMA, Teacher, teacher_path
from utils.train.trainer import check_trains, new_model

NOT_FOR = {  # flags by task
    "classify": (
        *("rect", "multi_scale", "single_cls", "noautoanchor", "mask_ratio", "no_overlap"),
        *("image_weights", "quad"),
    ),
    "segment": ("quad",),
}
OF_TEACHER = ("teacher_weights", "teacher_loss", "teacher_weight", "teacher_off", "imitate")  # flags beside --teacher


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a new training starts from, read and checked, before anything is written.

    Attributes:
        spec: the model YAML.
        options: ultralytics' and ours.
        data: what `load_dataset` returned.
        splits: of the data set, as `describe_splits` returned them.
        model: as it is trained first.
        teacher: what it learns from beside the labels, if anything.
    """

    spec: ModelSpec
    options: dict[str, Any]
    data: dict[str, Any]
    splits: dict[str, Any]
    model: DetectionModel
    teacher: Teacher | None


def prepare(args: argparse.Namespace) -> Prepared:
    """Read and check all that a new training starts from."""
    check_loggers(chosen_loggers(args.logger))
    spec, start = choose_model(args)
    check_task(args, spec)
    if problem := why_wrong("yaml_name", spec.name):
        raise UserError(f"a checkpoint cannot hold the name of the model YAML: {problem}")
    options = {**choose_recipe(args, spec.task), **flag_options(args), "freeze": read_freeze(args.freeze)}
    data = load_dataset(args.data or BUILT_IN[spec.task], task=spec.task)
    pictures = check_images(data, single_cls=args.single_cls, training=True, task=spec.task)
    splits = describe_splits(data, pictures)
    model = new_model(spec, start, data, options, read_class_map(args.class_map))
    chosen, reason = chosen_optimizer(model, options)
    options |= chosen
    check_trains(model, options)
    if reason:
        lr0 = options.get("lr0", get_cfg().lr0)
        LOGGER.info(f"optimizer: {options['optimizer']} with lr0 {lr0:g}, {reason}")
    check_batches(model, options, len(pictures["train"]))
    teacher = find_teacher(options, data["channels"])
    if options["teacher"]:
        Lesson(teacher, model, {**defaults(), **options})  # which says whether they fit
    return Prepared(spec, options, data, splits, model, teacher)


def choose_model(args: argparse.Namespace) -> tuple[ModelSpec, DetectionModel | None]:
    """Return the model YAML, that of `--cfg` or the one inside `--weights`, and the model of `--weights`, if named."""
    if args.qat and (args.cfg or not args.weights):
        raise UserError("--qat fine-tunes the network of --weights: name them, and leave out --cfg")
    if not args.cfg and not args.weights:
        raise UserError("train.py needs --cfg, for instance --cfg riformer-yolo.yaml, or --weights to start from")
    if args.class_map and (args.qat or not args.weights):
        raise UserError("--class-map says what --weights call the classes: name them, and leave out --qat")
    if args.qat and args.overparameterize:
        raise UserError("--qat fine-tunes the fused form, which has no branches: leave out --overparameterize")
    if not args.teacher and (flags := [f"--{n.replace('_', '-')}" for n in args.given if n in OF_TEACHER]):
        raise UserError(f"{flags[0]} is for a teacher: name one with --teacher, or leave it out")
    if args.teacher == EMA and args.teacher_weights:
        raise UserError(f"--teacher {EMA} is the average of the run's own weights: leave out --teacher-weights")
    if args.qat and args.layer_decay != 1:
        raise UserError("--qat fine-tunes all layers by small steps: leave out --layer-decay")
    if args.allow_partial and not args.cfg:
        raise UserError("--allow-partial is for the weights that a backbone row names, in the YAML of --cfg")
    start = load_checkpoint(args.weights) if args.weights else None
    spec = load_spec(args.cfg) if start is None or args.cfg else start.spec
    if args.overparameterize:
        spec = spec.with_branches(args.overparameterize)
    for row in spec.rows:
        if args.allow_partial and is_backbone(row.module):
            spec = spec.with_option(row.index, "allow_partial", True)
    return spec, start


def check_task(args: argparse.Namespace, spec: ModelSpec) -> None:
    """Raise UserError when `--task` is not what the head of the YAML does, or a flag is for other tasks."""
    if args.task not in (None, spec.task):
        raise UserError(f"--task {args.task} does not go with {spec.name}, whose head is for the task {spec.task}")
    for dest in NOT_FOR.get(spec.task, ()):
        if dest in args.given:
            flag = f"--{dest.replace('_', '-')}"
            raise UserError(f"{flag} is not for the task {spec.task}, that of {spec.name}: leave it out")


def flag_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return ultralytics' options and ours that flags set, in the words of `Trainer`."""
    return {
        "pretrained": args.weights or False,
        "class_map": args.class_map or None,
        "mask_ratio": args.mask_ratio,
        "overlap_mask": not args.no_overlap,
        "rect": args.rect,
        "save": not args.nosave,
        "val": not args.noval,
        "plots": not args.noplots,
        "cache": args.cache or False,
        "device": "cpu" if args.device.startswith("cpu") else args.device or None,
        "multi_scale": 0.5 if args.multi_scale else 0.0,
        "single_cls": args.single_cls,
        "workers": args.workers,
        "patience": args.patience,
        "save_period": args.save_period,
        "custom_l2": args.custom_l2,
        "rep_optimizer": args.rep_optimizer,
        "autoanchor": not args.noautoanchor and not args.qat,
        "qat": args.qat,
        "sync_bn": args.sync_bn,
        "accumulate": args.accumulate,
        "lr_backbone": args.lr_backbone,
        "layer_decay": args.layer_decay,
        "unfreeze_after": args.unfreeze_after,
        "image_weights": args.image_weights,
        "quad": args.quad,
        "logger": chosen_loggers(args.logger),
        "seed": args.seed,
        "teacher": teacher_path(str(args.teacher)) if args.teacher else None,
        "teacher_weights": str(Path(args.teacher_weights).resolve()) if args.teacher_weights else None,
        "teacher_loss": args.teacher_loss,
        "teacher_weight": args.teacher_weight,
        "teacher_off": args.teacher_off,
        "imitate": args.imitate,
    }
