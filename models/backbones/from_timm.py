"""Any timm model as a backbone (https://github.com/huggingface/pytorch-image-models).

What a model gives is read off a run without data (the meta device), since timm's `feature_info` is sometimes wrong;
what it lacks is made up for here:
- one size of picture only: it is built for 640, or so that it takes any, whichever its constructor knows;
- patches of 14 pixels: the picture is shrunk to 14/16, so that a patch covers 16 pixels and the map has stride 16;
- maps of (B, H, W, C), or smaller than the picture's grid for want of padding, are turned and padded;
- no P3, P4 or P5: a small pyramid makes them (`pyramid.py`).
timm's own blocks (RepVGG, MobileOne, FastViT, RepViT, ...) are fused by timm's methods, its convolution +
BatchNormAct2d pairs by ours. This is the only file that imports timm. As that takes seconds, others import this one
through `lazy_timm.py`, when a row or a word asks for timm.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import timm
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, FrozenBatchNormAct2d, RotaryEmbeddingCat
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.base import IMAGENET, Backbone, level_name, select_strides
from models.backbones.pyramid import Pyramid, fit_to_grid, nearest_stride
from models.backbones.traceable import Traceable, as_constant
from models.backbones.weights import MIN_MATCHED, Adapted, Dialect, WeightsReport
from models.blocks.frozen import thaw
from models.blocks.reparam import fuse_blocks, register_batch_norm, register_fuser, register_linear
from models.blocks.start import start_near_identity
from models.errors import ConfigError, UserError, WeightsError, did_you_mean, first_line
from models.meta import shapes_alone, without_data

RESERVED_OPTIONS = ("in_chans", "out_indices", "features_only")  # follow from the rest of a YAML
ORIGINS = ("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")  # files, addresses, folders
FUSE_METHODS = ("fuse", "reparameterize", "switch_to_deploy")  # timm's three names for one act
ADAPTED = (4, 8, 16, 32)  # strides that a pyramid makes where a model lacks them
IMAGE_SIZE = 640  # that a model of one size is built for
PROBES = (96, 256)  # sides that a model of any size is tried with: an odd number of cells, and for its strides
TIMM_ERRORS = (RuntimeError, AttributeError, TypeError, AssertionError, ValueError, LookupError, OSError)

register_linear(Conv2dSame)  # a convolution that pads by itself
register_batch_norm(BatchNormAct2d)  # a BatchNorm, then its drop and act
logging.getLogger("timm.models._builder").setLevel(logging.WARNING)  # its log of unused classifier weights

REPVGG = (  # the names that the authors of RepVGG gave to what timm's repvgg_* call otherwise
    (r"^stage0\.", "stem."),
    (r"^stage(\d)\.", lambda m: f"stages.{int(m[1]) - 1}."),
    (r"\.rbr_dense\.", ".conv_kxk."),
    (r"\.rbr_1x1\.", ".conv_1x1."),
    (r"\.rbr_identity\.", ".identity."),
    (r"\.rbr_reparam\.", ".reparam_conv."),
    (r"\.se\.down\.", ".attn.fc1."),
    (r"\.se\.up\.", ".attn.fc2."),
    (r"^linear\.", "head.fc."),
)
DIALECTS = (
    Dialect("timm, deploy form", r"\.reparam_conv\.", deploy=True, written=()),
    Dialect("the authors of RepVGG", r"^stage0\.rbr_dense\.", REPVGG),
    Dialect("the authors of RepVGG, deploy form", r"^stage0\.rbr_reparam\.", REPVGG, deploy=True),
)


@dataclass(frozen=True)
class TimmLevel:
    """One of a model's maps: its index in timm's list, its stride in our picture, its channels."""

    index: int
    stride: int
    channels: int


@dataclass(frozen=True)
class Layout:
    """What a timm model gives, read off a run without data."""

    options: dict[str, Any]  # to build it with
    levels: tuple[TimmLevel, ...]  # one per stride, ascending
    scale: float  # of the picture that timm's model sees to ours
    size: tuple[int, int] | None  # height and width of the only picture that it takes; None: any
    example_side: int  # of a small square picture that it takes
    fits: bool  # its maps have as many cells as the strides say


LAYOUTS: dict[str, Layout] = {}  # what was found out, by architecture, channels and options


class TimmBackbone(Backbone):
    """The feature maps of the timm model `arch`; those that it lacks are made by a small pyramid.

    Args:
        arch: a timm name, for instance "mobileone_s0" or "vit_tiny_patch16_224".
        in_channels: channels of the input picture; timm adapts pretrained stems to it.
        out_strides: the strides whose maps are wanted; by default all that the model has, and P3 to P5.
        pretrained: let timm download its weights. Off, nothing touches the network.
        dim: channels of each map that the pyramid makes; at most 256 by default.
        options: further arguments of `timm.create_model`. `img_size` (640) is the picture that a model of one size is
            built for, as an int or [height, width].

    Attributes:
        notes: what was added to timm's model, in sentences.
        size: height and width of the only picture that the model takes; None if it takes any.

    Raises:
        ConfigError: timm has no such model, or it cannot give the wanted strides.
    """

    archs: ClassVar[tuple[str, ...]] = ()
    dialects: ClassVar[tuple[Dialect, ...]] = DIALECTS

    def __init__(
        self,
        arch: str,
        in_channels: int = 3,
        out_strides: Sequence[int] | None = None,
        pretrained: bool = False,
        dim: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        _check_arguments(arch, dim, options)
        layout = probe_layout(arch, in_channels, options)
        native = tuple(level.stride for level in layout.levels)
        wanted = sorted({*native, 8, 16, 32}) if out_strides is None else out_strides
        self.arch = arch
        self.in_channels = in_channels
        self.strides = select_strides(wanted, sorted({*native, *ADAPTED}), f"timm's {arch}")
        levels = _needed(layout.levels, self.strides)
        indices = [level.index for level in levels]
        self.body = _create(arch, in_chans=in_channels, out_indices=indices, pretrained=pretrained, **layout.options)
        self.body_strides = [level.stride for level in levels]
        self.body_channels = [level.channels for level in levels]
        has = {level.stride: level.channels for level in levels}
        self.pyramid = Pyramid(has, self.strides, plain=len(native) == 1, dim=dim)
        self.channels = self.pyramid.channels
        self.options = layout.options
        self.scale, self.fits, self.size, self.side = layout.scale, layout.fits, layout.size, layout.example_side
        self.channels_last = _is_channels_last(self.body)
        self.normalization = _normalization(arch)
        self.notes = _notes(arch, self.pyramid, layout)
        if any(isinstance(module, nn.LayerNorm) for module in self.body.modules()):
            self.trained_by = ("AdamW", "by which transformers, and other networks with LayerNorm, are trained")

    @classmethod
    def classifier(cls, arch: str, num_classes: int, in_channels: int = 3, **options: Any) -> nn.Module:
        """Return timm's classifier of that name: pictures (B, in_channels, H, W) to logits (B, num_classes).

        Raises:
            ConfigError: timm has no such model.
            UserError: timm cannot build it so.
        """
        _check_arguments(arch, None, options)
        return TimmClassifier(arch, num_classes, in_channels, options)

    def adapt(self, tensors: dict[str, Tensor], dialect: Dialect) -> Adapted:  # noqa: ARG002
        """Put the tensors of timm's classifier under the names that its feature extractor gives them in here."""
        own = set(self.state_dict())
        if len(own & {inner for name in tensors for inner in _inner_names(name)}) < MIN_MATCHED * len(own):
            own |= fuse_blocks(self).state_dict().keys()  # it may be a file in deploy form
        inner = {
            name: next((n for n in _inner_names(name) if n in own), name.removeprefix("body.")) for name in tensors
        }
        return Adapted({inner[name]: tensor for name, tensor in tensors.items()})

    @property
    def own_maps(self) -> tuple[nn.Module, dict[int, int]]:
        """The pyramid, which reads timm's own maps, and their channels by stride."""
        return self.pyramid, dict(zip(self.body_strides, self.body_channels, strict=True))

    def published_name(self, name: str) -> str:
        """Return timm's name: its feature extractors put others before it, and make stages_0 of stages.0."""
        return re.sub(r"^([a-z]+)_(\d+)(?=\.|$)", r"\1.\2", re.sub(r"^body\.((model|body)\.)?", "", name))

    @property
    def example_side(self) -> int:
        """The side of a small picture that the model takes: its own, where `img_size` gives it one."""
        return self.side if self.size else max(self.side, 2 * self.strides[-1])

    def example_input(self) -> Tensor:
        """Return a small input of zeros, (1, in_channels, H, W), with the dtype and device of the weights."""
        size = self.size or (self.example_side, self.example_side)
        return next(self.parameters()).new_zeros(1, self.in_channels, *size)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps; UserError if the model takes no such picture, or its maps have not the known strides."""
        maps = self.run_timm(x)
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2).contiguous() for m in maps]
        if not self.fits:
            maps = [fit_to_grid(m, x, stride) for m, stride in zip(maps, self.body_strides, strict=True)]
        if not torch.jit.is_tracing():
            self.check_strides(x, maps)
        return self.pyramid(maps)

    def run_timm(self, x: Tensor) -> Sequence[Tensor]:
        """Return timm's maps of the picture x; UserError if the model takes no such picture."""
        seen = x if self.scale == 1 else F.interpolate(x, scale_factor=self.scale, mode="bilinear")
        try:
            with traceable(self.body) if torch.jit.is_tracing() else contextlib.nullcontext():
                return self.body(seen)
        except (AssertionError, RuntimeError, ValueError) as e:  # how timm's models of one size complain
            if self.size in (None, tuple(x.shape[2:])) and not isinstance(e, AssertionError):
                raise
            height, width = map(int, x.shape[2:])
            raise UserError(
                f"timm's {self.arch} takes no picture of {height}x{width}, {self._hint(height, width)}"
            ) from e

    def _hint(self, height: int, width: int) -> str:
        """Return what to do about a picture that the model does not take."""
        if height % 32 or width % 32:
            return "give it sides that are multiples of 32"
        if self.size is None:
            return f"its inner windows ask for other sides, for instance {PROBES[-1]}x{PROBES[-1]}"
        only = f"it is built for {self.size[0]}x{self.size[1]} alone"
        wanted = height if height == width else [height, width]
        return f"{only}: write {{img_size: {wanted}}} in its options" if "img_size" in self.options else only

    def check_strides(self, x: Tensor, maps: Sequence[Tensor]) -> None:
        """Raise UserError where a map is not as large as its stride says."""
        for stride, feature in zip(self.body_strides, maps, strict=True):
            if any(abs(x.shape[axis] / stride - feature.shape[axis]) >= 1 for axis in (2, 3)):
                raise UserError(
                    f"timm's {self.arch} has a map of stride {stride}, but gives {feature.shape[2]}x{feature.shape[3]} "
                    f"cells for a picture of {x.shape[2]}x{x.shape[3]}, so its boxes would be in the wrong place"
                )


class TimmClassifier(nn.Module):
    """timm's classifier `arch` as it is published: pictures (B, in_channels, H, W) to logits (B, num_classes)."""

    dialects: ClassVar[tuple[Dialect, ...]] = DIALECTS
    form: str = "train"
    weights_report: WeightsReport | None = None

    def __init__(self, arch: str, num_classes: int, in_channels: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.size = _pair(options.get("img_size", native_size(arch)))
        self.body = _create(arch, features_only=False, num_classes=num_classes, in_chans=in_channels, **options)
        self.normalization = _normalization(arch)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    @property
    def only_size(self) -> tuple[int, int] | None:
        """Height and width of the only pictures that it takes; None: it takes others, tried without data."""
        ghost = without_data(self)
        height, width = self.size
        try:
            with shapes_alone():
                ghost(torch.empty(1, self.in_channels, height + 32, width + 32))
        except TIMM_ERRORS:
            return self.size
        return None

    def example_input(self) -> Tensor:
        """Return an input of zeros of timm's size, (1, in_channels, H, W), with the dtype and device of the weights."""
        return next(self.parameters()).new_zeros(1, self.in_channels, *self.size)

    def adapt(self, tensors: dict[str, Tensor], dialect: Dialect) -> Adapted:  # noqa: ARG002
        """Put timm's tensors under the names that they have in here; all of our own begin with `body.`."""
        prefix = "" if all(name.startswith("body.") for name in tensors) else "body."
        return Adapted({f"{prefix}{name}": tensor for name, tensor in tensors.items()})

    def adapt_back(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors under timm's names."""
        return {name.removeprefix("body."): tensor for name, tensor in tensors.items()}


def _inner_names(name: str) -> tuple[str, ...]:
    """Return what timm's feature extractors may call a classifier's tensor: as it is, wrapped, or one level flatter.

    It has timm's name, or that in a classifier of ours, which puts `body.` before it.
    """
    names = dict.fromkeys((name, name.removeprefix("body.")))
    return tuple(
        inner
        for n in names
        for inner in (f"body.{n}", f"body.model.{n}", f"body.body.{n}", f"body.{n.replace('.', '_', 1)}")
    )


@contextlib.contextmanager
def traceable(body: nn.Module) -> Iterator[None]:
    """Let a trace of timm's `body` hold what depends on the size of the picture alone as constants.

    That is what resamples position embeddings, and the rotations of the EVA transformers, whose shapes torch's ONNX
    exporter gets wrong. An export of a model that has these holds for the size that it was traced with.
    """
    rotations = [m for m in body.modules() if isinstance(m, RotaryEmbeddingCat)]
    for rotation in rotations:
        rotation.__dict__["get_embed"] = functools.partial(_constant_embed, rotation.get_embed)
    try:
        with Traceable():
            yield
    finally:
        for rotation in rotations:
            del rotation.__dict__["get_embed"]


def _constant_embed(get_embed: Callable[..., Tensor], shape: Sequence[int] | None = None, **options: Any) -> Tensor:
    return as_constant(get_embed(shape and [int(side) for side in shape], **options))


# What a model gives ---------------------------------------------------------------------------------------------------
def probe_layout(arch: str, in_channels: int, options: dict[str, Any]) -> Layout:
    """Return what timm's `arch` gives, with the options by which it does. Nothing real is built or run.

    Raises:
        UserError: timm cannot build it for feature maps, or it takes none of the pictures that it is tried with.
    """
    key = repr((arch, in_channels, sorted(options.items())))
    if key in LAYOUTS:
        return LAYOUTS[key]
    reasons: list[UserError] = []
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.no_grad():
        for candidate in _candidates(arch, options):
            try:
                return LAYOUTS.setdefault(key, _probe(arch, in_channels, candidate))
            except UserError as e:
                reasons.append(e)
    raise min(reversed(reasons), key=_is_unknown_option)  # a more specific one than an unknown option


def _candidates(arch: str, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the options to try, best first: any size of picture, then one."""
    sized = {"img_size": IMAGE_SIZE, **options}
    adjusted = [{"dynamic_img_size": True, **sized}, {"strict_img_size": False, **sized}, sized]
    fixed = _published(arch, "fixed_input_size")
    yield from [*adjusted, options] if fixed else [options, *adjusted]


def _probe(arch: str, in_channels: int, options: dict[str, Any]) -> Layout:
    """Return the layout of `arch` with these `options`, whose `img_size` is in our picture; UserError if none."""
    body = _create(arch, in_chans=in_channels, **options).eval()
    scale = _picture_scale(body.feature_info.reduction())
    size = _pair(options["img_size"]) if "img_size" in options else _up_to_32(native_size(arch))
    if scale != 1 and "img_size" in options:
        options = {**options, "img_size": _scaled(size, scale)}
        body = _create(arch, in_chans=in_channels, **options).eval()
    has_rnn = any(isinstance(m, nn.RNNBase) for m in body.modules())  # which takes seconds a row without data
    probes = [(side, side) for side in (PROBES[:1] if has_rnn else PROBES)]
    any_size = (maps := _try(body, in_channels, probes[-1], scale)) is not None
    tried = probes[-1] if any_size else size
    if maps is None:
        maps = _shapes(body, in_channels, size, scale)
    few = _try(body, in_channels, probes[0], scale) if any_size else None
    strides = [2 ** round(math.log2(tried[0] / rows)) for _, rows, _ in maps]
    indices = [index % len(body.feature_info.info) for index in body.feature_info.out_indices]
    levels = {
        s: TimmLevel(i, s, c) for i, s, (c, _, _) in zip(indices, strides, maps, strict=True)
    }  # the last of a stride
    return Layout(
        options=options,
        levels=tuple(levels[s] for s in sorted(levels)),
        scale=scale,
        size=None if any_size else size,
        example_side=probes[0][0] if few else max(tried),
        fits=_fits(maps, strides, tried[0]) and (few is None or _fits(few, strides, probes[0][0])),
    )


def _fits(maps: Sequence[tuple[int, int, int]], strides: Sequence[int], height: int) -> bool:
    """Return whether each map has as many rows as its stride says of a picture of that height."""
    return all(rows * stride == height for stride, (_, rows, _) in zip(strides, maps, strict=True))


def _picture_scale(reductions: Sequence[int]) -> float:
    """Return what makes every stride a power of two, when a picture is scaled by it: 14/16 for patches of 14 pixels."""
    deepest = max(reductions)
    return deepest / 2 ** round(math.log2(deepest))


def _up_to_32(size: tuple[int, int]) -> tuple[int, int]:
    return -(-size[0] // 32) * 32, -(-size[1] // 32) * 32


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return int(size[0] * scale), int(size[1] * scale)


def _try(body: Any, *args: Any) -> list[tuple[int, int, int]] | None:
    """Return what `_shapes` does; None where it raises."""
    try:
        return _shapes(body, *args)
    except UserError:
        return None


def _shapes(body: Any, in_channels: int, size: tuple[int, int], scale: float) -> list[tuple[int, int, int]]:
    """Return (channels, rows, columns) of each map for our picture of `size`; UserError where there are none."""
    name, height, width = body.pretrained_cfg["architecture"], *_scaled(size, scale)
    try:
        with shapes_alone():
            maps = body(torch.zeros(1, in_channels, height, width))
    except TIMM_ERRORS as e:
        raise UserError(f"timm's {name} takes no picture of {height}x{width}: {first_line(e)}") from e
    if not all(isinstance(m, Tensor) and m.ndim == 4 and m.numel() for m in maps):
        raise UserError(f"timm's {name} gives no feature maps for a picture of {height}x{width}")
    turned = [m.permute(0, 3, 1, 2) if _is_channels_last(body) else m for m in maps]
    return [(m.shape[1], m.shape[2], m.shape[3]) for m in turned]


def _needed(levels: Sequence[TimmLevel], wanted: Sequence[int]) -> list[TimmLevel]:
    """Return the levels that the `wanted` strides are, or are made from."""
    strides = [level.stride for level in levels]
    used = {nearest_stride(stride, strides) for stride in wanted}
    return [level for level in levels if level.stride in used]


def _notes(arch: str, pyramid: Pyramid, layout: Layout) -> tuple[str, ...]:
    """Return what a reader should know that timm's model does not have by itself."""
    notes = []
    if pyramid.made:
        made = ", ".join(level_name(stride) for stride in pyramid.made)
        native = ", ".join(level_name(level.stride) for level in layout.levels)
        notes.append(f"a trained adapter makes {made} for timm's {arch}, which gives {native}")
    if layout.scale != 1:
        notes.append(f"timm's {arch} sees the picture at {layout.scale:g} of its size, so that its strides fit")
    if not layout.fits:
        notes.append(f"the maps of timm's {arch} are brought to the grid of the picture")
    if layout.size:
        notes.append(f"timm's {arch} takes pictures of {layout.size[0]}x{layout.size[1]} alone")
    return tuple(notes)


def _check_arguments(arch: Any, dim: Any, options: dict[str, Any]) -> None:
    """Raise ConfigError for a name, a `dim`, an `img_size` or another option that cannot be meant."""
    if not is_timm_model(arch):
        raise ConfigError(f"timm has no model '{arch}'{did_you_mean(str(arch), timm_models())}")
    for option in RESERVED_OPTIONS:
        if option in options:
            raise ConfigError(f"timm's {option} follows from the rest of the YAML and is not an option")
    for option in ORIGINS:
        if option in options:
            raise ConfigError(f"timm's {option} is not an option: take pretrained: true, or weights: FILE")
    if dim is not None and not (_is_whole(dim) and dim > 0):
        raise ConfigError(f"timm's dim is the number of channels that an adapter makes, got {dim!r}")
    size = options.get("img_size", IMAGE_SIZE)
    sides = size if isinstance(size, list | tuple) else (size, size)
    if len(sides) != 2 or not all(_is_whole(side) and side > 0 and side % 32 == 0 for side in sides):
        raise ConfigError(f"timm's img_size is a multiple of 32 pixels, or [height, width] of such, got {size!r}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _is_unknown_option(error: UserError) -> bool:
    """Return whether a model was asked for an option that its class does not have."""
    return isinstance(error.__cause__, TypeError)


def is_timm_model(name: str) -> bool:
    """Return whether timm knows `name`, a tag of pretrained weights such as `.in1k` aside."""
    return isinstance(name, str) and timm.is_model(name.partition(".")[0])


def pretrained_tensors(name: str) -> dict[str, Tensor]:
    """Return the tensors of the weights that timm calls `name`, for instance "poolformer_s12.sail_in1k".

    Raises:
        WeightsError: timm has no such weights, or cannot download them.
    """
    if not is_timm_model(name):
        raise WeightsError(f"timm has no weights '{name}'{did_you_mean(name.partition('.')[0], timm_models())}")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (*TIMM_ERRORS, ImportError) as e:  # whatever the hub's client raises without a network is one of these
        raise WeightsError(f"timm could not get the weights {name}: {first_line(e)}") from e


def timm_models() -> list[str]:
    """Return the names of all timm models."""
    return timm.list_models()


def timm_file(arch: str) -> str:
    """Return the name of the file of timm.models that `arch` stands in, for instance "byobnet"."""
    return str(timm.model_entrypoint(arch).__module__).rpartition(".")[2]


def native_size(arch: str) -> tuple[int, int]:
    """Return height and width of the picture that timm made `arch` for."""
    _, height, width = _published(arch, "input_size") or (3, IMAGE_SIZE, IMAGE_SIZE)
    return int(height), int(width)


def _normalization(arch: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the channels of the pictures that the weights of `arch` know."""
    mean, std = (_published(arch, key) or usual for key, usual in zip(("mean", "std"), IMAGENET, strict=True))
    return tuple(mean), tuple(std)


def _published(arch: str, key: str) -> Any:
    """Return what timm says of the weights of `arch`; ConfigError for an unknown tag of weights."""
    try:
        return timm.get_pretrained_cfg_value(arch, key)
    except (RuntimeError, ValueError) as e:
        raise ConfigError(f"timm has no weights '{arch}': {first_line(e)}") from e


def _is_channels_last(body: Any) -> bool:
    return str(getattr(body, "output_fmt", "NCHW")).upper().endswith("NHWC")


@register_fuser
def fuse_frozen(module: Any) -> nn.Module | None:
    """Return timm's FrozenBatchNormAct2d as torch's BatchNorm2d, then its drop and act; None for others."""
    return nn.Sequential(thaw(module), module.drop, module.act) if type(module) is FrozenBatchNormAct2d else None


@register_fuser
def fuse_timm_block(module: nn.Module) -> nn.Module | None:
    """Return timm's own fused form of one of its blocks; None for other modules and for fused ones."""
    if not type(module).__module__.startswith("timm."):
        return None
    method = next((m for m in FUSE_METHODS if callable(getattr(module, m, None))), None)
    if method is None:
        return None
    dtype = next((p.dtype for p in module.parameters()), torch.float32)
    fused = copy.deepcopy(module).double()
    former = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # some of timm's fusing makes convolutions of the default dtype
    try:
        result = getattr(fused, method)()
    finally:
        torch.set_default_dtype(former)
    fused = (result if isinstance(result, nn.Module) else fused).to(dtype)
    return fused if fused.state_dict().keys() != module.state_dict().keys() else None


def _create(arch: str, features_only: bool = True, **options: Any) -> Any:
    """Call `timm.create_model`, turn its refusals into one sentence, and start new branches as they learn."""
    try:
        model = timm.create_model(arch, features_only=features_only, **options)
    except TIMM_ERRORS as e:
        raise UserError(f"timm cannot build {arch} as a backbone: {first_line(e)}") from e
    if not options.get("pretrained"):
        start_near_identity(model)
    return model
