"""The processes that `--device 0,1` stands for, as torchrun starts them; and what a start again after a failure finds.

Each of them runs the same script with the same options, so that plugins and all else reach it.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch
from ultralytics.utils import LOGGER

from models.environment import restored_environment
from utils.distributed.group import STARTS, STORE, is_shared
from utils.paths import ROOT
from utils.writing import write_text

NAME = "launch.txt"  # in the folder of a run: which launch it belongs to


def wants_several(device: str) -> bool:
    """Return whether `--device` asks for processes that are not there yet."""
    return "," in device and not is_shared()


def launch(script: str, words: Sequence[str], device: str, max_restarts: int = 0) -> None:
    """Run a script of this repository in one process for each device.

    Args:
        script: its name.
        words: of its command line.
        device: names of devices with commas between.
        max_restarts: how often all processes are started again after one has failed.

    Raises:
        SystemExit: a process failed, which has said why unless it was killed.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes say what happens
    with tempfile.TemporaryDirectory() as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=len(device.split(",")),
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint=str(Path(folder) / "launch"),
            rdzv_configs={"store_type": "file"},
            local_addr="localhost",
            logs_specs=DefaultLogsSpecs(log_dir=folder),  # torch leaves its own in the folder of the system
            max_restarts=max_restarts,
            signals_to_handle="SIGQUIT",  # Ctrl-C and SIGTERM are handled by the script
        )
        try:
            with on_this_machine(Path(folder) / "group"):
                elastic_launch(config, sys.executable)(str(ROOT / script), *words)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                name = signal.Signals(-failure.exitcode).name
                LOGGER.error(f"process {rank} was ended by {name}, and the others with it")
            raise SystemExit(failure.exitcode if failure.exitcode > 0 else 1) from error


@contextmanager
def on_this_machine(store: Path) -> Iterator[None]:
    """Have this process and those that it starts find each other by a file, and ask no server for names.

    torch's own store, on a port of this machine, asks for the name of each address that connects to it.

    Args:
        store: the beginning of the path of that file.
    """
    find = socket.getfqdn
    with restored_environment():
        os.environ[STORE] = str(store)
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        loopback = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
        if loopback:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
        socket.getfqdn = lambda name="": name or socket.gethostname()  # torch notes it with every event
        try:
            yield
        finally:
            socket.getfqdn = find


def launch_name() -> str:
    """Return what all starts of one launch have in common; empty where torchrun has not started this process."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return f"{platform.node()} {os.getppid()}" if name == "none" else name  # the process that starts and watches


def mark_run(folder: Path) -> None:
    """Note in the folder of a run which launch it belongs to."""
    if name := launch_name():
        write_text(folder / NAME, name)


def started_run(project: Path) -> Path | None:
    """Return the folder of the run that an earlier start of this launch has made; None at the first start."""
    if STARTS == 0:
        return None
    marks = sorted(project.glob(f"*/{NAME}"), key=lambda path: path.stat().st_mtime)
    own = [path.parent for path in marks if path.read_text(encoding="utf-8") == launch_name()]
    return own[-1] if own else None
