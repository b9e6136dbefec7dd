"""Which model YAML is meant by what `--cfg` names, and what it holds, unchecked.

    yolov5n, my-yolo.yaml      a file: its path, or its name in models/configs
    timm:resnet18              timm-yolo.yaml with that backbone of timm
    ultralytics:yolo11n        a model YAML of ultralytics, by the name with the letter of its size or without

A file whose own name begins like the last two is meant by a path, such as ./timm:mine.yaml.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ultralytics.utils import ROOT

from models.errors import ConfigError, did_you_mean
from models.files import why_no_file, why_no_folder
from models.yaml_numbers import load_yaml

CONFIGS = Path(__file__).parent / "configs"
TIMM_YAML = CONFIGS / "timm-yolo.yaml"  # whose backbone row takes any model of timm
ULTRALYTICS = "ultralytics:"  # what names of its models begin with
ULTRALYTICS_YAMLS = ROOT / "cfg/models"
MAX_BYTES = 1_000_000  # of a YAML file
MAX_SHOWN = 100  # characters of a name in a message
FAMILY = re.compile(r"(yolov?\d+)(-.*|)")  # of ultralytics, one file for all sizes
SIZED = re.compile(r"(yolov?\d+)([nslmx])(-.*|)")  # yolo11n-seg is size n of yolo11-seg


class Config(NamedTuple):
    """A model YAML as it was read, unchecked.

    Attributes:
        name: as that of a file without its folder.
        content: what it holds.
        file: that it was read from; None for what is meant by its name in another library.
    """

    name: str
    content: Any
    file: Path | None


def find_config(cfg: str | Path) -> Path:
    """Return the file that `cfg` means: a path as given, or a name in models/configs, with or without `.yaml`.

    Raises:
        ConfigError: there is no such file.
    """
    candidates = [Path(cfg), CONFIGS / cfg, CONFIGS / f"{cfg}.yaml"]
    problems = {path: why_no_file(path) for path in candidates}
    found = next((path for path, problem in problems.items() if not problem), None)
    if found is not None:
        return found
    if os.path.lexists(candidates[0]):
        raise ConfigError(f"the model YAML {cfg} {problems[candidates[0]]}")
    prefix, colon, _ = str(cfg).partition(":")
    if colon:
        place, hint = f"by a name behind {' or '.join(NAMED)}", did_you_mean(f"{prefix[:MAX_SHOWN]}:", NAMED)
    else:
        folders = [CONFIGS, *([] if why_no_folder(candidates[0].parent) else [candidates[0].parent])]
        known = (path.name for folder in folders for path in folder.glob("*.y*ml"))
        place, hint = f"in {CONFIGS}", did_you_mean(candidates[0].name[:MAX_SHOWN], known)
    raise ConfigError(f"no model YAML {_shown(cfg)}, neither as a path nor {place}{hint}")


def is_named(cfg: object) -> bool:
    """Return whether a model YAML is meant by its name in another library, rather than as a file."""
    return isinstance(cfg, str) and cfg.startswith(tuple(NAMED))


def whole_name(cfg: str | Path) -> str:
    """Return what means the same model YAML from any folder: the whole path of a file, or a name as it is.

    Raises:
        ConfigError: there is no such file.
    """
    return str(cfg) if is_named(cfg) else str(find_config(cfg).absolute())


def stem_of(cfg: str | Path) -> str:
    """Return what a model YAML is called, as a file can be on all systems: `yolov5n`, `timm-resnet18`."""
    return re.sub(r"[^\w.-]", "-", str(cfg)) if is_named(cfg) else Path(cfg).stem


def read_config(cfg: str | Path) -> Config:
    """Return what `cfg` means: a file, or a model YAML by its name in another library.

    Raises:
        ConfigError: there is no such file or name, or the file is no YAML.
    """
    if is_named(cfg):
        prefix, colon, name = str(cfg).partition(":")
        if not name.strip():
            raise ConfigError(f"{cfg} is no model YAML: the name behind it is missing")
        return Config(f"{stem_of(cfg)}.yaml", NAMED[prefix + colon](name), None)
    path = find_config(cfg)
    return Config(path.name, _read(path), path)


def read_ultralytics(name: str) -> dict[str, Any]:
    """Return one of ultralytics' model YAMLs as it is there, with the key `scale` where the name has that size.

    Raises:
        ConfigError: there is none of this name.
    """
    files = {path.stem: path for path in sorted(ULTRALYTICS_YAMLS.glob("*/*.yaml"))}
    if name in files:
        return _read(files[name])
    if (match := SIZED.fullmatch(name)) and (path := files.get(match[1] + match[3])):
        content = _read(path)
        if match[2] in content.get("scales", ()):
            return {**content, "scale": match[2]}
    hint = did_you_mean(name[:MAX_SHOWN], _names(files))
    raise ConfigError(f"ultralytics has no such model as {_shown(name)}{hint}; yolov8n, yolo11n and yolo26n are some")


def _names(files: Mapping[str, Path]) -> Iterator[str]:
    """Yield the names of ultralytics' models, those without the letter of a size as well; `files` by their stems."""
    for stem, path in files.items():
        yield stem
        if match := FAMILY.fullmatch(stem):
            yield from (f"{match[1]}{size}{match[2]}" for size in _read(path).get("scales", ()))


def _of_timm(arch: str) -> dict[str, Any]:
    """Return the YAML that takes any backbone of timm, with `arch` in its first row."""
    content = _read(TIMM_YAML)
    first, *rows = content["backbone"]
    return {**content, "backbone": [[*first[:3], [arch, *first[3][1:]]], *rows]}


NAMED: dict[str, Callable[[str], dict[str, Any]]] = {  # what begins a name → what reads the YAML of the rest
    "timm:": _of_timm,
    ULTRALYTICS: read_ultralytics,
}


def _read(path: Path) -> Any:
    """Return what a YAML file holds; ConfigError where it is none."""
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_BYTES:,} bytes, which no model YAML is")
    try:
        return load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as e:  # also of its numbers and dates
        raise ConfigError(f"{path} is not a YAML file: {' '.join(str(e).split())}") from e


def _shown(name: str | Path) -> str:
    return repr(str(name)[:MAX_SHOWN])
