"""Quiet surroundings: no network, no installing at run time, no files outside a private folder.

ultralytics reads its switches when it is imported, so this module is imported before it, by `models` and by every
script, and depends on nothing but the standard library. Before all else it has stops end a script that still imports,
versions of libraries checked, Python look for garbage less often than libraries make objects, and memory kept.
What the switches do and which calls they silence:
- `YOLO_OFFLINE`: no look-ups, no update check, no usage statistics;
- `YOLO_AUTOINSTALL`: never runs pip;
- `ULTRALYTICS_SAFE_LOAD`: its loader reads tensors and known classes only, and its YAML reader has no `eval`;
- `YOLO_CONFIG_DIR`: its settings, in a folder of our own;
- `ORT_DISABLE_TELEMETRY`: ONNX Runtime neither reports to its makers nor keeps a number for this machine;
- `OPENCV_FFMPEG_LOGLEVEL`: OpenCV is silent about videos, what is wrong with a file is said by us;
- `REPORTERS`: modules of OpenVINO and MNN that report to their makers, MNN's after installing what it needs for that
  with pip; where they cannot be imported, nothing is reported or installed.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.secrets import hide_secrets
from models.stops import end_at_stops, is_main_script
from models.versions import check_versions

THREADS = os.environ.get("OMP_NUM_THREADS", "")  # the user's wish; ultralytics sets it to 1 where there is none
M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1  # of glibc's mallopt
REPORTERS = ("openvino_telemetry", "MNN.tools.utils.log")


def cpu_cores() -> int:
    """Return how many threads to compute on: what OMP_NUM_THREADS says, or a thread per core that we may use."""
    if THREADS.isdecimal() and int(THREADS):
        return int(THREADS)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Return the name of the CPU, of a board without one that of the board, as Linux reports it, else Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Return the folder of what is kept for this user between runs; it may not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "repyolo"


def config_dir() -> Path:
    """Return a writable folder for ultralytics' settings: the user's cache, or a private temporary one."""
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError:
        return Path(tempfile.mkdtemp(prefix="repyolo-"))


def prepare_environment() -> None:
    """Set the switches. A host program that imported ultralytics first keeps its own choice, with a warning."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    for name in REPORTERS:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # None: cannot be imported
    if "ultralytics" in sys.modules:
        print("WARNING ⚠️ ultralytics was imported before RepYOLO: its network use stays as it was", file=sys.stderr)
        return
    os.environ.update(YOLO_OFFLINE="1", YOLO_AUTOINSTALL="false", ULTRALYTICS_SAFE_LOAD="1")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if "YOLO_CONFIG_DIR" not in os.environ:
        os.environ["YOLO_CONFIG_DIR"] = str(config_dir())


@contextmanager
def restored_environment() -> Iterator[None]:
    """Put all variables of the environment back at the end; until then processes that are started get the new ones."""
    former = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


def patch_ultralytics(
    *,
    open_backend: Callable[..., Any] | None = None,
    own_device: Any = None,
    check_amp: Callable[..., bool] | None = None,
    save_yaml: Callable[..., None] | None = None,
    annotator: type | None = None,
    check_font: Callable[..., str] | None = None,
    check_cls_dataset: Callable[..., dict[str, Any]] | None = None,
    add_callbacks: Callable[[Any], None] | None = None,
) -> None:
    """Replace parts of ultralytics by ours. This is the one place that does; whoever has a part to give calls it.

    - `PIL.Image.open` is always given back: ultralytics' version tries to install a package for every file that it
      cannot read.
    - `TryExcept` lets a stop through: ultralytics' version, around its plots, takes Ctrl-C for a plot that failed.
    - Its log, which is ours as well, hides the secrets of addresses.

    Args:
        open_backend: takes the place of AutoBackend in its validator, which would open weights a second time, and our
            exports without their bytes, thresholds and precision (`utils.deploy.backends`).
        own_device: takes the place of the CUDA module, which its validator asks for the device of a process among
            several; that may as well be the CPU (`utils.deploy.backends`).
        check_amp: takes the place of its check of mixed precision, which downloads a network and compares boxes of
            that; ours compares the outputs of the network that is going to be trained (`utils.train.trainer`).
        save_yaml: takes the place of its writer of args.yaml, which writes over the old file (`utils.train.trainer`).
        annotator: takes the place of its Annotator, whose one font lacks most scripts (`utils.drawing.annotator`).
        check_font: takes the place of its search for Arial, which downloads it (`utils.drawing.annotator`).
        check_cls_dataset: takes the place of its reader of class folders, which downloads and splits them; ours are
            described by a data.yaml as all data sets are (`utils.evaluate.validator`).
        add_callbacks: takes the place of what adds callbacks of every service whose package is installed, MLflow, Comet
            and ClearML among them; ours adds those that the user has named (`utils.train.loggers`).
    """
    from PIL import Image  # noqa: PLC0415 (this module is imported before any library)
    from ultralytics.utils import LOGGER, TryExcept, patches  # noqa: PLC0415

    Image.open = patches._image_open
    TryExcept.__exit__ = _leave_try_except
    LOGGER.addFilter(hide_secrets)
    if open_backend:
        from ultralytics.engine import validator  # noqa: PLC0415

        validator.AutoBackend = open_backend
        validator.get_torch_device_backend = lambda _: own_device
    if check_cls_dataset:
        from ultralytics.engine import validator  # noqa: PLC0415

        validator.check_cls_dataset = check_cls_dataset
    if check_amp or save_yaml:
        from ultralytics.engine import trainer  # noqa: PLC0415

        trainer.check_amp = check_amp or trainer.check_amp
        if save_yaml:
            trainer.YAML = type("YAML", (trainer.YAML,), {"save": staticmethod(save_yaml)})
    if add_callbacks:
        from ultralytics.utils import callbacks  # noqa: PLC0415

        callbacks.add_integration_callbacks = add_callbacks
    if annotator and check_font:
        from ultralytics.data import utils as data  # noqa: PLC0415
        from ultralytics.engine import results  # noqa: PLC0415
        from ultralytics.utils import plotting  # noqa: PLC0415

        results.Annotator = plotting.Annotator = annotator
        data.check_font = plotting.check_font = check_font


def _leave_try_except(self: Any, _: object, error: BaseException | None, __: object) -> bool:
    """Warn of an exception that ultralytics' `TryExcept` catches; others, such as Ctrl-C, are not for it."""
    if not isinstance(error, Exception):
        return False
    if self.verbose:
        from ultralytics.utils import LOGGER  # noqa: PLC0415

        LOGGER.warning(f"{self.msg}: {error}" if self.msg else str(error))
    return True


def collect_less() -> None:
    """Look for garbage less often from now on, and not at all at the end of the process.

    Libraries are a million objects of which none is garbage. To look through them again and again takes a sixth of the
    time of their import, and most of a second when the process ends, as its memory goes back to the system in any case.
    """
    gc.set_threshold(50_000, 20, 100)
    atexit.register(gc.freeze)


def keep_freed_memory() -> None:
    """Have glibc keep the memory of large tensors that are freed for the next ones, as torch does on a GPU.

    Else it gives blocks of more than 32 MiB back at once, and the system fills new ones with zeros, page by page: an
    eighth of the time of a training at 640 pixels on a CPU. The user's own settings of malloc, by variables, and other
    libraries of C are left as they are.
    """
    is_set = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not is_set else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 2**31 - 1)
        mallopt(M_TRIM_THRESHOLD, -1)  # never


def prepare_memory() -> None:
    """Have a script of ours manage its memory for large networks; other programs keep their ways."""
    if is_main_script():
        collect_less()
        keep_freed_memory()


end_at_stops()
check_versions()
prepare_memory()
prepare_environment()
