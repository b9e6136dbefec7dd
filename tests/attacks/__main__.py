"""Run the attacks and print the table of docs/security.md.

    python -m tests.attacks                          # all, takes minutes
    python -m tests.attacks --every 10               # each tenth
    python -m tests.attacks --each 2                 # two of each kind
    python -m tests.attacks --only ONNX -k names     # those of one kind whose name holds a word

Written to runs/attacks/exp: attacks.md, the table, and attacks.json, each attack with its output.
Each runs in a process of its own, in a temporary folder. Where strace is there, the system calls that reach for another
machine are counted, those of native code included; otherwise the table says that nobody looked.
The exit code is 1 when an attack got through.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from tests import network
from tests.attacks.attack import End, Outcome
from tests.attacks.catalogue import ATTACKS, KINDS
from utils import cli

# isort: split
from ultralytics.utils import LOGGER, TQDM

from utils.paths import ROOT, increment_path
from utils.text import printable

WORKER = [sys.executable, "-m", "tests.attacks.worker"]


def make_parser() -> cli.Parser:
    """Return the options."""
    parser = cli.Parser(prog="python -m tests.attacks", description=__doc__)
    add = parser.add_argument
    add("--every", type=cli.positive_int, default=1, help="run each n-th attack")
    add("--each", type=cli.positive_int, help="run so many attacks of each kind")
    add("--only", nargs="+", default=[], choices=KINDS, metavar="KIND", help=f"of {', '.join(KINDS)}")
    add("-k", "--key", default="", help="a word that the names of attacks must hold")
    add("--processes", type=cli.positive_int, default=2, help="how many attacks run at once")
    add("--project", default="runs/attacks", help="results go to project/name")
    add("--name", default="exp", help="results go to project/name")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run attacks, print the table, and return the exit code."""
    chosen = [
        number
        for number, attack in enumerate(ATTACKS)
        if (not args.only or attack.kind in args.only) and args.key in attack.name
    ][:: args.every]
    if args.each:
        chosen = [number for kind in KINDS for number in some(kind, chosen, args.each)]
    outcomes = run(chosen, args.processes)
    folder = increment_path(args.project, args.name)
    rows = [
        {"kind": ATTACKS[n].kind, "name": ATTACKS[n].name, "ok": found.ok, **vars(found), "end": found.end.value}
        for n, found in outcomes.items()
    ]
    (folder / "attacks.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (folder / "attacks.md").write_text(f"{table(outcomes)}\n", encoding="utf-8")
    LOGGER.info(table(outcomes))
    for number, found in outcomes.items():
        if not found.ok:
            last = found.output.strip().rpartition("\n")[2]
            LOGGER.info(printable(f"{number} {ATTACKS[number].kind}: {ATTACKS[number].name}: {what(found)}: {last}"))
    LOGGER.info(printable(f"Results saved to {folder.resolve()}: attacks.md and attacks.json"))
    return 0 if all(found.ok for found in outcomes.values()) else 1


def some(kind: str, numbers: Sequence[int], count: int) -> Sequence[int]:
    """Return the numbers of `count` attacks of a kind, or fewer where there are fewer, spread over all of them."""
    mine = [number for number in numbers if ATTACKS[number].kind == kind]
    step = max(1, math.ceil(len(mine) / count))
    return mine[(step - 1) // 2 :: step]


def run(numbers: Sequence[int], processes: int = 2) -> dict[int, Outcome]:
    """Run attacks by their numbers, several at once, and return what came of each."""
    found: dict[int, Outcome] = {}
    with tempfile.TemporaryDirectory(prefix="repyolo-attacks-") as name:
        base = Path(name) / "base"
        base.mkdir()
        made = subprocess.run([*WORKER, "base", base], env=_environment(base), capture_output=True, check=False)
        if made.returncode:
            raise RuntimeError(made.stderr.decode()[-3000:])
        queue, bar = iter(numbers), TQDM(total=len(numbers), desc="Attacks")

        def serve(place: Path) -> None:
            place.mkdir()
            with Worker(base, place) as worker:
                for number in queue:
                    found[number] = worker.run(number)
                    bar.update(1)

        with ThreadPoolExecutor(processes) as pool:
            for done in [pool.submit(serve, Path(name) / str(i)) for i in range(processes)]:
                done.result()
        bar.close()
    return dict(sorted(found.items()))


class Worker:
    """A process that runs attacks, traced where that can be done; a context manager."""

    def __init__(self, base: Path, place: Path) -> None:
        self.base, self.place = base, place

    def __enter__(self) -> Worker:
        self.traces = self.place / "traces"
        self.traces.mkdir()
        command = [*WORKER, str(self.base), str(self.place)]
        if network.can_trace():
            calls = ["-e", "trace=connect,sendto,sendmsg,sendmmsg", "-e", "signal=none"]
            command = ["strace", "-ff", "-qq", "--seccomp-bpf", *calls, "-o", str(self.traces / "of"), *command]
        self.log = (self.place / "worker.log").open("w+")
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=_environment(self.base),
        )
        return self

    def __exit__(self, *_: object) -> None:
        _pipe(self.process.stdin).close()
        self.process.wait()
        self.log.close()

    def run(self, number: int) -> Outcome:
        """Run an attack and return what came of it."""
        _pipe(self.process.stdin).write(f"{number}\n")
        _pipe(self.process.stdin).flush()
        line = _pipe(self.process.stdout).readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"the process of the attacks has ended: {self.log.read()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return Outcome(End[answer["end"]], answer["executed"], self._lookups(), answer["output"])

    def _lookups(self) -> tuple[str, ...]:
        """Return the system calls since the last attack that reached for another machine."""
        found: list[str] = []
        for trace in self.traces.iterdir():
            found += [line for line in trace.read_text(errors="replace").splitlines() if network.leaves(line)]
            os.truncate(trace, 0)
        return tuple(found)


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _environment(home: Path) -> dict[str, str]:
    """Return the environment of a user's shell, whose home is a folder."""
    shell = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    ours = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    return {**shell, **ours, "PYTHONPATH": str(ROOT)}


# The table ------------------------------------------------------------------------------------------------------------
def table(outcomes: dict[int, Outcome]) -> str:
    """Return the table, in Markdown: a row for each kind and one for all."""
    looked = network.can_trace()
    lines = ["| by | tried | refused | harmless | executed | tracebacks | hangs | look-ups |", "|---|" + "--:|" * 7]
    groups = {kind: [found for n, found in outcomes.items() if ATTACKS[n].kind == kind] for kind in KINDS}
    for kind, found in {**groups, "all": list(outcomes.values())}.items():
        counts = [sum(one.end is end for one in found) for end in (End.REFUSED, End.HARMLESS)]
        counts.append(sum(one.executed for one in found))
        counts += [sum(one.end is end for one in found) for end in (End.TRACEBACK, End.HANG)]
        lookups = str(sum(bool(one.lookups) for one in found)) if looked else "not watched"
        if found:
            lines.append(f"| {kind} | {len(found)} | {' | '.join(map(str, counts))} | {lookups} |")
    return "\n".join(lines)


def what(found: Outcome) -> str:
    """Return what an attack achieved, in words."""
    done = [found.end.value] if found.end in (End.TRACEBACK, End.HANG) else []
    return ", ".join([*done, *["executed"] * found.executed, *found.lookups[:1]])


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
