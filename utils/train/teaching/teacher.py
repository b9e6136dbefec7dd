"""What a training can be taught by, opened once: a checkpoint, or a model YAML or a model of timm with weights."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules import Detect

from models import Backbone, DetectionModel, create_model, switch_to_deploy
from models.backbones.weights import load_plain
from models.errors import UserError, WeightsError
from models.layers import is_backbone
from models.parser import PICTURE
from models.spec import ModelSpec, Row, is_weights, load_spec
from models.yaml_sources import find_config
from utils.checkpoint import build_model, load_checkpoint, pack_model
from utils.checkpoint.file import FORMAT

TIMM = "timm:"  # what names of timm's models begin with
EMA = "ema"  # the name of the teacher that is the run's own average of weights
YAMLS = (".yaml", ".yml")
Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation of the channels of pictures


@dataclass(frozen=True)
class Teacher:
    """A trained network, as it was opened.

    Attributes:
        name: of the file, or timm:NAME.
        network: in eval mode, on the CPU.
        whole: its neck and head are trained too; else its list backbone alone.
        normalization: of the pictures that it was trained on, if these were not in [0, 1].
    """

    name: str
    network: DetectionModel
    whole: bool
    normalization: Normalization | None = None

    def digest(self) -> str:
        """Return a digest of its tensors, by which a run that is resumed knows it again."""
        sha = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            sha.update(name.encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    def pack(self) -> dict[str, Any]:
        """Return it as plain data and tensors, for other processes."""
        network = {**pack_model(self.network), "ema": self.network.state_dict()}
        return {"name": self.name, "network": network, "whole": self.whole, "normalization": self.normalization}

    @classmethod
    def unpack(cls, content: Mapping[str, Any]) -> Teacher:
        """Return the one that was packed."""
        normalization = content["normalization"]
        return cls(
            content["name"],
            build_model(content["network"], content["name"]),
            content["whole"],
            None if normalization is None else (tuple(normalization[0]), tuple(normalization[1])),
        )


def teacher_path(word: str) -> str:
    """Return what `--teacher` names, a file with its whole path, so that a run finds it from any folder."""
    if word == EMA or word.startswith(TIMM):
        return word
    return str((find_config(word) if word.endswith(YAMLS) else Path(word)).resolve())


def open_teacher(word: str, weights: str | None, channels: int) -> Teacher:
    """Return the teacher that `--teacher` names.

    Args:
        word: a checkpoint, a model YAML, or timm:NAME.
        weights: a file for the backbone of a YAML or of timm, which is downloaded otherwise where that was allowed.
        channels: of the pictures.

    Raises:
        UserError: there is no such file or name, it takes other pictures, or it is not trained.
    """
    if not word.startswith(TIMM) and not word.endswith(YAMLS):
        if weights:
            raise UserError("--teacher-weights is for the backbone of a YAML or of timm, and a checkpoint has its own")
        network = load_checkpoint(word)
        if network.spec.ch != channels:
            raise UserError(f"--teacher {word} takes pictures of {network.spec.ch} channels, the data has {channels}")
        return Teacher(Path(word).name, network, whole=True)
    spec = _of_timm(word, weights) if word.startswith(TIMM) else _with_weights(load_spec(word), weights)
    network = create_model(spec, ch=channels).eval()
    rows = zip(network.model, network.nodes, strict=True)
    module, node = next(((m, n) for m, n in reversed([*rows]) if isinstance(m, Backbone)), (None, None))
    origin = _origin(node.row) if node and node.sources == (PICTURE,) else False
    if module is None or not origin:
        raise UserError(
            f"--teacher {word} has no list backbone that reads the picture with trained weights, so that nothing can "
            f"be learnt from it: name a checkpoint, or weights for its backbone with --teacher-weights FILE"
        )
    is_published = origin is True or not _is_checkpoint(origin)
    normalization = module.normalization if is_published and channels == len(module.normalization[0]) else None
    name = word if word.startswith(TIMM) else Path(word).name
    return Teacher(name, network, whole=False, normalization=normalization)


def _of_timm(word: str, weights: str | None) -> ModelSpec:
    """Return the YAML of a detector on a model of timm, of which the backbone teaches."""
    options = {"weights": weights} if weights else {"pretrained": True}
    row = [-1, 1, "timm", [word.removeprefix(TIMM), options]]
    head = [[["P3", "P4", "P5"], 1, "Detect", ["nc"]]]
    return load_spec({"nc": 1, "backbone": [row], "head": head, "yaml_file": f"--teacher {word}"})


def _with_weights(spec: ModelSpec, weights: str | None) -> ModelSpec:
    """Return a YAML whose first list backbone starts from a file, if one is given."""
    if not weights:
        return spec
    row = next((row for row in spec.rows if is_backbone(row.module)), None)
    if row is None:
        raise UserError(f"--teacher-weights is for a list backbone, of which {spec.name} has none: name a checkpoint")
    return spec.with_option(row.index, "weights", weights)


def _origin(row: Row) -> str | bool:
    """Return what a list backbone's row says of its weights: a file, whether timm downloads them, or False."""
    options = row.args[-1] if row.args and isinstance(row.args[-1], Mapping) else {}
    file = options.get("weights") or next((arg for arg in row.args if is_weights(arg)), None)
    return file or bool(options.get("pretrained")) or row.args[:1] == (True,)


def _is_checkpoint(file: str) -> bool:
    """Return whether a file of weights is a checkpoint of ours, whose pictures are in [0, 1]."""
    try:
        content = load_plain(file)
    except WeightsError:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


class Prepared(nn.Module):
    """A teacher ready to be asked: frozen, in eval mode, its head giving what losses read.

    Args:
        teacher: stays as it is.
        last: row that nothing is needed behind.
        fused: run it in its fused form, but for a head without NMS, which would lose the branch that teaches.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, teacher: Teacher, last: int, fused: bool = True) -> None:
        super().__init__()
        network = teacher.network
        fuses = fused and not network.is_fused()
        self.network: Any = switch_to_deploy(network) if fuses else copy.deepcopy(network)
        if fuses and network.end2end:
            self.network.model[-1] = copy.deepcopy(network.model[-1])
        self.network.eval().requires_grad_(False)
        if isinstance(self.network.model[-1], Detect) and last == len(network.model) - 1:
            self.network.model[-1].training = True  # raw maps, without decoding them; what is inside stays in eval mode
        self.network.model, self.network.nodes = self.network.model[: last + 1], self.network.nodes[: last + 1]
        mean, std = teacher.normalization or ((0.0,), (1.0,))
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1))

    def forward(self, pictures: Tensor) -> Any:
        """Run the network on pictures (B, C, H, W) in [0, 1]."""
        return self.network((pictures - self.mean) / self.std)
