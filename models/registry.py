"""Named things: a dictionary whose entries are added by decorator and whose misses say what was probably meant.

An entry may be made when it is first asked for, where that imports a library that most runs do not need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from models.errors import UserError, did_you_mean

T = TypeVar("T")


class UnknownName(UserError, KeyError):
    """A name that is in no registry."""

    __str__ = Exception.__str__  # KeyError would print the sentence in quotes


@dataclass(frozen=True)
class Lazy(Generic[T]):
    """An entry that `load` returns when it is first asked for."""

    load: Callable[[], T]


class Registry(Mapping[str, T], Generic[T]):
    """Names to things of one kind. Its names, their number and `in` load no lazy entry; `[]`, `get`, `items` do.

    >>> WORDS = Registry[type]("module")
    >>> @WORDS.register("Conv")
    ... class Conv: ...
    >>> WORDS["Cnov"]
    Traceback (most recent call last):
    models.registry.UnknownName: unknown module 'Cnov' (did you mean 'Conv'?)
    """

    def __init__(self, kind: str, base: type | None = None) -> None:
        self.kind, self.base = kind, base  # every entry is a class that derives from `base`, if that is given
        self._entries: dict[str, T | Lazy[T]] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        """Return a decorator that enters what it decorates under each of `names`.

        Raises:
            UserError: a name is taken, which would make a YAML mean two things, or the entry is no such class.
        """

        def enter(entry: T) -> T:
            for name in names:
                self._check_free(name)
                self._check_kind(name, entry)
                self._entries[name] = entry
            return entry

        return enter

    def register_lazy(self, name: str, load: Callable[[], T]) -> None:
        """Enter under `name` what `load` returns, which is called when the entry is first asked for.

        Raises:
            UserError: the name is taken. That the entry is no such class shows when it is loaded.
        """
        self._check_free(name)
        self._entries[name] = Lazy(load)

    def _check_free(self, name: str) -> None:
        if name in self._entries:
            raise UserError(f"{self.kind} '{name}' is registered twice")

    def _check_kind(self, name: str, entry: T) -> None:
        if self.base and not (isinstance(entry, type) and issubclass(entry, self.base)):
            raise UserError(f"{self.kind} '{name}' must be a class that derives from {self.base.__name__}")

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise UnknownName(f"unknown {self.kind} '{name}'{did_you_mean(name, self._entries)}")
        entry = self._entries[name]
        if isinstance(entry, Lazy):
            loaded: T = entry.load()
            self._check_kind(name, loaded)
            self._entries[name] = entry = loaded
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
