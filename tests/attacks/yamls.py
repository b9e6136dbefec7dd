"""Attacks by YAMLs: of models, data sets, hyperparameters and runs to resume."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.attacks.attack import Attack, Attacks, Command, Place
from tests.attacks.payloads import LAUGHS, archive, expressions, pickles, yaml_tags

SOME = Path("/attacked/in/executed")  # for the names of payloads only
HERE = Path("../in/executed")  # the marker, seen from the folder of any attack
TAGS, EXPRESSIONS = tuple(yaml_tags(SOME)), tuple(expressions(SOME))
BRIEF = ["--epochs", "1", "--imgsz", "64", "--batch-size", "2", "--device", "cpu"]  # any training
SHORT = [*BRIEF, "--noplots", "--workers", "0"]
BUILD: Command = ["models.yolo", "--cfg", "evil.yaml", "--imgsz", "64"]


def train_on(place: Place, data: str, *more: str) -> Command:
    """Return the command of a short training."""
    return ["train", "--cfg", str(place.base / "model.yaml"), "--data", data, *SHORT, *more]


def text_attack(kind: str, name: str, text: Callable[[Place], str | bytes], command: Command) -> Attack:
    """Return an attack by one YAML, evil.yaml."""

    def prepare(place: Place) -> Command:
        place.write("evil.yaml", text(place))
        return command

    return Attack(kind, name, prepare)


# Models ---------------------------------------------------------------------------------------------------------------
KEYS = "nc ch depth_multiple width_multiple activation anchors names end2end loss extra".split()
PLACES: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    **{key: (lambda cfg, value, key=key: cfg.update({key: value})) for key in KEYS},
    "from": lambda cfg, value: cfg["backbone"][0].__setitem__(0, value),
    "number": lambda cfg, value: cfg["backbone"][0].__setitem__(1, value),
    "module": lambda cfg, value: cfg["backbone"][0].__setitem__(2, value),
    "args": lambda cfg, value: cfg["backbone"][0].__setitem__(3, value),
    "an argument": lambda cfg, value: cfg["backbone"][0][3].__setitem__(0, value),
    "a keyword": lambda cfg, value: cfg["backbone"][0][3].append({"act": value}),
    "backbone": lambda cfg, value: cfg.update(backbone=value),
    "head": lambda cfg, value: cfg.update(head=value),
}
WORDS = [
    *(
        "os.system",
        "builtins.eval",
        "eval",
        "exec",
        "__import__",
        "open",
        "torch.load",
        "torch.hub.load",
        "pickle.loads",
    ),
    *("nn.Module.__init__", "nn.__builtins__", "nn.modules.os.system", "nn.Module.load_state_dict", "nn.os", "..x"),
    *("torch.nn.Conv2d.__init__.__globals__", "subprocess.Popen", "timm.create_model", "torchvision.io.read_file"),
    *("ultralytics.utils.downloads.safe_download", "models.plugins.load_plugins", "nn.Conv2d.__class__", "nn.Module"),
]
NUMBERS = [10**9, 10**18, -1, 0, 1e308, float("nan"), float("inf"), True, None, "1e999", [[]], {"a": {}}, "x" * 100_000]
DOWNLOADS = {
    "pretrained": ["resnet18", {"pretrained": True}],
    "an address": ["resnet18", {"pretrained_cfg": {"url": "http://192.0.2.1/evil.pth"}}],
    "an address and consent": [
        "resnet18",
        {"pretrained": True, "pretrained_cfg": {"url": "http://192.0.2.1/evil.pth"}},
    ],
    "a hub": ["hf-hub:stranger/evil"],
    "a hub's name": ["resnet18", {"pretrained_cfg": {"hf_hub_id": "stranger/evil"}}],
    "a file": ["resnet18", {"pretrained_cfg": {"file": "evil.pth"}}],
    "a checkpoint": ["resnet18", {"checkpoint_path": "evil.pth"}],
    "a cache": ["resnet18", {"cache_dir": "/tmp/elsewhere", "pretrained": True}],
    "a local folder": ["local-dir:."],
}


def model_yamls() -> Attacks:
    """Yield attacks by model YAMLs."""
    kind = "model YAML"
    for tag in TAGS:
        yield text_attack(kind, f"tag {tag}", lambda p, t=tag: f"nc: {yaml_tags(p.marker)[t]}\n", BUILD)
        yield text_attack(
            kind,
            f"tag {tag} in a row",
            lambda p, t=tag: f"backbone: [[-1, 1, Conv, [{yaml_tags(p.marker)[t]}]]]\nhead: []\n",
            BUILD,
        )
    for where in PLACES:
        for name in EXPRESSIONS[: 3 if where in ("nc", "module", "an argument") else 1]:
            yield _changed(f"{name} as {where}", where, lambda p, n=name: expressions(p.marker)[n])
        yield _changed(f"a number as {where}", where, lambda p, w=where: NUMBERS[list(PLACES).index(w) % len(NUMBERS)])
    for word in WORDS:
        yield _changed(f"the word {word}", "module", lambda p, w=word: w)
    for number in NUMBERS:
        yield _changed(f"{str(number)[:12]} channels", "an argument", lambda p, n=number: n)
    for name, args in DOWNLOADS.items():
        yield _changed(f"timm: {name}", "backbone", lambda p, a=args: _timm(p, a))
    for name, plugin in {"beside": "evil.py", "above": "../in/evil.py", "absolute": None}.items():

        def with_plugin(place: Place, plugin: str | None = plugin) -> str:
            place.write("evil.py", f"open({str(place.marker)!r}, 'w')")
            return f"plugins: [{plugin or place.folder / 'evil.py'}]\n{place.base_text('model.yaml')}"

        yield text_attack(kind, f"a plugin {name}", with_plugin, BUILD)
    bombs = {
        "nested aliases": LAUGHS,
        "an alias of itself": "backbone: &a [*a]\nhead: *a\n",
        "a merge of itself": "a: &a {<<: *a}\n",
        "deep brackets": "[" * 20_000,
        "deep braces": "backbone: " + "{a: " * 5_000,
        "100,000 rows": "backbone:\n" + "- [-1, 1, Conv, [8, 1, 1]]\n" * 100_000 + "head: []\n",
        "a long key": f"? {'k' * 1_000_000}\n: 1\n",
        "two documents": "nc: 1\n---\nnc: 2\n",
        "null bytes": "nc: 1\0\n",
        "a byte order mark": "\ufeffnc: 1\n",
        "nothing": "",
        "a number": "7\n",
        "a directive": "%YAML 9.9\n---\nnc: 1\n",
    }
    for name, text in bombs.items():
        yield text_attack(kind, name, lambda p, t=text: t, BUILD)


def _changed(name: str, where: str, value: Callable[[Place], Any]) -> Attack:
    """Return an attack by the sound model YAML with one value in another's place."""

    def text(place: Place) -> str:
        cfg = copy.deepcopy(yaml.safe_load(place.base_text("model.yaml")))
        PLACES[where](cfg, value(place))
        return yaml.safe_dump(cfg)

    return text_attack("model YAML", name, text, BUILD)


def _timm(place: Place, args: list[Any]) -> list[Any]:
    place.write("evil.pth", archive(pickles(place.marker)["os.system"]))
    return [[-1, 1, "timm", args]]


# Data sets, hyperparameters -------------------------------------------------------------------------------------------
def data_yamls() -> Attacks:
    """Yield attacks by data set YAMLs."""
    kind = "data set YAML"

    def attack(name: str, change: Callable[[Place], dict[str, Any] | str]) -> Attack:
        def prepare(place: Place) -> Command:
            changed = change(place)
            sound = yaml.safe_load(place.base_text("data.yaml"))
            text = changed if isinstance(changed, str) else yaml.safe_dump({**sound, **changed})
            place.write("evil.yaml", text)
            return train_on(place, "evil.yaml")

        return Attack(kind, name, prepare)

    for tag in TAGS:
        yield attack(f"tag {tag}", lambda p, t=tag: f"{p.base_text('data.yaml')}\ndownload: {yaml_tags(p.marker)[t]}\n")
    for name in EXPRESSIONS:
        yield attack(f"{name} as download", lambda p, n=name: {"download": expressions(p.marker)[n]})
        yield attack(f"{name} as a class", lambda p, n=name: {"names": ["a", expressions(p.marker)[n]]})
    for key in ("path", "train", "nc", "names"):
        for name in EXPRESSIONS[:2]:
            yield attack(f"{name} as {key}", lambda p, n=name, k=key: {k: expressions(p.marker)[n]})
    addresses = {
        "an address": "http://192.0.2.1/set.zip",
        "a file's address": "file:///etc",
        "a bucket": "gs://stranger/evil",
        "the kernel": "/proc/self/environ",
        "endless zeros": "/dev/zero",
        "the terminal": "/dev/tty",
        "the whole disk": "/proc",
        "ultralytics' hub": "ul://stranger/evil",
    }
    for name, address in addresses.items():
        yield attack(f"{name} as train", lambda p, a=address: {"train": a})
        yield attack(f"{name} as download", lambda p, a=address: {"download": a, "path": "missing"})
    for name, script in {"a script": "bash evil.sh", "Python": "import os; os.mknod('executed')"}.items():
        yield attack(f"{name} to download", lambda p, s=script: {"download": s, "path": "missing"})
    strange = {
        "no names": [],
        "numbers": {5: "a", 9: "b"},
        "lists": [["a"], {"b": 1}],
        "surrogates": ["\ud800", "b"],
        "a long name": ["x" * 900_000, "b"],
        "lines": ["a\nb", "c\rd"],
        "a path": ["../../outside/secret", "/etc/passwd"],
        "bidirectional": ["\u202egnp.exe", "b"],
        "escapes": ["\x1b]0;evil\x07", "\x1b[2J"],
        "markup": ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>"],
        "formulas": ["=cmd|' /C calc'!A0", "@SUM(1)"],
    }
    for name, names in strange.items():
        yield attack(f"names: {name}", lambda p, n=names: _json_yaml({"names": n}, p))
    yield attack("nested aliases", lambda p: LAUGHS + p.base_text("data.yaml"))
    for key in ("names", "train", "kpt_shape"):
        yield attack(f"nested aliases as {key}", lambda p, k=key: nested(k, p.base_text("data.yaml")))
    yield attack("links out of the set", _linked_out)


def nested(key: str, text: str) -> str:
    """Return the text of a YAML with nested aliases as one of its values."""
    content = yaml.safe_load(text)
    content.pop(key, None)
    return f"{LAUGHS}{yaml.safe_dump(content)}{key}: [*l]\n"


def _json_yaml(changes: dict[str, Any], place: Place) -> dict[str, Any] | str:
    """Return changes, or the YAML's text where a value needs an escape that the writer does not have."""
    try:
        yaml.safe_dump(changes).encode()
    except UnicodeEncodeError:
        return place.base_text("data.yaml").split("names:")[0] + 'names: ["\\ud800", b]\n'
    return changes


def _linked_out(place: Place) -> dict[str, Any]:
    for split in ("train", "val"):
        (place.folder / f"set/images/{split}").mkdir(parents=True)
        (place.folder / f"set/images/{split}/a.jpg").symlink_to(place.secret)
        (place.folder / f"set/labels/{split}").mkdir(parents=True)
        (place.folder / f"set/labels/{split}/a.txt").symlink_to(place.secret)
    return {"path": str(place.folder / "set")}


def hyp_yamls() -> Attacks:
    """Yield attacks by YAMLs of hyperparameters."""
    kind = "hyperparameter YAML"

    def attack(name: str, text: Callable[[Place], str | bytes]) -> Attack:
        def prepare(place: Place) -> Command:
            place.write("evil.yaml", text(place))
            return train_on(place, str(place.base / "data.yaml"), "--hyp", "evil.yaml")

        return Attack(kind, name, prepare)

    for tag in TAGS:
        yield attack(f"tag {tag}", lambda p, t=tag: f"lr0: {yaml_tags(p.marker)[t]}\n")
    for name in EXPRESSIONS[:4]:
        yield attack(f"{name} as a number", lambda p, n=name: yaml.safe_dump({"lr0": expressions(p.marker)[n]}))
    for key in ("save_dir", "model", "data", "cfg", "augmentations", "device", "project"):
        yield attack(f"the option {key}", lambda p, k=key: yaml.safe_dump({k: str(p.secret)}))
    for value in ("nan", ".inf", "-1e300", "[1]", "{}", "null", "'0x10'", "10 ** 9"):
        yield attack(f"{value} as a number", lambda p, v=value: f"lr0: {v}\nmosaic: {v}\n")
    yield attack("nested aliases", lambda p: LAUGHS)
    yield attack("nested aliases as anchor_free", lambda p: LAUGHS.replace("l: &l", "anchor_free: &l"))


# Runs -----------------------------------------------------------------------------------------------------------------
def resumed_runs() -> Attacks:
    """Yield attacks by the files of a run that is resumed."""
    kind = "run to resume"

    def attack(name: str, change: Callable[[Place, Path], None]) -> Attack:
        def prepare(place: Place) -> Command:
            run = place.folder / "run"
            shutil.copytree(place.base / "run", run)
            change(place, run)
            return ["train", "--resume", "run/weights/last.pt", "--epochs", "2", "--device", "cpu"]

        return Attack(kind, name, prepare)

    def edit(key: str, value: Callable[[Place], Any]) -> Callable[[Place, Path], None]:
        def change(place: Place, run: Path) -> None:
            args = yaml.safe_load((run / "args.yaml").read_text())
            (run / "args.yaml").write_text(yaml.safe_dump({**args, key: value(place)}))

        return change

    for tag in TAGS:
        yield attack(
            f"tag {tag} in args.yaml",
            lambda p, run, t=tag: _append(run / "args.yaml", f"\nx: {yaml_tags(p.marker)[t]}\n"),
        )
    for key in (
        "data",
        "cfg",
        "project",
        "name",
        "weights",
        "plugins",
        "hyp",
        "device",
        "epochs",
        "imgsz",
        "optimizer",
    ):
        yield attack(f"code as {key} of args.yaml", edit(key, lambda p: expressions(p.marker)["eval"]))
        yield attack(f"a path as {key} of args.yaml", edit(key, lambda p: "../../outside/secret.txt"))
    for name in ("os.system", "builtins.eval", "torch.load", "urllib"):
        yield attack(
            f"last.pt that calls {name}",
            lambda p, run, n=name: (run / "weights/last.pt").write_bytes(archive(pickles(p.marker)[n])) and None,
        )
    for tag in TAGS[:3]:
        yield attack(
            f"tag {tag} in data.yaml",
            lambda p, run, t=tag: _append(run / "data.yaml", f"\nx: {yaml_tags(p.marker)[t]}\n"),
        )
    for key in ("lr0", "data", "anchor_gains"):
        yield attack(
            f"nested aliases as {key} of args.yaml",
            lambda p, run, k=key: (run / "args.yaml").write_text(nested(k, (run / "args.yaml").read_text())) and None,
        )
    for name in ("args.yaml", "data.yaml", "weights/last.pt", "weights/best.pt", "results.csv", "final.json"):
        yield attack(f"{name} is noise", lambda p, run, n=name: (run / n).write_bytes(os.urandom(999)) and None)
        yield attack(f"{name} is a pipe", lambda p, run, n=name: _pipe(run / n))
        yield attack(f"{name} leads to endless zeros", lambda p, run, n=name: _link(run / n, "/dev/zero"))
        yield attack(f"{name} leads to a secret", lambda p, run, n=name: _link(run / n, str(p.secret)))


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _link(path: Path, target: str) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def yaml_attacks() -> Attacks:
    """Yield all of this file."""
    for make in (model_yamls, data_yamls, hyp_yamls, resumed_runs):
        yield from make()
