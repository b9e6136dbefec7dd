"""Where a model has feature maps that can be taught, and what is read off there while it runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from models import Backbone, DetectionModel

FINEST = 8  # stride of a backbone's maps; finer ones know little and take much


class Tap(NamedTuple):
    """A module, and what is kept of its inputs or of its output when it runs, by name."""

    module: nn.Module
    of_inputs: bool
    keep: Callable[[Any], Mapping[Hashable, Any]]


class Place(NamedTuple):
    """Where a model has maps: their channels by stride, and the taps that give them by their strides."""

    channels: dict[float, int]
    taps: tuple[Tap, ...]
    last: int  # row that they are known after


def neck(model: DetectionModel) -> Place:
    """Return what the head of a detector reads."""
    strides = [float(stride) for stride in model.stride]
    sources = [model.features[slot] for slot in model.nodes[-1].sources]
    channels = {stride: feature.channels for stride, feature in zip(strides, sources, strict=True)}
    tap = Tap(model.model[-1], True, lambda inputs: dict(zip(strides, inputs[0], strict=True)))
    return Place(channels, (tap,), len(model.nodes) - 1)


def backbone(model: DetectionModel, published: bool = False) -> Place:
    """Return the maps of a model's last list backbone, or else of its rows under `backbone`, the last of each stride.

    Args:
        model: whose maps they are.
        published: take those that the published network itself gives, without what is added to it here.
    """
    rows = [(i, module, model.nodes[i]) for i, module in enumerate(model.model)]
    if found := [row for row in rows if isinstance(row[1], Backbone)]:
        i, node = found[-1][0], found[-1][2]
        module: Any = found[-1][1]
        start = model.features[node.sources[0]].stride
        own = module.own_maps if published else None
        part, has = own or (module, dict(zip(module.strides, module.channels, strict=True)))
        channels = {start * stride: count for stride, count in has.items()}

        def keep(value: Any) -> dict[Hashable, Tensor]:
            maps = value[0] if own else value
            return {stride: each for stride, each in zip(channels, maps, strict=True) if stride >= FINEST}

        taps: tuple[Tap, ...] = (Tap(part, own is not None, keep),)
        return Place(_coarse(channels), taps, i)
    last: dict[float, tuple[int, nn.Module, int]] = {}
    for i, module, node in rows[: model.spec.backbone_rows]:
        feature = model.features[node.slots[0]]
        if not feature.maps and not any(feature.margin) and i < len(model.spec.rows) - 1:
            last[feature.stride] = i, module, feature.channels
    channels = _coarse({stride: count for stride, (_, _, count) in last.items()})
    taps = tuple(Tap(last[stride][1], False, _keep_as(stride)) for stride in channels)
    return Place(channels, taps, max((last[stride][0] for stride in channels), default=0))


def _coarse(channels: dict[float, int]) -> dict[float, int]:
    return {stride: count for stride, count in channels.items() if stride >= FINEST}


def _keep_as(name: Hashable) -> Callable[[Any], dict[Hashable, Any]]:
    return lambda value: {name: value}


def output(model: DetectionModel) -> Tap:
    """Return what keeps the raw output of a model's head, which losses read, as "output"."""
    return Tap(model.model[-1], False, lambda value: {"output": value[-1] if isinstance(value, tuple) else value})


class Watch:
    """Keeps what taps give between `start` and `stop`; beside that, nothing hangs on the model."""

    def __init__(self, taps: Iterable[Tap]) -> None:
        self.taps = tuple(taps)
        self.found: dict[Hashable, Any] = {}
        self.handles: list[Any] = []

    def start(self) -> None:
        """Keep what the modules are given or give from now on."""
        self.stop()
        for tap in self.taps:
            if tap.of_inputs:
                hook = tap.module.register_forward_pre_hook(lambda _, inputs, tap=tap: self._note(tap, inputs))
            else:
                hook = tap.module.register_forward_hook(lambda _, __, output, tap=tap: self._note(tap, output))
            self.handles.append(hook)

    def _note(self, tap: Tap, value: Any) -> None:
        self.found.update(tap.keep(value))

    def stop(self) -> dict[Hashable, Any]:
        """Return what was kept since `start`, and keep nothing more."""
        for handle in self.handles:
            handle.remove()
        found, self.found, self.handles = self.found, {}, []
        return found
