"""From the results of all trainings to a row for each network, and what can be said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.comparison.detections import Detections
from utils.comparison.disagreement import draw_disagreements
from utils.comparison.measure import load_found
from utils.comparison.plan import Job, Plan
from utils.comparison.report import Compared, verdict
from utils.comparison.statistics import Sample
from utils.comparison.timing import Timed, time_files
from utils.data.description import load_dataset
from utils.text import printable


@dataclass
class Judgement:
    """What is known of the networks on a data set.

    Attributes:
        rows: of all networks, in the order of the command line.
        jobs: network → its trainings, the first seed first; without those of which one failed.
        results: of these trainings.
        found: network → what it found with each seed.
        sample: their accuracies; None where there is no network.
        sentence: the verdict.
        pictures: title → a picture for the page.
    """

    rows: list[Compared]
    jobs: dict[str, list[Job]] = field(default_factory=dict)
    results: dict[Job, dict[str, Any]] = field(default_factory=dict)
    found: dict[str, list[Detections]] = field(default_factory=dict)
    sample: Sample | None = None
    sentence: str = ""
    pictures: dict[str, Path] = field(default_factory=dict)


def judge(plan: Plan, threads: Sequence[int], rounds: int) -> Judgement:
    """Measure latencies and return what can be said of the networks of a comparison whose trainings are over.

    Args:
        plan: of the comparison.
        threads: of the CPU, to time files with; the first number is the one whose latency counts.
        rounds: how many times each file is timed.
    """
    now = read_results(plan)
    if now.sample:
        files = {name: Timed(jobs[0].timed_files, now.results[jobs[0]]["input"]) for name, jobs in now.jobs.items()}
        latency = time_files(files, threads, rounds)
        for row in now.rows:
            row.by_threads = latency.get(row.name, {})
        now.sentence = verdict(now.sample, now.rows)
        now.pictures = disagreements(now, plan.folder)
    return now


def read_results(plan: Plan) -> Judgement:
    """Return what the trainings came to, but for latencies and what follows from them.

    Raises:
        UserError: a result is damaged, or the data set is another one.
    """
    now = Judgement([Compared(entry.name, plan.epochs[entry.name]) for entry in plan.entries])
    results = {job: job.result() or {} for job in plan.jobs()}
    for row in now.rows:
        mine = [job for job in results if job.entry.name == row.name]
        problems = dict.fromkeys(results[job]["problem"] for job in mine if "problem" in results[job])
        row.problem = printable("; ".join(problems))
        if not row.problem:
            now.jobs[row.name] = mine
            now.results |= {job: results[job] for job in mine}
    if now.jobs:
        data = load_dataset(plan.options["data"])
        now.found = {name: [load_found(job, data) for job in jobs] for name, jobs in now.jobs.items()}
        now.sample = Sample(now.found)
        for row in (row for row in now.rows if row.name in now.jobs):
            fill(row, [results[job] for job in now.jobs[row.name]], now.sample, data["names"])
    return now


def fill(row: Compared, outcomes: Sequence[Mapping[str, Any]], sample: Sample, names: Mapping[int, str]) -> None:
    """Give a row what the trainings of its network came to.

    Args:
        row: of the network.
        outcomes: of each training, as `Job.result` returns it.
        sample: the accuracies of all networks.
        names: of the classes.
    """
    row.params, row.minutes = outcomes[0]["params"], float(np.mean([one["minutes"] for one in outcomes]))
    row.maps = means([one["maps"] for one in outcomes])
    row.sizes = means([one["sizes"] for one in outcomes])
    row.classes = {names[key]: value for key, value in means(sample.classes[row.name]).items()}
    rate(row, sample)


def rate(row: Compared, sample: Sample) -> None:
    """Give a row the accuracy of its network, and how far that is behind the best one."""
    row.accuracy, row.seeds = sample.accuracy(row.name), sample.scores[row.name].tolist()
    row.behind = sample.difference(sample.best(), row.name) if row.name != sample.best() else None


def means(several: Sequence[Mapping[Any, float]]) -> dict[Any, float]:
    """Return the mean of each value that all of these mappings have."""
    return {
        key: float(np.mean([one[key] for one in several])) for key in several[0] if all(key in one for one in several)
    }


def disagreements(now: Judgement, folder: Path) -> dict[str, Path]:
    """Draw where the two best networks disagree most into a folder, and return title → picture."""
    if now.sample is None or len(now.jobs) < 2:
        return {}
    first, second = now.sample.ranked()[:2]
    files = {name: now.jobs[name][0].files[now.jobs[name][0].runtimes[0]] for name in (first, second)}
    first_seed = {name: now.found[name][0] for name in files}
    return {f"Where {first} and {second} disagree most": draw_disagreements(files, first_seed, folder)}
