"""The picture that shows a file's worst case: both sides, whatever they put out."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from models import create_model
from tests.helpers import randomize_, tiny
from utils.data.samples import make_pictures
from utils.deploy.ends import Nms
from utils.prove.compare import Tolerance, detections
from utils.prove.reference import Evidence, Reference
from utils.prove.side_by_side import MARGIN, PICTURE_SIDE, draw_side_by_side

SEGMENT = tiny(head=[[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]], [[3, 4], 1, "Segment", ["nc", 8, 16]]])
CFGS = {"detect": tiny(), "end2end": tiny(end2end=True), "segment": SEGMENT}


@pytest.fixture(scope="module", params=CFGS)
def reference(request):
    reference = Reference(randomize_(create_model(CFGS[request.param])))
    reference.model.names = {0: "käse", 1: "日本"}
    return reference


def case_of(reference, change=lambda outputs: outputs, batch=1, size=(64, 96)):
    picture, images, expected = reference.batches(size, batch)[0]
    got = change(tuple(output.clone() for output in expected))
    return reference.judge("best.onnx", picture, Evidence(images, expected, got), Tolerance())[0]


def draw(reference, case):
    return draw_side_by_side(reference, case, "best.onnx")


def sides(exhibit):
    """Return the two pictures without what is written above them."""
    width = (exhibit.shape[1] - 3 * MARGIN) // 2
    return exhibit[94:, MARGIN : MARGIN + width], exhibit[94:, 2 * MARGIN + width : 2 * (MARGIN + width)]


@pytest.mark.slow
def test_both_sides_are_alike_when_the_file_agrees(reference):
    exhibit = draw(reference, case_of(reference))
    assert exhibit.dtype == np.uint8
    assert exhibit.shape[1] > 2 * PICTURE_SIDE
    left, right = sides(exhibit)
    assert (left == right).all()
    assert left.std() > 10


def test_what_the_file_does_not_see_is_not_drawn(reference):
    def blind(outputs):
        outputs[0][:, 4:6] = 0
        outputs[0][..., 4] = 0
        return outputs

    conf = dataclasses.replace(case_of(reference).difference, conf=0.01)
    seen, unseen = case_of(reference), case_of(reference, blind)
    pictures = [draw(reference, dataclasses.replace(case, difference=conf)) for case in (seen, unseen)]
    left, right = zip(*map(sides, pictures), strict=True)
    assert (left[0] == left[1]).all()
    assert (right[0] != right[1]).any()


@pytest.mark.slow
def test_of_a_batch_the_picture_that_differs_is_shown(reference):
    def shift_second(outputs):
        outputs[0][1] += 50
        return outputs

    case = case_of(reference, shift_second, batch=2)
    zidane = make_pictures((64, 96))["zidane.jpg"]
    assert case.evidence.images[1].equal(zidane)
    alone = case.evidence.singles()[1]
    assert (draw(reference, case) == draw(reference, dataclasses.replace(case, evidence=alone))).all()


def test_boxes_after_nms_are_those_before_it(reference):
    if reference.model.end2end:
        pytest.skip("needs no NMS")
    case = case_of(reference)
    nms = Nms(conf_thres=case.difference.conf, iou_thres=0.6)
    kept = detections(case.evidence.expected[0], 2, False, nms.conf_thres, iou_thres=0.6, max_det=nms.max_det)[0]
    filled = torch.zeros(1, nms.max_det, kept.shape[1])
    filled[0, : len(kept)] = kept
    evidence = dataclasses.replace(case.evidence, got=(filled, *case.evidence.expected[1:]), nms=nms)
    case = reference.judge("best.onnx", case.picture, evidence, Tolerance())[0]
    assert case.ok
    left, right = sides(draw(reference, case))
    assert (left == right).all()


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_none(reference, number):
    case = case_of(reference, lambda outputs: tuple(torch.full_like(output, number) for output in outputs))
    assert "NaN or infinite" in case.difference.problem
    assert draw(reference, case).shape[1] > 2 * PICTURE_SIDE


def test_outputs_of_another_shape(reference):
    case = case_of(reference, lambda _: (torch.zeros(1, 3),))
    assert draw(reference, case).shape[1] > 2 * PICTURE_SIDE


def test_a_case_without_evidence_cannot_be_shown(reference):
    with pytest.raises(ValueError, match="no evidence"):
        draw(reference, dataclasses.replace(case_of(reference), evidence=None))
