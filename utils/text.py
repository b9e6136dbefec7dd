"""Texts for people: whatever a terminal or a message can show."""

from __future__ import annotations

import os
import re
import shlex

ADDRESS = re.compile(r"(?<=://)\S+?(?=['\",:)\]]*(?:\s|$))")  # what follows the scheme, without what ends a sentence
SHOWN_PARAMETER = re.compile(r"(channel|subtype|stream|camera|profile)=\d{1,3}", re.IGNORECASE)  # tell cameras apart


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


def without_secrets(text: object) -> str:
    """Return `text` with its addresses as messages and files may have them.

    They lose the user and password before the host and what follows a `?` or `#`, where tokens stand, but for numbers
    that tell the cameras of one recorder from another.
    """
    return ADDRESS.sub(_without_secrets, str(text))


def _without_secrets(found: re.Match[str]) -> str:
    place, rest = re.fullmatch(r"([^?#]*)[?#]?(.*)", found[0]).groups()  # type: ignore[union-attr]
    authority, slash, path = place.partition("/")
    if "@" not in authority and "@" in found[0] and re.search(r":(?!\d*$)", authority):  # a password with / ? or #
        return found[0].rpartition("@")[2].partition("?")[0]
    shown = "&".join(p for p in re.split("[&;#]", rest) if SHOWN_PARAMETER.fullmatch(p))
    return f"{authority.rpartition('@')[2]}{slash}{path}{f'?{shown}' if shown else ''}"
