"""One attack, and what came of it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

SECRET = "must stay as it is"
Command = list[str]  # the name of a script, then its options


@dataclass(frozen=True)
class Place:
    """The folder that an attack takes place in.

    Attributes:
        folder: the current folder of the script.
        base: sound files, from `tests.attacks.base`.
    """

    folder: Path
    base: Path

    @property
    def marker(self) -> Path:
        """What a payload that is run makes."""
        return self.folder / "executed"

    @property
    def secret(self) -> Path:
        """A file outside of the folder, which must stay as it is."""
        return self.folder.parent / "outside/secret.txt"

    def write(self, name: str, content: str | bytes) -> str:
        """Write a file in the folder and return its name."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    def base_text(self, name: str) -> str:
        """Return the text of a sound file."""
        return (self.base / name).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Attack:
    """An attack.

    Attributes:
        kind: of file or words, a row of the table.
        name: what is tried.
        prepare: writes files into a place and returns the command.
    """

    kind: str
    name: str
    prepare: Callable[[Place], Command]


Attacks = Iterator[Attack]


class End(enum.Enum):
    """How a script ended."""

    REFUSED = "refused"  # exit code 2 and one sentence
    HARMLESS = "harmless"  # it did its work, the payload was data
    TRACEBACK = "traceback"  # or a signal, a crash
    HANG = "hang"


@dataclass(frozen=True)
class Outcome:
    """What came of an attack.

    Attributes:
        end: how the script ended.
        executed: the payload ran, or a file outside of the folder was changed.
        lookups: system calls that reach for another machine.
        output: what was printed.
    """

    end: End
    executed: bool
    lookups: tuple[str, ...]
    output: str

    @property
    def ok(self) -> bool:
        """Whether the attack came to nothing."""
        return self.end in (End.REFUSED, End.HARMLESS) and not self.executed and not self.lookups
