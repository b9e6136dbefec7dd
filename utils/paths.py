"""Files and folders that options name: run folders, weights, YAMLs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeGuard

from ultralytics.utils import LOGGER

from models.errors import UserError, did_you_mean
from models.files import why_no_file, why_no_folder
from utils.text import shorten

ROOT = Path(__file__).resolve().parents[1]  # the folder that holds models/, data/ and the scripts
MADE: list[Path] = []  # folders of runs that the script has made
MAX_PATH, MAX_NAME_BYTES = 2048, 255  # characters of a path that a file names, bytes of one name in it


def increment_path(project: str | Path, name: str, exist_ok: bool = False, sources: Iterable[str | Path] = ()) -> Path:
    """Make and return the folder of a run: `project/name`, else `project/name2`, `project/name3`, …

    Two runs that start at once get two folders. With `exist_ok`, `project/name` itself is used again.

    Args:
        project: the folder of the runs.
        name: of the run.
        exist_ok: use the folder if it is there.
        sources: files and folders that the run reads, none of which may lie in a folder that is used again.

    Raises:
        UserError: the folder cannot be made or written to, or holds a source, which results could replace.
    """
    first = Path(project) / name
    if not is_utf8(first):
        raise UserError(f"the output folder {first} has a name that is not UTF-8, which OpenCV cannot write to")
    try:
        first.parent.mkdir(parents=True, exist_ok=True)
        folder, n = first, 1
        there = folder.exists()
        while not _make_folder(folder, exist_ok):
            n += 1
            folder = first.with_name(f"{first.name}{n}")
        if exist_ok and there:
            check_holds_none(folder, sources)
        else:
            MADE.append(folder)
    except UserError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        others = (p for p in (*reversed(first.parents), first) if os.path.lexists(p) and not p.is_dir())
        if (other := next(others, None)) is not None:
            reason = f"{shorten(other)} {why_no_folder(other)}"
        raise UserError(f"the output folder {shorten(first)} cannot be made: {reason}") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"the output folder {folder} cannot be written to")
    return folder


def check_holds_none(results: Path, sources: Iterable[str | Path], options: str = "--project or --name") -> None:
    """Check that none of the sources, or what it links to, lies in a folder of results or below, or is a file of them.

    Links in the folder count as what they lead to.

    Args:
        results: that are there and will be replaced: a folder or a file.
        sources: files and folders that are read.
        options: that name another place for the results.

    Raises:
        UserError: one does.
    """
    place = results.stat()
    led_to = [Path(os.path.realpath(path)) for path in results.rglob("*") if path.is_symlink()]
    checked: set[Path] = set()
    for source in filter(os.path.lexists, sources):
        path = Path(os.path.abspath(source))  # noqa: PTH100 (without a link's target)
        for name in {Path(os.path.realpath(path)), Path(os.path.realpath(path.parent)) / path.name}:
            above = [] if name.parent in checked else name.parents
            checked.add(name.parent)
            is_led_to = any(p in (name, *name.parents) or (p.parent == name and p.is_file()) for p in led_to)
            if is_led_to or any(os.path.samestat(p.stat(), place) for p in (name, *above) if p.exists()):
                folder = f"lies in the folder of the results, {results}, where it could be replaced"
                what = folder if results.is_dir() else "would be replaced by the results"
                raise UserError(f"{shorten(source)} {what}: choose another {options}")


def spellings(path: str) -> tuple[str, ...]:
    """Return a path as a file says it, then, if that is another one, with slashes for Windows' backslashes."""
    return tuple(dict.fromkeys((path, path.replace("\\", "/"))))


def without_dots(path: Path) -> Path:
    """Return an absolute path without `..`, through the links of `path`, unless a `..` goes up from a link's target."""
    plain = Path(os.path.abspath(path))  # noqa: PTH100 (without a link's target)
    same = not path.exists() or (plain.exists() and plain.samefile(path))
    return plain if same else path.resolve()


def remove_empty_runs() -> None:
    """Remove the folders of runs that came to nothing: those in which there is no file."""
    while MADE:
        folder = MADE.pop()
        if not any(path.is_file() for path in folder.rglob("*")):
            shutil.rmtree(folder, ignore_errors=True)


def remove_run(folder: Path) -> None:
    """Remove the folder of a run, with all that is in it, if this process has made it."""
    if folder in MADE:
        MADE.remove(folder)
        shutil.rmtree(folder, ignore_errors=True)


def is_path(value: object) -> TypeGuard[str]:
    """Return whether `value` is a text that the system takes for a path."""
    if not isinstance(value, str) or not value.strip() or len(value) > MAX_PATH:
        return False
    whole = "\0" not in value and is_utf8(value)
    return whole and all(len(part.encode()) <= MAX_NAME_BYTES for part in Path(value).parts)


def is_utf8(path: str | Path) -> bool:
    """Whether a path can be given to OpenCV, which ends the process over other bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _make_folder(folder: Path, exist_ok: bool) -> bool:
    """Make `folder` and return True, or return False when that name is taken."""
    try:
        folder.mkdir(exist_ok=exist_ok)
    except FileExistsError:
        if exist_ok:
            raise
        return False
    return True


def newest_weights(project: str | Path = "runs/train") -> Path:
    """Return the youngest `<project>/*/weights/best.pt`; UserError when nothing has been trained here."""
    found = list(Path(project).glob("*/weights/best.pt"))
    if not found:
        raise UserError(
            f"there are no weights in {project}/*/weights/best.pt: train first, for instance "
            "python train.py --cfg riformer-yolo.yaml, or name a file with --weights"
        )
    return max(found, key=lambda path: (path.stat().st_mtime, path))


def find_weights(weights: str | Path | None, project: str | Path = "runs/train") -> Path:
    """Return the weights file that the user named, or the newest of this folder's runs, and log which one that is.

    Raises:
        UserError: the file is not there, or there is none to choose from.
    """
    if not weights:
        path = newest_weights(project)
        LOGGER.info(f"no --weights given, using the newest: {path}")
        return path
    if "://" in str(weights):
        raise UserError(f"--weights takes a file on this machine, not the address {weights}")
    path = Path(weights)
    problem = "" if path.is_dir() else why_no_file(path)  # some exports are folders
    if problem:
        near = _did_you_mean_file(path.name, [path.parent])
        raise UserError(f"the weights file {path} {problem}{near}")
    return path


def find_file(name: str | Path, folder: str, suffixes: Sequence[str] = (".yaml", ".yml")) -> Path:
    """Return the file at the path `name`, or the one called `name` anywhere in `folder` of this repository.

    The suffix may be left out of a bare name: `riformer-yolo` finds models/configs/riformer-yolo.yaml.

    Raises:
        UserError: there is no such file, or it has another suffix than one of `suffixes`.
    """
    path = Path(name)
    if path.suffix and path.suffix.lower() not in suffixes and path.exists():
        raise UserError(f"{path} is not one of the kinds {', '.join(suffixes)}")
    if path.is_file():
        return path
    if path.parent == Path():
        wanted = {path.name, *(f"{path.name}{suffix}" for suffix in suffixes)}
        found = sorted(p for p in (ROOT / folder).rglob("*") if p.name in wanted and p.suffix in suffixes)
        if found:
            return found[0]
    if os.path.lexists(path):
        raise UserError(f"{path} {why_no_file(path)}")
    near = _did_you_mean_file(path.name, [path.parent, ROOT / folder])
    raise UserError(f"there is no file {path}, and none of that name in {folder}/{near}")


def _did_you_mean_file(name: str, folders: Iterable[Path]) -> str:
    others = (p.name for folder in folders if folder.is_dir() for p in folder.iterdir() if p.name != name)
    return did_you_mean(name, others)
