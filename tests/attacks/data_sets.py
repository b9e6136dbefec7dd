"""Attacks by data sets of other tools, which `utils.convert_data` reads."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.attacks.attack import Attack, Attacks, Command, Place
from tests.attacks.media import png
from tests.attacks.payloads import expressions, yaml_tags
from tests.attacks.yamls import EXPRESSIONS, TAGS
from tests.foreign import voc_object

KIND = "labels of other tools"
CONVERT: Command = ["utils.convert_data", "src", "--to", "new", "--split", "0.5", "0.5"]
SIZE = {"width": 64, "height": 48}
NAMES: dict[str, Callable[[Place], str]] = {  # of pictures
    "above": lambda p: f"../../{p.secret.parent.name}/secret.txt",
    "above by Windows' slashes": lambda p: f"..\\..\\{p.secret.parent.name}\\secret.txt",
    "absolute": lambda p: str(p.secret),
    "absolute, of the system": lambda _: "/etc/passwd",
    "of the kernel": lambda _: "/proc/self/environ",
    "a device": lambda _: "/dev/zero",
    "an address": lambda _: "http://192.0.2.1/evil.png",
    "with a null byte": lambda _: "a\0.png",
    "of 100,000 characters": lambda _: "a/" * 50_000,
    "half of a character": lambda _: "\ud800.png",
    "of terminal codes": lambda _: "\x1b]0;evil\x07\n.png",
    "nothing but dots": lambda _: "..",
    "a folder": lambda _: ".",
}
BOXES: dict[str, Any] = {
    "not numbers": [float("nan"), float("inf"), -1, "x"],
    "huge numbers": [1e308, -1e308, 1e308, 1e308],
    "a number of many digits": [0, 0, 10**4000, 1],
    "nested": [[[[[]]]]],
    "a mapping": {"x": 1},
}
OUTLINES: dict[str, Any] = {
    "a mask of 10^18 pixels": {"counts": [10**18], "size": [10**9, 10**9]},
    "a packed mask without an end": {"counts": "o" * 100_000, "size": [48, 64]},
    "a mask of negative runs": {"counts": [-5, 48 * 64 + 5], "size": [48, 64]},
    "300,000 points": [[i % 64 for i in range(600_000)]],
    "5,000 parts": [[0, 0, 9, i % 40, 5, 9] for i in range(5_000)],
    "odd coordinates": [[1, 2, 3]],
}
ENTITY = '<!DOCTYPE a [<!ENTITY a "{}">]><annotation>{}</annotation>'
FILES: dict[str, tuple[str, Callable[[Place], str | bytes]]] = {
    "entities in entities": ("a.xml", lambda _: laughs()),
    "an entity of a file": ("a.xml", lambda p: ENTITY.replace('"{}"', f'SYSTEM "file://{p.secret}"').format("&a;")),
    "an entity of an address": ("a.xml", lambda _: ENTITY.replace('"{}"', 'SYSTEM "http://192.0.2.1/"').format("&a;")),
    "XML that includes": (
        "a.xml",
        lambda p: f'<annotation><i:include xmlns:i="http://www.w3.org/2001/XInclude" href="{p.secret}"/></annotation>',
    ),
    "XML of 100,000 levels": ("a.xml", lambda _: "<annotation>" + "<a>" * 100_000),
    "XML in an unknown encoding": ("a.xml", lambda _: '<?xml version="1.0" encoding="evil"?><annotation></annotation>'),
    "JSON of 100,000 levels": ("a.json", lambda _: '{"images": [' + "[" * 100_000),
    "a number of 10,000 digits": ("a.json", lambda _: '{"images": [' + "9" * 10_000 + "]}"),
    "a million empty mappings": ("a.json", lambda _: '{"images": [' + "{}," * 1_000_000 + "{}]}"),
    "a pickle called JSON": ("a.json", lambda _: b'\x80\x04"images": ['),
    "a cell of a megabyte": ("a.csv", lambda _: "ImageID,LabelName,XMin,XMax,YMin,YMax\n" + "x" * (1 << 20)),
    "a formula": ("a.csv", lambda p: f"ImageID,LabelName,XMin,XMax,YMin,YMax\n0,=cmd|'touch {p.marker}'!A,0,1,0,1\n"),
}


def laughs() -> str:
    """Return entities that unfold to billions of others."""
    lines = [f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "lol"}">' for i in range(12)]
    return f"<!DOCTYPE a [{''.join(lines)}]><annotation>{voc_object('&e11;', 1, 1, 9, 9)}</annotation>"


def data_set_attacks() -> Attacks:
    """Yield attacks by data sets of other tools."""
    for name in EXPRESSIONS:
        yield _coco(f"{name} as a class", lambda p, n=name: {"category": expressions(p.marker)[n]})
    for tag in TAGS:
        yield _coco(f"tag {tag} as a class", lambda p, t=tag: {"category": yaml_tags(p.marker)[t]})
    for name, value in NAMES.items():
        yield _coco(f"a picture whose name is {name}", lambda p, v=value: {"more": v(p)})
    for name, box in BOXES.items():
        yield _coco(f"a box that is {name}", lambda _, b=box: {"bbox": b})
    for name, outline in OUTLINES.items():
        yield _coco(f"an outline: {name}", lambda _, o=outline: {"segmentation": o}, "--task", "segment")
    for name, (file, content) in FILES.items():
        yield _file(name, file, content)
    for name, target in {"/dev/zero": "/dev/zero", "the kernel's log": "/proc/kmsg", "itself": "a.json"}.items():
        yield Attack(KIND, f"labels that are a link to {name}", lambda p, t=target: _linked(p, "a.json", t))
        yield Attack(KIND, f"a picture that is a link to {name}", lambda p, t=target: _linked(p, "0.png", t))
    yield Attack(KIND, "labels that are a pipe", lambda p: _pipe(p, "a.json"))
    yield Attack(KIND, "a picture that is a pipe", lambda p: _pipe(p, "0.png"))
    yield _file("a picture that unfolds to gigabytes", "0.png", lambda _: png(50_000, 50_000))
    for name, words in {
        "/proc as a source": ["/proc/self"],
        "/dev as a source": ["/dev"],
        "/proc for its pictures": ["src", "--images", "/proc/self"],
        "a target of the system": ["src", "--to", "/proc/new"],
        "a target that is there": ["src", "--to", "../outside/secret.txt"],
        "a target in a file": ["src", "--to", "../outside/secret.txt/new"],
    }.items():
        yield Attack(KIND, name, lambda p, w=words: (_write(p, {}), ["utils.convert_data", *w])[1])


def _write(place: Place, payload: dict[str, Any]) -> Command:
    """Write a COCO data set of two pictures, changed by a payload, and return the command that converts it."""
    for name in ("0.png", "1.png"):
        place.write(f"src/{name}", (place.base / "set/images/train" / name).read_bytes())
    box = {"bbox": payload.get("bbox", [1, 1, 30, 30]), "segmentation": payload.get("segmentation", [])}
    images = [{"id": i, "file_name": f"{i}.png", **SIZE} for i in range(2)]
    images += [{"id": 2, "file_name": payload["more"], **SIZE}] if "more" in payload else []
    annotations = [
        {"image_id": image["id"], "category_id": 1, **extra}
        for image in images
        for extra in (box, {"bbox": [5, 5, 9, 9], "segmentation": [[5, 5, 14, 5, 14, 14]]})
    ]
    categories = [{"id": 1, "name": payload.get("category", "cat")}]
    place.write("src/a.json", json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return CONVERT


def _coco(name: str, payload: Callable[[Place], dict[str, Any]], *words: str) -> Attack:
    return Attack(KIND, name, lambda place: [*_write(place, payload(place)), *words])


def _file(name: str, file: str, content: Callable[[Place], str | bytes]) -> Attack:
    def prepare(place: Place) -> Command:
        _write(place, {})
        if file != "0.png":
            (place.folder / "src/a.json").unlink()
        place.write(f"src/{file}", content(place))
        return CONVERT

    return Attack(KIND, name, prepare)


def _replaced(place: Place, file: str) -> Path:
    """Write the data set without one of its files, and return where that was."""
    _write(place, {})
    path = place.folder / "src" / file
    path.unlink()
    return path


def _linked(place: Place, file: str, target: str) -> Command:
    _replaced(place, file).symlink_to(target)
    return CONVERT


def _pipe(place: Place, file: str) -> Command:
    os.mkfifo(_replaced(place, file))
    return CONVERT
