"""The trainings of a comparison, side by side in processes, each step a script that users run as well."""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from dataclasses import dataclass

from ultralytics.utils import LOGGER, TQDM

from models.errors import UserError
from models.files import why_no_file
from utils.comparison.plan import Job, Plan
from utils.comparison.trainers import TRAINERS
from utils.distributed.scripts import start_script, why_ended
from utils.text import printable

POLL = 0.2  # seconds between two looks at the trainings


@dataclass
class Running:
    """A job that this process has taken.

    Attributes:
        job: what is done.
        device: that it is done on.
        lock: of the job; the processes inherit it.
        steps: the command lines that are left.
        process: the step that runs.
    """

    job: Job
    device: str
    lock: int
    steps: list[list[str]]
    process: subprocess.Popen[bytes]


def work_off(plan: Plan, args: argparse.Namespace) -> None:
    """Have every training done that is not done yet, each in processes, and wait for those that others work on."""
    free = list(args.device) * args.jobs
    running: list[Running] = []
    jobs = plan.jobs()
    with TQDM(total=sum(plan.epochs[job.kind] for job in jobs), desc="training epochs") as bar:
        try:
            while left := [job for job in jobs if not job.result()]:
                for one in [one for one in running if one.process.poll() is not None]:
                    if not go_on(one, args):
                        running.remove(one)
                        free.append(one.device)
                taken = [one.job for one in running]
                for job in left:
                    if free and job not in taken and (started := begin(plan, job, free[0], args)):
                        running.append(started)
                        free.pop(0)
                if more := sum(epochs_done(plan, job) for job in jobs) - bar.n:
                    bar.update(more)
                time.sleep(POLL)
        finally:
            for one in running:
                one.process.terminate()
            for one in running:
                one.process.wait()
                os.close(one.lock)


def begin(plan: Plan, job: Job, device: str, args: argparse.Namespace) -> Running | None:
    """Take a job and start its first step; None where somebody has it, or has just ended it, or it cannot start."""
    lock = job.take()
    if lock is None:
        return None
    if job.result():
        os.close(lock)
        return None
    try:
        first, *steps = command_lines(plan, job, device, args)
    except UserError as error:
        note_failure(job, str(error))
        os.close(lock)
        return None
    return Running(job, device, lock, steps, start(first, job, lock, args))


def go_on(one: Running, args: argparse.Namespace) -> bool:
    """Start the next step of a job whose step has ended; return False where none is left, or it has failed."""
    if one.process.returncode == 0 and one.steps:
        one.process = start(one.steps.pop(0), one.job, one.lock, args)
        return True
    if not one.job.result():
        note_failure(one.job, why_ended(one.job.log, one.process.returncode))
    os.close(one.lock)
    return False


def command_lines(plan: Plan, job: Job, device: str, args: argparse.Namespace) -> list[list[str]]:
    """Return what is run for a job: train, or go on with that; write and prove files, those to time too; measure."""
    on = ["--device", device] if device else []
    consents = ["--megapixels", str(args.megapixels), *(["--download"] if args.download else [])]
    consents += ["--plugins", *args.plugins] if args.plugins else []
    training = TRAINERS[job.entry.trainer].steps(plan, job, on, consents)
    export = ["export.py", "--weights", str(job.weights), "--include", *job.runtimes, *consents]
    export += ["--int8", "--data", job.data, "--max-drop", "100"] if job.int8 else []
    exports = [export]
    if job.time_imgsz:
        exports += [[*export, "--imgsz", str(job.time_imgsz), "--output", str(job.timed_folder)]]
    measure = ["compare.py", "--resume", str(plan.folder), "--only", job.name, *consents]
    return [*training, *exports, measure]


def start(words: list[str], job: Job, lock: int, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    """Start a script of ours, which inherits the lock; what it says goes to the log of the job."""
    share = max(1, (os.cpu_count() or 1) // (args.jobs * len(args.device)))
    return start_script(words, job.log, lock, {"OMP_NUM_THREADS": str(share)})


def note_failure(job: Job, reason: str) -> None:
    """Keep why a training has no result, so that the others go on."""
    LOGGER.error(printable(f"{job.name} failed: {reason} (see {job.log})"))
    job.end(problem=reason)


def epochs_done(plan: Plan, job: Job) -> int:
    """Return how many epochs of a training are behind it; all of them where it is over."""
    results = job.run / "results.csv"
    if job.result():
        return plan.epochs[job.kind]
    return 0 if why_no_file(results) else max(0, results.read_bytes().count(b"\n") - 1)
