"""A data set in YOLO's form, written as a whole: a folder takes its name when its last file is in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from ultralytics.utils import TQDM

from models.errors import UserError
from utils.convert_data.annotations import LOSSES, Losses
from utils.convert_data.collect import Labelled
from utils.convert_data.rows import DECIMALS
from utils.data.description import SPLIT_FOLDERS, load_dataset
from utils.data.files import check_images
from utils.text import JOINERS
from utils.writing import PARTIAL, is_running, write_text

DATA, REPORT = "data.yaml", "conversion.json"
MOST_BYTES = 200  # of a name without its suffix
MOST_CLASSES = 30  # that the table names


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Give a hidden folder beside a target that takes its name at the end; nothing is left of one that is not finished.

    Raises:
        UserError: there is something of that name already, or it cannot be written there.
    """
    check_target(target)
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        partial.mkdir()
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror}") from error
    try:
        yield partial
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_target(target: Path) -> None:
    """Raise UserError where there is something of that name."""
    if os.path.lexists(target):
        raise UserError(f"{target} exists: name a new folder with --to")


def remove_leftovers(target: Path) -> None:
    """Remove what killed processes have left of this target."""
    for folder in target.parent.glob(f".{target.name}.*{PARTIAL}"):
        number = folder.name.removesuffix(PARTIAL).rpartition(".")[2]
        if folder.is_dir() and number.isdecimal() and not is_running(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def check_space(pictures: Sequence[Labelled], target: Path) -> None:
    """Raise UserError where the copies of the pictures do not fit on the disk."""
    needed = sum(picture.path.stat().st_size for picture in pictures)
    above = next(folder for folder in target.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(above).free
    if needed > free:
        raise UserError(
            f"the pictures have {needed / 1e9:.1f} GB, but the disk of {target} has {free / 1e9:.1f} GB left: --link "
            "makes links to them instead"
        )


def write_dataset(
    folder: Path, pictures: Sequence[Labelled], names: Sequence[str], link: bool, losses: Losses
) -> dict[str, Any]:
    """Write pictures and labels, and return how many there are.

    Args:
        folder: an empty one.
        pictures: with their splits and rows.
        names: of the classes.
        link: make links to the pictures, not copies.
        losses: receives the pictures that get another name.

    Returns:
        split → pictures, objects and backgrounds (pictures without objects); class → objects.
    """
    splits = {split: {"pictures": 0, "objects": 0, "backgrounds": 0} for split in SPLIT_FOLDERS}
    classes = dict.fromkeys(names, 0)
    numbers = {name: number for number, name in enumerate(names)}
    taken: set[str] = set()
    for picture in TQDM(pictures, desc="writing"):
        split = str(picture.split)
        name = free_name(picture.path, split, taken)
        if name != picture.path.name:
            losses.add("renamed", picture.path, f"{split}/{name}")
        image, label = (folder / kind / split / name for kind in ("images", "labels"))
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        put(picture.path, image, link)
        rows = [f"{numbers[kind]} {' '.join(f'{n:.{DECIMALS}f}' for n in row)}\n" for kind, row in picture.rows]
        label.with_suffix(".txt").write_text("".join(rows), encoding="utf-8")
        counts = splits[split]
        counts["pictures"] += 1
        counts["objects"] += len(rows)
        counts["backgrounds"] += not rows
        for kind, _ in picture.rows:
            classes[kind] += 1
    return {"splits": {split: counts for split, counts in splits.items() if counts["pictures"]}, "classes": classes}


def put(path: Path, image: Path, link: bool) -> None:
    """Copy a picture, or make a link to it."""
    if link:
        image.symlink_to(os.path.abspath(path))  # noqa: PTH100 (without a link's target)
    else:
        shutil.copyfile(path, image)


def free_name(path: Path, split: str, taken: set[str]) -> str:
    """Return a name that no picture of a split has yet, whatever the suffix, and take it.

    It is that of the file, else with the names of its folders before it, else with a number behind it. Systems that do
    not tell capital letters from small ones are thought of. What hides a file, or cannot be printed, is replaced.
    """
    stems = ["_".join(path.with_suffix("").parts[-count:]) for count in range(1, min(4, len(path.parts)))]
    stems = [plain(stem) if path.suffix else plain(stem).replace(".", "_") for stem in stems]
    number = 1
    for stem in stems:
        if (key := f"{split}/{stem.casefold()}") not in taken:
            break
    else:
        while (key := f"{split}/{stem.casefold()}-{number}") in taken:
            number += 1
        stem = f"{stem}-{number}"
    taken.add(key)
    return f"{stem}{path.suffix}"


def plain(stem: str) -> str:
    """Return a name of a file without what hides it, cannot be printed, or is too long."""
    text = "".join(c if c.isprintable() or c in JOINERS else "_" for c in stem)
    text = f"_{text[1:]}" if text[:1] in (".", "") else text
    return text.encode()[:MOST_BYTES].decode(errors="ignore")


def finish(folder: Path, report: dict[str, Any], names: Sequence[str]) -> None:
    """Write the report, then the YAML, without which it is no data set; and read it as a training would.

    Raises:
        UserError: it cannot be read.
    """
    write_text(folder / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    splits = {split: f"images/{split}" for split in report["splits"]}
    described = {**splits, "names": dict(enumerate(names))}
    write_text(folder / DATA, yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
    check_images(load_dataset(folder / DATA), splits)


def table(report: dict[str, Any], losses: Losses) -> str:
    """Return how many pictures and objects there are, and what was lost, in lines."""
    lines = [f"{'':<24}{'pictures':>10}{'objects':>10}{'backgrounds':>13}"]
    for split, counts in report["splits"].items():
        lines.append(f"{split:<24}{counts['pictures']:>10}{counts['objects']:>10}{counts['backgrounds']:>13}")
    lines.append("")
    classes = sorted(report["classes"].items(), key=lambda item: -item[1])
    lines += [f"{name:<34}{count:>10}" for name, count in classes[:MOST_CLASSES]]
    if len(classes) > MOST_CLASSES:
        lines.append(f"and {len(classes) - MOST_CLASSES} more classes")
    return "\n".join([*lines, "", *loss_lines(losses)])


def loss_lines(losses: Losses) -> list[str]:
    """Return a line for each kind of loss, with an example."""
    found = losses.found()
    lines = [f"{loss.count:>8} {LOSSES[kind]}: {loss.examples[0]}" for kind, loss in found.items()]
    return lines or ["nothing was lost or changed"]
