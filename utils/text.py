"""Texts for people: whatever a terminal or a message can show."""

from __future__ import annotations

import codecs
import os
import shlex
from collections.abc import Mapping

from models.errors import UserError
from models.secrets import without_secrets
from models.spec import MAX_CLASSES

MAX_NAME = 255  # characters of a class's name
JOINERS = "\u200c\u200d\ufe0e\ufe0f"  # without a look of their own; Persian, Hindi and others are written with them

MARKS = {  # that begin a text in another encoding than UTF-8; the longer ones first
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def decode(content: bytes, errors: str = "strict") -> str:
    """Return the text of a file that a user gave.

    Args:
        content: of the file; UTF-8, with or without a mark at its beginning.
        errors: what is done with bytes that are not UTF-8, as for `bytes.decode`.

    Raises:
        ValueError: it is text in another encoding; completes a sentence that begins with the file.
    """
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "")
    zeros = max(content[::2].count(0), content[1::2].count(0))  # half of the bytes of Latin text in UTF-16
    if not encoding and zeros > len(content) // 4:
        encoding = "UTF-16"
    if encoding:
        raise ValueError(f"is text in {encoding}: save it as UTF-8")
    try:
        return content.decode("utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"is not UTF-8 text: line {line} has the byte 0x{content[error.start]:02x}") from error


def printable(text: object) -> str:
    r"""Return `text` with line breaks, terminal codes and undecodable bytes as `\n`, `\x1b`, `\udcff`."""
    return "".join(c if c.isprintable() or c in JOINERS else c.encode("unicode_escape").decode() for c in str(text))


def class_names(names: object) -> dict[int, str]:
    """Return names of classes by number, as they can be shown, drawn and written everywhere.

    Characters that are not printable, such as line breaks and the halves of others that Unicode calls surrogates, are
    escaped.

    Args:
        names: from a file of a stranger: a list, or a mapping from 0, 1, … to names.

    Raises:
        UserError: they are something else, more than MAX_CLASSES, or longer than MAX_NAME.
    """
    numbered = dict(enumerate(names)) if isinstance(names, (list, tuple)) else names
    if not isinstance(numbered, Mapping) or not numbered:
        raise UserError("names of classes must be a list, or a mapping from 0, 1, … to names")
    if len(numbered) > MAX_CLASSES:
        raise UserError(f"there are names of {len(numbered):,} classes, more than {MAX_CLASSES:,}")
    try:
        found = {int(number): printable(name) for number, name in numbered.items()}
    except (ValueError, TypeError, OverflowError):  # also of numbers of thousands of digits
        found = {}
    if sorted(found) != list(range(len(numbered))):
        raise UserError(f"class names are not numbered from 0 to {len(numbered) - 1} without gaps")
    for number, name in found.items():
        if len(name) > MAX_NAME:
            raise UserError(f"class {number} has a name of {len(name):,} characters, more than {MAX_NAME}")
    return dict(sorted(found.items()))


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
    """Return `text` without secrets of addresses, with dots in its middle if it is longer than `most` characters."""
    whole = without_secrets(text)
    return whole if len(whole) <= most else f"{whole[: most // 2]}...{whole[-most // 2 :]}"
