"""Texts for people: whatever a terminal or a message can show."""

from __future__ import annotations


def printable(text: object) -> str:
    r"""Return `text` with line breaks, terminal codes and undecodable bytes as `\n`, `\x1b`, `\udcff`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shorten(text: object, most: int = 100) -> str:
    """Return `text` with dots in its middle if it is longer than `most` characters."""
    whole = str(text)
    return whole if len(whole) <= most else f"{whole[: most // 2]}...{whole[-most // 2 :]}"
