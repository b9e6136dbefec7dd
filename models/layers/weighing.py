"""Words that weigh or mix what is there and keep channels and size: attention, squeeze-excite, RepMLP's block."""

from __future__ import annotations

from ultralytics.nn.modules import CBAM

from models.arguments import Kernels, Positive
from models.blocks.repconv import SQUEEZE, SqueezeExcite
from models.blocks.repmlp import RepMLPBlock
from models.errors import ConfigError
from models.layers.blocks import check_odd
from models.layers.site import LAYERS, Layer, Site


@LAYERS.register("SE")
def se(site: Site, c1: Positive | None = None, reduction: Positive = SQUEEZE) -> Layer:
    """Squeeze-excite: a factor for each channel (https://arxiv.org/abs/1709.01507)."""
    channels = _channels(site, c1)
    return site.layer(SqueezeExcite(channels, reduction), channels)


@LAYERS.register("CBAM")
def cbam(site: Site, c1: Positive | None = None, kernel_size: Positive = 7) -> Layer:
    """A factor for each channel, then one for each pixel (https://arxiv.org/abs/1807.06521); ultralytics'."""
    if kernel_size not in (3, 7):
        raise ConfigError(f"CBAM has a kernel of 3 or 7, got kernel_size={kernel_size}")
    channels = _channels(site, c1)
    return site.layer(CBAM(channels, kernel_size), channels)


@LAYERS.register("RepMLPBlock")
def rep_mlp_block(
    site: Site,
    c2: Positive,
    h: Positive,
    w: Positive,
    reparam_conv_k: Kernels = (1, 3),
    globalperceptron_reduce: Positive = 4,
    num_sharesets: Positive = 1,
) -> Layer:
    """RepMLPNet's block (https://arxiv.org/abs/2112.11081): tiles of h x w through layers that swallow convolutions."""
    out = site.width(c2)
    site.check_keeps_channels(out)
    site.inside(out, multiple=num_sharesets)
    site.inside(out / globalperceptron_reduce)
    check_odd(site, reparam_conv_k)
    if len(set(reparam_conv_k)) < len(reparam_conv_k):
        raise ConfigError(f"RepMLPBlock has one convolution of each size, got reparam_conv_k={list(reparam_conv_k)}")
    return site.layer(RepMLPBlock(out, h, w, num_sharesets, reparam_conv_k, globalperceptron_reduce), out)


def _channels(site: Site, given: int | None) -> int:
    """Return how many channels flow in, which a row may give, scaled or not, or leave out."""
    channels = site.input.channels
    if given is not None and channels not in (given, site.width(given)):
        raise ConfigError(f"{site.word} is given {given} channels, but {channels} flow in")
    return channels
