"""Which pictures make a batch, and of which size: --image-weights, --quad, --multi-scale, --batch-size -1."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml

import train
from models.errors import UserError
from tests.helpers import tiny
from tests.runs import make_data, stopped
from utils.checkpoint import read_checkpoint
from utils.data import quad
from utils.data.quad import collate_quad
from utils.train.sampling import draw, picture_weights
from utils.train.trainer import Trainer


@pytest.fixture
def options(tmp_path) -> dict:
    """Return the options of a run on eight pictures, of which one has an object of class 0, and others of class 1."""
    data = make_data(tmp_path, 8)
    (tmp_path / "labels/train/3.txt").write_text("0 0.25 0.25 0.2 0.2\n")
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny()))
    files = {"cfg": tmp_path / "net.yaml", "data": data, "project": tmp_path / "runs"}
    return {**files, "epochs": 2, "imgsz": 64, "batch_size": 4, "device": "cpu", "noplots": True}


def set_up(options: dict) -> Trainer:
    trainer = Trainer(train.new_run(train.make_parser().from_keywords(**options)))
    trainer._setup_train()
    trainer.epoch = 0
    return trainer


# --image-weights ------------------------------------------------------------------------------------------------------
def test_pictures_of_rare_and_of_hard_classes_weigh_more():
    labels = [{"cls": np.array(classes, np.float32).reshape(-1, 1)} for classes in ([0, 0], [0], [1], [])]
    found = picture_weights(labels, [0.0, 0.0])
    assert found.tolist() == pytest.approx([2 / 6, 1 / 6, 3 / 6, 0])
    hard = picture_weights(labels, [0.5, 0.0])
    assert hard[2] / hard[1] == pytest.approx(3 / 0.25)
    assert picture_weights(labels, [1.0, 1.0]).tolist() == [0.25] * 4
    drawn = draw(found.repeat(500) / 500, seed=0)
    assert np.bincount(np.array(drawn) % 4, minlength=4) / 2000 == pytest.approx([2 / 6, 1 / 6, 3 / 6, 0], abs=0.03)


def test_an_epoch_shows_what_was_drawn_and_each_epoch_anew(options):
    trainer = set_up({**options, "image_weights": True})
    shown = []
    for epoch in range(2):
        trainer.epoch = epoch
        trainer.seed_epoch()
        drawn = trainer.train_loader.dataset.drawn
        files = [file for batch in trainer.train_loader for file in batch["im_file"]]
        assert sorted(files) == sorted(trainer.train_loader.dataset.im_files[i] for i in drawn)
        shown.append(drawn)
    assert shown[0] != shown[1]
    assert sum(drawn.count(3) for drawn in shown) >= 4, "half of all, as its class is as rare as seven others"


@pytest.mark.slow
def test_what_a_resumed_run_draws_depends_on_the_last_validation(options, monkeypatch):
    own = {**options, "image_weights": True, "epochs": 3}
    whole = read_checkpoint(train.run(**own, name="whole") / "weights/last.pt")
    assert len(whole["maps"]) == 2
    monkeypatch.setattr(Trainer, "draw_pictures", spy := Spy(Trainer.draw_pictures))
    with stopped(monkeypatch, "on_train_batch_end", epoch=2):
        train.run(**own, name="stopped")
    again = read_checkpoint(train.run(resume=options["project"] / "stopped/weights/last.pt") / "weights/last.pt")
    assert all(torch.equal(again["model"][name], tensor) for name, tensor in whole["model"].items())
    assert spy.maps[-1] == spy.maps[-2] != []


class Spy:
    """Notes what a method of a trainer knows of its classes."""

    def __init__(self, method):
        self.method, self.maps = method, []

    def __get__(self, trainer, _):
        return lambda: (self.maps.append(trainer.maps), self.method(trainer))


# --quad ---------------------------------------------------------------------------------------------------------------
def samples() -> list[dict]:
    """Return five samples of 8x8 pixels, each of its own colour, with a box that is its upper left quarter."""
    box = torch.tensor([[0.25, 0.25, 0.5, 0.5]])
    return [
        {
            "img": torch.full((3, 8, 8), 10 * i, dtype=torch.uint8),
            "cls": torch.tensor([[float(i)]]),
            "bboxes": box.clone(),
            "batch_idx": torch.zeros(1),
            "im_file": f"{i}.png",
        }
        for i in range(5)
    ]


@pytest.mark.parametrize("side_by_side", [True, False])
def test_four_pictures_become_one_of_twice_the_side(side_by_side, monkeypatch):
    monkeypatch.setattr(quad.random, "random", lambda: 0.9 if side_by_side else 0.1)
    batch = collate_quad(samples())
    assert batch["img"].shape == (1, 3, 16, 16)
    assert batch["img"].dtype == torch.uint8
    for box, cls in zip(batch["bboxes"], batch["cls"], strict=True):
        left, top = (16 * (box[:2] - box[2:] / 2)).int().tolist()
        right, bottom = (16 * (box[:2] + box[2:] / 2)).int().tolist()
        assert (right - left, bottom - top) == ((4, 4) if side_by_side else (8, 8))
        assert (batch["img"][0, :, top:bottom, left:right] == 10 * cls).all()
    assert batch["cls"].flatten().tolist() == ([0, 1, 2, 3] if side_by_side else [0])
    assert batch["batch_idx"].tolist() == [0] * len(batch["cls"])


def test_joined_pictures_are_trained_on_and_count_as_four(options):
    """Thirteen pictures in batches of eight: the last five make one, and one is left over."""
    make_data(options["data"].parent, 13)
    trainer = set_up({**options, "quad": True, "batch_size": 8})
    trainer.seed_epoch()
    batches = [trainer.preprocess_batch(batch) for batch in trainer.train_loader]
    assert [tuple(batch["img"].shape) for batch in batches] == [(2, 3, 128, 128), (1, 3, 128, 128)]
    trainer._model_train()
    joined, parts = trainer.model(batches[0])
    trainer.model._forward_hooks.clear()
    alone, _ = trainer.model(batches[0])
    torch.testing.assert_close(joined, 4 * alone)
    assert sum(parts.values()) * 8 == pytest.approx(joined.sum().item(), rel=1e-4)


REFUSED = {
    "six": ({"quad": True, "batch_size": 6}, "--quad joins 4 pictures: .* a multiple of that, not 6 pictures"),
    "measured": ({"quad": True, "batch_size": -1}, "a multiple of that, not a number of pictures that is not known"),
    "sizes": ({"quad": True, "multi_scale": True}, "--multi-scale takes back what --quad enlarges"),
    "shapes": ({"image_weights": True, "rect": True}, "--image-weights shows pictures in any order, --rect by their"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_do_not_go_together_are_refused(name, options):
    change, said = REFUSED[name]
    with pytest.raises(UserError, match=said):
        train.run(**{**options, **change})
    assert not options["project"].exists()


# --multi-scale, --batch-size -1 ---------------------------------------------------------------------------------------
def test_sides_vary_by_half_in_steps_of_the_stride_and_alike_after_a_stop(options):
    trainer = set_up({**options, "multi_scale": True, "imgsz": 128})
    sides = []
    for _ in range(2):
        trainer.seed_epoch()
        pictures = [torch.full((1, 3, 128, 128), 51, dtype=torch.uint8) for _ in range(60)]
        batches = [trainer.preprocess_batch({"img": picture}) for picture in pictures]
        assert all(torch.allclose(batch["img"], torch.tensor(0.2)) for batch in batches)
        sides.append([tuple(batch["img"].shape[2:]) for batch in batches])
    assert sides[0] == sides[1]
    assert {*sides[0]} == {(side, side) for side in (64, 96, 128, 160, 192)}
    assert any(a != b for a, b in pairwise(sides[0]))


def test_without_a_gpu_a_batch_that_is_to_be_measured_has_a_usual_size(options, log):
    trainer = set_up({**options, "batch_size": -1})
    assert trainer.batch_size == 16
    assert any("--batch-size -1 measures a GPU, of which there is none: steps of 16 pictures" in line for line in log)
