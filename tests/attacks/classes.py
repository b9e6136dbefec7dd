"""Attacks by class folders, and by maps of classes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import yaml

from tests.attacks.attack import Attack, Attacks, Command, Place
from tests.attacks.media import ADDRESS, LINKS, NAMES, PICTURES
from tests.attacks.payloads import LAUGHS, expressions, pickles, yaml_tags
from tests.attacks.yamls import EXPRESSIONS, HERE, SHORT, TAGS, train_on

Change = Callable[[Place, Path], object]  # what is done to the copy of the class folders blue, green and red


# Class folders --------------------------------------------------------------------------------------------------------
def attack(name: str, change: Change, *more: str) -> Attack:
    """Return an attack on the training of a classifier by its folders."""

    def prepare(place: Place) -> Command:
        folder = place.folder / "evil"
        shutil.copytree(place.base / "folders", folder)
        data = change(place, folder)
        cfg = str(place.base / "classifier.yaml")
        return ["train", "--cfg", cfg, "--data", data if isinstance(data, str) else "evil", *SHORT, *more]

    return Attack("class folders", name, prepare)


def rename(folder: Path, name: str) -> None:
    """Give a class another name."""
    for split in ("train", "val"):
        (folder / split / "blue").rename(folder / split / name)


def link(path: Path, target: str) -> None:
    """Make a link."""
    path.symlink_to(target)


def deepen(folder: Path) -> None:
    """Put pictures into folders in each other, whose path is longer than the system takes at once."""
    picture, former = (folder / "0.png").read_bytes(), Path.cwd()
    try:
        os.chdir(folder)
        for _ in range(60):
            Path("deep" * 25).mkdir()
            os.chdir("deep" * 25)
            Path("0.png").write_bytes(picture)
    finally:
        os.chdir(former)


def empty(folder: Path) -> None:
    """Remove the pictures in a folder and below."""
    for path in folder.rglob("*.png"):
        path.unlink()


FOLDER_NAMES = {  # the other names of files are those of folders too
    **{name: file.removesuffix(".jpg") for name, file in NAMES.items() if name != "dots"},
    "a code of ImageNet": "n01440764",
    "nearly a code of ImageNet": "n0",
    "a number": "0",
    "a word of YAML": "null",
    "a space": " ",
    "a hidden one": ".blue",
    "another's": "RED",
    "a mathematical text": r"$\frac{a}{b$",
}
FOLDERS: dict[str, Change] = {
    "a loop in a class": lambda _, folder: link(folder / "train/blue/loop", "."),
    "loops that multiply": lambda _, folder: [link(folder / f"train/blue/{name}", ".") for name in "abcdefgh"],
    "loops through two classes": lambda _, folder: [
        link(folder / f"train/{a}/loop", f"../{b}") for a, b in (("blue", "red"), ("red", "blue"))
    ],
    "a loop as a class": lambda _, folder: link(folder / "train/loop", "."),
    "the folder above as a class": lambda _, folder: link(folder / "train/loop", ".."),
    "the whole disk as a class": lambda _, folder: link(folder / "train/disk", "/"),
    "the kernel as a class": lambda _, folder: link(folder / "train/kernel", "/proc"),
    "the kernel in a class": lambda _, folder: link(folder / "train/blue/kernel", "/proc"),
    "devices in a class": lambda _, folder: link(folder / "train/blue/devices", "/dev"),
    "a link to itself as a class": lambda _, folder: link(folder / "train/loop", "loop"),
    "a secret as a class": lambda place, folder: link(folder / "train/secret", str(place.secret)),
    "a pipe as a class": lambda _, folder: os.mkfifo(folder / "train/pipe"),
    "a pipe as a split": lambda _, folder: (shutil.rmtree(folder / "val"), os.mkfifo(folder / "val")),
    "a deep path": lambda _, folder: deepen(folder / "train/blue"),
    "21,000 classes": lambda _, folder: [(folder / f"train/{i}").mkdir() for i in range(21_000)],
    "no classes": lambda _, folder: [shutil.rmtree(path) for path in folder.glob("*/*")],
    "no pictures": lambda _, folder: empty(folder),
    "no pictures in a class": lambda _, folder: empty(folder / "train/blue"),
    "no pictures in a split": lambda _, folder: empty(folder / "val"),
    "pictures without a class": lambda _, folder: [
        shutil.move(path, folder / "val" / f"{path.parent.name}.png") for path in folder.glob("val/*/0.png")
    ],
    "no folder in a split": lambda _, folder: [
        (shutil.move(path, folder / "val" / f"{path.parent.name}.png"), path.parent.rmdir())
        for path in folder.glob("val/*/0.png")
    ],
    "a class in one split": lambda _, folder: (folder / "val/red").rename(folder / "val/black"),
    "a file as a split": lambda _, folder: (shutil.rmtree(folder / "train"), (folder / "train").write_text("a")),
    "a list as a split": lambda place, folder: described(place, folder, train="list.txt"),
    "two folders as a split": lambda place, folder: described(place, folder, train=["train", "val"]),
    "an address as a split": lambda place, folder: described(place, folder, train=ADDRESS),
    "the kernel as a split": lambda place, folder: described(place, folder, train="/proc"),
    "a script to download": lambda place, folder: described(place, folder, download="touch executed"),
    "a pickle as a cache": lambda place, folder: [
        (folder / name).write_bytes(pickles(place.marker)["os.system"])
        for name in ("train.cache", "val.cache", "train/blue/0.npy", "train/blue/train.cache")
    ],
    "a script as the list of a set": lambda _, folder: (folder / ".ndjson.yaml").write_text("!!python/name:os.system"),
}


def described(place: Place, folder: Path, **changes: object) -> str:
    """Describe class folders by a YAML, with changes, and return its name."""
    (folder / "list.txt").write_text("train/blue/0.png\n")
    names = ["blue", "green", "red"]
    content = {"path": str(folder), "train": "train", "val": "val", "names": names, **changes}
    return place.write("evil.yaml", yaml.safe_dump(content))


def folders() -> Attacks:
    """Yield attacks by class folders."""
    for name, folder_name in FOLDER_NAMES.items():
        yield attack(f"a name: {name}", lambda _, folder, n=folder_name: rename(folder, n))
    for name, change in FOLDERS.items():
        yield attack(name, change)
    for name, make in LINKS.items():
        yield attack(f"{name} as a picture", lambda p, folder, m=make: m(folder / "train/blue/a.jpg", p))
    for name in ("a PNG bomb", "a PNG of 2^31 pixels a side", "a pickle", "nothing", "a TIFF of noise"):
        file, content = PICTURES[name]
        for option in ([], ["--cache"]):
            yield attack(
                f"{name} in the file of a picture{', kept in memory' if option else ''}",
                lambda p, folder, f=file, c=content: (folder / "train/blue" / f).write_bytes(c(p)),
                *option,
            )
    for option in ([], ["--cache"]):
        yield attack(f"noise in all files of pictures{', kept in memory' if option else ''}", noise, *option)


def noise(_: Place, folder: Path) -> None:
    """Put noise into the place of all pictures."""
    for path in folder.rglob("*.png"):
        path.write_bytes(os.urandom(99))


# Maps of classes ------------------------------------------------------------------------------------------------------
MAPS: dict[str, bytes] = {
    "nothing": b"",
    "a list": b"- car\n",
    "a text": b"car\n",
    "a number": b"7\n",
    "numbers": b"1: 2\n",
    "a truth": b"car: yes\n",
    "nothing as a name": b"car: null\n",
    "a list as a name": b"car: [person]\n",
    "a mapping as a name": b"car: {person: car}\n",
    "a list as an own name": b"? [car]\n: person\n",
    "a mapping as an own name": b"? {car: 1}\n: person\n",
    "nested aliases": LAUGHS.encode(),
    "nested aliases as a name": f"{LAUGHS}car: *l\n".encode(),
    "an alias of itself": b"car: &a [*a]\n",
    "deep brackets": b"[" * 20_000,
    "a lone surrogate": b'"\\ud800": car\n',
    "an escape": b'car: "\\e[2J"\n',
    "a long name": b"car: " + b"x" * 900_000 + b"\n",
    "2 MB": b"car: " + b"x" * 2_000_000 + b"\n",
    "many names": b"".join(b"a%d: car\n" % i for i in range(50_000)),
    "a name twice": b"car: person\ncar: car\n",
    "no class of the set": b"lorry: car\n",
    "no class of the weights": b"car: lorry\n",
    "the classes exchanged": b"car: person\nperson: car\n",
    "UTF-16": "car: person\n".encode("utf-16"),
    "null bytes": b"car: a\0\n",
    "noise": bytes(range(256)) * 9,
    "a pickle": pickles(HERE)["os.system"],
}


def class_maps() -> Attacks:
    """Yield attacks by maps of classes."""

    def attack_map(name: str, content: Callable[[Place], object], file: str = "evil.yaml") -> Attack:
        def prepare(place: Place) -> Command:
            made = content(place)
            if isinstance(made, bytes):
                place.write(file, made)
            weights = ["--weights", str(place.base / "best.pt")]
            return train_on(place, str(place.base / "data.yaml"), *weights, "--class-map", file)

        return Attack("map of classes", name, prepare)

    for name, content in MAPS.items():
        yield attack_map(name, lambda _, c=content: c)
    for tag in TAGS:
        yield attack_map(f"tag {tag}", lambda p, t=tag: f"car: {yaml_tags(p.marker)[t]}\n".encode())
    for name in EXPRESSIONS:
        yield attack_map(
            f"{name} as a name", lambda p, n=name: yaml.safe_dump({"car": expressions(p.marker)[n]}).encode()
        )
    for name in EXPRESSIONS[:3]:
        yield attack_map(
            f"{name} as an own name", lambda p, n=name: yaml.safe_dump({expressions(p.marker)[n]: "car"}).encode()
        )
    for name, make in LINKS.items():
        yield attack_map(f"{name} as the file", lambda p, m=make: m(p.folder / "evil.yaml", p))
    for name, file in {"an address": ADDRESS, "a secret": "../outside/secret.txt", "a folder": "."}.items():
        yield attack_map(name, lambda _: None, file)


def class_attacks() -> Attacks:
    """Yield all of this file."""
    for make in (folders, class_maps):
        yield from make()
