"""YAML as people write it, where PyYAML reads YAML 1.1 and takes the last of two values.

`1e-3` is a number, as in YAML 1.2. `1:30` is a text rather than 90, and so is `010` rather than 8. A key that stands
twice in a mapping is an error, and so are aliases of aliases that stand for more values than any file holds, and whole
numbers of more than 64 bits, which neither torch nor a float takes.
"""

from __future__ import annotations

import re
from typing import IO, Any, ClassVar

import yaml

MAX_CHARACTERS = 100  # of a whole number: one of 64 bits, written in any way
MAX_VALUES = 1_000_000  # each alias counted as what it stands for; messages and copies have all of them
FLOAT, INTEGER = "tag:yaml.org,2002:float", "tag:yaml.org,2002:int"
NUMBERS = {
    FLOAT: re.compile(
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
    ),
    INTEGER: re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0b[01_]+|0x[0-9a-fA-F_]+)$"),
}


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values, with other numbers and without repeated keys."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {
        first: [(tag, form) for tag, form in forms if tag not in NUMBERS]
        for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        first: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if before := first.get((key.tag, key.value)):
                problem = f"the key '{key.value}' stands here again, after line {before.line + 1}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            first[key.tag, key.value] = key.start_mark
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        digits = len(node.value)
        value = 0 if digits > MAX_CHARACTERS else super().construct_yaml_int(node)
        if digits > MAX_CHARACTERS or not -(2**63) <= value < 2**63:
            problem = f"a whole number of {digits} digits, expected at most 64 bits"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        return value


for _tag, _form in NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, _form, list("-+.0123456789"))
_Loader.add_constructor(INTEGER, _Loader.construct_yaml_int)


def load_yaml(text: str | bytes | IO[Any]) -> Any:
    """Return the values that a YAML text holds: mappings, lists, texts, numbers, booleans, dates and None.

    Raises:
        yaml.YAMLError: the text is no YAML, asks for an object of Python's, has a key twice in one mapping, or holds
            more than MAX_VALUES values or a whole number of more than 64 bits.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_size(root: yaml.Node) -> None:
    """Raise YAMLError for a document whose aliases stand for too many values, or for themselves."""
    count, stack = 0, [root]
    while stack:
        node = stack.pop()
        count += 1
        if count > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"aliases stand for more than {MAX_VALUES:,} values")
        if isinstance(node, yaml.MappingNode):
            stack += (part for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            stack += node.value
