"""Words of blocks: bottlenecks, cross-stage partial blocks, spatial pyramid pooling, attention."""

from __future__ import annotations

from collections.abc import Sequence

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
    Bottleneck,
    C2f,
    C2fCIB,
    C2fPSA,
    C3Ghost,
    C3k2,
    GhostBottleneck,
    RepC3,
    RepNCSPELAN4,
)
from ultralytics.nn.modules import SPPF as UltralyticsSPPF

from models.arguments import Kernels, Positive
from models.blocks import ultralytics  # noqa: F401 - it registers how modules fuse
from models.blocks.large_kernels import RepLKBlock
from models.blocks.yolov5 import C3SPP, SPPF, BottleneckCSP, C3x
from models.errors import ConfigError
from models.layers.site import LAYERS, Layer, Site, check_repeats, listed

KERNELS = (5, 9, 13)  # of YOLOv5's spatial pyramid pooling
POOLINGS = 3  # one after another


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


@LAYERS.register("RepLKBlock")
def rep_lk_block(
    site: Site, c2: Positive, k: Positive = 31, small: Positive = 5, shortcut: bool = True, e: float = 1.0
) -> Layer:
    """RepLKNet's: 1x1, depthwise k x k with a `small` kernel in parallel, 1x1, with a residual connection."""
    out = site.width(c2)
    site.inside(out * e)
    return site.layer(RepLKBlock(site.input.channels, out, k, small, shortcut, e), out)


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
    check_odd(site, k)
    return site.layer(C3SPP(site.input.channels, out, k, e), out)


@LAYERS.register("SPP")
def spp(site: Site, c2: Positive, k: Kernels = KERNELS) -> Layer:
    """Spatial pyramid pooling (https://arxiv.org/abs/1406.4729): max poolings of several sizes side by side."""
    out = site.width(c2)
    site.inside(site.input.channels / 2)
    check_odd(site, k)
    return site.layer(SPP(site.input.channels, out, k), out)


@LAYERS.register("SPPF")
def sppf(site: Site, c2: Positive, k: Positive = 5, n: Positive | None = None, shortcut: bool = False) -> Layer:
    """Spatial pyramid pooling, fast; with n or shortcut YOLO26's: n poolings, no activation before them."""
    out = site.width(c2)
    site.inside(site.input.channels / 2)
    check_odd(site, (k,))
    if n is None and not shortcut:
        return site.layer(SPPF(site.input.channels, out, k), out)
    return site.layer(UltralyticsSPPF(site.input.channels, out, k, n or POOLINGS, shortcut), out)


@LAYERS.register("SPPELAN")
def spp_elan(site: Site, c2: Positive, c3: Positive, k: Positive = 5) -> Layer:
    """Spatial pyramid pooling of c3 channels, three in a row; YOLOv9's."""
    out = site.width(c2)
    check_odd(site, (k,))
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
    check_repeats("RepNCSPELAN4", n)
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


def check_odd(site: Site, kernels: Sequence[int]) -> None:
    """Raise ConfigError unless these windows, moved by 1, keep the size of a map."""
    if any(k % 2 == 0 for k in kernels):
        raise ConfigError(f"{site.word} needs an odd k, so that its maps keep their size, got {listed(kernels)}")
