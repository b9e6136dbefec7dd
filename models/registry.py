"""Named things: a dictionary whose entries are added by decorator and whose misses say what was probably meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

from models.errors import UserError, did_you_mean

T = TypeVar("T")


class UnknownName(UserError, KeyError):
    """A name that is in no registry."""

    __str__ = Exception.__str__  # KeyError would print the sentence in quotes


class Registry(Mapping[str, T], Generic[T]):
    """Names to things of one kind.

    >>> WORDS = Registry[type]("module")
    >>> @WORDS.register("Conv")
    ... class Conv: ...
    >>> WORDS["Cnov"]
    Traceback (most recent call last):
    models.registry.UnknownName: unknown module 'Cnov' (did you mean 'Conv'?)
    """

    def __init__(self, kind: str, base: type | None = None) -> None:
        self.kind, self.base = kind, base  # every entry is a class that derives from `base`, if that is given
        self._entries: dict[str, T] = {}

    def register(self, *names: str) -> Callable[[T], T]:
        """Return a decorator that enters what it decorates under each of `names`.

        Raises:
            UserError: a name is taken, which would make a YAML mean two things, or the entry is no such class.
        """

        def enter(entry: T) -> T:
            for name in names:
                if name in self._entries:
                    raise UserError(f"{self.kind} '{name}' is registered twice")
                if self.base and not (isinstance(entry, type) and issubclass(entry, self.base)):
                    raise UserError(f"{self.kind} '{name}' must be a class that derives from {self.base.__name__}")
                self._entries[name] = entry
            return entry

        return enter

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise UnknownName(f"unknown {self.kind} '{name}'{did_you_mean(name, self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
