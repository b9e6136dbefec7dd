"""The gradients of a batch that processes share, as each head gives them.

    python -m tests.distributed.forked 2 STORE tests.distributed.gradients FILE

The first process writes them; imported, `gradients` gives those of a single one.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from models import DetectionModel, create_model
from tests.helpers import randomize_, tiny
from utils.distributed.gradients import add_gradients, average_losses
from utils.distributed.group import group_size, is_first, is_shared, process_group
from utils.distributed.sync_bn import synchronize
from utils.train.teaching.lesson import Lesson
from utils.train.teaching.teacher import Teacher

PICTURES = 8
ANCHORS = [[20, 20, 30, 30], [40, 40, 60, 60]]
DOWN = [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]]]  # to strides 8 and 16
CFGS = {
    "anchor-free": tiny(),
    "anchors": tiny(anchors=ANCHORS, head=[*DOWN, [[3, 4], 1, "Detect", ["nc", "anchors"]]]),
    "end2end": tiny(end2end=True),
    "classes": tiny(head=[[-1, 1, "Classify", ["nc"]]]),
    "masks": tiny(head=[*DOWN, [[3, 4], 1, "Segment", ["nc", 8, 16]]]),
    "masks of all levels": tiny(
        end2end=True, head=[*DOWN, [[3, 4], 1, "Segment", ["nc", 8, 16, {"all_levels": True}]]]
    ),
    "masks with anchors": tiny(anchors=ANCHORS, head=[*DOWN, [[3, 4], 1, "Segment", ["nc", "anchors", 8, 16]]]),
}


TAUGHT = {"taught by maps": "cwd", "taught where it is sure": "l2", "taught without NMS": "pkd"}
CFGS |= {"taught by maps": tiny(), "taught where it is sure": CFGS["anchors"], "taught without NMS": CFGS["end2end"]}


def names_for(processes: int) -> list[str]:
    """Return which of the networks so many processes share: all of them two, every second one four."""
    return [*CFGS][:: processes // 2]


def make_batch() -> dict[str, Tensor]:
    """Return a batch of pictures of which some have no objects, others many."""
    generator = torch.Generator().manual_seed(1)
    image = torch.tensor([0, 0, 0, 1, 3, 3, 6]).float()
    count = len(image)
    masks = torch.zeros(PICTURES, 64, 64)
    masks[:, 20:40, 20:40] = 1
    return {
        "img": torch.rand(PICTURES, 3, 64, 64, generator=generator),
        "batch_idx": image,
        "cls": torch.arange(count).remainder(2).float()[:, None],
        "bboxes": torch.cat([torch.rand(count, 2, generator=generator) / 2 + 0.25, torch.full((count, 2), 0.4)], 1),
        "masks": masks,
        "sem_masks": masks.remainder(2),
    }


def part_of(batch: dict[str, Tensor], first: int, last: int) -> dict[str, Tensor]:
    """Return the part of a batch that holds the pictures from `first` to before `last`."""
    own = (batch["batch_idx"] >= first) & (batch["batch_idx"] < last)
    objects = {key: batch[key][own] for key in ("batch_idx", "cls", "bboxes")}
    objects["batch_idx"] = objects["batch_idx"] - first
    return {**objects, **{key: batch[key][first:last] for key in ("img", "masks", "sem_masks")}}


def gradients(name: str, bounds: tuple[int, int]) -> dict[str, Tensor]:
    """Return the gradients of a model, its statistics of BatchNorm and its losses after a batch of `bounds`."""
    torch.manual_seed(0)
    model = randomize_(create_model(CFGS[name])).train()
    model.args = type("Args", (), {"box": 7.5, "cls": 0.5, "dfl": 1.5, "epochs": 3, "overlap_mask": True})()
    if is_shared():
        synchronize(model)
        model.register_forward_hook(average_losses)
    adapters = teach(model, CFGS[name], TAUGHT[name]) if name in TAUGHT else torch.nn.ModuleDict()
    batch = part_of(make_batch(), *bounds)
    if model.task == "classify":
        batch["cls"] = torch.arange(*bounds).remainder(2)
    loss, parts = model(batch)
    loss.sum().backward()
    add_gradients(model.parameters())
    add_gradients(adapters.parameters())
    learning = (*model.named_parameters(), *adapters.named_parameters())
    found = {key: p.grad for key, p in learning if p.grad is not None}
    statistics = {key: b for key, b in model.named_buffers() if "running" in key}
    return {**found, **statistics, **parts}


def teach(model: DetectionModel, cfg: dict, kind: str) -> torch.nn.Module:
    """Let a wider model of the same YAML teach one, its maps by this loss; return the adapters."""
    network = randomize_(create_model({**cfg, "width_multiple": 1.0}), seed=1).eval()
    options = {"teacher_loss": kind, "teacher_weight": 1.0, "teacher_off": 0, "imitate": None}
    options |= {"imgsz": 64, "multi_scale": 0.0, "seed": 0}
    lesson = Lesson(Teacher("wide", network, whole=True), model, options)
    lesson.attach(model, model, torch.device("cpu"))
    return lesson.features.adapters


def main(file: str) -> None:
    """Write what all processes together have found to a file; their parts of the batch differ in size."""
    with process_group("cpu"):
        rank, size = torch.distributed.get_rank(), group_size()
        bounds = [0, *(PICTURES * (i + 1) // size - (i == 0) for i in range(size - 1)), PICTURES]
        found = {name: gradients(name, (bounds[rank], bounds[rank + 1])) for name in names_for(size)}
        if is_first():
            torch.save(found, file)


if __name__ == "__main__":
    main(sys.argv[1])
