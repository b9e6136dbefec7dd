"""Checkpoints of YOLOv5, YOLOv7 and ultralytics, which hold whole modules, as data: YAML, class names and tensors.

Their YAML is turned into our language: ultralytics' by `models.ultralytics_yaml`, as a YAML that a user gives, YOLOv7's
by `utils.checkpoint.yolov7`, together with its tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models import ultralytics_yaml
from models.errors import WeightsError
from models.spec import HEADS
from utils.checkpoint import yolov7
from utils.checkpoint.unpickle import Inert
from utils.sizes import MAX_IMGSZ

KNOWN_HEADS = {*ultralytics_yaml.THEIR_HEADS, *ultralytics_yaml.CLASS_HEADS, *yolov7.HEADS}
SIDES = {"classify": 224}  # of pictures, by task, where a file does not say what it was trained at
OTHER_SIDE = 640  # of other tasks
MAX_TREE = 100_000
MAX_LEVELS = 50  # of modules in each other
OWN_KEYS = ("nc", "depth_multiple", "width_multiple", "anchors", "activation", "backbone", "head")
SETTINGS = set(  # attributes that decide what a module computes, as far as it is not its tensors
    "kernel_size stride padding dilation groups eps add scale_factor mode negative_slope num_heads key_dim scale area "
    "gain d reg_max nc nl na".split()
)


@dataclass(frozen=True)
class ForeignModel:
    """A model of YOLOv5, YOLOv7 or ultralytics.

    Attributes:
        maker: "YOLOv5", "YOLOv7" or "ultralytics".
        yaml: its model YAML, in our language.
        names: of the classes, by number; empty if the file has none, or not as many as classes.
        tensors: by the names that they have here.
        modules: every module by its path.
        imgsz: that it was trained at, in pixels.
    """

    maker: str
    yaml: dict[str, Any]
    names: dict[int, str]
    tensors: dict[str, Tensor]
    modules: dict[str, Inert]
    imgsz: int


def find_model(content: Any) -> Inert | None:
    """Return the model among what `read_pickled` has read, the averaged one (EMA) before the other; None: none."""
    candidates = [content.get("ema"), content.get("model")] if isinstance(content, Mapping) else [content]
    for candidate in candidates:
        for inner in (candidate, _attribute(candidate, "ema"), _children(candidate).get("module")):
            if isinstance(inner, Inert) and _children(_children(inner).get("model")):
                return inner
    return None


def read_model(content: Any, name: str) -> ForeignModel:
    """Return the model among what `read_pickled` has read from a file called `name`.

    Raises:
        WeightsError: there is none, or one that does something else than detect, segment or classify.
    """
    root = find_model(content)
    if root is None:
        raise WeightsError(f"{name} holds no model of YOLOv5, YOLOv7 or ultralytics{_hint(content)}")
    try:
        return _read_model(root, content, name)
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as e:
        if isinstance(e, WeightsError):
            raise
        raise WeightsError(f"{name} holds a model that has not the form of YOLOv5's, YOLOv7's or ultralytics'") from e


def _read_model(root: Inert, content: Any, name: str) -> ForeignModel:
    modules = dict(named_modules(root, name))
    head = list(_children(root.get("_modules")["model"]).values())[-1]
    if not isinstance(head, Inert) or head.class_name not in KNOWN_HEADS:
        known = ", ".join(sorted(KNOWN_HEADS))
        raise WeightsError(f"{name} holds a model whose head is {_class(head)}, of which there are {known} here")
    yaml = root.get("yaml")
    if not isinstance(yaml, Mapping) or not all(isinstance(yaml.get(key), list) for key in ("backbone", "head")):
        raise WeightsError(f"{name} holds a model without its YAML, from which it could be built again")
    tensors = {
        f"{path}.{key}".lstrip("."): tensor for path, module in modules.items() for key, tensor in own_tensors(module)
    }
    maker = _maker(root, yaml)
    keys = (*OWN_KEYS, *ultralytics_yaml.KEYS, "end2end") if maker == "ultralytics" else OWN_KEYS
    spec = {key: yaml[key] for key in keys if yaml.get(key) is not None}
    spec["ch"] = yaml.get("channels", yaml.get("ch", 3))
    spec["yaml_file"] = Path(str(yaml.get("yaml_file") or f"{Path(name).stem}.yaml")).name
    if maker == "ultralytics":
        spec = ultralytics_yaml.translate(spec, spec["yaml_file"], legacy=not _has_depthwise_classes(head))
    else:
        spec, tensors, modules = yolov7.translate(spec, tensors, modules)
        if head.class_name not in ultralytics_yaml.CLASS_HEADS:
            _use_anchors(spec, tensors, _attribute(head, "stride", root.get("stride")), name)
    names = _class_names(root.get("names"), spec.get("nc"))
    return ForeignModel(
        maker, spec, names, tensors, modules, _image_size(content, root, HEADS.get(head.class_name, ""))
    )


# The tree of modules --------------------------------------------------------------------------------------------------
def named_modules(root: Inert, name: str) -> Iterator[tuple[str, Inert]]:
    """Yield every module of a tree with its path, as `nn.Module.named_modules` does.

    Raises:
        WeightsError: it has more modules, or more in each other, than any model.
    """
    stack = [("", root, 0)]
    count = 0
    while stack:
        path, module, level = stack.pop()
        count += 1
        if count > MAX_TREE or level > MAX_LEVELS:
            raise WeightsError(f"{name} holds more than {MAX_TREE:,} modules, or {MAX_LEVELS} in each other")
        yield path, module
        for key, child in _children(module).items():
            if isinstance(child, Inert):
                stack.append((f"{path}.{key}".lstrip("."), child, level + 1))


def own_tensors(module: Inert) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and the buffers that are saved of one module, with their names."""
    passing = module.get("_non_persistent_buffers_set")
    passing = passing if isinstance(passing, set) else set()
    for kind in ("_parameters", "_buffers"):
        held = module.get(kind)
        for key, value in held.items() if isinstance(held, Mapping) else ():
            if isinstance(value, Tensor) and isinstance(key, str) and key not in passing:
                yield key, value


def _children(module: object) -> Mapping[str, Any]:
    children = _attribute(module, "_modules")
    return children if isinstance(children, Mapping) else {}


def _attribute(module: object, name: str, default: Any = None) -> Any:
    value = module.get(name) if isinstance(module, Inert) else None
    return default if value is None else value


def _class(module: object) -> str:
    return module.class_name if isinstance(module, Inert) else "nothing"


def _hint(content: Any) -> str:
    """Return what the file holds instead."""
    if isinstance(content, Mapping) and str(content.get("format", "")).startswith("repyolo/"):
        return ", but is a checkpoint of RepYOLO already: use it as it is"
    if isinstance(content, Mapping) and any(isinstance(v, Tensor | Mapping) for v in content.values()):
        return ", but tensors alone, without the modules and the YAML that they belong to"
    return ""


# What a file says of its model ----------------------------------------------------------------------------------------
def _class_names(names: Any, nc: Any) -> dict[int, str]:
    """Return the names of `nc` classes by number; nothing if these are not names of so many."""
    numbered = dict(enumerate(names)) if isinstance(names, list | tuple) else names
    if not isinstance(numbered, Mapping) or not isinstance(nc, int) or set(numbered) != set(range(len(numbered))):
        return {}
    valid = len(numbered) == nc and all(isinstance(name, str) for name in numbered.values())
    return {int(i): numbered[i] for i in sorted(numbered)} if valid else {}


def _image_size(content: Any, root: Inert, task: str) -> int:
    """Return the side of the pictures that it was trained on, the usual one of its task if the file does not say."""
    options = [content.get(key) for key in ("train_args", "opt")] if isinstance(content, Mapping) else []
    for option in (*options, root.get("args")):
        size = option.get("imgsz") if isinstance(option, Mapping | Inert) else None
        if type(size) is int and 32 <= size <= MAX_IMGSZ:
            return size
    return SIDES.get(task, OTHER_SIDE)


def _maker(root: Inert, yaml: Mapping[str, Any]) -> str:
    """Return whose model it is, by where its class stands and by the words of its YAML."""
    if str(root.kind).startswith("ultralytics."):
        return "ultralytics"
    return "YOLOv7" if any(row[2] in yolov7.WORDS for row in (*yaml["backbone"], *yaml["head"])) else "YOLOv5"


def _use_anchors(spec: dict[str, Any], tensors: dict[str, Tensor], strides: Any, name: str) -> None:
    """Turn the anchors of YOLOv5's head, which are in cells, into pixels, in its tensors and in its YAML.

    Raises:
        WeightsError: there are none, or not with a stride for each level.
    """
    head = f"model.{len(spec['backbone']) + len(spec['head']) - 1}"
    tensors.pop(f"{head}.anchor_grid", None)  # of old versions: the same in pixels
    anchors = tensors.pop(f"{head}.anchors", None)
    if (
        not isinstance(anchors, Tensor)
        or not isinstance(strides, Tensor)
        or anchors.ndim != 3
        or anchors.numel() > 10_000
        or strides.shape != anchors.shape[:1]
    ):
        raise WeightsError(f"{name} holds a head without the anchors and strides of YOLOv5's")
    pixels = anchors.float() * strides.float()[:, None, None]
    tensors[f"{head}.anchor_sizes"] = pixels
    spec["anchors"] = [[float(f"{side:.4g}") for side in level.flatten().tolist()] for level in pixels]


def _has_depthwise_classes(head: Inert) -> bool:
    """Return whether the branch for classes has depthwise convolutions, as since YOLO11."""
    first = _children(_children(_children(head).get("cv3")).get("0")).get("0")
    return _class(first) == "Sequential"


# Comparing ------------------------------------------------------------------------------------------------------------
def differences(model: nn.Module, modules: Mapping[str, Inert]) -> list[str]:
    """Return where a module of `model` computes something else than its counterpart in a file with equal tensors.

    Settings such as strides, epsilons and residual connections are compared, and where ours are torch's own modules the
    names of the classes, by which activations differ.
    """
    found = []
    for path, module in model.named_modules(remove_duplicate=False):  # one activation may stand in many places
        theirs = modules.get(path)
        if theirs is None:
            continue
        ours, other = type(module).__name__, theirs.class_name
        if type(module).__module__.startswith("torch.nn.") and ours != other:
            found.append(f"{path} is {other} there and {ours} here")
        for key in SETTINGS & vars(module).keys():
            own, other = getattr(module, key), theirs.get(key)
            if other is not None and _is_plain(own) and _is_plain(other) and own != other:
                found.append(f"{path} has {key}={other} there and {key}={own} here")
    return sorted(found)


def _is_plain(value: Any) -> bool:
    values = value if isinstance(value, tuple | list) else (value,)
    return all(isinstance(v, int | float | str) for v in values)
