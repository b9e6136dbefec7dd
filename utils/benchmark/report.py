"""What benchmark.py found: its rows, and their output: a table, remarks, JSON, CSV and a page.

The page is one HTML file that loads nothing from anywhere: benchmark.html beside this file with the table and the rows
as JSON put in. The script in it draws the plot; without scripts the table still says everything.
"""

from __future__ import annotations

import csv
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

ACCURACIES = ("map", "map50", "top1", "top5")  # of a row, as `utils.evaluate.accuracy.Accuracy` has them
TEMPLATE = Path(__file__).parent / "benchmark.html"


# Rows and what to show of them ----------------------------------------------------------------------------------------
@dataclass
class BenchmarkRow:
    """One model in one form; None is what was not measured, or does not exist in this form."""

    model: str
    form: str  # a key of utils.benchmark.forms.FORMS
    params: int | None = None
    gflops: float | None = None  # at the size of the benchmark
    median_ms: float | None = None
    minimum_ms: float | None = None
    ratio_to_unfused: float | None = None  # of the minima, of this model
    ratio_to_first: float | None = None  # of the minima, to the same form of the first model
    map: float | None = None  # mAP50-95 of the boxes, in percent
    map50: float | None = None
    top1: float | None = None  # of classifiers, in percent
    top5: float | None = None
    file_mb: float | None = None
    weights_mb: float | None = None  # parameters and buffers in memory
    peak_mb: float | None = None  # that a process of its own needs to run it
    note: str = ""  # why it was not measured


@dataclass(frozen=True)
class Column:
    """A number of the rows, as tables show it."""

    key: str
    title: str
    digits: int
    scale: float = 1.0  # from the number to what is shown


@dataclass(frozen=True)
class Axis:
    """What the plot shows from bottom to top."""

    key: str
    title: str
    unit: str
    digits: int
    better: str  # more or less
    note: str


COLUMNS = (
    Column("map", "mAP50-95", 1),
    Column("map50", "mAP50", 1),
    Column("top1", "top-1", 1),
    Column("top5", "top-5", 1),
    Column("minimum_ms", "min ms", 1),
    Column("median_ms", "median ms", 1),
    Column("ratio_to_unfused", "/unfused", 2),
    Column("ratio_to_first", "/first", 2),
    Column("params", "params M", 2, 1e-6),
    Column("gflops", "GFLOPs", 2),
    Column("file_mb", "file MB", 1),
    Column("weights_mb", "weights MB", 1),
    Column("peak_mb", "peak MB", 0),
)
DASHED = "The dashed line is the Pareto frontier: nothing here beats its points in both."
COMPARED = (  # forms: the slower one, the faster one
    ("eager", "fused"),
    ("onnx-unfused", "onnx"),
    ("onnx-published", "onnx"),
    ("openvino-published", "openvino"),
    ("eager", "onnx"),
    ("eager", "openvino"),
    ("onnx", "int8"),
    ("openvino", "openvino-int8"),
)
AXES = (  # the first one that there are numbers for is shown first
    Axis("map", "mAP50-95", "%", 1, "more", f"Up and to the left is better. {DASHED}"),
    Axis("map50", "mAP50", "%", 1, "more", f"Up and to the left is better. {DASHED}"),
    Axis("top1", "Top-1", "%", 1, "more", f"Up and to the left is better. {DASHED}"),
    Axis(
        *("work", "Work", "GFLOPs of the fused model", 1, "more"),
        "Without trained weights the operations of a model stand for what it can learn: up and to the left, more work "
        f"is done in less time. {DASHED}",
    ),
    Axis("size", "Parameters", "M", 2, "less", f"Down and to the left is better. {DASHED}"),
    Axis(
        *("peak_mb", "Peak memory", "MB", 0, "less"),
        f"What a process of its own needs to run the network. Down and to the left is better. {DASHED}",
    ),
    Axis("file_mb", "File size", "MB", 1, "less", f"Down and to the left is better. {DASHED}"),
)


def add_ratios(rows: Sequence[BenchmarkRow]) -> None:
    """Fill in the ratios of the minima: to the unfused network, and to the same form of the first model."""
    minima = {(row.model, row.form): row.minimum_ms for row in rows}
    for row in rows:
        if row.minimum_ms:
            for key, base in (
                ("unfused", minima.get((row.model, "eager"))),
                ("first", minima.get((rows[0].model, row.form))),
            ):
                if base:
                    setattr(row, f"ratio_to_{key}", round(row.minimum_ms / base, 4))


# As text --------------------------------------------------------------------------------------------------------------
def benchmark_table(rows: Sequence[BenchmarkRow], titles: Mapping[str, str], heading: str) -> str:
    """Return the rows as text under a heading, without the columns that are empty."""
    columns = _filled(rows)
    wide = max(len(row.model) for row in rows) + 2
    form = max(len(title) for title in titles.values()) + 2
    lines = [heading, f"{'model':<{wide}}{'form':<{form}}" + "".join(f"{c.title:>{_width(c)}}" for c in columns)]
    for row in rows:
        cells = row.note if row.note else "".join(f"{_number(row, c):>{_width(c)}}" for c in columns)
        lines.append(f"{row.model:<{wide}}{titles[row.form]:<{form}}{'  ' * bool(row.note)}{cells}".rstrip())
    return "\n".join(lines)


def remarks(rows: Sequence[BenchmarkRow], titles: Mapping[str, str]) -> str:
    """Return what fusing and exporting buy: a line for each pair of forms of each model."""
    measured = {(r.model, r.form): (r.minimum_ms, r.median_ms) for r in rows if r.minimum_ms and r.median_ms}
    lines = []
    for model in dict.fromkeys(row.model for row in rows):
        for slow, fast in COMPARED:
            if (model, slow) in measured and (model, fast) in measured:
                pairs = zip(measured[model, slow], measured[model, fast], strict=True)
                minima, medians = (before / after for before, after in pairs)
                lines.append(
                    f"{model}: {titles[fast]} is {minima:.2f} times as fast as {titles[slow]} ({medians:.2f} by the "
                    "medians)\n"
                )
    return "".join(lines)


def _filled(rows: Sequence[BenchmarkRow]) -> list[Column]:
    """Return the columns in which some row has a number."""
    return [column for column in COLUMNS if any(getattr(row, column.key) is not None for row in rows)]


def _width(column: Column) -> int:
    return max(8, len(column.title) + 2)


def _number(row: BenchmarkRow, column: Column) -> str:
    """Return a number of a row as it is shown, or nothing."""
    value = getattr(row, column.key)
    return "" if value is None else f"{value * column.scale:,.{column.digits}f}"


# As files -------------------------------------------------------------------------------------------------------------
def save(folder: Path, rows: Sequence[BenchmarkRow], titles: Mapping[str, str], about: Mapping[str, Any]) -> None:
    """Write benchmark.json, benchmark.csv and benchmark.html into `folder`.

    Args:
        titles: of the forms, by their keys.
        about: what was measured, where and with what: entries of the JSON beside its rows.
    """
    content = {**about, "forms": dict(titles), "rows": [asdict(row) for row in rows]}
    (folder / "benchmark.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with (folder / "benchmark.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(BenchmarkRow)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    (folder / "benchmark.html").write_text(page(rows, titles, about), encoding="utf-8")


def page(rows: Sequence[BenchmarkRow], titles: Mapping[str, str], about: Mapping[str, Any]) -> str:
    """Return the page as HTML; arguments as those of `save`."""
    parts = {
        "title": html.escape(_title(rows, about)),
        "subtitle": html.escape(_subtitle(about)),
        "table": _html_table(rows, titles),
        "footer": "\n".join(f"<p>{html.escape(line)}</p>" for line in _footer(about)),
        "data": _embed(_plot_data(rows, titles)),
    }
    return re.sub("@([a-z]+)@", lambda place: parts[place[1]], TEMPLATE.read_text(encoding="utf-8"))


def _title(rows: Sequence[BenchmarkRow], about: Mapping[str, Any]) -> str:
    count = len({row.model for row in rows})
    what = "backbone" if about["backbone"] else "detector"
    return f"RepYOLO benchmark: {count} {what}{'s' * (count > 1)}"


def _subtitle(about: Mapping[str, Any]) -> str:
    sides = list(about["imgsz"]) * (3 - len(about["imgsz"]))
    parts = [
        f"{sides[0]}×{sides[1]} pixels, one picture",
        f"{about['threads']} CPU threads",
        f"{about['rounds']} rounds",
    ]
    parts += [f"accuracy on {about['data']}"] if about["data"] else []
    return " · ".join([*parts, about["machine"]["processor"]])


def _footer(about: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return [
        "All forms ran in turns, so that the noise of the machine hits all alike; the ratios are those of the minima, "
        "/unfused to the same model in PyTorch before fusing, /first to the same form of the first model.",
        "Peak MB is the growth of the resident memory of a process of its own while it runs the network; weights MB "
        "are its parameters and buffers.",
        f"Made on {about['date']} with {versions}, {about['machine']['cores']} cores, {about['machine']['system']}.",
    ]


def _html_table(rows: Sequence[BenchmarkRow], titles: Mapping[str, str]) -> str:
    """Return the table, sortable by the page's script; the bars behind the latencies are shares of the longest."""
    columns = _filled(rows)
    longest = max((row.minimum_ms or 0 for row in rows), default=0) or 1
    head = [_header("model", "model", "text"), _header("form", "form", "text")]
    head += [_header(column.key, column.title) for column in columns]
    lines = ["<table>", "<thead><tr>", *head, "</tr></thead>", "<tbody>"]
    for index, row in enumerate(rows):
        cells = [f'<th scope="row">{html.escape(row.model)}</th>']
        cells.append(f'<td class="text">{html.escape(titles[row.form])}</td>')
        if row.note:
            cells.append(f'<td class="why" colspan="{len(columns)}">{html.escape(row.note)}</td>')
        else:
            cells += [_cell(row, column, longest) for column in columns]
        lines.append(f'<tr data-index="{index}">{"".join(cells)}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>"])


def _header(key: str, title: str, kind: str = "") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<th scope="col" data-key="{key}"{named}><button type="button">{html.escape(title)}</button></th>'


def _cell(row: BenchmarkRow, column: Column, longest: float) -> str:
    text = _number(row, column)
    if column.key == "minimum_ms" and row.minimum_ms is not None:
        return f'<td class="bar" style="--share: {100 * row.minimum_ms / longest:.1f}">{text}</td>'
    return f"<td>{text}</td>"


def _plot_data(rows: Sequence[BenchmarkRow], titles: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page's script needs."""
    work: dict[str, float] = {}
    for row in rows:
        if row.gflops is not None:
            work[row.model] = min(row.gflops, work.get(row.model, row.gflops))
    points = []
    for row in rows:
        size = None if row.params is None else row.params / 1e6
        points.append({**asdict(row), "work": work.get(row.model), "size": size})
    axes = [asdict(axis) for axis in AXES if any(point[axis.key] is not None for point in points)]
    present = {row.form for row in rows}
    forms = [{"key": key, "title": title} for key, title in titles.items() if key in present]
    return {"rows": points, "columns": [asdict(column) for column in _filled(rows)], "axes": axes, "forms": forms}


def _embed(content: Any) -> str:
    """Return JSON that may stand inside of a script element, whatever the texts in it say."""
    return json.dumps(content).replace("<", "\\u003c")
