"""What came out of a training, as numbers: kept in its folder, and read and checked again for the report."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models import switch_to_deploy
from models.errors import UserError
from models.files import why_no_file
from models.summary import count_parameters
from utils.checkpoint import load_checkpoint
from utils.comparison.detections import Detections, find_objects
from utils.comparison.plan import Job
from utils.data.files import list_images
from utils.sizes import check_imgsz
from utils.text import shorten


def finish(job: Job) -> None:
    """Measure the files of a job that was trained and exported, and keep the result."""
    model = load_checkpoint(job.weights)
    stride = int(model.stride.max())
    side = max(check_imgsz(model.imgsz, stride))
    found = {form: find_objects(path, job.data, side, job.folder / form) for form, path in job.files.items()}
    _, sizes, detections = found[job.runtimes[0]]
    detections.save(job.found)
    job.end(
        minutes=trained_minutes(job.run / "results.csv"),
        params=count_parameters(switch_to_deploy(model)),
        maps={form: accuracy for form, (accuracy, *_) in found.items()},
        sizes=sizes,
        input=[model.spec.ch, *check_imgsz(job.time_imgsz or model.imgsz, stride)],
    )


def trained_minutes(results: Path) -> float:
    """Return how long a run trained, whose clock starts anew when it is resumed; UserError for a damaged file."""
    if problem := why_no_file(results):
        raise UserError(f"{results} {problem}")
    try:
        with results.open(encoding="utf-8") as file:
            times = [float(row["time"]) for row in csv.DictReader(file)]
    except (ValueError, LookupError, TypeError, csv.Error) as error:
        raise UserError(f"{results} is damaged: it does not say how long the epochs took") from error
    return sum(now - before if now > before else now for before, now in itertools.pairwise([0.0, *times])) / 60


def load_found(job: Job, data: Mapping[str, Any]) -> Detections:
    """Return what the network of a job found in the val pictures of a data set, as `load_dataset` returns it.

    Raises:
        UserError: the file of it is damaged, or of other pictures or classes.
    """
    found = Detections.load(job.found)
    others = set(found.names) - set(list_images(data["val"], data["path"]))
    if others or max(found.true_cls, default=0) >= data["nc"]:
        why = f"such as {shorten(min(others))}" if others else f"which has {data['nc']} classes"
        raise UserError(f"{job.found} is not of the val pictures of {data['yaml_file']}, {why}")
    return found
