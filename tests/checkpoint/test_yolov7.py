"""YOLOv7's checkpoints become ours. The network that is written is one of its modules' formulas, none of them ours."""

import sys
import types

import pytest
import torch
from torch import nn

from models.errors import WeightsError
from tests.helpers import randomize_, relative_error
from utils import convert
from utils.checkpoint import load_checkpoint
from utils.checkpoint.yolov7 import fold_implicit

ANCHORS = [[10, 13, 16, 30], [60, 90, 110, 70]]
PLACES = {"IDetect": "models.yolo", "IAuxDetect": "models.yolo", "Model": "models.yolo"}


class Conv(nn.Module):
    def __init__(self, c1, c2, k=1, s=1, act=None):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(c1, c2, k, s, k // 2, bias=False), nn.BatchNorm2d(c2, eps=1e-3)
        self.act = act or nn.SiLU()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))


class RepConv(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.rbr_identity = nn.BatchNorm2d(c1, eps=1e-3) if c1 == c2 else None
        self.rbr_dense = nn.Sequential(nn.Conv2d(c1, c2, 3, 1, 1, bias=False), nn.BatchNorm2d(c2, eps=1e-3))
        self.rbr_1x1 = nn.Sequential(nn.Conv2d(c1, c2, 1, bias=False), nn.BatchNorm2d(c2, eps=1e-3))
        self.act = nn.SiLU()

    def forward(self, x):
        return self.act(self.rbr_dense(x) + self.rbr_1x1(x) + (self.rbr_identity(x) if self.rbr_identity else 0))


class MP(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = nn.MaxPool2d(2, 2)

    def forward(self, x):
        return self.m(x)


class SP(nn.Module):
    def __init__(self, k):
        super().__init__()
        self.m = nn.MaxPool2d(k, 1, k // 2)

    def forward(self, x):
        return self.m(x)


class ReOrg(nn.Module):
    def forward(self, x):
        return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


class SPPCSPC(nn.Module):
    def __init__(self, c1, c2):
        super().__init__()
        self.cv1, self.cv2, self.cv3, self.cv4 = Conv(c1, c2), Conv(c1, c2), Conv(c2, c2, 3), Conv(c2, c2)
        self.m = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        self.cv5, self.cv6, self.cv7 = Conv(4 * c2, c2), Conv(c2, c2, 3), Conv(2 * c2, c2)

    def forward(self, x):
        y = self.cv4(self.cv3(self.cv1(x)))
        y = self.cv6(self.cv5(torch.cat([y, *(pool(y) for pool in self.m)], 1)))
        return self.cv7(torch.cat((y, self.cv2(x)), 1))


class Concat(nn.Module):
    d = 1

    def forward(self, x):
        return torch.cat(x, 1)


class Implicit(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.implicit = nn.Parameter(torch.randn(1, channels, 1, 1))


class IDetect(nn.Module):
    def __init__(self, nc, channels):
        super().__init__()
        self.nc, self.no, self.nl, self.na = nc, nc + 5, len(ANCHORS), len(ANCHORS[0]) // 2
        self.stride = torch.tensor([8.0, 16.0])
        pixels = torch.tensor(ANCHORS).float().view(self.nl, -1, 2)
        self.register_buffer("anchors", pixels / self.stride.view(-1, 1, 1))
        self.register_buffer("anchor_grid", pixels.view(self.nl, 1, -1, 1, 1, 2))
        self.m = nn.ModuleList(nn.Conv2d(c, self.no * self.na, 1) for c in channels[: self.nl])
        self.ia = nn.ModuleList(Implicit(c) for c in channels[: self.nl])
        self.im = nn.ModuleList(Implicit(self.no * self.na) for _ in range(self.nl))

    def forward(self, x):
        found = []
        for i in range(self.nl):
            y = (self.im[i].implicit * self.m[i](x[i] + self.ia[i].implicit)).unflatten(1, (self.na, self.no)).sigmoid()
            grid = torch.stack(torch.meshgrid(*map(torch.arange, y.shape[3:]), indexing="ij")[::-1])
            xy, wh = (y[:, :, :2] * 2 - 0.5 + grid) * self.stride[i], (y[:, :, 2:4] * 2) ** 2
            wh = wh * self.anchor_grid[i, 0].view(-1, 2, 1, 1)
            parts = torch.cat([xy, wh, y[:, :, 4:5] * y[:, :, 5:]], 2)
            found.append(parts.transpose(1, 2).flatten(2))
        return torch.cat(found, 2)


class IAuxDetect(IDetect):
    def __init__(self, nc, channels):
        super().__init__(nc, channels)
        self.m2 = nn.ModuleList(nn.Conv2d(c, self.no * self.na, 1) for c in channels[self.nl :])


class Model(nn.Module):
    """Runs rows as YOLOv7 does."""

    def __init__(self, yaml, *modules):
        super().__init__()
        self.yaml, self.model, self.names = yaml, nn.Sequential(*modules), ["cat", "dog", "cow"]

    def forward(self, x):
        outputs = []
        rows = [*self.yaml["backbone"], *self.yaml["head"]]
        for i, ((source, *_), module) in enumerate(zip(rows, self.model, strict=True)):
            read = [
                outputs[s if s >= 0 else i + s] if i else x for s in (source if isinstance(source, list) else [source])
            ]
            x = module(read if isinstance(source, list) else read[0])
            outputs.append(x)
        return x


def yolov7(head, auxiliary=()):
    """Return a small network with all that YOLOv7's have, and with rows for the auxiliary maps of its head."""
    backbone = [
        [-1, 1, "ReOrg", []],
        [-1, 1, "Conv", [16, 3, 2, None, 1, "nn.LeakyReLU(0.1)"]],
        [-1, 1, "MP", []],
        [-1, 1, "RepConv", [16, 3, 1]],  # 3, stride 8
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 1, "SP", [5]],
        [[-1, -2], 1, "Concat", [1]],
        [-1, 1, "SPPCSPC", [8]],  # 7, stride 16
    ]
    rows = [
        [3, 1, "RepConv", [16, 3, 1]],
        [7, 1, "RepConv", [24, 3, 1]],
        *([source, 1, "Conv", [8, 3, 1]] for source in auxiliary),
    ]
    rows.append([[*range(8, 8 + len(rows))], 1, head.__name__, ["nc", "anchors"]])
    body = [ReOrg(), Conv(12, 16, 3, 2, nn.LeakyReLU(0.1)), MP(), RepConv(16, 16), Conv(16, 16, 3, 2), SP(5), Concat()]
    body += [SPPCSPC(32, 8), RepConv(16, 16), RepConv(8, 24)]
    body += [Conv({3: 16, 7: 8}[source], 8, 3) for source in auxiliary]
    yaml = {
        "nc": 3,
        "depth_multiple": 1.0,
        "width_multiple": 1.0,
        "anchors": ANCHORS,
        "backbone": backbone,
        "head": rows,
    }
    return randomize_(Model(yaml, *body, head(3, [16, 24, *[8] * len(auxiliary)]))).half().float().eval()


def save(model, path, monkeypatch):
    """Write a model with the names that YOLOv7's classes have."""
    fakes = {name: types.ModuleType(name) for name in ("models.yolo", "models.common")}
    kinds = {type(module) for module in model.modules() if type(module).__module__ == __name__}
    with monkeypatch.context() as patch:
        for kind in kinds:
            place = PLACES.get(kind.__name__, "models.common")
            setattr(fakes[place], kind.__name__, kind)
            patch.setattr(kind, "__module__", place)
        for name, fake in fakes.items():
            patch.setitem(sys.modules, name, fake)
        torch.save({"epoch": -1, "model": model.half(), "optimizer": None}, path)
    model.float()
    return path


@pytest.mark.parametrize(("head", "auxiliary"), [(IDetect, ()), (IAuxDetect, (3, 7))])
def test_a_yolov7_model_predicts_the_same(head, auxiliary, tmp_path, monkeypatch):
    theirs = yolov7(head, auxiliary)
    file = save(theirs, tmp_path / "yolov7.pt", monkeypatch)
    ours = load_checkpoint(convert.run(file))
    picture = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert relative_error(ours(picture)[0].double(), theirs(picture).double()) < 1e-6
    assert (ours.names[1], ours.spec.rows[-1].module, len(ours.model)) == ("dog", "Detect", 11)
    assert ours.spec.anchors == ((10, 13, 16, 30), (60, 90, 110, 70))


def test_implicit_knowledge_is_folded_exactly():
    head = IAuxDetect(3, [16, 24, 8, 8]).double()
    tensors = {f"model.4.{name}": tensor.clone() for name, tensor in head.state_dict().items()}
    assert fold_implicit(tensors, "model.4") == 2
    for level, channels in enumerate((16, 24)):
        x = torch.randn(2, channels, 5, 4, dtype=torch.float64)
        want = head.im[level].implicit * head.m[level](x + head.ia[level].implicit)
        got = nn.functional.conv2d(x, *(tensors.pop(f"model.4.m.{level}.{name}") for name in ("weight", "bias")))
        assert relative_error(got, want.detach()) < 1e-12
    assert tensors.keys() == {"model.4.anchors", "model.4.anchor_grid"}


def test_implicit_knowledge_of_another_width_is_refused(tmp_path, monkeypatch):
    theirs = yolov7(IDetect)
    theirs.model[-1].ia[0] = Implicit(8)
    with pytest.raises(WeightsError, match="has not the form of YOLOv5's, YOLOv7's or ultralytics'"):
        convert.run(save(theirs, tmp_path / "yolov7.pt", monkeypatch))


@pytest.mark.parametrize("name", ["IBin", "IKeypoint"])
def test_a_head_with_other_outputs_is_named(name, tmp_path, monkeypatch):
    theirs = yolov7(type(name, (IDetect,), {"__module__": __name__, "__qualname__": name}))
    with pytest.raises(WeightsError, match=f"whose head is {name}, of which there are"):
        convert.run(save(theirs, tmp_path / "yolov7.pt", monkeypatch))
