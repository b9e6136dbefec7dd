"""YAML as people write it: `1e-3` is a number, as in YAML 1.2; PyYAML reads YAML 1.1, where it is a text."""

from __future__ import annotations

import re
from typing import IO, Any

import yaml

EXPONENT = re.compile(r"[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values, with numbers whose exponent has no sign or no decimal point before it."""


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+0123456789"))


def load_yaml(text: str | bytes | IO[Any]) -> Any:
    """Return the values that a YAML text holds: mappings, lists, texts, numbers, booleans, dates and None.

    Raises:
        yaml.YAMLError: the text is no YAML, or asks for an object of Python's.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()
