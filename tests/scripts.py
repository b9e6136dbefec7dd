"""Scripts in processes of their own, as users start them, but forked from one that has the large libraries already.

Most of what a short script does is to import torch. A process for each process of pytest imports LIBRARIES once, at the
first start, and forks for every script, which then imports all others, ultralytics and our own modules among them, with
the environment, the folder and the options that the test gives. What is forked becomes a child of the process of
pytest: it has a number, an exit code, signals and pipes as any other process has.

What this cannot see, so that it needs a process that is started anew (`subprocess`): what LIBRARIES read from the
environment while they are imported, in which order they are imported, that one of them is missing, how long a start
takes, and what the interpreter reads at its start. Scripts whose variables of that kind (`FIXED`) are others than those
of pytest are started anew here as well, as all are where a system cannot fork.
"""

from __future__ import annotations

import array
import atexit
import ctypes
import gc
import importlib
import io
import json
import os
import re
import runpy
import socket
import struct
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

# torchvision, timm and onnx are not among them: ours and ultralytics' code asks whether they have been imported
LIBRARIES = (
    "numpy PIL.Image cv2 yaml psutil torch torch._dynamo torch.utils.data torch.distributed.launcher.api".split()
)
FIXED = re.compile("(?!PYTHONPATH$)(PYTHON|OMP_|GOMP_|KMP_|MKL_|OPENBLAS_|LD_|LC_|LANG)")  # variables read at a start
PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl
LENGTH = struct.Struct("!I")  # of a message
SERVERS: dict[int, Server] = {}  # of the process with this number


# In the process of the tests ------------------------------------------------------------------------------------------
def start(words: Sequence[object], **options: Any) -> subprocess.Popen[Any]:
    """Start Python in a process of its own, as `subprocess.Popen` does.

    Args:
        words: behind the name of the interpreter: the path of a script, `-m` and a module, or `-c` and code; options.
        options: those of Popen; `preexec_fn` has the process started anew.
    """
    command = [sys.executable, *map(str, words)]
    can_fork = sys.platform == "linux" and "preexec_fn" not in options
    if not can_fork or fixed(options.get("env") or os.environ) != server().fixed:
        return subprocess.Popen(command, **options)
    return Forked(command, **options)


def run(words: Sequence[object], timeout: float | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run Python until its end and return its exit code and what it has printed, as text.

    Raises:
        subprocess.TimeoutExpired: it took more seconds than `timeout`, and is killed.
    """
    with start(words, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}) as process:
        try:
            printed = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, *printed)


def fixed(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that only the start of a process reads."""
    return {name: value for name, value in environment.items() if FIXED.match(name)}


def server() -> Server:
    """Return the server of this process, which is started if there is none."""
    if os.getpid() not in SERVERS:
        SERVERS[os.getpid()] = Server()
        atexit.register(SERVERS[os.getpid()].close)
    return SERVERS[os.getpid()]


class Server:
    """The process that forks, as seen from that of the tests, with which it ends."""

    def __init__(self) -> None:
        self.fixed = fixed(os.environ)
        self.connection, other = socket.socketpair()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [sys.executable, __file__, str(other.fileno())]
        self.process = subprocess.Popen(
            command, pass_fds=[other.fileno()], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        other.close()

    def fork(self, request: dict[str, Any], files: Sequence[int]) -> int:
        """Return the number of a new process, which is a child of this one.

        Args:
            request: what `become` takes.
            files: for its standard input, output and errors.
        """
        message = json.dumps(request).encode()
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            socket.send_fds(self.connection, [LENGTH.pack(len(message))], files)
            self.connection.sendall(message)
            return LENGTH.unpack(receive(self.connection, LENGTH.size))[0]
        finally:
            prctl(PR_SET_CHILD_SUBREAPER, 0)

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.wait()


class Forked(subprocess.Popen):
    """A process that the server has forked; everything but its start is as Popen has it."""

    def _execute_child(self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, *others):
        """Start it; the arguments are those of the method that this replaces."""
        pipes, session = others[3:9], others[14]
        files = [number if pipe == -1 else pipe for number, pipe in enumerate((pipes[0], pipes[3], pipes[5]))]
        request = {
            "words": [os.fspath(word) for word in args],
            "folder": os.fspath(Path.cwd() if cwd is None else cwd),
            "environment": dict(os.environ if env is None else env),
            "session": bool(session),
        }
        self.pid = server().fork(request, files)
        self._child_created = True
        self._close_pipe_fds(*pipes)


def prctl(option: int, value: int) -> None:
    """Set a property of this process."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


# In both --------------------------------------------------------------------------------------------------------------
def receive(connection: socket.socket, length: int) -> bytes:
    """Return so many bytes.

    Raises:
        EOFError: the other process has ended.
    """
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise EOFError
        data += part
    return data


# In the server --------------------------------------------------------------------------------------------------------
def serve(connection: socket.socket) -> dict[str, Any]:
    """Fork for every request; return what is requested in each new process, whose standard files are in place.

    Raises:
        EOFError: the process of the tests has ended.
    """
    while True:
        length, ancillary, _, _ = connection.recvmsg(LENGTH.size, socket.CMSG_SPACE(12))
        if not length:
            raise EOFError
        files = array.array("i", ancillary[0][2])
        request = json.loads(receive(connection, LENGTH.unpack(length)[0]))
        inside, outside = socket.socketpair()
        between = os.fork()
        if not between:
            if child := os.fork():
                inside.send(LENGTH.pack(child))
                os._exit(0)  # so that the process of the tests becomes the parent
            for number, file in enumerate(files):
                os.dup2(file, number)
            for file in files:
                os.close(file)
            outside.close()
            connection.close()
            with inside:
                receive(inside, 1)
            return request
        os.waitpid(between, 0)
        inside.close()
        with outside:
            connection.sendall(receive(outside, LENGTH.size))
            outside.send(b"!")
        for file in files:
            os.close(file)


def become(words: list[str], folder: str, environment: dict[str, str], session: bool) -> None:
    """Make this process one that has just been started.

    Args:
        words: the command line, with the interpreter.
        folder: the current one.
        environment: all variables.
        session: whether it is the first process of a session and a group of its own.
    """
    if session:
        os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.orig_argv = words
    first = "" if words[1] == "-c" else folder if words[1] == "-m" else os.path.dirname(os.path.realpath(words[1]))  # noqa: PTH120
    more = [os.path.abspath(path) for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]  # noqa: PTH100
    sys.path[:] = [first, *more, *sys.path[1:]]
    importlib.invalidate_caches()
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = open_stream(number, getattr(sys, name))
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def open_stream(number: int, like: TextIO) -> TextIO:
    """Return the standard input, output or errors as the interpreter opens them at its start."""
    plain = number != 0 and bool(os.environ.get("PYTHONUNBUFFERED"))
    binary = open(number, "wb" if number else "rb", 0 if plain else -1, closefd=False)  # noqa: SIM115 (until the end)
    lines = number == 2 or os.isatty(number)
    return io.TextIOWrapper(binary, like.encoding, like.errors, line_buffering=lines, write_through=plain)


def execute(words: list[str]) -> None:
    """Run what a command line says, with the interpreter as its first word."""
    kind, *rest = words[1:]
    if kind == "-m":
        sys.argv = ["-m", *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        module = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), module.__dict__)
    else:
        sys.argv = [kind, *rest]
        runpy.run_path(kind, run_name="__main__")


def main(number: int) -> None:
    """Import the libraries and fork until the process of the tests ends; in each new process, run a script.

    Raises:
        RuntimeError: a library has started a thread, which no process that is forked would have.
    """
    for name in LIBRARIES:
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208 (names of threads)
        raise RuntimeError("a library has started threads")
    gc.collect()
    gc.freeze()
    try:
        request = serve(socket.socket(fileno=number))
    except (EOFError, KeyboardInterrupt):
        return
    become(**request)
    execute(request["words"])


if __name__ == "__main__":
    main(int(sys.argv[1]))
