"""First weights from another model: rows are matched by the role that they play, tensors by name and shape in them.

So a neck and a head that were trained behind one backbone go behind another, where the row numbers are others.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from models import DetectionModel
from models.errors import WeightsError
from utils.train.classes import LAYERS, Partners, class_rows

MIN_TRANSFERRED = 0.5  # of the tensors of the backbone, or of those of neck and head; see `Transfer.is_enough`
ANCHORS = "anchor_sizes"  # of a head, which its YAML says
COUNTER = "num_batches_tracked"  # of a BatchNorm, which goes along and is not counted
MAX_LISTED = 8  # rows that are not used


@dataclass(frozen=True)
class RowTransfer:
    """What a row of the target received.

    Attributes:
        row: its index.
        source: the index of the row of the source that plays its part; None: none does.
        copied: names of tensors, inside the row, that have the source's values now.
        new: names of those that keep their own.
    """

    row: int
    source: int | None
    copied: tuple[str, ...]
    new: tuple[str, ...]


@dataclass(frozen=True)
class Transfer:
    """What a model received from another one. As text, a table of rows."""

    source: DetectionModel
    target: DetectionModel
    rows: tuple[RowTransfer, ...]
    partners: Partners | None = None  # of the classes, where they are not alike

    @property
    def copied(self) -> int:
        """The number of tensors that were copied."""
        return sum(len(row.copied) for row in self.rows)

    @property
    def total(self) -> int:
        """The number of tensors of the target."""
        return self.copied + sum(len(row.new) for row in self.rows)

    @property
    def unused(self) -> dict[int, int]:
        """The rows of the source of which nothing was copied, and how many tensors they have."""
        used = {row.source for row in self.rows if row.copied}
        rows = {i: row.state_dict() for i, row in enumerate(self.source.model) if i not in used}
        return {i: sum(not name.endswith(COUNTER) for name in tensors) for i, tensors in rows.items() if tensors}

    @property
    def modules(self) -> set[nn.Module]:
        """The modules of the target of whose own tensors some were copied."""
        paths = {f"model.{row.row}.{name}".rpartition(".")[0] for row in self.rows for name in row.copied}
        return {self.target.get_submodule(path) for path in paths}

    def is_enough(self) -> bool:
        """Return whether the backbone, or neck and head, received at least MIN_TRANSFERRED of their tensors.

        That is less than what `models.backbones.weights` asks of a file for a backbone, MIN_MATCHED. Such a file is of
        that very architecture, and one that is not is a mistake. Here another architecture is what is wanted, of which
        parts go along: with all widths alike, YOLOv5n gives YOLOv5n6 64 % of its backbone and 52 % of its neck and
        head. With other widths, where nothing useful goes along, it is less than 10 %.
        """
        split = self.target.spec.backbone_rows
        for section in (self.rows[:split], self.rows[split:]):
            copied = sum(len(row.copied) for row in section)
            if copied and copied >= MIN_TRANSFERRED * (copied + sum(len(row.new) for row in section)):
                return True
        return False

    def __str__(self) -> str:
        others = "; the others start new" if self.copied < self.total else ""
        lines = [f"Transferred {self.copied} of {self.total} tensors from {self.source.pt_path}{others}"]
        lines.append(f"{'row':>5}  {'module':<14}{'from':<18}{'copied':>6}{'new':>6}")
        for row in self.rows:
            if row.copied or row.new:
                origin = "-" if row.source is None else _called(self.source, row.source)
                slot, word = self.target.nodes[row.row].slot, self.target.spec.rows[row.row].module
                counts = f"{len(row.copied):>6}{len(row.new):>6}"
                lines.append(f"{slot:>5}  {word:<14.13}{origin:<18.17}{counts}{self._note(row)}".rstrip())
        if self.unused:
            names = [_called(self.source, i) for i in self.unused]
            more = ", ..." if len(names) > MAX_LISTED else ""
            lines.append(f"not used: {sum(self.unused.values())} tensors of {', '.join(names[:MAX_LISTED])}{more}")
        return "\n".join(lines)

    def _note(self, row: RowTransfer) -> str:
        """Return what a head's class scores start from where the classes differ."""
        if row.row < len(self.target.nodes) - 1 or row.source is None:
            return ""
        if self.partners and not any(LAYERS.fullmatch(name) for name in row.new):
            kept = sum(i is not None for i in self.partners)
            return f"  {kept} of {len(self.partners)} classes are known there and kept, others start from the mean"
        if row.new and self.source.nc != self.target.nc:
            return f"  {self.source.nc} classes there, {self.target.nc} here: their scores start new"
        return ""


def transfer(source: DetectionModel, target: DetectionModel, partners: Partners | None = None) -> Transfer:
    """Copy what fits of the weights of `source` into `target`, and return what that was.

    Args:
        source: the model of the first weights.
        target: the model that is to be trained.
        partners: of each class of `target` the number in `source`, as `match_classes` returns them; by default the
            classes are alike if there are as many.

    Raises:
        WeightsError: less than MIN_TRANSFERRED fits, in the backbone and in neck and head; `target` is as it was.
    """
    if partners is not None and list(partners) == list(range(source.nc)):
        partners = None
    sources = align(source, target)
    rows, copies = [], {}
    for i in range(len(target.nodes)):
        own, partner = target.model[i].state_dict(), sources.get(i)
        theirs = {} if partner is None else counterparts(source, partner, target, i, partners)
        fits = {name: theirs[name] for name in own if name in theirs and theirs[name].shape == own[name].shape}
        copies.update({f"model.{i}.{name}": tensor for name, tensor in fits.items()})
        counted = [name for name in own if not name.endswith(COUNTER)]
        copied, new = ([name for name in counted if (name in fits) == fit] for fit in (True, False))
        rows.append(RowTransfer(i, partner, tuple(copied), tuple(new)))
    result = Transfer(source, target, tuple(rows), partners)
    if not result.is_enough():
        raise WeightsError(
            f"only {result.copied} of {result.total} tensors of {target.spec.name} are in {source.pt_path}, "
            f"which was trained from {source.spec.name}: leave --weights out, or name a --cfg whose rows are as wide"
        )
    target.load_state_dict(copies, strict=False)
    return result


def _called(model: DetectionModel, row: int) -> str:
    return f"{model.nodes[row].slot} {model.spec.rows[row].module}"


# Roles ----------------------------------------------------------------------------------------------------------------
def align(source: DetectionModel, target: DetectionModel) -> dict[int, int]:
    """Return for rows of `target` the row of `source` that plays the same part.

    The order of rows is kept. Neck and head are matched from the last row backwards, backbones from the first row on.
    """
    ours, theirs = roles(target), roles(source)
    split, their_split = target.spec.backbone_rows, source.spec.backbone_rows
    backwards = _matches(ours[split:][::-1], theirs[their_split:][::-1])
    pairs = [(len(ours) - 1 - i, len(theirs) - 1 - j) for i, j in backwards]
    return dict([*_matches(ours[:split], theirs[:their_split]), *pairs])


def roles(model: DetectionModel) -> list[Hashable]:
    """Return what each row does, alike for rows that may take each other's weights.

    A list backbone is its family, the last row the head; all others are their word and the strides between which they
    stand.
    """
    found: list[Hashable] = []
    for node, module in zip(model.nodes[:-1], model.model, strict=False):
        if node.writes_list:
            found.append(f"{type(module).__name__}, a list backbone")
        else:
            strides = tuple(model.features[slot].stride for slot in node.sources)
            found.append((node.row.module, strides, model.features[node.slot].stride))
    return [*found, "head"]


def _matches(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Return the index pairs of a longest common subsequence, the earliest one."""
    longest = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]  # of what follows in both
    for i in reversed(range(len(first))):
        for j in reversed(range(len(second))):
            skipped = max(longest[i + 1][j], longest[i][j + 1])
            longest[i][j] = longest[i + 1][j + 1] + 1 if first[i] == second[j] else skipped
    pairs, i, j = [], 0, 0
    while i < len(first) and j < len(second):
        if first[i] == second[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def counterparts(
    source: DetectionModel, partner: int, target: DetectionModel, row: int, classes: Partners | None
) -> dict[str, Tensor]:
    """Return the tensors of a row of `source` by the names that they have in a row of `target`.

    Parts of a head belong to strides, and are named by the place of theirs among those of its model. Anchors are the
    YAML's, and come along if both have the same. Class scores have the rows of the target's `classes`.
    """
    tensors: dict[str, Tensor] = source.model[partner].state_dict()
    if row < len(target.nodes) - 1:
        return tensors
    if classes is not None:
        head, other = target.model[-1], source.model[-1]
        tensors = {name: class_rows(head, other, name, tensor, classes) for name, tensor in tensors.items()}
    if source.spec.anchors != target.spec.anchors:
        tensors.pop(ANCHORS, None)
    strides, own = ([float(stride) for stride in model.stride] for model in (source, target))
    places = {strides.index(stride): i for i, stride in enumerate(own) if stride in strides}
    return {name: tensor for old, tensor in tensors.items() if (name := _moved(source.model[-1], old, places))}


def _moved(head: Any, name: str, places: Mapping[int, int]) -> str | None:
    """Return the name of a head's tensor when its levels take other places; None if its level has none."""
    part = re.fullmatch(r"(\w+)\.(\d+)\.(.+)", name)
    if part is None or len(getattr(head, part[1])) != head.nl:
        return name
    place = places.get(int(part[2]))
    return None if place is None else f"{part[1]}.{place}.{part[3]}"
