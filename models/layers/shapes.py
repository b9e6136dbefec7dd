"""Words without a convolution: what pools, pads, enlarges, normalizes, picks, joins or reorders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from ultralytics.nn.modules import Concat

from models.arguments import ACTIVATIONS, OTHER_NAMES, Natural, Positive, activation
from models.blocks.yolov5 import Channels, Contract, Expand
from models.errors import ConfigError
from models.layers.site import LAYERS, Feature, Layer, Site, listed


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
    rows, columns = site.input.margin
    margin = (rows + top + bottom, columns + left + right)
    return Layer(nn.ZeroPad2d((left, right, top, bottom)), (site.input._replace(margin=margin),))


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


def _activation_word(name: str) -> Callable[..., Layer]:
    """Return the word of an activation."""

    def build(site: Site, first: bool | float | None = None, second: bool | float | None = None) -> Layer:
        """An activation and its arguments; `inplace` changes nothing, since other rows may read the map as well."""
        values = ", ".join(repr(value) for value in (first, second) if value is not None)
        module: Any = activation(f"{name}({values})")
        if hasattr(module, "inplace"):
            module.inplace = False
        return site.layer(module, site.input.channels)

    return build


for _name in ACTIVATIONS:
    if _name != "Identity":
        LAYERS.register(_name if _name in OTHER_NAMES else f"nn.{_name}")(_activation_word(_name))


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
        raise ConfigError(f"Concat joins maps of one stride, but 'from' names strides {listed(strides)}")
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
