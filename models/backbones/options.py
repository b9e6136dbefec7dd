"""What the options of backbones take, checked with one sentence each."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

from models.errors import UserError

STAGES = 4
MAX_BLOCKS = 100  # of a stage
MAX_CHANNELS = 8192  # of a stage
MAX_FACTOR = 16  # of channels by channels


def wholes(
    what: str, values: Any, default: Sequence[int], high: int, each: str = "one for each stage"
) -> tuple[int, ...]:
    """Return a whole number for each of four stages, `default` if `values` is None.

    Args:
        what: the option, for instance "RIFormer's layers".
        values: four whole numbers from 1 to `high`.
        default: what the option is if it is not given, and an example.
        high: the largest number.
        each: what they are, for the message.

    Raises:
        UserError: they are anything else.
    """
    if values is None:
        return tuple(default)
    if not are_four(values, int, high):
        raise UserError(
            f"{what} are {STAGES} whole numbers from 1 to {high}, {each}, such as {list(default)}, got {listed(values)}"
        )
    return tuple(values)


def factors(what: str, values: Any, default: Sequence[float], each: str = "one for each stage") -> tuple[float, ...]:
    """Return a positive number for each of four stages, `default` if `values` is None; arguments are those of `wholes`.

    Raises:
        UserError: they are anything else than four numbers above 0 to MAX_FACTOR.
    """
    if values is None:
        return tuple(default)
    if not are_four(values, int | float, MAX_FACTOR):
        raise UserError(
            f"{what} are {STAGES} numbers above 0 to {MAX_FACTOR}, {each}, such as {list(default)}, "
            f"got {listed(values)}"
        )
    return tuple(values)


def kernels(what: str, values: Any, default: Sequence[int], largest: int) -> tuple[int, ...]:
    """Return the sides of kernels, `default` if `values` is None.

    Raises:
        UserError: they are anything else than a list of different odd numbers from 1 to `largest`.
    """
    if values is None:
        return tuple(default)
    are_odd = isinstance(values, list | tuple) and all(type(k) is int and k % 2 and 0 < k <= largest for k in values)
    if not are_odd or len(set(values)) < len(values):
        raise UserError(
            f"{what} is a list of different odd numbers from 1 to {largest}, such as {list(default)}, "
            f"got {listed(values)}"
        )
    return tuple(values)


def whole(what: str, value: Any, low: int, high: int) -> int:
    """Return a whole number; UserError unless it is one from `low` to `high`."""
    if type(value) is not int or not low <= value <= high:
        raise UserError(f"{what} must be a whole number from {low} to {high}, got {listed(value)}")
    return value


def rate(what: str, value: Any) -> float:
    """Return a probability; UserError unless it is a number from 0 to below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise UserError(f"{what} must be a number from 0 to below 1, got {listed(value)}")
    return value


def flag(what: str, value: Any) -> bool:
    """Return a truth value; UserError for anything else."""
    if not isinstance(value, bool):
        raise UserError(f"{what} must be true or false, got {listed(value)}")
    return value


def are_four(values: Any, kind: Any, high: float) -> bool:
    """Return whether `values` are a number of a kind for each stage, above 0 and at most `high`."""
    return (
        isinstance(values, list | tuple)
        and len(values) == STAGES
        and all(isinstance(v, kind) and not isinstance(v, bool) and 0 < v <= high for v in values)
    )


def listed(values: Any) -> str:
    """Return a value in short, a tuple as the list that stands in the YAML."""
    return reprlib.repr(list(values) if isinstance(values, tuple) else values)
