"""docs/development.md names files and functions: each of them exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/development.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`((?:models|utils)/[\w/]+\.py|\w+\.py)` `([\w.]+)`", PAGE)  # a file, then a name in it


def names_in(path):
    """Return the functions, classes, methods and constants of a file; methods as Class.method."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    names = {target.id for n in tree.body if isinstance(n, ast.Assign) for target in n.targets if hasattr(target, "id")}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_each_name_is_in_its_file(path, name):
    assert name in names_in(path)


@pytest.mark.parametrize("walk", ["a YAML becomes", "an image through", "weights become", "a label row becomes"])
def test_the_four_walks_are_there(walk):
    section = PAGE.split(f": {walk}", 1)[1].split("\n## ", 1)[0]
    steps = re.findall(r"^\d+\. .*$", section, flags=re.M)
    assert len(steps) >= 7
    assert all(re.search(r"`[\w/]+\.py` `", step) for step in steps), "each step names a file and a function"


def test_a_wrong_name_is_seen():
    assert "no_such_function" not in names_in("models/yolo.py")
    assert {"create_model", "DetectionModel", "DetectionModel.fuse"} <= names_in("models/yolo.py")
