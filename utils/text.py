"""Texts for people: whatever a terminal or a message can show."""

from __future__ import annotations

import os
import shlex


def printable(text: object) -> str:
    r"""Return `text` with line breaks, terminal codes and undecodable bytes as `\n`, `\x1b`, `\udcff`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def quote(path: object) -> str:
    """Return a path as a word of a command that can be pasted into a shell, in one line."""
    whole = str(path)
    if whole.isprintable():
        return shlex.quote(whole)
    escaped = (
        c if c.isprintable() and c not in "'\\" else "".join(f"\\x{b:02x}" for b in os.fsencode(c)) for c in whole
    )
    return f"$'{''.join(escaped)}'"


def shorten(text: object, most: int = 100) -> str:
    """Return `text` with dots in its middle if it is longer than `most` characters."""
    whole = str(text)
    return whole if len(whole) <= most else f"{whole[: most // 2]}...{whole[-most // 2 :]}"
