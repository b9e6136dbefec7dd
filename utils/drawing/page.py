"""Pages that load nothing from anywhere: tables and pictures in one HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em }
table { border-collapse: collapse; display: block; margin: 1em 0; overflow-x: auto }
td, th { padding: .3em .8em; text-align: right }
tr:nth-child(even) { background: #f3f4f6 } td:first-child, th:first-child { text-align: left } img { max-width: 100% }
pre { white-space: pre-wrap } figure { display: inline-block; margin: .5em; vertical-align: top }
figcaption { font-size: 12px; width: 0; min-width: 100%; overflow-wrap: anywhere }"""


def html_page(title: str, parts: Iterable[str]) -> str:
    """Return a page.

    Args:
        title: as text.
        parts: of its body, as HTML.
    """
    head = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return head + "\n".join(parts)


def html_table(lines: Sequence[Sequence[str]]) -> str:
    """Return a table of texts, whose first line is its head."""
    rows = [
        "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in line) + "</tr>"
        for tag, line in zip(("th", *("td" for _ in lines[1:])), lines, strict=True)
    ]
    return f"<table>{''.join(rows)}</table>"


def html_image(content: bytes, kind: str) -> str:
    """Return a picture that stands in the page itself.

    Args:
        content: of its file.
        kind: png or jpeg.
    """
    return f'<img src="data:image/{kind};base64,{base64.b64encode(content).decode()}" alt="">'
