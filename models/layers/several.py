"""Words of rows that give several maps in one slot, and of those that read such rows; ultralytics'."""

from __future__ import annotations

from ultralytics.nn.modules import CBFuse, CBLinear, Index

from models.arguments import Kernels, Natural, Positive
from models.errors import ConfigError
from models.layers.site import LAYERS, Feature, Layer, Site, several
from models.layers.torchvision import build_torchvision


@LAYERS.register("CBLinear")
def cb_linear(
    site: Site, c2s: Kernels, k: Positive = 1, s: Positive = 1, p: Natural | None = None, g: Positive = 1
) -> Layer:
    """One convolution whose channels are several maps of `c2s` channels, unscaled, for CBFuse.

    YOLOv9e's (https://arxiv.org/abs/2402.13616), whose second backbone reads the maps of a first one so.
    """
    site.check_window(k, s, p)
    maps = [Feature(c2, site.input.stride * s) for c2 in c2s]
    return Layer(CBLinear(site.input.channels, list(c2s), k, s, p, g), (several(maps),))


@LAYERS.register("CBFuse")
def cb_fuse(site: Site, idx: tuple[Natural, ...]) -> Layer:
    """The last map plus map `idx[i]` of each row before it, brought to its size by the nearest pixels; YOLOv9e's."""
    *rows, last = site.inputs
    if len(idx) != len(rows):
        raise ConfigError(
            f"CBFuse reads {len(rows)} row(s) and a map, so that idx has {len(rows)} number(s), not {len(idx)}"
        )
    if last.maps:
        raise ConfigError("CBFuse adds to a map, which 'from' names last, but its last row gives several")
    for i, row in zip(idx, rows, strict=True):
        picked = _pick(site, row, i)
        if picked.channels != last.channels:
            raise ConfigError(
                f"CBFuse adds maps of {last.channels} channels, but map {i} of a row has {picked.channels}"
            )
    return Layer(CBFuse(list(idx)), (last,))


@LAYERS.register("Index")
def index(site: Site, channels: Positive, index: Natural = 0) -> Layer:
    """One of the maps of a row that gives several, whose channels stand unscaled before its number."""
    picked = _pick(site, site.input, index)
    if picked.channels != channels:
        raise ConfigError(f"Index is given {channels} channels, but map {index} has {picked.channels}")
    return Layer(Index(index), (picked,))


@LAYERS.register("TorchVision")
def torchvision(
    site: Site,
    channels: Positive,
    model: str,
    weights: str | None = None,
    unwrap: bool = True,
    truncate: Natural = 2,
    split: bool = False,
) -> Layer:
    """A classifier of torchvision by its name, without its last `truncate` parts; with `split` what each part gives.

    `channels` are those of its last map, unscaled. `weights`, such as DEFAULT, are downloaded where that is allowed.
    """
    if site.input.channels != 3:
        raise ConfigError(f"TorchVision reads a picture of 3 channels, but {site.input.channels} flow in")
    module, maps = build_torchvision(model, weights, unwrap, truncate, split, site.input.stride)
    if maps[-1].channels != channels:
        raise ConfigError(f"TorchVision's {model} gives {maps[-1].channels} channels, not {channels}")
    return Layer(module, (several(maps) if split else maps[-1],))


def _pick(site: Site, row: Feature, index: int) -> Feature:
    """Return one of the maps of a row that gives several.

    Raises:
        ConfigError: it gives one map alone, fewer than that, or something else there.
    """
    if not row.maps:
        raise ConfigError(
            f"{site.word} picks a map of a row that gives several, such as CBLinear, but this one gives one"
        )
    if index >= len(row.maps):
        raise ConfigError(f"{site.word} picks map {index}, but the row has {len(row.maps)}, counted from 0")
    if not row.maps[index].channels:
        raise ConfigError(f"{site.word} picks output {index}, which is no map (channels, then rows and columns)")
    return row.maps[index]
