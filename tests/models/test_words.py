"""Every word of the YAML language: what it declares is what it gives, it fuses, and wrong arguments are explained.

A word that is registered without an example here fails.
"""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from ultralytics.nn import tasks
from ultralytics.nn.modules import C3, SPP, Conv
from ultralytics.nn.modules import RepConv as UltralyticsRepConv
from ultralytics.utils.torch_utils import initialize_weights

from models import DetectionModel, switch_to_deploy
from models.arguments import ACTIVATION_NAMES, OTHER_NAMES
from models.blocks.yolov5 import C3SPP, C3x, Contract, CrossConv, Expand, MixConv2d, split_equally
from models.errors import ConfigError, UserError
from models.layers import LAYERS, Layer
from models.layers.rows import REPEATED_INSIDE
from models.parser import PICTURE, parse_model
from models.spec import HEADS, load_spec
from tests.helpers import randomize_, relative_error
from tests.stock import SIZES as SIZES_OF_YOLOV5
from tests.stock import STOCK

IN = 32  # channels that flow into the word, at stride 2; width_multiple is 1/2
KEEPS = 2 * IN  # c2 for as many channels out
CSP = [[32], [64, False, 2, 0.25]]
EXAMPLES = {  # word: arguments that it takes
    "Channels": [[0, 8], [4, IN]],
    "Conv": [[32], [32, 3, 2], [32, 6, 2, 2], [32, 3, 1, 2, 2, 2], [32, 1, 1, None, 1, 1, "nn.ReLU()"]],
    "RepConv": [[32], [32, 3, 2], [KEEPS, 3, 1, 1, 2, {"identity": True}], [32, {"style": "qarep"}]],
    "DilatedReparamBlock": [[], [5], [17, False], [9, "nn.ReLU()"]],
    "RepLKBlock": [[KEEPS], [32, 13, 3, False, 2.0]],
    "DWConv": [[32], [24, 3, 2], [32, 3, 1, 2, "nn.ReLU()"]],
    "GhostConv": [[32], [32, 3, 2, 2], [32, 1, 1, 1, False]],
    "Focus": [[32], [32, 3, 1, 1, 2], [32, 3, 2]],
    "MixConv2d": [[32], [48, [1, 3, 5], 2], [80, [1, 3], 1, False]],
    "CrossConv": [[32], [KEEPS, 3, 1, 2, 0.5, True], [32, 5, 2]],
    "nn.Conv2d": [[IN, IN, 1], [IN, 20, 3, 2, 1], [IN, 32, 3, 1, 2, 2, 4, False]],
    "nn.ConvTranspose2d": [[32, 2, 2], [32, 4, 2, 1], [32, 3, 2, 1, 1, 2, False]],
    "DWConvTranspose2d": [[32, 2, 2], [48, 4, 4], [32, 3, 2, 1, 1]],
    "ConvTranspose": [[32], [32, 4, 2, 1], [32, 2, 2, 0, False, False]],
    "SCDown": [[32], [32, 5, 1]],
    "AConv": [[32]],
    "ADown": [[32]],
    "nn.MaxPool2d": [[2], [2, 2, 0], [3, 1, 1], [3, 2, 1], [2, 2, 1, 2]],
    "nn.Upsample": [[], [None, 2, "nearest"], [None, 4, "bilinear", True]],
    "nn.BatchNorm2d": [[], [IN], [KEEPS]],
    "nn.Identity": [[]],
    "Contract": [[], [4]],
    "Expand": [[], [4]],
    "Bottleneck": [[32], [KEEPS, True, 2, 1.0], [32, False]],
    "GhostBottleneck": [[KEEPS], [32, 3, 2], [32, 5, 2]],
    "C1": [[32]],
    "BottleneckCSP": CSP,
    "C2": CSP,
    "C2f": CSP,
    "C3": CSP,
    "C3x": CSP,
    "C3Ghost": CSP,
    "C3TR": CSP,
    "C3SPP": [[32], [64, [3, 5], 2, False, 2, 0.25]],
    "SPP": [[32], [32, [3]]],
    "SPPF": [[32], [32, 3]],
    "SPPELAN": [[32, 12], [32, 8, 3]],
    "C3k2": [[32], [64, True], [64, True, 0.25, False, 2, False], [64, False, 0.5, True]],
    "C2fCIB": [[32], [32, True, True]],
    "PSA": [[KEEPS], [KEEPS, 0.25]],
    "C2PSA": [[KEEPS], [KEEPS, 0.25]],
    "C2fPSA": [[KEEPS], [KEEPS, 0.25]],
    "A2C2f": [[128], [128, False], [KEEPS, True, 4, True, 1.2, 1.0]],
    "RepC3": [[32], [32, 0.5]],
    "RepNCSPELAN4": [[32, 16, 8], [32, 16, 8, 2]],
    "ELAN1": [[32, 16, 8]],
    "AIFI": [[], [64, 4]],
    "MP": [[], [4]],
    "SP": [[], [5, 2]],
    "ReOrg": [[]],
    "SPPCSPC": [[32], [64, 1, False, 1, 0.25, [3]]],
    "DownC": [[32], [48, 1, 4]],
    "SE": [[], [KEEPS, 4], [IN]],
    "CBAM": [[], [KEEPS, 3]],
    "RepMLPBlock": [[KEEPS, 8, 4], [KEEPS, 5, 7, [1, 3, 5], 2, 8]],
    **{f"nn.{name}": [[]] for name in ACTIVATION_NAMES.split() if name != "Identity"},
    **{name: [[]] for name in OTHER_NAMES},
    "nn.LeakyReLU": [[], [0.1], [0.1, True]],
    "nn.ReLU": [[], [True]],
    "ResNetLayer": [[IN, 8], [IN, 16, 2, False, 3], [IN, 24, 1, True], [IN, IN, {"e": 1}]],
    "HGStem": [[8, 24]],
    "HGBlock": [[8, 24], [8, IN, 5, True, True], [8, 24, 3, False, False, "nn.SiLU()"]],
}
PAIRS = {
    "Shortcut",
    "nn.ZeroPad2d",
    "Concat",
    "CBLinear",
    "CBFuse",
    "Index",
    "TorchVision",
}  # words that need a row more, tested below
ONCE = {"nn.Conv2d", "Focus", "Contract", "Expand", "Channels", "ResNetLayer"}  # that do not read what they give
CASES = [(word, args, n) for word, many in EXAMPLES.items() for args in many for n in (1, 2)]
CASES = [case for case in CASES if case[2] == 1 or case[0] not in ONCE]


def after_stem(word, args, number=1, **keys):
    """Return a YAML whose row 1 stands between a convolution of stride 2 and a head."""
    rows = [[-1, 1, "Conv", [2 * IN, 3, 2]], [-1, number, word, args], [-1, 1, "Detect", ["nc"]]]
    return {"nc": 2, "width_multiple": 0.5, "head": rows, **keys}


def built(word, args, number=1, **keys):
    """Return the module of a row that reads `IN` channels, with what it declares of its input and its output."""
    graph = parse_model(load_spec(after_stem(word, copy.deepcopy(args), number, **keys)))
    return graph.modules[1], graph.features[0], graph.features[1]


def maps(channels, height=32, width=16, dtype=torch.float64):
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.fixture
def shapes_alone(monkeypatch):
    """Build on the meta device, and a head as nothing at all, which would ask for values.

    BatchNorm keeps the shape, for which torch spends a millisecond of Python: here the channels alone are compared. And
    without values there is nothing to initialise.
    """

    def head(site, nc: str = "nc") -> Layer:
        return Layer(nn.Identity(), ())

    def batch_norm(x, running_mean, *_, **__):
        assert x.shape[1:2] == running_mean.shape
        return x

    monkeypatch.setattr(nn.functional, "batch_norm", batch_norm)
    for kind in (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm):
        monkeypatch.setattr(kind, "reset_parameters", lambda self: None)
    monkeypatch.setattr(LAYERS, "_entries", {**LAYERS._entries, "Detect": head})
    with torch.device("meta"), torch.no_grad():
        yield


def test_every_word_has_an_example():
    assert {*EXAMPLES, *PAIRS} == set(LAYERS) - set(HEADS)


@pytest.mark.parametrize(("word", "args", "number"), CASES, ids=str)
def test_a_word_gives_what_it_declares_and_fuses(word, args, number):
    module, before, after = built(word, args, number)
    x = maps(before.channels)
    module = randomize_(module).double().eval()
    deploy = switch_to_deploy(module, x[:1])
    with torch.no_grad():
        want = module(x)
        got = deploy(x)
    scale = after.stride / before.stride
    assert tuple(want.shape) == (2, after.channels, 32 / scale, 16 / scale)
    assert relative_error(got, want) < 1e-9
    norms = [m for m in deploy.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == len(deploy.report.left) == (number if word == "nn.BatchNorm2d" else 0)
    assert not any(isinstance(m, UltralyticsRepConv) for m in deploy.modules())
    again = switch_to_deploy(deploy, x[:1])
    assert again.report == deploy.report


@pytest.mark.slow
@pytest.mark.parametrize("word", EXAMPLES)
def test_the_number_of_repeats_is_inside_or_stacks(word):
    args = EXAMPLES[word][0]
    one, two = (sum(p.numel() for p in built(word, args, n)[0].parameters()) for n in (1, 2))
    module = built(word, args, 2)[0]
    assert (type(module) is nn.Sequential) != (word in REPEATED_INSIDE)
    assert two > one or one == 0


@pytest.mark.parametrize("word", EXAMPLES)
def test_the_activation_key_reaches_every_convolution(word):
    module = built(word, EXAMPLES[word][0], activation="nn.LeakyReLU(0.3)")[0]
    own = {"BottleneckCSP", "MixConv2d"}  # YOLOv5 gives these a SiLU of their own
    own |= {"nn.SiLU", "Swish", "MemoryEfficientSwish"}
    silus = sum(isinstance(m, nn.SiLU) for m in module.modules())
    assert silus == (word in own)


# The arithmetic of YOLOv5 ---------------------------------------------------------------------------------------------
def conv_size(c1, c2, k=1, g=1):
    """Return the parameters of a Conv: weights, and BatchNorm's two per channel."""
    return c1 // g * c2 * k * k + 2 * c2


def ghost_size(c1, c2):
    return conv_size(c1, c2 // 2) + conv_size(c2 // 2, c2 // 2, 5, c2 // 2)


def c3_size(inner, c=IN, c2=IN, e=0.5):
    hidden = int(c2 * e)
    return 2 * conv_size(c, hidden) + conv_size(2 * hidden, c2) + inner(hidden)


def csp_size(c=IN, hidden=IN // 2):
    plain = c * hidden + hidden * hidden + 4 * hidden
    inner = conv_size(hidden, hidden) + conv_size(hidden, hidden, 3)
    return conv_size(c, hidden) + plain + inner + conv_size(2 * hidden, c)


SIZES = {  # of each word with KEEPS channels, from the formulas
    "Conv": conv_size(IN, IN),
    "DWConv": conv_size(IN, IN, 1, IN),
    "GhostConv": ghost_size(IN, IN),
    "Focus": conv_size(4 * IN, IN),
    "MixConv2d": IN // 2 * 2 * 1 + IN // 2 * 2 * 9 + 2 * IN,  # gcd(32, 16) groups of two channels
    "CrossConv": 2 * (IN * IN * 3 + 2 * IN),
    "Bottleneck": conv_size(IN, IN // 2) + conv_size(IN // 2, IN, 3),
    "GhostBottleneck": ghost_size(IN, IN // 2) + ghost_size(IN // 2, IN),
    "BottleneckCSP": csp_size(),
    "C3": c3_size(lambda h: conv_size(h, h) + conv_size(h, h, 3)),
    "C3x": c3_size(lambda h: 2 * (h * h * 3 + 2 * h)),
    "C3Ghost": c3_size(lambda h: ghost_size(h, h // 2) + ghost_size(h // 2, h)),
    "C3TR": c3_size(lambda h: h * h + h + 3 * h * h + 4 * h * h + 4 * h + 2 * h * h),
    "C3SPP": c3_size(lambda h: conv_size(h, h // 2) + conv_size(4 * (h // 2), h)),
    "SPP": conv_size(IN, IN // 2) + conv_size(2 * IN, IN),
    "SPPF": conv_size(IN, IN // 2) + conv_size(2 * IN, IN),
}


@pytest.mark.parametrize("word", SIZES)
def test_a_block_has_yolov5s_parameters(word):
    assert sum(p.numel() for p in built(word, [KEEPS])[0].parameters()) == SIZES[word]


NAMES = {  # the first part of the names in a checkpoint of YOLOv5
    "Focus": {"conv"},
    "MixConv2d": {"m", "bn"},
    "CrossConv": {"cv1", "cv2"},
    "GhostBottleneck": {"conv"},
    "BottleneckCSP": {"cv1", "cv2", "cv3", "cv4", "bn", "m"},
    "C3x": {"cv1", "cv2", "cv3", "m"},
    "C3SPP": {"cv1", "cv2", "cv3", "m"},
    "C3TR": {"cv1", "cv2", "cv3", "m"},
    "SPP": {"cv1", "cv2"},
}


@pytest.mark.parametrize("word", NAMES)
def test_parts_are_named_as_in_yolov5s_checkpoints(word):
    module = built(word, [KEEPS])[0]
    assert {name.split(".")[0] for name in module.state_dict()} == NAMES[word]


@pytest.mark.parametrize("gain", [2, 3, 4])
def test_contract_and_expand_are_yolov5s_views(gain):
    x = maps(2, 24, 36)
    b, c, h, w = x.shape
    cells = x.view(b, c, h // gain, gain, w // gain, gain).permute(0, 3, 5, 1, 2, 4)
    contracted = cells.reshape(b, c * gain**2, h // gain, w // gain)
    assert torch.equal(Contract(gain)(x), contracted)
    assert torch.equal(Expand(gain)(contracted), x)


def test_focus_reads_the_pixels_in_yolov5s_order():
    module = built("Focus", [32])[0]
    x = maps(IN)
    module.conv = nn.Identity()
    pixels = [x[..., row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
    assert torch.equal(module(x), torch.cat(pixels, 1))


@pytest.mark.parametrize(
    ("d", "kind"), [("nn.LeakyReLU(0.1)", nn.LeakyReLU), ("Swish()", nn.SiLU), ("MemoryEfficientMish", nn.Mish)]
)
def test_text_in_place_of_the_dilation_is_the_activation_as_in_yolov7(d, kind):
    module = built("Conv", [32, 3, 2, None, 1, d])[0]
    assert isinstance(module.act, kind)
    assert module.conv.dilation == (1, 1)


def test_an_activation_leaves_its_input_as_it_is():
    for args in ([True], [], [{"first": True}]):
        x = maps(IN)
        before = x.clone()
        built("nn.ReLU", args)[0](x)
        assert torch.equal(x, before)


def test_re_org_reads_the_pixels_in_the_order_of_focus():
    module = built("Focus", [32])[0]
    module.conv = nn.Identity()
    x = maps(IN)
    assert torch.equal(built("ReOrg", [])[0](x), module(x))


def test_squeeze_excite_has_a_reduction():
    assert built("SE", [KEEPS, 4])[0].down.out_channels == IN // 4
    assert built("SE", [])[0].down.out_channels == IN // 16


def test_sppcspc_has_yolov7s_parts_and_parameters():
    module = built("SPPCSPC", [KEEPS])[0]
    assert {name.split(".")[0] for name in module.state_dict()} == {f"cv{i}" for i in range(1, 8)}
    size = 2 * conv_size(IN, IN) + 2 * conv_size(IN, IN, 3) + conv_size(IN, IN) + conv_size(4 * IN, IN)
    assert sum(p.numel() for p in module.parameters()) == size + conv_size(2 * IN, IN)


def joined_by_shortcut(*widths, strides=(2, 2)):
    rows = [[-1, 1, "Conv", [w, 3, s]] for w, s in zip(widths, strides, strict=True)]
    rows[1][0] = "picture"
    return {"nc": 2, "head": [*rows, [[0, 1], 1, "Shortcut", [1]], [-1, 1, "Detect", ["nc"]]]}


def test_shortcut_adds_maps_of_one_shape():
    graph = parse_model(load_spec(joined_by_shortcut(16, 16)))
    assert graph.features[2] == graph.features[1]
    x = maps(16)
    assert torch.equal(graph.modules[2]([x, 2 * x]), 3 * x)


@pytest.mark.parametrize(("widths", "strides"), [((16, 24), (2, 2)), ((16, 16), (2, 4))])
def test_shortcut_refuses_maps_of_other_shapes(widths, strides):
    with pytest.raises(ConfigError, match="Shortcut adds maps of one shape"):
        DetectionModel(joined_by_shortcut(*widths, strides=strides))


def test_sppf_is_spp():
    x = maps(IN)
    spp = randomize_(built("SPP", [32])[0]).double().eval()
    sppf = built("SPPF", [32])[0].double().eval()
    sppf.load_state_dict(spp.state_dict())
    assert torch.equal(sppf(x), spp(x))


def test_the_first_convolution_of_sppf_has_an_activation():
    assert isinstance(built("SPPF", [32])[0].cv1.act, nn.SiLU)


def test_a_bottleneck_and_its_relatives_have_the_kernels_of_yolov5():
    def kernels(module):
        return [m.conv.kernel_size for m in module.modules() if isinstance(m, Conv)]

    assert kernels(built("Bottleneck", [32])[0]) == [(1, 1), (3, 3)]
    assert kernels(built("BottleneckCSP", [32])[0].m) == [(1, 1), (3, 3)]
    assert kernels(built("C3", [32])[0].m) == [(1, 1), (3, 3)]
    assert kernels(built("C3x", [32])[0].m) == [(1, 3), (3, 1)]
    assert kernels(built("CrossConv", [32, 5, 2])[0]) == [(1, 5), (5, 1)]


@pytest.mark.parametrize(("shortcut", "c2"), [(True, KEEPS), (True, 32), (False, KEEPS)])
def test_cross_convolutions_add_their_input_where_they_can(shortcut, c2):
    module = built("CrossConv", [c2, 3, 1, 1, 1.0, shortcut])[0].double().eval()
    x = maps(IN)
    y = module.cv2(module.cv1(x))
    assert torch.equal(module(x), x + y if shortcut and c2 == KEEPS else y)


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5, 7])
def test_channels_are_split_as_yolov5_splits_them(parts):
    for channels in range(parts, 80):
        of = np.floor(np.linspace(0, parts - 1e-6, channels))
        assert split_equally(channels, parts) == [int((of == part).sum()) for part in range(parts)]


@pytest.mark.parametrize(("c2", "k"), [(64, (1, 3)), (128, (3, 5)), (64, (3,))])
def test_parts_of_equal_weights_solve_yolov5s_equations(c2, k):
    squares = np.array(k) ** 2
    a = np.eye(len(k) + 1, len(k), k=-1)
    a = (a - np.roll(a, 1, axis=1)) * squares
    a[0] = 1
    want = np.linalg.lstsq(a, np.array([c2] + [0] * len(k)), rcond=None)[0].round()
    assert [conv.out_channels for conv in MixConv2d(16, c2, k, equal_ch=False).m] == want.tolist()


def test_mixed_kernels_stand_side_by_side():
    module = built("MixConv2d", [48, [1, 3, 5], 2])[0].eval()
    assert [m.kernel_size[0] for m in module.m] == [1, 3, 5]
    assert sum(m.out_channels for m in module.m) == 24
    assert all(m.groups == np.gcd(IN, m.out_channels) for m in module.m)


def test_blocks_of_one_family_share_a_class():
    assert isinstance(C3x(8, 8), C3)
    assert isinstance(C3SPP(8, 8).m, SPP)
    assert isinstance(C3x(8, 8).m[0], CrossConv)


# Margins --------------------------------------------------------------------------------------------------------------
def padded(padding, *then):
    """Return a YAML with a nn.ZeroPad2d after a convolution of stride 2, a row, and a head."""
    rows = [[-1, 1, "Conv", [2 * IN, 3, 2]], [-1, 1, "nn.ZeroPad2d", [padding]], list(then)]
    return {"nc": 2, "width_multiple": 0.5, "head": [*rows, [-1, 1, "Detect", ["nc"]]]}


USED_UP = [
    ([0, 1, 0, 1], "nn.MaxPool2d", [2, 1, 0], 2),
    ([1, 0, 1, 0], "nn.MaxPool2d", [2, 1], 2),
    ([1, 1, 1, 1], "Conv", [32, 3, 1, 0], 2),
    ([2, 2, 2, 2], "Conv", [32, 5, 2, 0], 4),
    (1, "nn.Conv2d", [IN, 16, 3, 2], 4),
    ([0, 0, 0, 0], "C3", [32], 2),
    ([0, 1, 0, 1], "nn.MaxPool2d", [2, 2], 4),  # the further row and column are left out
]


@pytest.mark.parametrize(("padding", "word", "args", "stride"), USED_UP, ids=str)
def test_a_margin_is_used_up_by_the_next_row(padding, word, args, stride):
    graph = parse_model(load_spec(padded(padding, -1, 1, word, args)))
    assert graph.features[2][1:3] == (stride, (0, 0))
    with torch.no_grad():
        y = graph.modules[2](graph.modules[1](torch.zeros(1, IN, 32, 16)))
    assert y.shape[2:] == (64 // stride, 32 // stride)


@pytest.mark.parametrize(
    ("padding", "word", "args", "said"),
    [
        ([0, 1, 0, 1], "C3", [32], "which only Conv, nn.Conv2d, nn.MaxPool2d, nn.ZeroPad2d may read"),
        ([0, 1, 0, 1], "nn.Upsample", [], "nn.ZeroPad2d made larger"),
        ([0, 1, 0, 1], "Conv", [32, 3], "after a margin of (1, 1)"),
        ([0, 1, 0, 0], "nn.MaxPool2d", [2, 1, 0], "after a margin of (0, 1)"),
        ([2, 2, 2, 2], "Conv", [32, 3, 1, 0], "after a margin of (4, 4)"),
    ],
)
def test_a_margin_that_stays_is_refused(padding, word, args, said):
    with pytest.raises(ConfigError, match=r"row 2 .*") as caught:
        DetectionModel(padded(padding, -1, 1, word, args))
    assert said in str(caught.value)


@pytest.mark.parametrize("reader", [[[1, 1], 1, "Concat", [1]], [1, 1, "Detect", ["nc"]]], ids=str)
def test_a_join_or_a_head_reads_no_margin(reader):
    rows = padded(1, *reader)["head"]
    with pytest.raises(ConfigError, match=r"row 2 .* nn.ZeroPad2d made larger"):
        DetectionModel({"nc": 2, "head": rows if reader[2] == "Concat" else rows[:3]})


# Rows of several maps -------------------------------------------------------------------------------------------------
def composite(*then, widths=((8, 16), (16, 24, 8))):
    """Return a YAML of two rows of several maps, at strides 2 and 4, one map at stride 4, a row, and a head."""
    rows = [[-1, 1, "Conv", [2 * IN, 3, 2]], [0, 1, "CBLinear", [list(widths[0])]]]
    rows += [[0, 1, "CBLinear", [list(widths[1]), 3, 2]], [0, 1, "Conv", [32, 3, 2]]]
    return {"nc": 2, "width_multiple": 0.5, "head": [*rows, list(then), [-1, 1, "Detect", ["nc"]]]}


def test_cb_fuse_adds_maps_of_several_rows():
    graph = parse_model(load_spec(composite([1, 2, -1], 1, "CBFuse", [[1, 0]])))
    assert graph.features[4] == graph.features[3] == (16, 4, (0, 0), ())
    x = maps(IN, dtype=torch.float32)
    with torch.no_grad():
        fine, coarse, last = (module(x) for module in graph.modules[1:4])
        got = graph.modules[4]([fine, coarse, last])
    assert torch.equal(got, fine[1][..., ::2, ::2] + coarse[0] + last)


@pytest.mark.parametrize("row", [([1, 2, -1], 1, "CBFuse", [[1, 0]]), (2, 1, "Index", [24, 1])], ids=str)
def test_rows_of_several_maps_fuse(row):
    model = randomize_(DetectionModel(composite(*row))).double().eval()
    x = torch.rand(2, 3, 32, 16, generator=torch.Generator().manual_seed(0)).double()
    deploy = switch_to_deploy(model)
    assert not deploy.report.left
    with torch.no_grad():
        assert relative_error(deploy(x)[0], model(x)[0]) < 1e-9


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([[1, -1], 1, "CBFuse", [[1, 0]]], "reads 1 row(s) and a map, so that idx has 1 number(s), not 2"),
        ([[1, -1], 1, "CBFuse", [[2]]], "picks map 2, but the row has 2, counted from 0"),
        ([[1, -1], 1, "CBFuse", [[0]]], "adds maps of 16 channels, but map 0 of a row has 8"),
        ([[0, -1], 1, "CBFuse", [[0]]], "picks a map of a row that gives several"),
        ([[-1, 1], 1, "CBFuse", [[0]]], "which 'from' names last"),
        ([2, 1, "Index", [16, 1]], "given 16 channels, but map 1 has 24"),
        ([2, 1, "Index", [16, 3]], "picks map 3, but the row has 3, counted from 0"),
        ([0, 1, "Index", [IN, 0]], "picks a map of a row that gives several"),
        ([1, 1, "Conv", [8]], "reads a row that gives several maps, which only CBFuse and Index may read"),
        ([[1, 3], 1, "Concat", [1]], "reads a row that gives several maps"),
        ([0, 2, "CBLinear", [[8, 8]]], "stands once, not 2 times"),
    ],
    ids=str,
)
def test_rows_of_several_maps_are_read_by_few_words(row, said):
    with pytest.raises(ConfigError, match="row 4 ") as caught:
        DetectionModel(composite(*row))
    assert said in str(caught.value)


# torchvision ----------------------------------------------------------------------------------------------------------
RESNET = [512, "resnet18", None, True, 2]


def of_torchvision(args, *rows):
    return {"nc": 2, "backbone": [[-1, 1, "TorchVision", args]], "head": [*rows, [-1, 1, "Detect", ["nc"]]]}


@pytest.mark.parametrize(
    ("args", "rows"), [(RESNET, ()), ([*RESNET, True], ([0, 1, "Index", [128, 6]], [0, 1, "Index", [512, 8]]))], ids=str
)
def test_a_network_of_torchvision_is_that_of_ultralytics(args, rows):
    own = randomize_(DetectionModel(of_torchvision(args, *rows))).double().eval()
    other = tasks.TorchVision("resnet18", None, *args[3:]).double().eval()
    initialize_weights(other)  # as ultralytics does to every model: the epsilon of its BatchNorms
    other.load_state_dict(own.model[0].state_dict())
    deploy, x = switch_to_deploy(own), torch.rand(1, 3, 64, 96).double()
    with torch.no_grad():
        got, want = deploy.model[0](x), other(x)
    read = [(got[i], want[i]) for i in (6, 8)] if rows else [(got, want)]  # others may be fused into what follows
    assert all(relative_error(*pair) < 1e-9 for pair in read)
    assert not deploy.report.left
    assert [own.features[i].stride for i in range(1, 1 + len(rows))] == ([8, 32] if rows else [])
    assert own.stride.tolist() == [32]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([512, "resnet-18"], "torchvision has no model 'resnet-18' (did you mean 'resnet18'?)"),
        ([512, "resnet18", "BEST"], "no weights 'BEST' of resnet18, expected IMAGENET1K_V1 or DEFAULT"),
        ([512, "resnet18", "DEFAULT"], "torchvision's resnet18 asks for pretrained weights"),
        ([256, "resnet18"], "gives 512 channels, not 256"),
        ([512, "resnet18", None, True, 0], "'truncate': 0, 'split': False}: RuntimeError: "),
        ([512, "resnet18", None, False], "gives no map"),
        ([512, "resnet18", {"truncate": -1}], "truncate must be a whole number from 0"),
    ],
    ids=str,
)
def test_a_wrong_row_of_torchvision_is_explained(args, said):
    with pytest.raises(ConfigError, match="row 0 ") as caught:
        DetectionModel(of_torchvision(args))
    assert said in str(caught.value)


def test_a_checkpoint_of_torchvisions_network_asks_for_no_weights():
    for args in ([512, "resnet18", "DEFAULT", True, 2], [512, "resnet18", {"weights": "DEFAULT"}]):
        DetectionModel(load_spec(of_torchvision(args)).without_pretrained())


# Wrong arguments ------------------------------------------------------------------------------------------------------
WRONG = [
    ("Conv", [32, 3, 1, 0], "size divided by its stride"),
    ("Conv", [32, [3, 3]], "k must be a whole number"),
    ("DWConv", [32, 3, 1, 1, "nn.Relu()"], "did you mean 'ReLU'"),
    ("GhostConv", [32, 2], "size divided by its stride"),
    ("GhostConv", [32, 1, 1, 5], "divisible by groups"),
    ("Focus", [32, 3, 1, 0], "size divided by its stride"),
    ("MixConv2d", [32, []], "k must be a list, each a whole number from 1"),
    ("MixConv2d", [32, 3], "k must be a list"),
    ("MixConv2d", [32, [1, 2]], "k=2"),
    ("MixConv2d", [16, [1, 3, 5, 7, 9, 11, 13, 15, 17]], "8 channels cannot be split"),
    ("MixConv2d", [32, [1, 15], 1, False], "16 channels cannot be split"),
    ("CrossConv", [32, 2], "size divided by its stride"),
    ("CrossConv", [KEEPS, 3, 2, 1, 1.0, True], "not with s=2"),
    ("CrossConv", [32, 3, 1, 1, 0.01], "less than one"),
    ("nn.Conv2d", [16, 16, 1], "given 16 input channels, but 32 flow in"),
    ("nn.Conv2d", [IN, 16, 3], "size divided by its stride"),
    ("nn.Conv2d", [IN, 16, 3, 1, "same"], "padding must be"),
    ("nn.Conv2d", [IN, 9, 1, 1, 0, 1, 2], "divisible by groups"),
    ("nn.ConvTranspose2d", [32], "'k'"),
    ("nn.ConvTranspose2d", [32, 3, 2], "size times its stride"),
    ("nn.ConvTranspose2d", [32, 2, 3, 0, 1, {"dilation": 1, "groups": 5}], "divisible by groups"),
    ("nn.ConvTranspose2d", [32, 1, 1, 1, 2], "pads its output by less"),
    ("DWConvTranspose2d", [32, 3, 2], "size times its stride"),
    ("ConvTranspose", [32, 2, 1], "size times its stride"),
    ("ConvTranspose", [32, 2, 2, 0, 1], "bn must be true or false"),
    ("SCDown", [32, 2, 1], "size divided by its stride"),
    ("nn.MaxPool2d", [], "'kernel_size'"),
    ("nn.MaxPool2d", [2, 1, 0], "size divided by its stride"),
    ("nn.MaxPool2d", [3, 1, 2], "half of its window"),
    ("nn.ZeroPad2d", [[1, 1]], "a list of 4, each a whole number from 0"),
    ("nn.ZeroPad2d", [[0, -1, 0, 1]], "padding must be"),
    ("nn.ZeroPad2d", [], "'padding'"),
    ("nn.Upsample", [None, 2, "nearest", True], "aligns corners"),
    ("nn.BatchNorm2d", [IN + 1], "given 33 channels, but 32 flow in"),
    ("nn.Identity", [1], "nn.Identity takes ()"),
    ("Contract", [0], "gain must be"),
    ("Expand", [3], "multiple of 9 channels, but 32"),
    ("Bottleneck", [32, True, 3], "divisible by groups"),
    ("Bottleneck", [32, True, 1, [3, 3]], "e must be a positive number"),
    ("GhostBottleneck", [32], "as many channels as it reads, 32, not 16"),
    ("GhostBottleneck", [KEEPS, 3, 3], "stride 1 or 2, got s=3"),
    ("GhostBottleneck", [32, 4, 2], "size divided by its stride"),
    ("C3", [32, True, 3], "divisible by groups"),
    ("C3TR", [32, True, 1, 0.4], "6 channels inside, expected a multiple of 4"),
    ("C3Ghost", [32, True, 1, 0.4], "6 channels inside, expected a multiple of 4"),
    ("C3SPP", [32, [4]], "odd k, so that its maps keep their size, got 4"),
    ("C3SPP", [8, [3], {"e": 0.2}], "0.8 channels inside"),
    ("C3SPP", [32, True], "k must be a list"),
    ("SPP", [32, [5, 8]], "odd k"),
    ("SPP", [32, 5], "k must be a list"),
    ("SPPF", [32, [5]], "k must be a whole number"),
    ("SPPELAN", [32], "'c3'"),
    ("SPPELAN", [32, 8, 4], "odd k"),
    ("C3k2", [64, False, 0.01], "less than one"),
    ("C3k2", [320, False, 0.81, True], "expected a multiple of 2"),
    ("PSA", [32], "as many channels as it reads"),
    ("C2PSA", [32], "as many channels as it reads"),
    ("C2fPSA", [KEEPS, 0.01], "less than one"),
    ("A2C2f", [64], "16 channels inside, expected a multiple of 32"),
    ("A2C2f", [128, True, 1, True], "as many channels as it reads"),
    ("ADown", [], "'c2'"),
    ("RepC3", [32, 0.01], "less than one"),
    ("RepNCSPELAN4", [32, 15, 8], "15 channels inside, expected a multiple of 2"),
    ("RepNCSPELAN4", [32, 16, 1], "less than one"),
    ("ELAN1", [32, 16, 1], "less than one"),
    ("AIFI", [64, 5], "num_heads=5"),
    ("ResNetLayer", [16, 8], "given c1=16 channels, but 32 flow in"),
    ("ResNetLayer", [IN, 8, 1, False, 101], "is repeated 101 times"),
    ("HGStem", [7, 8], "7 channels inside, expected a multiple of 2"),
    ("HGBlock", [8, 1], "0.5 channels inside"),
    ("HGBlock", [8, 24, 2], "size divided by its stride"),
    ("HGBlock", [8, 24, 3, False, False, "nn.Relu()"], "did you mean 'ReLU'"),
    ("MP", [0], "k must be a whole number from 1"),
    ("SP", [2], "odd k"),
    ("ReOrg", [2], "ReOrg takes ()"),
    ("SPPCSPC", [8, 1, False, 1, 0.05], "0.8 channels inside"),
    ("DownC", [32, 1, 0], "k must be a whole number from 1"),
    ("SE", [48], "SE is given 48 channels, but 32 flow in"),
    ("CBAM", [KEEPS, 5], "CBAM has a kernel of 3 or 7, got kernel_size=5"),
    ("RepMLPBlock", [32, 8, 8], "as many channels as it reads"),
    ("RepMLPBlock", [KEEPS, 8, 8, [2]], "odd k"),
    ("RepMLPBlock", [KEEPS, 8, 8, [3, 3]], "one convolution of each size"),
    ("RepMLPBlock", [KEEPS, 8, 8, [1, 3], 4, 5], "32 channels inside, expected a multiple of 5"),
    ("nn.ReLU", [0.1, 0.1], "activation ReLU(0.1, 0.1)"),
    ("nn.Relu", [], "did you mean 'nn.ReLU'"),
    ("IDetect", ["nc"], "IDetect is no word here: write Detect"),
    ("CBLinear", [64], "c2s must be a list, each a whole number from 1"),
    ("CBLinear", [[8, 8], 2], "size divided by its stride"),
]


@pytest.mark.parametrize(("word", "args", "said"), WRONG, ids=str)
def test_a_wrong_argument_is_explained(word, args, said):
    cfg = after_stem(word, args)
    with pytest.raises(ConfigError) as caught:
        DetectionModel(cfg)
    text = str(caught.value)
    assert text.startswith(f"model YAML, row 1 [-1, 1, {word}, [")
    assert said in text
    assert "\n" not in text
    assert len(text) < 600


ANYTHING = [None, True, 0, 1, 2, 3, 4, 7, 8, 48, 64, 0.5, 0.01, "nn.ReLU()", [1], [3, 4], [3, 5], [0, 1, 0, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("word", EXAMPLES)
def test_a_row_runs_on_its_grid_or_is_refused(word, shapes_alone):
    """No argument at random makes a word fail in another way than by one sentence. Shapes alone are computed."""
    rng, ran = random.Random(word), 0
    for _ in range(100):
        args = [*EXAMPLES[word][0][: rng.randint(0, 3)], *rng.choices(ANYTHING, k=rng.randint(0, 4))]
        try:
            module, before, after = built(word, args)
        except UserError as e:
            assert "\n" not in str(e)
            continue
        y = module.eval()(torch.empty(2, IN, 2688, 5376))
        grid = [side * before.stride / after.stride for side in (2688, 5376)]
        assert tuple(y.shape) == (2, after.channels, *grid), args
        ran += 1
    assert ran, "no arguments built"


# Architectures --------------------------------------------------------------------------------------------------------
def stock_graph(name):
    """Return a stock architecture without its own head, which has been replaced by one that reads the same maps."""
    cfg = STOCK[name]
    *rows, (sources, *_) = cfg["head"]
    return parse_model(load_spec({**cfg, "head": [*rows, [sources, 1, "Detect", ["nc"]]]}))


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCK)
def test_a_stock_architecture_gives_the_maps_that_it_declares(name, shapes_alone):
    graph = stock_graph(name)
    slots = {PICTURE: torch.empty(1, 3, 128, 256)}
    for module, node in zip(graph.modules[:-1], graph.nodes, strict=False):
        inputs = [slots[slot] for slot in node.sources]
        slots[node.slot] = module.eval()(inputs if node.reads_list else inputs[0])
        channels, stride, (rows, columns), _ = graph.features[node.slot]
        assert slots[node.slot].shape == (1, channels, 128 / stride + rows, 256 / stride + columns), node.row


def test_all_stock_architectures_are_known():
    assert len(STOCK) == 28


@pytest.mark.parametrize("size", SIZES_OF_YOLOV5)
def test_shipped_files_have_the_rows_of_yolov5(size):
    spec, stock = load_spec(f"yolov5{size}.yaml"), load_spec(STOCK[f"yolov5{size}"])
    assert (spec.depth_multiple, spec.width_multiple) == (stock.depth_multiple, stock.width_multiple)
    assert (spec.rows, spec.anchors) == (stock.rows, stock.anchors)
