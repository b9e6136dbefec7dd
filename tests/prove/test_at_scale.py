"""The proof at scale: what is counted of many errors, mAP of several networks at once, and when a file fails."""

import gc
import json
import math
import types

import cv2
import numpy as np
import pytest
import torch

from models import DetectionModel, create_model
from models.errors import UserError
from tests.helpers import randomize_, tiny, write
from tests.networks import NAMES, Disc
from utils.data.description import load_dataset
from utils.data.samples import evenly
from utils.deploy.ends import Nms
from utils.evaluate.accuracy import Accuracy, measure_accuracy
from utils.prove.at_scale import MAX_REMARKS, Distribution, ProofPictures, ScaleProof, compare_at_scale, scale_table
from utils.prove.compare import Tolerance
from utils.prove.reference import Evidence, Reference

# isort: split
from ultralytics.utils.nms import non_max_suppression

SEGMENT = tiny(head=[[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]], [[3, 4], 1, "Segment", ["nc", 8, 16]]])
CFGS = {"detect": tiny(), "end2end": tiny(end2end=True), "segment": SEGMENT}


# Distributions --------------------------------------------------------------------------------------------------------
def test_quantiles_are_right_to_a_percent():
    errors = torch.rand(50_000, generator=torch.Generator().manual_seed(0)) ** 8
    distribution = Distribution()
    for part in errors.split(777):
        distribution.add(part)
    for part in (0.1, 0.5, 0.95, 0.99):
        assert distribution.quantile(part) == pytest.approx(errors.double().quantile(part).item(), rel=0.01)
    assert distribution.largest == errors.max().item()
    assert distribution.quantile(1) == distribution.largest


FEW_ERRORS = [([], 0, 0), ([0, 0, 0, 5], 0, 5), ([1, math.inf], 1, math.inf)]


@pytest.mark.parametrize(("errors", "median", "largest"), FEW_ERRORS)
def test_distributions_of_few(errors, median, largest):
    distribution = Distribution()
    distribution.add(torch.tensor(errors, dtype=torch.float32))
    assert distribution.quantile(0.5) == pytest.approx(median, rel=0.01)
    assert distribution.largest == largest


@pytest.mark.parametrize(("count", "most", "chosen"), [(10, 0, 10), (10, 3, 3), (3, 10, 3), (0, 5, 0)])
def test_pictures_are_taken_evenly(count, most, chosen):
    found = evenly(range(count), most)
    assert len(found) == len(set(found)) == chosen
    assert found == sorted(found)
    assert chosen < 3 or found[-1] >= count * 2 // 3 - 1


# Many pictures --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven pictures of any shape, one of them broken."""
    place = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(7):
        cv2.imwrite(str(place / f"{i}.png"), rng.integers(0, 255, (40 + 9 * i, 100 - 8 * i, 3), np.uint8))
    (place / "5.png").write_bytes(b"broken")
    return place


def proof_pictures(folder, **changes):
    return ProofPictures(files=tuple(sorted(folder.glob("*.png"))), name="some", **changes)


def reference_of(cfg):
    return Reference(randomize_(create_model(CFGS[cfg])))


def shifted(reference, by, only=None):
    """Return a runner that gives what the model gives, `by` more in the first number of the picture number `only`."""
    seen = []

    def run(images):
        outputs = tuple(output.clone() for output in reference(images))
        for i in range(len(images)):
            if only is None or len(seen) == only:
                outputs[0][i, 0, 0] += by
            seen.append(i)
        return outputs

    return run


@pytest.mark.parametrize("cfg", CFGS)
def test_a_file_that_agrees(cfg, folder, caplog):
    reference = reference_of(cfg)
    (found,) = compare_at_scale(
        reference, {"onnx": ("a.onnx", shifted(reference, 0))}, proof_pictures(folder), (64, 48), 1, Tolerance()
    ).values()
    assert found.ok
    assert (found.pictures, found.failed, found.box.largest) == (6, 0, 0)
    assert f"{folder / '5.png'} is left out: not a picture, or a damaged one" in caplog.text
    assert found.matched == found.reference
    assert bool(found.mask.counts.any()) is (cfg == "segment")
    written = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert written["pictures"] == 6
    assert ("mask_error" in written) is (cfg == "segment")


def test_the_one_picture_that_differs_is_named_and_kept(folder):
    reference = reference_of("detect")
    files = {"onnx": ("a.onnx", shifted(reference, 0.5, only=3)), "other": ("b.onnx", shifted(reference, 0))}
    found = compare_at_scale(reference, files, proof_pictures(folder), (64, 64), 1, Tolerance())
    bad, good = found.values()
    assert (bad.ok, good.ok) == (False, True)
    assert (bad.failed, bad.worst.picture) == (1, "3.png")
    assert bad.box.largest == pytest.approx(0.5, rel=1e-4)
    assert bad.box.quantile(0.99) < 1e-3
    assert bad.worst.evidence.images.shape == (1, 3, 64, 64)
    table = scale_table(found, proof_pictures(folder), (64, 64))
    assert "On 6 pictures of some at 64x64" in table
    assert "✗ 1 of 6 pictures differ" in table
    assert "✗ 3.png: boxes differ by 0.5 px" in table
    assert "mAP" not in table


def test_memory_holds_one_picture_for_a_file(folder):
    reference = reference_of("detect")
    files = {"onnx": ("a.onnx", shifted(reference, 0.5))}
    found = compare_at_scale(reference, files, proof_pictures(folder), (64, 64), 1, Tolerance())
    gc.collect()
    assert found["onnx"].failed == 6
    assert len(found["onnx"].remarks) == MAX_REMARKS
    assert sum(type(thing) is Evidence for thing in gc.get_objects()) == 1


def test_batches_are_filled_and_the_filling_is_not_counted(folder):
    reference = reference_of("detect")

    def run(images):
        assert len(images) == 4
        return reference(images)

    (found,) = compare_at_scale(
        reference, {"onnx": ("a.onnx", run)}, proof_pictures(folder), (64, 64), 4, Tolerance()
    ).values()
    assert found.pictures == 6
    assert found.ok


def test_files_with_nms_are_compared_and_their_map_is_not(folder, discs):
    reference = reference_of("detect")
    nms = Nms(conf_thres=0.3)

    def run(images):
        rows = torch.zeros(len(images), nms.max_det, 6)
        options = {"max_det": nms.max_det, "nc": reference.model.nc}
        for i, found in enumerate(non_max_suppression(reference(images)[0], nms.conf_thres, nms.iou_thres, **options)):
            rows[i, : len(found)] = found
        return (rows,)

    some = ProofPictures(discs, tuple(sorted(folder.glob("*.png"))), name="some")
    (found,) = compare_at_scale(reference, {"onnx": ("a.onnx", run)}, some, (64, 48), 2, Tolerance(), nms=nms).values()
    assert found.pictures == 4 + 6
    assert found.accuracy is None
    assert found.ok


def test_a_limit(folder):
    reference = reference_of("detect")
    files = {"onnx": ("a.onnx", shifted(reference, 0))}
    assert (
        compare_at_scale(reference, files, proof_pictures(folder, most=2), (64, 64), 1, Tolerance())["onnx"].pictures
        == 2
    )


def test_a_survey_of_nothing_proves_nothing():
    assert not ScaleProof("a.onnx").ok


# mAP ------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """A data set of four pictures, twice as large as what the network `Disc` takes, with a disc where it sees one."""
    root = tmp_path_factory.mktemp("discs")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    outline = np.stack([0.5 + 0.25 * np.cos(angles), 0.5 + 0.375 * np.sin(angles)], 1)  # as fractions of 64x96
    label = f"1 {' '.join(f'{x:.5f}' for x in outline.ravel())}\n"
    for i in range(4):
        cv2.imwrite(str(root / f"images/{i}.png"), np.full((128, 192, 3), 40 * i, np.uint8))
        (root / f"labels/{i}.txt").write_text(label)
    described = {"path": str(root), "train": "images", "val": "images", "names": dict(NAMES)}
    return load_dataset(write(root, described, "data.yaml"))


def kind(task, end2end=False):
    """Return what the validator asks of a model."""
    return types.SimpleNamespace(task=task, names=dict(NAMES), stride=torch.tensor([32.0]), end2end=end2end, yaml={})


def runner(network):
    def run(images):
        output = network(images)
        return output if isinstance(output, tuple) else (output,)

    return run


@pytest.mark.parametrize("end2end", [False, True])
def test_map_of_several_networks_in_one_pass(discs, end2end):
    right, moved = Disc(end2end=end2end, masks=False), Disc(end2end=end2end, masks=False)
    moved.found[:, (0 if end2end else slice(None)), 0] += 9  # pixels to the right
    seen = []
    found = measure_accuracy(
        {"right": runner(right), "moved": runner(moved), "same": runner(right)},
        kind("detect", end2end),
        discs,
        (64, 96),
        observe=lambda names, images, outputs: seen.append((names, tuple(images.shape), list(outputs))),
    )
    assert found["right"].map == pytest.approx(0.995, abs=1e-3)
    assert found["same"] == found["right"]
    assert found["moved"].map < found["right"].map - 0.1
    assert found["right"].mask_map is None
    assert [shape for _, shape, _ in seen] == [(1, 3, 64, 96)] * 4
    assert seen[0][2] == ["right", "moved", "same"]


def test_map_of_masks(discs):
    networks = {"right": runner(Disc()), "moved": runner(Disc(shift=12))}
    found = measure_accuracy(networks, kind("segment"), discs, (64, 96), most=3)
    right, moved = found.values()
    assert right.map == moved.map == pytest.approx(0.995, abs=1e-3)
    assert moved.mask_map < right.mask_map - 0.1
    assert right.drop_to(moved) == pytest.approx(100 * (right.mask_map - moved.mask_map))
    assert moved.drop_to(right) == pytest.approx(0, abs=1e-9)


def test_other_classes_are_one_sentence(discs):
    model = kind("detect")
    model.names = {0: "cat"}
    with pytest.raises(UserError, match="the weights know 1 classes and the data set has 3"):
        measure_accuracy({"right": runner(Disc(masks=False))}, model, discs, (64, 96))


def test_a_drop_of_map_fails_the_proof():
    found = ScaleProof("a.onnx", pictures=3, unfused=Accuracy(0.9, 0.8), accuracy=Accuracy(0.9, 0.7995))
    assert found.drop == pytest.approx(0.05)
    assert found.ok
    found.accuracy = Accuracy(0.9, 0.798)
    assert not found.ok
    assert found.as_dict()["accuracy"]["drop_points"] == pytest.approx(0.2)
    table = scale_table({"onnx": found}, ProofPictures(name="some"), (64, 64))
    assert "✗ the mAP50-95 drops by 0.200 points, allowed are 0.1" in table


@pytest.mark.parametrize("undecidable", [0, 1])
def test_a_class_that_hangs_on_rounding_may_be_another_one(undecidable):
    """One of 128 pictures is worth 0.8 points of top-1."""
    counts = {"pictures": 128, "reference": 128, "matched": 127, "undecidable": undecidable}
    found = ScaleProof("a.onnx", unfused=Accuracy(top1=96 / 128), accuracy=Accuracy(top1=95 / 128), **counts)
    assert found.ok is bool(undecidable)
    table = scale_table({"onnx": found}, ProofPictures(name="some"), (64, 64), "classes")
    assert ("✗ the top-1 drops by 0.781 points, allowed are 0.1" in table) is not found.ok


def test_labelled_pictures_give_errors_and_map(discs):
    reference = Reference(randomize_(DetectionModel(tiny(nc=3))))
    reference.model.names = dict(NAMES)
    files = {"onnx": ("a.onnx", shifted(reference, 0)), "bad": ("b.onnx", shifted(reference, 0.5, only=1))}
    found = compare_at_scale(reference, files, ProofPictures(discs, most=3, name="discs"), (64, 96), 2, Tolerance())
    assert [one.pictures for one in found.values()] == [3, 3]
    assert [one.failed for one in found.values()] == [0, 1]
    assert found["onnx"].drop == 0
    assert found["onnx"].unfused == found["bad"].unfused
    assert "mAP50-95" in scale_table(found, ProofPictures(discs, name="discs"), (64, 96))
