"""`parse_model`: a spec becomes modules and wiring.

Slots are the numbers by which rows read each other. Every row takes the next free number. A list backbone takes five,
one for each of P1 to P5: in row 0 these are 0 to 4, and the rows behind it are 5, 6, ...; behind a stem in row 0 they
are 1 to 5; a second backbone right behind that takes 6 to 10. (So a row i behind one backbone is slot i + 4, as in the
published forks.) What `from` may say:

    -1, -2     the slot before, the one before that; before slot 0 is the picture
    4          slot 4
    picture    the input picture, from any row
    P4         the map of stride 16 of the nearest list backbone before the row
    backbone1.P4   that of the first list backbone of the file; backbone2.P4 of the second, ...

Names go by the stride in the picture, numbers by a backbone's own: of the five, the k-th is the map that is 2^k times
smaller than what the backbone reads, there or not. For a backbone that reads the picture these are the same, so that
slot 3 is P4; behind a stem of stride 2 the fourth slot is P5. Levels outside of the five, such as P6, have a name only:
their slot is the `BackboneLevel` itself instead of a number.

The wiring is data beside the modules (`Node`), so it survives whatever happens to them: fusing, copying, loading.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from models.backbones.base import Backbone, MissingLevel, select_strides
from models.errors import ConfigError, did_you_mean
from models.layers import READS_LIST, Feature, Layer, build_backbone, build_layer, check_word, is_backbone
from models.plugins import check_plugins
from models.spec import FORM, HEADS, WEIGHTS_AT, ModelSpec, Row

PICTURE = -1  # the slot of the input
LEVELS = 5  # slots of a list backbone: P1 to P5
MAX_PARAMETERS = 500_000_000  # of a model: 2 GB in float32, and four times that while it trains
MAX_MODULES = 20_000  # that one row is made of
MAX_CHANNELS = 1_000_000  # of a map
MIN_STRIDE = 1 / 16  # of a map; a finer one would take more memory than any picture
MAX_SIDE = 1024  # pixels that every stride of a model divides; the smallest picture that it takes is no larger


Construct = Callable[[Callable[[Row], Layer], Row], Layer]  # calls what builds a row, and returns its layer


class BackboneLevel(NamedTuple):
    """A map of a list backbone by its name: the backbone's row, and log2 of the stride in the picture."""

    row: int
    power: int

    def __str__(self) -> str:
        return f"P{self.power}"


Slot = int | BackboneLevel  # a number, or a level that has none


class Wire(NamedTuple):
    """What a row reads, the first slot that it takes, and whether it takes one for each of P1 to P5."""

    sources: tuple[int | BackboneLevel, ...]  # numbers, and levels by their names
    slot: int
    has_levels: bool

    @property
    def numbers(self) -> range:
        """The slots that the row takes."""
        return range(self.slot, self.slot + (LEVELS if self.has_levels else 1))


@dataclass(frozen=True)
class Node:
    """How a row is wired: the slots that it reads and writes, and those that nobody reads after it."""

    row: Row
    sources: tuple[Slot, ...]
    slots: tuple[Slot, ...]  # one, or one per map of a list backbone
    numbers: range  # that it takes, of which a list backbone writes some
    last_use: tuple[Slot, ...]
    reads_list: bool
    writes_list: bool

    @property
    def slot(self) -> int:
        """The number by which people call the row: its only one, or that of its deepest level that has one."""
        return max((slot for slot in self.slots if isinstance(slot, int)), default=self.numbers[-1])


@dataclass(frozen=True)
class Graph:
    """A parsed model: a module and a node per row, and the feature that each slot holds."""

    modules: tuple[nn.Module, ...]
    nodes: tuple[Node, ...]
    features: dict[Slot, Feature]


def parse_model(spec: ModelSpec) -> Graph:
    """Build every row of `spec` and wire them. Runs no forward pass on data.

    All rows are built without data first, so that a model which is too large is refused before it takes memory.

    Raises:
        ConfigError: file, row number and text, what was expected and what came.
    """
    check_plugins(spec.plugins or (), spec.name)
    wires = resolve(spec)
    with torch.random.fork_rng(devices=[]):
        _build(spec, wires, _Scales())
    return _build(spec, wires, lambda build, row: build(row))


def with_forms(spec: ModelSpec, graph: Graph) -> ModelSpec:
    """Return a copy that says in which form list backbones were built, as the weights that a row names may decide."""
    for node, module in zip(graph.nodes, graph.modules, strict=True):
        if isinstance(module, Backbone) and module.form != "train":
            spec = spec.with_option(node.row.index, FORM, module.form)
    return spec


# What `from` means ----------------------------------------------------------------------------------------------------
def resolve(spec: ModelSpec) -> list[Wire]:
    """Return the wire of each row.

    Raises:
        ConfigError: a row has an unknown word, or reads itself, a later row, a slot or a level that does not exist; the
            last row is no head.
    """
    wires: list[Wire] = []
    backbones: list[int] = []
    slot = 0
    for row in spec.rows:
        try:
            check_word(row.module)
            sources = tuple(_source(source, slot, backbones) for source in row.sources)
        except ConfigError as e:
            raise spec.error(row, e) from e
        if row.module in HEADS and row is not spec.rows[-1]:
            raise spec.error(row, "a head must be the last row")
        wires.append(Wire(sources, slot, is_backbone(row.module)))
        backbones += [row.index] * wires[-1].has_levels
        slot = wires[-1].numbers.stop
    last = spec.rows[-1]
    if last.module not in HEADS:
        raise spec.error(last, "the last row must be a head, for instance [[17, 20, 23], 1, Detect, [nc]]")
    return wires


def _source(source: int | str, slot: int, backbones: Sequence[int]) -> int | BackboneLevel:
    """Return what one entry of `from` means in the row that takes `slot`, behind backbones in these rows."""
    if isinstance(source, str):
        return PICTURE if source == "picture" else _level(source, backbones)
    absolute = source if source >= 0 else slot + source
    if absolute == PICTURE and source < 0:
        return PICTURE
    if not 0 <= absolute < slot:
        before = f"only slots 0 to {slot - 1} come before" if slot else "nothing but the picture, -1, comes before"
        raise ConfigError(f"'from' names slot {source}, but {before}")
    return absolute


def _level(name: str, backbones: Sequence[int]) -> BackboneLevel:
    """Return the level that `name` means behind list backbones in these rows."""
    match = re.fullmatch(r"(?:backbone([1-9]\d?)\.)?P(\d)", name, flags=re.ASCII)
    if match is None:
        hint = did_you_mean(name, ["picture", *(f"P{power}" for power in range(1, 10))])
        raise ConfigError(
            f"'from' names '{name}'{hint}, expected a slot number, picture, or a level such as P4 or backbone1.P4"
        )
    number, power = match.groups()
    if not backbones:
        raise ConfigError(f"'from' names the level {name}, but there are no levels without a list backbone before it")
    if int(number or 1) > len(backbones):
        raise ConfigError(f"'from' names backbone{number}, but {len(backbones)} list backbone(s) come before")
    return BackboneLevel(backbones[int(number or 0) - 1], int(power))


# Building -------------------------------------------------------------------------------------------------------------
def _build(spec: ModelSpec, wires: Sequence[Wire], construct: Construct) -> Graph:
    """Return the graph of a spec, whose layers come from `construct`."""
    features: dict[Slot, Feature] = {PICTURE: Feature(spec.ch, 1)}
    shifts: dict[int, int] = {}  # row of a list backbone to log2 of the stride of what it reads
    modules: list[nn.Module] = []
    nodes: list[Node] = []
    for row, wire in zip(spec.rows, wires, strict=True):
        sources = tuple(_slot(source, wires, shifts) for source in wire.sources)
        inputs = tuple(features[slot] for slot in sources)
        readers: dict[int, Row] = {}
        try:
            if wire.has_levels:
                shifts[row.index] = _shift(row.module, inputs)
                readers = _readers(spec, wires, row.index, shifts[row.index])
                layer = construct(partial(_build_levels, source=inputs[0], powers=sorted(readers)), row)
                powers = (_power(row.module, feature.stride) for feature in layer.outputs)
                slots = tuple(_slot(BackboneLevel(row.index, power), wires, shifts) for power in powers)
            else:
                layer = construct(partial(build_layer, spec, inputs=inputs), row)
                slots = (wire.slot,)
            features.update(zip(slots, layer.outputs, strict=False))  # a head puts out no feature
            _check_features(row.module, layer.outputs, features.values())
        except MissingLevel as e:
            hint = f"; levels of other backbones are {_qualified(wires)}" if len(_backbones(wires)) > 1 else ""
            scaled = e.scaled(2 ** shifts[row.index])
            raise spec.error(readers[round(math.log2(e.stride))], f"{scaled}{hint}") from e
        except (ValueError, RuntimeError) as e:  # ours, or torch's own complaint, for instance about groups
            raise spec.error(row, e) from e
        modules.append(layer.module)
        nodes.append(Node(row, sources, slots, wire.numbers, (), row.module in READS_LIST, wire.has_levels))
    _check_sizes(spec, modules, nodes, features)
    return Graph(tuple(modules), _let_go(nodes), features)


def _slot(source: int | BackboneLevel, wires: Sequence[Wire], shifts: Mapping[int, int]) -> Slot:
    """Return the slot of what a row reads, all rows before it being built: a level's number where it has one."""
    if isinstance(source, int):
        return source
    own_power = source.power - shifts[source.row]
    return wires[source.row].slot + own_power - 1 if 1 <= own_power <= LEVELS else source


def _backbones(wires: Sequence[Wire]) -> list[int]:
    return [index for index, wire in enumerate(wires) if wire.has_levels]


def _qualified(wires: Sequence[Wire]) -> str:
    """Return how the levels of all list backbones are called."""
    return ", ".join(f"backbone{i + 1}.P4 (row {row})" for i, row in enumerate(_backbones(wires)))


def _readers(spec: ModelSpec, wires: Sequence[Wire], backbone: int, shift: int) -> dict[int, Row]:
    """Return which maps of the list backbone in a row are read: log2 of its own stride, and the first row to do so."""
    readers: dict[int, Row] = {}
    numbers = wires[backbone].numbers
    for row, wire in zip(spec.rows, wires, strict=True):
        for source in wire.sources:
            if isinstance(source, BackboneLevel):
                power = source.power - shift if source.row == backbone else None
            else:
                power = source - numbers.start + 1 if source in numbers else None
            if power is not None:
                readers.setdefault(power, row)
    return readers


def _build_levels(row: Row, source: Feature, powers: Sequence[int]) -> Layer:
    """Build a list backbone with the maps that are 2^power times smaller than its input, all of its maps if none."""
    wanted = [2**power for power in powers]
    layer = build_backbone(row, source, wanted)
    select_strides(wanted, [round(f.stride / source.stride) for f in layer.outputs], row.module)
    return layer


def _shift(word: str, inputs: Sequence[Feature]) -> int:
    """Return log2 of the stride of the one map that a list backbone reads."""
    if len(inputs) != 1:
        raise ConfigError(f"{word} reads one feature map, but 'from' names {len(inputs)}")
    return _power(f"{word} reads", inputs[0].stride)


def _power(what: str, stride: float) -> int:
    """Return log2 of a stride; ConfigError if that is no whole number, so that its level has no name."""
    power = round(math.log2(stride))
    if 2.0**power != stride:
        raise ConfigError(f"{what} a map of stride {stride:g}, but levels have strides 2, 4, 8, ...")
    return power


def _let_go(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Return the nodes with the last use of each slot: in the row after which nobody reads it."""
    last_row = {slot: i for i, node in enumerate(nodes) for slot in node.slots}
    last_row.update({slot: i for i, node in enumerate(nodes) for slot in node.sources})
    return tuple(
        dataclasses.replace(node, last_use=tuple(slot for slot, last in last_row.items() if last == i))
        for i, node in enumerate(nodes)
    )


# Bounds ---------------------------------------------------------------------------------------------------------------
class _Scales:
    """Builds layers without data, and refuses what would not fit in memory."""

    def __init__(self) -> None:
        self.parameters = 0  # so far

    def __call__(self, build: Callable[[Row], Layer], row: Row) -> Layer:
        """Return the layer of a row, on the meta device unless its code asks for values.

        Raises:
            ConfigError: the parameters of all layers are too many, or the modules of this one.
        """
        row = row.without_pretrained() if is_backbone(row.module) or row.module in WEIGHTS_AT else row
        with _few_modules():
            try:
                with torch.device("meta"):
                    layer = build(row)
            except RuntimeError as e:
                if "meta" not in str(e):
                    raise
                layer = build(row)
        tensors = itertools.chain(layer.module.parameters(), layer.module.buffers())
        self.parameters += sum(tensor.numel() for tensor in tensors)
        if self.parameters > MAX_PARAMETERS:
            raise ConfigError(
                f"up to here the model has {self.parameters:,} parameters, expected at most {MAX_PARAMETERS:,}, "
                f"which take {MAX_PARAMETERS * 4 / 1e9:g} GB"
            )
        return layer


@contextmanager
def _few_modules() -> Iterator[None]:
    """Raise ConfigError when more than MAX_MODULES modules are put into others within."""
    count = itertools.count(1)

    def check(*_: object) -> None:
        if next(count) > MAX_MODULES:
            raise ConfigError(f"it is made of more than {MAX_MODULES:,} modules")

    hook = register_module_module_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _check_features(word: str, outputs: Iterable[Feature], all_so_far: Iterable[Feature]) -> None:
    """Raise ConfigError for a map that no picture of a sane size could have."""
    for output in outputs:
        if output.channels > MAX_CHANNELS:
            raise ConfigError(f"{word} gives {output.channels:,} channels, expected at most {MAX_CHANNELS:,}")
        if output.stride < MIN_STRIDE:
            raise ConfigError(f"{word} gives a map {1 / output.stride:g} times as large as the picture")
    side = common_side(all_so_far)
    if side > MAX_SIDE:
        raise ConfigError(
            f"with the map of {word}, only pictures with sides that are multiples of {side} pixels fit all strides so "
            f"far, expected at most {MAX_SIDE}"
        )


def common_side(features: Iterable[Feature]) -> int:
    """Return the smallest side of a picture, in pixels, that every stride divides."""
    strides = {feature.stride for feature in features}
    return math.lcm(*(Fraction(stride).limit_denominator(MAX_SIDE).numerator for stride in strides))


def _check_sizes(
    spec: ModelSpec, modules: Sequence[nn.Module], nodes: Sequence[Node], features: Mapping[Slot, Feature]
) -> None:
    """Raise ConfigError for two list backbones of which each takes pictures of another size alone."""
    sized = []
    for module, node in zip(modules, nodes, strict=True):
        if isinstance(module, Backbone) and module.size:
            height, width = (round(side * features[node.sources[0]].stride) for side in module.size)
            sized.append((node.row, f"{height}x{width}"))
    for row, size in sized[1:]:
        first, first_size = sized[0]
        if size != first_size:
            raise spec.error(
                row,
                f"{row.module} takes pictures of {size} alone, but {first.module} in row {first.index} of "
                f"{first_size}: give one of them another img_size",
            )
