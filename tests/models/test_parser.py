"""From rows to modules: slots and levels, channels and strides before anything runs, and every wrong row explained."""

import contextlib
import random

import pytest
import torch
from torch import nn
from ultralytics.nn.modules import Conv

from models import DetectionModel, create_model
from models.arguments import activation, bind
from models.errors import ConfigError, UserError
from models.layers import LAYERS, Site, is_backbone
from models.parser import PICTURE, parse_model, resolve
from models.spec import load_spec
from tests.helpers import DETECTORS, SWEPT, TINY_HEAD, mutated, tiny, tiny_backbone, write
from tests.helpers import tiny_with_row as row

YOLOV5N = 1_872_157  # parameters that YOLOv5 v6.0+ prints for yolov5n at 80 classes


def graph(cfg):
    return parse_model(load_spec(cfg))


def wires(cfg):
    return resolve(load_spec(cfg))


def complaint(cfg):
    """Return the one sentence with which `cfg` is refused."""
    with pytest.raises(ConfigError) as caught:
        DetectionModel(cfg)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600, text[:600]
    return text


# Slots and levels -----------------------------------------------------------------------------------------------------
def test_rows_take_slots_in_order():
    assert [node.slot for node in graph(tiny()).nodes] == list(range(7))


def test_a_list_backbone_takes_five_slots():
    cfg = tiny_backbone("RIFormer", "s12")
    cfg["backbone"].append([-1, 1, "SPPF", [64]])
    assert [list(wire.numbers) for wire in wires(cfg)] == [[0, 1, 2, 3, 4], [5], [6]]


@pytest.mark.parametrize(
    ("source", "slot"),
    [("P1", 0), ("P2", 1), ("P3", 2), ("P5", 4), (2, 2), (0, 0), (-1, 4), (-2, 3), (-5, 0)],
)
def test_what_the_row_after_a_backbone_may_read(source, slot):
    cfg = tiny_backbone("RepVGG", "A0", head=[[source, 1, "Detect", ["nc"]]])
    assert graph(cfg).nodes[1].sources == (slot,)


@pytest.mark.parametrize(("source", "slot"), [(-1, 2), (-2, 1), (-3, 0), (-4, PICTURE), (0, 0), (2, 2)])
def test_negatives_count_back_to_the_picture(source, slot):
    assert wires(row(source, 1, "Conv", [8]))[3][:2] == ((slot,), 3)


def test_levels_stand_in_slots_by_stride():
    model = DetectionModel(tiny_backbone("RIFormer", "s12"))
    assert model.nodes[0].slots == (2, 3, 4)
    assert {slot: feature.stride for slot, feature in model.features.items()} == {PICTURE: 1, 2: 8, 3: 16, 4: 32}


def test_numbers_and_names_mean_the_same_levels():
    by_name = tiny_backbone("RIFormer", "s12")
    by_number = {**by_name, "head": [[[2, 3, 4], 1, "Detect", ["nc"]]]}
    by_negative = {**by_name, "head": [[[-3, -2, -1], 1, "Detect", ["nc"]]]}
    assert graph(by_name).nodes[1].sources == graph(by_number).nodes[1].sources == graph(by_negative).nodes[1].sources


def test_only_levels_that_are_read_are_built():
    head = [["P3", 1, "Detect", ["nc"]]]
    model = DetectionModel(tiny_backbone("RIFormer", "s12", head=head))
    assert model.model[0].strides == (8,)
    assert "norm4" not in dict(model.model[0].named_children())


def test_slots_are_let_go_after_their_last_reader():
    nodes = graph(tiny()).nodes
    assert sorted(slot for node in nodes for slot in node.last_use) == [PICTURE, *range(7)]
    for i, node in enumerate(nodes):
        assert not any(slot in later.sources for later in nodes[i + 1 :] for slot in node.last_use)


def test_rows_that_nobody_reads_are_let_go_at_once():
    head = [*TINY_HEAD, [3, 1, "Conv", [8]], [[5, 3], 1, "Detect", ["nc"]]]
    node = graph(tiny(head=head)).nodes[6]
    assert 6 in node.last_use


# Words ----------------------------------------------------------------------------------------------------------------
def after_stem(word, args, number=1, **keys):
    """Return a YAML whose row 1 stands between a convolution of stride 2 and a head."""
    rows = [[-1, 1, "Conv", [16, 3, 2]], [-1, number, word, args], [-1, 1, "Detect", ["nc"]]]
    return {"nc": 2, "width_multiple": 0.5, "head": rows, **keys}


def assert_gives_what_it_declares(cfg):
    parsed = graph(cfg)
    before, after = parsed.features[0], parsed.features[1]
    with torch.no_grad():
        came = parsed.modules[1].eval()(torch.zeros(1, before.channels, 48, 80))
    scale = after.stride / before.stride
    assert tuple(came.shape) == (1, after.channels, 48 / scale, 80 / scale)


CONV = [[32], [32, 3], [32, 3, 2], [32, 6, 2, 2], [32, 1, 1], [32, 3, 2, None, 2], [32, 3, 1, 2, 1, 2], [32, 5, 4, 2]]
CONV += [[32, 2, 2, 0], [32, 3, 1, None, 1, 2], [32, 3, {"s": 2, "act": "nn.ReLU()"}], [{"c2": 32, "k": 3}]]
OTHER_WORDS = {
    "DWConv": [[32], [32, 3, 2], [24, 5, 1, 2], [32, 3, 1, 1, False]],
    "Bottleneck": [[32], [32, False, 2, 1.0]],
    "C3": [[32], [64, False, 1, 0.25]],
    "SPPF": [[32], [32, 3]],
    "nn.Upsample": [[], [None, 4, "bilinear"]],
}


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("word", "args"), [(word, args) for word, many in {"Conv": CONV, **OTHER_WORDS}.items() for args in many], ids=str
)
def test_a_word_gives_what_it_declares(word, args, number):
    assert_gives_what_it_declares(after_stem(word, args, number))


ODD_SIZES = [("Conv", args) for args in ([3, 1, 0], [2, 1], [2, 2], [3, 2, 0], [1, 1, 1], [3, 1, 5], [4, 1])]
ODD_SIZES += [("DWConv", args) for args in ([2, 1], [2, 2], [4, 1])]


@pytest.mark.parametrize(("word", "args"), ODD_SIZES, ids=str)
def test_a_convolution_whose_map_is_not_its_input_over_its_stride_is_refused(word, args):
    assert f"row 1 [-1, 1, {word}, [32" in complaint(after_stem(word, [32, *args]))


@pytest.mark.parametrize(
    ("word", "args", "number"), [("C3", [32, {"e": 0.001}], 1), ("Bottleneck", [8, True, 1, 0.01], 1), ("SPPF", [8], 1)]
)
def test_no_layer_without_channels_is_built(word, args, number):
    cfg = {"nc": 1, "ch": 1, "head": [[-1, number, word, args], [-1, 1, "Detect", ["nc"]]]}
    with contextlib.suppress(ConfigError):
        model = DetectionModel(cfg)
        assert not [name for name, p in model.named_parameters() if p.numel() == 0]


@pytest.mark.parametrize(
    ("multiple", "c2", "width"), [(0.25, 64, 16), (0.25, 100, 32), (0.5, 8, 8), (1.0, 9, 16), (0.33, 1024, 344)]
)
def test_widths_are_rounded_up_to_eights(multiple, c2, width):
    assert graph(after_stem("Conv", [c2], width_multiple=multiple)).features[1].channels == width


@pytest.mark.parametrize(
    ("multiple", "number", "depth"), [(0.33, 3, 1), (0.33, 6, 2), (0.33, 9, 3), (0.33, 1, 1), (1.33, 3, 4), (0.1, 2, 1)]
)
def test_depths_are_scaled_and_never_0(multiple, number, depth):
    inside = graph(after_stem("C3", [32], number, depth_multiple=multiple)).modules[1].m
    stacked = graph(after_stem("SPPF", [32], number, depth_multiple=multiple)).modules[1]
    assert len(inside) == depth
    assert (len(stacked) if isinstance(stacked, nn.Sequential) else 1) == depth


def test_yolov5n_is_yolov5n():
    model = DetectionModel("yolov5n.yaml")
    assert sum(p.numel() for p in model.parameters()) == YOLOV5N
    assert [node.slot for node in model.nodes] == list(range(25))
    assert model.nodes[-1].sources == (17, 20, 23)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in DETECTORS if is_backbone(load_spec(name).rows[0].module)])
def test_the_published_layout_has_slots_5_to_20(name):
    with torch.device("meta"):
        model = DetectionModel(name)
    assert [node.slot for node in model.nodes] == [4, *range(5, 21)]
    assert model.nodes[-1].sources == (13, 16, 19)
    assert model.stride.tolist() == [8, 16, 32]


def test_normalization_is_yolov5s():
    norms = [m for m in DetectionModel(tiny()).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.03)}


def test_a_backbone_keeps_its_own_normalization():
    model = DetectionModel(tiny_backbone("timm", "resnet18"))
    assert {m.eps for m in model.model[0].modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}


# Activation -----------------------------------------------------------------------------------------------------------
def activations(model):
    return {type(m.act) for m in model.modules() if isinstance(m, Conv) and not isinstance(m.act, nn.Identity)}


def test_the_activation_key_changes_this_model_alone():
    default = Conv.default_act
    assert activations(DetectionModel(tiny(activation="nn.LeakyReLU(0.2)"))) == {nn.LeakyReLU}
    assert Conv.default_act is default
    assert activations(DetectionModel(tiny())) == {type(default)} == {nn.SiLU}


def test_the_activation_has_its_arguments():
    model = DetectionModel(tiny(activation="nn.LeakyReLU(0.2)"))
    assert {m.negative_slope for m in model.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}


def test_a_row_may_have_its_own_activation():
    model = DetectionModel(after_stem("Conv", [8, 1, 1, {"act": "nn.GELU()"}], activation="nn.ReLU()"))
    assert [type(module.act) for module in model.model[:2]] == [nn.ReLU, nn.GELU]
    assert type(DetectionModel(after_stem("Conv", [8, {"act": False}])).model[1].act) is nn.Identity


def test_learned_activations_are_parameters_of_their_row():
    model = DetectionModel(tiny(activation="nn.PReLU()"))
    slopes = [p for name, p in model.named_parameters() if name.endswith("act.weight")]
    assert len(slopes) == len(model.model) - 2  # all but Upsample and Concat


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nn.Relu()", "did you mean 'ReLU'?"),
        ("SiLu", "did you mean 'SiLU'?"),
        ("nn.Conv2d(3, 4, 1)", "unknown activation 'Conv2d'"),
        ("os.system('ls')", "is not a name or a call with plain values"),
        ("nn.LeakyReLU(x=3)", "unexpected keyword argument 'x'"),
        ("nn.ReLU(1, 2, 3)", "positional arguments"),
        ("nn.LeakyReLU('steep')", "LeakyReLU"),
        ("nn.PReLU(-1)", "PReLU"),
        ("nn.PReLU(3)", "PReLU"),
        ("nn.PReLU(100000000000000000000000)", "PReLU"),
        ("nn.ELU([1])", "ELU"),
        ("", "is not a name or a call"),
    ],
)
def test_a_wrong_activation_is_explained(text, expected):
    for cfg in (tiny(activation=text), row(-1, 1, "Conv", [8, {"act": text}])):
        message = complaint(cfg)
        assert expected in message
        assert "activation" in message


@pytest.mark.parametrize("name", ["SiLU", "ReLU", "nn.LeakyReLU(0.1)", "torch.nn.Hardswish()", "nn.Identity"])
def test_known_activations(name):
    assert isinstance(activation(name), nn.Module)


# Wrong rows -----------------------------------------------------------------------------------------------------------
DETECT = [-1, 1, "Detect", ["nc"]]


def headed(*rows):
    return tiny(head=[*TINY_HEAD, *rows])


def backbone_row(word, *args, source=-1, number=1, head=DETECT):
    return {"nc": 2, "backbone": [[source, number, word, list(args)]], "head": [list(head)]}


WRONG = {  # name: (YAML, number of the row that is named, what the message says)
    "unknown word": (row(-1, 1, "Cnov", [8]), 3, ["unknown module 'Cnov'", "did you mean 'Conv'"]),
    "unknown word, nothing near": (row(-1, 1, "Zzz", [8]), 3, ["unknown module 'Zzz'", "a file that --plugins names"]),
    "unknown backbone": (backbone_row("RIformer", "s12"), 0, ["did you mean 'RIFormer'"]),
    "unknown timm name": (backbone_row("mobileone_s00"), 0, ["did you mean 'mobileone_s0'"]),
    "nothing": (row(-1, 1, "", [8]), 3, ["unknown module ''"]),
    "torch's name": (row(-1, 1, "nn.Conv3d", [8]), 3, ["unknown module 'nn.Conv3d'", "did you mean 'nn.Conv2d'"]),
    "no argument": (row(-1, 1, "Conv", []), 3, ["Conv takes (c2, k=1, s=1", "'c2'"]),
    "too many arguments": (row(-1, 1, "C1", [8, 5]), 3, ["C1 takes (c2)", "too many"]),
    "unknown keyword": (row(-1, 1, "Conv", [8, {"kernel": 3}]), 3, ["Conv takes", "'kernel'"]),
    "argument twice": (row(-1, 1, "Conv", [8, {"c2": 8}]), 3, ["Conv takes", "'c2'"]),
    "channels 0": (row(-1, 1, "Conv", [0]), 3, ["c2 must be a whole number from 1", "got 0"]),
    "channels negative": (row(-1, 1, "Conv", [-8]), 3, ["c2 must be", "got -8"]),
    "channels float": (row(-1, 1, "Conv", [8.0]), 3, ["c2 must be", "got 8.0"]),
    "channels text": (row(-1, 1, "Conv", ["8x"]), 3, ["c2 must be", "got '8x'"]),
    "channels true": (row(-1, 1, "Conv", [True]), 3, ["c2 must be", "got True"]),
    "channels huge": (row(-1, 1, "Conv", [10**9]), 3, ["c2 must be", "to 100000"]),
    "channels null": (row(-1, 1, "Conv", [None]), 3, ["c2 must be", "got None"]),
    "channels list": (row(-1, 1, "Conv", [[8]]), 3, ["c2 must be", "got"]),
    "kernel 0": (row(-1, 1, "Conv", [8, 0]), 3, ["k must be", "got 0"]),
    "padding negative": (row(-1, 1, "Conv", [8, 3, 1, -1]), 3, ["p must be a whole number from 0", "None", "got -1"]),
    "groups do not divide": (row(-1, 1, "Conv", [8, 3, 1, 1, 3]), 3, ["divisible by groups"]),
    "activation number": (row(-1, 1, "Conv", [8, {"act": 3}]), 3, ["act must be true or false or text", "got 3"]),
    "shortcut number": (row(-1, 1, "C3", [8, 1]), 3, ["shortcut must be true or false", "got 1"]),
    "expansion 0": (row(-1, 1, "C3", [8, True, 1, 0]), 3, ["e must be a positive number", "got 0"]),
    "even pooling": (row(-1, 1, "SPPF", [8, 4]), 3, ["odd k", "got 4"]),
    "upsample to a size": (row(-1, 1, "nn.Upsample", [40, 2]), 3, ["size must be None", "got 40"]),
    "upsample by a part": (row(-1, 1, "nn.Upsample", [None, 1.5]), 3, ["scale_factor must be", "got 1.5"]),
    "upsample mode": (row(-1, 1, "nn.Upsample", [None, 2, "cubic"]), 3, ["no mode 'cubic'", "bicubic"]),
    "concat of strides": (row([1, 3], 1, "Concat", [1], at=5), 5, ["one stride", "4, 8"]),
    "concat of rows": (row([-1, 2], 1, "Concat", [2], at=5), 5, ["dimension 1", "got 2"]),
    "concat repeated": (row([-1, 2], 2, "Concat", [1], at=5), 5, ["Concat"]),
    "two maps into one": (row([-1, 2], 1, "Conv", [8]), 3, ["Conv reads one feature map", "names 2"]),
    "reads itself": (row(3, 1, "Conv", [8]), 3, ["slot 3", "only slots 0 to 2"]),
    "reads a later row": (row(5, 1, "Conv", [8]), 3, ["slot 5", "only slots 0 to 2"]),
    "reads before the picture": (row(-5, 1, "Conv", [8]), 3, ["slot -5"]),
    "first row reads slot 0": (row(0, 1, "Conv", [8], at=0), 0, ["slot 0"]),
    "level without backbone": (row("P3", 1, "Conv", [8]), 3, ["level P3", "without a list backbone"]),
    "level 9": (backbone_row("RIFormer", head=["P9", 1, "Detect", ["nc"]]), 1, ["no map at P9 (stride 512)", "P2"]),
    "level in small letters": (
        backbone_row("RIFormer", head=["p3", 1, "Detect", ["nc"]]),
        1,
        ["'p3'", "did you mean 'P3'", "backbone1.P4"],
    ),
    "level that is missing": (backbone_row("RIFormer", head=["P1", 1, "Detect", ["nc"]]), 1, ["no map at P1", "P2"]),
    "slot that is empty": (backbone_row("RIFormer", head=[0, 1, "Detect", ["nc"]]), 1, ["no map at P1", "P2"]),
    "no head": (tiny(head=TINY_HEAD), 5, ["last row must be a head"]),
    "head in the middle": (row(-1, 1, "Detect", ["nc"]), 3, ["must be the last row"]),
    "head from coarse to fine": (headed([[3, 5], 1, "Detect", ["nc"]]), 6, ["from fine to coarse", "8, 4"]),
    "head twice on one level": (headed([[5, 5], 1, "Detect", ["nc"]]), 6, ["from fine to coarse", "4, 4"]),
    "head with other classes": (headed([[5, 3], 1, "Detect", [80]]), 6, ["80", "nc of the YAML is 2", "write nc"]),
    "head with anchors": (headed([[5, 3], 1, "Detect", ["nc", "anchors"]]), 6, ["anchors", "no key for"]),
    "head with text": (headed([[5, 3], 1, "Detect", ["classes"]]), 6, ["'classes'"]),
    "head repeated": (headed([[5, 3], 2, "Detect", ["nc"]]), 6, ["Detect"]),
    "backbone reads two maps": (row([-1, 2], 1, "RIFormer", ["s12"]), 3, ["RIFormer reads one feature map", "names 2"]),
    "backbone reads itself": (backbone_row("RIFormer", source=0), 0, ["slot 0", "nothing but the picture"]),
    "backbone reads its own level": (backbone_row("RIFormer", source="P3"), 0, ["level P3", "without a list backbone"]),
    "backbone repeated": (backbone_row("RIFormer", number=3), 0, ["RIFormer"]),
    "unknown architecture": (backbone_row("RIFormer", "s13"), 0, ["no architecture 's13'", "s12"]),
    "architecture a number": (backbone_row("RIFormer", 12), 0, ["takes an architecture"]),
    "two architectures": (backbone_row("RIFormer", "s12", "s24"), 0, ["takes an architecture"]),
    "unknown option": (backbone_row("RIFormer", "s12", {"drop": 1}), 0, ["'drop'"]),
    "option that follows": (backbone_row("RIFormer", "s12", {"in_channels": 4}), 0, ["in_channels follows"]),
    "architecture twice": (backbone_row("RIFormer", "s12", {"arch": "s24"}), 0, ["arch"]),
    "option name": (backbone_row("RIFormer", "s12", {"name": "x"}), 0, ["name"]),
    "drop_path text": (backbone_row("RIFormer", "s12", {"drop_path": "much"}), 0, ["drop_path"]),
    "drop_path 1": (backbone_row("RIFormer", "s12", {"drop_path": 1.0}), 0, ["drop_path"]),
    "drop_path negative": (backbone_row("RIFormer", "s12", {"drop_path": -0.5}), 0, ["drop_path"]),
    "weights a number": (backbone_row("RIFormer", "s12", {"weights": 5}), 0, ["weights"]),
    "weights missing": (backbone_row("RIFormer", {"weights": "no.pth"}), 0, ["no weights file no.pth"]),
    "download of ours": (backbone_row("RIFormer", True), 0, ["downloads no weights"]),
    "timm alone": (backbone_row("timm"), 0, ["timm needs an architecture"]),
    "timm of unknown name": (backbone_row("timm", "resnet81"), 0, ["no model 'resnet81'", "did you mean"]),
    "timm with unknown option": (backbone_row("timm", "resnet18", {"dropp": 1}), 0, ["dropp"]),
    "timm in_chans": (backbone_row("timm", "resnet18", {"in_chans": 4}), 0, ["in_chans"]),
    "timm out_indices": (backbone_row("timm", "resnet18", {"out_indices": [1]}), 0, ["out_indices"]),
    "timm features_only": (backbone_row("timm", "resnet18", {"features_only": False}), 0, ["features_only"]),
    "timm checkpoint_path": (backbone_row("timm", "resnet18", {"checkpoint_path": "x.pth"}), 0, ["checkpoint_path"]),
    "timm without the level": (backbone_row("levit_128s", head=["P1", 1, "Detect", ["nc"]]), 1, ["no map at P1", "P2"]),
}


@pytest.mark.parametrize(("cfg", "at", "expected"), WRONG.values(), ids=WRONG)
def test_a_wrong_row_is_explained(cfg, at, expected, tmp_path):
    text = complaint(write(tmp_path, cfg))
    rows = [*cfg.get("backbone", []), *cfg["head"]]
    assert text.startswith(f"bad.yaml, row {at} [")
    assert str(rows[at][2]) in text.partition("]: ")[0] + "]", "the row's own text"
    for part in expected:
        assert part in text.partition(f"row {at} ")[2], part


@pytest.mark.parametrize("option", [{"arch": "s24"}, {"arch": "s24", "drop_path": 0.1}])
def test_the_architecture_may_stand_in_the_mapping(option):
    assert len(DetectionModel(backbone_row("RIFormer", option)).model[0].network[0]) == 4


@pytest.mark.parametrize(
    ("args", "word"), [([], "RIFormer"), ([False], "RIFormer"), ([False], "resnet18"), ([], "resnet18")]
)
def test_forms_of_the_published_forks_mean_the_default(args, word):
    assert DetectionModel(backbone_row(word, *args)).model[0].strides == (32,)


@pytest.mark.parametrize("value", [-1, 0, 2.5, "3", 10**9, True], ids=repr)
@pytest.mark.parametrize("argument", ["nc", "ch"])
def test_wrong_arguments_of_the_constructor_are_explained(argument, value):
    with pytest.raises(UserError, match=rf"\b{argument} must be"):
        DetectionModel(tiny(), **{argument: value})


def test_the_constructor_overrides_the_yaml():
    model = DetectionModel(tiny(), ch=4, nc=7)
    assert (model.nc, model.spec.ch, model.yaml["nc"], len(model.names)) == (7, 4, 7, 7)
    assert model.model[0].conv.in_channels == 4


# Not run --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("column", ["from", "module", "argument", "option", "activation", "act", "arch"])
def test_code_is_not_run(column, tmp_path):
    marker = tmp_path / "marker"
    code = f"__import__('pathlib').Path('{marker}').touch()"
    cfg = {
        "from": row(code, 1, "Conv", [8]),
        "module": row(-1, 1, code, [8]),
        "argument": row(-1, 1, "Conv", [code]),
        "option": row(-1, 1, "Conv", [{"c2": code}]),
        "activation": tiny(activation=code),
        "act": row(-1, 1, "Conv", [8, {"act": f"nn.SiLU({code})"}]),
        "arch": backbone_row("timm", code),
    }[column]
    complaint(write(tmp_path, cfg))
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEPT)
def test_building_runs_no_forward(name, monkeypatch):
    """Without data there may be one: it tells what a network of timm gives, and moves and costs nothing."""
    call = nn.Module.__call__

    def forward(module, x, *args, **kwargs):
        assert x.is_meta, "a forward pass while building"
        return call(module, x, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "__call__", forward)
    create_model(name)


# The registry of words ------------------------------------------------------------------------------------------------
def test_a_word_of_ones_own(monkeypatch):
    monkeypatch.setattr(LAYERS, "_entries", dict(LAYERS._entries))

    @LAYERS.register("Doubled")
    def doubled(site: Site, times: float = 1.0):
        return LAYERS["Conv"](site, site.input.channels * 4)

    assert graph(after_stem("Doubled", [])).features[1].channels == 16
    assert "Doubled takes (times=1.0): times must be a positive number, got 'x'" in complaint(
        after_stem("Doubled", ["x"])
    )


@pytest.mark.parametrize("word", LAYERS)
def test_every_word_can_say_what_it_takes(word):
    with pytest.raises(ConfigError) as caught:
        bind(word, LAYERS[word], [object()] * 20)
    assert f"{word} takes (" in str(caught.value)


# At random ------------------------------------------------------------------------------------------------------------
def test_mutated_yamls_build_or_are_explained():
    rng, built = random.Random(1), 0
    for _ in range(120):
        cfg = mutated(rng)
        try:
            DetectionModel(cfg)
            built += 1
        except UserError as e:
            assert len(str(e)) < 1000, cfg
    assert 10 < built < 110, "the changes are too wild or too tame to tell anything"
