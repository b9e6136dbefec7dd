"""The versions of libraries that are installed, compared with requirements-compatible.txt before any is imported."""

from __future__ import annotations

import importlib.metadata
import operator
import os
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
RANGES = REPOSITORY / "requirements-compatible.txt"
SCRIPTS = ("train", "val", "detect", "export", "benchmark", "compare")
INSTEAD = {  # of a package: others that bring the same module
    "opencv-python": ("opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless"),
    "onnxruntime": ("onnxruntime-gpu",),
}
COMPARE = {"==": operator.eq, ">=": operator.ge, "<": operator.lt}


def read_ranges(text: str) -> dict[str, str]:
    """Return the range of each package, such as ">=2.8,<3", of a requirements file."""
    return dict(re.findall(r"^([\w-]+)([=<>][^\s;#]*)", text, flags=re.MULTILINE))


def is_within(version: str, limits: str) -> bool:
    """Return whether a version is within a range; builds such as 2.14.1+cu130 or 2.8.0a0 count as their release."""
    for comparison, limit in re.findall(r"(==|>=|<)([\d.]+)", limits):
        number, bound = _release(version), _release(limit)
        length = max(len(number), len(bound))
        if not COMPARE[comparison](*(part + (0,) * (length - len(part)) for part in (number, bound))):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def installed_version(package: str) -> tuple[str, str] | None:
    """Return the name and the version of a package, or of what brings the same module; None where there is none."""
    for name in (package, *INSTEAD.get(package, ())):
        try:
            return name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_versions(file: Path = RANGES) -> None:
    """Print one sentence about packages that are outside of the ranges of a requirements file.

    Raises:
        SystemExit: one that is exact is another, and a script of ours is run; its exit code is 2.
        ImportError: so it is, in another program.
    """
    strange: list[str] = []
    other: list[str] = []
    ranges = read_ranges(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for package, limits in ranges.items():
        found = installed_version(package)
        if found and not is_within(found[1], limits):
            (other if limits.startswith("==") else strange).append(f"{found[0]} {found[1]} ({limits})")
    if other:
        problem = f"RepYOLO does not run with {', '.join(other)}: pip install -r {file.name}"
        if not is_script():
            raise ImportError(problem)
        print(f"ERROR: {problem}", file=sys.stderr)
        raise SystemExit(2)
    if strange:
        print(f"WARNING ⚠️ not tested with {', '.join(strange)}: see {file.name}", file=sys.stderr)


def is_script() -> bool:
    """Return whether one of our scripts is run, or a module of ours is about to be (`python -m utils.…`)."""
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    if program == "-m":
        modules = [word.removeprefix("-m").replace(".", "/") for word in sys.orig_argv if "." in word]
        files = (REPOSITORY / f"{name}{end}" for name in modules for end in (".py", "/__main__.py"))
        return any(map(os.path.isfile, files))
    path = Path(program)
    return path.stem in SCRIPTS and path.is_file() and path.resolve().parent == REPOSITORY
