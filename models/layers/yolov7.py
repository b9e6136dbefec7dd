"""Words of YOLOv7's YAMLs that YOLOv5 and ultralytics do not have."""

from __future__ import annotations

from torch import nn

from models.arguments import Kernels, Positive
from models.blocks.yolov7 import SPPCSPC, DownC, ReOrg, Shortcut
from models.errors import ConfigError
from models.layers.blocks import KERNELS, check_odd
from models.layers.site import LAYERS, Layer, Site, listed


@LAYERS.register("MP")
def mp(site: Site, k: Positive = 2) -> Layer:
    """Maximum over k x k pixels, whose side is the stride."""
    return site.layer(nn.MaxPool2d(k, k), site.input.channels, k)


@LAYERS.register("SP")
def sp(site: Site, k: Positive = 3, s: Positive = 1) -> Layer:
    """Maximum over a window of odd side k, moved by s."""
    check_odd(site, (k,))
    return site.layer(nn.MaxPool2d(k, s, k // 2), site.input.channels, s)


@LAYERS.register("ReOrg")
def re_org(site: Site) -> Layer:
    """The four pixels of each 2x2 cell as channels, in the order of Focus."""
    return site.layer(ReOrg(), 4 * site.input.channels, 2)


@LAYERS.register("SPPCSPC")
def sppcspc(
    site: Site,
    c2: Positive,
    n: Positive = 1,  # noqa: ARG001
    shortcut: bool = False,  # noqa: ARG001
    g: Positive = 1,  # noqa: ARG001
    e: float = 0.5,
    k: Kernels = KERNELS,
) -> Layer:
    """Spatial pyramid pooling in one of two paths; `n`, `shortcut` and `g` change nothing, as in YOLOv7."""
    out = site.width(c2)
    site.inside(2 * out * e)
    check_odd(site, k)
    return site.layer(SPPCSPC(site.input.channels, out, k, e), out)


@LAYERS.register("DownC")
def down_c(site: Site, c2: Positive, n: Positive = 1, k: Positive = 2) -> Layer:  # noqa: ARG001
    """Half of the channels by a convolution of stride k, half by max pooling; `n` changes nothing, as in YOLOv7."""
    out = site.width(c2)
    site.inside(out, multiple=2)
    return site.layer(DownC(site.input.channels, out, k), out, k)


@LAYERS.register("Shortcut")
def shortcut(site: Site, dimension: Positive = 1) -> Layer:
    """The sum of maps of one stride and equally many channels; the dimension, which YOLOv7 writes, is that of these."""
    if dimension != 1:
        raise ConfigError(f"Shortcut has the dimension 1 of the channels, got {dimension}")
    strides = [feature.stride for feature in site.inputs]
    if len({(feature.channels, feature.stride) for feature in site.inputs}) > 1:
        channels = ", ".join(str(feature.channels) for feature in site.inputs)
        raise ConfigError(
            f"Shortcut adds maps of one shape, but these have {channels} channels, strides {listed(strides)}"
        )
    return Layer(Shortcut(), (site.inputs[0],))
