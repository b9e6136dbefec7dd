"""How the test files share what they share. Read from the source, nothing is run."""

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
FILES = sorted(FOLDER.rglob("*.py"))
SHARED = {path.stem for path in FILES if not path.name.startswith(("test_", "__"))}
each_file = pytest.mark.parametrize("file", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())


def wrong_imports(text):
    """Return the modules that a test file imports and should not.

    Other test files, whose fixtures belong into conftest.py and whose functions into a helper module; and helper
    modules by another name than tests.x, under which they would be loaded a second time.
    """
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {
        name
        for name in names
        if name.startswith(".") or name.split(".")[0] in SHARED or any(p.startswith("test_") for p in name.split("."))
    }


def test_there_is_something_to_check():
    assert {"helpers", "conftest"} <= SHARED and len(FILES) > 50


@each_file
def test_what_is_shared_is_imported_by_one_name_from_helper_modules(file):
    assert not wrong_imports(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("from tests.helpers import tiny", True),
        ("import tests.helpers\nimport helpful", True),
        ("from helpers import tiny", False),
        ("import helpers", False),
        ("from tests.test_export import command", False),
        ("from tests import test_export", False),
        ("from test_export import command", False),
        ("def f():\n    import test_export", False),
        ("from .helpers import tiny", False),
        ("from . import helpers", False),
    ],
)
def test_the_check_can_fail(text, allowed):
    assert (not wrong_imports(text)) is allowed
