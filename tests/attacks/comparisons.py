"""Attacks by the folder of a comparison that is resumed: its plan, its results, and what else lies in it."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.attacks.attack import Attack, Attacks, Command, Place
from tests.attacks.base import COMPARISON
from tests.attacks.media import ADDRESS, LINKS
from tests.attacks.payloads import archive, expressions, pickles
from tests.attacks.weights import Writer, save_program
from tests.attacks.yamls import HERE
from utils.comparison.plan import kind_of, named

JOB = "jobs/a-0"  # of the two, the other one is b-0
RESULT, FOUND, WEIGHTS, TIMES = (
    f"{JOB}/{name}" for name in ("result.json", "found.npz", "train/weights", "train/results.csv")
)
RESUME: Command = ["compare", "--resume", COMPARISON, "--rounds", "1", "--device", "cpu"]
ONE: Command = ["compare", "--resume", COMPARISON, "--only", "a-0"]
Change = Callable[[Place, Path], object]  # what is done to the copy of a finished comparison
TEXTS: dict[str, bytes] = {
    "nothing": b"",
    "a list": b"[]",
    "a number": b"7",
    "half of a mapping": b'{"options": {',
    "deep brackets": b"[" * 200_000,
    "deep mappings": b'{"a":' * 200_000,
    "a giant number": b"9" * 100_000,
    "no UTF-8": b"\xff\xfe{}",
    "null bytes": bytes(999),
    "20 MB": b'"' + b"x" * 20_000_000 + b'"',
    "a pickle": pickles(HERE)["os.system"],
}


def attack(kind: str, name: str, change: Change, command: Command = RESUME) -> Attack:
    """Return an attack by a finished comparison in which something was changed."""

    def prepare(place: Place) -> Command:
        folder = place.folder / COMPARISON
        shutil.copytree(place.base / COMPARISON, folder)
        place.write("evil.py", f"open({str(place.marker)!r}, 'w')")
        change(place, folder)
        return command

    return Attack(kind, name, prepare)


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change the content of a JSON file in place."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def replace(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else into the place of a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    make(path)


# Plans ----------------------------------------------------------------------------------------------------------------
OPTIONS: dict[str, Callable[[Place], dict[str, Any]]] = {
    **{
        f"code as {key}": lambda place, key=key: {key: expressions(place.marker)["eval"]}
        for key in "data hyp runtime cfg imgsz batch_size seeds budget_minutes int8 epochs".split()
    },
    **{f"a secret as {key}": lambda place, key=key: {key: str(place.secret)} for key in ("data", "hyp")},
    **{f"endless zeros as {key}": lambda _, key=key: {key: "/dev/zero"} for key in ("data", "hyp")},
    **{f"{seeds} seeds": lambda _, seeds=seeds: {"seeds": seeds} for seeds in (10**9, -1, 1e308, "x", [[]], {})},
    **{
        f"{value!r} as {key}": lambda _, key=key, value=value: {key: value}
        for key, values in {
            "data": ([], [7, 7], ["a.yaml", "a.yaml"], ["a.yaml", "b.yaml"], {"a": 1}),
            "runtime": (["onnx", "onnx"], ["onnx", "--plugins=evil.py"], [], [["onnx"]], {"onnx": 1}, "../onnx"),
            "time_imgsz": (10**9, -1, "x", [64, 64], {}, 1e308),
        }.items()
        for value in values
    },
    "an address as data": lambda _: {"data": f"{ADDRESS}.yaml"},
    "a lone surrogate as data": lambda _: {"data": "\ud800"},
    "null bytes as data": lambda _: {"data": "a\0b"},
    "a plugin": lambda _: {"plugins": ["evil.py"]},
    "a plugin among entries": lambda _: {"cfg": ["a", "--plugins", "evil.py"]},
    "a plugin as data": lambda _: {"data": "--plugins=evil.py"},
    "consent to downloads": lambda _: {"download": True},
    "another folder": lambda _: {"project": "../outside", "name": ""},
    "an unknown option": lambda _: {"--plugins": "evil.py"},
}
ENTRIES: dict[str, Callable[[Place], Any]] = {
    **{
        f"the name {name!r}": lambda _, name=name: [{"name": name}]
        for name in ("../../outside/x", "/", "..", "", "a b")
    },
    **{f"{name} as a name": lambda _, name=name: [{"name": name}] for name in (None, 7, [], {})},
    "a shell as a name": lambda place: [{"name": expressions(place.marker)["a shell"]}],
    "a lone surrogate as a name": lambda _: [{"name": "\ud800"}],
    "a long name": lambda _: [{"name": "a" * 100_000}],
    "an escape as a name": lambda _: [{"name": "\x1b[2J"}],
    "one name twice": lambda _: [{}, {}],
    "no entries": lambda _: [],
    "numbers as entries": lambda _: [1, 2],
    "a mapping of entries": lambda _: {"a": 1},
    **{
        f"{name} as the trainer": lambda _, trainer=trainer: [{"trainer": trainer}]
        for name, trainer in {"another": "os.system", "a list": ["ultralytics"], "nothing": None}.items()
    },
    **{
        f"{model!r} as the model of ultralytics": lambda _, model=model: [{"trainer": "ultralytics", "model": model}]
        for model in ("../../yolo11n", "--plugins=evil.py", f"{ADDRESS}.yaml", "yolo99n", "", None, "a\0b")
    },
    "ultralytics' trainer without a model": lambda _: [{"trainer": "ultralytics"}],
    "ultralytics' trainer of files of another": lambda _: [
        {"trainer": "ultralytics", "model": "yolo11n"},
        {"name": "b"},
    ],
    **{
        f"{' '.join(map(str, options))!r} as options": lambda _, options=options: [{"options": options}]
        for options in (
            ["--plugins", "evil.py"],
            ["--plugins=evil.py"],
            ["--logger", "wandb"],
            ["--download"],
            ["--help"],
            ["--project=../../outside"],
            ["--resume=../../outside/secret.txt"],
            ["--cfg=evil.yaml"],
            ["evil.py"],
            ["--weights=/dev/zero"],
            [f"--teacher={ADDRESS}.pt"],
            ["--hyp=../../outside/secret.txt"],
            [7],
            {"a": 1},
        )
    },
    "a secret as a file of options": lambda p: [{"options": ["--cos-lr"], "files": {str(p.secret): "0" * 64}}],
    "a device as a file of options": lambda _: [{"options": ["--cos-lr"], "files": {"/dev/zero": "0" * 64}}],
    "a list as files of options": lambda _: [{"options": ["--cos-lr"], "files": ["/dev/zero"]}],
    "no network": lambda _: [{"cfg": {}}],
    "a list as a network": lambda _: [{"cfg": [[1, 2]]}],
    "a deep network": lambda _: [{"cfg": {"nc": 2, "head": deep(500)}}],
    "a classifier": lambda _: [{"cfg": {"nc": 2, "backbone": [], "head": [[-1, 1, "Classify", ["nc"]]]}}],
    "an unknown key of a network": lambda place: [{"cfg": {"run": expressions(place.marker)["eval"]}}],
}
EPOCHS = {"none": {}, "no number": {"a": float("nan"), "b": 1}, "a giant": {"a": 10**30, "b": 1}, "a list": [1, 1]}
EPOCHS |= {"a text": {"a": "1", "b": 1}, "less than one": {"a": 0, "b": -1}}


def deep(levels: int) -> list[Any]:
    """Return lists in each other."""
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


def plans() -> Attacks:
    """Yield attacks by the plan of a comparison."""

    def attack_plan(name: str, change: Callable[[Place, Any], object]) -> Attack:
        return attack(kind, name, lambda p, folder: edit(folder / "plan.json", lambda plan: change(p, plan)))

    kind = "plan of a comparison"
    for name, text in TEXTS.items():
        yield attack(kind, name, lambda _, folder, t=text: (folder / "plan.json").write_bytes(t))
    for name, option in OPTIONS.items():
        yield attack_plan(name, lambda p, plan, o=option: plan["options"].update(o(p)))
    for name, entries in ENTRIES.items():
        yield attack_plan(name, lambda p, plan, e=entries: with_entries(plan, e(p)))
    for name, epochs in EPOCHS.items():
        yield attack_plan(f"epochs: {name}", lambda _, plan, e=epochs: plan.update(epochs=e))
    for evil in ("/dev/zero", f"{ADDRESS}.yaml", "--plugins=evil.py", "../../outside/secret.txt"):
        yield attack_plan(f"{evil!r} as another data set", lambda _, plan, e=evil: with_data(plan, e))
    for name in ("../a-0", "", "a-1", "--plugins=evil.py", "\x1b[2J"):
        yield attack(kind, f"the training {name!r}", lambda _, __: None, [*ONE[:-2], f"--only={name}"])


def with_entries(plan: dict[str, Any], changed: Any) -> None:
    """Put other entries into a plan; what they lack is that of the first."""
    first = plan["entries"][0]
    plan["entries"] = changed
    if isinstance(changed, list):
        plan["entries"] = [{**first, **entry} if isinstance(entry, dict) else entry for entry in changed]
        names = [entry["name"] for entry in plan["entries"] if isinstance(entry, dict)]
        plan["epochs"] |= dict.fromkeys((name for name in names if isinstance(name, str)), 1)


def with_data(plan: dict[str, Any], other: str) -> None:
    """Put another data set beside that of a plan."""
    files = [plan["options"]["data"], other]
    plan["options"]["data"] = files
    plan["epochs"] |= {kind_of(name, data): 1 for name in ("a", "b") for data in named(files)}


# Results --------------------------------------------------------------------------------------------------------------
VALUES: dict[str, Any] = {"nothing": None, "no number": float("nan"), "a negative number": -1, "a giant": 10**30}
VALUES |= {"a list": [[]], "a mapping": {"onnx": {}}, "code": expressions(HERE)["eval"]}
FILES = {"a pickle": pickles(HERE)["os.system"], "nothing": b"", "noise": b"\x08" * 99}
CSVS = {"noise": b"\xff" * 99, "no times": b"epoch\n1\n", "code": b"time\n__import__('os')\n", "nothing": b""}


def results() -> Attacks:
    """Yield attacks by what a comparison has found."""
    kind = "result of a comparison"
    for name, text in TEXTS.items():
        yield attack(kind, name, lambda _, folder, t=text: (folder / RESULT).write_bytes(t))
    for key in ("minutes", "params", "maps", "sizes", "input"):
        for name, value in VALUES.items():
            yield attack_result(kind, f"{name} as {key}", {key: value})
    yield attack_result(kind, "a list as problem", {"problem": ["a"]})
    yield attack(kind, "a program in the place of the file to time", program_to_time)
    yield attack_result(kind, "a giant picture", {"input": [3, 10**9, 10**9]})
    yield attack_result(kind, "another picture", {"input": [3, 32, 96]})
    yield attack(kind, "a program elsewhere as the file", program_elsewhere)
    yield attack(kind, "a program in the place of the file", program)
    for name, content in FILES.items():
        yield attack(kind, f"{name} as the file", lambda _, f, c=content: (f / WEIGHTS / "best.onnx").write_bytes(c))
    for name, change in FOUND_CHANGES.items():
        yield attack(kind, f"found.npz: {name}", lambda p, folder, c=change: c(p, folder / FOUND))
    for name, content in CSVS.items():
        yield attack(kind, f"results.csv: {name}", lambda _, f, c=content: (f / TIMES).write_bytes(c), ONE)
    yield attack(kind, "results.csv: a pipe", lambda _, folder: replace(folder / TIMES, os.mkfifo), ONE)


def attack_result(kind: str, name: str, values: dict[str, Any]) -> Attack:
    """Return an attack by a result with other values."""
    return attack(kind, name, lambda _, folder: edit(folder / RESULT, lambda result: result.update(values)))


def program_elsewhere(place: Place, folder: Path) -> None:
    """Have the result name a program as the file that is timed."""
    save_program(Writer(), place.folder / "evil.torchscript")
    edit(folder / RESULT, lambda result: result.update(files={"onnx": str(place.folder / "evil.torchscript")}))


def program(_: Place, folder: Path) -> None:
    """Have the comparison be one of TorchScript files, and put a foreign one into the place of each of them."""
    edit(folder / "plan.json", lambda plan: plan["options"].update(runtime="torchscript"))
    for job in folder.glob("jobs/*"):
        edit(job / "result.json", lambda result: result.update(maps={"torchscript": 0.5}))
        save_program(Writer(), job / "train/weights/best.torchscript")


def program_to_time(_: Place, folder: Path) -> None:
    """Have files of TorchScript be timed at a size of their own, and put a foreign one into the place of each."""
    program(_, folder)
    edit(folder / "plan.json", lambda plan: plan["options"].update(time_imgsz=96))
    for job in folder.glob("jobs/*"):
        (job / "timed").mkdir()
        save_program(Writer(), job / "timed/best.torchscript")


# Detections -----------------------------------------------------------------------------------------------------------
def with_arrays(path: Path, **arrays: Any) -> None:
    """Exchange arrays in a file of detections."""
    with np.load(path) as file:
        old = dict(file)
    np.savez(path, **{**old, **arrays})


def with_file(path: Path, name: str, content: bytes) -> None:
    """Put a file of any content in the place of an array."""
    with zipfile.ZipFile(path) as old:
        files = {entry: old.read(entry) for entry in old.namelist()}
    with zipfile.ZipFile(path, "w") as new:
        for entry, kept in {**files, f"{name}.npy": content}.items():
            new.writestr(entry, kept)


def npy(kind: str, shape: tuple[int, ...], content: bytes) -> bytes:
    """Return a file of an array, which may say anything of itself."""
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def zipped_zeros(count: int) -> bytes:
    """Return an archive of zeros, compressed, as the array of scores."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("conf.npy", npy("<f8", (count // 8,), bytes(count)))
    return buffer.getvalue()


PICTURES = ("/dev/zero", "rtsp://192.0.2.1/x", f"{ADDRESS}.jpg", "../../outside/secret.txt", "missing.jpg", "")
FOUND_CHANGES: dict[str, Change] = {
    "code in an array": lambda p, path: with_file(path, "conf", npy("|O", (1,), pickles(p.marker)["os.system"])),
    "a pickle in an array": lambda p, path: with_file(path, "conf", pickles(p.marker)["builtins.eval"]),
    "a pickle": lambda p, path: path.write_bytes(pickles(p.marker)["os.system"]),
    "a checkpoint": lambda p, path: path.write_bytes(archive(pickles(p.marker)["os.system"])),
    "a giant array": lambda _, path: with_file(path, "conf", npy("<f8", (2**50,), b"")),
    "a large array": lambda _, path: with_file(path, "tp", npy("|b1", (2**33, 10), b"")),
    "a negative shape": lambda _, path: with_file(path, "conf", npy("<f8", (-1,), b"")),
    "a bomb": lambda _, path: path.write_bytes(zipped_zeros(2**27)),
    "half of it": lambda _, path: path.write_bytes(path.read_bytes()[:-99]),
    "nothing": lambda _, path: path.write_bytes(b""),
    "no arrays": lambda _, path: np.savez(path),
    "texts as scores": lambda _, path: with_arrays(path, conf=np.array(["a"])),
    "no numbers": lambda _, path: with_arrays(path, conf=np.full(3, np.nan)),
    "other pictures": lambda _, path: with_arrays(path, true_picture=np.array([10**9]), true_cls=np.array([0])),
    "other classes": lambda _, path: with_arrays(path, true_picture=np.array([0]), true_cls=np.array([9])),
    "negative classes": lambda _, path: with_arrays(path, true_picture=np.array([0]), true_cls=np.array([-1])),
    "no pictures": lambda _, path: with_arrays(path, names=np.array([], dtype=str)),
    **{f"the picture {name!r}": lambda _, path, n=name: with_arrays(path, names=np.array([n, n])) for name in PICTURES},
}


# Links ----------------------------------------------------------------------------------------------------------------
def links() -> Attacks:
    """Yield attacks by pipes, devices and links in the place of what a comparison reads and writes."""
    kind = "pipe, device or link"
    pages = ("compare.html", "compare.json", "compare.png", "disagreement.jpg")
    for file in ("plan.json", RESULT, FOUND, f"{WEIGHTS}/best.onnx", *pages, "jobs"):
        for name in ("a pipe", "endless zeros", "a secret", "itself"):
            yield attack(kind, f"{name} as {file}", linked(file, name))
    for file in (FOUND, RESULT):
        yield attack(kind, f"a secret as {file} to write", linked(file, "a secret"), ONE)


def linked(file: str, name: str) -> Change:
    """Return what puts a pipe, a device or a link into the place of a file of a comparison."""
    return lambda place, folder: replace(folder / file, lambda path: LINKS[name](path, place))


def comparison_attacks() -> Attacks:
    """Yield all of this file."""
    for make in (plans, results, links):
        yield from make()
