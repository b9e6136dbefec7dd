"""Where a row stands (`Site`), what its word makes of that (`Layer`), and the registry of words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn
from ultralytics.nn.modules.conv import autopad

from models.errors import ConfigError
from models.registry import Registry
from models.spec import ModelSpec

MAX_REPEATS = 100  # of a row, depth_multiple included, and of what repeats inside of a block


class Feature(NamedTuple):
    """What is known of a feature map before it is computed.

    Its size is the picture's over the stride, plus the margin that a nn.ZeroPad2d has put around it.
    """

    channels: int
    stride: float  # input pixels per cell
    margin: tuple[int, int] = (0, 0)  # further rows and columns
    maps: tuple[Feature, ...] = ()  # of a row that gives several, whose channels above are all of theirs together


def several(maps: Sequence[Feature]) -> Feature:
    """Return the feature of a row that gives several maps in one slot, which Index and CBFuse read."""
    return Feature(sum(m.channels for m in maps), max(m.stride for m in maps), maps=tuple(maps))


class Layer(NamedTuple):
    """A built row: its module, and one feature, or one per level for a list backbone."""

    module: nn.Module
    outputs: tuple[Feature, ...]


@dataclass(frozen=True)
class Site:
    """Where a row stands: its word, what flows in, how often it is repeated, and the scales of the whole YAML."""

    word: str
    inputs: tuple[Feature, ...]
    number: int  # scaled by depth_multiple already
    spec: ModelSpec

    @property
    def input(self) -> Feature:
        """The one feature that flows in.

        Raises:
            ConfigError: several flow in, and this word takes one.
        """
        if len(self.inputs) != 1:
            raise ConfigError(f"{self.word} reads one feature map, but 'from' names {len(self.inputs)}")
        return self.inputs[0]

    def width(self, channels: int) -> int:
        """Return `channels` scaled as the YAML says."""
        return self.spec.width(channels)

    def layer(self, module: nn.Module, channels: int, down: int = 1, up: int = 1) -> Layer:
        """Return the layer of a module that gives `channels` of maps `down` times smaller or `up` times larger."""
        return Layer(module, (Feature(channels, self.input.stride * down / up),))

    def inside(self, channels: float, multiple: int = 1) -> int:
        """Return `channels` inside of a block as a whole number.

        Raises:
            ConfigError: these are less than one, or not a multiple of what the block splits them into.
        """
        if channels < 1:
            raise ConfigError(f"{self.word} has {channels:g} channels inside, which is less than one")
        if int(channels) % multiple:
            raise ConfigError(f"{self.word} has {int(channels)} channels inside, expected a multiple of {multiple}")
        return int(channels)

    def check_keeps_channels(self, out: int) -> None:
        """Raise ConfigError unless `out` channels are as many as flow in."""
        if self.input.channels != out:
            raise ConfigError(f"{self.word} gives as many channels as it reads, {self.input.channels}, not {out}")

    def check_window(self, k: int, s: int, p: int | None = None, d: int = 1) -> None:
        """Raise ConfigError unless a window of side `k`, moved by `s`, leaves a map of the grid, for every picture.

        A map of the picture's size over its stride, N, and a margin becomes (N + margin + 2 p - d (k - 1) - 1) // s + 1
        cells, and its grid has N / s.
        """
        padding = autopad(k, p, d)
        if any((margin + 2 * padding - d * (k - 1) - 1) // s + 1 for margin in self.input.margin):
            around = f" after a margin of {self.input.margin}" if any(self.input.margin) else ""
            raise ConfigError(
                f"{self.word} with k={k}, s={s}, p={padding}, d={d}{around} gives a map that is not its input's size "
                f"divided by its stride, choose another p"
            )


LAYERS = Registry[Callable[..., Layer]]("module")


def check_repeats(word: str, number: int, scaled: str = "") -> None:
    """Raise ConfigError for a block that is repeated more often than any model has it."""
    if number > MAX_REPEATS:
        raise ConfigError(f"{word} is repeated {number} times{scaled}, expected at most {MAX_REPEATS}")


def listed(strides: Sequence[float]) -> str:
    return ", ".join(f"{stride:g}" for stride in strides)
