"""What the tests share: random statistics, differences that can fail, tiny model YAMLs."""

from __future__ import annotations

import copy
import json
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils._pytree import tree_leaves

from models.spec import load_spec
from models.yaml_sources import CONFIGS
from utils.checkpoint import pack_model, save_checkpoint
from utils.deploy.fresh import random_model  # noqa: F401 (those of the parity table, for all tests)
from utils.deploy.randomize import randomize_  # noqa: F401 (those of the parity table, for all tests)

GOLDEN = Path(__file__).parent / "golden"

TINY_BACKBONE = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "C3", [32]]]
TINY_HEAD = [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "nn.Upsample", [None, 2, "nearest"]], [[-1, 2], 1, "Concat", [1]]]
TINY_DETECT = [[5, 3], 1, "Detect", ["nc"]]


def shipped() -> list[str]:
    """Return the names of the YAMLs in models/configs; of those with the same rows one, narrow and without NMS."""
    cfgs = {path.name: yaml.safe_load(path.read_text(encoding="utf-8")) for path in CONFIGS.glob("*.yaml")}
    by_rows: dict[str, str] = {}
    for name in sorted(cfgs, key=lambda n: (cfgs[n].get("width_multiple", 1.0), "end2end" not in cfgs[n], len(n))):
        by_rows.setdefault(str((cfgs[name]["backbone"], cfgs[name]["head"])), name)
    return sorted(by_rows.values())


SHIPPED = shipped()
DETECTORS = [name for name in SHIPPED if load_spec(name).task != "classify"]
LARGE = 13_000_000  # parameters from which a sweep takes a model with the slow tests alone


def swept(names: list[str]) -> list:
    """Return names in SHIPPED for tests to sweep over, large models marked as slow."""
    sizes = json.loads((Path(__file__).parent / "complexity.json").read_text())
    large = {name for name, forms in sizes.items() if forms["train"]["parameters"] > LARGE}
    return [pytest.param(name, marks=[pytest.mark.slow] if name in large else []) for name in names]


SWEPT = swept(SHIPPED)


def tiny(**changes) -> dict:
    """Return a small model YAML with strides 4 and 8, whose keys `changes` replaces."""
    cfg = {"nc": 2, "depth_multiple": 1.0, "width_multiple": 0.5, "backbone": TINY_BACKBONE}
    return {**cfg, "head": [*TINY_HEAD, TINY_DETECT], **changes}


def tiny_backbone(word: str, *args, **changes) -> dict:
    """Return a small model YAML of one list backbone and a head that reads P3 to P5."""
    head = [[["P3", "P4", "P5"], 1, "Detect", ["nc"]]]
    return {"nc": 2, "width_multiple": 0.5, "backbone": [[-1, 1, word, list(args)]], "head": head, **changes}


def tiny_with_row(*entries, at: int = 3) -> dict:
    """Return the tiny model YAML with another row `at`."""
    rows = [*TINY_BACKBONE, *TINY_HEAD, TINY_DETECT]
    rows[at] = list(entries)
    return tiny(backbone=rows[:3], head=rows[3:])


def write(folder: Path, content: str | dict, name: str = "bad.yaml") -> Path:
    """Write a YAML file from text or data and return its path."""
    path = folder / name
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


STRANGE = [None, True, -1, 0, 1, 5, 1.5, float("nan"), float("inf"), 10**12, "x", "", "nc", "None", "P3", "P9", "Conv"]
STRANGE += ["nn.ReLU()", "a\nb", "\u2028", [], [1], [[-1]], [None], {}, {"c2": 8}, {"a": [1]}, b"x", -(10**12)]


def mutated(rng: random.Random) -> dict:
    """Return the tiny YAML with one to three random changes: something replaced, removed, doubled or swapped."""
    cfg = copy.deepcopy(tiny())
    for _ in range(rng.randint(1, 3)):
        target, key = _pick(rng, cfg)
        change = rng.choice(["replace"] * 4 + ["remove", "double", "swap"])
        if change == "replace":
            target[key] = copy.deepcopy(rng.choice(STRANGE))
        elif change == "remove":
            del target[key]
        elif isinstance(target, list):
            other = rng.randrange(len(target))
            if change == "double":
                target.insert(other, target[key])
            else:
                target[key], target[other] = target[other], target[key]
    return cfg


def _pick(rng: random.Random, container: dict | list) -> tuple[dict | list, object]:
    """Return a container inside `container`, itself included, and one of its keys."""
    while True:
        key = rng.choice(list(container)) if isinstance(container, dict) else rng.randrange(len(container))
        inner = container[key]
        if not isinstance(inner, dict | list) or not inner or rng.random() < 0.25:
            return container, key
        container = inner


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return the largest difference over the largest value of `want`; shapes must be equal, and all values finite."""
    assert got.shape == want.shape, f"{tuple(got.shape)} instead of {tuple(want.shape)}"
    assert got.isfinite().all(), "not finite"
    assert want.isfinite().all(), "the reference is not finite"
    return ((got - want).abs().max() / want.abs().max()).item()


def tensors(output) -> list[torch.Tensor]:
    """Return every tensor of a model's output, feature maps included."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)]


@torch.no_grad()
def worst_error(got: nn.Module, want: nn.Module, x: torch.Tensor) -> float:
    """Return the largest relative error over all outputs of the module `got`, each against its own size."""
    outputs = tensors(want(x))
    assert any(is_telling(output) for output in outputs), "no output depends on the input, nothing would show"
    return max(relative_error(g, w) for g, w in zip(tensors(got(x)), outputs, strict=True))


def is_telling(output: torch.Tensor) -> bool:
    """Return whether the pictures of a batch have clearly different outputs, none of them constant."""
    difference = (output[0] - output[1]).abs().max() / output.abs().max()
    return bool(difference > 1e-2 and output[0].std() > 1e-3 * output[0].abs().max())


def pictures(height: int = 96, width: int = 64, channels: int = 3, dtype=torch.float64) -> torch.Tensor:
    """Return a batch of two random pictures."""
    return torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def pictures_for(model: nn.Module, rows: int = 3, columns: int = 2) -> torch.Tensor:
    """Return a batch of two random pictures of so many of the model's largest cells, to a classifier a dark one."""
    side = int(model.stride.max())
    x = pictures(rows * side, columns * side)
    x[1] *= 0.1 if model.task == "classify" else 1
    return x


@torch.no_grad()
def tell_apart_(model: nn.Module, x: torch.Tensor) -> nn.Module:
    """Give a classifier of random weights a last layer by which a batch of pictures differs; return `model`.

    Its logits are means over all of a picture, which are nearly the same for all random pictures.
    """
    linear, logits = model.model[-1].linear, model.eval()(x)[1]
    spread = logits.std(0)
    linear.weight /= spread[:, None]
    linear.bias.copy_((linear.bias - logits.mean(0)) / spread)
    return model


def golden(name: str) -> dict:
    """Return a file of known features."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def golden_tensor(name: str, shape: list[int]) -> torch.Tensor:
    """Return the tensor that golden features were computed with, a function of its name and shape alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1)
    if name.endswith("running_var"):
        values = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        values = rng.normal(0, 0.2, shape)
    elif "layer_scale" in name:
        values = rng.uniform(0.1, 0.5, shape)
    elif len(shape) == 1:
        values = rng.uniform(0.5, 1.5, shape) if name.endswith("weight") else rng.normal(0, 0.1, shape)
    else:
        values = rng.normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape)
    return torch.from_numpy(values).float()  # as published files hold them


def assert_golden(backbone: nn.Module, known: dict, dtype: torch.dtype, tolerance: float) -> None:
    """Compare the maps of a backbone, whose parameters are of `dtype`, with a file of known features."""
    assert {p.dtype for p in backbone.parameters()} == {dtype}
    x = torch.from_numpy(np.random.default_rng(7).uniform(0, 1, known["input"])).to(dtype)
    with torch.no_grad():
        maps = backbone(x)
    for level, got, stride, channels in zip(known["levels"], maps, backbone.strides, backbone.channels, strict=True):
        indices, values = zip(*level["at"], strict=True)
        wanted = torch.tensor(values, dtype=torch.float64)
        assert (list(got.shape), stride, channels) == (level["shape"], level["stride"], level["channels"])
        assert relative_error(got.flatten()[list(indices)].double(), wanted) <= tolerance
        size = max(abs(level["mean"]), level["std"])
        assert abs(got.double().mean().item() - level["mean"]) <= tolerance * size
        assert abs(got.double().std().item() - level["std"]) <= max(tolerance, 1e-9) * size


def save(model: nn.Module, path: Path) -> Path:
    """Save a model as a training does, and return where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint({**pack_model(model), "ema": model.state_dict()}, path)
    return path
