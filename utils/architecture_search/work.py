"""The rungs of a search, one after the other, each a comparison of compare.py in a process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ultralytics.utils import LOGGER, TQDM

from models.errors import UserError
from models.files import why_no_file
from utils.architecture_search.candidates import Candidate, Clock
from utils.architecture_search.report import log_end, save_report
from utils.architecture_search.search import Rung, Search
from utils.comparison import plan
from utils.comparison.estimate import Work, epoch_seconds
from utils.comparison.work import epochs_done
from utils.distributed.scripts import advance, ended, held, start_script, why_ended
from utils.text import printable, quote

POLL = 0.5  # seconds between two looks at a comparison


@dataclass(frozen=True)
class Means:
    """What the comparisons are made with.

    Attributes:
        words: of their command line: data set, recipe, sizes.
        machine: words as well: devices and what the user consents to, which may be others when a search goes on.
        epoch: the work of one epoch.
    """

    words: Sequence[str]
    machine: Sequence[str]
    epoch: Work


def search_on(search: Search, means: Means, clock: Clock, predict: Clock | None = None) -> None:
    """Work off all rungs that are left, and keep after each what was found.

    Args:
        search: to go on with.
        means: what the comparisons are made with.
        clock: measures how long networks take.
        predict: says about how long they take; None: there is no table.

    Raises:
        UserError: no network takes so little, or a comparison came to nothing.
    """
    steps = search.steps()
    with held(search.folder, how_to_go_on(search)) as lock:
        search.check_budget(clock)
        left = range(len(search.trained()) + 1, len(steps) + 1)
        for number in left:
            rung = search.rung(number)
            candidates = rung.candidates()
            if candidates is None:
                candidates = search.choose(number, clock, predict)
                rung.save(steps[number - 1], candidates)
                if number == 1:
                    say_how_long(search, candidates, means)
            if candidates:
                compare(search, rung, candidates, means, lock)
            save_report(search)
        if not left:
            save_report(search)  # which a stop may have left undone
    log_end(search)


def try_out(search: Search, means: Means, clock: Clock, predict: Clock | None = None) -> None:
    """Choose the candidates of the first rung, and say what would be done."""
    search.check_budget(clock)
    candidates = search.choose(1, clock, predict)
    for one in candidates:
        LOGGER.info(f"{one.name}: {one.milliseconds:.2f} ms: {one.shape}")
    say_how_long(search, candidates, means)


def how_to_go_on(search: Search) -> str:
    """Return the command that goes on with a search."""
    return f"python -m utils.architecture_search --resume {quote(search.folder)}"


def say_how_long(search: Search, candidates: Sequence[Candidate], means: Means) -> None:
    """Say what the rungs will do, and for about how long, by the time of a candidate in the middle."""
    middle = sorted(candidates, key=lambda one: one.milliseconds)[len(candidates) // 2]
    seconds = epoch_seconds(search.content(middle), means.epoch)
    for number, step in enumerate(search.steps(), 1):
        minutes = step.count * step.epochs * seconds / 60
        LOGGER.info(f"rung {number}: {step.count} networks ({step.kind}), {step.epochs} epochs, {minutes:.1f} minutes")
    total = sum(step.count * step.epochs for step in search.steps()) * seconds / 60
    LOGGER.info(f"one training at a time: about {total:.0f} minutes")


def compare(search: Search, rung: Rung, candidates: Sequence[Candidate], means: Means, lock: int) -> None:
    """Train the candidates of a rung by compare.py, or go on with that.

    Raises:
        UserError: it came to nothing.
    """
    step = search.steps()[rung.number - 1]
    for candidate in candidates:
        search.write_yaml(search.yaml(candidate), candidate)
    resumed = not why_no_file(rung.comparison / plan.PLAN)
    if not resumed:
        shutil.rmtree(rung.comparison, ignore_errors=True)  # what a kill has left of its first moments
    words = words_of(search, rung, candidates, means, resumed)
    title = f"rung {rung.number} of {len(search.steps())}: {len(candidates)} networks"
    with (
        ended(start_script(words, rung.log, lock)) as process,
        TQDM(total=len(candidates) * step.epochs, desc=f"{title}, epochs") as bar,
    ):
        while process.poll() is None and why_no_file(rung.comparison / plan.PLAN):
            time.sleep(POLL)
        comparison = None if process.poll() else plan.load_plan(rung.comparison)
        while comparison and process.poll() is None:
            time.sleep(POLL)
            advance(bar, sum(epochs_done(comparison, job) for job in comparison.jobs()))
    if process.returncode:
        why = why_ended(rung.log, process.returncode)
        raise UserError(f"{title}: {why} (see {rung.log}); go on with {how_to_go_on(search)}")
    for name, result in (rung.results() or {}).items():
        if isinstance(result, str):
            LOGGER.warning(printable(f"{name} failed: {result}"))


def words_of(search: Search, rung: Rung, candidates: Sequence[Candidate], means: Means, resumed: bool) -> list[str]:
    """Return the command line of a comparison, or of going on with it."""
    if resumed:
        return ["compare.py", "--resume", str(rung.comparison), *means.machine]
    files = [str(search.yaml(candidate)) for candidate in candidates]
    own = ["--epochs", str(search.steps()[rung.number - 1].epochs), "--seeds", "1"]
    own += ["--project", str(search.folder), "--name", rung.name]
    return ["compare.py", "--cfg", *files, *own, *means.words, *means.machine]
