"""Words that are one convolution, transposed or not, with what belongs to it."""

from __future__ import annotations

from torch import nn
from ultralytics.nn.modules import (
    AConv,
    ADown,
    Conv,
    ConvTranspose,
    DWConv,
    DWConvTranspose2d,
    Focus,
    GhostConv,
    SCDown,
)
from ultralytics.nn.modules.conv import autopad

from models.arguments import Act, Kernels, Natural, Positive, activation
from models.blocks.large_kernels import DilatedReparamBlock
from models.blocks.repconv import RepConv, RepVGGBlock
from models.blocks.yolov5 import CrossConv, MixConv2d
from models.errors import ConfigError
from models.layers.site import LAYERS, Layer, Site


@LAYERS.register("Conv")
def conv(
    site: Site,
    c2: Positive,
    k: Positive = 1,
    s: Positive = 1,
    p: Natural | None = None,
    g: Positive = 1,
    d: Positive | str = 1,
    act: Act = True,
) -> Layer:
    """Convolution, BatchNorm, activation; text in place of the dilation `d` is the activation, as in YOLOv7."""
    d, act = (1, d) if isinstance(d, str) else (d, act)
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
    return site.layer(RepVGGBlock(linear, _act_module(act)), out, s)


@LAYERS.register("DilatedReparamBlock")
def dilated_reparam_block(site: Site, k: Positive = 13, act: Act = True) -> Layer:
    """UniRepLKNet's depthwise k x k convolution with dilated smaller ones in parallel, activation; channels stay."""
    channels = site.input.channels
    return site.layer(DilatedReparamBlock(channels, k, _act_module(act)), channels)


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


def _act_module(act: Act) -> nn.Module:
    """Return the activation that `act` means: the default, none, or one by its name."""
    if isinstance(act, str):
        return activation(act)
    return Conv.default_act if act else nn.Identity()
