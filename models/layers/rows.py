"""Rows: which words there are, and a row's module and features from its word, its arguments and what it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from ultralytics.nn.modules import Conv, ConvTranspose
from ultralytics.nn.modules import RepConv as UltralyticsRepConv
from ultralytics.utils.torch_utils import initialize_weights

from models import absent
from models.arguments import activation, bind
from models.backbones import BACKBONES, create_backbone
from models.backbones.lazy_timm import is_timm_model, timm_models
from models.backbones.weights import SOURCES
from models.downloads import check_download
from models.errors import ConfigError, did_you_mean
from models.layers.site import LAYERS, Feature, Layer, Site, check_repeats
from models.spec import HEADS, ModelSpec, Row, is_weights

ONE_MAP = {"Classify", "Classifier"}  # heads that read one
READS_LIST = {"CBFuse", "Concat", "Shortcut", *HEADS} - ONE_MAP  # whose module takes a list, however many there are
STANDS_ONCE = {"CBLinear", "Index", "TorchVision", *READS_LIST, *HEADS}  # words that do not read what they give
READS_SEVERAL = {"CBFuse", "Index"}  # words that can read a row which gives several maps
READS_MARGIN = {"Conv", "nn.Conv2d", "nn.MaxPool2d", "nn.ZeroPad2d"}  # words that can use one up, or add to one
REPEATED_INSIDE = set(  # words that take the number of repeats themselves; others are stacked
    "A2C2f BottleneckCSP C1 C2 C2PSA C2f C2fCIB C2fPSA C3 C3Ghost C3TR C3k2 C3x HGBlock RepC3".split()
)
DEFAULT_ACTS = (Conv.default_act, ConvTranspose.default_act, UltralyticsRepConv.default_act)  # ultralytics'


def is_backbone(word: str) -> bool:
    """Return whether `word` builds a list backbone: a registered one, RepVGG-A0, or the bare name of a timm model."""
    return _family(word) is not None or (word not in LAYERS and is_timm_model(word))


def _family(word: str) -> tuple[str, str | None] | None:
    """Return the registered word, and the architecture if it stands behind it as in RepVGG-A0; None for other words."""
    name, _, arch = word.partition("-")
    if word in BACKBONES:
        return word, None
    return (name, arch) if name in BACKBONES and arch in BACKBONES[name].archs else None


def check_word(word: str) -> None:
    """Raise ConfigError for a word that builds nothing, saying which one may be meant."""
    if word not in LAYERS and word in absent.WORDS:
        raise ConfigError(f"{word} is no word here: {absent.WORDS[word]}")
    if word not in LAYERS and not is_backbone(word):
        hint = did_you_mean(word, [*LAYERS, *BACKBONES]) or did_you_mean(word, timm_models())
        raise ConfigError(
            f"unknown module '{word}'{hint}: neither a word of RepYOLO nor a timm model; a module of your own is "
            "registered in a file that --plugins names (docs/extending.md)"
        )


def build_layer(spec: ModelSpec, row: Row, inputs: tuple[Feature, ...]) -> Layer:
    """Build a row that is not a list backbone.

    Raises:
        ConfigError: arguments that are not the word's.
    """
    if row.module in STANDS_ONCE and row.number > 1:
        raise ConfigError(f"{row.module} stands once, not {row.number} times in a row")
    _check_inputs(row, inputs)
    function = LAYERS[row.module]
    arguments = bind(row.module, function, row.args)
    number = spec.depth(row.number)
    check_repeats(row.module, number, "" if number == row.number else f", {row.number} times depth_multiple")
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
    if spec.task != "classify":  # whose BatchNorms ultralytics leaves as torch makes them
        initialize_weights(layer.module)
    return layer


def build_backbone(row: Row, source: Feature, out_strides: Sequence[int]) -> Layer:
    """Build a list backbone row that reads `source`, with the maps at `out_strides`, which count from there.

    Its arguments are an architecture and a trailing mapping of options. The published forks wrote `[False]` or `[True]`
    for "the default architecture, pretrained or not", and a file of weights behind the architecture, which still mean
    that; a bare timm name is its own architecture, and so is that in RepVGG-A0.

    Raises:
        ConfigError: the arguments are anything else, or ask for a download that was not allowed.
    """
    if row.number > 1:
        raise ConfigError(f"{row.module} stands once, not {row.number} times in a row")
    _check_inputs(row, (source,))
    name, arch, options = _backbone_arguments(row)
    if options.get("pretrained") or str(options.get("weights", "")).startswith(tuple(SOURCES)):
        check_download(row.module)
    module = create_backbone(name, arch, in_channels=source.channels, out_strides=out_strides, **options)
    strides = (stride * source.stride for stride in module.strides)
    return Layer(module, tuple(map(Feature, module.channels, strides)))


def _backbone_arguments(row: Row) -> tuple[str, str | None, dict[str, Any]]:
    """Return the registered word, the architecture, if any, and the options that a list backbone row means."""
    args = list(row.args)
    options = dict(args.pop()) if args and isinstance(args[-1], dict) else {}
    legacy = args.pop(0) if args and isinstance(args[0], bool) else False
    reserved = {"name", "in_channels", "out_strides"} & options.keys()
    if reserved:
        raise ConfigError(f"{row.module}: {reserved.pop()} follows from the rest of the YAML and is not an option")
    if args and is_weights(args[-1]):  # as the published forks write it
        if "weights" in options:
            raise ConfigError(f"{row.module} is given weights twice, {args[-1]} and {options['weights']}")
        options["weights"] = args.pop()
    name, own = _family(row.module) or ("timm", row.module)
    archs = args if own is None else [own, *args]
    arch = _architecture(row.module, [*archs, options.pop("arch")] if "arch" in options else archs)
    if legacy and name == "timm":
        options.setdefault("pretrained", True)
    elif legacy:
        raise ConfigError(f"{row.module} downloads no weights, name a file: [{{weights: FILE}}]")
    return name, arch, options


def _architecture(word: str, archs: Sequence[Any]) -> str | None:
    """Return the one architecture that a row gives, None if it gives none; ConfigError for anything else."""
    if len(archs) > 1 or not all(isinstance(arch, str) for arch in archs):
        raise ConfigError(f"{word} takes an architecture and a mapping of options, such as [s12, {{...}}]")
    return archs[0] if archs else None


def _check_inputs(row: Row, inputs: Sequence[Feature]) -> None:
    """Raise ConfigError unless the row may read maps of these margins, and so many from one slot."""
    if row.module not in READS_SEVERAL and any(feature.maps for feature in inputs):
        words = " and ".join(sorted(READS_SEVERAL))
        raise ConfigError(f"{row.module} reads a row that gives several maps, which only {words} may read")
    if row.module not in READS_MARGIN and any(any(feature.margin) for feature in inputs):
        words = ", ".join(sorted(READS_MARGIN))
        raise ConfigError(f"{row.module} reads a map that nn.ZeroPad2d made larger, which only {words} may read")


def _set_default_activation(module: nn.Module, act: nn.Module) -> None:
    """Give `act` to every convolution that has ultralytics' default activation, leaving that process-wide one alone."""
    for part in module.modules():
        if getattr(part, "act", None) in DEFAULT_ACTS:
            part.act = act
