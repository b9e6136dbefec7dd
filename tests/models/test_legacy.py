"""Files written for the published forks, and backbones in every place: several, behind a stem, with P2, P6 or P7."""

import json
import resource
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

import train
from models import BACKBONES, Backbone, DetectionModel, switch_to_deploy
from models.backbones.base import select_strides
from models.errors import ConfigError
from models.layers import LAYERS
from models.parser import MAX_PARAMETERS, PICTURE, BackboneLevel, parse_model
from models.spec import load_spec
from models.summary import backbone_card, model_table
from tests.helpers import pictures, randomize_, tensors, worst_error, write
from tests.stock import pan
from utils import inspect_backbone
from utils.train.freezing import frozen_paths
from utils.train.prepare import choose_model

FOLDER = Path(__file__).parent / "legacy"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))
DETECT = [["P3", "P4", "P5"], 1, "Detect", ["nc"]]


class Steps(Backbone):
    """A 1x1 convolution for each of its strides, on the picture scaled down: maps from `first` to `last`."""

    archs = ("small",)

    def __init__(self, arch="small", in_channels=3, out_strides=None, first=8, last=32, size=None):
        super().__init__()
        has = [2**i for i in range(12) if first <= 2**i <= last]
        self.in_channels, self.size = in_channels, size and tuple(size)
        self.strides = select_strides(out_strides, has, "Steps")
        self.channels = tuple(8 + 2 * stride.bit_length() for stride in self.strides)
        self.parts = nn.ModuleList(
            nn.Sequential(nn.AvgPool2d(s), nn.Conv2d(in_channels, c, 1, bias=False), nn.BatchNorm2d(c))
            for s, c in zip(self.strides, self.channels, strict=True)
        )

    def forward(self, x):
        return [part(x) for part in self.parts]


@pytest.fixture(autouse=True)
def steps(monkeypatch):
    """Let rows say Steps."""
    monkeypatch.setattr(BACKBONES, "_entries", {**BACKBONES._entries, "Steps": Steps})


def rows(*rows, **keys):
    """Return a model YAML of these rows; without a head, one follows, on levels or on the last row."""
    has_levels = any(word not in LAYERS for _, _, word, _ in rows)
    head = [] if rows[-1][2] == "Detect" else [DETECT if has_levels else [-1, 1, "Detect", ["nc"]]]
    return {"nc": 2, "head": [*rows, *head], **keys}


def graph(*entries):
    return parse_model(load_spec(rows(*entries)))


def complaint(*entries):
    with pytest.raises(ConfigError) as caught:
        DetectionModel(rows(*entries))
    return str(caught.value)


def backbone(word="Steps", *args, source=-1):
    return [source, 1, word, list(args)]


@torch.no_grad()
def assert_declared(model, size):
    """Run a picture of `size`, and check that every slot holds what was declared for it."""
    seen = {}
    for module, node in zip(model.model, model.nodes, strict=True):

        def note(module, inputs, output, node=node):
            seen.update(zip(node.slots, output if node.writes_list else (output,), strict=True))

        module.register_forward_hook(note)
    model.eval()(torch.rand(1, model.spec.ch, *size))
    for slot, (channels, stride, *_) in model.features.items():
        if slot != PICTURE:
            assert tuple(seen[slot].shape) == (1, channels, size[0] / stride, size[1] / stride), slot


def assert_fuses(model, size):
    model = randomize_(model).double().eval()
    deploy = switch_to_deploy(model)
    assert worst_error(deploy, model, pictures(*size)) <= 1e-9
    assert deploy.report.fused["Conv+BN"] > 0


# Files of the forks ---------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_forks_file_is_built_as_its_comments_say(name):
    path = FOLDER / name
    model = DetectionModel(path)
    lines = [line for line in path.read_text().splitlines() if line.lstrip().startswith("[")]
    numbers = [int(line.partition("#")[2].split("(")[0].split()[-1]) for line in lines[:-1] if ":" not in line]
    rows = [node.numbers.stop - 1 for node in model.nodes if not (node.writes_list and node.numbers.start == 1)]
    assert rows[:-1] == numbers
    assert model.stride.tolist() == [8, 16, 32]
    joined = [node.sources[1] for node in model.nodes if node.row.module == "Concat"]
    assert [model.features[slot].stride for slot in joined] == [16, 8, 16, 32]
    assert_declared(model, (96, 160))


def test_a_forks_riformer_is_ours():
    """The published row `RIFormer, [False]` means the smallest architecture, and slots 3 and 2 are P4 and P3."""
    theirs, ours = DetectionModel(FOLDER / "yolov5-riformer.yaml"), DetectionModel("riformer-yolo.yaml")
    assert [node.sources for node in theirs.nodes] == [node.sources for node in ours.nodes]
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (theirs, ours)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("written", "meant"), [("vovnet39", "vovnet39a"), ("RIformer", "RIFormer")])
def test_a_name_that_is_nearly_right_is_explained(written, meant):
    assert f"did you mean '{meant}'" in complaint([-1, 1, written, [False]])


# Numbers and names ----------------------------------------------------------------------------------------------------
def test_a_backbone_behind_a_stem_takes_the_next_five_numbers():
    nodes = graph([-1, 1, "Conv", [8, 3, 2]], backbone(), [-1, 1, "Conv", [8]], [-1, 1, "Detect", ["nc"]]).nodes
    assert [list(node.numbers) for node in nodes] == [[0], [1, 2, 3, 4, 5], [6], [7]]


def test_numbers_count_a_backbones_own_strides_and_names_those_of_the_picture():
    parsed = graph([-1, 1, "Conv", [8, 3, 2]], backbone(), [[3, 4, 5], 1, "Detect", ["nc"]])
    assert [parsed.features[slot].stride for slot in parsed.nodes[-1].sources] == [16, 32, 64]
    named = graph([-1, 1, "Conv", [8, 3, 2]], backbone(), [["P4", "P5", "P6"], 1, "Detect", ["nc"]])
    assert named.nodes[-1].sources == parsed.nodes[-1].sources == (3, 4, 5)


def test_a_stem_of_stride_1_keeps_the_levels():
    model = DetectionModel(rows([-1, 1, "Conv", [16, 3, 1]], backbone("RepVGG", "A0")))
    assert (model.model[1].in_channels, model.stride.tolist()) == (16, [8, 16, 32])


def test_a_backbone_in_the_middle_reads_a_level_of_another():
    model = DetectionModel(rows(backbone(), backbone(source="P3"), [["P6", "P7", "P8"], 1, "Detect", ["nc"]]))
    assert model.model[1].in_channels == model.model[0].channels[0]
    assert model.stride.tolist() == [64, 128, 256]
    assert model.model[0].strides == (8,), "only the level that is read is built"


def test_levels_are_those_of_the_nearest_backbone_unless_it_is_named():
    parsed = graph(
        backbone(),
        [["P3"], 1, "Concat", [1]],
        backbone(source="picture"),
        [["backbone1.P4", "P4", "backbone2.P4"], 1, "Concat", [1]],
        [["P3", -1], 1, "Detect", ["nc"]],
    )
    assert [node.sources for node in parsed.nodes] == [(PICTURE,), (2,), (PICTURE,), (3, 9, 9), (8, 11)]
    assert [module.strides for module in parsed.modules[0::2][:2]] == [(8, 16), (8, 16)]


def test_the_picture_has_a_name_in_every_row():
    model = DetectionModel(
        rows(backbone(), ["picture", 1, "Conv", [8, 8, 8, 0]], [[-1, "P3"], 1, "Concat", [1]], DETECT)
    )
    assert model.nodes[1].sources == (PICTURE,)
    assert PICTURE in model.nodes[1].last_use
    assert_declared(model, (96, 32))


def test_two_backbones_share_a_picture_of_many_channels():
    """A picture of colours and heat: each backbone gets its own channels."""
    cfg = rows(
        ["picture", 1, "Channels", [0, 3]],
        backbone("RepVGG", "A0"),
        ["picture", 1, "Channels", [3, 4]],
        backbone(),
        [["backbone1.P3", "P3"], 1, "Concat", [1]],
        [["backbone1.P4", "P4"], 1, "Concat", [1]],
        [["backbone1.P5", "P5"], 1, "Concat", [1]],
        [[-3, -2, -1], 1, "Detect", ["nc"]],
        ch=4,
    )
    model = DetectionModel(cfg)
    assert [m.in_channels for m in model.model if isinstance(m, Backbone)] == [3, 1]
    assert_declared(model, (96, 160))
    picture = torch.rand(1, 4, 64, 64)
    heat = model.model[3](model.model[2](picture))
    assert torch.equal(heat[0], model.model[3](picture[:, 3:])[0])


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([backbone(), ["backbone2.P3", 1, "Detect", ["nc"]]], "row 1 *names backbone2, but 1 list backbone(s)"),
        ([backbone(), ["backbone1.p3", 1, "Detect", ["nc"]]], "row 1 *expected a slot number, picture, or a level"),
        ([backbone(), ["pictur", 1, "Detect", ["nc"]]], "row 1 *did you mean 'picture'"),
        ([["P3", 1, "Conv", [8]], backbone()], "row 0 *no levels without a list backbone before it"),
        (
            [[-1, 1, "Conv", [8, 3, 2]], backbone(), ["P3", 1, "Detect", ["nc"]]],
            "row 2 *no map at P3 (stride 8), it gives P4 (stride 16)",
        ),
        (
            [[-1, 1, "Conv", [8, 8, 8, 0]], backbone(), ["P1", 1, "Detect", ["nc"]]],
            "row 2 *no map at P1 (stride 2), it gives P6",
        ),
        ([[-1, 1, "Conv", [8, 3, 3]], backbone()], "row 1 *Steps reads a map of stride 3"),
        ([[-1, 1, "nn.ZeroPad2d", [1]], backbone()], "row 1 *Steps reads a map that nn.ZeroPad2d made larger"),
        ([backbone(), backbone(source=["P3", "P3"])], "row 1 *Steps reads one feature map, but 'from' names 2"),
        (
            [backbone(), backbone("Steps", {"first": 16}, source="picture"), DETECT],
            "row 2 *no map at P3 *backbone1.P4 (row 0)",
        ),
        (
            [backbone("Steps", {"size": [64, 64]}), backbone("Steps", {"size": [32, 32]}, source="picture")],
            "row 1 *takes pictures of 32x32 alone, but Steps in row 0 of 64x64",
        ),
        (
            [backbone("Steps", {"first": 2048, "last": 2048}), [["backbone1.P9"], 1, "Detect", ["nc"]]],
            "row 1 *no map at P9",
        ),
        ([[-1, 1, "Channels", [2, 4]], backbone()], "row 0 *Channels takes 2 to 4 of 3 channels"),
        ([[-1, 1, "Channels", [2, 2]], backbone()], "row 0 *Channels takes 2 to 2"),
    ],
    ids=lambda value: str(value)[-24:],
)
def test_a_wrong_place_is_explained(entries, expected):
    text = complaint(*entries)
    for part in expected.split("*"):
        assert part.strip() in text


# Levels ---------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "last", "levels"),
    [
        (8, 32, "P3 P4 P5"),
        (4, 32, "P2 P3 P4 P5"),
        (2, 32, "P1 P2 P3 P4 P5"),
        (1, 32, "P0 P1 P2 P3 P4 P5"),
        (2, 64, "P1 P2 P3 P4 P5 P6"),
        (4, 64, "P2 P3 P4 P5 P6"),
        (8, 128, "P3 P4 P5 P6 P7"),
        (16, 64, "P4 P5 P6"),
    ],
)
def test_a_backbone_may_have_any_levels(first, last, levels):
    entry = backbone("Steps", {"first": first, "last": last})
    model = DetectionModel(rows(entry, [levels.split(), 1, "Detect", ["nc"]]))
    assert model.stride.tolist() == [2 ** int(level[1]) for level in levels.split()]
    assert_declared(model, (3 * last, last))
    assert_fuses(model, (last, 3 * last))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "levels", "size"),
    [
        ("resnet18", "P1 P3 P4", (96, 32)),
        ("convnext_atto", "P2 P3 P4 P5", (96, 32)),
        ("vgg11", "P0 P5", (32, 96)),
        ("levit_128s", "P4 P5 P6", (640, 640)),
    ],
)
def test_levels_of_timm_models(name, levels, size):
    model = DetectionModel(rows(backbone(name), [levels.split(), 1, "Detect", ["nc"]]))
    assert model.stride.tolist() == [2 ** int(level[1]) for level in levels.split()]
    assert_declared(model, size)


def test_levels_without_a_number_are_let_go_too():
    parsed = graph(backbone("Steps", {"last": 64}), ["P6", 1, "Conv", [8]], [["P5", -1], 1, "Detect", ["nc"]])
    released = [slot for node in parsed.nodes for slot in node.last_use]
    assert Counter(released) == Counter([*parsed.features, parsed.nodes[-1].slot])


@pytest.mark.parametrize(("levels", "slots", "number"), [("P5 P6", (4, (0, 6)), 4), ("P6 P7", ((0, 6), (0, 7)), 4)])
def test_a_level_without_a_number_is_its_own_slot(levels, slots, number):
    node = graph(backbone("Steps", {"last": 128}), [levels.split(), 1, "Detect", ["nc"]]).nodes[0]
    assert node.slots == slots
    assert node.slot == number
    assert str(BackboneLevel(0, 6)) == "P6"


P2 = pan(128, 256, 512, 1024, first=6, skips=(1, 2, 3))
P6 = [[-1, 1, "Conv", [768, 3, 2]], [-1, 1, "SPPF", [1024, 5]], *pan(256, 512, 768, 1024, first=7, skips=(2, 3, 4))]
SMALL = {
    "RIFormer": backbone("RIFormer", "s12"),
    "RepVGG": backbone("RepVGG", "A0", {"num_blocks": [1, 1, 1, 1], "width_multiplier": [0.25, 0.25, 0.25, 0.25]}),
    "RepMLPNet": backbone("RepMLPNet", "T224", {"hs": [8, 4, 2, 1]}),
    "timm": backbone("mobilenetv3_small_050"),
}


@pytest.mark.slow
@pytest.mark.parametrize("word", SMALL)
@pytest.mark.parametrize("finest", ["P2", "P6"])
def test_heads_with_p2_or_p6_on_any_backbone(word, finest):
    neck = [[-1, 1, "SPPF", [1024, 5]], *P2] if finest == "P2" else P6
    *rest, detect = neck
    cfg = rows(SMALL[word], *rest, [detect[0], 1, "Detect", ["nc"]], width_multiple=0.125, depth_multiple=0.33)
    model = DetectionModel(cfg)
    largest = 32 if finest == "P2" else 64
    assert model.stride.tolist() == [largest // 8, largest // 4, largest // 2, largest]
    assert_declared(model, (3 * largest, largest))
    assert_fuses(model, (largest, 3 * largest))


# What reads a model's nodes -------------------------------------------------------------------------------------------
DUAL = rows(
    [-1, 1, "Conv", [8, 3, 2]],
    backbone("Steps", {"first": 4, "last": 32}),
    backbone(source="picture"),
    [-1, 1, "Conv", [8]],
    [["backbone1.P3", "backbone2.P4", "backbone1.P6"], 1, "Detect", ["nc"]],
)


def test_the_table_shows_slots_and_levels():
    lines = model_table(DetectionModel(DUAL)).splitlines()[1:-1]
    assert [line.split()[0] for line in lines] == ["0", "2-5", "9-10", "11", "12"]
    cfg = rows(backbone("Steps", {"last": 64}), [["P5", "P6"], 1, "Detect", ["nc"]])
    assert [line.split()[0] for line in model_table(DetectionModel(cfg)).splitlines()[1:-1]] == ["4,P6", "5"]


def test_every_backbone_has_a_card():
    card = backbone_card(DetectionModel(DUAL), (128, 128))
    assert card.count("backbone  [") == 2
    assert "P3 (stride 8) 14 channels, P6 (stride 64) 20 channels" in card.splitlines()[1]
    assert ["64x64" in line for line in card.splitlines() if "GFLOPs" in line] == [True, False]


def test_the_first_backbone_is_what_is_inspected(tmp_path):
    """With its own strides: behind a stem it is looked at alone."""
    found = inspect_backbone.run(str(write(tmp_path, DUAL)), no_latency=True, imgsz=[64])
    assert [(level.stride, level.channels) for level in found.levels] == [(4, 14), (32, 20)]
    assert found.model.parameters[0] == sum(p.numel() for p in DetectionModel(DUAL).parameters())


def test_options_reach_the_row_that_they_are_for(tmp_path):
    spec = load_spec(rows([-1, 1, "Conv", [8]], backbone("Steps", {}))).with_option(1, "last", 64)
    assert spec.rows[1].args == ({"last": 64},)
    assert DetectionModel(spec).model[1].in_channels == 8
    args = train.make_parser().parse_args(["--cfg", str(write(tmp_path, DUAL)), "--allow-partial"])
    assert [row.args[-1] for row in choose_model(args)[0].rows[1:3]] == [
        {"first": 4, "last": 32, "allow_partial": True},
        {"allow_partial": True},
    ]


def test_freezing_names_slots_of_any_backbone():
    model = DetectionModel(DUAL)
    assert frozen_paths(model, "backbone") == ["model.0", "model.1", "model.2"]
    assert frozen_paths(model, 1) == ["model.0"]
    assert frozen_paths(model, 2) == ["model.0", "model.1"], "any number of a backbone freezes it"
    assert frozen_paths(model, [8, 11]) == ["model.2", "model.3"]


def test_the_example_fits_all_backbones():
    assert DetectionModel(DUAL).example_input().shape == (1, 3, 128, 128)
    third = rows([-1, 1, "Conv", [8, 3, 3]], ["picture", 1, "Conv", [8, 4, 4, 0]], [[0, 1], 1, "Detect", ["nc"]])
    model = DetectionModel(third)
    assert model.example_input().shape == (1, 3, 12, 12), "a multiple of 3 and of 4"
    assert tensors(switch_to_deploy(model)(torch.rand(1, 3, 12, 24)))


def test_the_only_size_is_that_of_the_picture():
    entries = [[-1, 1, "Conv", [8, 3, 2]], backbone("Steps", {"size": [64, 96]}), [["P4", "P6"], 1, "Detect", ["nc"]]]
    assert DetectionModel(rows(*entries)).only_size == (128, 192)


def test_a_model_with_several_backbones_is_built_again_from_its_yaml():
    model = DetectionModel(DUAL)
    again = DetectionModel(json.loads(json.dumps(model.yaml)))
    assert again.nodes == model.nodes
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


# Bounds ---------------------------------------------------------------------------------------------------------------
HUGE = {
    "width_multiple 99": ({**rows([-1, 1, "Conv", [8]]), "width_multiple": 99}, "width_multiple must be"),
    "a kernel of 99": (rows([-1, 1, "Conv", [100_000, 99]]), "row 0 *parameters, expected at most 500,000,000"),
    "one wide row after another": (rows([-1, 1, "Conv", [100_000]], [-1, 1, "Conv", [100_000]]), "row 1 *parameters"),
    "deep": (rows([-1, 1000, "Conv", [8]]), "row 0 *repeated 1000 times, expected at most 100"),
    "deep by depth_multiple": (rows([-1, 50, "C3", [8]], depth_multiple=16), "row 0 *800 times, 50 times depth_mult"),
    "deep inside": (rows([-1, 1, "RepNCSPELAN4", [8, 8, 8, 10_000]]), "row 0 *repeated 10000 times"),
    "wide by width_multiple": (rows([-1, 9, "C3", [9999]], width_multiple=16), "row 0 *parameters"),
    "many classes": (
        {**rows([-1, 1, "Conv", [50_000]], [-1, 1, "Detect", ["nc"]]), "nc": 20_000},
        "row 1 *parameters",
    ),
    "many branches": (rows([-1, 1, "MixConv2d", [99_999, [51, 53]]]), "row 0 *parameters"),
    "timm": (rows(backbone("convnext_atto", {"dims": [9999] * 4})), "row 0 *parameters"),
    "sum of small ones": (rows(*[[-1, 1, "Conv", [4000, 3]]] * 5), "row 4 *parameters"),
    "coarse": (rows(*[[-1, 1, "Conv", [8, 8, 8, 0]]] * 4), "row 3 *multiples of 4096 pixels"),
    "no common size": (rows(*[["picture", 1, "Conv", [8, 1, s]] for s in (16, 81)]), "row 1 *multiples of 1296 pixels"),
    "fine": (rows([-1, 1, "nn.Upsample", [None, 100_000]]), "row 0 *100000 times as large as the picture"),
    "many channels": (rows([-1, 1, "Contract", [1000]]), "row 0 *3,000,000 channels"),
}


@pytest.mark.parametrize(("cfg", "expected"), HUGE.values(), ids=HUGE)
def test_what_is_too_large_is_refused_before_it_takes_memory(cfg, expected):
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ConfigError) as caught:
        DetectionModel(cfg)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"
    assert "\n" not in str(caught.value)
    for part in expected.split("*"):
        assert part.strip() in str(caught.value)


def test_the_bound_leaves_large_models_alone():
    with torch.device("meta"):
        graph = parse_model(load_spec("yolov5x.yaml"))
    assert sum(p.numel() for module in graph.modules for p in module.parameters()) < MAX_PARAMETERS / 5


def test_measuring_a_model_takes_no_random_numbers():
    """Weights after a seed are those of the rows alone."""
    torch.manual_seed(0)
    want = nn.Conv2d(3, 8, 3, bias=False).weight
    torch.manual_seed(0)
    assert torch.equal(
        DetectionModel(rows([-1, 1, "Conv", [8, 3]], [-1, 1, "Detect", ["nc"]])).model[0].conv.weight, want
    )


def test_code_that_asks_for_values_is_built_with_data(monkeypatch):
    class Asking(Steps):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.largest = float(self.parts[0][1].weight.max())

    monkeypatch.setitem(BACKBONES._entries, "Asking", Asking)
    assert DetectionModel(rows(backbone("Asking"))).model[0].largest > 0
