"""The trainings of a search, one after the other, each a process; then what they found."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ultralytics.utils import LOGGER, TQDM

from models.errors import UserError
from utils.distributed.scripts import advance, ended, held, start_script, why_ended
from utils.evolution.report import best_of, log_end, save_report
from utils.evolution.search import Generation, Search
from utils.text import printable, quote
from utils.train.run import NOT_FINITE, final_metrics

POLL = 0.2  # seconds between two looks at a training
FITNESS = {  # by task, of the metrics: their mean is what is searched for
    "detect": ("metrics/mAP50-95(B)",),
    "segment": ("metrics/mAP50-95(B)", "metrics/mAP50-95(M)"),
    "classify": ("metrics/accuracy_top1",),
}


def search_on(search: Search, consents: Sequence[str]) -> None:
    """Train all generations that are left, and keep after each what was found.

    Args:
        search: to go on with.
        consents: words of the command line that allow what a file alone may not have done, such as plugins.

    Raises:
        UserError: a training ended for another reason than its values.
    """
    with (
        held(search.folder, how_to_go_on(search)) as lock,
        TQDM(total=search.generations * search.epochs, desc="evolving") as bar,
    ):
        while (number := len(search.results())) < search.generations:
            advance(bar, number * search.epochs)
            train_one(search, search.generation(number), consents, lock, bar)
            after_one(search, number)
        advance(bar, search.generations * search.epochs)
    log_end(search)


def how_to_go_on(search: Search) -> str:
    """Return the command that goes on with a search."""
    return f"python train.py --resume {quote(search.folder)}"


def train_one(search: Search, generation: Generation, consents: Sequence[str], lock: int, bar: Any) -> None:
    """Train one generation, or go on with its training, and keep its result."""
    values = search.values(generation.number)
    generation.folder.mkdir(parents=True, exist_ok=True)
    metrics = final_metrics(generation.run)
    if not metrics:  # a training that a kill has left may have ended meanwhile
        search.write_recipe(generation.recipe, values)
        words = [*words_of(search, generation), *consents]
        with ended(start_script(words, generation.log, lock, folder=Path(search.place))) as process:
            while process.poll() is None:
                advance(bar, generation.number * search.epochs + epochs_done(generation))
                time.sleep(POLL)
        metrics = final_metrics(generation.run)
        if process.returncode or not metrics:
            note_failure(search, generation, values, process.returncode)
            return
    chosen = {key: float(metrics[key]) for key in FITNESS[search.task]}
    generation.end(values=values, fitness=sum(chosen.values()) / len(chosen), metrics=metrics)


def words_of(search: Search, generation: Generation) -> list[str]:
    """Return the command line of a training, or of going on with it."""
    last = generation.run / "weights/last.pt"
    if last.is_file():
        return ["train.py", "--resume", str(last)]
    own = ["--hyp", str(generation.recipe), "--project", str(generation.folder), "--name", generation.run.name]
    return ["train.py", *search.words, *own, "--exist-ok", "--noplots"]


def note_failure(search: Search, generation: Generation, values: dict[str, float], code: int) -> None:
    """Keep a training with fitness 0 whose loss was not finite, as its values make it.

    Raises:
        UserError: it ended for another reason, or it is the first one, whose values are the recipe's.
    """
    reason = why_ended(generation.log, code)
    if not reason.startswith(NOT_FINITE) or generation.number == 0:
        what = "the recipe itself" if generation.number == 0 else f"generation {generation.number}"
        raise UserError(
            f"{what} could not be trained: {reason} (see {generation.log}); go on with {how_to_go_on(search)}"
        )
    generation.end(values=values, fitness=0.0, metrics={}, problem=reason)


def after_one(search: Search, number: int) -> None:
    """Write what was found so far, say it, and keep the weights of the best generation only."""
    save_report(search)
    results = search.results()
    best = best_of(results)
    for other in range(number + 1):
        if other != best:
            shutil.rmtree(search.generation(other).run / "weights", ignore_errors=True)
    problem = results[number].get("problem", "")
    LOGGER.info(
        printable(
            f"generation {number}: {results[number]['fitness']:.4f}{problem and f' ({problem})'}, the best is "
            f"{results[best]['fitness']:.4f} of generation {best}"
        )
    )


def epochs_done(generation: Generation) -> int:
    """Return how many epochs of a training are behind it."""
    results = generation.run / "results.csv"
    return max(0, len(results.read_text(encoding="utf-8").splitlines()) - 1) if results.is_file() else 0
