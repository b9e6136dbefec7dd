"""The report on a data set: what is said, a picture, a page and JSON."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from ultralytics.utils import LOGGER

from models.heads import AnchorDetect
from models.yolo import DetectionModel
from utils.data.pictures import Unreadable, read_picture
from utils.data_report.contents import Contents, Network, Split, gather
from utils.data_report.picture import draw
from utils.data_report.suspicious import KINDS, Example, corners_of
from utils.drawing.page import html_image, html_page, html_table
from utils.text import printable
from utils.writing import write_text

PICTURE, PAGE, DATA = "data_report.png", "data_report.html", "data_report.json"
MOST_SHOWN = 3  # pictures of each kind on the page
MOST_NAMED = 50  # files that a list on the page names
THUMB = 180  # pixels, the height of a picture on the page
AROUND = 1.5  # of a box's longer side is shown around it
LEAST_AROUND = 0.08  # of the picture's longer side
RED = (40, 40, 230)  # BGR
GOOD_RECALL = 0.98  # of anchors, as AutoAnchor has it
QUANTILES = {"min": 0, "5%": 0.05, "median": 0.5, "95%": 0.95, "max": 1}
RARE = 20  # objects of a class that are few to learn from


def network_of(model: DetectionModel | None, imgsz: int, limit: float = 4.0) -> Network:
    """Return what the objects of a data set are compared with.

    Args:
        model: that will be trained; None for strides of 8, 16 and 32 pixels.
        imgsz: pixels of the longer side of pictures in training.
        limit: how many times wider or narrower than an object an anchor may be.
    """
    if model is None:
        return Network(imgsz)
    head = model.model[-1]
    anchors = head.anchor_sizes.reshape(-1, 2).tolist() if isinstance(head, AnchorDetect) else []
    strides = sorted(map(int, model.stride.tolist()))
    return Network(imgsz, tuple(strides), tuple(map(tuple, anchors)), limit, model.spec.name)


def report_on(data: dict[str, Any], task: str, network: Network, folder: Path, single_cls: bool = False) -> Contents:
    """Look at a data set, write the report into a folder, and say what it says.

    Args:
        data: what `load_dataset` returned.
        task: what the network does.
        network: that the objects are compared with.
        folder: where to.
        single_cls: all classes are taken for one.
    """
    contents = gather(data, task, network, single_cls)
    sentences = findings(contents)
    draw(contents, folder / PICTURE)
    write_text(folder / DATA, json.dumps(as_dict(contents, sentences), indent=1, ensure_ascii=False))
    write_text(folder / PAGE, page(contents, sentences, folder / PICTURE))
    lines = "".join(f"\n  - {sentence}" for sentence in sentences)
    LOGGER.info(printable_lines(f"\nReport on {Path(data['yaml_file']).name}: {summary(contents)}{lines}"))
    LOGGER.info(f"Report saved to {folder}: {PAGE}, a page with examples, {PICTURE} and {DATA}\n")
    return contents


def printable_lines(text: str) -> str:
    """Return a text whose lines can be shown."""
    return "\n".join(map(printable, text.split("\n")))


# In words -------------------------------------------------------------------------------------------------------------
def summary(contents: Contents) -> str:
    """Return in a line how much there is."""
    parts = [
        f"{name} {len(split.paths):,} pictures"
        + (f" with {sum(split.each):,} objects" if contents.task != "classify" else "")
        for name, split in contents.splits.items()
    ]
    return f"{len(contents.names)} classes; {', '.join(parts)}"


def findings(contents: Contents) -> list[str]:
    """Return what is worth knowing before training, the most important first."""
    found = [*copies_in_words(contents), *classes_in_words(contents)]
    if contents.task != "classify":
        found += sizes_in_words(contents)
    found += [f"{meaning(contents, kind)}: {one.count:,}" for kind, one in contents.suspicious.items()]
    for name, split in contents.splits.items():
        for count, what in (
            (split.states["missing"], "pictures without a label file, which count as without objects,"),
            (len(split.rejected), "pictures that cannot be used"),
            (len(split.corrected), "label files of which something is left out"),
        ):
            found += [f"{what} in {name}: {count:,}"] if count else []
    return found or ["nothing looks wrong"]


def meaning(contents: Contents, kind: str) -> str:
    """Return what a kind of suspicious labels is called in sentences."""
    return KINDS[kind].long.format(size=contents.network.imgsz)


def copies_in_words(contents: Contents) -> list[str]:
    """Return what is to be said of pictures that are there more than once."""
    found = []
    for (name, other, kind), count in sorted(contents.copies.items(), key=lambda item: item[0][0] == item[0][1]):
        total = len(contents.splits[name].paths)
        share = f"{count:,} of {total:,} {name} pictures ({count / total:.1%}) have {kind} copies"
        leak = f"in {other}: accuracy on {name} may look better than it is"
        found.append(f"{share} {leak if name != other else f'within {name}'}")
    return found


def classes_in_words(contents: Contents) -> list[str]:
    """Return what is to be said of classes that are missing or rare."""
    what = "pictures" if contents.task == "classify" else "objects"
    found = [f"{name} has no {what} of {listed(absent)}" for name, absent in contents.absent().items()]
    counts = contents.splits["train"].objects
    rare = [contents.names[i] for i in np.flatnonzero((counts > 0) & (counts < RARE))]
    if rare:
        found.append(f"fewer than {RARE} {what} to learn from: {listed(rare)}")
    if len(counts) > 1 and counts.min() and counts.max() > 10 * counts.min():
        most, least = contents.names[int(counts.argmax())], contents.names[int(counts.argmin())]
        found.append(f"{most} has {counts.max() / counts.min():.0f} times as many {what} as {least}")
    return found


def sizes_in_words(contents: Contents) -> list[str]:
    """Return what is to be said of objects that are small for the strides, or that no anchor fits."""
    network, sides = contents.network, contents.sides
    if not len(sides):
        return []
    small = float((sides.min(1) < network.strides[0]).mean())
    found = []
    if small >= 0.01:
        found.append(
            f"{small:.0%} of the objects are less than {network.strides[0]} px wide or high at {network.imgsz} px, the "
            f"smallest stride: a larger --imgsz, or a level of stride {network.strides[0] // 2}, may find more of them"
        )
    recall = contents.anchor_recall()
    if recall is not None:
        end = "" if recall >= GOOD_RECALL else ": AutoAnchor will fit new ones"
        found.append(f"an anchor of {network.name} fits {recall:.1%} of the objects{end}")
    return found


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return names in a row, not too many of them."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


# As data --------------------------------------------------------------------------------------------------------------
def as_dict(contents: Contents, sentences: Sequence[str]) -> dict[str, Any]:
    """Return the report as JSON takes it."""
    network = contents.network
    return {
        "data": contents.data["yaml_file"],
        "task": contents.task,
        "findings": list(sentences),
        "network": {**vars(network)},
        "anchor_recall": contents.anchor_recall(),
        "sizes": contents.by_size(),
        "splits": {name: split_as_dict(contents, split) for name, split in contents.splits.items()},
        "copies": [
            {"of": of, "in": other, "kind": kind, "pictures": count, "examples": contents.pairs[of, other, kind]}
            for (of, other, kind), count in contents.copies.items()
        ],
        "suspicious": {
            kind: {
                "means": meaning(contents, kind),
                "count": one.count,
                "examples": [{key: value for key, value in vars(each).items() if value} for each in one.examples],
            }
            for kind, one in contents.suspicious.items()
        },
    }


def split_as_dict(contents: Contents, split: Split) -> dict[str, Any]:
    """Return what is in a split as JSON takes it."""
    classes = {
        name: {"objects": int(split.objects[number]), "pictures": int(split.pictures[number])}
        for number, name in contents.names.items()
    }
    sides = {
        name: dict(zip(QUANTILES, np.quantile(values, list(QUANTILES.values())).round(1).tolist(), strict=True))
        for name, values in (("width_px", split.sides[:, 0]), ("height_px", split.sides[:, 1]))
        if len(values)
    }
    return {
        "pictures": len(split.paths),
        **{state: split.states[state] for state in ("labelled", "empty", "missing", "rejected")},
        "objects": sum(split.each),
        "most_objects": max(split.each, default=0),
        "classes": classes,
        **sides,
        "sizes": {f"{w}x{h}": count for (w, h), count in split.shapes.most_common()},
        "channels": dict(split.modes.most_common()),
        "rejected_files": split.rejected,
        "corrected_files": split.corrected,
    }


# The page -------------------------------------------------------------------------------------------------------------
def page(contents: Contents, sentences: Sequence[str], picture: Path) -> str:
    """Return the page, which loads nothing from anywhere."""
    name = Path(contents.data["yaml_file"]).name
    parts = [
        f"<h1>{html.escape(name)}</h1><p>{html.escape(summary(contents))}</p>",
        "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences) + "</ul>",
        html_image(picture.read_bytes(), "png"),
        "<h2>Splits</h2>",
        html_table(split_lines(contents)),
        "<h2>Classes</h2>",
        html_table(class_lines(contents)),
    ]
    if contents.task != "classify":
        parts += ["<h2>Sizes of the objects that are trained on</h2>", html_table(size_lines(contents))]
    parts += ["<h2>Copies</h2>", *copy_parts(contents)] if contents.copies else []
    parts += ["<h2>Suspicious labels</h2>", *suspicious_parts(contents)] if contents.suspicious else []
    for split_name, split in contents.splits.items():
        for title, files in (("cannot be used", split.rejected), ("labels were corrected", split.corrected)):
            parts += file_list(f"{split_name}: {len(files):,} {title}", files) if files else []
    return html_page(f"Report on {name}", parts)


def split_lines(contents: Contents) -> list[list[str]]:
    """Return a table of the splits: its head, and a line for each."""
    head = ["", "pictures", "with objects", "empty label file", "no label file", "rejected", "objects"]
    head += ["most in one", "sizes", "channels"]
    lines = [head]
    for name, split in contents.splits.items():
        states = [f"{split.states[state]:,}" for state in ("labelled", "empty", "missing", "rejected")]
        sizes = listed([f"{w}x{h}" for (w, h), _ in split.shapes.most_common()], 3)
        modes = ", ".join(f"{mode} {count:,}" for mode, count in split.modes.most_common())
        counts = [f"{sum(split.each):,}", f"{max(split.each, default=0):,}"]
        lines.append([name, f"{len(split.paths):,}", *states, *counts, sizes, modes])
    return lines


def class_lines(contents: Contents) -> list[list[str]]:
    """Return a table of the classes: objects of each in each split, and pictures with it."""
    kinds = ("objects", "pictures") if contents.task != "classify" else ("pictures",)
    head = ["", *(f"{name} {kind}" for name in contents.splits for kind in kinds)]
    return [
        head,
        *(
            [label, *(f"{getattr(split, kind)[number]:,}" for split in contents.splits.values() for kind in kinds)]
            for number, label in contents.names.items()
        ),
    ]


def size_lines(contents: Contents) -> list[list[str]]:
    """Return a table of the sizes of objects, beside the strides."""
    head = ["square root of the area", f"part of the objects at {contents.network.imgsz} px"]
    return [head, *([name, f"{share:.1%}"] for name, share in contents.by_size().items())]


def copy_parts(contents: Contents) -> list[str]:
    """Return examples of pictures that are there more than once, side by side."""
    parts = []
    for (name, other, kind), pairs in contents.pairs.items():
        count = contents.copies[name, other, kind]
        where = f"in {other}" if name != other else f"within {name}"
        parts.append(f"<h3>{name} pictures that have {kind} copies {where}: {count:,}</h3>")
        for one, two in pairs[:MOST_SHOWN]:
            parts.append(figure([one, two], {}, f"{tail(one)} and {tail(two)}"))
    return parts


def suspicious_parts(contents: Contents) -> list[str]:
    """Return examples of suspicious labels, with their boxes."""
    parts = []
    for kind, found in contents.suspicious.items():
        parts.append(f"<h3>{html.escape(meaning(contents, kind))}: {found.count:,}</h3>")
        parts += [suspicious_figure(contents, example) for example in evenly_by_file(found.examples)]
    return parts


def evenly_by_file(examples: Sequence[Example]) -> list[Example]:
    """Return a few examples, each of another picture where there are some."""
    by_file = {example.file: example for example in reversed(examples)}
    return list(reversed(by_file.values()))[:MOST_SHOWN]


def suspicious_figure(contents: Contents, example: Example) -> str:
    """Return the picture of an example, cut out around its boxes."""
    if example.other:
        return figure([example.file, example.other], {}, f"{tail(example.file)} and {tail(example.other)}")
    rows = contents.rows[example.file][list(example.rows)]
    names = ", ".join(dict.fromkeys(contents.names[int(row[0])] for row in rows))
    return figure([example.file], {example.file: rows}, f"{example.split}: {tail(example.file)}, {names}")


def tail(path: str) -> str:
    """Return the end of a path by which a picture is known."""
    return "/".join(Path(path).parts[-2:])


def figure(files: Sequence[str], boxes: Mapping[str, NDArray], caption: str) -> str:
    """Return pictures side by side with a line below, as HTML; those that cannot be read are left out.

    Args:
        files: of the pictures.
        boxes: file → rows (n, 5) `class x y w h` of the boxes to draw.
        caption: what is said below.
    """
    shown = []
    for file in files:
        try:
            shown.append(thumb(read_picture(Path(file)), boxes.get(file)))
        except Unreadable:
            continue
    images = "".join(html_image(cv2.imencode(".jpg", one)[1].tobytes(), "jpeg") for one in shown)
    return f"<figure>{images}<figcaption>{html.escape(printable(caption))}</figcaption></figure>"


def thumb(picture: NDArray[np.uint8], rows: NDArray | None) -> NDArray[np.uint8]:
    """Return a small picture (THUMB, W, 3): the whole one, or what is around its boxes, which are drawn.

    Args:
        picture: (H, W, 3) BGR.
        rows: (n, 5) `class x y w h` of the boxes.
    """
    height, width = picture.shape[:2]
    corners = corners_of(rows, width, height) if rows is not None else np.zeros((0, 4))
    left, top, right, bottom = 0, 0, width, height
    if len(corners):
        (x1, y1), (x2, y2) = corners[:, :2].min(0), corners[:, 2:].max(0)
        more = max(AROUND * max(x2 - x1, y2 - y1), LEAST_AROUND * max(width, height))
        left, top = (int(max(0, value - more)) for value in (x1, y1))
        right, bottom = int(min(width, x2 + more)), int(min(height, y2 + more))
    gain = THUMB / max(1, bottom - top)
    size = (int(np.clip((right - left) * gain, 1, 3 * THUMB)), THUMB)
    smoothed = cv2.INTER_AREA if gain < 1 else cv2.INTER_LINEAR
    small = cv2.resize(picture[top:bottom, left:right], size, interpolation=smoothed)
    for box in corners:
        first, second = ((box.reshape(2, 2) - (left, top)) * (size[0] / max(1, right - left), gain)).round().astype(int)
        cv2.rectangle(small, first.tolist(), second.tolist(), RED, 1)
    return np.asarray(small, np.uint8)


def file_list(title: str, files: Mapping[str, str]) -> list[str]:
    """Return a heading and a list of files with what is said of each."""
    lines = [f"{printable(path)}: {printable(note)}" for path, note in list(files.items())[:MOST_NAMED]]
    lines += [f"and {len(files) - MOST_NAMED:,} more"] if len(files) > MOST_NAMED else []
    return [f"<h3>{html.escape(title)}</h3><pre>{html.escape(chr(10).join(lines))}</pre>"]
