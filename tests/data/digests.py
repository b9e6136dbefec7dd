"""Hashes over the files of a folder."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(root: Path, pattern: str) -> str:
    """Return a hash over names and contents of the files in a folder, and in the folders in it."""
    files = sorted(path for path in root.rglob(pattern) if path.is_file())
    parts = [path.relative_to(root).as_posix().encode() + path.read_bytes() for path in files]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
