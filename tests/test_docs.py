"""The documentation: its commands and code run, its YAMLs build, and the files, links and flags in it exist.

A page is README.md or docs/*.md. What its fenced blocks hold is run in their order, in a folder with the files that the
pages talk about (`workplace`):

- bash: each command runs in this process, with the options as written. The comment behind a command says why it is not
  run: `needs a GPU` (or another thing with an article), `needs NAME` for a package that is not installed, `takes
  minutes`, `until Ctrl-C`; lines with pip and pytest are not run either. Their options are parsed all the same.
- python: runs in one namespace a page; a text block right behind it is what it prints.
- yaml: whole model YAMLs and lists of rows are built.
- A python or yaml block that begins with a file name, `# my_net.py`, becomes that file.
"""

from __future__ import annotations

import glob
import importlib
import importlib.metadata
import itertools
import re
import shlex
import shutil
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from ultralytics.nn import tasks

import export
import train
from models import BACKBONES, create_backbone, create_model, plugins
from models.blocks import reparam
from models.errors import UserError
from models.layers import LAYERS, is_backbone
from models.plugins import load_plugins
from tests.foreign import WRITERS, samples
from tests.helpers import random_model, randomize_, save, tiny
from utils import cli
from utils.data import shapes
from utils.data.drawn import drawn_folder, ensure_drawn

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = "train val detect export benchmark compare".split()
ENTRIES = {  # module that is run → the one with its options
    "models.yolo": "utils.describe_model",
    "tests.attacks": "tests.attacks.__main__",
    "utils.architecture_search": "utils.architecture_search.__main__",
    "utils.convert_data": "utils.convert_data.__main__",
    "utils.operators": "utils.operators.__main__",
}
CLASSES = ["person", "car", "bicycle", "dog"]
WRITTEN = {
    "my-data.yaml",
    "my-yolo.yaml",
    "args.yaml",
    "data.yaml",
    "metadata.yaml",
    "hyp_evolved.yaml",
    "winner.yaml",
    "riformer-narrow.yaml",
}  # names of files of a user or a run
DRAWN = ("data/shapes/", "data/scenes/")  # folders that are there after the first use
MAX_LINES = 170  # of the README
MOST_NOT_RUN = 0.4  # of the commands, those with pip and pytest not counted


# Pages ----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Block:
    """A fenced block; `adjacent` when nothing but an empty line stands between it and the block before."""

    language: str
    text: str
    line: int
    adjacent: bool

    @property
    def file(self) -> str:
        """The name of the file that the block is, from its first line; empty for a block that is none."""
        match = re.match(r"# ([\w-]+\.(?:py|yaml))\n", self.text)
        return match[1] if match and self.language in ("python", "yaml") else ""


@dataclass(frozen=True)
class Command:
    """One line of a bash block: words of each command in it, joined by &&, and the comment behind them."""

    line: str
    parts: tuple[tuple[str, ...], ...]
    comment: str

    @property
    def not_run(self) -> str:
        """Why it is not run; empty where it is."""
        for words in self.parts:
            if "pip" in words[:3] or "pytest" in words[:3]:
                return words[0]
        if match := re.search(r"takes minutes|until Ctrl-C|needs an? \w+|needs the \w+", self.comment):
            return match[0]
        match = re.search(r"needs ([\w-]+)", self.comment)
        return match[0] if match and not is_installed(match[1]) else ""


def is_installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def read_blocks(text: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    blocks, end = [], -1
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        adjacent = end >= 0 and not text[end : match.start()].strip()
        blocks.append(Block(match[1], match[2], text.count("\n", 0, match.start()) + 1, adjacent))
        end = match.end()
    return blocks


def read_commands(text: str) -> list[Command]:
    """Return the commands of a bash block."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        code, _, comment = re.sub(r"(?:^|\s)#\s", "\0", line, count=1).partition("\0")
        words = shlex.split(code)
        if words:
            ends = [-1, *(i for i, word in enumerate(words) if word == "&&"), len(words)]
            parts = tuple(tuple(words[a + 1 : b]) for a, b in itertools.pairwise(ends))
            commands.append(Command(line.strip(), parts, comment))
    return commands


def entry_of(words: tuple[str, ...]) -> tuple[types.ModuleType, list[str]] | None:
    """Return the module that `python X.py` or `python -m X` runs, and its options; None for pip and pytest.

    Raises:
        AssertionError: it is another program, or there is no such script.
    """
    if words[0] == "pip" or words[:3] == ("python", "-m", "pytest"):
        return None
    assert words[0] == "python", f"{words[0]} is no program that these pages may run"
    name, rest = (words[2], words[3:]) if words[1] == "-m" else (words[1].removesuffix(".py"), words[2:])
    ours = words[1] == "-m" and name.startswith(("utils.", "models.", "tests."))
    assert name in SCRIPTS or ours, f"there is no {name}"
    return importlib.import_module(ENTRIES.get(name, name)), expand(rest)


def expand(words: tuple[str, ...]) -> list[str]:
    """Return words with those replaced that are patterns of files, as a shell does."""
    return [name for word in words for name in (sorted(glob.glob(word)) if "*" in word else []) or [word]]  # noqa: PTH207


def check_command(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command, or only parse its options where its comment says why.

    Raises:
        UserError: an option is wrong.
        AssertionError: the exit code is not 0, or the command is none of ours.
    """
    for words in command.parts:
        entry = entry_of(words)
        if entry is None:
            continue
        module, options = entry
        parser = module.make_parser()
        if command.not_run:
            with monkeypatch.context() as patched:
                patched.setattr(torch.cuda, "device_count", lambda: 8)
                parser.parse_args(options)
        elif isinstance(parser, cli.Parser):
            assert cli.run_script(module.main, parser, options) == 0, command.line
        else:
            assert module.main(options) == 0, command.line


def run_python(block: Block, namespace: dict[str, Any], expected: str | None) -> None:
    """Run a block, and compare what it prints with `expected`."""
    printed: list[str] = []
    namespace["print"] = lambda *values: printed.append(" ".join(map(str, values)))
    exec(compile("\n" * block.line + block.text, "page", "exec"), namespace)
    if expected is not None:
        assert "\n".join(printed) == expected.rstrip()


def check_yaml(text: str) -> None:
    """Build a model YAML, or each of a list of rows in a small one; other YAMLs are parsed only."""
    content = yaml.safe_load(text)
    if isinstance(content, list):
        for row in content:
            create_model(around(row))
    elif "head" in content:
        load_plugins(content.get("plugins", ()))
        create_model(content)


def around(row: list[Any]) -> dict[str, Any]:
    """Return a model YAML with this row in it."""
    if is_backbone(row[2]):
        return {"nc": 2, "backbone": [row], "head": [[["P3", "P4", "P5"], 1, "Detect", ["nc"]]]}
    stem = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]]
    return {"nc": 2, "backbone": [*stem, row], "head": [[[-1], 1, "Detect", ["nc"]]]}


def check_page(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run everything on a page in the current folder."""
    blocks = read_blocks(text)
    namespace: dict[str, Any] = {"__name__": "page"}
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block.file:
            Path(block.file).write_text(block.text)
        if block.language == "bash":
            for command in read_commands(block.text):
                check_command(command, monkeypatch)
        elif block.language == "python" and not block.file:
            shown = following is not None and following.language == "text" and following.adjacent
            run_python(block, namespace, following.text if following and shown else None)
        elif block.language == "yaml":
            check_yaml(block.text)
        else:
            assert block.language in ("text", "python"), f"line {block.line}: what is a block of '{block.language}'?"


# What is written between the blocks -----------------------------------------------------------------------------------
def prose_of(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors_of(path: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose_of(path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def check_links(text: str, page: Path) -> None:
    """Raise AssertionError for a link or image of a page that leads nowhere in this repository."""
    for found in re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", prose_of(text)):
        target, _, anchor = "".join(found).partition("#")
        path = page.parent / target if target else page
        if not target.startswith("http"):
            assert path.is_file(), f"{page.name} links to {target}, which does not exist"
            assert not anchor or anchor in anchors_of(path), f"{page.name} links to {target}#{anchor}, no such heading"


def spans_of(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose_of(text))


def check_files(text: str) -> None:
    """Raise AssertionError for a file or folder of the repository that a page names and that does not exist."""
    folders = [ROOT / "models/configs", ROOT / "data", ROOT / "data/hyps"]
    for span in spans_of(text):
        if span.startswith(DRAWN):
            continue
        if re.fullmatch(r"(models|utils|data|tests|docs)/[\w./*-]*", span):
            assert list(ROOT.glob(span.rstrip("/"))), f"there is no {span}"
        elif re.fullmatch(r"[\w.-]+\.yaml", span) and span not in WRITTEN:
            assert any((folder / span).is_file() for folder in folders), f"there is no {span}"


def check_flags(text: str) -> None:
    """Raise AssertionError for a flag in a page's sentences that no script has."""
    modules = {"utils.convert", *(c[2] for c in commands_of_pages() if c[1] == "-m" and c[2] != "pytest")}
    parsers = [importlib.import_module(ENTRIES.get(name, name)).make_parser() for name in (*SCRIPTS, *sorted(modules))]
    known = {flag for parser in parsers for action in parser._actions for flag in action.option_strings}
    for span in spans_of(text):
        for flag in re.findall(r"(?<!\S)--[\w-]+", span):
            assert any(name.startswith(flag) for name in known), f"no script has {flag}"


def commands_of_pages() -> Iterator[tuple[str, ...]]:
    """Yield the words of every command of every page that runs Python."""
    for page in PAGES:
        for block in read_blocks(page.read_text(encoding="utf-8")):
            if block.language == "bash":
                for command in read_commands(block.text):
                    yield from (words for words in command.parts if words[0] == "python")


# The files that pages talk about --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """A folder with everything that the commands of the pages name, and a run that has been stopped."""
    root = tmp_path_factory.mktemp("docs")
    folder = root / "folder"
    folder.mkdir()
    (folder / "data").symlink_to(ROOT / "data")
    ensure_drawn(drawn_folder(ROOT / "data", shapes.Recipe()), shapes.Recipe())
    write_data(folder)
    (folder / "my-yolo.yaml").write_text(yaml.safe_dump(tiny(nc=4), sort_keys=False))
    write_weights(root)
    for file in root.glob("*.pt*"):
        (folder / file.name).symlink_to(file)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        train.run(cfg="my-yolo.yaml", data="my-data.yaml", epochs=1, imgsz=64, batch_size=4, noplots=True)
        options = Path("runs/train/exp/args.yaml")
        options.write_text(options.read_text().replace("epochs: 1\n", "epochs: 2\n"))
        write_best(Path("runs/train/exp/weights/best.pt"))
        export.run(weights="runs/train/exp/weights/best.pt", include=["onnx"], output=".")
    return folder


def write_data(folder: Path) -> None:
    """Write a small data set, some in the forms of other tools, a folder of classes, images, a list and videos."""
    for form, write in WRITERS.items():
        write(folder / f"my-{form}", samples())
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 96, 3), np.uint8)
    image[16:48, 24:72] = 255
    names = [f"my-data/images/{split}/{i}.jpg" for split in ("train", "val", "test") for i in range(4)]
    names += ["photo.jpg", "pictures/a.jpg", "pictures/b.jpg", "imagenet/val/cat/1.jpg", "imagenet/val/dog/1.jpg"]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), image)
    for name in (name for name in names if name.startswith("my-data")):
        label = folder / name.replace("images", "labels").replace(".jpg", ".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("0 0.5 0.5 0.5 0.5\n1 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    splits = {split: f"images/{split}" for split in ("train", "val", "test")}
    (folder / "my-data.yaml").write_text(yaml.safe_dump({"path": "my-data", **splits, "names": CLASSES}))
    (folder / "list.txt").write_text("photo.jpg\n")
    (folder / "clips").mkdir()
    for name in ("clip.mp4", "clips/one.mp4"):
        video = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*"mp4v"), 10, (96, 64))
        for _ in range(4):
            video.write(image)
        video.release()


def write_best(path: Path) -> None:
    """Put a network that tells images apart in the place of one that has learnt nothing in an epoch."""
    model = random_model("my-yolo.yaml")
    model.names, model.imgsz = dict(enumerate(CLASSES)), 64
    save(model, path)


def write_weights(folder: Path) -> None:
    """Write a published classification network, and a checkpoint as ultralytics does."""
    torch.save(create_backbone("RepVGG", arch="A0", num_classes=2).state_dict(), folder / "RepVGG-A0-train.pth")
    model: Any = randomize_(tasks.DetectionModel(tasks.yaml_model_load("yolov5n.yaml"), verbose=False)).half()
    model.args = {"imgsz": 64, "task": "detect"}
    torch.save({"epoch": -1, "model": None, "ema": model}, folder / "yolov5n.pt")


@pytest.fixture
def workplace(template, tmp_path, monkeypatch) -> Iterator[Path]:
    """The current folder, a copy of the template; what a page registers is forgotten afterwards."""
    folder = shutil.copytree(template, tmp_path / "folder", symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    monkeypatch.setattr(LAYERS, "_entries", dict(LAYERS._entries))
    monkeypatch.setattr(reparam, "_FUSERS", list(reparam._FUSERS))
    monkeypatch.setattr(plugins, "LOADED", {})
    threads = torch.get_num_threads()
    yield folder
    torch.set_num_threads(threads)
    for name in [name for name in sys.modules if name.startswith("plugins.")]:
        del sys.modules[name]


# The pages are true ---------------------------------------------------------------------------------------------------
def by_name(page: Path) -> str:
    return page.stem


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_everything_on_a_page_runs(page, workplace, monkeypatch):
    check_page(page.read_text(encoding="utf-8"), monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_what_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    check_links(text, page)
    check_files(text)
    check_flags(text)


def test_the_readme_is_short():
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_few_commands_are_not_run():
    blocks = [block for page in PAGES for block in read_blocks(page.read_text(encoding="utf-8"))]
    commands = [c for block in blocks if block.language == "bash" for c in read_commands(block.text)]
    reasons = [command.not_run for command in commands if command.not_run not in ("pip", "python")]
    assert len(reasons) > 50
    assert sum(map(bool, reasons)) <= MOST_NOT_RUN * len(reasons)


# The checks can fail --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("line", "error", "message"),
    [
        ("python train.py --epohcs 3   # takes minutes", UserError, "no option --epohcs"),
        ("python train.py --epochs three   # needs a GPU", UserError, "epochs"),
        ("pip install x && python export.py --includes onnx", UserError, "no option --includes"),
        ("python -m utils.convert --outptu x.pt   # needs the network", UserError, "no option --outptu"),
        ("python tarin.py   # takes minutes", AssertionError, "there is no tarin"),
        ("curl http://localhost", AssertionError, "curl is no program"),
        ("python detect.py --source missing.jpg", AssertionError, "missing.jpg"),
        ("python -m utils.convert", AssertionError, "utils.convert"),
    ],
)
def test_a_wrong_command_is_caught(line, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        check_page(f"```bash\n{line}\n```\n", monkeypatch)


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nundefined\n```\n", NameError),
        ("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n", AssertionError),
        ("```yaml\nnc: 2\nhead:\n  - [-1, 1, Cnov, [8]]\n```\n", UserError),
        ("```yaml\n- [-1, 1, RepVGG, [Z9]]\n```\n", UserError),
        ("```sh\nls\n```\n", AssertionError),
    ],
)
def test_a_wrong_block_is_caught(page, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        check_page(page, monkeypatch)


@pytest.mark.parametrize("text", ["[a](docs/none.md)", "[a](LICENSE#none)", '<img src="data/none.jpg">'])
def test_a_broken_link_is_caught(text):
    with pytest.raises(AssertionError):
        check_links(text, ROOT / "README.md")


def test_a_wrong_name_is_caught():
    for text in ("`models/none.py`", "`none-yolo.yaml`"):
        with pytest.raises(AssertionError, match="there is no"):
            check_files(text)
    with pytest.raises(AssertionError, match="no script has --epohcs"):
        check_flags("`--epohcs 3`")


def test_marks():
    assert [command.not_run for command in read_commands("python a.py  # needs a GPU\npython a.py  # note")] == [
        "needs a GPU",
        "",
    ]
    assert read_commands("python a.py   # needs torch")[0].not_run == ""
    assert read_commands("python a.py   # needs no-such-package")[0].not_run == "needs no-such-package"
