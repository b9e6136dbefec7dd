"""The options of train.py that an entry of a comparison has of its own, as words of its command line."""

from __future__ import annotations

import hashlib
import re
import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from models.errors import UserError
from utils.deploy.files import digest
from utils.text import shorten
from utils.train.options import training_parser

ALIKE = "data epochs batch imgsz device seed project name plugins download megapixels".split()  # in all entries
NOT_FOR_ENTRIES = (  # that would make trainings which cannot be compared, or none at all
    "cfg evolve exist_ok logger max_restarts nosave noval patience qat report resume single_cls task".split()
)
FILES = ("weights", "class_map", "hyp", "teacher", "teacher_weights")  # that may be files
LONGEST = 100  # letters of a name


def split_entry(word: str) -> tuple[str, list[str]]:
    """Return what a word of `--cfg` names, and the words of its options behind that.

    Raises:
        UserError: a quotation mark has no other one.
    """
    name, flag, rest = word.partition(" --")
    try:
        return name.strip(), shlex.split(flag + rest)
    except ValueError as error:
        raise UserError(f"--cfg '{shorten(word)}': {str(error).lower()}") from error


def checked_options(words: Sequence[str]) -> list[str]:
    """Return words of options in one order, with the whole paths of files.

    Args:
        words: as they were written behind the name of an entry.

    Raises:
        UserError: train.py has no such option, or not for an entry.
    """
    parser = training_parser()
    args = parser.parse_args(list(words))
    spelt = {action.dest: action.option_strings[0] for action in parser.flags.values()}
    for name in sorted(args.given):
        if name in ALIKE:
            raise UserError(f"{spelt[name]} is the same for all entries: it is an option of compare.py itself")
        if name in NOT_FOR_ENTRIES:
            raise UserError(f"{spelt[name]} cannot be compared: leave it out")
    for name in FILES:
        value = getattr(args, name)
        if name in args.given and Path(value).is_file():
            setattr(args, name, str(Path(value).resolve()))
    return parser.words_of(args)


def name_with(name: str, words: Sequence[str]) -> str:
    """Return a name for an entry with options, for tables and folders: `net--teacher-exp`."""
    for flag, value in _parts(words):
        name += flag + (f"-{_short(value)}" if value else "")
    name = re.sub(r"[^\w.-]", "-", name)
    return name if len(name) <= LONGEST else distinct(name, words)


def distinct(name: str, words: Sequence[str]) -> str:
    """Return a name with a hash of the options of its entry, for another one of this name or one that is too long."""
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:8]}"


def _parts(words: Sequence[str]) -> list[tuple[str, str]]:
    """Return flag and value of each word, of which one may be empty: `--flag=value`, `--flag` or `value`."""
    parted = (word.partition("=") if word.startswith("--") else ("", "", word) for word in words)
    return [(flag, value) for flag, _, value in parted]


def _short(word: str) -> str:
    """Return a value of an option, of files their name alone, of weights in the folder of a run that of the run."""
    path = Path(word)
    if not path.is_file():
        return word
    return path.parent.parent.name or path.stem if path.parent.name == "weights" else path.stem


def digests_of(words: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of each file that options name, by its path."""
    return {value: digest(Path(value)) for _, value in _parts(words) if value and Path(value).is_file()}


def check_files(files: dict[str, str]) -> None:
    """Raise UserError where a file that an option names is no longer what it was; `files` by path, with SHA-256."""
    for file, known in files.items():
        if not Path(file).is_file() or digest(Path(file)) != known:
            raise UserError(f"{file} is no longer what it was when the comparison began: put it back, or start anew")


def training_args(words: Sequence[str], cfg: dict[str, Any], **others: object) -> Namespace:
    """Return the options of train.py for an entry.

    Args:
        words: of its options.
        cfg: the content of its model YAML.
        others: that are the same for all entries.
    """
    parser = training_parser()
    args = parser.parse_args([*words, *parser.words_of(parser.from_keywords(**others))])
    args.cfg = cfg
    return args
