"""Design a detector for your data and your machine: the most accurate network within a latency.

    python -m utils.architecture_search --budget-ms 15 --data my-data.yaml
    python -m utils.architecture_search --budget-ms 8 --data my-data.yaml --imgsz 320 --latency-imgsz 640 --form int8
    python -m utils.architecture_search --budget-ms 15 --genes act=relu head=anchors --candidates 32 --generations 3
    python -m utils.architecture_search --budget-ms 15 --data my-data.yaml --dry-run      # what would be done
    python -m utils.architecture_search --resume runs/search/exp                          # after a stop or a kill

The networks are of one family, plain convolutions in stages, a neck and a head, which --genes narrows down. Candidates
are drawn at random, get as wide as the budget allows, and are timed fused and written, in turns, so that none over the
budget is trained. compare.py trains them for a few epochs, then mutations of the best ones; then the better half of all
for twice the epochs, and so on (successive halving, https://arxiv.org/abs/1502.07943).

Written to runs/search/exp, exp2, …: winner.yaml, which train.py takes; search.csv and search.png, accuracy against
latency; candidates/; and for each rung the page of its comparison.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from models.errors import UserError
from utils import cli
from utils.architecture_search.family import GENES, restricted
from utils.architecture_search.search import LATENCY, Search, load_options
from utils.architecture_search.timing import TIMED_FORMS, Forecast, Stopwatch, open_table, table_of_this_machine
from utils.architecture_search.work import Means, search_on, try_out
from utils.benchmark.forms import FORMS, ONNX
from utils.comparison.estimate import work_of
from utils.comparison.recipe import fill_in
from utils.data.description import load_dataset
from utils.data.files import check_images
from utils.deploy.formats import FORMATS
from utils.operators.table import COMMAND
from utils.paths import increment_path
from utils.text import printable
from utils.writing import remove_partials

BESIDE_RESUME = ("device", "jobs")  # options that may be others when a search goes on
NOT_KEPT = (*BESIDE_RESUME, "dry_run", "resume", "project", "name", "plugins", "download", "megapixels")


def make_parser() -> cli.Parser:
    """Return the options."""
    genes = "".join(f"\n  {name:9} {gene}" for name, gene in GENES.items())
    parser = cli.Parser(
        prog="python -m utils.architecture_search",
        description=__doc__,
        epilog=f"genes, which docs/searching.md explains, and what they can be:{genes}",
    )
    add = parser.add_argument
    add("--budget-ms", type=cli.positive_float, help="milliseconds that a network takes at most")
    add("--data", default="", help="data set YAML; default: the built-in shapes")
    add("--hyp", default="", help="recipe of all trainings")
    add("--imgsz", "--img", "--img-size", type=cli.image_side, help="side of the pictures in pixels; of the recipe")
    add("--batch-size", type=cli.positive_int, help="pictures a step; of the recipe when not given")
    add("--latency-imgsz", type=cli.image_side, help="side of the picture that the budget is for; default: --imgsz")
    add("--form", default=ONNX, choices=TIMED_FORMS, help="in which form networks are timed")
    add("--threads", type=cli.positive_int, default=1, help="CPU threads of the timed runtime")
    add("--rounds", type=cli.positive_int, default=20, help="how many times each network is timed; the least counts")
    add("--table", default="", metavar="FILE", help="what operators cost; default: this machine's, if there is one")
    add("--genes", nargs="+", default=[], metavar="GENE=VALUES", help="narrow the family: act=relu width2=16-64")
    add("--candidates", type=cli.small_int, default=16, help="networks of the first rung")
    add("--epochs", type=cli.positive_int, default=5, help="of each training in the first rungs")
    add("--generations", type=cli.small_int, default=2, help="the first one is random, others are mutations")
    add("--halvings", type=cli.small_int, default=3, help="rungs of the better half, for twice the epochs, at most")
    add("--seed", type=cli.non_negative_int, default=0, help="of all random choices")
    add("--device", nargs="+", type=cli.device, default=[""], help="of the trainings: cpu, or GPUs: 0 1 2")
    add("--jobs", type=cli.small_int, default=1, help="trainings side by side on each device")
    add("--dry-run", action="store_true", help="choose the first candidates, say what would be done, and end")
    add("--resume", default="", metavar="FOLDER", help="go on with a search")
    add("--project", default="runs/search", help="results go to project/name")
    add("--name", default="exp", help="results go to project/name")
    cli.add_consents(parser)
    return parser


def run(**options: object) -> Path:
    """Search from Python, `run(budget_ms=15, data="my-data.yaml")`, and return the folder of the results.

    Raises:
        UserError: an option is wrong, or no network of the family is as fast as the budget asks.
    """
    return search(make_parser().from_keywords(**options))


def main(args: argparse.Namespace) -> int:
    """Search as the command line says."""
    search(args)
    return 0


def search(args: argparse.Namespace) -> Path:
    """Plan a search, or read the plan of one that goes on, and work it off; return its folder."""
    cli.log_options("architecture_search", args)
    cli.take_consents(args)
    if args.resume:
        read_plan(args)
    else:
        check_plan(args)
        args.table = args.table or table_of_this_machine(args.form, args.threads)
    data = load_dataset(args.data)
    means = Means(
        words=words_of_trainings(args),
        machine=words_of_machine(args),
        epoch=work_of(data, check_images(data, training=True), args),
    )
    kept = {name: value for name, value in vars(args).items() if name not in NOT_KEPT}
    if args.dry_run:
        with tempfile.TemporaryDirectory() as temporary:
            found = Search(Path(temporary), kept, data["nc"], data["channels"])
            try_out(found, means, *clocks(found))
        return Path(args.project)
    folder = Path(args.resume) if args.resume else increment_path(args.project, args.name)
    found = Search(folder.resolve(), kept, data["nc"], data["channels"])
    if args.resume:
        remove_partials(found.folder)
    else:
        found.save()
    search_on(found, means, *clocks(found))
    return found.folder


def clocks(search: Search) -> tuple[Stopwatch, Forecast | None]:
    """Return what measures how long networks take, and what predicts it, if there is a table."""
    stopwatch, file = Stopwatch(search.conditions, search.folder / LATENCY), search.options["table"]
    if not file:
        LOGGER.info(f"all networks are timed, as there is no table of operators to predict from ({COMMAND})")
        return stopwatch, None
    LOGGER.info(printable(f"how long networks take is predicted from {file}, then measured"))
    return stopwatch, Forecast(search.conditions, open_table(file, search.options["form"], search.options["threads"]))


def check_plan(args: argparse.Namespace) -> None:
    """Check the options of a new search, and give those that it leaves to the recipe their values.

    Raises:
        UserError: one is wrong.
    """
    if args.budget_ms is None:
        raise UserError("name the milliseconds that a network may take, for instance --budget-ms 15")
    if reason := FORMATS[FORMS[args.form].format or ONNX].not_run:
        raise UserError(f"--form {args.form} cannot be timed here: {reason}")
    restricted(args.genes)
    fill_in(args)
    args.latency_imgsz = args.latency_imgsz or args.imgsz
    if args.table:
        args.table = str(Path(args.table).absolute())
        open_table(args.table, args.form, args.threads)


def read_plan(args: argparse.Namespace) -> None:
    """Give options the values of the search that goes on, checked as those of a command line are.

    Raises:
        UserError: the folder holds no search, or other options are given that would make it another one.
    """
    options = load_options(Path(args.resume))
    if unknown := [name for name in options if name in NOT_KEPT or name not in vars(args)]:
        raise UserError(f"{args.resume} holds no search of this version: it has an option '{unknown[0]}'")
    cli.refuse_changes(args.given & options.keys(), "a search")
    planned = make_parser().from_keywords(**options)
    check_plan(planned)
    vars(args).update({name: value for name, value in vars(planned).items() if name not in NOT_KEPT})


def words_of_trainings(args: argparse.Namespace) -> list[str]:
    """Return the words of a command line of compare.py that all trainings have in common."""
    words: list[Any] = ["--data", args.data, "--imgsz", args.imgsz, "--batch-size", args.batch_size]
    words += ["--hyp", args.hyp] if args.hyp else []
    return [*map(str, words), "--runtime", FORMS[args.form].format or ONNX]


def words_of_machine(args: argparse.Namespace) -> list[str]:
    """Return those that may be others when a search goes on."""
    words: list[Any] = ["--threads", args.threads, "--jobs", args.jobs, "--megapixels", args.megapixels]
    words += ["--device", *args.device] if any(args.device) else []
    words += ["--download"] if args.download else []
    return [*map(str, words), *(["--plugins", *args.plugins] if args.plugins else [])]


if __name__ == "__main__":
    sys.exit(cli.run_script(main, make_parser()))
