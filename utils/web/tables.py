"""The tables of the page, as HTML: what was found, and how fast the network is."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence

from ultralytics.engine.results import Results


class Tally:
    """Counts what is found, over one picture or all frames of a video."""

    def __init__(self) -> None:
        self.frames = 0
        self.boxes: Counter[str] = Counter()
        self.most: Counter[str] = Counter()  # in one frame
        self.best: dict[str, float] = {}  # confidence

    def add(self, result: Results) -> None:
        """Count the boxes of one frame."""
        self.frames += 1
        names = [result.names[int(kind)] for kind in result.boxes.cls]
        for name, count in Counter(names).items():
            self.boxes[name] += count
            self.most[name] = max(self.most[name], count)
        for name, confidence in zip(names, result.boxes.conf, strict=True):
            self.best[name] = max(self.best.get(name, 0.0), float(confidence))

    def text(self) -> str:
        """Return a sentence without its full stop."""
        boxes = sum(self.boxes.values())
        found = f"{boxes} object{'s' * (boxes != 1)}" if self.frames == 1 else f"{boxes} boxes in {self.frames} frames"
        return f"{found or 'Nothing'} found"

    def table(self) -> str:
        """Return the counts as HTML, the most frequent class first."""
        is_video = self.frames > 1
        heads = ["Class", "Boxes in all frames", "Most in one frame"] if is_video else ["Class", "Count"]
        rows = []
        for name, count in self.boxes.most_common():
            numbers = [count, self.most[name]] if is_video else [count]
            rows.append([name, *map(str, numbers), f"{self.best[name]:.2f}"])
        return html_table("Objects", [*heads, "Highest confidence"], rows)


def speed_table(milliseconds: dict[str, float]) -> str:
    """Return latencies as HTML: a bar for each and how many times as fast as the first it is."""
    first, longest = next(iter(milliseconds.values())), max(milliseconds.values())
    rows = [
        [title, f"{time_ms:.1f} ms", f"{first / time_ms:.2f}×", f"share:{100 * time_ms / longest:.1f}"]
        for title, time_ms in milliseconds.items()
    ]
    return html_table("Speed of the network", ["Form", "Latency", "Speed", ""], rows)


def html_table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the first column names its row, `share:50` is a bar of half the width, the rest are numbers."""

    def cell(text: str) -> str:
        if text.startswith("share:"):
            return f'<td class="track"><span style="width: {float(text[6:]):.1f}%"></span></td>'
        return f'<td class="number">{html.escape(text)}</td>'

    head = "".join(
        f'<th scope="col"{" class=number" * (i > 0)}>{html.escape(text)}</th>' for i, text in enumerate(heads)
    )
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(map(cell, cells))}</tr>' for name, *cells in rows
    )
    return (
        f'<table class="plain"><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )
