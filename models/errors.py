"""The errors that a user can cause: one sentence for that user, which the scripts print before they exit with 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from models.secrets import without_secrets

MAX_CAUSE = 200  # characters of a message that is quoted


class UserError(ValueError):
    """What the user gave is wrong; the message says what was expected, what came and where, without secrets."""

    def __init__(self, *message: object) -> None:
        super().__init__(*map(without_secrets, message))


class ConfigError(UserError):
    """A model YAML is wrong; the message names the file, the row and its text, in one line whatever they hold."""

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()))


class WeightsError(UserError):
    """A weights file is missing, unreadable, or belongs to another network."""


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an error, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def cause(error: BaseException) -> str:
    """Return the type of an error and the first line of its message, as it is quoted where any error is expected.

    The message may quote a file of a stranger: what cannot be printed, such as terminal codes, is escaped.
    """
    kind = type(error).__name__
    said = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in first_line(error)[:MAX_CAUSE])
    return f"{kind}: {said}" if str(error).strip() else kind


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` (did you mean 'X'?)`` for the name nearest to `name`, whatever its case, or an empty string."""
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean '{by_lower[near[0]]}'?)" if near else ""
