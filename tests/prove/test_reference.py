"""The proof: what counts as the same network and what does not, on outputs and files made to differ."""

import copy
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from models import DetectionModel
from tests.helpers import randomize_, tiny
from utils.data.pictures import Unreadable
from utils.data.samples import PHOTOS, make_pictures
from utils.deploy.run import load_runner
from utils.prove.compare import CONF, Difference, Tolerance, compare
from utils.prove.reference import TEMPORARY, Case, Reference
from utils.prove.report import Proof, proof_table, summarize
from utils.sizes import other_shape, third_shape

ROOT = Path(__file__).parents[2]
WITHOUT_TORCHVISION = """
import sys
import torch
import export
from ultralytics.utils.nms import TorchNMS
from utils.deploy.ends import Nms
from utils.prove import compare

def refuse(*_):
    raise RuntimeError("NMS without torchvision")

TorchNMS.nms = refuse
assert "torchvision" not in sys.modules
print(len(compare.{}))
"""
SIZES = [(32, 32), (32, 96), (96, 32), (64, 64), (640, 640), (480, 640), (640, 480), (96, 1280), (1280, 1280)]


@pytest.fixture
def output():
    """An output (2, 4 + 3, 50) whose boxes lie apart, the first ten seen clearly."""
    boxes = torch.zeros(2, 4, 50)
    boxes[:, 0], boxes[:, 1], boxes[:, 2:] = torch.arange(50) * 20.0 + 10, 40.0, 16.0
    scores = torch.full((2, 3, 50), 0.01)
    scores[:, 1, :10] = torch.linspace(0.5, 0.95, 10)
    return torch.cat([boxes, scores], 1)


def compare_boxes(expected, got, tolerance=Tolerance()):  # noqa: B008 (it is frozen)
    return compare((expected,), (got,), nc=3, end2end=False, tolerance=tolerance)


def compare_ranked(expected, got):
    return compare((expected,), (got,), nc=3, end2end=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        "detections(torch.rand(2, 7, 50), 3, end2end=False)",
        "measure_nms((torch.rand(2, 7, 50),), (torch.zeros(2, 300, 6),), 3, Nms(max_det=300), compare.Tolerance())",
    ],
)
def test_nms_is_that_of_torchvision(call):
    """As in detect.py; that of ultralytics alone is ten times slower and drops boxes at a time limit."""
    program = [sys.executable, "-c", WITHOUT_TORCHVISION.format(call)]
    run = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (0, "2\n"), run.stderr


def test_equal_outputs_agree(output):
    d = compare_boxes(output, output.clone())
    assert (d.box_px, d.score, d.conf, d.reference, d.matched) == (0, 0, CONF, 20, 20)
    assert d.min_iou == pytest.approx(1)
    assert d.within(Tolerance())


@pytest.mark.parametrize(("row", "by", "ok"), [(0, 0.005, True), (3, 0.02, False), (5, 5e-5, True), (6, 2e-4, False)])
def test_the_largest_error_of_any_candidate_decides(output, row, by, ok):
    changed = output.clone()
    changed[1, row, 49] += by  # a candidate that NMS never sees
    assert compare_boxes(output, changed).within(Tolerance()) is ok


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", [0, 1, 2])
def test_numbers_that_are_none_never_agree(output, value, side):
    broken = output.clone()
    broken[0, 5, 7] = value
    pair = [(broken, output), (output, broken), (broken, broken.clone())][side]
    d = compare_boxes(*pair)
    assert not d.within(Tolerance(1e9, 1e9))
    assert "NaN or infinite" in d.problem


def test_another_shape_never_agrees(output):
    d = compare((output,), (output[..., :-1],), 3, False)
    assert d.problem == "puts out (2, 7, 49) where (2, 7, 50) is due"
    assert not d.within(Tolerance(1e9, 1e9))


def test_a_lost_detection_or_another_class_is_noticed(output):
    lost, renamed = output.clone(), output.clone()
    lost[0, 5, 3] = 0.01
    renamed[0, [5, 6], 3] = renamed[0, [6, 5], 3]
    for changed in (lost, renamed):
        d = compare_boxes(output, changed, Tolerance(1, 1e-3))
        assert (d.reference, d.matched) == (20, 19)
        assert not d.within(Tolerance(1, 1))


def test_a_score_at_the_threshold_may_fall_on_either_side(output):
    output[0, 5, 3] = CONF + 1e-6
    changed = output.clone()
    changed[0, 5, 3] = CONF - 1e-6
    assert compare_boxes(output, changed).within(Tolerance())


def test_where_nothing_is_seen_the_best_of_the_background_is_compared_but_ties_decide_nothing(output):
    output[:, 4:] = 1e-4
    output[:, 4, ::2] += 1e-9
    changed = output.clone()
    changed[:, 4:] = 1e-4
    changed[:, 5] += 1e-9
    d = compare_boxes(output, changed)
    assert d.conf < CONF
    assert not d.sees_something
    assert d.within(Tolerance())


def test_two_empty_boxes_at_one_place_are_the_same(output):
    output[:, 2:4] = 0
    assert compare_boxes(output, output.clone()).matched == 20


# Masks ----------------------------------------------------------------------------------------------------------------
def test_coefficients_are_no_scores_and_prototypes_count(output):
    whole = torch.cat([output, torch.randn(2, 5, 50)], 1)
    proto = torch.randn(2, 5, 8, 8)
    same = compare((whole, proto), (whole.clone(), proto.clone()), 3, False)
    assert (same.reference, same.matched, same.score, same.mask) == (20, 20, 0, 0)
    for changed in ((whole, proto + 1), (torch.cat([output, whole[:, 7:] + 1], 1), proto)):
        d = compare((whole, proto), changed, 3, False)
        assert (d.box_px, d.score, d.matched) == (0, 0, 20)
        assert d.mask > 0.1
        assert not d.within(Tolerance())
    assert "(2, 12, 50)" in compare((whole, proto), (whole,), 3, False).problem


# Without NMS ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def ranked():
    """An output (2, 40, 6) whose boxes lie apart, best scores first, the last ten alike."""
    boxes = torch.arange(40.0)[:, None] * 20 + torch.tensor([0.0, 5, 16, 30])
    scores = torch.cat([torch.linspace(0.9, 0.1, 30), torch.full((10,), 0.05)])
    return torch.cat([boxes, scores[:, None], torch.arange(40.0)[:, None] % 3], 1).expand(2, -1, -1).clone()


def test_equal_boxes_without_nms_agree_in_any_order_of_like_scores(ranked):
    ranked[:, 1, 4] = ranked[:, 0, 4]
    swapped = ranked[:, [1, 0, *range(2, 40)]]
    swapped[:, 35:, :4] = 0  # others of the last ten
    d = compare_ranked(ranked, swapped)
    seen = int((ranked[..., 4] > CONF).sum())
    assert (d.box_px, d.score, d.reference, d.matched) == (0, 0, seen, seen)
    assert d.within(Tolerance())


@pytest.mark.parametrize(("column", "by"), [(0, 0.02), (3, -1), (4, 2e-4), (5, 1)])
@pytest.mark.parametrize("row", [0, 17, 28])
def test_one_wrong_number_without_nms_is_noticed(ranked, row, column, by):
    changed = ranked.clone()
    changed[1, row, column] += by
    assert not compare_ranked(ranked, changed).within(Tolerance())


def test_coefficients_without_nms_go_with_their_box(ranked):
    whole = torch.cat([ranked, torch.randn(2, 40, 8)], 2)
    whole[:, 1, 4] = whole[:, 0, 4]
    swapped = whole[:, [1, 0, *range(2, 40)]]
    assert compare_ranked(whole, swapped).mask == 0
    swapped[0, 0, 9] += 1
    assert compare_ranked(whole, swapped).mask > 0.1


def test_a_box_that_is_lost_without_nms_is_noticed(ranked):
    changed = ranked.clone()
    changed[0, 4] = changed[0, 39]
    d = compare_ranked(ranked, changed)
    assert d.matched == d.reference - 1
    assert not d.within(Tolerance())


# Pictures -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (96, 64)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures(size, channels):
    pictures = make_pictures(size, channels)
    assert {p.name for p in PHOTOS} < set(pictures)
    assert all(x.shape == (channels, *size) and x.dtype == torch.float32 for x in pictures.values())
    assert all(x.min() >= 0 and x.max() <= 1 and x.std() > 0.05 for x in pictures.values())
    again = make_pictures(size, channels)
    assert all(again[name].equal(x) for name, x in pictures.items())


def test_photographs_keep_their_proportions():
    bus = make_pictures((64, 128))["bus.jpg"]  # 1080x810: 64x48, padded to 128 with grey
    assert (bus[:, :, :40] == 114 / 255).all()
    assert bus[:, :, 44:84].std() > 0.1


def test_a_broken_picture_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(Unreadable):
        make_pictures((64, 64), files=[tmp_path / "a.jpg"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", [8, 32])
def test_shapes_to_prove_on(size, stride):
    other, third = other_shape(size, stride), third_shape(size, stride)
    assert (size[0] == size[1]) != (other[0] == other[1])
    assert third[0] != third[1]
    assert len({size, other, third}) == 3
    assert all(side % stride == 0 and side > 0 for side in (*other, *third))


# Files ----------------------------------------------------------------------------------------------------------------
class Shifted(nn.Module):
    """A network that disagrees with what it wraps by `by` in every number."""

    def __init__(self, model, by):
        super().__init__()
        self.model, self.by = model, by

    def forward(self, x):
        return self.model(x)[0] + self.by


@pytest.fixture(scope="module")
def reference():
    return Reference(randomize_(DetectionModel(tiny())))


def script(network, path, dtype=torch.float32):
    example = torch.zeros(1, 3, 64, 64, dtype=dtype)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch would like everyone to leave TorchScript
        torch.jit.trace(network, example, check_trace=False).save(path)
    return path


@pytest.mark.parametrize(("by", "ok"), [(0.0, True), (1e-3, False)])
def test_a_file_is_compared_on_every_picture(reference, tmp_path, by, ok):
    path = script(Shifted(reference.model, by), tmp_path / "a.torchscript")
    cases = list(reference.cases(path, (64, 64), 1, Tolerance(), path.name))
    assert [case.picture for case in cases] == ["bus.jpg", "zidane.jpg", "noise", "checkerboard"]
    assert all(case.ok is ok for case in cases)
    if not ok:
        assert all(case.rounding.box_px < 1e-3 for case in cases), "float64 shows that rounding is not the reason"
        assert "✗ noise: scores differ by 0.001, allowed are 0.0001" in proof_table({"torchscript": Proof(cases)})


@pytest.mark.parametrize("end2end", [False, True])
def test_exchanged_classes_are_told_where_all_scores_are_tiny(end2end, tmp_path):
    model = randomize_(DetectionModel(tiny(end2end=end2end))).eval()
    for head in (model.model[-1].cv3, *([model.model[-1].one2one_cv3] if end2end else [])):
        for *_, last in head:
            last.bias.data -= 15
    other = copy.deepcopy(model)
    for *_, last in other.model[-1].one2one_cv3 if end2end else other.model[-1].cv3:
        last.weight.data, last.bias.data = last.weight.flip(0), last.bias.flip(0)
    for network, ok in ((model, True), (other, False)):
        path = script(Shifted(network, 0.0), tmp_path / f"{ok}.torchscript")
        cases = list(Reference(model).cases(path, (64, 64), 1, Tolerance(), path.name))
        assert all(case.allowed.score < 1e-5 for case in cases)
        assert [case.ok for case in cases] == [ok] * 4


def test_a_file_that_takes_no_other_size_is_told(reference, tmp_path):
    path = script(Shifted(reference.model, 0.0), tmp_path / "a.torchscript")
    cases = list(reference.cases(path, (64, 96), 1, Tolerance(), path.name))
    assert not any(case.ok for case in cases)
    assert all("does not run: " in case.difference.problem for case in cases)


@pytest.mark.parametrize("name", ["a.onnx", "a.torchscript"])
@pytest.mark.parametrize("content", [b"", b"no network at all"])
def test_a_damaged_file_is_told(reference, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (case,) = reference.cases(tmp_path / name, (64, 64), 1, Tolerance(), name)
    assert not case.ok
    assert "cannot be loaded" in case.difference.problem
    assert "cannot be loaded" in proof_table({"onnx": Proof([case])})


def test_a_float16_file_is_fed_float16(tmp_path):
    path = script(nn.Conv2d(3, 7, 1).half(), tmp_path / "a.torchscript", torch.float16)
    assert load_runner(path)(torch.ones(1, 3, 64, 64))[0].dtype == torch.float32


def test_batches_are_filled_with_the_pictures_that_follow(reference):
    batches = reference.batches((64, 64), 3)
    assert len(batches) == 4
    assert batches[3][1].shape == (3, 3, 64, 64)
    assert batches[3][1][1].equal(batches[0][1][0])
    assert batches[0][2][0].shape == (3, 6, 320)
    assert reference.batches((64, 64), 3) is batches


def test_rounding_widens_what_is_allowed_only_where_the_tolerance_is_exceeded(monkeypatch, reference, tmp_path):
    path = script(Shifted(reference.model, 1e-3), tmp_path / "a.torchscript")
    monkeypatch.setattr(Reference, "rounding", lambda *_: Difference(box_px=0.0, score=2e-4))
    case, *_ = reference.cases(path, (64, 64), 1, Tolerance(), path.name)
    assert case.ok
    assert case.allowed == Tolerance(0.01, pytest.approx(2e-3))
    assert case.as_dict()["float32_rounding"] == {"box_px": 0.0, "score": 2e-4}
    assert "≈ bus.jpg: float32 alone is off by" in proof_table({"torchscript": Proof([case])})
    case, *_ = reference.cases(path, (64, 64), 1, Tolerance(1, 1), path.name)
    assert case.rounding is None


# Reports --------------------------------------------------------------------------------------------------------------
def case_of(**difference):
    fine = {"box_px": 1e-5, "score": 1e-6, "reference": 3, "matched": 3}
    return Case(TEMPORARY, (64, 32), 1, "noise", Difference(**{**fine, **difference}), Tolerance())


def test_a_proof_without_comparisons_proves_nothing():
    assert not Proof().ok


def test_one_failure_fails_the_proof():
    assert Proof([case_of()]).ok
    assert not Proof([case_of(), case_of(box_px=float("nan"))]).ok


def test_summary_counts_what_is_seen_and_background_only_for_want_of_it():
    seen, background = case_of(min_iou=0.99), case_of(conf=1e-4, reference=9, matched=5, min_iou=0.5)
    assert summarize([seen, background])["detections"] == {
        "reference": 3,
        "matched": 3,
        "undecidable": 0,
        "min_iou": 0.99,
    }
    assert summarize([background])["detections"] == {"reference": 9, "matched": 5, "undecidable": 0, "min_iou": 0.5}
    assert "none seen" in proof_table({"onnx": Proof([background])})


def test_a_proof_is_json():
    written = json.loads(json.dumps(Proof([case_of()]).as_dict(), allow_nan=False))
    assert written["ok"] is True
    assert written["cases"][0]["size"] == [64, 32]
