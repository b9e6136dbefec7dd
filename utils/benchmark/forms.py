"""The forms in which one model runs, as data: in PyTorch before and after fusing, and in every format that is written.

RIFormer has a form more in each format: with only what is published fused (the affine map into the norm before it), as
the measure of what folding everything else is worth.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from models import DetectionModel, switch_to_deploy
from models.backbones import Backbone
from models.blocks.riformer import RIFormerBlock, fuse_norm_affine
from models.errors import UserError
from models.spec import ModelSpec
from models.summary import check_levels
from utils.checkpoint import load_checkpoint
from utils.data.samples import make_pictures
from utils.deploy.files import size_of
from utils.deploy.formats import FORMATS, format_of
from utils.deploy.fresh import fresh_model
from utils.deploy.run import load_runner
from utils.deploy.write import WriteOptions, write
from utils.int8.quantize import FloatGraph, quantize_openvino
from utils.sizes import check_imgsz

RunNetwork = Callable[[Tensor], object]  # takes (B, ch, H, W) float32 in [0, 1]
NetworkSource = ModelSpec | Path  # a model YAML, or a checkpoint


class PublishedNorm(nn.GroupNorm):
    """A GroupNorm that stays one in deployment, since fusing goes by the exact type."""


class PublishedBlock(nn.Module):
    """A RIFormer block in its published deploy form: the affine map in norm1, all else as in training."""

    def __init__(self, block: RIFormerBlock) -> None:
        super().__init__()
        self.norm1 = fuse_norm_affine(block.norm1, block.token_mixer.affine)
        self.norm2, self.mlp = block.norm2, block.mlp
        self.layer_scale_1, self.layer_scale_2 = block.layer_scale_1, block.layer_scale_2

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.layer_scale_1[:, None, None] * self.norm1(x)
        return x + self.layer_scale_2[:, None, None] * self.mlp(self.norm2(x))


def as_published(network: nn.Module) -> nn.Module:
    """Return a copy in which the RIFormer blocks have their published deploy form, and Conv+BN is fused."""
    published = copy.deepcopy(network)
    for name, module in list(published.named_modules()):
        if isinstance(module, RIFormerBlock):
            parent, _, child = name.rpartition(".")
            setattr(published.get_submodule(parent), child, PublishedBlock(module))
    for module in published.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = PublishedNorm
    return switch_to_deploy(published)


def keep(network: nn.Module) -> nn.Module:
    """Return the network as it trains."""
    return network


# The forms ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Form:
    """One way to run a network.

    Attributes:
        title: what people call it.
        fuse: from the network as it trains to the one that runs or is written.
        format: that it is written in, a key of FORMATS; empty: it runs in PyTorch.
        int8: every layer that can be computed in INT8 is.
        block: a form for networks with such modules only.
    """

    title: str
    fuse: Callable[[nn.Module], nn.Module]
    format: str = ""
    int8: bool = False
    block: type[nn.Module] | None = None

    def fits(self, network: nn.Module) -> bool:
        """Whether the form differs from the others for this network."""
        return self.block is None or any(isinstance(module, self.block) for module in network.modules())


UNFUSED, FUSED, ONNX, ONNX_UNFUSED = "eager", "fused", "onnx", "onnx-unfused"
TITLES = {"onnx": "ONNX Runtime"}  # of formats that people call by what runs them
FORMS = {
    UNFUSED: Form("PyTorch, unfused", keep),
    FUSED: Form("PyTorch, fused", switch_to_deploy),
    **{name: Form(TITLES.get(name, row.title), switch_to_deploy, name) for name, row in FORMATS.items()},
    "int8": Form("ONNX Runtime, INT8", switch_to_deploy, "onnx", int8=True),
    "openvino-int8": Form("OpenVINO, INT8", switch_to_deploy, "openvino", int8=True),
    **{f"{name}-unfused": Form(f"{row.title}, unfused", keep, name) for name, row in FORMATS.items() if name == ONNX},
    **{
        f"{name}-published": Form(f"{row.title}, as published", as_published, name, block=RIFormerBlock)
        for name, row in FORMATS.items()
        if name in ("onnx", "openvino")
    },
}

DEFAULT_FORMS = (
    *("eager", "fused", "torchscript", "onnx", "openvino", "int8", "openvino-int8"),
    *("onnx-unfused", "onnx-published", "openvino-published"),
)


@dataclass(frozen=True)
class Made:
    """A network in one form."""

    module: nn.Module  # that runs or was written
    path: Path | None = None  # of the file or folder that was written
    bytes: int | None = None  # of it

    def load(self, threads: int) -> RunNetwork:
        """Return the function that runs it. PyTorch computes on torch's threads."""
        return load_runner(self.path, threads) if self.path else self.module


def make(
    key: str, network: nn.Module, size: tuple[int, int], folder: Path, pictures: Iterable[Tensor] | None = None
) -> Made:
    """Bring a network into a form.

    Args:
        key: of FORMS.
        network: a detection model or a backbone as it trains; it is left as it is.
        size: height and width of its pictures.
        folder: where to write, as `model` with the ending of the format; it must be there and empty.
        pictures: (1, ch, *size) each, to calibrate INT8 on; photographs and patterns by default.

    Raises:
        ExportError, UserError: this network cannot be written so.
        OSError: the disk is full.
    """
    form = FORMS[key]
    module = form.fuse(network)
    if not form.format:
        return Made(module)
    path = folder / f"model{FORMATS[form.format].ending}"
    if isinstance(module, DetectionModel):
        write(module, path, WriteOptions(size=size))
        if form.int8:
            path = quantize_file(module, path, size, pictures)
    elif form.int8:
        raise UserError("INT8 is for whole detectors")
    else:
        write_backbone(module, path, size)
    return Made(module, path, size_of(path))


def quantize_file(
    module: DetectionModel, path: Path, size: tuple[int, int], pictures: Iterable[Tensor] | None = None
) -> Path:
    """Write a float ONNX or OpenVINO file once more, with every layer in INT8 that can be, and return the new one.

    Raises:
        UserError: a package is missing.
    """
    kind, folder = format_of(path), path.parent / "int8"
    folder.mkdir()
    if pictures is None:
        pictures = [picture[None] for picture in make_pictures(size, module.spec.ch).values()]
    if kind is FORMATS[ONNX]:
        graph = FloatGraph(path)
        onnx.save(graph.quantized(graph.calibrate(pictures, folder, {})), str(folder / path.name))
    else:
        graph = FloatGraph(write(module, folder / "graph.onnx", WriteOptions(size=size)).path)
        quantize_openvino(path, folder / path.name, pictures, graph.ends)
    return folder / path.name


def write_backbone(backbone: Any, path: Path, size: tuple[int, int]) -> None:
    """Write a backbone without neck and head, for timing, in the format that the ending of `path` says.

    Raises:
        UserError: only detection models are written in this format.
    """
    kind = format_of(path)
    if kind is None or kind.name not in BACKBONE_WRITERS:
        raise UserError(f"backbones alone are written as {', '.join(BACKBONE_WRITERS)}")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # notes of the tracer
        BACKBONE_WRITERS[kind.name](backbone, torch.zeros(1, backbone.in_channels, *size), path)


def _to_torchscript(backbone: nn.Module, images: Tensor, path: Path) -> None:
    torch.jit.trace(backbone, images).save(path)


def _to_onnx(backbone: nn.Module, images: Tensor, path: Path) -> None:
    torch.onnx.export(backbone, (images,), str(path), opset_version=WriteOptions().opset, dynamo=False)


def _to_openvino(backbone: nn.Module, images: Tensor, path: Path) -> None:
    import openvino  # noqa: PLC0415 (slow, and few need it)

    graph = openvino.convert_model(backbone, example_input=images, input=images.shape)
    openvino.save_model(graph, path / "model.xml", compress_to_fp16=False)


BACKBONE_WRITERS = {"torchscript": _to_torchscript, "onnx": _to_onnx, "openvino": _to_openvino}


# Where networks come from ---------------------------------------------------------------------------------------------
def open_network(source: NetworkSource, backbone: bool = False) -> DetectionModel | Backbone:
    """Return a network as it trains, in eval mode: of a model YAML with fresh weights, or of a checkpoint.

    Args:
        backbone: return the model's first list backbone alone.

    Raises:
        ConfigError, WeightsError: the file is wrong.
        UserError: there is no list backbone.
    """
    model = fresh_model(source) if isinstance(source, ModelSpec) else load_checkpoint(source)
    if not backbone:
        return model
    rows = [row for row in model.model if isinstance(row, Backbone)]
    if not rows:
        name = source.name if isinstance(source, ModelSpec) else source
        raise UserError(f"{name} has no list backbone: its rows are its backbone")
    return rows[0].eval()


def fit_size(network: Any, imgsz: Sequence[int]) -> tuple[int, int]:
    """Return height and width of the pictures; UserError for a network that takes other ones only."""
    whole = isinstance(network, DetectionModel)
    stride = int(network.stride.max()) if whole else network.strides[-1]
    height, width = check_imgsz(list(imgsz), stride)
    only = network.only_size if whole else network.size
    if only not in (None, (height, width)):
        raise UserError(f"takes pictures of {only[0]}x{only[1]} pixels only, which --imgsz {only[0]} {only[1]} gives")
    if whole:
        check_levels(network, (height, width))
    return height, width


def open_form(source: NetworkSource, key: str, backbone: bool) -> RunNetwork:
    """Return the network of `source` in one of PyTorch's forms."""
    return FORMS[key].fuse(open_network(source, backbone))


def loader(source: NetworkSource, key: str, backbone: bool, made: Made, threads: int) -> Callable[[], RunNetwork]:
    """Return a function that loads a network in one form anew, which may be sent to another process."""
    if made.path:
        return partial(load_runner, made.path, threads)
    return partial(open_form, source, key, backbone)
