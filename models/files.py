"""Which paths are files of data, and may be opened."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

KERNEL = ("/proc", "/sys")  # whose files are made when they are read, and may be waited for
KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}  # of no file


def why_no_file(path: str | Path) -> str:
    """Return why a path cannot be read as a file of data, such as "does not exist", or nothing where it can.

    Pipes, devices and what the kernel makes up would be waited for, or have no end; so they are never opened.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (of any text)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return "is a link to what does not exist" if os.path.islink(path) else "does not exist"  # noqa: PTH114
        loops = error.errno == errno.ELOOP
        return "is a link that leads to itself" if loops else f"cannot be read: {error.strerror}"
    except ValueError:  # a null byte
        return "does not exist"
    if not stat.S_ISREG(mode):
        return f"is not a file but a {KINDS.get(stat.S_IFMT(mode), 'socket')}"
    if is_of_kernel(path):
        return "is not a file of data but one of the system"
    return ""


def why_no_folder(path: str | Path) -> str:
    """Return what a path is instead of a folder, such as "is a file", or nothing where it is one."""
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (of any text)
    except (OSError, ValueError):
        return why_no_file(path)
    if stat.S_ISDIR(mode):
        return ""
    return "is a file" if stat.S_ISREG(mode) else f"is a {KINDS.get(stat.S_IFMT(mode), 'socket')}"


def is_of_kernel(path: str | Path) -> bool:
    """Return whether a file or folder is one that the kernel makes up, links followed."""
    real = os.path.realpath(path)
    return any(real == folder or real.startswith(f"{folder}/") for folder in KERNEL)
