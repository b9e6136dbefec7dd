"""Comparisons whose networks are trained and exported, made without a training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import compare
from models.spec import load_spec
from utils.comparison.entries import Entry
from utils.comparison.plan import Plan


def make_comparison(folder: Path, data: Path, networks: Mapping[str, tuple[Any, Path, Path]]) -> Plan:
    """Write a comparison in which all is left to measure and to report, and return its plan.

    Args:
        folder: where to.
        data: the YAML of its data set.
        networks: name → content of a model YAML, the checkpoint, and the ONNX file written from it.
    """
    sizes = {"imgsz": 64, "batch_size": 2, "epochs": 1, "seeds": 1}
    options = compare.make_parser().from_keywords(cfg=list(networks), data=data, **sizes)
    entries = [Entry(name, load_spec(cfg).as_dict()) for name, (cfg, _, _) in networks.items()]
    plan = Plan(folder, compare.planned(options), entries, dict.fromkeys(networks, 1))
    folder.mkdir(parents=True)
    plan.save()
    for job in plan.jobs():
        _, weights, exported = networks[job.entry.name]
        job.weights.parent.mkdir(parents=True)
        shutil.copy(weights, job.weights)
        shutil.copy(exported, job.files["onnx"])
        (job.run / "results.csv").write_text("epoch,time\n1,60\n")
    return compare.read_plan(folder)
