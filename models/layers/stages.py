"""Words of whole stages of ResNet and PP-HGNet, of which ultralytics' RT-DETR is built; channels are not scaled."""

from __future__ import annotations

from ultralytics.nn.modules import HGBlock, HGStem, ResNetLayer

from models.arguments import Positive, activation
from models.errors import ConfigError
from models.layers.site import LAYERS, Layer, Site, check_repeats


@LAYERS.register("ResNetLayer")
def resnet_layer(
    site: Site, c1: Positive, width: Positive, s: Positive = 1, is_first: bool = False, n: Positive = 1, e: Positive = 4
) -> Layer:
    """ResNet's stem of stride 4 (`is_first`), or n bottlenecks of e * width channels, the first of stride s."""
    if c1 != site.input.channels:
        raise ConfigError(f"ResNetLayer is given c1={c1} channels, but {site.input.channels} flow in")
    check_repeats("ResNetLayer", n)
    return site.layer(ResNetLayer(c1, width, s, is_first, n, e), width * (1 if is_first else e), 4 if is_first else s)


@LAYERS.register("HGStem")
def hg_stem(site: Site, cm: Positive, out: Positive) -> Layer:
    """PP-HGNetV2's stem of stride 4, cm channels inside."""
    site.inside(cm, multiple=2)
    return site.layer(HGStem(site.input.channels, cm, out), out, 4)


@LAYERS.register("HGBlock")
def hg_block(
    site: Site,
    cm: Positive,
    out: Positive,
    k: Positive = 3,
    lightconv: bool = False,
    shortcut: bool = False,
    act: str | None = None,
) -> Layer:
    """PP-HGNetV2's block: `number` convolutions of cm channels, or with `lightconv` 1x1 and depthwise, all joined."""
    site.inside(out / 2)
    site.check_window(k, 1)
    chosen = None if act is None else activation(act)
    module = HGBlock(site.input.channels, cm, out, k, site.number, lightconv, shortcut, chosen)
    return site.layer(module, out)
