"""What is compared: model YAMLs, backbones of timm under one neck and head, and ultralytics' models, which are trained
as all others are or by ultralytics itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.errors import UserError
from models.spec import ModelSpec, load_spec
from models.yaml_sources import ULTRALYTICS, is_named, stem_of
from utils.checkpoint.fields import is_text
from utils.comparison.options import checked_options, digests_of, distinct, name_with, split_entry
from utils.comparison.trainers import OURS, THEIRS, TRAINERS

TASKS = ("detect", "segment")  # whose accuracy is measured by boxes
TRAINED_BY_THEM = "ultralytics-trainer:"  # what names of ultralytics' models begin with that its own trainer trains
NAME = re.compile(r"\w[\w.-]*")  # of an entry


@dataclass(frozen=True)
class Entry:
    """One network to compare.

    Attributes:
        name: in tables, and of folders.
        cfg: the content of its model YAML.
        trainer: a name in TRAINERS.
        model: its name in timm or ultralytics, whose own trainer takes it by that; empty for a YAML of ours.
        options: of train.py that it has of its own, as words.
        files: path of each file that they name → SHA-256.
    """

    name: str
    cfg: dict[str, Any]
    trainer: str = OURS
    model: str = ""
    options: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, content: Any) -> Entry:
        """Return the entry that a plan holds; those of an earlier version have no trainer and no options.

        Raises:
            LookupError, TypeError, ValueError: it is damaged.
        """
        name, cfg = content["name"], dict(content["cfg"])
        trainer, model = content.get("trainer", OURS), content.get("model", "")
        options, files = tuple(content.get("options", ())), dict(content.get("files", {}))
        entry = cls(name, cfg, trainer, model, options, files)
        names = [entry.name] if entry.trainer == OURS else [entry.name, entry.model]
        if not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
            raise ValueError("names of other folders or files")
        if entry.trainer not in TRAINERS or not isinstance(entry.model, str):
            raise ValueError("another trainer")
        if not all(map(is_text, (*options, *files.values()))) or (options and trainer != OURS):
            raise ValueError("other options")
        return entry


def find_entries(words: Sequence[str]) -> list[Entry]:
    """Return what `--cfg` names: model YAMLs as `load_spec` takes them, or TRAINED_BY_THEM and a name behind it.

    Args:
        words: each may have options of train.py behind the name, after a space.

    Raises:
        UserError: there is no such YAML, one of them or an option is wrong, two have one name, or they do not do the
            same task.
    """
    specs: dict[str, ModelSpec] = {}
    found: list[Entry] = []
    for word in words:
        named, own = split_entry(word)
        cfg, trainer, model = _source(named)
        options = _options(own, trainer)
        stem = re.sub(r"^\W+", "", re.sub(r"[^\w.-]", "-", stem_of(named))) or "entry"
        name = name_with(stem, options)
        if any(name == other.name and tuple(options) != other.options for other in found):
            name = distinct(name, options)
        if name in specs:
            raise UserError(f"--cfg names {name} twice: an entry is trained with several seeds by --seeds")
        specs[name] = load_spec(cfg)
        found.append(Entry(name, specs[name].as_dict(), trainer, model, tuple(options), digests_of(options)))
    check_tasks(specs)
    return found


def _options(words: Sequence[str], trainer: str) -> list[str]:
    """Return the options of an entry; UserError where they are wrong, or it can have none."""
    if words and trainer != OURS:
        raise UserError(f"{words[0]} behind the name of an entry is for entries that are trained by train.py")
    return checked_options(words) if words else []


def check_tasks(specs: Mapping[str, ModelSpec]) -> None:
    """Raise UserError unless all entries do the same, and something whose accuracy is compared; `specs` by name."""
    for name, spec in specs.items():
        if spec.task not in TASKS:
            raise UserError(f"{name} is for the task {spec.task}, and what is compared is {' or '.join(TASKS)}")
    tasks = {name: spec.task for name, spec in specs.items()}
    if len(set(tasks.values())) > 1:
        listed = ", ".join(f"{name}: {task}" for name, task in tasks.items())
        raise UserError(f"networks of one task can be compared, --cfg names several ({listed})")


def _source(word: str) -> tuple[str, str, str]:
    """Return the model YAML that a word of `--cfg` means; by what it is trained, and its name in another library."""
    if not word.startswith(TRAINED_BY_THEM):
        return word, OURS, word.partition(":")[2] if is_named(word) else ""
    name = word.removeprefix(TRAINED_BY_THEM)
    return ULTRALYTICS + name, THEIRS, name
