"""Measure how many pictures a second networks learn from, and how much memory that takes, in turns in one run.

    python -m utils.comparison.throughput --cfg yolov5n-u.yaml ultralytics-trainer:yolov5n --imgsz 160
    python -m utils.comparison.throughput --cfg yolov5n-u.yaml --overparameterize acb dbb mobileone repvgg
    python -m utils.comparison.throughput --cfg repvgg-slim-yolo.yaml --deploy
    python -m utils.comparison.throughput --cfg riformer-yolo.yaml --data my-data.yaml --device 0

Entries are those of compare.py: YAMLs, timm:NAME, ultralytics:NAME, and ultralytics-trainer:NAME for ultralytics' own
trainer. Each is a real training in a process of its own: pictures are read and augmented, the loss is computed, the
optimizer steps and the average of weights follows. A few steps at a time they take turns, so that the noise of the
machine hits all alike. All rows are compared with the first.

Written to runs/throughput/exp, exp2, …: throughput.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ultralytics.utils import LOGGER, TQDM

from models.blocks.branches import STYLES
from models.environment import processor
from models.errors import UserError
from models.layers import is_backbone
from utils import cli
from utils.comparison.entries import Entry, find_entries
from utils.comparison.trainers import OURS
from utils.data.description import BUILT_IN, load_dataset
from utils.data.files import check_images
from utils.distributed.scripts import why_ended
from utils.paths import ROOT, find_file, increment_path
from utils.text import printable
from utils.writing import open_log, write_text

MANY = "100000"  # epochs, of which none ends the training
ENDING = 20.0  # seconds for a process to end by itself
DEPLOY = "(deploy)"  # behind the name of a network whose backbone is trained as it is deployed


@dataclass
class Row:
    """What is measured of one training.

    Attributes:
        name: of the entry.
        rates: pictures a second of each of its turns.
        peak_mb: the most memory that its process has held, of the GPU where it trains on one.
        note: why it could not be measured.
    """

    name: str
    rates: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    note: str = ""


class Training:
    """A training in a process of its own, which takes its steps in turns.

    Args:
        row: takes what is measured.
        words: of the command, a script or -m and a module.
        steps: of a turn.
        log: what it says.
    """

    def __init__(self, row: Row, words: Sequence[str], steps: int, log: Path) -> None:
        self.row, self.log = row, log
        self.line, other = socket.socketpair()
        command = [sys.executable, "-m", "utils.benchmark.turns", str(other.fileno()), str(steps), *words]
        with other, open_log(log) as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                pass_fds=(other.fileno(),),
            )
        self.told = self.line.makefile()

    def result(self) -> dict[str, float]:
        """Return what the process tells at the end of a turn; nothing where it has failed."""
        text = self.told.readline()
        if not text:
            self.row.note = printable(why_ended(self.log, self.process.wait()))
        return json.loads(text) if text else {}

    def turn(self) -> None:
        """Let it take the steps of a turn, and note how fast it was."""
        if self.row.note:
            return
        self.line.sendall(b"1")
        if found := self.result():
            self.row.rates.append(found["pictures"] / found["seconds"])
            self.row.peak_mb = found["peak_mb"]

    def end(self) -> None:
        """End the process."""
        self.told.close()
        self.line.close()
        try:
            self.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="python -m utils.comparison.throughput", description=__doc__)
    add = parser.add_argument
    add("--cfg", nargs="+", default=["yolov5n-u.yaml"], metavar="ENTRY", help="model YAMLs and other entries")
    add("--overparameterize", nargs="+", default=[], choices=STYLES, help="each YAML with these branches as well")
    add("--deploy", action="store_true", help="each YAML with a list backbone in its deploy form as well")
    add("--data", default="", help="data set YAML; default: the built-in one")
    add("--hyp", default="hyp.scratch-low.yaml", help="recipe of train.py; ultralytics' trainer has its own")
    add("--imgsz", "--img", "--img-size", type=cli.image_side, default=640, help="side of the pictures in pixels")
    add("--batch-size", type=cli.positive_int, default=16, help="pictures a step")
    add("--steps", type=cli.positive_int, default=4, help="of a turn; the first turn of each is not counted")
    add("--rounds", type=cli.positive_int, default=5, help="turns of each")
    add("--device", type=cli.device, default="", help="cpu, or a GPU by its number; default: the first GPU or the CPU")
    add("--project", default="runs/throughput", help="results go to project/name")
    add("--name", default="exp", help="results go to project/name")
    add("--exist-ok", action="store_true", help="use project/name again instead of counting up")
    cli.add_consents(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure, print and write; return 1 when nothing could be measured."""
    return 0 if any(row.rates for row in benchmark(args)) else 1


def benchmark(args: argparse.Namespace) -> list[Row]:
    """Return what was measured of each training.

    Raises:
        UserError: an option is wrong.
    """
    cli.log_options("throughput", args)
    cli.take_consents(args)
    entries = find_entries(args.cfg)
    data = load_dataset(args.data or BUILT_IN["detect"])
    check_images(data, training=True)
    hyp = find_file(args.hyp, "data/hyps").resolve()
    folder = increment_path(args.project, args.name, args.exist_ok)
    with tempfile.TemporaryDirectory() as place:
        common = [
            "--data",
            str(Path(data["yaml_file"]).resolve()),
            "--imgsz",
            str(args.imgsz),
            "--batch-size",
            str(args.batch_size),
        ]
        common += ["--epochs", MANY, "--project", place, *(["--device", args.device] if args.device else [])]
        commands = {
            name: [*words, *common]
            for entry in entries
            for name, words in commands_of(entry, args, hyp, Path(place)).items()
        }
        rows = measure(commands, args, Path(place))
    write_text(folder / "throughput.json", json.dumps({**about(args), "rows": [asdict(row) for row in rows]}, indent=2))
    LOGGER.info(printable(f"\n{table(rows)}\n\nResults saved to {folder}"))
    return rows


def commands_of(entry: Entry, args: argparse.Namespace, hyp: Path, folder: Path) -> dict[str, list[str]]:
    """Return the commands that train an entry, by the names that the table gives them; YAMLs are written to `folder`.

    Raises:
        UserError: it has no deploy form.
    """
    if entry.trainer != OURS:
        return {entry.name: ["-m", "utils.comparison.train_ultralytics", "--cfg", entry.model]}
    cfgs = {entry.name: entry.cfg} | ({f"{entry.name} {DEPLOY}": deploy_form(entry)} if args.deploy else {})
    commands = {}
    for name, cfg in cfgs.items():
        file = folder / f"{len(list(folder.iterdir()))}-{entry.name}.yaml"
        write_text(file, yaml.safe_dump(cfg, default_flow_style=None, sort_keys=False))
        commands[name] = ["train.py", "--cfg", str(file), "--hyp", str(hyp), "--noplots", *entry.options]
        commands[name] += ["--patience", "0"]
    own = commands[entry.name]
    return commands | {
        f"{entry.name} ({style})": [*own, "--overparameterize", style] for style in args.overparameterize
    }


def deploy_form(entry: Entry) -> dict[str, Any]:
    """Return the model YAML of an entry whose list backbones are built in deploy form.

    Raises:
        UserError: it has none.
    """
    rows = [list(row) for row in entry.cfg["backbone"]]
    lists = [row for row in rows if is_backbone(row[2])]
    for row in lists:
        *words, last = row[3] or [{}]
        row[3] = [*words, {**last, "deploy": True}] if isinstance(last, dict) else [*words, last, {"deploy": True}]
    if not lists:
        raise UserError(f"--deploy is for list backbones, of which {entry.name} has none")
    return {**entry.cfg, "backbone": rows}


def measure(commands: dict[str, list[str]], args: argparse.Namespace, folder: Path) -> list[Row]:
    """Return what is measured of each training, whose processes take turns.

    Args:
        commands: by name.
        args: the options.
        folder: for what they say.
    """
    trainings = []
    with ExitStack() as stack, TQDM(total=len(commands) * (args.rounds + 1), desc="training") as bar:
        for i, (name, words) in enumerate(commands.items()):
            training = Training(Row(name), words, args.steps, folder / f"{i}.log")
            stack.callback(training.end)
            training.result()  # of its first steps, which take longer
            trainings.append(training)
            bar.update()
        for _ in range(args.rounds):
            for training in trainings:
                training.turn()
                bar.update()
        return [training.row for training in trainings]


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table: median and best rate, memory, and the time of a picture as a ratio of the first."""
    first = next((max(row.rates) for row in rows if row.rates), 0.0)
    lines = ["| training | pictures/s | best | time a picture | peak MB |", "|---|---|---|---|---|"]
    for row in rows:
        if not row.rates:
            lines.append(f"| {row.name} | {row.note} | | | |")
            continue
        median, best = statistics.median(row.rates), max(row.rates)
        lines.append(f"| {row.name} | {median:.1f} | {best:.1f} | {first / best:.2f}x | {row.peak_mb:.0f} |")
    return "\n".join(lines)


def about(args: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured, and where."""
    names = ("cfg", "data", "hyp", "imgsz", "batch_size", "steps", "rounds", "device")
    machine = {"processor": processor(), "cores": os.cpu_count(), "system": platform.platform()}
    return {**{name: getattr(args, name) for name in names}, "machine": machine}


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
