"""torchvision's classifiers as rows, in ultralytics' form: cut behind the last map, whole or part by part."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules import TorchVision

from models.downloads import check_download
from models.errors import ConfigError, cause, did_you_mean
from models.layers.site import Feature
from models.meta import shapes_alone

SIDE = 256  # pixels of the picture by which strides are found, without data
NO_MAP = Feature(0, 1)  # what stands for an output that is no map, such as a vector


def build_torchvision(
    name: str, weights: str | None, unwrap: bool, truncate: int, split: bool, stride: float
) -> tuple[nn.Module, list[Feature]]:
    """Return one of torchvision's networks and what it gives: with `split` its input and the output of every part.

    Args:
        name: of the model, such as resnet18.
        weights: the name of pretrained ones, such as DEFAULT; None: freshly initialised.
        unwrap: take its parts, without the last `truncate`, rather than the whole without its head.
        truncate: how many parts are left out.
        split: give what each part gives.
        stride: of what it reads.

    Raises:
        ConfigError: no such model or weights, a download that was not allowed, or its last output is no map.
    """
    from torchvision import models  # noqa: PLC0415 (slow, and few rows ask for it)

    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(f"torchvision has no model {name!r}{did_you_mean(name, known)}")
    options: dict[str, Any] = {"unwrap": unwrap, "truncate": truncate, "split": split}
    if weights is not None:
        names = [*models.get_model_weights(name).__members__, "DEFAULT"]
        if weights not in names:
            raise ConfigError(f"torchvision has no weights {weights!r} of {name}, expected {' or '.join(names)}")
        check_download(f"torchvision's {name}")
    try:
        with shapes_alone():
            ghost = TorchVision(name, None, **options).eval()
            outputs = ghost(torch.empty(1, 3, SIDE, SIDE))
        network = TorchVision(name, weights, **options)
    except Exception as e:  # whatever a network raises that was cut where it should not be, or a failed download
        raise ConfigError(f"torchvision's {name} cannot be built with {options}: {cause(e)}") from e
    maps = [_feature(output, stride) for output in (outputs if split else [outputs])]
    if maps[-1] is NO_MAP:
        raise ConfigError(f"torchvision's {name} gives no map with truncate={truncate}: leave more or fewer parts out")
    return network, maps


def _feature(output: Any, stride: float) -> Feature:
    """Return what is known of an output for a picture of SIDE, NO_MAP for one that is no map on a grid of cells."""
    if not isinstance(output, torch.Tensor) or output.ndim != 4 or output.shape[2] != output.shape[3]:
        return NO_MAP
    _, channels, height, _ = output.shape
    return Feature(channels, stride * SIDE / height)
