"""What a search found: a table of all trainings, the Pareto picture, and the model YAML of the winner."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER

from models.environment import processor
from utils.architecture_search.candidates import Trained
from utils.architecture_search.search import Search
from utils.benchmark.forms import FORMS
from utils.comparison.report import draw_frontier
from utils.text import printable, quote
from utils.writing import replacing, write_text

TABLE, PICTURE, WINNER = "search.csv", "search.png", "winner.yaml"


def save_report(search: Search) -> None:
    """Write the table, the picture and the best network so far into the folder of a search."""
    trained = search.trained()
    write_text(search.folder / TABLE, as_table(search))
    draw(search, trained, search.folder / PICTURE)
    if winner := winner_of(trained):
        search.write_yaml(search.folder / WINNER, winner.candidate, *how_found(search, trained, winner))


def winner_of(trained: Sequence[Sequence[Trained]]) -> Trained | None:
    """Return the most accurate network of the last rung in which one could be trained; None where there is none."""
    return next((rung[0] for rung in reversed(trained) if rung), None)


def how_found(search: Search, trained: Sequence[Sequence[Trained]], winner: Trained) -> list[str]:
    """Return sentences on how a network was found, for people who read its YAML."""
    options, one = search.options, winner.candidate
    networks = {each.candidate.name for rung in trained for each in rung}
    budget, threads, side = options["budget_ms"], options["threads"], options["latency_imgsz"]
    title = FORMS[options["form"]].title
    return [
        f"Found by python -m utils.architecture_search --budget-ms {budget:g}: {one.name}, the best of {len(networks)}",
        f"{one.milliseconds:.2f} ms at {side} pixels, {title}, {threads} thread(s), {processor()}",
        printable(
            f"mAP50-95 {100 * winner.fitness:.1f} after {search.steps()[len(trained) - 1].epochs} epochs at "
            f"{options['imgsz']} pixels on {Path(options['data']).name}"
        ),
    ]


def as_table(search: Search) -> str:
    """Return the trainings as CSV, a line for each."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    genes = list(search.genes)
    writer.writerow(["rung", "network", "mutated from", "epochs", "mAP50-95", "problem", "ms", *genes])
    for number, step in enumerate(search.steps(), 1):
        rung = search.rung(number)
        results = rung.results() or {}
        for one in rung.candidates() or ():
            result = results.get(one.name, "")
            outcome = [result, ""] if isinstance(result, float) else ["", printable(result)]
            values = [getattr(one.shape, name) for name in genes]
            writer.writerow([number, one.name, one.parent, step.epochs, *outcome, one.milliseconds, *values])
    return text.getvalue()


def draw(search: Search, trained: Sequence[Sequence[Trained]], path: Path) -> None:
    """Draw accuracy against latency, a colour for each rung; the winner and the budget are marked."""
    from matplotlib.figure import Figure  # noqa: PLC0415 (slow)

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes: Any = figure.add_subplot()
    for number, (step, rung) in enumerate(zip(search.steps(), trained, strict=False), 1):
        if rung:
            points = map(place, rung)
            axes.plot(*zip(*points, strict=True), "o", label=f"rung {number}: {step.kind}, {step.epochs} epochs")
    if winner := winner_of(trained):
        last = next(rung for rung in reversed(trained) if rung)
        draw_frontier(axes, map(place, last))
        axes.plot(*place(winner), "*", markersize=18, color="#dc2626", label=f"winner: {winner.candidate.name}")
    axes.axvline(search.options["budget_ms"], color="#9ca3af", linestyle=":", label="budget")
    axes.set_xlabel(f"ms a picture of {search.conditions.side} pixels, {FORMS[search.options['form']].title}")
    axes.set_ylabel("mAP50-95")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(path) as file:
        figure.savefig(file, dpi=130, format="png")


def place(trained: Trained) -> tuple[float, float]:
    """Return the point of a network in the picture: ms and mAP in percent."""
    return trained.candidate.milliseconds, 100 * trained.fitness


def log_end(search: Search) -> None:
    """Say what a search found, where it is, and how the winner is trained."""
    trained = search.trained()
    winner = winner_of(trained)
    if winner is None:
        LOGGER.error(f"no network could be trained, see {search.folder}/rung-*.txt")
        return
    options, path = search.options, search.folder / WINNER
    words = ["--data", quote(options["data"]), *(["--hyp", quote(options["hyp"])] if options["hyp"] else [])]
    words += ["--imgsz", str(options["imgsz"]), "--batch-size", str(options["batch_size"])]
    one = winner.candidate
    LOGGER.info(
        f"\n{one.name} is the best of those within {options['budget_ms']:g} ms: {one.milliseconds:.2f} ms, mAP50-95 "
        f"{100 * winner.fitness:.1f} after {search.steps()[len(trained) - 1].epochs} epochs\n{one.shape}"
        f"\nResults saved to {search.folder}: {WINNER}, {TABLE}, {PICTURE}, candidates/, and the page of each rung"
        f"\nTrain it at full length:  python train.py --cfg {quote(path)} {' '.join(words)}"
    )
