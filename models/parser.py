"""`parse_model`: a spec becomes modules and wiring.

Slots are the numbers by which rows read each other. A list backbone in row 0 fills slots 0 to 4 with its levels P1 to
P5 by stride (level Pk has stride 2^k and stands in slot k - 1); every other row takes the next free one. The wiring is
data beside the modules (`Node`), so it survives whatever happens to them: fusing, copying, loading.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from models.backbones.base import MissingLevel
from models.errors import ConfigError
from models.heads import HEADS
from models.layers import READS_LIST, Feature, build_backbone, build_layer, is_backbone
from models.plugins import check_plugins
from models.spec import ModelSpec, Row

PICTURE = -1  # the slot of the input
LEVELS = 5  # slots of a list backbone: P1 to P5
Wire = tuple[tuple[int, ...], "int | None"]  # the slots that a row reads, and the one it writes; None: five levels


@dataclass(frozen=True)
class Node:
    """How a row is wired: the slots that it reads and writes, and those that nobody reads after it."""

    row: Row
    sources: tuple[int, ...]
    slots: tuple[int, ...]  # one, or one per map of a list backbone
    last_use: tuple[int, ...]
    reads_list: bool
    writes_list: bool

    @property
    def slot(self) -> int:
        """The slot by which people call the row: its only one, or its deepest level's."""
        return self.slots[-1]


@dataclass(frozen=True)
class Graph:
    """A parsed model: a module and a node per row, and the feature that each slot holds."""

    modules: tuple[nn.Module, ...]
    nodes: tuple[Node, ...]
    features: dict[int, Feature]


def parse_model(spec: ModelSpec) -> Graph:
    """Build every row of `spec` and wire them. Runs no forward pass.

    Raises:
        ConfigError: file, row number and text, what was expected and what came.
    """
    check_plugins(spec.plugins or (), spec.name)
    wires = resolve(spec)
    features: dict[int, Feature] = {PICTURE: Feature(spec.ch, 1)}
    modules, written = [], []
    for row, (sources, slot) in zip(spec.rows, wires, strict=True):
        try:
            if slot is None:
                wanted = sorted({2 ** (s + 1) for inputs, _ in wires for s in inputs if 0 <= s < LEVELS})
                layer = build_backbone(spec, row, wanted)
                slots = tuple(int(feature.stride).bit_length() - 2 for feature in layer.outputs)
            else:
                layer = build_layer(spec, row, tuple(features[s] for s in sources))
                slots = (slot,)
        except MissingLevel as e:
            reader = next(r for r, (inputs, _) in zip(spec.rows, wires, strict=True) if e.slot in inputs)
            raise spec.error(reader, e) from e
        except (ValueError, RuntimeError) as e:  # ours, or torch's own complaint, for instance about groups
            raise spec.error(row, e) from e
        features.update(zip(slots, layer.outputs, strict=False))  # a head puts out no feature
        modules.append(layer.module)
        written.append(slots)
    return Graph(tuple(modules), _nodes(spec.rows, wires, written), features)


def resolve(spec: ModelSpec) -> list[Wire]:
    """Return the wire of each row.

    Raises:
        ConfigError: a row reads itself, a later row, a slot or a level that does not exist; the last row is no head.
    """
    wires: list[Wire] = []
    has_levels = is_backbone(spec.rows[0].module)
    for row in spec.rows:
        if is_backbone(row.module) and row.index > 0:
            raise spec.error(row, f"{row.module} is a list backbone, which stands in row 0")
        slot = LEVELS + row.index - 1 if has_levels else row.index
        try:
            sources = tuple(_source(source, slot, has_levels) for source in row.sources)
        except ConfigError as e:
            raise spec.error(row, e) from e
        if row.module in HEADS and row is not spec.rows[-1]:
            raise spec.error(row, "a detection head must be the last row")
        if has_levels and row.index == 0:
            if row.sources != (-1,):
                raise spec.error(row, "a list backbone reads the picture, so its 'from' is -1")
            wires.append(((PICTURE,), None))
        else:
            wires.append((sources, slot))
    last = spec.rows[-1]
    if last.module not in HEADS:
        raise spec.error(last, "the last row must be a detection head, for instance [[17, 20, 23], 1, Detect, [nc]]")
    return wires


def _source(source: int | str, slot: int, has_levels: bool) -> int:
    """Return the slot that one entry of `from` means in the row that writes `slot`."""
    if isinstance(source, str):
        level = re.fullmatch(r"P([1-9])", source)
        if level is None:
            raise ConfigError(f"'from' names '{source}', expected a slot number or a level P1 to P{LEVELS}")
        if not has_levels or int(level[1]) > LEVELS:
            gives = f"the levels P1 to P{LEVELS}" if has_levels else "no level names without a list backbone in row 0"
            raise ConfigError(f"'from' names the level {source}, but there are {gives}")
        return int(level[1]) - 1
    absolute = source if source >= 0 else slot + source
    if absolute == PICTURE and source < 0 and not has_levels:
        return PICTURE
    if not 0 <= absolute < slot:
        raise ConfigError(f"'from' names slot {source}, but only slots 0 to {slot - 1} come before")
    return absolute


def _nodes(rows: tuple[Row, ...], wires: list[Wire], written: list[tuple[int, ...]]) -> tuple[Node, ...]:
    """Return the nodes; a slot's last use is in the row after which nobody reads it."""
    last_row = {slot: i for i, slots in enumerate(written) for slot in slots}
    last_row.update({slot: i for i, (sources, _) in enumerate(wires) for slot in sources})
    return tuple(
        Node(
            row=row,
            sources=sources,
            slots=written[i],
            last_use=tuple(slot for slot, last in last_row.items() if last == i),
            reads_list=row.module in READS_LIST,
            writes_list=slot is None,
        )
        for i, (row, (sources, slot)) in enumerate(zip(rows, wires, strict=True))
    )
