"""Classes that first weights and a new run both know: their rows of the head's last layers are kept, by name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.errors import UserError, did_you_mean
from models.heads import AnchorDetect
from utils.checkpoint.fields import described
from utils.data.description import read_yaml
from utils.text import shorten

LAYERS = re.compile(r"(m\.\d+|(one2one_)?cv3\.\d+\.\d+|linear)\.(weight|bias)")  # of heads, which give class scores
BEFORE = 5  # outputs of an anchor before its class scores: the box and its objectness
Partners = Sequence[int | None]  # for each class of a run its number in the first weights; None: it is new


def match_classes(theirs: Mapping[int, str], own: Mapping[int, str], class_map: Mapping[str, str]) -> Partners:
    """Return for each class of `own` the number that it has in `theirs`, by name, whatever its case.

    Args:
        theirs: names of the classes of the first weights.
        own: those of the run, 0, 1, ….
        class_map: names of the run to names of the first weights, where these differ.

    Raises:
        UserError: `class_map` has a name that the other side does not have.
    """
    for name, known, whose in (
        *((name, own, "the data set") for name in class_map),
        *((name, theirs, "the first weights") for name in class_map.values()),
    ):
        if name not in known.values():
            hint = did_you_mean(name, known.values())
            raise UserError(f"--class-map names '{shorten(name)}', which is no class of {whose}{hint}")
    numbers = {name.casefold(): i for i, name in reversed(list(theirs.items()))}
    return [numbers.get(class_map.get(own[i], own[i]).casefold()) for i in range(len(own))]


def read_class_map(file: str) -> dict[str, str]:
    """Return what a `--class-map` says, `own name: name in the first weights` a line; nothing for an empty `file`."""
    pairs = read_yaml(Path(file), "map of classes", "lorry: truck") if file else {}
    if other := next((pair for pair in pairs.items() if not all(isinstance(name, str) for name in pair)), None):
        came = ": ".join(map(described, other))
        raise UserError(f"{file}: expected 'own name: name in the first weights', not {came}")
    return pairs


def class_rows(head: Any, other: Any, name: str, tensor: Tensor, partners: Partners) -> Tensor:
    """Return a tensor of the last layer of `other` with the class rows that `head` has; other tensors as they are.

    Rows of classes that `other` has are its own, those of others the mean of all of its. Rows of boxes stay.

    Args:
        name: of the tensor in its head.
        tensor: (outputs, ...).
        partners: as `match_classes` returns them.
    """
    if not LAYERS.fullmatch(name) or isinstance(head, AnchorDetect) != isinstance(other, AnchorDetect):
        return tensor
    anchors, before = (other.na, BEFORE) if isinstance(other, AnchorDetect) else (1, 0)
    classes = len(tensor) if name.startswith("linear") else other.nc
    first, rows, last = tensor.unflatten(0, (anchors, -1)).tensor_split((before, before + classes), 1)
    mean = rows.mean(1)
    kept = torch.stack([mean if i is None else rows[:, i] for i in partners], 1)
    return torch.cat([first, kept, last], 1).flatten(0, 1)
