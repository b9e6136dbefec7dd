"""Heads: YOLOv5's formulas, heads that segment, heads without NMS, and anchors in every form of a YAML."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from ultralytics.nn.modules import DFL, Classify
from ultralytics.utils.torch_utils import scale_img

from models import ClassificationModel, DetectionModel, SegmentationModel, create_model, switch_to_deploy
from models.blocks.ultralytics import ExponentialDFL, fuse_dfl
from models.errors import ConfigError
from models.heads import AnchorDetect, AnchorSegment, parse_anchors
from models.summary import count_gflops, count_parameters
from tests.helpers import golden, pictures, randomize_, relative_error, tell_apart_, tensors, tiny
from tests.stock import STOCK

PUBLISHED = golden("parameters-yolov5")  # parameters at 80 classes
GFLOPS = {"n": 4.5, "s": 16.5, "m": 49.0, "l": 109.1, "x": 205.7}  # published, of 640 x 640
ANCHORS = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]]
FORMS = {  # name: (last row's arguments, further keys)
    "anchors": (["nc", "anchors"], {"anchors": ANCHORS}),
    "anchors in the row": (["nc", ANCHORS], {}),
    "two a level": (["nc", 2], {}),
    "without": (["nc"], {}),
    "without NMS": (["nc"], {"end2end": True}),
    "one convolution": (["nc", {"reg_max": 1, "legacy": True, "convs": 1}], {}),
    "no convolutions": (["nc", {"reg_max": 1, "convs": 0}], {}),
    "no convolutions and no NMS": (["nc", {"convs": 0}], {"end2end": True}),
}
SEGMENT_FORMS = {
    "anchors": (["nc", "anchors", 8, 32], {"anchors": ANCHORS}),
    "without": (["nc", 8, 32], {}),
    "without NMS": (["nc", 8, 32], {"end2end": True}),
    "without, no convolutions": (["nc", 8, 32, {"convs": 0}], {}),
    "all levels": (["nc", 8, 32, {"all_levels": True}], {}),
    "all levels without NMS": (["nc", 8, 32, {"all_levels": True}], {"end2end": True}),
}


def model_of(word, args, keys, **options):
    """Return a tiny model with this head; its maps have strides 8 and 16."""
    backbone = [[-1, 1, "Conv", [16, 6, 4, 1]], [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "C3", [32]]]
    head = [[-1, 1, "Conv", [32, 3, 2]], [[2, 3], 1, word, args]]
    return create_model(tiny(backbone=backbone, head=head, **keys), **options)


HEADS = [("Detect", *form) for form in FORMS.values()] + [("Segment", *form) for form in SEGMENT_FORMS.values()]
NAMES = [*(f"Detect {name}" for name in FORMS), *(f"Segment {name}" for name in SEGMENT_FORMS)]


# All of them ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("word", "args", "keys"), HEADS, ids=NAMES)
def test_a_head_gives_what_ultralytics_reads_and_fuses(word, args, keys):
    model = randomize_(model_of(word, args, keys)).double().eval()
    deploy = switch_to_deploy(model)
    x = pictures(96, 160)
    with torch.no_grad():
        want, got = tensors(model(x)[0]), tensors(deploy(x)[0])
    cells = 12 * 20 + 6 * 10
    masks = 8 if word == "Segment" else 0
    rows = cells * getattr(model.model[-1], "na", 1)
    assert want[0].shape == ((2, 300, 6 + masks) if keys.get("end2end") else (2, 4 + 2 + masks, rows))
    assert [tuple(tensor.shape) for tensor in want[1:]] == ([(2, 8, 24, 40)] if masks else [])
    assert all(relative_error(g, w) < 1e-9 for g, w in zip(got, want, strict=True))
    assert not deploy.report.left
    assert deploy.end2end is bool(keys.get("end2end"))
    assert isinstance(model, SegmentationModel if masks else DetectionModel)
    assert model.task == deploy.task == ("segment" if masks else "detect")


@pytest.mark.parametrize(("word", "args", "keys"), HEADS, ids=NAMES)
def test_a_head_learns_from_the_loss(word, args, keys):
    model = model_of(word, args, keys).train()
    model.args = trainer_args()
    masks = torch.zeros(2, 24, 24)
    masks[:, 4:14, 4:14] = 1
    batch = {"img": torch.rand(2, 3, 96, 96), "batch_idx": torch.tensor([0.0, 1]), "cls": torch.tensor([[0.0], [1]])}
    batch |= {"bboxes": torch.tensor([[0.4, 0.4, 0.4, 0.4]] * 2), "masks": masks, "sem_masks": masks * 0}
    loss, items = model(batch)
    loss.sum().backward()
    assert all(math.isfinite(item) for item in items.values())
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def trainer_args():
    from ultralytics.cfg import get_cfg  # noqa: PLC0415 (after the environment is set)

    return get_cfg()


def test_fusing_drops_the_branch_that_only_trains():
    model = model_of("Detect", ["nc"], {"end2end": True})
    deploy = switch_to_deploy(model)
    assert deploy.report.fused["Detect"] == 1
    assert count_parameters(deploy) < count_parameters(model) - 20_000
    assert model.model[-1].cv2 is not None
    assert switch_to_deploy(deploy).report == deploy.report


# Classes --------------------------------------------------------------------------------------------------------------
def classifier(*args, **changes):
    """Return a tiny model YAML that ends in Classify."""
    return tiny(nc=3, head=[[-1, 1, "Classify", list(args)]], **changes)


@pytest.mark.parametrize("args", [("nc",), ("nc", 3, 2, 1, 4), ({"nc": 3, "dropout": 0.5},)], ids=str)
def test_a_classifier_gives_probabilities_and_fuses(args):
    x = pictures(44, 72)
    model = tell_apart_(randomize_(create_model(classifier(*args))).double(), x)
    deploy = switch_to_deploy(model)
    with torch.no_grad():
        probabilities, logits = model(x)
        got = deploy(x)
    assert probabilities.shape == logits.shape == (2, 3)
    assert relative_error(probabilities, logits.softmax(1)) < 1e-12
    assert (logits[0] - logits[1]).abs().min() > 1
    assert all(relative_error(*pair) < 1e-9 for pair in zip(got, (probabilities, logits), strict=True))
    assert not deploy.report.left
    assert isinstance(deploy, ClassificationModel)
    assert (deploy.task, deploy.stride.tolist()) == ("classify", [4.0])


def test_a_classifier_is_that_of_ultralytics():
    model = create_model(classifier("nc"))
    other = Classify(model.features[2].channels, 3)
    assert model.model[-1].state_dict().keys() == other.state_dict().keys()
    other.load_state_dict(model.model[-1].state_dict())
    x = torch.rand(2, model.features[2].channels, 5, 7)
    assert all(map(torch.equal, model.model[-1].eval()(x), other.eval()(x)))


@pytest.mark.parametrize("soft", [False, True], ids=["numbers", "parts of each"])
def test_a_classifier_learns_from_the_loss(soft):
    model = create_model(classifier("nc")).train()
    classes = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.3, 0.7]]) if soft else torch.tensor([0, 2])
    loss, items = model({"img": torch.rand(2, 3, 32, 32), "cls": classes})
    loss.backward()
    assert math.isfinite(items["loss"])
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("rows", "expected"),
    {
        "two maps": ([[[1, 2], 1, "Classify", ["nc"]]], "Classify reads one feature map, but 'from' names 2"),
        "classes": ([[-1, 1, "Classify", [7]]], "Classify is given 7 classes, but nc of the YAML is 3"),
        "twice": ([[-1, 2, "Classify", ["nc"]]], "Classify stands once, not 2 times"),
        "dropout": ([[-1, 1, "Classify", ["nc", {"dropout": 1}]]], "dropout must be a number from 0 to below 1, got 1"),
        "in the middle": ([[-1, 1, "Classify", ["nc"]], [-1, 1, "Conv", [8]]], "a head must be the last row"),
    }.values(),
)
def test_a_wrong_classify_row_is_one_sentence(rows, expected):
    with pytest.raises(ConfigError, match=expected):
        create_model({**classifier(), "head": rows})


# YOLOv5's -------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
def test_a_stock_architecture_has_the_published_parameters(name):
    with torch.device("meta"):
        model = create_model(STOCK[name])
    assert count_parameters(model) == PUBLISHED[name]
    assert PUBLISHED.keys() == STOCK.keys()
    if name[-1] in GFLOPS and name[:-1] == "yolov5":
        assert count_gflops(model) == pytest.approx(GFLOPS[name[-1]], rel=0.01)


@pytest.mark.parametrize("form", ["yolov5n-seg", "yolov5s-seg", "yolov5n6", "yolov5s6", "yolov5s-ghost"])
def test_other_shipped_files_are_stock_architectures(form):
    with torch.device("meta"):
        assert count_parameters(create_model(f"{form}.yaml")) == PUBLISHED[form]


def test_boxes_are_decoded_by_yolov5s_formulas():
    model = randomize_(model_of("Detect", ["nc", "anchors"], {"anchors": ANCHORS})).double().eval()
    with torch.no_grad():
        boxes, raw = model(pictures(64, 96))
    want = []
    for level, (maps, stride) in enumerate(zip(raw["maps"], (8, 16), strict=True)):
        for anchor in range(3):
            w, h = ANCHORS[level][2 * anchor : 2 * anchor + 2]
            for row in range(64 // stride):
                for column in range(96 // stride):
                    t = maps[:, anchor, row, column].sigmoid()
                    xy = (t[:, :2] * 2 - 0.5 + torch.tensor([column, row])) * stride
                    wh = (t[:, 2:4] * 2) ** 2 * torch.tensor([w, h])
                    want.append(torch.cat([xy, wh, t[:, 4:5] * t[:, 5:]], 1))
    assert relative_error(boxes, torch.stack(want, 2)) < 1e-12


def test_biases_start_with_the_frequency_of_objects():
    head = AnchorDetect(4, parse_anchors(3, (8, 16)), (8, 8), (8, 16))
    before = copy.deepcopy(head)
    head.bias_init()
    for conv, old, stride in zip(head.m, before.m, (8, 16), strict=True):
        change = (conv.bias - old.bias).view(3, 9)
        assert torch.allclose(change[:, 4], torch.tensor(math.log(8 / (640 / stride) ** 2)), atol=1e-5)
        assert torch.allclose(change[:, 5:], torch.tensor(math.log(0.6 / 3.00001)), atol=1e-5)
        assert not change[:, :4].any()


def test_a_mask_is_the_sum_of_prototypes_at_a_quarter_of_the_size():
    head = AnchorSegment(2, parse_anchors(2, (8,)), (16,), (8,), nm=5, npr=12).eval()
    (boxes, proto), raw = head([torch.randn(1, 16, 8, 12)])
    assert proto.shape == (1, 5, 16, 24)
    assert torch.equal(boxes[:, 6:].unflatten(2, (2, 8, 12)).permute(0, 2, 3, 4, 1), raw["maps"][0][..., 7:])
    assert [name.split(".")[0] for name, _ in head.proto.named_parameters()][::3] == ["cv1", "cv2", "cv3"]


def test_three_views_are_laid_over_each_other():
    """The whole picture loses its largest cells, the smallest view its smallest ones; mirroring is undone."""
    model = randomize_(model_of("Detect", ["nc", "anchors"], {"anchors": ANCHORS})).double().eval()
    x = pictures(64, 96)
    with torch.no_grad():
        found, none = model(x, augment=True)
        plain = model(x)[0]
        mirrored = model._predict_once(scale_img(x.flip(3), 0.83, gs=16))[0]
    fine, coarse = 3 * 8 * 12, 3 * 3 * 5  # of 64 x 96, and of 48 x 80
    assert none is None
    assert torch.equal(found[..., :fine], plain[..., :fine])
    view = found[..., fine : fine + mirrored.shape[-1]]
    assert torch.allclose(view[:, 1:4], mirrored[:, 1:4] / 0.83)
    assert torch.allclose(view[:, 0], 96 - mirrored[:, 0] / 0.83)
    assert found.shape[-1] == fine + mirrored.shape[-1] + coarse


def test_anchors_are_in_the_checkpoint_and_move_with_the_model():
    head = AnchorDetect(2, parse_anchors(3, (8, 16)), (8, 8), (8, 16))
    assert head.state_dict()["anchor_sizes"].shape == (2, 3, 2)
    assert head.double().anchor_sizes.dtype == torch.float64


# What a YAML may say --------------------------------------------------------------------------------------------------
def test_anchors_from_large_to_small_are_turned_round():
    small, large = (10, 13), (100, 90)
    assert parse_anchors((small, large), (8, 16)) == parse_anchors((large, small), (8, 16)) == ((small,), (large,))


def test_a_number_of_anchors_gives_each_level_sizes_of_its_stride():
    anchors = parse_anchors(3, (8, 16, 32))
    assert [len(level) for level in anchors] == [3, 3, 3]
    assert all(a < b for level in anchors for (a, _), (b, _) in pairwise(level))
    for level, stride in zip(anchors, (8, 16, 32), strict=True):
        assert all(4 * stride <= side < 8 * stride for side, _ in level)


WRONG = [
    (["nc", "anchors"], {}, "no key for"),
    (["nc", 0], {}, "1 to 100 a level, got 0"),
    (["nc", True], {}, "a list of numbers for each level"),
    (["nc", "three"], {}, "a list of numbers for each level"),
    (["nc", [[10, 13]]], {}, "given for 1 levels, but the head reads 2"),
    (["nc", [[10, 13], [10, 13, 16, 30]]], {}, "as many pairs"),
    (["nc", [[10, 13, 4], [10, 13, 4]]], {}, "as many pairs"),
    (["nc", [[], []]], {}, "as many pairs"),
    (["nc", [[10, -1], [10, 13]]], {}, "above 0"),
    (["nc", [[10, float("nan")], [10, 13]]], {}, "above 0"),
    (["nc", [[10, "x"], [10, 13]]], {}, "above 0"),
    (["nc", "anchors"], {"anchors": ANCHORS, "end2end": True}, "end2end is for the head without anchors"),
    ([5], {}, "given 5 classes"),
    (["nc"], {"end2end": "yes"}, "end2end must be true or false"),
]


@pytest.mark.parametrize(("args", "keys", "said"), WRONG, ids=str)
@pytest.mark.parametrize("word", ["Detect", "Segment"])
def test_a_wrong_head_is_explained(word, args, keys, said):
    args = [*args, *([8, 16] if word == "Segment" and len(args) > 1 else [])]
    with pytest.raises(ConfigError, match=said) as caught:
        model_of(word, args, keys)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scale", [1.0, 1e3], ids=["usual", "far apart"])
def test_the_expectation_of_bins_is_computed_without_a_softmax(scale):
    dfl = DFL(16)
    fused = fuse_dfl(dfl)
    x = torch.randn(2, 64, 35, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * scale
    assert type(fused) is ExponentialDFL and fused.state_dict().keys() == dfl.state_dict().keys()
    assert relative_error(fused.double()(x), dfl.double()(x)) < 1e-12


def test_masks_need_a_map_of_stride_8():
    rows = [[-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [[0, 1], 1, "Segment", ["nc", 8, 16]]]
    with pytest.raises(ConfigError, match="its finest has stride 2"):
        create_model({"nc": 2, "head": rows})


def test_prototypes_of_all_levels_need_levels_that_double():
    rows = [[-1, 1, "Conv", [16, 8, 8, 0]], [-1, 1, "Conv", [16, 4, 4, 0]]]
    head = [[0, 1], 1, "Segment", ["nc", 8, 16, {"all_levels": True}]]
    with pytest.raises(ConfigError, match=r"all_levels reads strides 8, 16, 32, \.\.\., not 8, 32"):
        create_model({"nc": 2, "head": [*rows, head]})


def test_prototypes_of_all_levels_are_without_anchors():
    with pytest.raises(ConfigError, match="reg_max, legacy, convs and all_levels are for the head without anchors"):
        model_of("Segment", ["nc", ANCHORS, 8, 16, {"all_levels": True}], {})


@pytest.mark.parametrize(("convs", "count"), [(0, 1), (1, 2), (2, 3), (None, 3)])
def test_a_branch_has_as_many_convolutions_as_the_row_says(convs, count):
    options = {} if convs is None else {"convs": convs}
    head = model_of("Detect", ["nc", options], {"end2end": True}).model[-1]
    branches = [head.cv2, head.cv3, head.one2one_cv2, head.one2one_cv3]
    assert {len(level) for branch in branches for level in branch} == {count}
    assert [level[-1].out_channels for level in head.cv3] == [2, 2]


def test_a_branch_has_at_most_two_convolutions():
    with pytest.raises(ConfigError, match="Detect's convs must be 0, 1 or 2, got 3"):
        model_of("Detect", ["nc", {"convs": 3}], {})


def test_what_only_trains_is_gone_when_fused():
    model = model_of("Segment", ["nc", 8, 32, {"all_levels": True}], {})
    pixels = count_parameters(model.model[-1].proto.semseg)
    assert 0 < pixels < count_parameters(model) - count_parameters(switch_to_deploy(model))
    assert switch_to_deploy(model).model[-1].proto.semseg is None


def test_a_detection_model_is_not_made_from_a_head_that_segments():
    with pytest.raises(ConfigError, match="head to segment, which create_model builds"):
        DetectionModel("yolov5n-seg.yaml")


# On other devices -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("word", "args", "keys"),
    [("Detect", *form) for form in FORMS.values()] + [("Segment", *form) for form in SEGMENT_FORMS.values()],
)
def test_what_a_trace_makes_on_a_device_follows_the_input(word, args, keys):
    """A device in a traced graph is that of the tracing: a file would run where it was written and nowhere else."""
    model = model_of(word, args, keys).eval()
    for module in model.modules():
        module.dynamic = module.export = True  # as in ultralytics' exporter: the grid is computed anew
    graph = torch.jit.trace(model, torch.rand(1, 3, 64, 96), check_trace=False, strict=False).inlined_graph
    placed = [node for node in graph.nodes() if any(str(value.type()) == "Device" for value in node.inputs())]
    assert any(node.kind() == "aten::arange" for node in graph.nodes())
    users = {use.user.kind() for node in placed for output in node.outputs() for use in output.uses()}
    assert users <= {"aten::type_as"}
