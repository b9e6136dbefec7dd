"""Measure operators on a machine that has nothing but a runtime and numpy.

    python benchmark.py --cfg X.yaml --write-operators operators.zip      # on a computer with torch: the small models
    python -m utils.operators operators.zip --table table.json            # on the machine in question
    python benchmark.py --cfg X.yaml --explain --table table.json         # on the computer again: where the time goes

The table is saved after each group of operators, and a second start measures what it lacks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from models.errors import UserError
from utils.operators.archive import Archive, Setting
from utils.operators.measure import Effort, current_tables, measure_archive, missing
from utils.operators.table import FORMS, default_path
from utils.operators.timing import runtime_version


def make_parser() -> argparse.ArgumentParser:
    """Return the options."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m utils.operators", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("archive", metavar="ZIP", help="what python benchmark.py --write-operators wrote")
    add("--table", default="", metavar="FILE", help="of the costs; default: a file in your own folder for this machine")
    add("--forms", nargs="+", choices=FORMS, help="how to compute; default: what is in ZIP and can be computed here")
    add("--threads", nargs="+", type=int, default=[1], metavar="N", help="CPU threads, one number or several")
    add("--rounds", type=int, default=Effort.rounds, metavar="N", help="how many times each operator is timed")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Measure; return the exit code."""
    args = make_parser().parse_args(words)
    try:
        place = measure(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"Table saved to {place}")
    return 0


def measure(args: argparse.Namespace) -> Path:
    """Measure what the table lacks, and return where it is; UserError where an option is wrong."""
    if min([*args.threads, args.rounds]) < 1:
        raise UserError("--threads and --rounds take whole numbers from 1")
    archive, place = Archive(Path(args.archive)), Path(args.table) if args.table else default_path()
    forms = args.forms or [form for form, (runtime, _) in FORMS.items() if runtime_version(runtime)]
    settings = [Setting(*FORMS[form], threads) for form in forms for threads in args.threads]
    settings = [setting for setting in settings if args.forms or archive.kinds.get(setting.models)]
    if not settings:
        raise UserError(f"nothing in {args.archive} can be computed here: install onnxruntime, openvino or ncnn")
    tables = current_tables(place)
    total = sum(len(missing(archive, setting, tables)) for setting in settings)
    tables = measure_archive(archive, settings, place, Effort(args.rounds), progress(total))
    for setting in settings:
        print(tables[setting].summary)
    return place


def progress(total: int) -> Callable[[int], None]:
    """Return what moves a bar of so many operators in the terminal."""
    done = 0

    def after(count: int) -> None:
        nonlocal done
        done += count
        filled = round(30 * done / max(1, total))
        print(
            f"\r[{'#' * filled:<30}] {done}/{total} operators", end="\n" * (done >= total), file=sys.stderr, flush=True
        )

    return after


if __name__ == "__main__":
    sys.exit(main())
