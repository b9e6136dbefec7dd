"""Addresses as messages, logs and names of files may have them: without passwords and tokens."""

from __future__ import annotations

import logging
import re

# Windows' drives have one letter; a path has one slash of the two
ADDRESS = re.compile(r"([a-z][a-z0-9+.-]{1,20}:/+)(\S+)", re.IGNORECASE)
CLOSING = "'\",:)]"  # ends a sentence or a list, not an address
LOGIN = re.compile(r"[^/@]*:[^@]*@")  # in a path: of another address in it
PARAMETER = re.compile(r"(?:;|%(?:25)*3b|[^/;&,]*(?:=|%(?:25)*3d)).*", re.IGNORECASE)  # in a path, and all after it
BETWEEN = re.compile(r"[&;,#?/]|_(?=[a-z]+=)|%(?:25)*(?:26|3b)", re.IGNORECASE)  # parameters
SHOWN_PARAMETER = re.compile(r"(channel|subtype|stream|camera|profile)=\d{1,3}", re.IGNORECASE)  # tell cameras apart


def without_secrets(text: object) -> str:
    """Return `text` with its addresses as messages and files may have them.

    They lose the user and password before the host, and the parameters: what follows a `?`, `#` or `;`, or has a `=`,
    where tokens stand, but for numbers that tell the cameras of one recorder from another. So do addresses that were
    taken for paths, in which one slash follows the scheme.
    """
    whole = str(text)
    return ADDRESS.sub(_without_secrets, whole) if ":/" in whole else whole


def _without_secrets(found: re.Match[str]) -> str:
    scheme, address = found.groups()
    whole = address.rstrip(CLOSING)
    end = address[len(whole) :]
    place, rest = re.fullmatch(r"([^?#]*)[?#]?(.*)", whole).groups()  # type: ignore[union-attr]
    authority, slash, path = place.partition("/")
    if "@" not in authority and "@" in whole and re.search(r":(?!\d*$)", authority):  # a password with / ? or #
        place, rest = whole.rpartition("@")[2].partition("?")[::2]
        authority, slash, path = place.partition("/")
    path = LOGIN.sub("", path)
    if parameters := PARAMETER.search(path):
        path, rest = path[: parameters.start()].rstrip("&,"), f"{parameters[0]}&{rest}"
    shown = "&".join(p for p in BETWEEN.split(rest) if SHOWN_PARAMETER.fullmatch(p))
    return f"{scheme}{authority.rpartition('@')[2]}{slash}{path}{f'?{shown}' if shown else ''}{end}"


def hide_secrets(record: logging.LogRecord) -> bool:
    """Take the secrets out of a line of a log; a filter for loggers."""
    record.msg, record.args = without_secrets(record.getMessage()), None
    return True
