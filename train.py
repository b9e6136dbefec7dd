"""Train a detector whose backbone is one row of a model YAML.

Without `--data` it trains on the built-in data set, with a recipe that finishes in minutes on a laptop:

    python train.py --cfg riformer-yolo.yaml

Your own data, the recipe for real pictures, on a GPU:

    python train.py --cfg riformer-yolo.yaml --data my-data.yaml --epochs 100 --imgsz 640 --batch 16 --device 0

Other backbones, a start from earlier weights, and a run that was interrupted:

    python train.py --cfg timm-yolo.yaml
    python train.py --weights runs/train/exp/weights/best.pt --data my-data.yaml --freeze backbone
    python train.py --resume runs/train/exp/weights/last.pt

Convolutions that train with branches, which fusing takes away:

    python train.py --cfg yolov5n.yaml --overparameterize dbb

A larger network that teaches a smaller one, beside the labels:

    python train.py --cfg yolov5n.yaml --data my-data.yaml --teacher yolov5m/weights/best.pt

A report on the data set before it is trained on, or alone: classes, sizes, copies across splits, suspicious labels:

    python train.py --cfg riformer-yolo.yaml --data my-data.yaml --report
    python train.py --data my-data.yaml --report only

A YAML whose head is Segment trains masks as well as boxes, from labels that are polygons:

    python train.py --cfg yolov5n-seg.yaml

A YAML whose head is Classify trains on class folders, train/CLASS and val/CLASS, or on the built-in shapes cut out:

    python train.py --cfg repvgg-cls.yaml
    python train.py --task classify --cfg repmlpnet-cls.yaml --data IMAGENET --epochs 300 --batch 256 --device 0

A search for better hyper-parameters, in 50 trainings of 10 epochs, and going on with it:

    python train.py --cfg yolov5n.yaml --data my-data.yaml --epochs 10 --evolve 50
    python train.py --resume runs/evolve/exp

Weights that lose too much in INT8 are fine-tuned fused, with its rounding, on the data that they were trained on:

    python train.py --qat --weights runs/train/exp/weights/best.pt
    python export.py --int8 --weights runs/train/exp2/weights/best.pt
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from copy import copy
from pathlib import Path
from typing import Any

from utils import cli

# isort: split
import yaml
from ultralytics.cfg import check_cfg, get_cfg
from ultralytics.utils import LOGGER

from models import DetectionModel
from models.blocks.branches import STYLES
from models.errors import UserError, did_you_mean
from models.heads import AnchorDetect
from models.layers import is_backbone
from models.loss import AnchorGains
from models.spec import TASKS, ModelSpec, find_config, load_spec
from utils.checkpoint import load_checkpoint
from utils.checkpoint.fields import described, why_wrong
from utils.data.description import BUILT_IN, load_dataset, read_yaml
from utils.data.files import check_images, sources_of
from utils.data_report.contents import Network
from utils.data_report.report import network_of, report_on
from utils.distributed.group import LostProcessError, is_first, is_shared, lost_processes, process_group
from utils.distributed.launch import launch, mark_run, started_run, wants_several
from utils.drawing.fonts import use_font
from utils.evolution.search import Search, first_recipe, is_search, load_search, newest_search, space_of
from utils.evolution.work import search_on
from utils.paths import find_file, increment_path
from utils.text import quote
from utils.train.batches import check_batches
from utils.train.classes import read_class_map
from utils.train.classify import ClassTrainer
from utils.train.distributed import shared_run
from utils.train.family import AUTO, STEEP, chosen_optimizer
from utils.train.freezing import read_freeze
from utils.train.loggers import NO_LOGGER, SERVICES, check_loggers, chosen_loggers
from utils.train.run import (
    ANCHOR_FREE,
    CHECKED,
    CLASSIFY_HYP,
    HYP,
    HYPS,
    OPTIMIZERS,
    RECIPE,
    TrainingRun,
    check_no_folders,
    defaults,
    describe_splits,
    find_teacher,
    how_to_go_on,
    hyper_parameters,
    resumed_run,
)
from utils.train.teaching.features import FEATURE_LOSSES
from utils.train.teaching.imitation import TOKEN_MIXER
from utils.train.teaching.lesson import Lesson
from utils.train.teaching.teacher import EMA, Teacher, teacher_path
from utils.train.trainer import Trainer, check_trains, new_model

TRAINERS = {"detect": Trainer, "segment": Trainer, "classify": ClassTrainer}
NOT_FOR = {  # flags by task
    "classify": (
        *("rect", "multi_scale", "single_cls", "noautoanchor", "mask_ratio", "no_overlap"),
        *("image_weights", "quad"),
    ),
    "segment": ("quad",),
}
NOT_EVOLVED = ("qat", "report", "exist_ok")  # flags that do not go with --evolve
CONSENTS = ("plugins", "download", "megapixels")  # flags that a training needs again when it is resumed
OWN_WORDS = (*CONSENTS, "evolve", "resume", "hyp", "project", "name", "noplots")  # not those of a search's trainings
GENERATIONS = 300  # of --evolve, without a number
SGD_LR0 = 0.01  # of SGD and MuSGD; the recipes' lr0 is for AdamW
QAT_EPOCHS, QAT_LR = 5, 0.05  # of --qat: epochs, and the part of lr0 to start with, without warm-up
ANCHOR_GAINS = tuple(field.name for field in dataclasses.fields(AnchorGains))  # of the loss of heads with anchors
ACCURACY = {  # of the metrics, those that a training ends with, in words
    "metrics/mAP50(B)": "mAP50",
    "metrics/mAP50-95(B)": "mAP50-95",
    "metrics/mAP50(M)": "mask mAP50",
    "metrics/mAP50-95(M)": "mask mAP50-95",
    "metrics/accuracy_top1": "top-1",
    "metrics/accuracy_top5": "top-5",
}
RENAMED = {  # flags whose option has another name
    "weights": "pretrained",
    "nosave": "save",
    "noval": "val",
    "noplots": "plots",
    "noautoanchor": "autoanchor",
    "no_overlap": "overlap_mask",
}
OPTION_OF = {"label_smoothing": "class_smoothing"}  # hyper-parameters whose option has another name
NOT_NUMBERS = ("optimizer", "cos_lr", "auto_augment")  # of a recipe
OF_TEACHER = ("teacher_weights", "teacher_loss", "teacher_weight", "teacher_off", "imitate")  # flags beside --teacher
UNUSED = ("iou_t", "anchors")  # of YOLOv5's recipes: nothing reads the first; the other stands in the model YAML


def make_parser() -> cli.Parser:
    """Return the options; names and meanings are YOLOv5's. Those without a default have it from the recipe."""
    parser = cli.Parser(prog="train.py", description=__doc__)
    add = parser.add_argument
    add("--weights", default="", help="checkpoint to start from; empty: from scratch")
    add("--class-map", default="", help="YAML of classes that --weights call otherwise: 'own name: their name'")
    add("--cfg", default="", help="model YAML, a path or a name in models/configs; empty: that of --weights")
    add("--data", default="", help="data set YAML, a path or a name in data; class folders; empty: built in")
    add("--allow-partial", action="store_true", help="load whatever fits of the weights that the backbone's row names")
    add("--hyp", default="", help=f"recipe YAML; empty: {HYP}, {CLASSIFY_HYP}, or one for the built-in set")
    add("--epochs", type=cli.positive_int, help="passes over the training pictures")
    add("--batch-size", type=batch_size, dest="batch", help="pictures a step; -1: what fits the GPU")
    add("--accumulate", type=cli.positive_int, default=1, help="batches a step of the optimizer")
    side = {"nargs": "+", "type": cli.image_side, "action": cli.OneSide}
    add("--imgsz", "--img", "--img-size", **side, help="side of the training pictures in pixels")
    add("--rect", action="store_true", help="group training pictures by shape")
    add("--resume", nargs="?", const=True, default=False, help="continue this last.pt, or the newest run's")
    add("--nosave", action="store_true", help="write checkpoints after the last epoch only")
    add("--noval", action="store_true", help="validate after the last epoch only")
    add("--noautoanchor", action="store_true", help="keep the anchors of the YAML, however they fit the objects")
    add("--label-smoothing", type=cli.fraction, help="of classes, and of class targets with anchors; else the recipe's")
    add("--noplots", action="store_true", help="write no pictures")
    add("--cache", nargs="?", const="ram", choices=["ram", "disk"], help="keep decoded pictures in memory, or on disk")
    add("--device", type=cli.devices, default="", help="cpu, 0, mps; 0,1 or cpu,cpu: a process each; empty: a GPU")
    restarts = "with several devices: start again from last.pt so often when a process fails"
    add("--max-restarts", type=cli.non_negative_int, default=0, help=restarts)
    add("--image-weights", action="store_true", help="show pictures of rare and of hard classes more often")
    add("--quad", action="store_true", help="join four pictures to one of twice the side, or enlarge one, by chance")
    add("--multi-scale", action="store_true", help="vary the image size by +/- 50 %%")
    add("--task", choices=TASKS, help="that of the YAML's head; another one is an error")
    add("--mask-ratio", type=cli.positive_int, default=4, help="masks are learnt at this part of the picture's size")
    add("--no-overlap", action="store_true", help="masks may overlap, which takes more memory; else small ones win")
    add("--single-cls", action="store_true", help="treat all classes as one, 'item'")
    add("--workers", type=cli.non_negative_int, default=8, help="loader processes on a GPU")
    add("--project", default="runs/train", help="folder of the runs")
    add("--name", default="exp", help="name of the run; cfg: the YAML's name")
    add("--exist-ok", action="store_true", help="write into an existing run's folder")
    add("--patience", type=cli.non_negative_int, default=100, help="epochs without a better one before stopping")
    add("--save-period", type=int, default=-1, help="also keep every Nth epoch's checkpoint")
    branches = "train convolutions with branches, which fusing takes away; empty: as the YAML says"
    add("--overparameterize", choices=STYLES, help=branches)
    add("--qat", action="store_true", help="fine-tune --weights in their fused form, with the rounding of INT8")
    add("--sync-bn", action="store_true", help="take the statistics of BatchNorm over all processes")
    add("--seed", type=cli.non_negative_int, default=0, help="of all random numbers")
    for add_more in (add_teacher, add_learning, cli.add_font, cli.add_consents, add_comforts, add_foreign):
        add_more(parser)
    return parser


def add_teacher(parser: cli.Parser) -> None:
    """Add the flags of what a training learns from beside the labels."""
    add = parser.add_argument
    add("--teacher", help="learn from a checkpoint, the backbone of a YAML or timm:NAME, or ema: the run's own average")
    add("--teacher-weights", help="file of weights for the backbone of --teacher, where that is a YAML or timm:NAME")
    add("--teacher-loss", choices=FEATURE_LOSSES, default="cwd", help="of its feature maps")
    add("--teacher-weight", type=cli.positive_float, default=1.0, help="factor of its losses")
    add("--teacher-off", type=cli.non_negative_int, default=0, help="last epochs without it, as close_mosaic has")
    imitate = "have modules of --teacher teach those of the same part, by the last word of their names"
    add("--imitate", nargs="?", const=TOKEN_MIXER, help=f"{imitate}; {TOKEN_MIXER} when none is given")


def add_learning(parser: cli.Parser) -> None:
    """Add the options that say how the weights of a model are learnt, and which are not."""
    add = parser.add_argument
    add("--optimizer", type=optimizer, choices=OPTIMIZERS, help="of the recipe, or of the backbone's family")
    add("--cos-lr", action="store_true", default=None, help="cosine instead of linear learning rate")
    frozen = "not trained: backbone, neck, a number of rows from the first, or names: backbone.stages.0-1, 4.cv1"
    add("--freeze", nargs="+", default=[], help=frozen)
    add("--unfreeze-after", type=cli.positive_int, default=0, help="epochs after which what --freeze names is trained")
    add("--lr-backbone", type=cli.positive_float, default=1.0, help="factor of the learning rate of the backbone")
    decay = "factor of the learning rate from block to block of the backbone, from its last one to the picture"
    add("--layer-decay", type=cli.positive_fraction, default=1.0, help=decay)
    add("--custom-l2", action="store_true", help="RepVGG's L2 on fused kernels instead of weight decay; for SGD")
    add("--rep-optimizer", action="store_true", help="learn as with RepVGG's branches, without any; SGD or AdamW")


def add_comforts(parser: cli.Parser) -> None:
    """Add the options of what is done beside a training."""
    add = parser.add_argument
    report = "write a report on the data set before training, or only that"
    add("--report", nargs="?", const="first", choices=["first", "only"], help=report)
    evolution = f"search for better hyper-parameters in so many trainings, {GENERATIONS} by default"
    add("--evolve", nargs="?", type=cli.positive_int, const=True, default=0, metavar="N", help=evolution)
    services = "services that follow the training; by default none"
    add("--logger", nargs="+", default=[], choices=[*SERVICES, NO_LOGGER], help=services)


def add_foreign(parser: cli.Parser) -> None:
    """Add the flags of YOLOv5's train.py that do not apply here."""
    parser.refuse("--evolve_population", reason="give the recipe to start from with --hyp", values=1)
    parser.refuse("--resume_evolve", reason="give the folder of the search to --resume", values=1)
    parser.refuse("--bucket", "--upload_dataset", reason="nothing is sent anywhere", values="?")
    parser.ignore("--local_rank", "--local-rank", reason="torchrun gives it in the environment", values=1)
    wandb = "--logger wandb reads what it needs from the environment, such as WANDB_ENTITY"
    parser.ignore("--entity", "--bbox_interval", "--artifact_alias", reason=wandb, values=1)
    ndjson = "losses and accuracy go to results.csv in the folder of the run, and to the services of --logger"
    parser.ignore("--ndjson-console", "--ndjson-file", reason=ndjson)


def batch_size(text: str) -> int:
    """Return a `--batch-size`: a positive number, or -1."""
    return -1 if text == "-1" else cli.positive_int(text)


def optimizer(text: str) -> str:
    """Return the name of an optimizer as it is written, whatever the case of its letters."""
    return next((name for name in OPTIMIZERS if name.lower() == text.lower()), text)


def main(args: argparse.Namespace) -> Path:
    """Train as `args` say and return the run's folder."""
    started = time.time()
    if args.max_restarts and not (args.resume or is_shared() or wants_several(args.device)):
        raise UserError("--max-restarts is for several devices, such as --device 0,1")
    if args.evolve or is_search(args.resume):
        cli.log_options("train", args)
        cli.take_consents(args)
        return evolve(args)
    if args.report and args.resume:
        raise UserError("--report looks at the data set of a new training: leave out --resume, or --report")
    if wants_several(args.device) and args.report != "only":
        launch("train.py", args.words, args.device, args.max_restarts)
        return Path(args.project)
    cli.log_options("train", args)
    cli.take_consents(args)
    use_font(args.font)
    if args.report == "only":
        return report_only(args)
    with process_group(args.device) as device:
        run = shared_run(lambda: start(args))
        if wants_several(device_of_run := run.options["device"] or ""):
            launch("train.py", [*args.words, "--device", device_of_run], device_of_run, args.max_restarts)
            return Path(run.options["save_dir"])
        if run.left == "nothing":
            LOGGER.info(how_to_go_on(run))
            return Path(run.options["save_dir"])
        trainer = TRAINERS[run.options["task"]](run, device)
        try:
            with lost_processes():
                trainer.train()
        except (KeyboardInterrupt, LostProcessError):
            if trainer.last.is_file():
                LOGGER.info(f"\nstopped; continue with: python train.py --resume {quote(trainer.last)}")
            raise
    if is_first():
        log_summary(trainer, time.time() - started)
    return trainer.save_dir


def start(args: argparse.Namespace) -> TrainingRun:
    """Return the run that `args` ask for, new or resumed, in whose folder all can be written.

    One that torchrun starts again after a failure goes on in its folder, from its last.pt if it has come so far.
    """
    folder = None if args.resume else started_run(Path(args.project))
    if folder is not None and (folder / "weights/last.pt").is_file():
        run = resumed_run(folder / "weights/last.pt")
    elif args.resume:
        run = resumed_run(find_last(args), beside_resume(args))
    else:
        args = copy(args)
        vars(args).update({} if folder is None else {"name": folder.name, "exist_ok": True})
        run = new_run(args)
    place = Path(run.options["save_dir"])
    if run.left != "nothing":
        check_no_folders(place)
        mark_run(place)
        if run.checkpoint is None:
            (place / "results.csv").unlink(missing_ok=True)  # of an earlier run in its folder
    return run


def run(**options: Any) -> Path:
    """Train with the options of the command line as keywords: `run(cfg="riformer-yolo.yaml", epochs=3)`."""
    return main(make_parser().from_keywords(**options))


def find_last(args: argparse.Namespace) -> Path:
    """Return the checkpoint that `--resume` means."""
    if args.resume is not True:
        return Path(args.resume)
    found = sorted(Path(args.project).glob("*/weights/last.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"there is no {args.project}/*/weights/last.pt to resume, name a file: --resume FILE")
    return found[-1]


def beside_resume(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return the options of a run that flags beside `--resume` set, by flag; in a run some of them may be changed."""
    recipe, flags = choose_recipe(args), flag_options(args)
    own = [key for key in (*RECIPE, "optimizer") if key in recipe and key not in args.given]
    if "hyp" in args.given and own:
        LOGGER.info(f"a run that is resumed keeps its own {', '.join(own)}, whatever {args.hyp} says of them")
    values: dict[str, dict[str, Any]] = {
        "hyp": {key: value for key, value in recipe.items() if key not in (*RECIPE, "optimizer")},
        "label_smoothing": {"anchor_gains.label_smoothing": args.label_smoothing},
        **{key: {key: getattr(args, key)} for key in (*RECIPE, "optimizer", "name", "task")},
        "project": {"project": str(Path(args.project).resolve())} if args.resume is not True else {},
        **{key: {key: flags[key]} for key in flags.keys() & vars(args).keys()},
        **{flag: {key: flags[key]} for flag, key in RENAMED.items()},
        "freeze": {"freeze": read_freeze(args.freeze)},
        "overparameterize": {"overparameterize": args.overparameterize},
        "cfg": {"model": str(find_config(args.cfg).resolve()) if args.cfg else ""},
        "data": {"data": str(find_data_file(args.data))},
    }
    spelt = {action.dest: action.option_strings[0] for action in make_parser().flags.values()}
    return {spelt[dest]: values[dest] for dest in args.given if dest in values}


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

    @property
    def network(self) -> Network:
        """What a report compares the objects with."""
        limit = AnchorGains(**self.options["anchor_gains"]).anchor_t
        return network_of(self.model, self.options.get("imgsz", defaults()["imgsz"]), limit)


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


def new_run(args: argparse.Namespace) -> TrainingRun:
    """Read and check all that a new training starts from, then make its folder."""
    ready = prepare(args)
    spec, options, data = ready.spec, ready.options, ready.data
    name = Path(spec.name).stem if args.name == "cfg" else args.name
    sources = [args.weights, args.cfg, args.hyp, *sources_of(data)] if args.exist_ok else []
    save_dir = increment_path(args.project, name, args.exist_ok, sources)
    options |= {"task": spec.task, "model": str(keep_model(spec, args, save_dir)), "data": data["yaml_file"]}
    options |= {"overparameterize": (spec.overparameterize or {}).get("style")}
    options |= {"project": args.project, "name": save_dir.name, "save_dir": str(save_dir), "exist_ok": True}
    if args.report:
        report_on(data, spec.task, ready.network, save_dir, args.single_cls)
    return TrainingRun(options, data, ready.splits, ready.model, teacher=ready.teacher)


def report_only(args: argparse.Namespace) -> Path:
    """Write a report on a data set into a folder of its own, and return that folder.

    Raises:
        UserError: the data set, the model YAML or the recipe is wrong.
    """
    if args.cfg or args.weights:
        ready = prepare(args)
        data, task, network = ready.data, ready.spec.task, ready.network
    else:
        is_folder = bool(args.data) and Path(args.data).is_dir()
        task = args.task or ("classify" if is_folder else "detect")
        data = load_dataset(args.data or BUILT_IN[task], task=task)
        check_images(data, single_cls=args.single_cls, task=task)
        network = network_of(None, choose_recipe(args, task).get("imgsz", defaults()["imgsz"]))
    folder = increment_path(own_project(args, "runs/report"), args.name)
    report_on(data, task, network, folder, args.single_cls)
    return folder


def own_project(args: argparse.Namespace, project: str) -> str:
    """Return the folder of results that are no runs: that of `--project` if it is given."""
    return args.project if "project" in args.given else project


def evolve(args: argparse.Namespace) -> Path:
    """Search for better hyper-parameters, from the start or where it stopped, and return the folder of the search.

    Raises:
        UserError: an option is wrong, or a training fails for another reason than its hyper-parameters.
    """
    if is_shared():
        raise UserError("--evolve starts its trainings itself, one after the other: leave out torchrun, give --device")
    search = resumed_search(args) if args.resume else new_search(args)
    search_on(search, make_parser().words_of(args, args.given - {*CONSENTS}))
    return search.folder


def new_search(args: argparse.Namespace) -> Search:
    """Check all that the trainings of a search start from, and write its plan into a new folder."""
    if others := [name for name in NOT_EVOLVED if name in args.given]:
        raise UserError(f"--{others[0].replace('_', '-')} does not go with --evolve: leave it out")
    ready = prepare(args)
    space = space_of(ready.spec.task, isinstance(ready.model.model[-1], AnchorDetect), args.given)
    raw = read_yaml(recipe_file(args, ready.spec.task))
    recipe, bounds = first_recipe(raw, {**defaults(), **ready.options}, space)
    search = Search(
        folder=increment_path(own_project(args, "runs/evolve"), args.name).resolve(),
        place=str(Path.cwd()),
        words=make_parser().words_of(args, OWN_WORDS),
        generations=GENERATIONS if args.evolve is True else args.evolve,
        epochs=ready.options.get("epochs", defaults()["epochs"]),
        seed=args.seed,
        task=ready.spec.task,
        kind=space.kind,
        recipe=recipe,
        bounds=bounds,
    )
    search.save()
    return search


def resumed_search(args: argparse.Namespace) -> Search:
    """Return the search that `--resume` names, or the newest one; `--evolve N` beside it gives it N generations."""
    project = own_project(args, "runs/evolve")
    folder = newest_search(Path(project)) if args.resume is True else Path(args.resume)
    if folder is None:
        raise UserError(f"there is no search in {project} to resume, name its folder: --resume FOLDER")
    search = load_search(folder)
    if others := sorted({*OWN_WORDS, *NOT_EVOLVED} & make_parser().parse_args(search.words).given):
        raise UserError(f"{folder} is damaged: its trainings cannot have the option {others[0]}")
    cli.refuse_changes(args.given - {"evolve", "resume", "project", *CONSENTS}, "a search")
    if args.evolve and args.evolve is not True:
        search = dataclasses.replace(search, generations=args.evolve)
        search.save()
    return search


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


def find_data_file(data: str) -> Path:
    """Return the file or the folder of classes that `--data` means."""
    return Path(data).resolve() if Path(data).is_dir() else find_file(data, "data").resolve()


def keep_model(spec: ModelSpec, args: argparse.Namespace, save_dir: Path) -> Path:
    """Return the path of the model YAML; one that no file holds as it is is written into the run's folder."""
    if args.cfg and not args.allow_partial and not args.overparameterize:
        return find_config(args.cfg).resolve()
    path = save_dir / Path(spec.name).name
    path.write_text(yaml.safe_dump(spec.as_dict(), default_flow_style=None, sort_keys=False), encoding="utf-8")
    return path


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
    for key, value in (*content.items(), *without.items()):
        if key not in known:
            raise UserError(f"{path}: unknown hyper-parameter '{key}'{did_you_mean(str(key), known)}")
        if key not in NOT_NUMBERS and not (isinstance(value, int | float) and not isinstance(value, bool)):
            raise UserError(f"{path}: {key} must be a number, got {described(value)}")
        check_range(path, key, value)
    gains = {key: content.pop(key) for key in ANCHOR_GAINS if key in content} if "obj" in content else {}
    AnchorGains(**gains)
    if "anchors" in content:
        LOGGER.warning(f"{path.name}: anchors stand in the model YAML, those of the recipe are not used")
    content = {OPTION_OF.get(key, key): value for key, value in content.items() if key not in UNUSED}
    return {**content, **without, "anchor_gains": gains}


def check_range(path: Path, key: str, value: Any) -> None:
    """Raise UserError for a value of a recipe that ultralytics refuses, or that no run has."""
    if (key, value) == ("optimizer", AUTO):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}: {key} must be a finite number, got {value}")
    expected, holds = CHECKED.get(OPTION_OF.get(key, key), ("", bool))
    if expected and not holds(value):
        raise UserError(f"{path}: {key} should be {expected}, not {described(value)}")
    try:
        check_cfg({OPTION_OF.get(key, key): value})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}") from error


def log_summary(trainer: Trainer, seconds: float) -> None:
    """Say how long it took, how good it is, where everything is, and what to do next."""
    metrics = trainer.metrics
    accuracy = ", ".join(f"{name} {metrics[key]:.3f}" for key, name in ACCURACY.items() if key in metrics)
    LOGGER.info(
        f"\nTrained in {seconds / 60:.1f} minutes: {accuracy}"
        f"\nResults saved to {trainer.save_dir}"
        f"\nDetect:   python detect.py --weights {quote(trainer.best)}"
        f"\nExport:   python export.py --weights {quote(trainer.best)} --fuse --include torchscript onnx"
        f"\nValidate: python val.py --weights {quote(trainer.best)}"
    )


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
