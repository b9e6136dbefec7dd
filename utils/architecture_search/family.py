"""The family of networks that is searched: what may differ between two of them, and the model YAML of each.

Its members deploy as 3x3 and 1x1 convolutions, max pooling, nearest-neighbour enlargement, and adds or concats: a stem,
stages that each begin with a convolution of stride 2, spatial pyramid pooling, a neck from coarse to fine and back
again (PANet, https://arxiv.org/abs/1803.01534), and a head of thin branches. Widths do not fall from fine to coarse,
as in the design spaces of https://arxiv.org/abs/2003.13678. Training-time branches are QARepVGG's, whose fused weights
INT8 can hold.

All that is known of a gene, its type and its bounds, stands in the field of `Shape` that has its name.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.errors import UserError, did_you_mean
from utils.evolution.mutation import SIGMA, Bounds, moved

STYLE = {"style": "qarep"}  # of the branches that fuse
BLOCKS: dict[str, tuple[str, list[Any]]] = {  # by the gene: the word that a stage repeats, and its other arguments
    "bottleneck": ("Bottleneck", []),
    "csp": ("C3", []),
    "plain": ("RepConv", [{"identity": True, **STYLE}]),
}
HEADS: dict[str, dict[str, Any] | None] = {  # by the gene: options of Detect without anchors; None: with anchors
    "bare": {"convs": 0},
    "anchors": None,
    "plain": {"legacy": True, "convs": 1},
    "depthwise": {},
    "deep": {"legacy": True},
}
ANCHORS = 3  # a level
MOST_NECK = 512  # channels at any level of the neck
CHANGED = 0.15  # share of the genes that a mutation changes, of which there is at least one


# Genes ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Whole:
    """A gene that is a whole number.

    Attributes:
        low: the smallest.
        high: the largest.
        step: between two that follow each other.
    """

    low: int
    high: int
    step: int = 1

    def rounded(self, value: float) -> int:
        """Return the nearest value that there is."""
        nearest = self.low + self.step * round((value - self.low) / self.step)
        return min(max(nearest, self.low), self.high)

    def drawn(self, rng: np.random.Generator) -> int:
        """Return any value; of those above 0 small ones more often, so that each doubling is as likely as the next."""
        low, high = self.low - self.step / 2, self.high + self.step / 2
        return self.rounded(math.exp(rng.uniform(math.log(low), math.log(high))) if low > 0 else rng.uniform(low, high))

    def mutated(self, value: int, rng: np.random.Generator) -> int:
        """Return another value nearby; the same where there is no other."""
        shift = float(rng.normal(0, SIGMA))
        step = math.copysign(self.step, shift)
        nearby = moved(value, Bounds(self.low, self.high), shift), value + step, value - step
        return next((other for other in map(self.rounded, nearby) if other != value), value)

    def holds(self, value: object) -> bool:
        """Return whether a value is one of those that it may have."""
        return type(value) is int and self.rounded(value) == value

    def allowing(self, text: str) -> Whole:
        """Return the part of its range that text such as `32-128` or `2` names; ValueError where there is none."""
        low, _, high = text.partition("-")
        part = Whole(int(low), int(high or low), self.step)
        if part.low > part.high or not (self.holds(part.low) and self.holds(part.high)):
            raise ValueError(text)
        return part

    def __str__(self) -> str:
        return f"{self.low}-{self.high}" + (f" in steps of {self.step}" if self.step > 1 else "")


@dataclass(frozen=True)
class OneOf:
    """A gene that is one of several values.

    Attributes:
        values: what it may be, the cheapest first.
    """

    values: tuple[Any, ...]

    @property
    def low(self) -> Any:
        """The cheapest."""
        return self.values[0]

    def drawn(self, rng: np.random.Generator) -> Any:
        """Return any value."""
        return self.values[rng.integers(len(self.values))]

    def mutated(self, value: Any, rng: np.random.Generator) -> Any:
        """Return another value; the same where there is no other."""
        others = [other for other in self.values if other != value] or [value]
        return others[rng.integers(len(others))]

    def rounded(self, value: Any) -> Any:
        """Return the value itself, between which and others there is nothing."""
        return value

    def holds(self, value: object) -> bool:
        """Return whether a value is one of those that it may have."""
        return any(type(value) is type(one) and value == one for one in self.values)

    def allowing(self, text: str) -> OneOf:
        """Return the values among its own that text such as `plain,csp` names; ValueError for others."""
        by_name = {str(value): value for value in self.values}
        words = text.split(",")
        if not by_name.keys() >= set(words):
            raise ValueError(text)
        return OneOf(tuple(by_name[word] for word in dict.fromkeys(words)))

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


Gene = Whole | OneOf


def one_of(*values: Any) -> Any:
    return field(metadata={"gene": OneOf(values)})


def whole(low: int, high: int, step: int = 1) -> Any:
    return field(metadata={"gene": Whole(low, high, step)})


@dataclass(frozen=True)
class Shape:
    """One network of the family.

    Attributes:
        stem: stride of the first convolution: 2, before another one of stride 2, or 4, of 4x4 pixels.
        act: the activation.
        block: what a stage repeats, a key of BLOCKS.
        finest: the finest level that the head reads, 2 for stride 4, 3 for stride 8.
        coarsest: the coarsest level, 4 for stride 16, 5 for stride 32; the network has no further one.
        width2: channels of the stage of stride 4; those of stride 8, 16, 32 follow.
        depth2: its blocks behind the convolution that reaches it; likewise.
        path: of the neck: `fpn` goes from coarse to fine, `pan` also back.
        join: of two maps in the neck: `concat` with a 1x1 convolution behind, or `add`.
        neck: channels of the neck at its finest level.
        growth: how many times these each coarser level has.
        repeats: blocks behind each join.
        head: a key of HEADS.
        bins: of the distribution over each side of a box, 1 for the side itself; a head with anchors has none.
    """

    stem: int = one_of(4, 2)
    act: str = one_of("relu", "silu")
    block: str = one_of(*BLOCKS)
    finest: int = one_of(3, 2)
    coarsest: int = one_of(4, 5)
    width2: int = whole(16, 128, 16)
    width3: int = whole(16, 256, 16)
    width4: int = whole(32, 384, 16)
    width5: int = whole(32, 512, 16)
    depth2: int = whole(0, 4)
    depth3: int = whole(0, 8)
    depth4: int = whole(0, 12)
    depth5: int = whole(0, 6)
    path: str = one_of("fpn", "pan")
    join: str = one_of("add", "concat")
    neck: int = whole(16, 192, 16)
    growth: int = one_of(1, 2)
    repeats: int = whole(1, 3)
    head: str = one_of(*HEADS)
    bins: int = one_of(1, 16)

    @property
    def levels(self) -> range:
        """The levels that the head reads."""
        return range(self.finest, self.coarsest + 1)

    def neck_width(self, level: int) -> int:
        """Return the channels of the neck at a level."""
        return min(self.neck * self.growth ** (level - self.finest), MOST_NECK)

    def __str__(self) -> str:
        """Return the genes that the network shows: two shapes of which these are the same are one network."""
        hidden: tuple[str, ...] = () if self.coarsest == 5 else ("width5", "depth5")
        hidden += ("bins",) if HEADS[self.head] is None else ()
        return " ".join(f"{name}={value}" for name, value in vars(self).items() if name not in hidden)


Genes = Mapping[str, Gene]
GENES: Genes = {one.name: one.metadata["gene"] for one in dataclasses.fields(Shape)}
STAGE_WIDTHS = ("width2", "width3", "width4", "width5")
WIDTHS = (*STAGE_WIDTHS, "neck")


def restricted(words: Sequence[str], genes: Genes = GENES) -> Genes:
    """Return genes with narrower bounds.

    Args:
        words: such as `act=relu`, `block=plain,csp` or `width2=32-64`.
        genes: whose bounds are narrowed.

    Raises:
        UserError: there is no such gene, or it cannot have such a value.
    """
    narrowed = dict(genes)
    for word in words:
        name, _, text = word.partition("=")
        if name not in genes:
            raise UserError(f"--genes {word}: there is no gene '{name}'{did_you_mean(name, genes)}: {', '.join(genes)}")
        try:
            narrowed[name] = genes[name].allowing(text)
        except ValueError as error:
            raise UserError(f"--genes {word}: {name} can be {genes[name]}, not '{text}'") from error
    return narrowed


# Shapes ---------------------------------------------------------------------------------------------------------------
def drawn(genes: Genes, rng: np.random.Generator) -> Shape:
    """Return any network of the family."""
    return ordered({name: gene.drawn(rng) for name, gene in genes.items()}, genes)


def smallest(genes: Genes) -> Shape:
    """Return the network of the family that computes least."""
    return ordered({name: gene.low for name, gene in genes.items()}, genes)


def mutated(shape: Shape, genes: Genes, rng: np.random.Generator) -> Shape:
    """Return a network of which some genes are others, about the share CHANGED of them."""
    values = dict(vars(shape))
    changed = rng.random(len(genes)) < CHANGED
    changed[rng.integers(len(genes))] = True
    for (name, gene), change in zip(genes.items(), changed, strict=True):
        if change:
            values[name] = gene.mutated(values[name], rng)
    return ordered(values, genes)


def scaled(shape: Shape, factor: float, genes: Genes) -> Shape:
    """Return a network whose widths are about `factor` times as large, within their bounds; all else is the same."""
    values = dict(vars(shape))
    return ordered({**values, **{name: values[name] * factor for name in WIDTHS}}, genes)


def ordered(values: Mapping[str, Any], genes: Genes) -> Shape:
    """Return the network with these genes, widths rounded to what there is, none below that of the finer stage."""
    found: dict[str, Any] = dict(values)
    for name in WIDTHS:
        found[name] = genes[name].rounded(found[name])
    for finer, coarser in itertools.pairwise(STAGE_WIDTHS):
        found[coarser] = genes[coarser].rounded(max(found[finer], found[coarser]))
    return Shape(**found)


def read_shape(values: Any) -> Shape:
    """Return the network whose genes a file holds; ValueError for anything that is no network of the family."""
    if not isinstance(values, dict) or values.keys() != GENES.keys():
        raise ValueError("other genes")
    if wrong := [name for name, gene in GENES.items() if not gene.holds(values[name])]:
        raise ValueError(f"{wrong[0]} of another network")
    return Shape(**values)


# Model YAMLs ----------------------------------------------------------------------------------------------------------
class Rows(list[list[Any]]):
    """The rows of a model YAML, which are added one after the other."""

    def put(self, source: int | list[int], word: str, *args: Any, number: int = 1) -> int:
        """Add a row, repeated `number` times, and return its slot; `source` where that is 0."""
        if number == 0 and isinstance(source, int):
            return source
        self.append([-1 if source == len(self) - 1 else source, number, word, list(args)])
        return len(self) - 1


def model_yaml(shape: Shape, nc: int, channels: int = 3) -> dict[str, Any]:
    """Return the content of the model YAML of a network.

    Args:
        shape: the network.
        nc: number of classes.
        channels: of the pictures.
    """
    rows = Rows()
    levels = add_backbone(rows, shape)
    backbone = len(rows)
    outputs = add_neck(rows, shape, levels)
    options = HEADS[shape.head]
    rows.put(outputs, "Detect", "nc", "anchors" if options is None else {"reg_max": shape.bins, **options})
    found: dict[str, Any] = {"nc": nc}
    found |= {"ch": channels} if channels != 3 else {}
    found |= {"activation": "nn.ReLU()"} if shape.act == "relu" else {}
    found |= {"anchors": ANCHORS} if options is None else {}
    return {**found, "backbone": list(rows[:backbone]), "head": list(rows[backbone:])}


def add_backbone(rows: Rows, shape: Shape) -> dict[int, int]:
    """Add stem, stages and pooling; return level → slot, the coarsest with the channels of the neck."""
    word, options = BLOCKS[shape.block]
    levels: dict[int, int] = {}
    last = -1
    for level in range(2, shape.coarsest + 1):
        width, depth = getattr(shape, f"width{level}"), getattr(shape, f"depth{level}")
        if level > 2:
            last = rows.put(last, "RepConv", width, 3, 2, STYLE)
        elif shape.stem == 4:
            last = rows.put(last, "Conv", width, 4, 4, 0)
        else:
            last = rows.put(rows.put(last, "Conv", max(width // 2, 16), 3, 2), "RepConv", width, 3, 2, STYLE)
        last = levels[level] = rows.put(last, word, width, *options, number=depth)
    levels[shape.coarsest] = rows.put(last, "SPPF", shape.neck_width(shape.coarsest), 5)
    return levels


def add_neck(rows: Rows, shape: Shape, levels: Mapping[int, int]) -> list[int]:
    """Add the neck to a backbone whose levels are in these slots; return the slots that the head reads."""
    down = dict(levels)
    for level in reversed(shape.levels[:-1]):
        width = shape.neck_width(level)
        narrowed = down[level + 1]
        if shape.neck_width(level + 1) != width:
            narrowed = rows.put(narrowed, "Conv", width)
        coarser = rows.put(narrowed, "nn.Upsample", None, 2, "nearest")
        finer = rows.put(levels[level], "Conv", width) if shape.join == "add" else levels[level]
        down[level] = add_join(rows, shape, [coarser, finer], width)
    if shape.path == "fpn":
        return [down[level] for level in shape.levels]
    outputs = [down[shape.finest]]
    for level in shape.levels[1:]:
        width = shape.neck_width(level)
        finer = rows.put(outputs[-1], "RepConv", width, 3, 2, STYLE)
        outputs.append(add_join(rows, shape, [finer, down[level]], width))
    return outputs


def add_join(rows: Rows, shape: Shape, slots: list[int], width: int) -> int:
    """Add what joins two maps of the neck, and the blocks behind it, and return the slot of the last one."""
    word, options = BLOCKS[shape.block]
    if shape.join == "add":
        joined = rows.put(slots, "Shortcut", 1)
    else:
        joined = rows.put(rows.put(slots, "Concat", 1), "Conv", width)
    return rows.put(joined, word, width, *options, number=shape.repeats)
