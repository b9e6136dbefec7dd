"""What is compared: model YAMLs, backbones of timm under one neck and head, and ultralytics' own models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from models.errors import UserError
from models.spec import CONFIGS, ModelSpec, find_config, load_spec

TASKS = ("detect", "segment")  # whose accuracy is measured by boxes
TIMM, ULTRALYTICS = "timm:", "ultralytics:"  # what names begin with that are no YAMLs of ours
TIMM_YAML = "timm-yolo.yaml"  # whose backbone row takes any model of timm
NAME = re.compile(r"\w[\w.-]*")  # of an entry
SCALED = re.compile(r"(yolov?\d+)([nslmx])(.*)")  # yolo11n-seg is yolo11-seg.yaml in size n


@dataclass(frozen=True)
class Entry:
    """One network to compare.

    Attributes:
        name: in tables, and of folders.
        cfg: the content of its model YAML.
    """

    name: str
    cfg: dict[str, Any]


def find_entries(words: Sequence[str]) -> list[Entry]:
    """Return what `--cfg` names: paths or names of model YAMLs, timm:NAME, or ultralytics:NAME such as yolo11n.

    Raises:
        UserError: there is no such YAML, one of them is wrong, two have one name, or they do not do the same task.
    """
    specs: dict[str, ModelSpec] = {}
    for word in words:
        name = re.sub(r"^\W+", "", re.sub(r"[^\w.-]", "-", Path(word).stem)) or "entry"
        if name in specs:
            raise UserError(f"--cfg names {name} twice: an entry is trained with several seeds by --seeds")
        specs[name] = load_spec(_source(word))
    check_tasks(specs)
    return [Entry(name, spec.as_dict()) for name, spec in specs.items()]


def check_tasks(specs: Mapping[str, ModelSpec]) -> None:
    """Raise UserError unless all entries do the same, and something whose accuracy is compared; `specs` by name."""
    for name, spec in specs.items():
        if spec.task not in TASKS:
            raise UserError(f"{name} is for the task {spec.task}, and what is compared is {' or '.join(TASKS)}")
    tasks = {name: spec.task for name, spec in specs.items()}
    if len(set(tasks.values())) > 1:
        listed = ", ".join(f"{name}: {task}" for name, task in tasks.items())
        raise UserError(f"networks of one task can be compared, --cfg names several ({listed})")


def _source(word: str) -> Path | dict[str, Any]:
    """Return the model YAML that a word of `--cfg` means, or its content."""
    for prefix, content_of in ((TIMM, _of_timm), (ULTRALYTICS, _of_ultralytics)):
        if word.startswith(prefix):
            return {**content_of(word.removeprefix(prefix)), "yaml_file": word}
    return find_config(word)


def _of_timm(arch: str) -> dict[str, Any]:
    """Return the content of the YAML that takes any timm backbone, with `arch` in its first row."""
    content = yaml.safe_load((CONFIGS / TIMM_YAML).read_text(encoding="utf-8"))
    first, *rows = content["backbone"]
    return {**content, "backbone": [[*first[:3], [arch, *first[3][1:]]], *rows]}


def _of_ultralytics(name: str) -> dict[str, Any]:
    """Return the content of one of ultralytics' model YAMLs, by a name with the letter of its scale or without."""
    from ultralytics.utils import ROOT  # noqa: PLC0415 (slow)

    match = SCALED.fullmatch(name)
    for stem, size in ((name, None), (f"{match[1]}{match[3]}", match[2])) if match else ((name, None),):
        for path in (ROOT / "cfg/models").glob(f"*/{stem}.yaml"):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return {**content, "scale": size} if size else content
    raise UserError(f"--cfg {ULTRALYTICS}{name}: ultralytics has no such model; yolov8n, yolo11n and yolo26n are some")
