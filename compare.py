"""Which backbone wins on my data? Train several networks alike, write and prove the files, time them, and say it.

    python compare.py --cfg yolov5n.yaml repvgg-slim-yolo.yaml timm:resnet18 --data my-data.yaml --epochs 50
    python compare.py --cfg yolov5n.yaml ultralytics:yolo11n --data my-data.yaml --budget-minutes 30 --seeds 3
    python compare.py --cfg yolov5n.yaml timm:mobileone_s0 --dry-run        # what would be done, and for how long
    python compare.py --cfg yolov5n.yaml repvgg-slim-yolo.yaml --data a.yaml b.yaml c.yaml --time-imgsz 640 --int8
    python compare.py --cfg yolov5n.yaml 'yolov5n.yaml --teacher best.pt' --data my-data.yaml --epochs 50
    python compare.py --resume runs/compare/exp                            # after a stop or a kill

Entries are model YAMLs, timm:NAME for a backbone of timm under the neck and head of timm-yolo.yaml, ultralytics:NAME,
and ultralytics-trainer:NAME for the same network trained by ultralytics with its own recipe; all others are trained by
train.py, with options of their own where these stand behind the name in the same quotes. Each is trained with every
seed, for the same number of epochs or for about the same time; the best weights are written as a file, which is proven,
measured on the val split, and timed in turns with those of the other entries.
An entry that fails does not stop the others. Trainings run side by side on several --device, or as many as --jobs says;
the same --resume on another machine that shares the folder takes a part of them.

Written to runs/compare/exp, exp2, …: compare.html, a page that needs no network; compare.png and compare.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.environment import processor
from models.errors import UserError
from utils import cli
from utils.comparison.entries import Entry, find_entries
from utils.comparison.estimate import Work, epoch_seconds, work_of
from utils.comparison.judge import judge
from utils.comparison.measure import finish
from utils.comparison.options import check_files, checked_options, training_args
from utils.comparison.plan import Plan, kind_of, load_plan, named
from utils.comparison.recipe import fill_in
from utils.comparison.report import PAGE, Compared, cells, save, text_table
from utils.comparison.work import work_off
from utils.data.description import load_dataset
from utils.data.files import check_images
from utils.deploy.formats import FORMATS
from utils.export.report import versions
from utils.train.prepare import prepare

# isort: split
from ultralytics.utils import LOGGER, TQDM

from utils.paths import increment_path
from utils.writing import remove_partials

BESIDE_RESUME = ("device", "jobs", "rounds", "threads")  # options that may be others when a comparison goes on
NOT_PLANNED = (*BESIDE_RESUME, "dry_run", "resume", "only", "project", "name", "plugins", "download", "megapixels")


def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="compare.py", description=__doc__)
    add = parser.add_argument
    add(
        "--cfg",
        nargs="+",
        default=[],
        metavar="ENTRY",
        help="model YAMLs, timm:NAME, ultralytics:NAME, ultralytics-trainer:NAME; in quotes with options of train.py",
    )
    add(
        "--data",
        action=cli.OneOrMore,
        default="",
        help="data set YAMLs; each entry is trained on each of them, and the mean counts; default: built-in shapes",
    )
    add("--epochs", type=cli.positive_int, help="of each training; of the recipe when not given")
    add(
        "--budget-minutes",
        type=cli.positive_float,
        help="for each training, instead: each entry gets the epochs that fit",
    )
    add("--seeds", type=cli.small_int, default=3, help="trainings of each entry")
    add("--imgsz", "--img", "--img-size", type=cli.image_side, help="side of the pictures in pixels; of the recipe")
    add("--batch-size", type=cli.positive_int, help="pictures a step; of the recipe when not given")
    add("--hyp", default="", help="recipe of all trainings by train.py")
    add(
        "--runtime",
        action=cli.OneOrMore,
        default="onnx",
        choices=sorted(FORMATS),
        help="the files that are written, proven and timed; the accuracy of the first one counts",
    )
    add("--int8", action="store_true", help="quantize as well, and time those files too")
    add(
        "--threads",
        action=cli.OneOrMore,
        type=cli.positive_int,
        default=1,
        help="CPU threads of the timed runtime, one number or several; the latency with the first one counts",
    )
    add("--time-imgsz", type=cli.image_side, help="side of the picture that files are timed on; default: --imgsz")
    add("--rounds", type=cli.positive_int, default=30, help="how many times each file is timed")
    add(
        "--device", nargs="+", type=cli.device, default=[""], help="one training at a time on each; cpu, or GPUs: 0 1 2"
    )
    add("--jobs", type=cli.small_int, default=1, help="trainings side by side on each device")
    add("--dry-run", action="store_true", help="say what would be done and for how long, and do nothing")
    add("--resume", default="", metavar="FOLDER", help="go on with a comparison, or take a part of one that runs")
    add("--only", default="", metavar="TRAINING", help="beside --resume: one training, by the name of its folder")
    add("--project", default="runs/compare", help="results go to project/name")
    add("--name", default="exp", help="results go to project/name")
    cli.add_consents(parser)
    return parser


def run(**options: object) -> list[Compared]:
    """Compare from Python: `compare.run(cfg=["yolov5n", "timm:resnet18"], epochs=5)`. Returns the lines of the table.

    Raises:
        UserError: an option is wrong.
    """
    return compare(make_parser().from_keywords(**options))


def main(args: argparse.Namespace) -> int:
    """Compare, or do one training of a comparison; return 1 when no entry could be trained."""
    if args.only:
        cli.take_consents(args)
        plan = read_plan(Path(args.resume))
        finish(plan.job(args.only))
        return 0
    rows = compare(args)
    return 0 if args.dry_run or any(row.accuracy for row in rows) else 1


def compare(args: argparse.Namespace) -> list[Compared]:
    """Plan, train whatever is not trained yet, measure and report."""
    cli.log_options("compare", args)
    cli.take_consents(args)
    plan = resumed_plan(args) if args.resume else new_plan(args)
    if args.dry_run:
        return []
    work_off(plan, args)
    return report(plan, args)


# Planning -------------------------------------------------------------------------------------------------------------
def resumed_plan(args: argparse.Namespace) -> Plan:
    """Return the plan of the folder that `--resume` names; what failed there is tried again.

    Raises:
        UserError: there is none or a damaged one, its data set is wrong, or other options are given that would make it
            another comparison.
    """
    plan = read_plan(Path(args.resume))
    cli.refuse_changes(args.given & plan.options.keys(), "a comparison")
    vars(args).update(plan.options)
    for entry in plan.entries:
        check_files(entry.files)
    for data in plan.data_sets.values():
        load_dataset(data)
    remove_partials(plan.folder)
    for job in plan.jobs():
        lock = job.take()
        if lock is not None:
            remove_partials(job.folder)
            if "problem" in (job.result() or {}):
                job.forget()
            os.close(lock)
    return plan


def read_plan(folder: Path) -> Plan:
    """Return the plan that a folder holds, its options checked as those of a command line are.

    Raises:
        UserError: it holds none, or a wrong one.
    """
    plan = load_plan(folder)
    for entry in plan.entries:
        if entry.options and checked_options(entry.options) != list(entry.options):
            raise UserError(f"{folder} holds a damaged plan, with other options of {entry.name}: start anew")
    options = planned(make_parser().from_keywords(**plan.options))
    if options["data"] != plan.options["data"]:
        raise UserError(f"{folder} holds a damaged plan, whose data sets are no files: start the comparison anew")
    return dataclasses.replace(plan, options=options)


def planned(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that a comparison keeps until its end."""
    return {name: value for name, value in vars(args).items() if name not in NOT_PLANNED}


def new_plan(args: argparse.Namespace) -> Plan:
    """Check everything, say how long it will take, and write the plan into a new folder, except for `--dry-run`.

    Raises:
        UserError: an option, a model YAML, a recipe or the data set is wrong.
    """
    if not args.cfg:
        raise UserError("compare.py needs entries, for instance --cfg yolov5n.yaml timm:resnet18")
    if args.epochs and args.budget_minutes:
        raise UserError("give --epochs or --budget-minutes, not both")
    for name in cli.as_list(args.runtime):
        if FORMATS[name].not_run:
            raise UserError(f"--runtime {name} cannot be timed here: {FORMATS[name].not_run}")
    recipe = fill_in(args)
    sets = {name: load_dataset(data) for name, data in named(cli.as_list(args.data)).items()}
    works = {name: work_of(data, check_images(data, training=True), args) for name, data in sets.items()}
    entries = find_entries(args.cfg)
    files = named(cli.as_list(args.data))
    seconds = {
        kind_of(entry.name, name): seconds_of(entry, files[name], work, args)
        for (name, work), entry in TQDM(list(itertools.product(works.items(), entries)), desc="estimating")
    }
    epochs = {
        name: max(1, int(60 * args.budget_minutes / each)) if args.budget_minutes else args.epochs or recipe["epochs"]
        for name, each in seconds.items()
    }
    plan = Plan(Path(args.project), planned(args), entries, epochs)
    log_plan(plan, seconds, len(args.device) * args.jobs)
    if args.dry_run:
        return plan
    plan = dataclasses.replace(plan, folder=increment_path(args.project, args.name).resolve())
    plan.save()
    return plan


def seconds_of(entry: Entry, data: str, work: Work, args: argparse.Namespace) -> float:
    """Return about how long one epoch of an entry takes; of one with options all that train.py checks is checked first.

    Raises:
        UserError: an option of the entry is wrong, or does not go with its network or the data set.
    """
    if not entry.options:
        return epoch_seconds(entry.cfg, work)
    alike = {"data": data, "imgsz": args.imgsz, "batch_size": args.batch_size, "epochs": args.epochs}
    recipe = {} if "--hyp" in entry.options else {"hyp": args.hyp or None}
    try:
        ready = prepare(training_args(entry.options, entry.cfg, **alike, **recipe))
    except UserError as error:
        raise UserError(f"{entry.name}: {error}") from error
    own = ready.model if ready.options["teacher"] else None  # teaches itself, unless another one does
    return epoch_seconds(ready.spec.as_dict(), work, ready.teacher.network if ready.teacher else own)


def log_plan(plan: Plan, seconds: Mapping[str, float], at_once: int) -> None:
    """Say what will be done.

    Args:
        plan: of the comparison.
        seconds: kind of training → those of one epoch.
        at_once: trainings side by side.
    """
    minutes = {name: each * plan.epochs[name] / 60 for name, each in seconds.items()}
    for name, each in minutes.items():
        LOGGER.info(f"{name}: {plan.epochs[name]} epochs, about {each:.1f} minutes")
    total = sum(minutes.values()) * plan.options["seeds"] / min(at_once, len(plan.jobs()))
    LOGGER.info(f"{len(plan.jobs())} trainings, {at_once} at a time: about {total:.0f} minutes")


# Results --------------------------------------------------------------------------------------------------------------
def report(plan: Plan, args: argparse.Namespace) -> list[Compared]:
    """Time the files in turns, say which network wins, and write the page."""
    found = judge(plan, cli.as_list(args.threads), args.rounds)
    if found.sample is None:
        LOGGER.error(f"nothing could be trained, see {plan.folder}/jobs/*/log.txt")
        return found.rows
    save(plan.folder, found, about(plan, args))
    for name, each in found.parts.items():
        LOGGER.info(f"\n{name}:\n{text_table(cells(each.rows))}\n{each.sentence}")
    LOGGER.info(f"\n{text_table(cells(found.rows))}\n\n{found.sentence}")
    LOGGER.info(f"Results saved to {plan.folder}, the page is {PAGE} in it")
    return found.rows


def about(plan: Plan, args: argparse.Namespace) -> dict[str, Any]:
    """Return what was run, where and with what."""
    files = {file: known for entry in plan.entries for file, known in entry.files.items()}
    return {
        "date": datetime.date.today().isoformat(),
        **plan.options,
        **({"files": files} if files else {}),
        "data": Path(plan.options["data"]).name if len(plan.data_sets) == 1 else list(plan.data_sets),
        "threads": args.threads,
        "rounds": args.rounds,
        "machine": {"processor": processor(), "cores": os.cpu_count()},
        "versions": versions(cli.as_list(plan.options["runtime"])),
    }


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
