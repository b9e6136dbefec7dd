"""Plans of comparisons, and comparisons whose networks are trained and exported, made without a training."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import compare
from models import DetectionModel
from models.spec import load_spec
from tests.helpers import save, tiny
from tests.networks import NAMES, Disc, write_export
from tests.runs import make_data
from utils import cli
from utils.comparison.entries import Entry
from utils.comparison.plan import Plan, kind_of, named

SIDE = 64  # of the pictures of networks that see a disc, in pixels
PLANNED = {"data": "d.yaml", "imgsz": 64, "batch_size": 2, "seeds": 1, "runtime": "onnx", "int8": False}


def make_plan(folder: Path, **options: object) -> Plan:
    """Write the plan of a comparison of two networks, whose data set lies in the same folder, and return it."""
    plan = Plan(
        folder,
        {"data": str(make_data(folder)), "seeds": 2, "runtime": "onnx", "int8": False, **options},
        [Entry("a", tiny()), Entry("b", tiny())],
        {"a": 3, "b": 4},
    )
    plan.save()
    return plan


def make_networks(folder: Path) -> dict[str, tuple[Any, Path, Path]]:
    """Write two networks for `make_comparison`, of which `a` sees a disc where it is and `b` beside it."""
    networks = {}
    for name, shift in (("a", 0.0), ("b", 9.0)):
        cfg = tiny(nc=len(NAMES))
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(cfg))
        model, disc = DetectionModel(cfg), Disc(SIDE, SIDE, masks=False)
        model.imgsz = SIDE
        disc.found[:, 0] += shift
        (folder / name).mkdir()
        networks[name] = cfg, save(model, folder / name / "best.pt"), write_export(folder / name, disc, "onnx")
    return networks


def make_comparison(folder: Path, data: Path | list[Path], networks: Mapping[str, tuple[Any, Path, Path]]) -> Plan:
    """Write a comparison in which all is left to measure and to report, and return its plan.

    Args:
        folder: where to.
        data: the YAML of its data set, or those of several.
        networks: name → content of a model YAML, the checkpoint, and the ONNX file written from it.
    """
    sizes = {"imgsz": 64, "batch_size": 2, "epochs": 1, "seeds": 1}
    options = compare.make_parser().from_keywords(cfg=list(networks), data=data, **sizes)
    entries = [Entry(name, load_spec(cfg).as_dict()) for name, (cfg, _, _) in networks.items()]
    kinds = [kind_of(name, data) for data in named(cli.as_list(options.data)) for name in networks]
    plan = Plan(folder, compare.planned(options), entries, dict.fromkeys(kinds, 1))
    folder.mkdir(parents=True)
    plan.save()
    for job in plan.jobs():
        _, weights, exported = networks[job.entry.name]
        job.weights.parent.mkdir(parents=True)
        shutil.copy(weights, job.weights)
        shutil.copy(exported, job.files["onnx"])
        (job.run / "results.csv").write_text("epoch,time\n1,60\n")
    return compare.read_plan(folder)
