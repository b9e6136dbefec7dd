"""Modules of one's own: a Python file, named on the command line, that registers backbones under words of its own.

    @BACKBONES.register("MyNet")
    class MyNet(Backbone): ...

A YAML may say which files it needs (`plugins: [my_net.py]`), but only the person at the command line can have them run.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path

from models.errors import ConfigError, UserError
from models.files import why_no_file


class MissingPlugin(ConfigError):
    """A YAML needs a Python file that was not named on the command line."""


LOADED: dict[str, Path] = {}  # file name to the file that was run


def load_plugins(files: Iterable[str | Path]) -> None:
    """Run Python files that register backbones. A file that was run before is not run again.

    Raises:
        UserError: no such file, not a Python file, or another one of the same name was run.
    """
    for file in files:
        problem = why_no_file(file) or ("" if Path(file).suffix == ".py" else "is no file *.py")
        if problem:
            raise UserError(f"--plugins takes Python files, but {file} {problem}")
        path = Path(file).resolve()
        if path.name in LOADED and LOADED[path.name] != path:
            raise UserError(f"two plugins are named {path.name}: {LOADED[path.name]} and {path}")
        if path.name not in LOADED:
            _run(path)
            LOADED[path.name] = path


def check_plugins(wanted: Iterable[str], who: str) -> None:
    """Raise MissingPlugin unless every file that the YAML `who` wants was named on the command line."""
    missing = [name for name in wanted if Path(name).name not in LOADED]
    if missing:
        raise MissingPlugin(f"{who} needs code of its own, which runs only when you name it: --plugins {missing[0]}")


def _run(path: Path) -> None:
    """Run the file as the module that its name says, so that tracebacks and pickling of its classes work."""
    spec = importlib.util.spec_from_file_location(f"plugins.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be read as a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as e:  # nothing was run
        del sys.modules[spec.name]
        raise UserError(f"{e.filename or path}, line {e.lineno or 1} is not Python: {e.msg}") from e
    except BaseException:
        del sys.modules[spec.name]
        raise
