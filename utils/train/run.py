"""What a training starts from: a new run, or one that is resumed with its own options and its own data set.

A resumed run is the exact continuation of itself. What would make it another one is refused: other classes, channels or
splits, other options but for those in CHANGEABLE.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ultralytics.engine import trainer as engine
from ultralytics.utils import LOGGER

from models import DetectionModel
from models.blocks.branches import STYLES
from models.errors import UserError
from models.files import why_no_file
from models.loss import AnchorGains
from models.spec import FORM, TASKS, ModelSpec, load_spec
from utils import cli
from utils.checkpoint import plain, read_checkpoint
from utils.checkpoint.fields import (
    described,
    is_count,
    is_finite,
    is_imgsz,
    is_list,
    is_mapping,
    is_text,
    why_not_resumed,
)
from utils.data.description import load_dataset, read_yaml
from utils.data.files import check_images
from utils.paths import ROOT, is_path
from utils.text import printable, quote
from utils.train.loggers import NO_LOGGER, SERVICES, check_loggers
from utils.train.teaching.features import FEATURE_LOSSES
from utils.train.teaching.teacher import EMA, Teacher, open_teacher
from utils.writing import write_text

OPTIMIZERS = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "MuSGD")
HYP = "hyp.scratch-low.yaml"  # the recipe that has every hyper-parameter of detectors
CLASSIFY_HYP = "hyp.classify.yaml"  # that of classifiers
HYPS = {  # recipes by task: for data of one's own, and for the built-in set
    "detect": (HYP, "hyp.shapes.yaml"),
    "segment": (HYP, "hyp.shapes.yaml"),
    "classify": (CLASSIFY_HYP, "hyp.cutouts.yaml"),
}
ANCHOR_FREE = "anchor_free"  # where a recipe has the gains of heads without anchors
RECIPE = ("epochs", "imgsz", "batch", "cos_lr")  # what a recipe may say besides the hyper-parameters
OWN_OPTIONS: dict[str, Any] = {  # beside ultralytics' options, with their defaults
    "custom_l2": False,
    "anchor_gains": {},
    "autoanchor": True,
    "qat": False,
    "overparameterize": None,
    "rep_optimizer": False,
    "class_smoothing": 0.0,  # label_smoothing of classifiers, a word that ultralytics has dropped
    "sync_bn": False,
    "accumulate": 1,
    "class_map": None,
    "teacher": None,
    "teacher_weights": None,
    "teacher_loss": "cwd",
    "teacher_weight": 1.0,
    "teacher_off": 0,
    "imitate": None,
    "lr_backbone": 1.0,  # learning rates, see utils/train/groups.py
    "layer_decay": 1.0,
    "unfreeze_after": 0,  # epochs
    "image_weights": False,
    "quad": False,
    "logger": [],
}
PLACE = ("project", "name", "save_dir", "exist_ok", "resume", "mode")  # of a run; these follow from where its files are
MOVABLE = ("data", "teacher", "teacher_weights")  # files that may lie elsewhere when a run is resumed
CHANGEABLE = (*"epochs patience device workers plots save_period logger".split(), *MOVABLE)  # in a run that is resumed
SPLITS = ("train", "val")  # that a training reads
ANEW = "train on it anew with --weights, which takes over all that fits, or put back the data set of the run"
NOT_FINITE = "the loss is not finite"  # how the message begins that ends such a run
FINAL = "final.json"  # in a run's folder, after the final validation
FILES = ("args.yaml", "data.yaml", "results.csv", "weights/best.pt", "weights/last.pt", FINAL)  # that a run writes


@dataclass(frozen=True)
class TrainingRun:
    """What a training starts from, read and checked once.

    Attributes:
        options: ultralytics' options and those of OWN_OPTIONS, as args.yaml keeps them. `freeze` is as `read_freeze`
            returns it.
        data: what `load_dataset` returned.
        splits: of the data set, as `describe_splits` returned them.
        model: that of a new run, as it is trained first; None for one that is resumed.
        checkpoint: what the `last.pt` of a run holds that is resumed.
        left: what there is to do: "epochs" and the final validation, "validation" alone, or "nothing".
        teacher: that the option `teacher` names; None where there is none, or it is the run's own average of weights.
    """

    options: dict[str, Any]
    data: dict[str, Any]
    splits: dict[str, Any]
    model: DetectionModel | None = None
    checkpoint: dict[str, Any] | None = None
    left: str = "epochs"
    teacher: Teacher | None = None


def resumed_run(last: Path, asked: Mapping[str, Mapping[str, Any]] | None = None) -> TrainingRun:
    """Return the run of the checkpoint `last`, to go on in its own folder, with its own options and data set.

    Args:
        last: the last.pt of a run.
        asked: flag → the options that it sets, in the words of args.yaml, of the flags beside --resume.

    Raises:
        UserError: not the last.pt of a run, or its options or its data set are not those of the run.
    """
    checkpoint = read_checkpoint(last)
    if "optimizer" not in checkpoint:
        raise UserError(f"{last} holds no training to resume, name the run's weights/last.pt")
    if problem := why_not_resumed(checkpoint):
        raise UserError(f"{last} is a damaged checkpoint: {problem}")
    folder = last.resolve().parent.parent
    own = {**options_of(folder, checkpoint, last), "project": str(folder.parent), "name": folder.name}
    spec = load_spec({**checkpoint["yaml"], "yaml_file": checkpoint["yaml_name"]})
    options = {**defaults(), **change_options(own, asked or {}, last, spec)}
    done = checkpoint["epoch"] + 1
    if options["epochs"] < done:
        name = "--epochs" if "--epochs" in (asked or {}) else "epochs of args.yaml"
        raise UserError(f"{last} has {done} epochs already, so that {name} cannot be {options['epochs']}")
    if options["task"] != checkpoint["task"]:
        raise UserError(f"{last} is to {checkpoint['task']}, its options are to {options['task']}")
    options |= {"resume": str(last), "save_dir": str(folder), "exist_ok": True}
    left = what_is_left(folder, checkpoint, options)
    check_loggers(options["logger"] if left != "nothing" else [], f", or go on without it: --logger {NO_LOGGER}")
    if left == "nothing":
        return TrainingRun(options, {}, {}, checkpoint=checkpoint, left=left)
    data = own_data(folder, options["data"], checkpoint, options["task"])
    single_cls = options["single_cls"]
    check_same_classes(data, checkpoint, single_cls)
    pictures = check_images(data, single_cls=single_cls, training=True, task=options["task"])
    splits = describe_splits(data, pictures)
    check_same_splits(data, splits, checkpoint.get("splits", {}))
    teacher = same_teacher(options, checkpoint, data["channels"]) if left == "epochs" else None
    return TrainingRun(options, data, splits, checkpoint=checkpoint, left=left, teacher=teacher)


# Its options ----------------------------------------------------------------------------------------------------------
def options_of(folder: Path, checkpoint: Mapping[str, Any], last: Path) -> dict[str, Any]:
    """Return the options of a run: those of its last.pt, and of its args.yaml what may be changed there.

    Raises:
        UserError: args.yaml is not there, damaged, or has options that the run is not trained with.
    """
    file = folder / "args.yaml"
    if not file.is_file():
        raise UserError(f"{last} is not in the folder of its run: there is no {file}")
    if "options" not in checkpoint:  # a file of a former version
        return read_options(file)
    check_options(checkpoint["options"], last)
    kept = {**checkpoint["options"], "batch": checkpoint["batch"]}  # -1 has found that
    try:
        written = read_options(file)
    except UserError:
        if why_no_file(file) or file.read_bytes().strip(b"\0 \r\n\t"):
            raise
        LOGGER.warning(f"{file} is empty, the run goes on with the options that {last.name} keeps")
        return kept  # a full disk or a power cut leaves such a file
    trained = by_gain({**defaults(), **checkpoint["options"]})
    for name, value in by_gain(written).items():
        before = trained.get(name)
        if value not in (before, kept.get(name, before)) and name not in (*CHANGEABLE, *PLACE):
            raise UserError(
                f"{file}: {name} is {described(value)}, the run is trained with {described(before)}: {put_back(last)}"
            )
    return {**kept, **{name: written[name] for name in CHANGEABLE if name in written}}


def change_options(
    options: Mapping[str, Any], asked: Mapping[str, Mapping[str, Any]], last: Path, spec: ModelSpec
) -> dict[str, Any]:
    """Return the options of a run with those that flags beside --resume set.

    Args:
        options: of the run.
        asked: flag → the options that it sets.
        last: the last.pt of the run.
        spec: the model YAML in it.

    Raises:
        UserError: one is another than in the run and would make it another run.
    """
    changed = dict(options)
    known = by_gain({**defaults(), **options})
    for flag, values in asked.items():
        for name, value in by_gain(values).items():
            before = known.get(name)
            if is_own_model(value, spec, str(before)) if name == "model" and value else value == before:
                continue
            if name not in CHANGEABLE:
                now = described(value) if value != before else "what this file says now"
                raise UserError(
                    f"{flag} cannot be changed in a run that is resumed: {name} is {described(before)} there, not "
                    f"{now}; {put_back(last)}"
                )
            LOGGER.info(printable(f"{flag}: {name} is {value} from here on, instead of {before}"))
            changed[name] = value
    check_options(changed, last)
    try:
        cli.device(str(changed.get("device") or ""))
    except argparse.ArgumentTypeError as error:
        raise UserError(f"the device of the run cannot be used: {error}, or name another one with --device") from error
    return changed


def by_gain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with all gains of heads with anchors, those that have their default too, as options of their own.

    So one that differs is named, and the others need not be given.
    """
    flat = dict(options)
    if "anchor_gains" in flat:
        gains = asdict(AnchorGains(**flat.pop("anchor_gains")))
        flat |= {f"anchor_gains.{name}": value for name, value in gains.items()}
    return flat


def is_own_model(cfg: str, spec: ModelSpec, before: str) -> bool:
    """Return whether a model YAML says what the one of a run says, but for what is decided elsewhere.

    That are classes, channels and anchors by the data set, first weights, and branches by --overparameterize.

    Args:
        cfg: its path.
        spec: the model YAML of the run, with the classes and channels of its data set, and anchors that may fit it.
        before: path of the file that it was read from, whose anchors they have replaced.
    """
    given = load_spec(cfg).replace(nc=spec.nc, ch=spec.ch).without_pretrained(FORM)
    if spec.anchors is not None and Path(before).resolve() == Path(cfg):
        given = replace(given, anchors=spec.anchors)
    if given.overparameterize is None:
        given = replace(given, overparameterize=spec.overparameterize)
    return given.as_dict() == spec.without_pretrained(FORM).as_dict()


def put_back(last: Path) -> str:
    """Return what to do about an option that a run does not have."""
    return f"leave it as it was, or start a new run with --weights {quote(last.with_name('best.pt'))}"


def defaults() -> dict[str, Any]:
    """Return all options of a training with their defaults."""
    return {**OWN_OPTIONS, **vars(engine.get_cfg())}


def read_options(file: Path) -> dict[str, Any]:
    """Return the options of a run from its args.yaml.

    Raises:
        UserError: it is damaged, lacks an option that a run has, or has one that is unknown or of a wrong type.
    """
    options = read_yaml(file, "run", "epochs, data and imgsz")
    check_options(options, file)
    return options


def is_batch(value: Any) -> bool:
    """Return whether a value is a number of pictures a step, or -1: what fits the GPU."""
    return value == -1 or (is_count(value) and value > 0)


def is_freeze(value: Any) -> bool:
    """Return whether a value is what `freeze` may be."""
    names = is_list(value, lambda name: is_count(name) or is_text(name))
    return names or value in (None, "backbone") or is_count(value)


def is_rate(value: Any) -> bool:
    """Return whether a value is a factor of learning rates."""
    return is_finite(value) and value > 0


CHECKED: dict[str, tuple[str, Callable[[Any], bool]]] = {  # of which ultralytics does not check all
    **dict.fromkeys(("data", "model"), ("the name of a file", is_path)),
    "imgsz": ("a number of pixels", lambda value: type(value) is int and is_imgsz(value)),
    "batch": ("a whole number of at least 1, or -1", is_batch),
    "workers": ("a whole number of at least 0", is_count),
    "accumulate": ("a whole number of at least 1", lambda value: is_count(value) and value > 0),
    "task": (f"one of {', '.join(TASKS)}", lambda value: value in TASKS),
    "class_smoothing": ("a number from 0 to 1", lambda value: is_finite(value) and 0 <= value <= 1),
    "optimizer": (f"one of {', '.join(OPTIMIZERS)}", lambda value: value in OPTIMIZERS),
    "cache": ("False, ram or disk", lambda value: value in (None, False, "ram", "disk")),
    "freeze": ("backbone, a number of slots, or a list of slots and names", is_freeze),
    "unfreeze_after": ("a whole number of at least 0", is_count),
    "lr_backbone": ("a number above 0", is_rate),
    "layer_decay": ("a number above 0, at most 1", lambda value: is_rate(value) and value <= 1),
    "overparameterize": (f"one of {', '.join(STYLES)}", lambda value: value in (None, *STYLES)),
    **dict.fromkeys(
        ("class_map", "teacher", "teacher_weights"),
        ("the name of a file", lambda value: value is None or is_path(value)),
    ),
    "teacher_loss": (f"one of {', '.join(FEATURE_LOSSES)}", lambda value: value in FEATURE_LOSSES),
    "teacher_weight": ("a number above 0", lambda value: is_finite(value) and value > 0),
    "teacher_off": ("a whole number of at least 0", is_count),
    "imitate": ("the name of modules", lambda value: value is None or is_text(value)),
    "logger": (f"a list of {', '.join(SERVICES)}", lambda value: isinstance(value, list) and {*value} <= {*SERVICES}),
    "anchor_gains": ("numbers by name", lambda value: is_mapping(value, is_finite)),
    **dict.fromkeys(
        ("custom_l2", "autoanchor", "qat", "rep_optimizer", "sync_bn", "image_weights", "quad"),
        ("true or false", lambda value: isinstance(value, bool)),
    ),
}
FLAGS = "pretrained mask_ratio overlap_mask rect save val multi_scale single_cls seed".split()  # others that flags set


def check_options(options: Mapping[str, Any], file: Path) -> None:
    """Check that options are such as a run of train.py has.

    Args:
        options: all of them, or without those that have their default.
        file: that holds them.

    Raises:
        UserError: one is missing, unknown, of a wrong type or range, or would have ultralytics do what no run does.
    """
    if others := [name for name in options if not isinstance(name, str)]:
        raise UserError(f"{file}: names of options are texts such as epochs, not {described(others[0])}")
    for name in ("data", "model", "epochs", "imgsz", "batch"):
        if options.get(name) is None:
            raise UserError(f"{file}: the option '{name}' of the run is missing")
    for name, (expected, holds) in CHECKED.items():
        if name in options and not holds(options[name]):
            raise UserError(f"{file}: {name} should be {expected}, not {described(options[name])}")
    try:
        engine.get_cfg(defaults(), dict(options))
        AnchorGains(**options.get("anchor_gains", {}))
    except (TypeError, ValueError, LookupError, AttributeError, SyntaxError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{file} holds options that no run has: {printable(reason)[:300]}") from error
    known = {*hyper_parameters(), *RECIPE, *CHECKED, *FLAGS, *CHANGEABLE, *PLACE}
    for name, value in options.items():
        if name not in known and value != defaults().get(name):
            raise UserError(f"{file}: no run has the option {name} {described(value)}, leave it out")


def hyper_parameters() -> set[str]:
    """Return the names of all hyper-parameters that a recipe may have."""
    recipe, classify = (read_yaml(ROOT / "data" / "hyps" / name) for name in (HYP, CLASSIFY_HYP))
    return {*recipe, *recipe[ANCHOR_FREE], *classify}


# Its teacher ----------------------------------------------------------------------------------------------------------
def find_teacher(options: Mapping[str, Any], channels: int) -> Teacher | None:
    """Return the teacher that the options of a run name; None if they name none, or the run's own average of weights.

    Raises:
        UserError: it cannot be opened.
    """
    word = options["teacher"]
    return None if word in (None, EMA) else open_teacher(word, options["teacher_weights"], channels)


def same_teacher(options: Mapping[str, Any], checkpoint: Mapping[str, Any], channels: int) -> Teacher | None:
    """Return the teacher of a run that is resumed, wherever it lies now.

    Raises:
        UserError: it is another one than the run was trained with until then.
    """
    teacher, known = find_teacher(options, channels), checkpoint.get("teaching")
    digest = None if options["teacher"] is None else teacher.digest() if teacher else ""
    if digest != (known and known["teacher"]):
        before = checkpoint.get("options", {}).get("teacher") or "none"
        raise UserError(
            f"--teacher is {options['teacher'] or 'none'}, which is not the teacher of the run, {before}: "
            f"{put_back(Path(options['resume']))}"
        )
    return teacher


# What is left of it ---------------------------------------------------------------------------------------------------
def what_is_left(folder: Path, checkpoint: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Return what there is to do in a run: "epochs", "validation" or "nothing", as in `TrainingRun`."""
    if checkpoint["epoch"] + 1 < options["epochs"] and not stopped_early(checkpoint, options):
        return "epochs"
    return "nothing" if read_final(folder) == checkpoint["epoch"] + 1 else "validation"


def stopped_early(checkpoint: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Return whether the last epochs, as many as `patience`, were no better than the one before them."""
    patience = options["patience"]
    validated = checkpoint.get("fitness") is not None
    return validated and 0 < patience <= checkpoint["epoch"] + 1 - checkpoint["stopper"]["best_epoch"]


def check_no_folders(folder: Path) -> None:
    """Check that no folder has the name of a file that the run in `folder` will write, if only after an epoch.

    Raises:
        UserError: one has.
    """
    if taken := [path for path in (folder / name for name in FILES) if path.is_dir()]:
        raise UserError(f"cannot write {taken[0]}: a folder has the name of that file, remove or rename it")


def save_final(folder: Path, epochs: int, metrics: Mapping[str, Any]) -> None:
    """Keep what the final validation of a run with so many epochs found, by which it is known to be finished."""
    write_text(folder / FINAL, json.dumps({"epochs": epochs, "metrics": plain(metrics)}, indent=2) + "\n")


def read_final(folder: Path) -> int:
    """Return after how many epochs the final validation was; 0: there was none, or its file is none or damaged."""
    return load_final(folder).get("epochs", 0)


def final_metrics(folder: Path) -> dict[str, Any]:
    """Return what the final validation of a run found; nothing where it is not finished."""
    metrics = load_final(folder).get("metrics", {})
    return dict(metrics) if is_mapping(metrics, is_finite) else {}


def load_final(folder: Path) -> dict[str, Any]:
    """Return the content of a run's final.json; nothing where it is none or damaged."""
    file = folder / FINAL
    if why_no_file(file):
        return {}
    with suppress(OSError, ValueError, RecursionError):
        final = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(final, dict) and is_count(final.get("epochs")):
            return final
    return {}


def how_to_go_on(run: TrainingRun) -> str:
    """Return what to say of a run of which nothing is left to do."""
    checkpoint = run.checkpoint or {}
    last, done = Path(run.options["resume"]), checkpoint["epoch"] + 1
    command = f"python train.py --resume {quote(last)}"
    if done < run.options["epochs"]:
        patience = run.options["patience"]
        state, more = f"ended after {done} epochs, the last {patience} of them no better", f"--patience {2 * patience}"
    else:
        state, more = f"has all of its {done} epochs and its final validation", f"--epochs {2 * done}"
    best = quote(last.with_name("best.pt"))
    return (
        f"{last} {state}: there is nothing to resume\n"
        f"More epochs:  {command} {more}\n"
        f"Other data:   python train.py --weights {best} --data DATA.yaml"
    )


# Its data set ---------------------------------------------------------------------------------------------------------
def own_data(folder: Path, file: str, checkpoint: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Return the data set of a run, whatever the current folder is.

    Args:
        folder: of the run, with its own copy of the data set's description, for when the other one is gone.
        file: that describes the data set: that of the run, or another one, if it was moved.
        checkpoint: its last.pt.
        task: of the run.

    Raises:
        UserError: the description of the data set is wrong, or none is there.
    """
    if file != checkpoint.get("options", {}).get("data"):
        return load_dataset(file, task=task)
    copy = folder / "data.yaml"
    if not Path(file).exists() and copy.is_file():
        LOGGER.warning(printable(f"{file} is gone, the run goes on with its own copy, {copy}"))
        return load_dataset(copy)
    return load_dataset(file, root=checkpoint.get("splits", {}).get("path"), task=task)


def check_same_classes(data: dict[str, Any], checkpoint: Mapping[str, Any], single_cls: bool) -> None:
    """Check that the classes and the channels of a data set are still those that a run is trained on.

    Raises:
        UserError: they are others.
    """
    names, known = {0: "item"} if single_cls else data["names"], checkpoint["names"]
    other = next((i for i in sorted({*names, *known}) if names.get(i) != known.get(i)), None)
    if other is not None:
        now, then = (f"'{some[other]}'" if other in some else "missing" for some in (names, known))
        raise UserError(f"{data['yaml_file']}: class {other} is {now}, in the run it is {then}; {ANEW}")
    channels = checkpoint["yaml"].get("ch", 3)
    if data["channels"] != channels:
        raise UserError(
            f"{data['yaml_file']}: pictures have {data['channels']} channels, in the run {channels}; {ANEW}"
        )


def describe_splits(data: Mapping[str, Any], pictures: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Return what a run remembers of its data set.

    Args:
        data: what `load_dataset` returned.
        pictures: paths of the pictures of each split.

    Returns:
        path: the root folder; for each split source: its folder or list file, or a list of them; pictures: how many;
        names: a digest of their paths below the folder that holds those of all splits.
    """
    paths = {split: [os.path.abspath(path) for path in pictures[split]] for split in pictures}  # noqa: PTH100
    top = os.path.commonpath([os.path.dirname(path) for split in paths for path in paths[split]])  # noqa: PTH120

    def digest(split: str) -> str:
        below = "\0".join(sorted(path.removeprefix(top) for path in paths[split]))
        return hashlib.sha256(below.encode(errors="surrogateescape")).hexdigest()

    described = {
        split: {"source": data[split], "pictures": len(paths[split]), "names": digest(split)} for split in paths
    }
    return {"path": str(data["path"]), **described}


def check_same_splits(data: Mapping[str, Any], now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Check that the splits of a data set are still those that a run is trained on, and say where they have changed.

    Their folders may hold other pictures than before, which is said. In another place they must hold the same.

    Args:
        data: what `load_dataset` returned.
        now: what `describe_splits` returned.
        then: what it returned for the run; empty in files of former versions.

    Raises:
        UserError: they are others.
    """
    for split in SPLITS if then else ():
        new, old = now[split], then[split]
        same = all(new[key] == old[key] for key in ("pictures", "names"))
        if new["source"] == old["source"]:
            if new["pictures"] != old["pictures"]:
                LOGGER.warning(f"the {split} split has {new['pictures']} pictures now, {old['pictures']} in the run")
            elif not same:
                LOGGER.warning(f"the pictures of the {split} split have other names now than in the run")
        elif same:
            LOGGER.info(printable(f"the {split} split was moved to {new['source']}"))
        else:
            raise UserError(
                f"{data['yaml_file']}: the {split} split is {new['source']} with {new['pictures']} pictures, in the "
                f"run it is {old['source']} with {old['pictures']}; {ANEW} (one that was moved holds the same pictures)"
            )


def log_other_counts(now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Say where the splits of a data set have more or fewer objects than in the run that is resumed."""
    for split in SPLITS if then else ():
        if now[split]["objects"] != then[split]["objects"]:
            LOGGER.warning(
                f"the labels of the {split} split have {now[split]['objects']} objects now, "
                f"{then[split]['objects']} in the run"
            )
