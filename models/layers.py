"""The words of the YAML language: one small function per signature, in which all channel arithmetic lives.

A layer function takes the place where its row stands (`Site`) and the row's arguments as its own parameters; it returns
the module and what flows out. Its signature is the word's: arguments are checked against it, and messages quote it.
Channels and strides are known before anything is run.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import nn
from ultralytics.nn.modules import C3, Bottleneck, Concat, Conv, DWConv
from ultralytics.nn.modules.conv import autopad
from ultralytics.utils.torch_utils import initialize_weights

from models.backbones import BACKBONES, create_backbone
from models.backbones.from_timm import is_timm_model, timm_models
from models.blocks.repconv import RepConv, RepVGGBlock
from models.blocks.yolov5 import SPPF
from models.errors import ConfigError, did_you_mean
from models.heads import build_detect
from models.registry import Registry
from models.spec import ModelSpec, Row, parse_call

Positive = Annotated[int, 1]  # a whole number from 1
Natural = Annotated[int, 0]  # a whole number from 0
MAX_ARGUMENT = 100_000
ACTIVATION_NAMES = "SiLU ReLU ReLU6 LeakyReLU PReLU ELU CELU SELU GELU Mish Hardswish Hardsigmoid Sigmoid Tanh Identity"
ACTIVATIONS = {name: getattr(nn, name) for name in ACTIVATION_NAMES.split()}


class Feature(NamedTuple):
    """What is known of a feature map before it is computed."""

    channels: int
    stride: float  # input pixels per cell


class Layer(NamedTuple):
    """A built row: its module, and one feature, or one per level for a list backbone."""

    module: nn.Module
    outputs: tuple[Feature, ...]


@dataclass(frozen=True)
class Site:
    """Where a row stands: its word, what flows in, how often it is repeated, and the scales of the whole YAML."""

    word: str
    inputs: tuple[Feature, ...]
    number: int  # scaled by depth_multiple already
    spec: ModelSpec

    @property
    def input(self) -> Feature:
        """The one feature that flows in.

        Raises:
            ConfigError: several flow in, and this word takes one.
        """
        if len(self.inputs) != 1:
            raise ConfigError(f"{self.word} reads one feature map, but 'from' names {len(self.inputs)}")
        return self.inputs[0]

    def width(self, channels: int) -> int:
        """Return `channels` scaled as the YAML says."""
        return self.spec.width(channels)


LAYERS = Registry[Callable[..., Layer]]("module")
READS_LIST = {"Concat", "Detect"}  # words whose module takes a list of maps, however many there are
REPEATED_INSIDE = {"C3"}  # words that take the number of repeats themselves; others are stacked


@LAYERS.register("Conv")
def conv(
    site: Site,
    c2: Positive,
    k: Positive = 1,
    s: Positive = 1,
    p: Natural | None = None,
    g: Positive = 1,
    d: Positive = 1,
    act: bool | str = True,
) -> Layer:
    """Convolution, BatchNorm, activation."""
    out = site.width(c2)
    check_keeps_grid(k, s, p, d)
    module = Conv(site.input.channels, out, k, s, p, g, d, activation(act) if isinstance(act, str) else act)
    return Layer(module, (Feature(out, site.input.stride * s),))


@LAYERS.register("RepConv")
def rep_conv(
    site: Site,
    c2: Positive,
    k: Positive = 3,
    s: Positive = 1,
    p: Natural | None = None,
    g: Positive = 1,
    d: Positive = 1,
    act: bool | str = True,
    identity: bool = False,
    style: str = "repvgg",
) -> Layer:
    """k x k and 1x1 convolution with BatchNorm each, and with `identity` the input, in parallel; activation."""
    out = site.width(c2)
    linear = RepConv(site.input.channels, out, k, s, g, d, identity=identity, style=style)
    if p not in (None, autopad(k, None, d)):
        raise ConfigError(f"RepConv pads by {autopad(k, None, d)}, which centres its kernels on each other, not by {p}")
    default = Conv.default_act if act is True else nn.Identity()
    module = RepVGGBlock(linear, activation(act) if isinstance(act, str) else default)
    return Layer(module, (Feature(out, site.input.stride * s),))


@LAYERS.register("DWConv")
def dw_conv(site: Site, c2: Positive, k: Positive = 1, s: Positive = 1, d: Positive = 1, act: bool = True) -> Layer:
    """Convolution with as many groups as both channel counts allow, BatchNorm, activation."""
    out = site.width(c2)
    check_keeps_grid(k, s, None, d)
    return Layer(DWConv(site.input.channels, out, k, s, d, act), (Feature(out, site.input.stride * s),))


@LAYERS.register("Bottleneck")
def bottleneck(site: Site, c2: Positive, shortcut: bool = True, g: Positive = 1, e: float = 0.5) -> Layer:
    """1x1 and 3x3 convolution with a residual connection, YOLOv5's."""
    out = site.width(c2)
    check_has_channels(site, out * e)
    module = Bottleneck(site.input.channels, out, shortcut, g, k=(1, 3), e=e)
    return Layer(module, (Feature(out, site.input.stride),))


@LAYERS.register("C3")
def c3(site: Site, c2: Positive, shortcut: bool = True, g: Positive = 1, e: float = 0.5) -> Layer:
    """Cross-stage partial block with three convolutions and `number` bottlenecks."""
    out = site.width(c2)
    check_has_channels(site, out * e)
    module = C3(site.input.channels, out, site.number, shortcut, g, e)
    return Layer(module, (Feature(out, site.input.stride),))


@LAYERS.register("SPPF")
def sppf(site: Site, c2: Positive, k: Positive = 5) -> Layer:
    """Spatial pyramid pooling, fast."""
    if k % 2 == 0:
        raise ConfigError(f"SPPF needs an odd k, so that its maps keep their size, got {k}")
    out = site.width(c2)
    check_has_channels(site, site.input.channels / 2)
    return Layer(SPPF(site.input.channels, out, k), (Feature(out, site.input.stride),))


@LAYERS.register("nn.Upsample")
def upsample(site: Site, size: None = None, scale_factor: Positive = 2, mode: str = "nearest") -> Layer:
    """Enlargement by a whole factor; a fixed `size` (YOLOv5's files leave it None) would tie it to one picture."""
    if mode not in ("nearest", "bilinear", "bicubic"):
        raise ConfigError(f"nn.Upsample has no mode '{mode}' here, expected nearest, bilinear or bicubic")
    module = nn.Upsample(size, scale_factor, mode)
    return Layer(module, (Feature(site.input.channels, site.input.stride / scale_factor),))


@LAYERS.register("Concat")
def concat(site: Site, dimension: Positive = 1) -> Layer:
    """Join maps of one stride along their channels."""
    if dimension != 1:
        raise ConfigError(f"Concat joins channels, dimension 1, got {dimension}")
    strides = [feature.stride for feature in site.inputs]
    if len(set(strides)) > 1:
        raise ConfigError(
            f"Concat joins maps of one stride, but 'from' names strides {', '.join(map('{:g}'.format, strides))}"
        )
    return Layer(Concat(1), (Feature(sum(feature.channels for feature in site.inputs), strides[0]),))


@LAYERS.register("Detect")
def detect(site: Site, nc: int | str = "nc", anchors: Any = None) -> Layer:
    """The detection head, anchor-free."""
    if nc not in ("nc", site.spec.nc):
        raise ConfigError(f"Detect is given {nc!r} classes, but nc of the YAML is {site.spec.nc}: write nc")
    if anchors is not None:
        raise ConfigError("Detect with anchors is not available, write Detect, [nc] for the anchor-free head")
    strides = [feature.stride for feature in site.inputs]
    if strides != sorted(set(strides)):
        raise ConfigError(
            f"Detect reads maps from fine to coarse, but their strides are {', '.join(map('{:g}'.format, strides))}"
        )
    return Layer(build_detect(site.spec.nc, [feature.channels for feature in site.inputs], strides), ())


def check_keeps_grid(k: int, s: int, p: int | None, d: int) -> None:
    """Raise ConfigError unless a convolution's map has its input's size divided by its stride, for every picture."""
    padding = autopad(k, p, d)
    if not 0 <= 2 * padding - d * (k - 1) - 1 + s < s:
        raise ConfigError(
            f"a convolution with k={k}, s={s}, p={padding}, d={d} gives a map that is not its input's size divided by "
            f"its stride, choose another p"
        )


def check_has_channels(site: Site, hidden: float) -> None:
    """Raise ConfigError for a block whose inner convolutions would have no channel at all."""
    if hidden < 1:
        raise ConfigError(f"{site.word} has {hidden:g} channels inside, which is less than one")


def is_backbone(word: str) -> bool:
    """Return whether `word` builds a list backbone: a registered one, or the bare name of a timm model."""
    return word in BACKBONES or (word not in LAYERS and is_timm_model(word))


def build_layer(spec: ModelSpec, row: Row, inputs: tuple[Feature, ...]) -> Layer:
    """Build a row that is not a list backbone.

    Raises:
        ConfigError: an unknown word, or arguments that are not the word's.
    """
    if row.module not in LAYERS:
        hint = did_you_mean(row.module, [*LAYERS, *BACKBONES]) or did_you_mean(row.module, timm_models())
        raise ConfigError(f"unknown module '{row.module}'{hint}: neither a word of RepYOLO nor a timm model")
    if row.module in READS_LIST and row.number > 1:
        raise ConfigError(f"{row.module} stands once, not {row.number} times in a row")
    function = LAYERS[row.module]
    arguments = bind(row.module, function, row.args)
    number = spec.depth(row.number)
    if row.module in REPEATED_INSIDE or number == 1:
        layer = function(Site(row.module, inputs, number, spec), **arguments)
    else:
        layers = []
        for _ in range(number):
            layers.append(function(Site(row.module, inputs, 1, spec), **arguments))
            inputs = layers[-1].outputs
        layer = Layer(nn.Sequential(*(built.module for built in layers)), layers[-1].outputs)
    if spec.activation is not None:
        _set_default_activation(layer.module, activation(spec.activation))
    initialize_weights(layer.module)
    return layer


def build_backbone(spec: ModelSpec, row: Row, out_strides: Sequence[int]) -> Layer:
    """Build a list backbone row with the maps at `out_strides`.

    Its arguments are an architecture and a trailing mapping of options. The published forks wrote `[False]` or `[True]`
    for "the default architecture, pretrained or not", which still means that; a bare timm name is its own architecture.

    Raises:
        ConfigError: the arguments are anything else.
    """
    if row.number > 1:
        raise ConfigError(f"{row.module} stands once, not {row.number} times in a row")
    args = list(row.args)
    options = dict(args.pop()) if args and isinstance(args[-1], dict) else {}
    legacy = args.pop(0) if args and isinstance(args[0], bool) else False
    reserved = {"name", "in_channels", "out_strides"} & options.keys()
    if reserved:
        raise ConfigError(f"{row.module}: {reserved.pop()} follows from the rest of the YAML and is not an option")
    name = row.module if row.module in BACKBONES else "timm"
    archs = args if row.module in BACKBONES else [row.module, *args]
    if "arch" in options:
        archs.append(options.pop("arch"))
    if len(archs) > 1 or not all(isinstance(arch, str) for arch in archs):
        raise ConfigError(f"{row.module} takes an architecture and a mapping of options, such as [s12, {{...}}]")
    arch = archs[0] if archs else None
    if legacy and name == "timm":
        options.setdefault("pretrained", True)
    elif legacy:
        raise ConfigError(f"{row.module} downloads no weights, name a file: [{{weights: FILE}}]")
    module = create_backbone(name, arch, in_channels=spec.ch, out_strides=out_strides, **options)
    return Layer(module, tuple(map(Feature, module.channels, module.strides)))


def activation(text: str) -> nn.Module:
    """Return the activation that `text` means, for instance `nn.LeakyReLU(0.1)`.

    Raises:
        ConfigError: not the name of an activation, or not its arguments.
    """
    try:
        call = parse_call(text)
        if call.name not in ACTIVATIONS:
            raise ValueError(f"unknown activation '{call.name}'{did_you_mean(call.name, ACTIVATIONS)}")
        built = ACTIVATIONS[call.name](*call.args, **dict(call.kwargs))
        built(torch.zeros(1, 1))  # some arguments show only here that they are none
    except (TypeError, ValueError, RuntimeError, OverflowError) as e:
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ConfigError(f"activation {text}: {reason}") from e
    return built


def bind(word: str, function: Callable[..., Layer], args: Sequence[Any]) -> dict[str, Any]:
    """Return `args` by the names of the parameters that follow `site` in `function`, checked against their types.

    A trailing mapping gives keyword arguments.

    Raises:
        ConfigError: too many, missing, unknown or of another type; the message quotes the whole signature.
    """
    parameters = list(inspect.signature(function).parameters.values())[1:]
    signature = inspect.Signature(parameters)
    args = list(args)
    keywords = args.pop() if args and isinstance(args[-1], dict) else {}
    quote = (
        f"{word} takes ({', '.join(p.name if p.default is p.empty else f'{p.name}={p.default}' for p in parameters)})"
    )
    try:
        bound = signature.bind(*args, **keywords)
    except TypeError as e:
        raise ConfigError(f"{quote}: {e}") from e
    hints = typing.get_type_hints(function, include_extras=True)
    for name, value in bound.arguments.items():
        if not _accepts(hints[name], value):
            raise ConfigError(f"{quote}: {name} must be {_describe(hints[name])}, got {value!r}")
    return dict(bound.arguments)


def _listed(strides: Sequence[float]) -> str:
    return ", ".join(f"{stride:g}" for stride in strides)


def _accepts(hint: Any, value: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        (low,) = hint.__metadata__
        return _accepts(int, value) and low <= value <= MAX_ARGUMENT
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(part, value) for part in typing.get_args(hint))
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_ARGUMENT
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _describe(hint: Any) -> str:
    origin = typing.get_origin(hint)
    if origin is Annotated:
        return f"a whole number from {hint.__metadata__[0]} to {MAX_ARGUMENT}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(part) for part in typing.get_args(hint))
    names = {bool: "true or false", str: "text", float: "a positive number", int: "a whole number", type(None): "None"}
    return names[hint]


def _set_default_activation(module: nn.Module, act: nn.Module) -> None:
    """Give `act` to every convolution that has ultralytics' default activation, leaving that process-wide one alone."""
    for part in module.modules():
        if getattr(part, "act", None) is Conv.default_act:
            part.act = act
