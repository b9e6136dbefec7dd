"""Model YAMLs at random: each one is built, or refused in one sentence that names the row or the key.

    pytest tests/models/test_fuzz.py                            # a few hundred
    REPYOLO_FUZZ=20000 pytest tests/models/test_fuzz.py -s      # 20,000, and what became of them

What is built has no data (the meta device), but its maps must have the shapes that were declared. The memory of the
process must not grow by a gigabyte.
"""

import inspect
import os
import random
import re
import resource
import time
import typing
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from models import BACKBONES, Backbone
from models.arguments import Act, Kernels, Natural, Positive
from models.backbones.base import select_strides
from models.errors import ConfigError
from models.layers import LAYERS
from models.parser import MAX_PARAMETERS, PICTURE
from models.spec import HEADS
from models.summary import on_meta
from models.yolo import create_model
from tests.helpers import mutated

EXAMPLES = int(os.environ.get("REPYOLO_FUZZ", "300"))  # of both kinds together
MAX_GROWTH = 1_000_000  # kilobytes
MAX_MAP = 2**34  # values of the largest map that is looked at: shapes alone, but torch counts in 64 bits
OUTCOMES: Counter[str] = Counter()
EVERYTHING = settings(
    max_examples=EXAMPLES // 2,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


class Slices(Backbone):
    """Average poolings of some strides: the cheapest list backbone."""

    archs = ("plain", "padded")

    def __init__(self, arch="plain", in_channels=3, out_strides=None, first=4, last=32):
        super().__init__()
        has = [2**i for i in range(10) if first <= 2**i <= last]
        self.in_channels, self.strides = in_channels, select_strides(out_strides, has, "Slices")
        self.channels = (8,) * len(self.strides)
        self.parts = nn.ModuleList(nn.Conv2d(in_channels, 8, s, s) for s in self.strides)

    def forward(self, x):
        return [part(x) for part in self.parts]


@pytest.fixture(autouse=True, scope="module")
def slices():
    """Let rows say Slices."""
    former = BACKBONES._entries
    BACKBONES._entries = {**former, "Slices": Slices}
    yield
    BACKBONES._entries = former


# What a YAML may hold -------------------------------------------------------------------------------------------------
SMALL = st.sampled_from([1, 1, 1, 2, 2, 3, 3, 4, 5, 7, 8, 16])
COUNTS = st.one_of(SMALL, SMALL, st.sampled_from([16, 24, 32, 32, 64, 64, 100, 128, 1024, 100_000]))
ACTS = st.sampled_from([True, False, "nn.ReLU()", "SiLU", "nn.LeakyReLU(0.1)", "nn.PReLU(3)", "nn.Relu()", "x"])
STRANGE = st.sampled_from([None, True, -1, 0, 1.5, float("nan"), 10**12, "x", "", "nc", "P3", [], [1], [[1]], {}])
BY_HINT = {
    Positive: COUNTS,
    Natural: st.one_of(st.sampled_from([0, 0, 1, 1, 2, 3]), COUNTS),
    bool: st.booleans(),
    float: st.sampled_from([0.25, 0.5, 0.5, 1.0, 1.0, 2.0, 1e-3, 1000.0]),
    str: st.sampled_from(["nearest", "bilinear", "bicubic", "repvgg", "qarep", "x"]),
    Act: ACTS,
    Kernels: st.lists(st.sampled_from([1, 3, 5, 9, 4]), min_size=1, max_size=4),
    tuple: st.lists(st.integers(0, 3), min_size=4, max_size=4),
    type(None): st.none(),
}
BY_NAME = {  # what people write
    "c2": st.sampled_from([8, 16, 32, 64, 64, 128]),
    "k": st.sampled_from([1, 3, 3, 5]),
    "s": st.sampled_from([1, 1, 2]),
    "p": st.none(),
    "g": st.just(1),
    "d": st.just(1),
    "e": st.sampled_from([0.25, 0.5, 1.0]),
    "kernel_size": st.sampled_from([1, 2, 3]),
    "gain": st.just(2),
    "c3": st.sampled_from([16, 32]),
    "c4": st.sampled_from([16, 32]),
}
LIST_BACKBONES = st.one_of(
    *[st.tuples(st.just("Slices"), st.lists(st.sampled_from(["plain", "padded"]), max_size=1))] * 12,
    st.tuples(
        st.just("Slices"),
        st.tuples(
            st.fixed_dictionaries({"first": st.sampled_from([1, 2, 8, 16]), "last": st.sampled_from([16, 32, 64])})
        ).map(list),
    ),
    st.sampled_from(
        [
            ("RepVGG", ["A0", {"num_blocks": [1, 1, 1, 1]}]),
            ("RepVGG", ["A0", {"num_blocks": [1, 1, 1, 1], "width_multiplier": [9, 9, 9, 9]}]),
            ("RIFormer", [False]),
            ("RepMLPNet", ["T224", {"hs": [4, 4, 2, 1]}]),
            ("mobilenetv3_small_050", [False]),
            ("timm", ["mobilenetv3_small_050", {"dim": 10**6}]),
            ("timm", ["mobilenetv3_smal"]),
            ("RepVGG", ["A9"]),
        ]
    ),
)


def values(hint):
    """Return values of the type that a word's argument has."""
    if hint in BY_HINT:
        return BY_HINT[hint]
    if typing.get_origin(hint) is tuple:
        return BY_HINT[tuple]
    parts = [part for part in typing.get_args(hint) if part in BY_HINT or typing.get_origin(part)]
    return st.one_of(*map(values, parts)) if parts and typing.get_origin(hint) is not typing.Annotated else STRANGE


@st.composite
def arguments(draw, word):
    """Return arguments of a word, most of which are of the right types."""
    hints = typing.get_type_hints(LAYERS[word], include_extras=True)
    parameters = list(inspect.signature(LAYERS[word]).parameters.values())[1:]
    needed = sum(p.default is p.empty for p in parameters)
    count = draw(st.one_of(st.just(needed), st.integers(needed, len(parameters))))
    usual = draw(st.integers(0, 9)) < 9
    args = [
        draw(BY_NAME.get(p.name) if usual and p.name in BY_NAME else values(hints[p.name])) for p in parameters[:count]
    ]
    if draw(st.integers(0, 30)) == 30:
        args.append(draw(STRANGE))
    elif count < len(parameters) and draw(st.integers(0, 9)) == 9:
        args.append({parameters[-1].name: draw(values(hints[parameters[-1].name]))})
    return args


@st.composite
def sources(draw, slot, has_levels, many=False):
    """Return what a row reads: as a rule the row before, seldom what is not there."""
    names = LEVELS if has_levels or draw(st.integers(0, 20)) == 20 else ["picture"]
    numbers = st.integers(0, max(slot - 1, 0)) if slot else st.just(-1)
    any_source = st.one_of(st.just(-1), numbers, st.integers(-slot - 1, -1), st.sampled_from(names))
    if many:
        return draw(st.lists(any_source, min_size=1, max_size=3))
    return draw(any_source) if draw(st.integers(0, 8)) == 8 else -1


WORDS = sorted(set(LAYERS) - set(HEADS))
LAST = [*[("Detect", ["nc"])] * 4, *[("Detect", ["nc", "anchors"])] * 2]  # words of the last row, with arguments
LAST += [("Segment", ["nc", "anchors", 32, 256]), ("Segment", ["nc"]), ("Segment", ["nc", "anchors", 10**5, 10**5])]
LEVELS = ["P2", "P3", "P3", "P4", "P4", "P5", "P5", "P6", "backbone1.P4", "backbone2.P3", "picture", "p3"]


@st.composite
def grammatical(draw):
    """Return a model YAML of the language's form: words of the registry, plausible arguments, slots and levels."""
    rows, slot, has_levels = [], 0, False
    for _ in range(draw(st.integers(1, 6))):
        if draw(st.integers(0, 3)) == 3:
            word, args = draw(LIST_BACKBONES)
            source = "picture" if draw(st.booleans()) else draw(sources(slot, has_levels))
            rows.append([source, 1, word, list(args)])
            slot, has_levels = slot + 5, True
        else:
            word = draw(st.sampled_from(WORDS))
            number = draw(st.sampled_from([1] * 12 + [2, 3, 1000]))
            rows.append([draw(sources(slot, has_levels, many=word == "Concat")), number, word, draw(arguments(word))])
            slot += 1
    heads = [st.just(-1), sources(slot, has_levels, many=True)]
    heads += [st.sampled_from([["P3", "P4", "P5"], ["P4"], ["P4", "P6"]])] * has_levels
    cut = draw(st.integers(0, len(rows)))
    cfg = {"nc": draw(st.sampled_from([2, 80, 80, 80, 100_000])), "backbone": rows[:cut]}
    cfg["head"] = [*rows[cut:], [draw(st.one_of(heads)), 1, *draw(st.sampled_from(LAST))]]
    cfg["width_multiple"] = draw(st.sampled_from([0.5, *[0.25, 0.5, 1.0] * 9, 16.0, 99, 0]))
    cfg["anchors"] = draw(st.sampled_from([3, 3, 3, [[8, 8, 16, 16]], [[8, 8], [9, 9, 10, 10]], 0, None]))
    cfg["end2end"] = draw(st.sampled_from([False] * 5 + [True, "x"]))
    cfg["depth_multiple"] = draw(st.sampled_from([1.0, *[0.33, 1.0] * 9, 16.0, -1]))
    if draw(st.integers(0, 5)) == 5:
        cfg["activation"] = draw(ACTS.filter(lambda act: isinstance(act, str)))
    if draw(st.integers(0, 5)) == 5:
        cfg["ch"] = draw(st.sampled_from([3, 1, 4, 6, 4096, 5000]))
    return cfg


# What must hold -------------------------------------------------------------------------------------------------------
def try_model(cfg):
    """Build a model without data, and check what is declared or said."""
    try:
        with torch.device("meta"):
            model = create_model(cfg)
    except ConfigError as e:
        text = str(e)
        assert "\n" not in text
        assert len(text) < 1000, text
        assert re.search(
            r"\brow \d+ |\b(nc|ch|width_multiple|depth_multiple|activation|anchors|end2end|head|backbone)\b", text
        )
        OUTCOMES["refused"] += 1
        return
    OUTCOMES["built"] += 1
    assert sum(p.numel() for p in model.parameters()) <= MAX_PARAMETERS
    height, width = model.example_input().shape[2:]
    if max(f.channels * height * width / f.stride**2 for f in model.features.values()) < MAX_MAP:
        assert_declared(model, height, width)


def assert_declared(model, height, width):
    """Run a picture without data through a model, and check the shape of what each slot holds."""
    ghost, seen = on_meta(model), {}
    for module, node in zip(ghost.model, ghost.nodes, strict=True):

        def note(module, inputs, output, node=node):
            seen.update(zip(node.slots, output if node.writes_list else (output,), strict=True))

        module.register_forward_hook(note)
    with torch.device("meta"), torch.no_grad():
        ghost(torch.empty(1, model.spec.ch, height, width))
    OUTCOMES["run"] += 1
    for slot, feature in model.features.items():
        if slot != PICTURE:
            maps, found = (feature.maps, seen[slot]) if feature.maps else ((feature,), (seen[slot],))
            for (channels, stride, (down, across), _), tensor in zip(maps, found, strict=True):
                assert tuple(tensor.shape) == (1, channels, height / stride + down, width / stride + across), slot


@pytest.fixture(autouse=True)
def bounded():
    """Fail when the memory of the process has grown by a gigabyte; tell what became of the examples."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    OUTCOMES.clear()
    yield
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"\n{dict(OUTCOMES)} in {time.perf_counter() - start:.0f} s, {growth / 1e3:.0f} MB more memory")
    assert growth < MAX_GROWTH
    assert 0.05 < OUTCOMES["built"] / OUTCOMES.total() < 0.95, "they are too wild or too tame to tell anything"


@pytest.mark.slow
@EVERYTHING
@given(grammatical())
def test_yamls_of_the_right_form_are_built_or_explained(cfg):
    try_model(cfg)


@pytest.mark.slow
@EVERYTHING
@given(st.integers(0, 2**32))
def test_yamls_with_changes_are_built_or_explained(seed):
    try_model(mutated(random.Random(seed)))
