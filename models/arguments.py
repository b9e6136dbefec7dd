"""The arguments of a row: checked against the signature of its word, and activations read from text."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import nn

from models.errors import ConfigError, did_you_mean, first_line
from models.spec import parse_call

Positive = Annotated[int, 1]  # a whole number from 1
Natural = Annotated[int, 0]  # a whole number from 0
Kernels = tuple[Positive, ...]  # sides of windows, one or more
Act = bool | str  # the default activation or none, or the text of another one
MAX_ARGUMENT = 100_000
ACTIVATION_NAMES = "SiLU ReLU ReLU6 LeakyReLU PReLU ELU CELU SELU GELU Mish Hardswish Hardsigmoid Sigmoid Tanh Identity"
ACTIVATIONS = {name: getattr(nn, name) for name in ACTIVATION_NAMES.split()}
OTHER_NAMES = {"Swish": nn.SiLU, "MemoryEfficientSwish": nn.SiLU, "MemoryEfficientMish": nn.Mish}  # YOLOv7's
ACTIVATIONS |= OTHER_NAMES
WORDS_OF_TYPES = {
    bool: "true or false",
    str: "text",
    float: "a positive number",
    int: "a whole number",
    type(None): "None",
}


def activation(text: str) -> nn.Module:
    """Return the activation that `text` means, for instance `nn.LeakyReLU(0.1)`.

    Raises:
        ConfigError: not the name of an activation, or not its arguments.
    """
    try:
        call = parse_call(text)
        if call.name not in ACTIVATIONS:
            raise ValueError(f"unknown activation '{call.name}'{did_you_mean(call.name, ACTIVATIONS)}")
        build = functools.partial(ACTIVATIONS[call.name], *call.args, **dict(call.kwargs))
        with torch.device("meta"):
            build()(torch.zeros(1, 1))  # some arguments show only here that they are none
        return build()
    except (TypeError, ValueError, RuntimeError, OverflowError) as e:
        raise ConfigError(f"activation {text}: {first_line(e)}") from e


def bind(word: str, function: Callable[..., Any], args: Sequence[Any]) -> dict[str, Any]:
    """Return `args` by the names of the parameters that follow `site` in `function`, checked against their types.

    A trailing mapping gives keyword arguments.

    Raises:
        ConfigError: too many, missing, unknown or of another type; the message quotes the whole signature.
    """
    parameters = list(inspect.signature(function).parameters.values())[1:]
    signature = inspect.Signature(parameters)
    args = list(args)
    keywords = args.pop() if args and isinstance(args[-1], dict) else {}
    quote = (
        f"{word} takes ({', '.join(p.name if p.default is p.empty else f'{p.name}={p.default}' for p in parameters)})"
    )
    try:
        bound = signature.bind(*args, **keywords)
    except TypeError as e:
        raise ConfigError(f"{quote}: {e}") from e
    hints = _hints(function)
    for name, value in bound.arguments.items():
        if not _accepts(hints[name], value):
            raise ConfigError(f"{quote}: {name} must be {_describe(hints[name])}, got {value!r}")
    return dict(bound.arguments)


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(function, include_extras=True)


def _accepts(hint: Any, value: Any) -> bool:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        (low,) = hint.__metadata__
        return _accepts(int, value) and low <= value <= MAX_ARGUMENT
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(part, value) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) > 0 and _all_accepted(parts, value)
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MAX_ARGUMENT
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _all_accepted(parts: Sequence[Any], values: Sequence[Any]) -> bool:
    """Return whether `values` are what tuple[*parts] holds; tuple[X, ...] holds any number of X."""
    parts = [parts[0]] * len(values) if parts[-1] is ... else parts
    return len(parts) == len(values) and all(map(_accepts, parts, values))


def _describe(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return f"a whole number from {hint.__metadata__[0]} to {MAX_ARGUMENT}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(part) for part in parts)
    if origin is tuple:
        many = "" if parts[-1] is ... else f" of {len(parts)}"
        return f"a list{many}, each {_describe(parts[0])}"
    return WORDS_OF_TYPES[hint]
