"""The report on a data set in one picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.data_report.contents import Contents
from utils.data_report.suspicious import KINDS
from utils.drawing.fonts import use_in_plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {"train": "#2563eb", "val": "#f59e0b", "test": "#9ca3af"}
MOST_CLASSES = 20  # bars
MOST_POINTS = 20_000  # objects
MOST_LETTERS = 24  # of a class's name
LEAST_SIDE = 0.5  # pixels, where the axes of sizes begin


def draw(contents: Contents, path: Path) -> None:
    """Draw a data set: classes, sizes, objects per picture, places, sizes of pictures, and what looks wrong.

    Args:
        contents: of the data set.
        path: of the PNG.
    """
    import matplotlib as mpl  # noqa: PLC0415 (slow)
    from matplotlib.figure import Figure  # noqa: PLC0415

    use_in_plots("".join(contents.names.values()))
    boxes: list[Callable[[Contents, Any], None]] = [draw_sides, draw_counts, draw_places]
    panels = [draw_classes, *(boxes if contents.task != "classify" else []), draw_shapes, draw_suspicious]
    columns = 3
    with mpl.rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(14, 3.9 * -(-len(panels) // columns)), layout="constrained")
        axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flatten()
        for panel, place in zip(panels, axes, strict=True):
            panel(contents, place)
        figure.savefig(path, dpi=80)


def draw_classes(contents: Contents, axes: Axes) -> None:
    """Draw how many objects of each class there are in each split; of many classes, the most frequent ones."""
    total = np.sum([split.objects for split in contents.splits.values()], axis=0)
    chosen = np.argsort(-total, kind="stable")[:MOST_CLASSES]
    height = 0.8 / len(contents.splits)
    for number, (name, split) in enumerate(contents.splits.items()):
        places = np.arange(len(chosen)) + number * height
        axes.barh(places, split.objects[chosen], height, color=COLOURS[name], label=name)
    names = [contents.names[int(i)] for i in chosen]
    short = [name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}…" for name in names]
    axes.set_yticks(np.arange(len(chosen)) + 0.4 - height / 2, short)
    axes.invert_yaxis()
    if total[chosen].max() > 50 * max(1, total[chosen].min()):
        axes.set_xscale("symlog")
        plain_numbers(axes.xaxis)
    what = "pictures" if contents.task == "classify" else "objects"
    of = f", the {len(chosen)} most frequent of {len(total)}" if len(total) > len(chosen) else ""
    axes.set_title(f"{what} of each class{of}")
    axes.legend()


def draw_sides(contents: Contents, axes: Axes) -> None:
    """Draw the widths and heights of the objects that are trained on, with the strides and the anchors."""
    network = contents.network
    sides = contents.sides[:: -(-len(contents.sides) // MOST_POINTS) or 1].clip(LEAST_SIDE)
    axes.scatter(sides[:, 0], sides[:, 1], s=3, alpha=0.25, color=COLOURS["train"], linewidths=0, rasterized=True)
    for stride in network.strides:
        axes.plot([LEAST_SIDE, stride, stride], [stride, stride, LEAST_SIDE], color="#6b7280", linewidth=0.8)
        axes.annotate(f"{stride}", (stride, LEAST_SIDE), (1, 1), textcoords="offset points", color="#6b7280")
    if network.anchors:
        recall = contents.anchor_recall()
        label = "anchors" if recall is None else f"anchors, which fit {recall:.0%}"
        anchors = np.array(network.anchors)
        axes.scatter(anchors[:, 0], anchors[:, 1], marker="+", s=60, color="#dc2626", label=label)
        axes.legend(loc="upper left")
    axes.set(xscale="log", yscale="log", xlim=(LEAST_SIDE, network.imgsz), ylim=(LEAST_SIDE, network.imgsz))
    axes.set(xlabel=f"width, px at {network.imgsz}", ylabel="height, px")
    plain_numbers(axes.xaxis, axes.yaxis)
    axes.set_title("sizes of the objects in train; grey: strides")


def draw_counts(contents: Contents, axes: Axes) -> None:
    """Draw how many objects the pictures have."""
    most = max((max(split.each, default=0) for split in contents.splits.values()), default=0)
    edges = np.unique(np.linspace(0, most + 1, min(most + 2, 31)).round()) - 0.5
    for name, split in contents.splits.items():
        share = np.full(len(split.each), 100 / max(1, len(split.each)))
        axes.hist(split.each, edges, weights=share, histtype="step", linewidth=1.5, color=COLOURS[name], label=name)
    axes.set(xlabel="objects in a picture", ylabel="% of the pictures")
    axes.set_title("objects per picture")
    axes.legend()


def draw_places(contents: Contents, axes: Axes) -> None:
    """Draw where in the pictures the centres of the objects that are trained on are."""
    axes.imshow(contents.splits["train"].places, cmap="Blues", extent=(0, 1, 1, 0), aspect="auto")
    axes.set(xlabel="x", ylabel="y")
    axes.set_title("centres in train")


def draw_shapes(contents: Contents, axes: Axes) -> None:
    """Draw the sizes of the pictures, larger where there are more."""
    for name, split in contents.splits.items():
        if split.shapes:
            x, y = zip(*split.shapes, strict=True)
            part = np.array(list(split.shapes.values())) / split.shapes.total()
            axes.scatter(x, y, s=10 + 300 * part, alpha=0.5, color=COLOURS[name], label=name)
    axes.set(xlabel="width, px", ylabel="height, px", xlim=(0, None), ylim=(0, None))
    axes.margins(0.15)
    modes = dict.fromkeys(mode for split in contents.splits.values() for mode in split.modes)
    axes.set_title(f"sizes of pictures ({', '.join(modes)})")
    handles, labels = axes.get_legend_handles_labels()
    for handle in handles:
        handle.set(sizes=[40])
    axes.legend(handles, labels, loc="lower left")


def draw_suspicious(contents: Contents, axes: Axes) -> None:
    """Draw how many pictures and labels are suspicious, as bars with their numbers."""
    bars = {
        f"{kind} copies, {name if name == other else f'{name} in {other}'}": count
        for (name, other, kind), count in contents.copies.items()
    }
    bars |= {KINDS[kind].short: one.count for kind, one in contents.suspicious.items()}
    for state, what in (("missing", "no label file"), ("rejected", "unusable pictures")):
        if count := sum(split.states[state] for split in contents.splits.values()):
            bars[what] = count
    axes.set_title("copies of pictures, suspicious labels")
    if not bars:
        axes.text(0.5, 0.5, "none", ha="center", va="center", transform=axes.transAxes)
        axes.set_axis_off()
        return
    drawn = axes.barh(list(bars), list(bars.values()), color="#dc2626", alpha=0.75)
    axes.bar_label(drawn, [f"{count:,}" for count in bars.values()], padding=3)
    axes.set_xscale("symlog")
    axes.xaxis.set_visible(False)
    axes.margins(x=0.2)
    axes.set_ylim(-0.5, max(6, len(bars)) - 0.5)
    axes.invert_yaxis()


def plain_numbers(*axes: Any) -> None:
    """Have the marks of logarithmic axes be plain numbers; powers would be formulas, which class names must not be."""
    from matplotlib.ticker import NullFormatter, StrMethodFormatter  # noqa: PLC0415 (slow)

    for axis in axes:
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
