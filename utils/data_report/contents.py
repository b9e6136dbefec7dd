"""What a data set holds, gathered split by split."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics.nn.autobackend import check_class_names

from models.errors import UserError
from utils.data.description import class_folders
from utils.data.files import list_images
from utils.data.labels import label_paths
from utils.data.scan import Record, Settings, cache_file, scan
from utils.data_report.copies import Copies, Look, find_copies, look_at
from utils.data_report.suspicious import KINDS, MOST_KEPT, Example, Kind, look_for_kinds
from utils.train.anchors import anchor_fit

SPLITS = ("train", "val", "test")
CELLS = 32  # of the map of where objects are, in each direction


@dataclass(frozen=True)
class Network:
    """What the objects are compared with.

    Attributes:
        imgsz: pixels of the longer side of pictures in training.
        strides: of the head's maps in pixels, smallest first.
        anchors: (anchors, 2) width and height in pixels; none where the head has none.
        limit: how many times wider or narrower than an object an anchor may be.
        name: of the model YAML, or empty.
    """

    imgsz: int
    strides: tuple[int, ...] = (8, 16, 32)
    anchors: tuple[tuple[float, float], ...] = ()
    limit: float = 4.0
    name: str = ""


@dataclass
class Split:
    """What is in one split.

    Attributes:
        paths: of all its pictures.
        states: pictures that are labelled, empty (their label file has no rows), missing (there is none) or rejected.
        objects: of each class (classes,).
        pictures: with each class (classes,).
        each: objects of each picture that is not rejected.
        sides: (objects, 2) width and height in pixels at the size of training; none for classifiers.
        places: (CELLS, CELLS) how many objects have their centre there, by row and column of the picture.
        shapes: (width, height) in pixels → pictures.
        modes: Pillow's word for channels and depth → pictures.
        rejected: file → why it cannot be used.
        corrected: file → what was left out of its labels.
    """

    paths: list[str]
    objects: NDArray[np.int64]
    pictures: NDArray[np.int64]
    states: Counter[str] = field(default_factory=Counter)
    each: list[int] = field(default_factory=list)
    sides: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 2), np.float32))
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros((CELLS, CELLS), np.int64))
    shapes: Counter[tuple[int, int]] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    rejected: dict[str, str] = field(default_factory=dict)
    corrected: dict[str, str] = field(default_factory=dict)


@dataclass
class Contents:
    """What a data set holds.

    Attributes:
        data: its description, as `load_dataset` returned it.
        task: what the network does.
        network: that it is looked at for.
        splits: by name, those that are there.
        copies: number of pictures of a split that have an exact or a near copy in a split, by (of, in, kind).
        pairs: examples of them, by the same keys: their files.
        suspicious: by the keys of KINDS, those that are there.
        rows: rows of labels of the pictures in the examples, by file.
    """

    data: dict[str, Any]
    task: str
    network: Network
    splits: dict[str, Split]
    copies: dict[tuple[str, str, str], int] = field(default_factory=dict)
    pairs: dict[tuple[str, str, str], list[tuple[str, str]]] = field(default_factory=dict)
    suspicious: dict[str, Kind] = field(default_factory=dict)
    rows: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def names(self) -> dict[int, str]:
        """The names of the classes."""
        return self.data["names"]

    @property
    def sides(self) -> NDArray[np.float32]:
        """Width and height (objects, 2) of all objects that are trained on, in pixels at the size of training."""
        return self.splits["train"].sides

    def absent(self) -> dict[str, list[str]]:
        """Return by split the names of the classes of which it has no object, where there are any."""
        found = {split: [self.names[i] for i in np.flatnonzero(one.objects == 0)] for split, one in self.splits.items()}
        return {split: names for split, names in found.items() if names}

    def anchor_recall(self) -> float | None:
        """Return the share of the objects of the train split that an anchor fits; None without anchors or objects."""
        if not self.network.anchors or not len(self.sides):
            return None
        sides, anchors = torch.from_numpy(self.sides), torch.tensor(self.network.anchors)
        return anchor_fit(sides, anchors, self.network.limit)[0]

    def by_size(self) -> dict[str, float]:
        """Return the share of the objects of the train split by the geometric mean of their sides, in strides."""
        sizes = np.sqrt(self.sides.prod(1)) if len(self.sides) else np.zeros(0)
        edges = [0, *self.network.strides, 2 * self.network.strides[-1], 4 * self.network.strides[-1], np.inf]
        counts, _ = np.histogram(sizes, edges)
        names = [f"{a:g} to {b:g} px" if np.isfinite(b) else f"{a:g} px and more" for a, b in itertools.pairwise(edges)]
        return {name: count / max(1, len(sizes)) for name, count in zip(names, counts.tolist(), strict=True)}


def gather(data: dict[str, Any], task: str, network: Network, single_cls: bool = False) -> Contents:
    """Look at every picture of a data set and its labels, and return what is there.

    Args:
        data: what `load_dataset` returned.
        task: what the network does.
        network: that the objects are compared with.
        single_cls: all classes are taken for one.
    """
    if single_cls:
        data = {**data, "nc": 1, "names": {0: "item"}}
    found: dict[str, Split] = {}
    contents = Contents(data, task, network, found, suspicious={kind: Kind() for kind in KINDS})
    looks: list[Look] = []
    labels: list[bytes] = []  # a digest of those of each picture, for copies with other labels
    for name in SPLITS:
        if not data.get(name):
            continue
        try:
            paths = list_images(data[name], data["path"])
        except UserError:
            if name == "test":  # which a training does not need
                continue
            raise
        classes = classes_of(paths, data, name) if task == "classify" else {}
        paths = list(classes) or paths
        split = found[name] = Split(paths, np.zeros(data["nc"], np.int64), np.zeros(data["nc"], np.int64))
        seen = look_at(paths, f"{name}: ")
        if task == "classify":
            labels += add_classes(split, classes, seen)
        else:
            labels += add_labels(contents, split, name, single_cls)
        split.modes.update(one.mode for one in seen if not one.problem)
        looks += seen
    names = list(found)
    of = np.repeat(np.arange(len(names)), [len(split.paths) for split in found.values()])
    add_copies(contents, find_copies(looks, of, len(names)), of, labels)
    contents.suspicious = {kind: one for kind, one in contents.suspicious.items() if one.count}
    return contents


def classes_of(paths: Sequence[str], data: Mapping[str, Any], split: str) -> dict[str, int]:
    """Return the number of the class of each picture of a split of class folders, without pictures outside of them."""
    top = Path(data[split])
    folders = class_folders(top)
    numbers = {name: number for number, name in data["names"].items()}
    known = {folder: numbers[name] for folder, name in zip(folders, check_class_names(folders).values(), strict=True)}
    first = {path: Path(path).relative_to(top).parts[0] for path in paths}
    return {path: known[folder] for path, folder in first.items() if folder in known}


def add_classes(split: Split, classes: Mapping[str, int], looks: Sequence[Look]) -> list[bytes]:
    """Count the pictures of a split of class folders, and return the class of each, as bytes."""
    for (path, number), one in zip(classes.items(), looks, strict=True):
        if one.problem:
            split.states["rejected"] += 1
            split.rejected[path] = one.problem
            continue
        split.states["labelled"] += 1
        split.shapes[one.size] += 1
        split.each.append(1)
        split.objects[number] += 1
        split.pictures[number] += 1
    return [str(number).encode() for number in classes.values()]


def add_labels(contents: Contents, split: Split, name: str, single_cls: bool) -> list[bytes]:
    """Count the objects of a split and look for suspicious ones; return the labels of each picture, as bytes."""
    data, imgsz = contents.data, contents.network.imgsz
    settings = Settings.of(data, single_cls)
    records = scan(split.paths, label_paths(split.paths), settings, cache_file(data[name], settings, 1.0), f"{name}: ")
    sides = []
    labels = []
    for record in records:
        if single_cls:
            record.rows[:, 0] = 0
        labels.append(np.unique(record.rows, axis=0).tobytes() if record.state != "rejected" else b"rejected")
        split.states[record.state] += 1
        if record.state == "rejected":
            split.rejected[record.path] = record.note
            continue
        if record.note:
            split.corrected[record.path] = record.note
        split.each.append(len(record.rows))
        split.shapes[record.shape[::-1]] += 1
        if not len(record.rows):
            continue
        classes = record.rows[:, 0].astype(np.int64)
        split.objects += np.bincount(classes, minlength=data["nc"])
        split.pictures[np.unique(classes)] += 1
        height, width = record.shape
        sides.append(record.rows[:, 3:5] * np.array([width, height], np.float32) * (imgsz / max(height, width)))
        columns, rows = (record.rows[:, 1:3].T * CELLS).astype(np.int64).clip(0, CELLS - 1)
        np.add.at(split.places, (rows, columns), 1)
        add_suspicious(contents, record, name)
    if sides:
        split.sides = np.concatenate(sides)
    return labels


def add_suspicious(contents: Contents, record: Record, split: str) -> None:
    """Keep what is suspicious in the labels of one picture."""
    for kind, rows in look_for_kinds(record, contents.network.imgsz, contents.task == "segment"):
        contents.suspicious[kind].add(Example(split, record.path, rows))
        if contents.suspicious[kind].count <= MOST_KEPT:
            contents.rows[record.path] = record.rows


def add_copies(contents: Contents, copies: Copies, of: NDArray[np.int64], labels: Sequence[bytes]) -> None:
    """Count the pictures that are there more than once, and keep examples, and those whose labels differ.

    Args:
        contents: what they are added to.
        copies: of all pictures.
        of: the number of the split of each.
        labels: of each, as bytes.
    """
    paths = [path for split in contents.splits.values() for path in split.paths]
    names = list(contents.splits)
    for a, name in enumerate(names):
        for b, other in enumerate(names):
            for kind, partners in (("exact", copies.exact), ("near", copies.near)):
                count = copies.count(kind, of == a, b)
                if not count or a < b:  # of two splits, the later one is told
                    continue
                contents.copies[name, other, kind] = count
                alone = (copies.exact[b] < 0) if kind == "near" else np.True_
                some = np.flatnonzero((of == a) & (partners[b] >= 0) & alone)[:MOST_KEPT]
                contents.pairs[name, other, kind] = [(paths[i], paths[partners[b, i]]) for i in some]
    for i, j in pairs_of(copies.exact):
        if labels[i] != labels[j]:
            example = Example(names[of[i]], paths[i], (), paths[j])
            contents.suspicious["labelled_twice"].add(example)


def pairs_of(partners: NDArray[np.int64]) -> Iterable[tuple[int, int]]:
    """Return pairs of pictures of which one has the other for a copy, each once."""
    found = {(min(i, j), max(i, j)) for row in partners.tolist() for i, j in enumerate(row) if j >= 0}
    return sorted(found)
