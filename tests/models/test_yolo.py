"""The detection model: what it returns, that it trains, and that copies, precision and fusing leave it itself."""

import copy
import functools
import pickle
import weakref

import pytest
import torch
from torch import nn
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import BaseModel
from ultralytics.utils import LOGGER

from models import DetectionModel, create_model, switch_to_deploy
from models.errors import ConfigError
from models.spec import load_spec
from tests.helpers import (
    DETECTORS,
    SWEPT,
    TINY_HEAD,
    pictures,
    pictures_for,
    randomize_,
    relative_error,
    swept,
    tensors,
    tiny,
    tiny_backbone,
    worst_error,
)


@pytest.fixture(scope="module")
def small():
    return randomize_(DetectionModel(tiny())).double().eval()


@pytest.fixture(scope="module")
def built():
    """Return a function from a shipped YAML to its model in eval mode, float64 with random weights."""
    return functools.cache(lambda name: randomize_(create_model(name, nc=3)).double().eval())


def batch(side=64):
    """Return a batch of two pictures with one box each, as ultralytics' loss takes it."""
    boxes = torch.tensor([[0.5, 0.5, 0.4, 0.3], [0.3, 0.6, 0.2, 0.5]])
    return {
        "img": torch.rand(2, 3, side, side),
        "cls": torch.tensor([[0.0], [1.0]]),
        "bboxes": boxes,
        "batch_idx": torch.tensor([0.0, 1.0]),
    }


# What it returns ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", swept(DETECTORS))
def test_predictions_are_boxes_and_scores(name, built):
    model = built(name)
    with torch.no_grad():
        x = pictures_for(model)
        predictions, *proto = tensors(model(x)[0])
    head, (height, width) = model.model[-1], x.shape[2:]
    cells = sum(height * width // int(s) ** 2 for s in model.stride)
    if model.end2end:
        assert predictions.shape == (2, min(300, cells), 6)
        scores, labels = predictions[..., 4], predictions[..., 5]
        assert set(labels.unique().tolist()) <= {0, 1, 2}
    else:
        masks = head.nm if model.task == "segment" else 0
        assert predictions.shape == (2, 4 + 3 + masks, cells * getattr(head, "na", 1))
        scores = predictions[:, 4:7]
    assert [tensor.shape for tensor in proto] == ([(2, head.nm, height // 4, width // 4)] if proto else [])
    assert bool(proto) is (model.task == "segment")
    assert ((scores >= 0) & (scores <= 1)).all()


def test_boxes_are_in_input_pixels():
    """With a head that says nothing, every box is centred on its cell and 15 cells wide."""
    model = DetectionModel(tiny()).eval()
    with torch.no_grad():
        for stack in model.model[-1].cv2:
            stack[-1].weight.zero_()
            stack[-1].bias.zero_()
        xywh = model(torch.rand(1, 3, 32, 64))[0][0, :4]
    centers = [((x + 0.5) * s, (y + 0.5) * s, 15.0 * s) for s in (4, 8) for y in range(32 // s) for x in range(64 // s)]
    assert torch.allclose(xywh[:3].T, torch.tensor(centers), atol=1e-3)


def test_training_returns_the_raw_maps(small):
    model = copy.deepcopy(small).train()
    raw = model(pictures(32, 64))
    assert {name: tuple(raw[name].shape) for name in ("boxes", "scores")} == {
        "boxes": (2, 64, 8 * 16 + 4 * 8),
        "scores": (2, 2, 8 * 16 + 4 * 8),
    }


@pytest.mark.parametrize("name", SWEPT)
def test_slots_hold_what_was_declared(name, built):
    """Channels and strides that were known before anything ran are those that come."""
    model = built(name)
    seen, hooks = {}, []
    for module, node in zip(model.model, model.nodes, strict=True):

        def note(module, inputs, output, node=node):
            seen.update(zip(node.slots, output if node.writes_list else (output,), strict=True))

        hooks.append(module.register_forward_hook(note))
    x = pictures_for(model)
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    for slot, feature in model.features.items():
        if slot >= 0:
            shape = (2, feature.channels, x.shape[2] / feature.stride, x.shape[3] / feature.stride)
            assert tuple(seen[slot].shape) == shape, slot


def test_maps_that_nobody_reads_any_more_are_let_go(small):
    made, alive = {}, set()
    *rows, head = small.model
    hooks = [
        module.register_forward_hook(lambda module, inputs, output, i=i: made.update({i: weakref.ref(output)}))
        for i, module in enumerate(rows)
    ]
    hooks += [
        head.register_forward_pre_hook(lambda *_: alive.update(i for i, ref in made.items() if ref() is not None))
    ]
    with torch.no_grad():
        small(pictures(32, 32))
    for hook in hooks:
        hook.remove()
    assert len(made) == 6
    assert alive == {3, 5}


def test_first_row_may_read_the_picture_later():
    head = [
        [-1, 1, "Conv", [8, 3, 2]],
        [-2, 1, "Conv", [8, 3, 2]],
        [[0, 1], 1, "Concat", [1]],
        [-1, 1, "Detect", ["nc"]],
    ]
    model = DetectionModel({"nc": 1, "head": head}).eval()
    assert model(torch.rand(1, 3, 32, 32))[0].shape == (1, 5, 256)


# Training -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cfg", [tiny(), tiny_backbone("RIFormer", "s12")], ids=["words", "RIFormer"])
def test_the_loss_reaches_every_parameter(cfg):
    torch.manual_seed(0)
    model = DetectionModel(cfg).train()
    model.args = get_cfg()
    loss = model(batch())[0]
    loss.sum().backward()
    assert loss.isfinite().all()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without


def test_two_steps_lower_the_loss():
    torch.manual_seed(0)
    model = DetectionModel(tiny()).train()
    model.args = get_cfg()
    data = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(6):
        loss = model(data)[0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_same_seed_gives_the_same_model():
    def build():
        torch.manual_seed(3)
        return DetectionModel(tiny()).state_dict()

    assert all(torch.equal(a, b) for a, b in zip(build().values(), build().values(), strict=True))


def test_building_leaves_statistics_alone():
    model = DetectionModel(tiny())
    assert {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0}
    assert all(p.grad is None for p in model.parameters())


# Copies ---------------------------------------------------------------------------------------------------------------
def test_copies_compute_the_same(small):
    x = pictures(64, 32)
    with torch.no_grad():
        want = small(x)[0]
        for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
            assert torch.equal(other(x)[0], want)


def test_half_precision_and_back(small):
    model = copy.deepcopy(small).float()
    x = pictures(64, 32, dtype=torch.float32)
    with torch.no_grad():
        want = model(x)[0]
        assert model.half().stride.tolist() == [4, 8]
        assert relative_error(model.float()(x)[0], want) <= 1e-2


def test_half_precision_model_can_be_fused(small):
    model = copy.deepcopy(small).half()
    deploy = model.fuse()
    assert {p.dtype for p in deploy.parameters()} == {torch.float16}


def test_weights_of_one_fit_the_other():
    one, other = DetectionModel(tiny()), DetectionModel(tiny())
    other.load_state_dict(one.state_dict())
    x = pictures(32, 32, dtype=torch.float32)
    assert torch.equal(one.eval()(x)[0], other.eval()(x)[0])


def test_the_yaml_of_a_model_builds_it_again(small):
    again = DetectionModel(small.yaml)
    assert again.spec == small.spec
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in small.state_dict().items()}


# Fusing ---------------------------------------------------------------------------------------------------------------
def test_fuse_returns_a_copy_that_computes_the_same(small):
    fused = small.fuse()
    assert fused is not small
    assert (fused.is_fused(), small.is_fused()) == (True, False)
    assert worst_error(fused, small, pictures(32, 64)) <= 1e-9
    assert fused.names == small.names


@pytest.mark.slow
@pytest.mark.parametrize("source", ["P3", ["P2", "P3"], "P2"], ids=str)
def test_a_head_on_fine_levels_alone_can_be_fused(source):
    """The strides of the neck go deeper than the head's, and the example must be large enough for them."""
    sources = source if isinstance(source, list) else [source]
    rows = [["P5", 1, "Conv", [8]], [-1, 1, "nn.Upsample", [None, 4]], [[-1, "P3"], 1, "Concat", [1]]]
    rows += [[-1, 1, "nn.Upsample", [None, 2]], [[-1, "P2"], 1, "Concat", [1]]]
    detect = [[{"P3": 7, "P2": 9}[s] for s in reversed(sources)][::-1], 1, "Detect", ["nc"]]
    model = DetectionModel(tiny_backbone("RIFormer", "s12", head=[*rows, detect])).eval()
    x = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        assert switch_to_deploy(model)(x)[0].shape == model(x)[0].shape


def test_the_example_has_the_models_channels_dtype_and_device():
    example = DetectionModel(tiny(), ch=5).double().example_input()
    assert (example.shape, example.dtype) == ((1, 5, 16, 16), torch.float64)


# What ultralytics reads -----------------------------------------------------------------------------------------------
def test_it_is_an_ultralytics_model(small):
    assert isinstance(small, BaseModel)
    assert isinstance(small.model, nn.Sequential)
    assert (small.task, small.stride.tolist(), small.names) == ("detect", [4, 8], {0: "class0", 1: "class1"})
    assert (small.yaml["nc"], small.yaml["channels"]) == (2, 3)
    assert small.end2end is False


def test_ultralytics_channels_key_is_not_ignored():
    """Its files say `channels: 1` for grey pictures."""
    assert load_spec(tiny(channels=1)).ch == 1


@pytest.mark.parametrize("training", [False, True])
def test_a_profile_is_logged_and_changes_nothing(small, training, monkeypatch):
    lines = []
    monkeypatch.setattr(LOGGER, "info", lines.append)
    model = copy.deepcopy(small).train(training)
    twin = copy.deepcopy(model)
    x = pictures(64, 64, dtype=torch.float32).to(next(model.parameters()))
    got, want = tensors(model(x, profile=True)), tensors(twin(x))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    header, *rows, total = lines[0].splitlines()
    assert header.split() == ["slot", "module", "ms", "share"]
    assert [row.split()[1] for row in rows] == [row.module for row in model.spec.rows]
    spent = [float(row.split()[2]) for row in rows]
    assert min(spent) >= 0
    assert sum(spent) == pytest.approx(float(total.split()[2]), abs=0.01 * len(rows))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model)


def test_the_table_is_logged_on_request(monkeypatch):
    lines = []
    monkeypatch.setattr(LOGGER, "info", lines.append)
    DetectionModel(tiny())
    assert not lines
    DetectionModel(tiny(), verbose=True)
    assert "Detect" in lines[0]


def test_a_wrong_yaml_leaves_through_the_constructor():
    with pytest.raises(ConfigError, match="the last row must be a head"):
        DetectionModel(tiny(head=TINY_HEAD))
