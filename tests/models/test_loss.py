"""The YOLOv5 loss against a slow one, written with loops from the formulas: values, assignment and gradients."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import pytest

from models.errors import UserError
from models.loss import AnchorGains, AnchorLoss, assign_targets, level_balance, read_targets
from tests.helpers import relative_error

# isort: split
import numpy as np
import torch
from ultralytics.data.augment import Format
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils.instance import Instances

TOLERANCE = 1e-9
COCO = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]
NAMES = ["box_loss", "obj_loss", "cls_loss"]
MASK_NAMES = ["box_loss", "seg_loss", "obj_loss", "cls_loss"]


@dataclass(frozen=True)
class Case:
    """A head, its predictions and a batch, all random."""

    targets: int = 12
    images: int = 3
    nc: int = 4
    height: int = 128
    width: int = 96
    strides: tuple[int, ...] = (8, 16, 32)
    per_level: int = 3
    coefficients: int = 0
    overlap: bool = True
    mask_ratio: int = 4  # pixels per pixel of the masks; that of the prototypes is 4
    place: str = "anywhere"
    gains: AnchorGains = dataclasses.field(default_factory=AnchorGains)
    seed: int = 0

    def build(self):
        """Return (loss, predictions, batch, leaves), in float64; leaves are what gradients are wanted of."""
        random = torch.Generator().manual_seed(self.seed)
        maps, last = [], 5 + self.nc + self.coefficients
        for stride in self.strides:
            shape = (self.images, self.per_level, self.height // stride, self.width // stride, last)
            maps.append(torch.randn(shape, generator=random, dtype=torch.float64).mul_(2).requires_grad_())
        preds = {"maps": maps}
        if self.coefficients:
            shape = (self.images, self.coefficients, self.height // 4, self.width // 4)
            preds["proto"] = torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_()
        strides = torch.tensor(self.strides, dtype=torch.float64)
        loss = AnchorLoss(self.anchors(), strides, self.nc, self.gains, self.overlap)
        return loss, preds, self.batch(random), [*maps, *([preds["proto"]] if self.coefficients else [])]

    def anchors(self):
        """Return (levels, anchors per level, 2) in pixels."""
        levels = torch.tensor([COCO[min(i, 2)] for i in range(len(self.strides))], dtype=torch.float64)
        anchors = levels.view(-1, 3, 2).repeat(1, 2, 1)[:, : self.per_level]
        return anchors * (1 + 0.1 * torch.arange(len(self.strides) * self.per_level).view(-1, self.per_level, 1))

    def batch(self, random):
        """Return a batch whose last picture is empty."""
        n = self.targets
        pixels = torch.tensor([self.width, self.height], dtype=torch.float64)
        sizes = 8 * 16 ** torch.rand(n, 2, generator=random, dtype=torch.float64)  # 8 to 128 pixels
        centres = torch.rand(n, 2, generator=random, dtype=torch.float64)
        if self.place == "borders":
            centres = centres.mul_(6).floor_().div_(5).clamp_(max=1)  # 0, 1 and between; some lie between two cells
        image = torch.randint(0, max(self.images - 1, 1), (n,), generator=random).sort()[0]
        batch = {
            "batch_idx": image.float(),
            "cls": torch.randint(0, self.nc, (n, 1), generator=random).float(),
            "bboxes": torch.cat([centres, (sizes / pixels).clamp(max=1)], 1),
            "img": torch.zeros(self.images, 3, self.height, self.width),
        }
        if self.coefficients:
            shape = (self.height // self.mask_ratio, self.width // self.mask_ratio)
            if self.overlap:
                most = int(image.bincount().max()) if n else 0
                batch["masks"] = torch.randint(0, most + 1, (self.images, *shape), generator=random).byte()
            else:
                batch["masks"] = torch.randint(0, 2, (n, *shape), generator=random).byte()
        return batch


# The slow loss --------------------------------------------------------------------------------------------------------
def slow_assignment(boxes, anchors, height, width, anchor_t):
    """Return [(target, anchor, row, column)] of one level, box and anchors in cells, from plain numbers."""
    found = []
    for t, (x, y, w, h) in enumerate(boxes):
        for a, (anchor_w, anchor_h) in enumerate(anchors):
            if min(w, h) == 0 or max(w / anchor_w, anchor_w / w, h / anchor_h, anchor_h / h) >= anchor_t:
                continue
            places = [(x, y)]
            if x > 1 and x % 1 < 0.5:
                places.append((x - 0.5, y))
            if y > 1 and y % 1 < 0.5:
                places.append((x, y - 0.5))
            if width - x > 1 and (width - x) % 1 < 0.5:
                places.append((x + 0.5, y))
            if height - y > 1 and (height - y) % 1 < 0.5:
                places.append((x, y + 0.5))
            for px, py in places:
                found.append((t, a, min(max(math.floor(py), 0), height - 1), min(max(math.floor(px), 0), width - 1)))
    return found


def slow_ciou(box, other, eps=1e-7):
    """Return the complete IoU (https://arxiv.org/abs/1911.08287) of two boxes xywh."""
    (x, y, w, h), (tx, ty, tw, th) = box, other
    sides = [(x, w, tx, tw), (y, h, ty, th)]
    overlap, diagonal = 1.0, eps
    for c, s, tc, ts in sides:
        first, last = torch.maximum(c - s / 2, tc - ts / 2), torch.minimum(c + s / 2, tc + ts / 2)
        overlap = overlap * torch.relu(last - first)
        diagonal = diagonal + (torch.maximum(c + s / 2, tc + ts / 2) - torch.minimum(c - s / 2, tc - ts / 2)) ** 2
    iou = overlap / (w * h + tw * th - overlap + eps)
    v = 4 / math.pi**2 * (torch.atan(tw / th) - torch.atan(w / h)) ** 2
    alpha = (v / (1 - iou + v + eps)).detach()
    return iou - ((x - tx) ** 2 + (y - ty) ** 2) / diagonal - alpha * v


def slow_decode(rows, anchors):
    """Return x, y, w, h, from the corner of the cell, of raw predictions, one row each."""
    x, y, w, h, *_ = rows.sigmoid().unbind(1)
    anchor_w, anchor_h = columns(anchors)
    return 2 * x - 0.5, 2 * y - 0.5, (2 * w) ** 2 * anchor_w, (2 * h) ** 2 * anchor_h


def columns(rows):
    """Return the columns of rows of numbers."""
    return torch.tensor(rows, dtype=torch.float64).unbind(1)


def slow_cross_entropy(logit, wanted, weight, gamma):
    """Return the cross entropy, or the focal loss, of each logit."""
    p, wanted = torch.sigmoid(logit), torch.as_tensor(wanted, dtype=torch.float64)
    loss = -weight * wanted * torch.log(p) - (1 - wanted) * torch.log(1 - p)
    if gamma:
        p_t = wanted * p + (1 - wanted) * (1 - p)
        loss = loss * (0.25 * wanted + 0.75 * (1 - wanted)) * (1 - p_t) ** gamma
    return loss


def slow_masks_loss(case, proto, batch, targets, coefficients):
    """Return the mean over pictures of the mean over the positives of one level of their mask loss."""
    losses = defaultdict(list)
    for t, row in zip(targets, coefficients, strict=True):
        image = int(batch["batch_idx"][t])
        mask = slow_mask(case, batch, t, *proto.shape[2:])
        losses[image].append(slow_mask_loss(row, proto[image], mask, batch["bboxes"][t].tolist()))
    return sum(sum(values) / len(values) for values in losses.values()) / case.images


def slow_mask_loss(coefficients, proto, mask, box):
    """Return the mean cross entropy over a map of the pixels in the box, over the box's share of the map."""
    _, height, width = proto.shape
    x, y, w, h = box
    down = [r for r in range(height) if (y - h / 2) * height <= r < (y + h / 2) * height]
    across = [c for c in range(width) if (x - w / 2) * width <= c < (x + w / 2) * width]
    loss = 0.0
    for r in down:
        for c in across:
            loss = loss + slow_cross_entropy(coefficients.dot(proto[:, r, c]), mask[r][c], 1.0, 0.0)
    return loss / (height * width) / (w * h)


def slow_mask(case, batch, target, height, width):
    """Return the mask of one target as rows of 0.0 and 1.0, by the nearest pixel."""
    image = int(batch["batch_idx"][target])
    if case.overlap:
        number = 1 + sum(int(i) == image for i in batch["batch_idx"][:target])
        mask = (batch["masks"][image] == number).tolist()
    else:
        mask = batch["masks"][target].tolist()
    rows, columns = len(mask), len(mask[0])
    return [[float(mask[r * rows // height][c * columns // width]) for c in range(width)] for r in range(height)]


def slow_loss(case, preds, batch):
    """Return the components by name, before they are multiplied by the batch size."""
    gains, boxes = case.gains, batch["bboxes"].tolist()
    images, labels = (batch[key].view(-1).long().tolist() for key in ("batch_idx", "cls"))
    total = {name: torch.zeros((), dtype=torch.float64) for name in (MASK_NAMES if case.coefficients else NAMES)}
    balance = {3: [4.0, 1.0, 0.4]}.get(len(case.strides), [4.0, 1.0, 0.25, 0.06, 0.02])
    for level, stride, pixels, weight in zip(preds["maps"], case.strides, case.anchors(), balance, strict=False):
        _, per_level, height, width, last = level.shape
        cells = level.reshape(-1, last).unbind(0)
        anchors = [(w / stride, h / stride) for w, h in pixels.tolist()]
        in_cells = [(x * width, y * height, w * width, h * height) for x, y, w, h in boxes]
        found = slow_assignment(in_cells, anchors, height, width, gains.anchor_t)
        places = [((images[t] * per_level + a) * height + row) * width + column for t, a, row, column in found]
        best = [0.0] * len(cells)
        if found:
            rows = torch.stack([cells[place] for place in places])
            other = [(in_cells[t][0] - column, in_cells[t][1] - row, *in_cells[t][2:]) for t, _, row, column in found]
            iou = slow_ciou(slow_decode(rows, [anchors[a] for _, a, _, _ in found]), columns(other))
            total["box_loss"] = total["box_loss"] + (1 - iou).mean()
            for place, value in zip(places, iou.tolist(), strict=True):
                best[place] = max(best[place], value)
            if case.nc > 1:
                low, high = gains.label_smoothing / 2, 1 - gains.label_smoothing / 2
                aims = [[high if c == labels[t] else low for c in range(case.nc)] for t, _, _, _ in found]
                loss = slow_cross_entropy(rows[:, 5 : 5 + case.nc], aims, gains.cls_pw, gains.fl_gamma)
                total["cls_loss"] = total["cls_loss"] + loss.mean()
            if case.coefficients:
                masks = slow_masks_loss(case, preds["proto"], batch, [t for t, *_ in found], rows[:, 5 + case.nc :])
                total["seg_loss"] = total["seg_loss"] + masks
        logits = torch.stack([cell[4] for cell in cells])
        entropy = slow_cross_entropy(logits, best, gains.obj_pw, gains.fl_gamma).mean()
        total["obj_loss"] = total["obj_loss"] + weight * entropy
    factors = {"box_loss": gains.box, "seg_loss": gains.box, "obj_loss": gains.obj, "cls_loss": gains.cls}
    return {name: factors[name] * value for name, value in total.items()}


CASES = {
    "plain": Case(),
    "one picture, one target": Case(images=1, targets=1, seed=3),
    "no target at all": Case(targets=0),
    "one class": Case(nc=1),
    "at borders": Case(place="borders", targets=40),
    "500 targets": Case(targets=500, images=4),
    "wide": Case(height=64, width=160),
    "one level of 4 anchors": Case(strides=(16,), per_level=4),
    "two levels": Case(strides=(16, 32), per_level=2),
    "four levels": Case(strides=(4, 8, 16, 32), per_level=1),
    "five levels": Case(strides=(8, 16, 32, 64, 128), height=128, width=128),
    "smoothed labels": Case(gains=AnchorGains(label_smoothing=0.1)),
    "weights of positives": Case(gains=AnchorGains(cls_pw=0.6, obj_pw=1.7, box=0.1, cls=0.3, obj=0.7)),
    "focal": Case(gains=AnchorGains(fl_gamma=1.5, obj_pw=0.8)),
    "a wider match": Case(gains=AnchorGains(anchor_t=8.0)),
    "overlapping masks": Case(coefficients=4, targets=6, height=64, width=96),
    "one mask each": Case(coefficients=4, targets=6, height=64, width=96, overlap=False),
    "masks at half size": Case(coefficients=2, targets=4, height=64, width=96, mask_ratio=8, seed=1),
    "masks at full size": Case(coefficients=2, targets=4, height=32, width=64, mask_ratio=1, overlap=False, nc=1),
    "masks of no target": Case(coefficients=2, targets=0, overlap=False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_values_and_gradients_equal_the_slow_loss(case):
    loss, preds, batch, leaves = case.build()
    total, components = loss(preds, batch)
    slow = slow_loss(case, preds, batch)
    assert list(components) == list(slow)
    for i, (name, value) in enumerate(slow.items()):  # each of them alone, so that a small one does not hide
        assert components[name].item() == pytest.approx(value.item(), rel=TOLERANCE, abs=0), name
        assert total[i].item() == pytest.approx(value.item() * case.images, rel=TOLERANCE, abs=0), name
        assert not components[name].requires_grad
        got, want = gradients(total[i], leaves), gradients(value * case.images, leaves)
        for g, w in zip(got, want, strict=True):
            assert relative_error(g, w) <= TOLERANCE if w.any() else not g.any(), name


def gradients(value, leaves):
    """Return the gradient of a value with respect to each leaf, zeros where it does not depend on one."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_assignment_equals_the_slow_one(case):
    loss, preds, batch, _ = case.build()
    targets = read_targets(batch, preds["maps"][0])
    counts = []
    for level, anchors in zip(preds["maps"], loss.anchors, strict=True):
        height, width = level.shape[2:4]
        positives = assign_targets(targets, anchors, (height, width), case.gains.anchor_t)
        got = zip(*(positives[i].tolist() for i in (4, 1, 2, 3)), strict=True)
        boxes = [(x * width, y * height, w * width, h * height) for x, y, w, h in batch["bboxes"].tolist()]
        slow = slow_assignment(boxes, anchors.tolist(), height, width, case.gains.anchor_t)
        assert Counter(got) == Counter(slow)
        assert torch.equal(positives.image, targets.image[positives.target])
        corner = torch.stack([positives.column, positives.row], 1)
        shape = torch.tensor([width, height])
        torch.testing.assert_close(positives.box[:, :2] + corner, targets.box[positives.target, :2] * shape)
        torch.testing.assert_close(positives.box[:, 2:], targets.box[positives.target, 2:] * shape)
        counts.append(len(slow))
    assert any(counts) == (case.targets > 0), "nothing was compared"


# What the loss promises beside ----------------------------------------------------------------------------------------
def one_target(x, y, w=20.0, h=20.0, side=64):
    """Return a batch of one picture of 64 pixels with one target, given in pixels."""
    box = torch.tensor([[x, y, w, h]], dtype=torch.float64) / side
    return {"batch_idx": torch.zeros(1), "cls": torch.zeros(1, 1), "bboxes": box, "img": torch.zeros(1, 3, side, side)}


@pytest.mark.parametrize(
    ("x", "y", "cells"),
    [
        (20, 20, {(2, 2)}),  # in the middle of a cell of 8 pixels
        (18, 20, {(2, 2), (2, 1)}),
        (22, 20, {(2, 2), (2, 3)}),
        (18, 22, {(2, 2), (2, 1), (3, 2)}),
        (3, 3, {(0, 0)}),  # there is no cell to the left
        (5, 61, {(7, 0), (7, 1)}),
        (0, 64, {(7, 0)}),
        (64, 64, {(7, 7)}),
    ],
)
def test_cells_of_a_target(x, y, cells):
    positives = assign_targets(read_targets(one_target(x, y), torch.zeros(1)), torch.tensor([[2.0, 2.0]]), (8, 8), 4.0)
    assert set(zip(positives.row.tolist(), positives.column.tolist(), strict=True)) == cells


def test_an_anchor_that_several_targets_claim_takes_the_best_iou():
    loss, _, _, _ = Case(images=1, strides=(8,), per_level=1, height=64, width=64).build()
    preds = {"maps": [torch.zeros(1, 1, 8, 8, 9, dtype=torch.float64)]}
    preds["maps"][0][..., 4] = 1  # so that a higher IoU makes the loss lower
    poor, good = one_target(20, 20, 30, 40), one_target(20, 20, 12, 12)
    for pair in ((poor, good), (good, poor)):
        both = {k: torch.cat([batch[k] for batch in pair]) for k in ("batch_idx", "cls", "bboxes")}
        assert loss(preds, both)[1]["obj_loss"] == loss(preds, good)[1]["obj_loss"]
    assert loss(preds, good)[1]["obj_loss"] < loss(preds, poor)[1]["obj_loss"]


def test_the_order_of_targets_is_nothing_to_it():
    loss, preds, batch, leaves = Case(targets=200).build()
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    shuffled = {k: v[order] if k != "img" else v for k, v in batch.items()}
    for a, b in zip(*(torch.autograd.grad(loss(preds, x)[0].sum(), leaves) for x in (batch, shuffled)), strict=True):
        assert relative_error(a, b) < 1e-12


@pytest.mark.parametrize("coefficients", [0, 4])
def test_evaluation_gives_the_same_as_training(coefficients):
    loss, preds, batch, _ = Case(coefficients=coefficients).build()
    assert torch.equal(loss((torch.zeros(3, 8, 5), preds), batch)[0], loss(preds, batch)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("coefficients", [0, 4])
def test_half_precision_is_computed_in_full(dtype, coefficients):
    loss, preds, batch, _ = Case(coefficients=coefficients).build()
    half = {k: v.to(dtype) if k == "proto" else [m.to(dtype) for m in v] for k, v in preds.items()}
    full = {k: v.float() if k == "proto" else [m.float() for m in v] for k, v in half.items()}
    assert torch.equal(loss(half, batch)[0], loss(full, batch)[0])
    assert loss(half, batch)[0].dtype == torch.float32


def test_mixed_precision_is_near():
    loss, preds, batch, leaves = Case(coefficients=4).build()
    single = {k: v.float() if k == "proto" else [m.float() for m in v] for k, v in preds.items()}
    with torch.autocast("cpu", torch.bfloat16):
        total = loss(single, batch)[0]
    torch.testing.assert_close(total.double(), loss(preds, batch)[0], rtol=0.02, atol=0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(total.sum(), leaves))


@pytest.mark.parametrize("size", [100.0, 65504.0])  # the last is the largest of float16
@pytest.mark.parametrize("gains", [AnchorGains(), AnchorGains(fl_gamma=0.5)], ids=["plain", "focal"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_gradients_stay_finite_at_extreme_predictions(size, gains, dtype):
    loss, preds, batch, _ = Case(targets=40, gains=gains).build()
    maps = [(torch.sign(m.detach()) * size).to(dtype).requires_grad_() for m in preds["maps"]]
    total, _ = loss({"maps": maps}, batch)
    assert total.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(total.sum(), maps))


@pytest.mark.parametrize("sides", [(0, 0), (0, 20), (20, 0), (1e-30, 20)])
def test_a_box_without_size_is_no_target(sides):
    loss, preds, _, leaves = Case(images=1, height=64, width=64).build()
    empty = {k: v[:0] for k, v in one_target(20, 20).items()}
    got, want = loss(preds, one_target(20, 20, *sides))[0], loss(preds, empty)[0]
    assert torch.equal(got, want)
    assert all(g.isfinite().all() for g in torch.autograd.grad(got.sum(), leaves))


@pytest.mark.parametrize("overlap", [True, False])
def test_masks_are_those_that_ultralytics_makes(overlap):
    """Objects that fill their boxes: predicting a mask everywhere is right inside of each, if the mask is its own."""
    corners = [[[8, 8, 24, 24], [32, 8, 60, 60]], [[4, 4, 20, 12], [0, 16, 60, 60], [24, 0, 56, 12]]]  # two pictures
    make = Format(return_mask=True, mask_overlap=overlap)
    batch = YOLODataset.collate_fn([make(picture(np.array(boxes, np.float32))) for boxes in corners])
    loss = AnchorLoss(torch.full((1, 3, 2), 20.0), torch.tensor([8]), 1, AnchorGains(anchor_t=8.0), overlap)
    preds = {"maps": [torch.ones(2, 3, 8, 8, 7)], "proto": torch.full((2, 1, 16, 16), 30.0)}
    assert loss(preds, batch)[1]["seg_loss"] < 1e-6
    assert loss(preds, {**batch, "masks": batch["masks"].flip(0)})[1]["seg_loss"] > 0.1


def picture(corners):
    """Return ultralytics' labels of a picture of 64 pixels with rectangles (n, 4) as polygons."""
    x1, y1, x2, y2 = corners.T
    polygons = np.stack([x1, y1, x2, y1, x2, y2, x1, y2], 1).reshape(-1, 4, 2)
    instances = Instances(corners, polygons, bbox_format="xyxy", normalized=False)
    return {"img": np.zeros((64, 64, 3), np.uint8), "cls": np.zeros((len(corners), 1)), "instances": instances}


def test_every_prediction_has_a_gradient_without_targets():
    loss, preds, batch, leaves = Case(coefficients=4, targets=0).build()
    loss(preds, batch)[0].sum().backward()
    assert all(leaf.grad is not None for leaf in leaves)


def test_descending_the_gradient_finds_the_target():
    loss, preds, _, (level,) = Case(images=1, strides=(8,), per_level=2, height=64, width=64).build()
    batch = one_target(28, 20, 24, 16)
    batch["cls"][:] = 2
    optimizer = torch.optim.Adam([level], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss(preds, batch)[0].sum().backward()
        optimizer.step()
    best = level[..., 4].argmax()
    x, y, w, h, objectness, *classes = level.detach().view(-1, 9)[best].sigmoid()
    anchor, row, column = (int(i) for i in torch.unravel_index(best, (2, 8, 8)))
    box = torch.stack(
        [x * 2 - 0.5 + column, y * 2 - 0.5 + row, *((torch.stack([w, h]) * 2) ** 2 * loss.anchors[0][anchor])]
    )
    torch.testing.assert_close(box * 8, torch.tensor([28.0, 20, 24, 16], dtype=torch.float64), atol=0.5, rtol=0)
    assert objectness > 0.9
    assert max(range(4), key=lambda c: classes[c]) == 2


# The hyper-parameters -------------------------------------------------------------------------------------------------
def test_defaults_are_those_of_yolov5():
    assert dataclasses.asdict(AnchorGains()) == {
        **{"box": 0.05, "cls": 0.5, "obj": 1.0, "cls_pw": 1.0, "obj_pw": 1.0},
        **{"anchor_t": 4.0, "fl_gamma": 0.0, "label_smoothing": 0.0},
    }


def test_gains_scale_with_levels_classes_and_picture():
    assert AnchorGains().scaled(nl=3, nc=80, imgsz=640) == AnchorGains()
    scaled = AnchorGains(obj_pw=2.0).scaled(nl=4, nc=20, imgsz=320)
    assert dataclasses.astuple(scaled) == pytest.approx((0.0375, 0.09375, 0.1875, 1, 2, 4, 0, 0))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"anchor_t": 0.5}, "anchor_t must be a number of at least 1, not 0.5"),
        ({"label_smoothing": 1.5}, "label_smoothing must be a number from 0 to 1, not 1.5"),
        ({"box": -0.1}, "box must be a number of at least 0, not -0.1"),
        ({"obj": "a lot"}, "obj must be a number of at least 0, not 'a lot'"),
        ({"cls": float("nan")}, "cls must be a number of at least 0, not nan"),
        ({"cls_pw": True}, "cls_pw must be a number of at least 0, not True"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(UserError, match=message):
        AnchorGains(**values)


def test_levels_are_weighed_as_in_yolov5():
    assert level_balance(3) == (4.0, 1.0, 0.4)
    assert level_balance(1) == (4.0,)
    assert level_balance(4) == (4.0, 1.0, 0.25, 0.06)
    assert level_balance(6) == (4.0, 1.0, 0.25, 0.06, 0.02, 0.02)
