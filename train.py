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
import sys
import time
from copy import copy
from pathlib import Path
from typing import Any

from utils import cli

# isort: split
import yaml
from ultralytics.utils import LOGGER

from models.errors import UserError
from models.heads import AnchorDetect
from models.loss import AnchorGains
from models.spec import ModelSpec
from models.yaml_sources import whole_name
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
from utils.train.classify import ClassTrainer
from utils.train.distributed import shared_run
from utils.train.freezing import read_freeze
from utils.train.options import GENERATIONS, training_parser
from utils.train.prepare import Prepared, flag_options, prepare
from utils.train.recipe import choose_recipe, recipe_file
from utils.train.run import (
    RECIPE,
    TrainingRun,
    check_no_folders,
    defaults,
    how_to_go_on,
    resumed_run,
)
from utils.train.trainer import Trainer

TRAINERS = {"detect": Trainer, "segment": Trainer, "classify": ClassTrainer}
NOT_EVOLVED = ("qat", "report", "exist_ok")  # flags that do not go with --evolve
CONSENTS = ("plugins", "download", "megapixels")  # flags that a training needs again when it is resumed
OWN_WORDS = (*CONSENTS, "evolve", "resume", "hyp", "project", "name", "noplots")  # not those of a search's trainings
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


def make_parser() -> cli.Parser:
    """Return the options; names and meanings are YOLOv5's."""
    return training_parser(__doc__)


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
        "cfg": {"model": whole_name(args.cfg) if args.cfg else ""},
        "data": {"data": str(find_data_file(args.data))},
    }
    spelt = {action.dest: action.option_strings[0] for action in make_parser().flags.values()}
    return {spelt[dest]: values[dest] for dest in args.given if dest in values}


def network_in(ready: Prepared) -> Network:
    """Return what a report compares the objects with."""
    limit = AnchorGains(**ready.options["anchor_gains"]).anchor_t
    return network_of(ready.model, ready.options.get("imgsz", defaults()["imgsz"]), limit)


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
        report_on(data, spec.task, network_in(ready), save_dir, args.single_cls)
    return TrainingRun(options, data, ready.splits, ready.model, teacher=ready.teacher)


def report_only(args: argparse.Namespace) -> Path:
    """Write a report on a data set into a folder of its own, and return that folder.

    Raises:
        UserError: the data set, the model YAML or the recipe is wrong.
    """
    if args.cfg or args.weights:
        ready = prepare(args)
        data, task, network = ready.data, ready.spec.task, network_in(ready)
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


def find_data_file(data: str) -> Path:
    """Return the file or the folder of classes that `--data` means."""
    return Path(data).resolve() if Path(data).is_dir() else find_file(data, "data").resolve()


def keep_model(spec: ModelSpec, args: argparse.Namespace, save_dir: Path) -> Path:
    """Return the path of the model YAML; one that no file holds as it is is written into the run's folder."""
    if spec.file and not args.allow_partial and not args.overparameterize:
        return spec.file.resolve()
    path = save_dir / Path(spec.name).name
    path.write_text(yaml.safe_dump(spec.as_dict(), default_flow_style=None, sort_keys=False), encoding="utf-8")
    return path


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
