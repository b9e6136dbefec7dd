"""Words of heads, which stand in the last row and put out no feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ultralytics.nn.modules import Detect

from models.arguments import Natural, Positive
from models.backbones import create_backbone
from models.backbones.base import IMAGENET
from models.backbones.weights import SOURCES
from models.downloads import check_download
from models.errors import ConfigError
from models.heads import (
    AnchorDetect,
    Anchors,
    AnchorSegment,
    Branches,
    Masks,
    PublishedClassifier,
    build_anchor_free,
    build_classify,
    parse_anchors,
)
from models.layers.site import LAYERS, Layer, Site, listed


@LAYERS.register("Detect")
def detect(
    site: Site,
    nc: int | str = "nc",
    anchors: Any = None,
    reg_max: Positive | None = None,
    legacy: bool = False,
    convs: Natural | None = None,
) -> Layer:
    """Boxes and class scores: with anchors YOLOv5's head, without them ultralytics', whose options the last are."""
    channels, strides = _levels(site, nc)
    if anchors is None:
        branches = _branches(site, reg_max, legacy, convs)
        return _head(build_anchor_free(site.spec.nc, channels, strides, None, site.spec.end2end, branches))
    _check_no_options(site, reg_max, legacy, convs)
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
    all_levels: bool = False,
    convs: Natural | None = None,
) -> Layer:
    """Boxes, scores and masks by `nm` prototypes (32) of `npr` channels inside (256); without anchors [nc, nm, npr].

    With `all_levels` prototypes are made from all maps, not the finest alone: YOLO26's, without anchors.
    """
    if isinstance(anchors, int) and npr is None:
        anchors, nm, npr = None, anchors, nm
    nm, npr = nm or 32, npr or 256
    channels, strides = _levels(site, nc)
    if strides[0] != 8:
        raise ConfigError(f"Segment makes its masks from a map of stride 8, but its finest has stride {strides[0]:g}")
    hidden = site.width(npr)
    if anchors is None:
        if all_levels and strides != [8 * 2**i for i in range(len(strides))]:
            raise ConfigError(f"Segment with all_levels reads strides 8, 16, 32, ..., not {listed(strides)}")
        masks, branches = Masks(nm, hidden, all_levels), _branches(site, reg_max, legacy, convs)
        return _head(build_anchor_free(site.spec.nc, channels, strides, masks, site.spec.end2end, branches))
    _check_no_options(site, reg_max, legacy, convs, all_levels)
    return _head(AnchorSegment(site.spec.nc, _anchors(site, anchors, strides), channels, strides, nm, hidden))


@LAYERS.register("Classify")
def classify(
    site: Site,
    nc: int | str = "nc",
    k: Positive = 1,
    s: Positive = 1,
    p: Natural | None = None,
    g: Positive = 1,
    dropout: float | Natural = 0,
) -> Layer:
    """Probabilities of classes, of the whole picture; the arguments are those of the convolution before the pooling."""
    _check_nc(site, nc)
    if dropout >= 1:
        raise ConfigError(f"{site.word}'s dropout must be a number from 0 to below 1, got {dropout!r}")
    return Layer(build_classify(site.spec.nc, site.input.channels, site.input.stride, k, s, p, g, dropout), ())


@LAYERS.register("Classifier")
def classifier(
    site: Site, family: str, arch: str | None = None, weights: str | None = None, allow_partial: bool = False
) -> Layer:
    """A network as it was published for classification, timm's or ours: it reads the picture, and is all of the model.

    It takes pictures in [0, 1], and normalizes them as those were that its weights were trained on.
    """
    if str(weights).startswith(tuple(SOURCES)):
        check_download(f"{site.word} {family}")
    channels = site.input.channels
    network = create_backbone(
        family, arch, in_channels=channels, num_classes=site.spec.nc, weights=weights, allow_partial=allow_partial
    )
    mean, std = getattr(network, "normalization", IMAGENET) if channels == len(IMAGENET[0]) else ((0.0,), (1.0,))
    return Layer(PublishedClassifier(network, mean, std), ())


def _check_nc(site: Site, nc: int | str) -> None:
    """Raise ConfigError when the row gives another number of classes than the YAML."""
    if nc not in ("nc", site.spec.nc):
        raise ConfigError(f"{site.word} is given {nc!r} classes, but nc of the YAML is {site.spec.nc}: write nc")


def _branches(site: Site, reg_max: int | None, legacy: bool, convs: int | None) -> Branches:
    """Return what a row's options of the head without anchors mean, with ultralytics' numbers where it gives none."""
    default = Branches()
    if convs is not None and convs > default.convs:
        raise ConfigError(f"{site.word}'s convs must be 0, 1 or {default.convs}, got {convs}")
    return Branches(reg_max or default.reg_max, legacy, default.convs if convs is None else convs)


def _check_no_options(site: Site, *options: object) -> None:
    """Raise ConfigError if there are options of the head without anchors."""
    if any(option not in (None, False) for option in options):
        names = "reg_max, legacy, convs and all_levels" if site.word == "Segment" else "reg_max, legacy and convs"
        raise ConfigError(f"{names} are for the head without anchors, {site.word}, [nc]")


def _levels(site: Site, nc: int | str) -> tuple[list[int], list[float]]:
    """Return channels and strides of the maps that a head reads.

    Raises:
        ConfigError: they do not go from fine to coarse, or the row gives another number of classes than the YAML.
    """
    _check_nc(site, nc)
    strides = [feature.stride for feature in site.inputs]
    if strides != sorted(set(strides)):
        raise ConfigError(f"{site.word} reads maps from fine to coarse, but their strides are {listed(strides)}")
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
