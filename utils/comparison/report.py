"""What a comparison found: a sentence, a table, a picture, a page and JSON."""

from __future__ import annotations

import html
import itertools
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from utils import cli
from utils.comparison.plan import INT8
from utils.comparison.statistics import Estimate, Sample
from utils.drawing.page import html_image, html_page, html_table
from utils.latency import Latency
from utils.writing import replacing, write_text

PICTURE, PAGE, DATA = "compare.png", "compare.html", "compare.json"
LEGEND = 60  # letters in a line of the legend
SAME_SPEED = 1.1  # ratio of latencies that noise alone may make


@dataclass
class Compared:
    """One network of a comparison; None is what is not known.

    Attributes:
        name: of the entry.
        epochs: of each training.
        minutes: that one training took, mean over the seeds.
        params: of the fused network.
        accuracy: mAP50-95 in [0, 1], mean over the seeds.
        seeds: that of each seed.
        behind: the best one's accuracy less this one's.
        classes: class → its AP50-95 in [0, 1], mean over the seeds.
        sizes: small, medium, large → AP50-95 in [0, 1] of objects of this size, mean over the seeds.
        maps: form → mAP50-95 in [0, 1] of the files that were written, mean over the seeds.
        by_threads: threads of the CPU → form → latency of a file of this form. The first number of threads counts.
        problem: why something is missing.
    """

    name: str
    epochs: int
    minutes: float | None = None
    params: int | None = None
    accuracy: Estimate | None = None
    seeds: list[float] = field(default_factory=list)
    behind: Estimate | None = None
    classes: dict[str, float] = field(default_factory=dict)
    sizes: dict[str, float] = field(default_factory=dict)
    maps: dict[str, float] = field(default_factory=dict)
    by_threads: dict[int, dict[str, Latency]] = field(default_factory=dict)
    problem: str = ""

    @property
    def latency(self) -> dict[str, Latency]:
        """Form → latency with the number of threads that counts; empty where nothing was timed."""
        return next(iter(self.by_threads.values()), {})

    @property
    def runtimes(self) -> dict[str, str]:
        """The form that is fastest among those in float and among those in INT8, with the threads that count."""
        forms = {"float": [form for form in self.latency if not form.endswith(INT8)]}
        forms["int8"] = [form for form in self.latency if form.endswith(INT8)]
        return {
            precision: min(mine, key=lambda form: self.latency[form].median)
            for precision, mine in forms.items()
            if mine
        }

    @property
    def milliseconds(self) -> float | None:
        """The latency that counts, a median: that of the fastest form in float; None where nothing was timed."""
        form = self.runtimes.get("float")
        return self.latency[form].median if form else None

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        times = {str(threads): _as_numbers(forms) for threads, forms in self.by_threads.items()}
        known = {key: value for key, value in asdict(self).items() if key != "by_threads"}
        more = {"latency_by_threads": times, "fastest": self.runtimes}
        return {**known, "latency": _as_numbers(self.latency), **more}


@dataclass
class Judgement:
    """What is known of the networks on one data set, or on all of them.

    Attributes:
        rows: of all networks, in the order of the command line.
        sample: their accuracies; None where there is no network.
        sentence: the verdict.
        pictures: title → a picture for the page.
        parts: name of a data set → what is known on that one; empty for a single data set.
    """

    rows: list[Compared]
    sample: Sample | None = None
    sentence: str = ""
    pictures: dict[str, Path] = field(default_factory=dict)
    parts: dict[str, Judgement] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        parts = {"data_sets": {name: part.as_dict() for name, part in self.parts.items()}} if self.parts else {}
        return {"verdict": self.sentence, "entries": [row.as_dict() for row in self.rows], **parts}


def _as_numbers(forms: Mapping[str, Latency]) -> dict[str, dict[str, float]]:
    return {form: {"median_ms": one.median, "minimum_ms": one.minimum} for form, one in forms.items()}


def verdict(sample: Sample, rows: Sequence[Compared]) -> str:
    """Return in a sentence or two which network is the best, or that the data cannot tell.

    Args:
        sample: the accuracies.
        rows: the networks.
    """
    if len(sample.scores) == 1:
        return f"Only {sample.best()} could be trained: there is nothing to compare it with."
    best, *others = sample.equals()
    where, of = ("this data", "") if sample.data_sets == 1 else (f"these {sample.data_sets} data sets", "mean ")
    text = f"{best} is the best on {where}: {of}mAP50-95 {shown(sample.accuracy(best))}."
    if not others:
        second = sample.ranked()[1]
        return f"{text} The next is {second}, {shown(sample.difference(best, second))} points behind."
    times = {row.name: row.milliseconds for row in rows if row.milliseconds is not None}
    timed = [name for name in (best, *others) if name in times]
    text = (
        f"The data cannot tell {', '.join(others)} from {best}, which has the highest {of}mAP50-95, "
        f"{shown(sample.accuracy(best))}: all differences between them are within their intervals."
    )
    if not timed:
        return text
    fast = min(timed, key=times.__getitem__)
    if all(times[name] < SAME_SPEED * times[fast] for name in timed):
        return f"{text} They are as fast as each other, {times[fast]:.1f} ms a picture."
    return f"{text} Of these {fast} is the fastest, {times[fast]:.1f} ms a picture."


def shown(estimate: Estimate) -> str:
    """Return an accuracy in percent with its interval."""
    return f"{100 * estimate.value:.1f} ± {100 * estimate.margin:.1f}"


def cells(rows: Sequence[Compared]) -> list[list[str]]:
    """Return the table as text: its head, and a line for each network, the best first."""
    timed = list(dict.fromkeys((n, form) for row in rows for n, forms in row.by_threads.items() for form in forms))
    others = list(dict.fromkeys(form for _, form in timed))[1:]
    several = len({n for n, _ in timed}) > 1
    times = [f"{form} ms, {n} thread{'s' * (n > 1)}" if several else f"{form} ms" for n, form in timed]
    head = ["", "mAP50-95", "behind", *(f"{form} mAP" for form in others), *times]
    head += ["fastest", "params M", "epochs", "minutes", ""]
    runtimes = {name.removesuffix(INT8) for _, name in timed}
    lines = [head]
    for row in sorted(rows, key=lambda row: -row.accuracy.value if row.accuracy else 1.0):
        mine = {(n, form): one.median for n, forms in row.by_threads.items() for form, one in forms.items()}
        lines.append(
            [
                row.name,
                shown(row.accuracy) if row.accuracy else "",
                shown(row.behind) if row.behind else "",
                *(f"{100 * row.maps[form]:.1f}" if form in row.maps else "" for form in others),
                *(f"{mine[key]:.1f}" if key in mine else "" for key in timed),
                " ".join(row.runtimes.values()) if len(runtimes) > 1 else "",
                f"{row.params / 1e6:.2f}" if row.params else "",
                str(row.epochs),
                f"{row.minutes:.1f}" if row.minutes is not None else "",
                row.problem,
            ]
        )
    kept = [i for i in range(len(head)) if any(line[i] for line in lines[1:])]
    return [[line[i] for i in kept] for line in lines]


def text_table(lines: Sequence[Sequence[str]]) -> str:
    """Return a table in columns."""
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in (0, len(wide)) else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, wide, strict=True))
        )
        for line in lines
    )


def draw(rows: Sequence[Compared], path: Path) -> None:
    """Draw accuracy with its intervals against latency; without latencies, side by side."""
    import matplotlib as mpl  # noqa: PLC0415 (slow)
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context({"text.parse_math": False}):
        names = {row.name: textwrap.fill(row.name, LEGEND) for row in rows if row.accuracy}
        lines = sum(1 + name.count("\n") for name in names.values())
        figure = Figure(figsize=(8, 5 + 0.2 * lines), layout="constrained")
        axes = figure.add_subplot()
        timed = all(row.milliseconds is not None for row in rows if row.accuracy)
        for number, (row, accuracy) in enumerate((row, row.accuracy) for row in rows if row.accuracy):
            x = number if row.milliseconds is None or not timed else row.milliseconds
            axes.errorbar(x, 100 * accuracy.value, 100 * accuracy.margin, fmt="o", capsize=4, label=names[row.name])
        if timed:
            known = [(row.milliseconds, row.accuracy) for row in rows]
            draw_frontier(axes, [(x, 100 * y.value) for x, y in known if x is not None and y])
            axes.set_xlim(left=0)
        axes.set_xlabel(f"median ms a picture, {counted(rows)}" if timed else "in the order of the command line")
        axes.set_ylabel("mAP50-95, 95 % interval")
        axes.set_ylim(bottom=max(0, axes.get_ylim()[0]))
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower left", fontsize="small")
        with replacing(path) as file:
            figure.savefig(file, dpi=130, format="png")


def counted(rows: Sequence[Compared]) -> str:
    """Return in words which latency counts."""
    forms = list(dict.fromkeys(form for row in rows for form in row.latency if not form.endswith(INT8)))
    threads = {n: None for row in rows for n in row.by_threads}
    text = forms[0] if len(forms) == 1 else f"the fastest of {', '.join(forms)}"
    return f"{text}, threads: {next(iter(threads))}" if len(threads) > 1 else text


def draw_frontier(axes: Any, points: Iterable[tuple[float, float]]) -> None:
    """Draw a dashed line through the points (ms, accuracy) that no other one beats in both."""
    best = frontier(points)
    axes.plot([x for x, _ in best], [y for _, y in best], "k--", alpha=0.4, drawstyle="steps-post", zorder=0)


def frontier(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points (ms, accuracy) that no other one beats in both, the fastest first."""
    ordered = sorted(points, key=lambda point: (point[0], -point[1]))
    best = itertools.accumulate((y for _, y in ordered), max)
    return [point for point, most in zip(ordered, best, strict=True) if point[1] == most]


def save(
    folder: Path,
    found: Judgement,
    about: Mapping[str, Any],
) -> None:
    """Write the JSON, the picture and a page that loads nothing from anywhere.

    Args:
        folder: where to.
        found: what is known of the networks.
        about: what was run, and with what.
    """
    draw(found.rows, folder / PICTURE)
    write_text(folder / DATA, json.dumps({"verdict": "", **about, **found.as_dict()}, indent=1))
    data = ", ".join(cli.as_list(about["data"]))
    parts = [
        f"<h1>Which backbone wins on {html.escape(data)}?</h1>",
        f"<p><b>{html.escape(found.sentence)}</b></p>",
        _image(folder / PICTURE),
        html_table(cells(found.rows)),
        "<p>Intervals are of 95 %, from the seeds and from draws of the val pictures. ‘behind’: the best one's "
        "accuracy less this one's, with the interval of the difference.</p>",
        *([] if found.parts else details(found)),
        *(line for name, part in found.parts.items() for line in section(name, part)),
        f"<h2>What was run</h2><pre>{html.escape(json.dumps(about, indent=1))}</pre>",
    ]
    write_text(folder / PAGE, html_page(folder.name, parts))


def section(name: str, found: Judgement) -> list[str]:
    """Return the part of the page on one of several data sets."""
    title, sentence = html.escape(name), html.escape(found.sentence)
    return [f"<h1>{title}</h1>", f"<p>{sentence}</p>", html_table(cells(found.rows)), *details(found)]


def details(found: Judgement) -> list[str]:
    """Return the parts of the page on classes, sizes and single pictures of a data set."""
    return [
        "<h2>AP50-95 of each class</h2>",
        html_table(part_cells({row.name: row.classes for row in found.rows})),
        "<h2>AP50-95 by size</h2>",
        html_table(part_cells({row.name: row.sizes for row in found.rows})),
        "<p>By COCO's rules: small objects have less than 32² pixels of the original picture, large ones more than "
        "96².</p>",
        *(f"<h2>{html.escape(title)}</h2>{_image(path)}" for title, path in found.pictures.items()),
    ]


def part_cells(parts: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return the accuracy of each network on each class or size as text, with a head.

    Args:
        parts: network → class or size → accuracy in [0, 1].
    """
    names = dict.fromkeys(name for mine in parts.values() for name in mine)
    known = {network: mine for network, mine in parts.items() if mine}
    lines = [[name, *(f"{100 * mine[name]:.1f}" if name in mine else "" for mine in known.values())] for name in names]
    return [["", *known], *lines]


def _image(path: Path) -> str:
    return html_image(path.read_bytes(), path.suffix.removeprefix(".").replace("jpg", "jpeg"))
