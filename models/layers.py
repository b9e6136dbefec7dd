"""The words of the YAML language: one small function per word, in which all channel arithmetic lives.

A layer function takes the place where its row stands (`Site`) and the row's arguments as its own parameters; it returns
the module and what flows out. Its signature is the word's: arguments are checked against it, and messages quote it.
Channels and strides are known before anything is run. An argument `c2` is scaled by width_multiple, others are not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn
from ultralytics.nn.modules import (
    AIFI,
    C1,
    C2,
    C2PSA,
    C3,
    C3TR,
    ELAN1,
    PSA,
    SPP,
    SPPELAN,
    A2C2f,
    AConv,
    ADown,
    Bottleneck,
    C2f,
    C2fCIB,
    C2fPSA,
    C3Ghost,
    C3k2,
    Concat,
    Conv,
    ConvTranspose,
    Detect,
    DWConv,
    DWConvTranspose2d,
    Focus,
    GhostBottleneck,
    GhostConv,
    RepC3,
    RepNCSPELAN4,
    SCDown,
)
from ultralytics.nn.modules import SPPF as UltralyticsSPPF
from ultralytics.nn.modules import RepConv as UltralyticsRepConv
from ultralytics.nn.modules.conv import autopad
from ultralytics.utils.torch_utils import initialize_weights

from models.arguments import Act, Natural, Positive, activation, bind
from models.backbones import BACKBONES, create_backbone
from models.backbones.from_timm import is_timm_model, timm_models
from models.blocks import ultralytics  # noqa: F401 - it registers how its blocks fuse
from models.blocks.repconv import RepConv, RepVGGBlock
from models.blocks.yolov5 import C3SPP, SPPF, BottleneckCSP, C3x, Channels, Contract, CrossConv, Expand, MixConv2d
from models.errors import ConfigError, did_you_mean
from models.heads import HEADS, AnchorDetect, Anchors, AnchorSegment, build_anchor_free, parse_anchors
from models.registry import Registry
from models.spec import ModelSpec, Row

MAX_REPEATS = 100  # of a row, depth_multiple included, and of what repeats inside of a block
KERNELS = (5, 9, 13)  # of YOLOv5's spatial pyramid pooling
POOLINGS = 3  # one after another
Kernels = tuple[Positive, ...]


class Feature(NamedTuple):
    """What is known of a feature map before it is computed.

    Its size is the picture's over the stride, plus the margin that a nn.ZeroPad2d has put around it.
    """

    channels: int
    stride: float  # input pixels per cell
    margin: tuple[int, int] = (0, 0)  # further rows and columns


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

    def layer(self, module: nn.Module, channels: int, down: int = 1, up: int = 1) -> Layer:
        """Return the layer of a module that gives `channels` of maps `down` times smaller or `up` times larger."""
        return Layer(module, (Feature(channels, self.input.stride * down / up),))

    def inside(self, channels: float, multiple: int = 1) -> int:
        """Return `channels` inside of a block as a whole number.

        Raises:
            ConfigError: these are less than one, or not a multiple of what the block splits them into.
        """
        if channels < 1:
            raise ConfigError(f"{self.word} has {channels:g} channels inside, which is less than one")
        if int(channels) % multiple:
            raise ConfigError(f"{self.word} has {int(channels)} channels inside, expected a multiple of {multiple}")
        return int(channels)

    def check_keeps_channels(self, out: int) -> None:
        """Raise ConfigError unless `out` channels are as many as flow in."""
        if self.input.channels != out:
            raise ConfigError(f"{self.word} gives as many channels as it reads, {self.input.channels}, not {out}")

    def check_window(self, k: int, s: int, p: int | None = None, d: int = 1) -> None:
        """Raise ConfigError unless a window of side `k`, moved by `s`, leaves a map of the grid, for every picture.

        A map of the picture's size over its stride, N, and a margin becomes (N + margin + 2 p - d (k - 1) - 1) // s + 1
        cells, and its grid has N / s.
        """
        padding = autopad(k, p, d)
        if any((margin + 2 * padding - d * (k - 1) - 1) // s + 1 for margin in self.input.margin):
            around = f" after a margin of {self.input.margin}" if any(self.input.margin) else ""
            raise ConfigError(
                f"{self.word} with k={k}, s={s}, p={padding}, d={d}{around} gives a map that is not its input's size "
                f"divided by its stride, choose another p"
            )


LAYERS = Registry[Callable[..., Layer]]("module")
READS_LIST = {"Concat", *HEADS}  # words whose module takes a list of maps, however many there are
READS_MARGIN = {"Conv", "nn.Conv2d", "nn.MaxPool2d", "nn.ZeroPad2d"}  # words that can use one up, or add to one
REPEATED_INSIDE = set(  # words that take the number of repeats themselves; others are stacked
    "A2C2f BottleneckCSP C1 C2 C2PSA C2f C2fCIB C2fPSA C3 C3Ghost C3TR C3k2 C3x RepC3".split()
)


# Convolutions ---------------------------------------------------------------------------------------------------------
@LAYERS.register("Conv")
def conv(
    site: Site,
    c2: Positive,
    k: Positive = 1,
    s: Positive = 1,
    p: Natural | None = None,
    g: Positive = 1,
    d: Positive = 1,
    act: Act = True,
) -> Layer:
    """Convolution, BatchNorm, activation."""
    out = site.width(c2)
    site.check_window(k, s, p, d)
    return site.layer(Conv(site.input.channels, out, k, s, p, g, d, _act(act)), out, s)


@LAYERS.register("RepConv")
def rep_conv(
    site: Site,
    c2: Positive,
    k: Positive = 3,
    s: Positive = 1,
    p: Natural | None = None,
    g: Positive = 1,
    d: Positive = 1,
    act: Act = True,
    identity: bool = False,
    style: str = "repvgg",
) -> Layer:
    """k x k and 1x1 convolution with BatchNorm each, and with `identity` the input, in parallel; activation."""
    out = site.width(c2)
    linear = RepConv(site.input.channels, out, k, s, g, d, identity=identity, style=style)
    if p not in (None, autopad(k, None, d)):
        raise ConfigError(f"RepConv pads by {autopad(k, None, d)}, which centres its kernels on each other, not by {p}")
    default = Conv.default_act if act is True else nn.Identity()
    return site.layer(RepVGGBlock(linear, activation(act) if isinstance(act, str) else default), out, s)


@LAYERS.register("DWConv")
def dw_conv(site: Site, c2: Positive, k: Positive = 1, s: Positive = 1, d: Positive = 1, act: Act = True) -> Layer:
    """Convolution with as many groups as both channel counts allow, BatchNorm, activation."""
    out = site.width(c2)
    site.check_window(k, s, None, d)
    return site.layer(DWConv(site.input.channels, out, k, s, d, _act(act)), out, s)


@LAYERS.register("GhostConv")
def ghost_conv(site: Site, c2: Positive, k: Positive = 1, s: Positive = 1, g: Positive = 1, act: Act = True) -> Layer:
    """Half of the channels by a convolution, half from these by a depthwise 5x5: https://arxiv.org/abs/1911.11907."""
    out = site.width(c2)
    site.check_window(k, s)
    return site.layer(GhostConv(site.input.channels, out, k, s, g, _act(act)), out, s)


@LAYERS.register("Focus")
def focus(
    site: Site,
    c2: Positive,
    k: Positive = 1,
    s: Positive = 1,
    p: Natural | None = None,
    g: Positive = 1,
    act: Act = True,
) -> Layer:
    """The four pixels of each 2x2 cell as channels, then a Conv: stride 2 s."""
    out = site.width(c2)
    site.check_window(k, s, p)
    return site.layer(Focus(site.input.channels, out, k, s, p, g, _act(act)), out, 2 * s)


@LAYERS.register("MixConv2d")
def mix_conv(site: Site, c2: Positive, k: Kernels = (1, 3), s: Positive = 1, equal_ch: bool = True) -> Layer:
    """Convolutions of several kernel sizes joined, BatchNorm, SiLU."""
    out = site.width(c2)
    for side in k:
        site.check_window(side, s)
    return site.layer(MixConv2d(site.input.channels, out, k, s, equal_ch), out, s)


@LAYERS.register("CrossConv")
def cross_conv(
    site: Site,
    c2: Positive,
    k: Positive = 3,
    s: Positive = 1,
    g: Positive = 1,
    e: float = 1.0,
    shortcut: bool = False,
) -> Layer:
    """1 x k then k x 1 convolution, with a residual connection if asked for and channels stay."""
    out = site.width(c2)
    site.inside(out * e)
    site.check_window(k, s)
    if shortcut and s > 1:
        raise ConfigError(f"CrossConv adds its input only to a map of the same size, so not with s={s}")
    return site.layer(CrossConv(site.input.channels, out, k, s, g, e, shortcut), out, s)


@LAYERS.register("nn.Conv2d")
def conv2d(
    site: Site,
    in_channels: Positive,
    out_channels: Positive,
    kernel_size: Positive,
    stride: Positive = 1,
    padding: Natural = 0,
    dilation: Positive = 1,
    groups: Positive = 1,
    bias: bool = True,
) -> Layer:
    """torch's own convolution; its channels stand in the YAML as they are, unscaled."""
    if in_channels != site.input.channels:
        raise ConfigError(f"nn.Conv2d is given {in_channels} input channels, but {site.input.channels} flow in")
    site.check_window(kernel_size, stride, padding, dilation)
    module = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
    return site.layer(module, out_channels, stride)


@LAYERS.register("nn.ConvTranspose2d")
def conv_transpose2d(
    site: Site,
    c2: Positive,
    k: Positive,
    s: Positive = 1,
    p: Natural = 0,
    output_padding: Natural = 0,
    groups: Positive = 1,
    bias: bool = True,
    dilation: Positive = 1,
) -> Layer:
    """torch's own transposed convolution: maps grow by s."""
    out = site.width(c2)
    check_grows(site, k, s, p, output_padding, dilation)
    module = nn.ConvTranspose2d(site.input.channels, out, k, s, p, output_padding, groups, bias, dilation)
    return site.layer(module, out, up=s)


@LAYERS.register("DWConvTranspose2d")
def dw_conv_transpose(
    site: Site, c2: Positive, k: Positive = 1, s: Positive = 1, p1: Natural = 0, p2: Natural = 0
) -> Layer:
    """Transposed convolution with as many groups as both channel counts allow; p2 is its output padding."""
    out = site.width(c2)
    check_grows(site, k, s, p1, p2)
    return site.layer(DWConvTranspose2d(site.input.channels, out, k, s, p1, p2), out, up=s)


@LAYERS.register("ConvTranspose")
def conv_transpose(
    site: Site, c2: Positive, k: Positive = 2, s: Positive = 2, p: Natural = 0, bn: bool = True, act: Act = True
) -> Layer:
    """Transposed convolution, BatchNorm, activation; ultralytics'."""
    out = site.width(c2)
    check_grows(site, k, s, p)
    return site.layer(ConvTranspose(site.input.channels, out, k, s, p, bn, _act(act)), out, up=s)


@LAYERS.register("SCDown")
def sc_down(site: Site, c2: Positive, k: Positive = 3, s: Positive = 2) -> Layer:
    """1x1 for the channels, depthwise k x k for the stride; YOLOv10's (https://arxiv.org/abs/2405.14458)."""
    out = site.width(c2)
    site.check_window(k, s)
    return site.layer(SCDown(site.input.channels, out, k, s), out, s)


@LAYERS.register("AConv")
def a_conv(site: Site, c2: Positive) -> Layer:
    """2x2 average, then 3x3 convolution of stride 2; YOLOv9's (https://arxiv.org/abs/2402.13616)."""
    out = site.width(c2)
    return site.layer(AConv(site.input.channels, out), out, 2)


@LAYERS.register("ADown")
def a_down(site: Site, c2: Positive) -> Layer:
    """2x2 average, then half of the channels by convolution and half by max pooling, stride 2; YOLOv9's."""
    out = site.width(c2)
    site.inside(site.input.channels, multiple=2)
    return site.layer(ADown(site.input.channels, out), out, 2)


# Without convolutions -------------------------------------------------------------------------------------------------
@LAYERS.register("nn.MaxPool2d")
def max_pool(
    site: Site, kernel_size: Positive, stride: Positive | None = None, padding: Natural = 0, dilation: Positive = 1
) -> Layer:
    """Maximum over a window; the stride is the window's side by default."""
    step = kernel_size if stride is None else stride
    if 2 * padding > kernel_size:
        raise ConfigError(f"nn.MaxPool2d pads by half of its window at most, got padding={padding}")
    site.check_window(kernel_size, step, padding, dilation)
    return site.layer(nn.MaxPool2d(kernel_size, step, padding, dilation), site.input.channels, step)


@LAYERS.register("nn.ZeroPad2d")
def zero_pad(site: Site, padding: Natural | tuple[Natural, Natural, Natural, Natural]) -> Layer:
    """Zeros around a map: left, right, top, bottom. A row of READS_MARGIN must bring it back to its grid."""
    left, right, top, bottom = (padding,) * 4 if isinstance(padding, int) else padding
    channels, stride, (rows, columns) = site.input
    margin = (rows + top + bottom, columns + left + right)
    return Layer(nn.ZeroPad2d((left, right, top, bottom)), (Feature(channels, stride, margin),))


@LAYERS.register("nn.Upsample")
def upsample(
    site: Site,
    size: None = None,
    scale_factor: Positive = 2,
    mode: str = "nearest",
    align_corners: bool | None = None,
) -> Layer:
    """Enlargement by a whole factor; a fixed `size` (YOLOv5's files leave it None) would tie it to one picture."""
    if mode not in ("nearest", "bilinear", "bicubic"):
        raise ConfigError(f"nn.Upsample has no mode '{mode}' here, expected nearest, bilinear or bicubic")
    if mode == "nearest" and align_corners is not None:
        raise ConfigError("nn.Upsample aligns corners in the modes bilinear and bicubic only")
    module = nn.Upsample(size, scale_factor, mode, align_corners)
    return site.layer(module, site.input.channels, up=scale_factor)


@LAYERS.register("nn.BatchNorm2d")
def batch_norm(site: Site, num_features: Positive | None = None) -> Layer:
    """BatchNorm of what flows in, whose channels need not be given."""
    channels = site.input.channels
    if num_features is not None and channels not in (num_features, site.width(num_features)):
        raise ConfigError(f"nn.BatchNorm2d is given {num_features} channels, but {channels} flow in")
    return site.layer(nn.BatchNorm2d(channels), channels)


@LAYERS.register("nn.Identity")
def identity(site: Site) -> Layer:
    """What flows in."""
    return site.layer(nn.Identity(), site.input.channels)


@LAYERS.register("Channels")
def channels(site: Site, start: Natural, stop: Positive) -> Layer:
    """The channels from `start` to before `stop`: of colours and heat in one picture, what one backbone reads."""
    if not start < stop <= site.input.channels:
        raise ConfigError(f"Channels takes {start} to {stop} of {site.input.channels} channels, counted from 0")
    return site.layer(Channels(start, stop), stop - start)


@LAYERS.register("Concat")
def concat(site: Site, dimension: Positive = 1) -> Layer:
    """Join maps of one stride along their channels."""
    if dimension != 1:
        raise ConfigError(f"Concat joins channels, dimension 1, got {dimension}")
    strides = [feature.stride for feature in site.inputs]
    if len(set(strides)) > 1:
        raise ConfigError(f"Concat joins maps of one stride, but 'from' names strides {_listed(strides)}")
    return Layer(Concat(1), (Feature(sum(feature.channels for feature in site.inputs), strides[0]),))


@LAYERS.register("Contract")
def contract(site: Site, gain: Positive = 2) -> Layer:
    """Space to depth: the gain x gain pixels of a cell as channels."""
    return site.layer(Contract(gain), site.input.channels * gain**2, gain)


@LAYERS.register("Expand")
def expand(site: Site, gain: Positive = 2) -> Layer:
    """Depth to space, the inverse of Contract."""
    channels = site.input.channels
    if channels % gain**2:
        raise ConfigError(f"Expand with gain={gain} needs a multiple of {gain**2} channels, but {channels} flow in")
    return site.layer(Expand(gain), channels // gain**2, up=gain)


# Blocks ---------------------------------------------------------------------------------------------------------------
@LAYERS.register("Bottleneck")
def bottleneck(
    site: Site,
    c2: Positive,
    shortcut: bool = True,
    g: Positive = 1,
    e: float = 0.5,
    k: tuple[Positive, Positive] = (1, 3),
) -> Layer:
    """Two convolutions, 1x1 and 3x3 as YOLOv5's or `k` x `k` each, with a residual connection."""
    out = site.width(c2)
    site.inside(out * e)
    for side in k:
        site.check_window(side, 1)
    return site.layer(Bottleneck(site.input.channels, out, shortcut, g, k=k, e=e), out)


@LAYERS.register("GhostBottleneck")
def ghost_bottleneck(site: Site, c2: Positive, k: Positive = 3, s: Positive = 1) -> Layer:
    """Two GhostConv with a residual connection, and with s=2 a depthwise convolution between them."""
    out = site.width(c2)
    if s > 2:
        raise ConfigError(f"GhostBottleneck has stride 1 or 2, got s={s}")
    if s == 1:
        site.check_keeps_channels(out)
    else:
        site.check_window(k, s)
    return site.layer(GhostBottleneck(site.input.channels, out, k, s), out, s)


@LAYERS.register("C1")
def c1(site: Site, c2: Positive) -> Layer:
    """x + f(x) of a 1x1 convolution's x, f = `number` 3x3 convolutions."""
    out = site.width(c2)
    return site.layer(C1(site.input.channels, out, site.number), out)


@LAYERS.register("BottleneckCSP")
def bottleneck_csp(site: Site, c2: Positive, shortcut: bool = True, g: Positive = 1, e: float = 0.5) -> Layer:
    """Cross-stage partial block as published (https://arxiv.org/abs/1911.11929): a BatchNorm after joining."""
    return _csp(site, BottleneckCSP, c2, shortcut, g, e)


@LAYERS.register("C2")
def c2_block(site: Site, c2: Positive, shortcut: bool = True, g: Positive = 1, e: float = 0.5) -> Layer:
    """Cross-stage partial block with two convolutions and `number` bottlenecks."""
    return _csp(site, C2, c2, shortcut, g, e)


@LAYERS.register("C3")
def c3(site: Site, c2: Positive, shortcut: bool = True, g: Positive = 1, e: float = 0.5) -> Layer:
    """Cross-stage partial block with three convolutions and `number` bottlenecks."""
    return _csp(site, C3, c2, shortcut, g, e)


@LAYERS.register("C3x")
def c3x(site: Site, c2: Positive, shortcut: bool = True, g: Positive = 1, e: float = 0.5) -> Layer:
    """C3 with cross convolutions."""
    return _csp(site, C3x, c2, shortcut, g, e)


@LAYERS.register("C3Ghost")
def c3_ghost(site: Site, c2: Positive, shortcut: bool = True, g: Positive = 1, e: float = 0.5) -> Layer:
    """C3 with ghost bottlenecks, which halve their channels twice; `shortcut` and `g` change nothing, as in YOLOv5."""
    return _csp(site, C3Ghost, c2, shortcut, g, e, multiple=4)


@LAYERS.register("C3TR")
def c3tr(site: Site, c2: Positive, shortcut: bool = True, g: Positive = 1, e: float = 0.5) -> Layer:
    """C3 with `number` transformer layers of four heads; `shortcut` and `g` change nothing, as in YOLOv5."""
    return _csp(site, C3TR, c2, shortcut, g, e, multiple=4)


@LAYERS.register("C2f")
def c2f(site: Site, c2: Positive, shortcut: bool = False, g: Positive = 1, e: float = 0.5) -> Layer:
    """Cross-stage partial block whose every bottleneck is joined; YOLOv8's."""
    return _csp(site, C2f, c2, shortcut, g, e)


@LAYERS.register("C3SPP")
def c3_spp(
    site: Site,
    c2: Positive,
    k: Kernels = KERNELS,
    n: Positive = 1,  # noqa: ARG001
    shortcut: bool = True,  # noqa: ARG001
    g: Positive = 1,  # noqa: ARG001
    e: float = 0.5,
) -> Layer:
    """C3 with spatial pyramid pooling; `n`, `shortcut` and `g` change nothing, as in YOLOv5."""
    out = site.width(c2)
    site.inside(out * e / 2)
    _check_odd(site, k)
    return site.layer(C3SPP(site.input.channels, out, k, e), out)


@LAYERS.register("SPP")
def spp(site: Site, c2: Positive, k: Kernels = KERNELS) -> Layer:
    """Spatial pyramid pooling (https://arxiv.org/abs/1406.4729): max poolings of several sizes side by side."""
    out = site.width(c2)
    site.inside(site.input.channels / 2)
    _check_odd(site, k)
    return site.layer(SPP(site.input.channels, out, k), out)


@LAYERS.register("SPPF")
def sppf(site: Site, c2: Positive, k: Positive = 5, n: Positive | None = None, shortcut: bool = False) -> Layer:
    """Spatial pyramid pooling, fast; with n or shortcut YOLO26's: n poolings, no activation before them."""
    out = site.width(c2)
    site.inside(site.input.channels / 2)
    _check_odd(site, (k,))
    if n is None and not shortcut:
        return site.layer(SPPF(site.input.channels, out, k), out)
    return site.layer(UltralyticsSPPF(site.input.channels, out, k, n or POOLINGS, shortcut), out)


@LAYERS.register("SPPELAN")
def spp_elan(site: Site, c2: Positive, c3: Positive, k: Positive = 5) -> Layer:
    """Spatial pyramid pooling of c3 channels, three in a row; YOLOv9's."""
    out = site.width(c2)
    _check_odd(site, (k,))
    return site.layer(SPPELAN(site.input.channels, out, c3, k), out)


@LAYERS.register("C3k2")
def c3k2(
    site: Site,
    c2: Positive,
    c3k: bool = False,
    e: float = 0.5,
    attn: bool = False,
    g: Positive = 1,
    shortcut: bool = True,
) -> Layer:
    """C2f with bottlenecks, small C3 (`c3k`) or bottlenecks and attention (`attn`); YOLO11's and YOLO26's."""
    out = site.width(c2)
    hidden = site.inside(out * e)
    site.inside(hidden / 2)
    if attn:
        _check_heads(site, hidden)
    return site.layer(C3k2(site.input.channels, out, site.number, c3k, e, attn, g, shortcut), out)


@LAYERS.register("C2fCIB")
def c2f_cib(
    site: Site, c2: Positive, shortcut: bool = False, lk: bool = False, g: Positive = 1, e: float = 0.5
) -> Layer:
    """C2f with compact inverted blocks, whose kernels are 7x7 with `lk`; YOLOv10's."""
    out = site.width(c2)
    site.inside(out * e)
    return site.layer(C2fCIB(site.input.channels, out, site.number, shortcut, lk, g, e), out)


@LAYERS.register("PSA")
def psa(site: Site, c2: Positive, e: float = 0.5) -> Layer:
    """Attention over all cells for a part of the channels; YOLOv10's."""
    out = _attended(site, c2, e)
    return site.layer(PSA(out, out, e), out)


@LAYERS.register("C2PSA")
def c2_psa(site: Site, c2: Positive, e: float = 0.5) -> Layer:
    """C2 with `number` attention blocks; YOLO11's."""
    out = _attended(site, c2, e)
    return site.layer(C2PSA(out, out, site.number, e), out)


@LAYERS.register("C2fPSA")
def c2f_psa(site: Site, c2: Positive, e: float = 0.5) -> Layer:
    """C2f with `number` attention blocks."""
    out = _attended(site, c2, e)
    return site.layer(C2fPSA(out, out, site.number, e), out)


@LAYERS.register("A2C2f")
def a2c2f(
    site: Site,
    c2: Positive,
    a2: bool = True,
    area: Positive = 1,
    residual: bool = False,
    mlp_ratio: float = 2.0,
    e: float = 0.5,
    g: Positive = 1,
    shortcut: bool = True,
) -> Layer:
    """C2f with attention (`a2`) over `area` equal parts of a map; YOLO12's (https://arxiv.org/abs/2502.12524)."""
    out = site.width(c2)
    hidden = site.inside(out * e, multiple=32)
    site.inside(hidden * mlp_ratio)
    if a2 and residual:
        site.check_keeps_channels(out)
    module = A2C2f(site.input.channels, out, site.number, a2, area, residual, mlp_ratio, e, g, shortcut)
    return site.layer(module, out)


@LAYERS.register("RepC3")
def rep_c3(site: Site, c2: Positive, e: float = 1.0) -> Layer:
    """f(x) + g(x), f = 1x1 and `number` RepConv, g = 1x1; RT-DETR's (https://arxiv.org/abs/2304.08069)."""
    out = site.width(c2)
    site.inside(out * e)
    return site.layer(RepC3(site.input.channels, out, site.number, e), out)


@LAYERS.register("RepNCSPELAN4")
def rep_ncsp_elan4(site: Site, c2: Positive, c3: Positive, c4: Positive, n: Positive = 1) -> Layer:
    """Layer aggregation of two C3 with n RepConv bottlenecks; YOLOv9's. c3 and c4 are channels inside."""
    out = site.width(c2)
    site.inside(c3, multiple=2)
    site.inside(c4 / 2)
    _check_repeats("RepNCSPELAN4", n)
    return site.layer(RepNCSPELAN4(site.input.channels, out, c3, c4, n), out)


@LAYERS.register("ELAN1")
def elan1(site: Site, c2: Positive, c3: Positive, c4: Positive) -> Layer:
    """Layer aggregation of two 3x3 convolutions; YOLOv9's. c3 and c4 are channels inside."""
    out = site.width(c2)
    site.inside(c3, multiple=2)
    site.inside(c4 / 2)
    return site.layer(ELAN1(site.input.channels, out, c3, c4), out)


@LAYERS.register("AIFI")
def aifi(site: Site, cm: Positive = 2048, num_heads: Positive = 8) -> Layer:
    """Transformer layer over all cells, cm channels inside its perceptron; RT-DETR's."""
    channels = site.input.channels
    if channels % num_heads or channels % 4:
        raise ConfigError(f"AIFI reads a multiple of 4 and of num_heads={num_heads} channels, but {channels} flow in")
    return site.layer(AIFI(channels, cm, num_heads), channels)


# Heads ----------------------------------------------------------------------------------------------------------------
@LAYERS.register("Detect")
def detect(
    site: Site, nc: int | str = "nc", anchors: Any = None, reg_max: Positive | None = None, legacy: bool = False
) -> Layer:
    """Boxes and class scores: with anchors YOLOv5's head, without them ultralytics', whose options the last two are."""
    channels, strides = _levels(site, nc)
    if anchors is None:
        end2end = site.spec.end2end
        return _head(build_anchor_free(site.spec.nc, channels, strides, None, end2end, reg_max or 16, legacy))
    _check_no_options(site, reg_max, legacy)
    return _head(AnchorDetect(site.spec.nc, _anchors(site, anchors, strides), channels, strides))


@LAYERS.register("Segment")
def segment(
    site: Site,
    nc: int | str = "nc",
    anchors: Any = None,
    nm: Positive | None = None,
    npr: Positive | None = None,
    reg_max: Positive | None = None,
    legacy: bool = False,
) -> Layer:
    """Boxes, scores and masks by `nm` prototypes (32) of `npr` channels inside (256); without anchors [nc, nm, npr]."""
    if isinstance(anchors, int) and npr is None:
        anchors, nm, npr = None, anchors, nm
    nm, npr = nm or 32, npr or 256
    channels, strides = _levels(site, nc)
    if strides[0] != 8:
        raise ConfigError(f"Segment makes its masks from a map of stride 8, but its finest has stride {strides[0]:g}")
    hidden = site.width(npr)
    if anchors is None:
        end2end = site.spec.end2end
        return _head(build_anchor_free(site.spec.nc, channels, strides, (nm, hidden), end2end, reg_max or 16, legacy))
    _check_no_options(site, reg_max, legacy)
    return _head(AnchorSegment(site.spec.nc, _anchors(site, anchors, strides), channels, strides, nm, hidden))


def _check_no_options(site: Site, reg_max: int | None, legacy: bool) -> None:
    """Raise ConfigError for options of the head without anchors."""
    if reg_max is not None or legacy:
        raise ConfigError(f"reg_max and legacy are for the head without anchors, {site.word}, [nc]")


def _levels(site: Site, nc: int | str) -> tuple[list[int], list[float]]:
    """Return channels and strides of the maps that a head reads.

    Raises:
        ConfigError: they do not go from fine to coarse, or the row gives another number of classes than the YAML.
    """
    if nc not in ("nc", site.spec.nc):
        raise ConfigError(f"{site.word} is given {nc!r} classes, but nc of the YAML is {site.spec.nc}: write nc")
    strides = [feature.stride for feature in site.inputs]
    if strides != sorted(set(strides)):
        raise ConfigError(f"{site.word} reads maps from fine to coarse, but their strides are {_listed(strides)}")
    return [feature.channels for feature in site.inputs], strides


def _anchors(site: Site, anchors: Any, strides: Sequence[float]) -> Anchors:
    """Return the anchors that a head's row means: those of the YAML's key, or its own."""
    if site.spec.end2end:
        raise ConfigError(f"end2end is for the head without anchors, {site.word}, [nc]")
    if anchors == "anchors" and site.spec.anchors is None:
        raise ConfigError(f"{site.word} reads anchors, which this YAML has no key for")
    return parse_anchors(site.spec.anchors if anchors == "anchors" else anchors, strides)


def _head(head: Detect) -> Layer:
    """Return the layer of a head, which puts out no feature map."""
    head.bias_init()
    return Layer(head, ())


# Rows -----------------------------------------------------------------------------------------------------------------
def is_backbone(word: str) -> bool:
    """Return whether `word` builds a list backbone: a registered one, or the bare name of a timm model."""
    return word in BACKBONES or (word not in LAYERS and is_timm_model(word))


def check_word(word: str) -> None:
    """Raise ConfigError for a word that builds nothing, saying which one may be meant."""
    if word not in LAYERS and not is_backbone(word):
        hint = did_you_mean(word, [*LAYERS, *BACKBONES]) or did_you_mean(word, timm_models())
        raise ConfigError(f"unknown module '{word}'{hint}: neither a word of RepYOLO nor a timm model")


def build_layer(spec: ModelSpec, row: Row, inputs: tuple[Feature, ...]) -> Layer:
    """Build a row that is not a list backbone.

    Raises:
        ConfigError: arguments that are not the word's.
    """
    if row.module in READS_LIST and row.number > 1:
        raise ConfigError(f"{row.module} stands once, not {row.number} times in a row")
    _check_margins(row, inputs)
    function = LAYERS[row.module]
    arguments = bind(row.module, function, row.args)
    number = spec.depth(row.number)
    _check_repeats(row.module, number, "" if number == row.number else f", {row.number} times depth_multiple")
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


def build_backbone(row: Row, source: Feature, out_strides: Sequence[int]) -> Layer:
    """Build a list backbone row that reads `source`, with the maps at `out_strides`, which count from there.

    Its arguments are an architecture and a trailing mapping of options. The published forks wrote `[False]` or `[True]`
    for "the default architecture, pretrained or not", which still means that; a bare timm name is its own architecture.

    Raises:
        ConfigError: the arguments are anything else.
    """
    if row.number > 1:
        raise ConfigError(f"{row.module} stands once, not {row.number} times in a row")
    _check_margins(row, (source,))
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
    module = create_backbone(name, arch, in_channels=source.channels, out_strides=out_strides, **options)
    strides = (stride * source.stride for stride in module.strides)
    return Layer(module, tuple(map(Feature, module.channels, strides)))


def _check_repeats(word: str, number: int, scaled: str = "") -> None:
    """Raise ConfigError for a block that is repeated more often than any model has it."""
    if number > MAX_REPEATS:
        raise ConfigError(f"{word} is repeated {number} times{scaled}, expected at most {MAX_REPEATS}")


def _check_margins(row: Row, inputs: Sequence[Feature]) -> None:
    """Raise ConfigError unless the row may read maps of these margins."""
    if row.module not in READS_MARGIN and any(any(feature.margin) for feature in inputs):
        words = ", ".join(sorted(READS_MARGIN))
        raise ConfigError(f"{row.module} reads a map that nn.ZeroPad2d made larger, which only {words} may read")


def check_grows(site: Site, k: int, s: int, p: int, output_padding: int = 0, d: int = 1) -> None:
    """Raise ConfigError unless a transposed convolution's map has its input's size times its stride."""
    if d * (k - 1) + 1 - 2 * p + output_padding != s:
        raise ConfigError(
            f"{site.word} with k={k}, s={s}, p={p}, output padding {output_padding} gives a map that is not its "
            f"input's size times its stride, choose another p"
        )
    if output_padding >= max(s, d):
        raise ConfigError(f"{site.word} pads its output by less than its stride or dilation, got {output_padding}")


def _act(act: Act) -> nn.Module | bool:
    """Return what ultralytics' convolutions take as `act`: the default or none, or a module."""
    return activation(act) if isinstance(act, str) else act


def _csp(site: Site, block: type[nn.Module], c2: int, shortcut: bool, g: int, e: float, multiple: int = 1) -> Layer:
    """Return the layer of a cross-stage partial block, whose channels inside are a multiple of `multiple`."""
    out = site.width(c2)
    site.inside(out * e, multiple)
    return site.layer(block(site.input.channels, out, site.number, shortcut, g, e), out)


def _attended(site: Site, c2: int, e: float) -> int:
    """Return the channels of a block that attends to a part `e` of as many channels as flow in."""
    out = site.width(c2)
    site.check_keeps_channels(out)
    _check_heads(site, site.inside(out * e))
    return out


def _check_heads(site: Site, channels: int) -> None:
    """Raise ConfigError for channels that do not split into heads of about 64, or whose keys would have none."""
    site.inside(channels, multiple=max(channels // 64, 1))
    site.inside(channels / 2)


def _check_odd(site: Site, kernels: Sequence[int]) -> None:
    """Raise ConfigError unless max poolings of stride 1 with these windows keep the size of a map."""
    if any(k % 2 == 0 for k in kernels):
        raise ConfigError(f"{site.word} needs an odd k, so that its maps keep their size, got {_listed(kernels)}")


def _listed(strides: Sequence[float]) -> str:
    return ", ".join(f"{stride:g}" for stride in strides)


DEFAULT_ACTS = (Conv.default_act, ConvTranspose.default_act, UltralyticsRepConv.default_act)


def _set_default_activation(module: nn.Module, act: nn.Module) -> None:
    """Give `act` to every convolution that has ultralytics' default activation, leaving that process-wide one alone."""
    for part in module.modules():
        if getattr(part, "act", None) in DEFAULT_ACTS:
            part.act = act
