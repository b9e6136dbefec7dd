"""The model YAML as data: read once, checked, frozen. Strings stay strings; nothing in a YAML is ever run.

The language is YOLOv5's: `nc`, `depth_multiple`, `width_multiple`, `anchors`, `activation`, `ch`, and under `backbone`
and `head` rows of `[from, number, module, args]`. Here is only their form; what the words mean is in `models.layers`.
"""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from models import absent, ultralytics_yaml
from models.errors import ConfigError, did_you_mean
from models.yaml_sources import Config, read_config

MAX_VALUES = 100_000  # in a YAML, each alias counted as what it stands for
MAX_DEPTH = 20
MAX_ROWS = 1_000
MAX_MULTIPLE = 16.0
MAX_CLASSES = 20_000  # of which the largest data sets have 13,204
MAX_WIDTH = 1_000_000  # of max_channels
MAX_INPUT_CHANNELS = 4096  # of a picture
HEADS = {  # the last row's word: the task
    "Detect": "detect",
    "Segment": "segment",
    "Classify": "classify",
    "Classifier": "classify",
}
TASKS = tuple(dict.fromkeys(HEADS.values()))  # by ultralytics' names
KEYS = tuple(
    "nc depth_multiple width_multiple max_channels anchors activation ch end2end overparameterize plugins backbone "
    "head".split()
)
OTHERS = ("inplace", "yaml_file", "channels")  # of YOLOv5 and ultralytics, whose `channels` is our `ch`
FORM = "deploy"  # option that says in which form a list backbone is built, which weights decide as well
PRETRAINED = (  # options that say where first weights come from; a checkpoint brings its own and drops these
    "weights",
    "allow_partial",
    "pretrained",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
)
WEIGHTS_AT = {"TorchVision": 2, "Classifier": 2}  # the argument of a word that names weights without a mapping
WEIGHTS_FILE = re.compile(r"timm/.+|.+\.(pth|pt|bin|tar|safetensors)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One row of a YAML: `module`, built `number` times with `args`, reads the outputs that `sources` name."""

    index: int  # over backbone and head together, from 0
    sources: tuple[int | str, ...]  # slot numbers, negatives for rows before, level names such as P4
    number: int
    module: str
    args: tuple[Any, ...]
    single: bool  # whether `from` was one entry rather than a list

    def __str__(self) -> str:
        return yaml.safe_dump(self.as_list(), default_flow_style=True, width=math.inf).strip()

    def as_list(self) -> list[Any]:
        """Return the row as it stands in a YAML."""
        return [self.sources[0] if self.single else list(self.sources), self.number, self.module, _thaw(self.args)]

    @property
    def starts_pretrained(self) -> bool:
        """Whether the row names a file or a download to start from."""
        options = self.args[-1] if self.args and isinstance(self.args[-1], Mapping) else {}
        at = WEIGHTS_AT.get(self.module, len(self.args))
        placed = any(arg is not None and not isinstance(arg, Mapping) for arg in self.args[at : at + 1])
        named = options.get("weights") or options.get("pretrained")
        return bool(named) or placed or any(arg is True for arg in self.args[:1]) or any(map(is_weights, self.args))

    def without_pretrained(self, *others: str) -> Row:
        """Return a copy that names no file or download to start from, the published forks' `[True]` included.

        Nor has it options of the names in `others`.
        """

        def strip(position: int, arg: Any) -> Any:
            if isinstance(arg, Mapping):
                return {key: value for key, value in arg.items() if key not in (*PRETRAINED, *others)}
            if position == WEIGHTS_AT.get(self.module):
                return None
            return False if position == 0 and arg is True else arg

        kept = [arg for arg in self.args if not is_weights(arg)]
        return dataclasses.replace(self, args=tuple(map(strip, range(len(kept)), kept)))


@dataclass(frozen=True)
class ModelSpec:
    """A checked model YAML. Widths and depths in its rows are not scaled yet."""

    name: str  # of the file, for messages
    nc: int
    rows: tuple[Row, ...]
    backbone_rows: int  # how many of the rows stand under `backbone`
    depth_multiple: float = 1.0
    width_multiple: float = 1.0
    max_channels: int | None = None  # of a row, before they are scaled
    ch: int = 3
    activation: str | None = None
    anchors: Any = None
    end2end: bool = False  # a head without anchors is one without NMS
    overparameterize: Mapping[str, str] | None = None  # style: that of the branches that convolutions train with
    plugins: tuple[str, ...] | None = None  # Python files whose words the rows use
    file: Path | None = field(default=None, compare=False)  # that it was read from, if it was read from one

    def as_dict(self) -> dict[str, Any]:
        """Return the YAML as plain dicts, lists, strings and numbers."""
        rows = [row.as_list() for row in self.rows]
        plain = {key: _thaw(getattr(self, key)) for key in KEYS if key not in ("backbone", "head")}
        plain = {key: value for key, value in plain.items() if value is not None and value is not False}
        return {**plain, "backbone": rows[: self.backbone_rows], "head": rows[self.backbone_rows :]}

    @property
    def task(self) -> str:
        """What the head does: one of TASKS."""
        return HEADS.get(self.rows[-1].module, "detect")

    def with_anchors(self, anchors: list[list[float]]) -> ModelSpec:
        """Return a copy whose head has these anchors: for each level widths and heights in turn, in input pixels."""
        return dataclasses.replace(self, anchors=_freeze(anchors))

    def replace(self, nc: int | None = None, ch: int | None = None) -> ModelSpec:
        """Return a copy with the classes of a data set and the channels of its pictures; None keeps what is there.

        Raises:
            ConfigError: not a number of classes or channels.
        """
        nc = self.nc if nc is None else _integer(nc, 1, MAX_CLASSES, "nc")
        return dataclasses.replace(self, nc=nc, ch=self.ch if ch is None else _integer(ch, 1, MAX_INPUT_CHANNELS, "ch"))

    def with_branches(self, style: str | None) -> ModelSpec:
        """Return a copy whose convolutions train with branches of this style, or with none."""
        return dataclasses.replace(self, overparameterize=None if style is None else {"style": style})

    def without_pretrained(self, *others: str) -> ModelSpec:
        """Return a copy whose rows name no file or download to start from, and have no options called as `others`."""
        return dataclasses.replace(self, rows=tuple(row.without_pretrained(*others) for row in self.rows))

    def with_option(self, index: int, name: str, value: Any) -> ModelSpec:
        """Return a copy in which the row of that number has another option in its trailing mapping."""
        args = list(self.rows[index].args)
        options = args.pop() if args and isinstance(args[-1], Mapping) else {}
        row = dataclasses.replace(self.rows[index], args=(*args, {**options, name: value}))
        return dataclasses.replace(self, rows=(*self.rows[:index], row, *self.rows[index + 1 :]))

    def width(self, channels: int) -> int:
        """Return `channels`, max_channels at most, scaled by width_multiple and rounded up to a multiple of 8."""
        return math.ceil(min(channels, self.max_channels or channels) * self.width_multiple / 8) * 8

    def depth(self, number: int) -> int:
        """Return how often a row with this `number` is repeated: scaled by depth_multiple, at least once."""
        return max(round(number * self.depth_multiple), 1) if number > 1 else number

    def error(self, row: Row, problem: object) -> ConfigError:
        """Return the error that names this file, the row's number and text, and the problem."""
        return ConfigError(f"{self.name}, row {row.index} {row}: {problem}")


@dataclass(frozen=True)
class Call:
    """`name(*args, **kwargs)` with literal arguments, read from text such as `nn.LeakyReLU(0.1)`."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: tuple[tuple[str, Any], ...] = ()


def load_spec(cfg: str | Path | Mapping[str, Any] | Config | ModelSpec) -> ModelSpec:
    """Read and check a model YAML.

    Args:
        cfg: a path, the bare name of a file in models/configs (with or without `.yaml`), timm:NAME, ultralytics:NAME,
            a dict, what `read_config` has read, or a spec.

    Raises:
        ConfigError: no such file or name, not YAML, or a key or row that has not the form the language asks for.
    """
    if isinstance(cfg, ModelSpec):
        return cfg
    if isinstance(cfg, Mapping):
        return _check(cfg, name=str(cfg.get("yaml_file", "model YAML")))
    name, content, file = cfg if isinstance(cfg, Config) else read_config(cfg)
    if not isinstance(content, Mapping):
        expected, came = f"a mapping with the keys {', '.join(KEYS)}", _kind(content)
        raise ConfigError(f"{file or name} must be {expected}, but is a {came}")
    return dataclasses.replace(_check(content, name, file=name), file=file)


def is_weights(value: Any) -> bool:
    """Return whether an argument is text that names weights, a file or `timm/NAME`."""
    return isinstance(value, str) and WEIGHTS_FILE.fullmatch(value) is not None


def parse_call(text: str) -> Call:
    """Read `nn.LeakyReLU(0.1)`, `torch.nn.SiLU()` or plain `SiLU` without running anything.

    Raises:
        ValueError: `text` is anything else than a name or a call with literal arguments.
    """
    match = re.fullmatch(r"\s*(?:(?:torch\.)?nn\.)?(\w+)\s*(\(.*\))?\s*", text, flags=re.DOTALL)
    try:
        if match is None:
            raise SyntaxError
        name, arguments = match.groups()
        call = ast.parse(f"f{arguments or '()'}", mode="eval").body
        if (
            not isinstance(call, ast.Call)
            or not isinstance(call.func, ast.Name)
            or None in {k.arg for k in call.keywords}
        ):
            raise SyntaxError
        args = tuple(ast.literal_eval(arg) for arg in call.args)
        kwargs = tuple((str(k.arg), ast.literal_eval(k.value)) for k in call.keywords)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
        raise ValueError(f"'{text}' is not a name or a call with plain values, such as nn.LeakyReLU(0.1)") from e
    return Call(name, args, kwargs)


def _check_size(content: Any, name: str) -> None:
    """Raise ConfigError for a YAML whose aliases stand for more values than a model has, or for themselves."""
    count, stack = 0, [(content, 0)]
    while stack:
        value, depth = stack.pop()
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise ConfigError(f"{name} holds more than {MAX_VALUES:,} values or {MAX_DEPTH} lists in each other")
        inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        stack += ((v, depth + 1) for v in inside)


def _check(content: Mapping[str, Any], name: str, file: str = "") -> ModelSpec:
    _check_size(content, name)
    if ultralytics_yaml.is_theirs(content, file):
        content = ultralytics_yaml.translate(content, name)
    for key in content:
        if key in absent.KEYS:
            raise ConfigError(f"{name}: ultralytics' key {key} is none here: {absent.KEYS[key]}")
        if key not in (*KEYS, *OTHERS):
            raise ConfigError(f"{name}: unknown key '{key}'{did_you_mean(str(key), KEYS)}, expected {', '.join(KEYS)}")
    for key in ("nc", "head"):
        if key not in content:
            raise ConfigError(f"{name}: the key '{key}' is missing")
    sections = [_rows(content.get(key) or [], key, name) for key in ("backbone", "head")]
    raw = [row for section in sections for row in section]
    if not 0 < len(raw) <= MAX_ROWS:
        raise ConfigError(f"{name}: expected 1 to {MAX_ROWS} rows under backbone and head, got {len(raw)}")
    activation = content.get("activation")
    if activation is not None and not isinstance(activation, str):
        raise ConfigError(f"{name}: activation must be text such as nn.ReLU(), got {activation!r}")
    return ModelSpec(
        name=name,
        nc=_integer(content["nc"], 1, MAX_CLASSES, f"{name}: nc"),
        rows=tuple(_row(index, row, name) for index, row in enumerate(raw)),
        backbone_rows=len(sections[0]),
        depth_multiple=_multiple(content.get("depth_multiple", 1.0), f"{name}: depth_multiple"),
        width_multiple=_multiple(content.get("width_multiple", 1.0), f"{name}: width_multiple"),
        max_channels=_max_channels(content.get("max_channels"), name),
        ch=_integer(content.get("ch", content.get("channels", 3)), 1, MAX_INPUT_CHANNELS, f"{name}: ch"),
        activation=activation,
        anchors=_freeze(content.get("anchors")),
        end2end=_boolean(content.get("end2end", False), f"{name}: end2end"),
        overparameterize=_branches(content.get("overparameterize"), name),
        plugins=_plugins(content.get("plugins"), name),
    )


def _max_channels(value: Any, name: str) -> int | None:
    return None if value is None else _integer(value, 1, MAX_WIDTH, f"{name}: max_channels")


def _branches(value: Any, name: str) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or [*value] != ["style"] or not isinstance(value["style"], str):
        raise ConfigError(f"{name}: overparameterize must be a mapping such as {{style: dbb}}, got {_shorten(value)}")
    return {"style": value["style"]}


def _plugins(value: Any, name: str) -> tuple[str, ...] | None:
    files = [value] if isinstance(value, str) else value
    if files is not None and not (isinstance(files, list) and all(isinstance(file, str) for file in files)):
        raise ConfigError(f"{name}: plugins must name a Python file or several, got {_shorten(value)}")
    return None if files is None else tuple(files)


def _rows(section: Any, key: str, name: str) -> list[Any]:
    if not isinstance(section, list):
        raise ConfigError(f"{name}: '{key}' must be a list of rows, but is a {_kind(section)}")
    return section


def _row(index: int, row: Any, name: str) -> Row:
    where = f"{name}, row {index} {_shorten(row)}"
    if not isinstance(row, list) or len(row) != 4:
        raise ConfigError(f"{where}: expected [from, number, module, args]")
    sources, number, module, args = row
    single = not isinstance(sources, list)
    sources = [sources] if single else sources
    if not sources or not all(_is_int(s) or isinstance(s, str) for s in sources):
        raise ConfigError(f"{where}: 'from' must be a slot number, a level name such as P4, or a list of these")
    if not isinstance(module, str):
        raise ConfigError(f"{where}: the module must be a name, but is a {_kind(module)}")
    if not isinstance(args, list):
        raise ConfigError(f"{where}: the arguments must be a list, but are a {_kind(args)}")
    number = _integer(number, 1, 1000, f"{where}: number")
    return Row(index, tuple(sources), number, module, tuple(_freeze(arg) for arg in args), single)


def _freeze(value: Any) -> Any:
    """Return a copy of `value` with tuples for lists; YAML's text None means Python's."""
    if isinstance(value, list):
        return tuple(_freeze(v) for v in value)
    if isinstance(value, Mapping):
        return {str(k): _freeze(v) for k, v in value.items()}
    return None if value == "None" else value


def _thaw(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_thaw(v) for v in value]
    if isinstance(value, Mapping):
        return {k: _thaw(v) for k, v in value.items()}
    return value


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(value: Any, low: int, high: int, what: str) -> int:
    if not _is_int(value) or not low <= value <= high:
        raise ConfigError(f"{what} must be a whole number from {low} to {high}, got {_shorten(value)}")
    return value


def _boolean(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{what} must be true or false, got {_shorten(value)}")
    return value


def _multiple(value: Any, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_MULTIPLE:
        raise ConfigError(f"{what} must be a number above 0 and at most {MAX_MULTIPLE:g}, got {_shorten(value)}")
    return float(value)


def _kind(value: Any) -> str:
    return {"NoneType": "empty value", "str": "text", "dict": "mapping"}.get(type(value).__name__, type(value).__name__)


def _shorten(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits
        text = f"a very large {_kind(value)}"
    return text if len(text) <= 120 else f"{text[:117]}..."
