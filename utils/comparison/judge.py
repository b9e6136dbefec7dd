"""From the results of all trainings to a row for each network, and what can be said of them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np

from utils.comparison.disagreement import draw_disagreements
from utils.comparison.measure import load_found
from utils.comparison.plan import Job, Plan
from utils.comparison.report import Compared, Judgement, verdict
from utils.comparison.statistics import Sample
from utils.comparison.timing import Timed, time_files
from utils.data.description import load_dataset
from utils.text import printable

Results = Mapping[Job, Mapping[str, Any]]  # of each training, as `Job.result` returns it


def judge(plan: Plan, threads: Sequence[int], rounds: int) -> Judgement:
    """Measure latencies and return what can be said of the networks of a comparison whose trainings are over.

    Args:
        plan: of the comparison.
        threads: of the CPU, to time files with; the first number is the one whose latency counts.
        rounds: how many times each file is timed.

    Raises:
        UserError: a result is damaged, or a data set is another one.
    """
    results = {job: job.result() or {} for job in plan.jobs()}
    parts = {
        name: judge_on(plan, name, {job: result for job, result in results.items() if job.data == data})
        for name, data in plan.data_sets.items()
    }
    found = over(parts) if len(parts) > 1 else next(iter(parts.values()))
    if found.sample:
        first = next(iter(parts.values())).sample or found.sample
        latency = time_files(timed_files(plan, results, first.scores), threads, rounds)
        for one in (found, *found.parts.values()):
            for row in one.rows:
                row.by_threads = latency.get(row.name, {})
            one.sentence = verdict(one.sample, one.rows) if one.sample else ""
    return found


def judge_on(plan: Plan, name: str, results: Results) -> Judgement:
    """Return what is known of the networks on a data set, but for latencies and the verdict.

    Args:
        plan: of the comparison.
        name: of the data set, as the plan has it.
        results: of the trainings on it.
    """
    good: dict[str, list[Job]] = {}
    rows = []
    for entry in plan.entries:
        mine = [job for job in results if job.entry.name == entry.name]
        problems = dict.fromkeys(results[job]["problem"] for job in mine if "problem" in results[job])
        rows.append(Compared(entry.name, plan.epochs[mine[0].kind], problem=printable("; ".join(problems))))
        if not problems:
            good[entry.name] = mine
    if not good:
        return Judgement(rows)
    data = load_dataset(plan.data_sets[name])
    detections = {network: [load_found(job, data) for job in jobs] for network, jobs in good.items()}
    sample = Sample(detections, seed=list(plan.data_sets).index(name))
    for row in (row for row in rows if row.name in good):
        fill(row, [results[job] for job in good[row.name]], sample, data["names"])
    pictures = {}
    if len(good) > 1:
        first, second = sample.ranked()[:2]
        files = {network: good[network][0].files[good[network][0].runtimes[0]] for network in (first, second)}
        place = plan.folder / f"disagreement{f'-{name}' if name else ''}.jpg"
        drawn = draw_disagreements(files, {network: detections[network][0] for network in files}, place)
        pictures = {f"Where {first} and {second} disagree most": drawn}
    return Judgement(rows, sample, pictures=pictures)


def fill(row: Compared, outcomes: Sequence[Mapping[str, Any]], sample: Sample, names: Mapping[int, str]) -> None:
    """Give a row what the trainings of its network on one data set came to.

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


def over(parts: Mapping[str, Judgement]) -> Judgement:
    """Return what is known of the networks on the mean over several data sets, but for latencies and the verdict.

    A network of which a training failed on any of them has no mean.
    """
    known = [part.sample for part in parts.values() if part.sample]
    sample = Sample.over(known) if len(known) == len(parts) else None
    rows = [mean_row(several) for several in zip(*(part.rows for part in parts.values()), strict=True)]
    if sample:
        for row in (row for row in rows if row.name in sample.scores):
            rate(row, sample)
    return Judgement(rows, sample, parts=dict(parts))


def mean_row(several: Sequence[Compared]) -> Compared:
    """Return the row of a network over several data sets, but for its accuracy, from those of each."""
    row = Compared(several[0].name, round(float(np.mean([one.epochs for one in several]))), params=several[0].params)
    row.problem = "; ".join(dict.fromkeys(one.problem for one in several if one.problem))
    minutes = [one.minutes for one in several if one.minutes is not None]
    if len(minutes) == len(several):
        row.minutes, row.maps = float(np.mean(minutes)), means([one.maps for one in several])
    return row


def rate(row: Compared, sample: Sample) -> None:
    """Give a row the accuracy of its network, and how far that is behind the best one."""
    row.accuracy, row.seeds = sample.accuracy(row.name), sample.scores[row.name].tolist()
    row.behind = sample.difference(sample.best(), row.name) if row.name != sample.best() else None


def means(several: Sequence[Mapping[Any, float]]) -> dict[Any, float]:
    """Return the mean of each value that all of these mappings have."""
    return {
        key: float(np.mean([one[key] for one in several])) for key in several[0] if all(key in one for one in several)
    }


def timed_files(plan: Plan, results: Results, names: Container[str]) -> dict[str, Timed]:
    """Return of these networks what is timed: the files of the first seed on the first data set.

    Args:
        plan: of the comparison.
        results: of all trainings, in the order of the plan.
        names: of the networks.
    """
    known = [job for job in list(results)[: len(plan.entries)] if job.entry.name in names]
    return {job.entry.name: Timed(job.timed_files, results[job]["input"]) for job in known}
