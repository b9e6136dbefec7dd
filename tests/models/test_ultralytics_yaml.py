"""ultralytics' YAMLs with sizes: the network that ultralytics builds, of the size that the file's name says."""

from pathlib import Path

import pytest
import torch
import ultralytics
import yaml
from ultralytics.nn import tasks

from models import absent, create_model
from models.errors import ConfigError
from models.layers import LAYERS, check_word
from models.spec import load_spec
from models.ultralytics_yaml import THEIR_HEADS, is_theirs, translate
from tests.helpers import pictures, randomize_, relative_error, tensors, tiny, write

THEIRS = {path.stem: path for path in sorted(Path(ultralytics.__file__).parent.glob("cfg/models/*/*.yaml"))}
KINDS = {"seg": tasks.SegmentationModel, "cls": tasks.ClassificationModel}
LARGE = ["yolov3", "yolov3-spp", "yolov9c", "yolov9c-seg", "yolov9e", "yolov9e-seg", "yolov9m", "yolov8-cls-resnet101"]
LARGE += ["yolov10s", "yolov10m", "yolov10b", "yolov10l", "yolov10x", "yolov8-cls-resnet50"]


def names_something_absent(content):
    words = {row[2] for row in content["backbone"] + content["head"]}
    return bool(words & absent.WORDS.keys() or content.keys() & absent.KEYS.keys())


REFUSED = [name for name, path in THEIRS.items() if names_something_absent(yaml.safe_load(path.read_text()))]
BUILT = [name for name in THEIRS if name not in REFUSED]
SMALL = {"scales": {size: [0.5, 0.25, 512] for size in "nsmlx"}}  # the rules for large models, at small widths
FILES = {  # the name of a file, whose YAML it holds, and what is changed there
    "yolo11s-mine": ("yolo11", {}),
    "yolo11m": ("yolo11", SMALL),
    "my-yolo11x-seg": ("yolo11-seg", SMALL),
    "yolo12n": ("yolo12", {}),
    "yolo12l": ("yolo12", SMALL),
    "yolo26n": ("yolo26", {}),
    "yolo26x-p2": ("yolo26-p2", SMALL),
    "yolov10n": ("yolov10n", {}),
    "yolov8s": ("yolov8", {"activation": "nn.ReLU()"}),
    "yolov8x-ghost": ("yolov8-ghost", SMALL),
    "yolov8x-seg-p6": ("yolov8-seg-p6", SMALL),
    "yolov5s-p6": ("yolov5-p6", SMALL),
    "yolov6n": ("yolov6", {}),
    "bare": ("yolo11", {}),
    "yolov9t": ("yolov9t", {}),
    "renamed": ("yolov9c", {}),
    "renamed-seg": ("yolov9c-seg", {}),
    "yolov8n-cls": ("yolov8-cls", {}),
    "yolo11m-cls": ("yolo11-cls", SMALL),
    "yolo26s-cls": ("yolo26-cls", {}),
    "yolov3-tiny": ("yolov3-tiny", {"width_multiple": 0.25}),
    "yolov3-spp": ("yolov3-spp", {"width_multiple": 0.25}),
    "darknet": ("yolov3", {"width_multiple": 0.25}),
    "tiny-darknet": ("yolov3-tiny", {"width_multiple": 0.25}),
    "yolo26x-seg": ("yolo26-seg", SMALL),
}
MINE = tiny(scales={"n": [0.5, 0.25, 1024], "s": [0.33, 0.5, 512], "m": [1.0, 1.0, 256]})


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in BUILT])
def test_a_file_of_ultralytics_computes_what_ultralytics_computes(name, tmp_path):
    file = write(tmp_path, THEIRS[name].read_text().replace("DEFAULT", "None"), f"{name}.yaml")  # downloads no weights
    own = randomize_(create_model(file)).double().eval()
    other = next((KINDS[part] for part in name.split("-") if part in KINDS), tasks.DetectionModel)(
        str(file), verbose=False
    )
    assert shapes(own) == shapes(other)
    other.double().eval().load_state_dict(own.state_dict())
    if own.task != "classify":
        assert own.stride.tolist() == other.stride.tolist()
        other.end2end = own.end2end  # which ultralytics leaves to its predictor
    x = pictures(2 * int(own.stride.max()), int(own.stride.max()))
    with torch.no_grad():
        got, want = tensors(own(x)), tensors(other(x))
    assert len(got) == len(want)
    assert max(map(relative_error, got, want)) < 1e-9
    assert max(relative_error(output[:1], output[1:]) for output in want) > 1e-5, "the pictures have hardly any effect"


@pytest.mark.parametrize("name", REFUSED)
def test_any_other_file_of_ultralytics_is_refused_in_one_sentence(name):
    with pytest.raises(ConfigError) as caught:
        create_model(THEIRS[name])
    text = str(caught.value)
    assert text.startswith(f"{name}.yaml")
    assert any(f"{word} is no word here: {reason}" in text for word, reason in absent.WORDS.items()) or any(
        f"ultralytics' key {key} is none here: {reason}" in text for key, reason in absent.KEYS.items()
    )


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "name", [name if name in ("yolo11m", "yolov9t") else pytest.param(name, marks=pytest.mark.slow) for name in FILES]
)
def test_the_network_is_that_of_ultralytics(name, tmp_path):
    base, changes = FILES[name]
    content = yaml.safe_load(THEIRS[base].read_text())
    file = write(tmp_path, {**content, "nc": 5, **changes}, f"{name}.yaml")
    kind = KINDS.get(base[-3:], tasks.DetectionModel)
    own, other = create_model(file), kind(str(file), verbose=False)
    assert shapes(own) == shapes(other)
    if own.task != "classify":  # whose stride ultralytics does not tell
        assert own.stride.tolist() == other.stride.tolist()


@pytest.mark.parametrize(
    ("name", "size"), [("yolo11s-mine", "s"), ("my-yolov8m", "m"), ("yoloe-11n", "n"), ("mine-s", "n"), ("yolos", "n")]
)
def test_the_name_says_the_size(name, size, tmp_path, caplog):
    spec = load_spec(write(tmp_path, MINE, f"{name}.yaml"))
    assert [spec.depth_multiple, spec.width_multiple, spec.max_channels] == MINE["scales"][size]
    said = f"{name}.yaml is built in size n, the first of n, s, m: its name has no letter of a size" in caplog.text
    assert said == (name in ("mine-s", "yolos"))


def test_the_key_scale_goes_before_the_name(tmp_path):
    assert load_spec(write(tmp_path, {**MINE, "scale": "m"}, "yolo11s.yaml")).width_multiple == 1.0


def test_a_size_survives_the_plain_form(tmp_path):
    spec = load_spec(write(tmp_path, MINE, "yolo11s.yaml"))
    assert load_spec({**spec.as_dict(), "yaml_file": spec.name}) == spec
    assert (spec.width(1024), spec.width(64)) == (256, 32)


@pytest.mark.parametrize(
    ("row", "size", "expected"),
    [
        ([-1, 2, "C3k2", [512, False, 0.25]], "n", [-1, 2, "C3k2", [512, False, 0.25]]),
        ([-1, 2, "C3k2", [1024, False, 0.25]], "m", [-1, 2, "C3k2", [1024, True, 0.25]]),
        ([-1, 2, "C3k2", [1024]], "x", [-1, 2, "C3k2", [1024, True]]),
        ([-1, 2, "C3k2", [1024, {"e": 0.25}]], "x", [-1, 2, "C3k2", [1024, True, {"e": 0.25}]]),
        ([-1, 4, "A2C2f", [512, True, 4]], "l", [-1, 4, "A2C2f", [512, True, 4, True, 1.2]]),
        ([-1, 2, "A2C2f", [256, False, -1]], "n", [-1, 2, "A2C2f", [256, False, 1]]),
        ([-1, 1, "nn.Upsample", ["None", 2, "nearest"]], "n", [-1, 1, "nn.Upsample", [None, 2, "nearest"]]),
        ([-1, 1, "Bottleneck", [64, False]], "n", [-1, 1, "Bottleneck", [64, {"k": [3, 3], "shortcut": False}]]),
        ([-1, 1, "Bottleneck", []], "n", [-1, 1, "Bottleneck", [{"k": [3, 3]}]]),
        ([-1, 1, "no row"], "n", [-1, 1, "no row"]),
        ("no row", "n", "no row"),
    ],
    ids=str,
)
def test_rules_of_ultralytics_parser_become_rows(row, size, expected):
    cfg = {**MINE, "scales": {size: [1, 1, 64]}, "scale": size, "backbone": [row]}
    assert translate(cfg, "a.yaml")["backbone"] == [expected]


@pytest.mark.parametrize(
    ("word", "keys", "expected"),
    [
        ("Conv", {}, ["nc", {"legacy": True}]),
        ("C3k2", {}, ["nc"]),
        ("A2C2f", {"reg_max": 1}, ["nc", {"reg_max": 1}]),
    ],
)
def test_a_head_is_described_by_other_rows_and_keys(word, keys, expected):
    cfg = {**MINE, "scale": "n", "backbone": [[-1, 1, word, [64]]], **keys}
    assert translate(cfg, "a.yaml")["head"][-1][3] == expected


DARKNET = [[-1, 1, "Conv", [64]], [-1, 1, "Bottleneck", [64]]]
GELAN = {"nc": 2, "backbone": [[-1, 1, "ADown", [64]]], "head": [[[0], 1, "Detect", ["nc"]]]}


@pytest.mark.parametrize(
    ("name", "changes", "theirs"),
    [
        ("mine.yaml", {}, True),
        ("mine.yaml", {"depth_multiple": 1.0}, False),  # such as ours, and those of checkpoints
        ("yolov9s.yaml", {"depth_multiple": 1.0}, True),
        ("yolov3-mine.yaml", {"backbone": [[-1, 1, "Conv", [64]]]}, True),
        ("yolov8n.yaml", {"depth_multiple": 0.33, "backbone": [[-1, 1, "C2f", [64]]]}, True),  # of 2023
        ("yolov5n-u.yaml", {"depth_multiple": 0.33, "backbone": [[-1, 1, "C3", [64]]]}, False),  # ours
        ("mine.yaml", {"backbone": [[-1, 1, "Conv", [64]]]}, False),
        ("mine.yaml", {"depth_multiple": 1.0, "backbone": DARKNET}, True),
        ("mine.yaml", {"depth_multiple": 1.0, "backbone": [*DARKNET, [-1, 1, "C3", [64]]]}, False),
        ("", {"depth_multiple": 1.0, "backbone": DARKNET}, False),
        ("mine.yaml", {"depth_multiple": 1.0, "head": [[[0], 1, "v10Detect", ["nc"]]]}, True),
        ("mine.yaml", {"depth_multiple": 1.0, "head": [[[0], 1, "Segment26", ["nc", 32, 256]]]}, True),
        ("yolov3.yaml", {"anchors": [[10, 13]], "head": [[[0], 1, "Detect", ["nc", "anchors"]]]}, False),
        ("yolov3.yaml", {"head": [[[0], 1, "Detect", ["nc", [[10, 13]]]]]}, False),
        ("yolov3.yaml", {"head": [[[0], 1, "Detect", ["nc", {"anchors": [[10, 13]]}]]]}, False),
        ("yolov3.yaml", {"head": 5}, False),
        ("yolov3.yaml", {"head": [5], "backbone": None}, False),
    ],
)
def test_ultralytics_yamls_without_scales_are_known(name, changes, theirs):
    assert is_theirs(GELAN | changes, name) == theirs


def test_a_checkpoints_yaml_is_not_taken_for_ultralytics(tmp_path):
    spec = load_spec(write(tmp_path, tiny(), "yolov3.yaml"))
    assert spec.rows[-1].args[-1] == {"legacy": True}
    assert load_spec({**spec.as_dict(), "yaml_file": spec.name}) == spec
    own = {**tiny(), "yaml_file": "yolov3.yaml"}
    assert load_spec(own).rows[-1].args == load_spec(tiny()).rows[-1].args


def test_a_word_that_is_none_here_is_quoted_as_it_stands():
    cfg = {**MINE, "scale": "n", "head": [*MINE["head"][:-1], [[5, 3], 1, "OBB", ["nc", 1]]]}
    with pytest.raises(ConfigError, match=r"OBB, \[nc, 1\]\]: OBB is no word here: it finds rotated boxes"):
        create_model(cfg)


def test_a_head_with_anchors_stays_as_it_is():
    anchors = [[10, 13], [30, 61]]
    head = [*MINE["head"][:-1], [[5, 3], 1, "Detect", ["nc", "anchors"]]]
    assert load_spec({**MINE, "head": head, "anchors": anchors, "scale": "n"}).rows[-1].args == ("nc", "anchors")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"scales": [1]}, "scales must give three numbers for each size"),
        ({"scales": {"n": [0.5, 0.25]}}, "scales must give three numbers for each size"),
        ({"scales": {1: [0.5, 0.25, 9]}}, "scales must give three numbers for each size"),
        ({"scales": {"n": ["a", 0.25, 9]}}, "depth_multiple must be a number above 0"),
        ({"scales": {"n": [0.5, 0.25, 1.5]}}, "max_channels must be a whole number"),
        ({"scale": "x"}, "means size 'x' by its key scale, but its scales are n, s, m"),
        ({"scale": ["n"]}, r"means size \['n'\] by its key scale"),
        ({"yaml_file": "yolo11l.yaml"}, "yolo11l.yaml means size 'l' by its name, but its scales are n, s, m"),
        ({"reg_max": "a"}, r"reg_max must be .*, got 'a'"),
        ({"backbone": 3}, "'backbone' must be a list of rows"),
    ],
)
def test_what_is_wrong_is_one_sentence(keys, problem):
    with pytest.raises(ConfigError, match=problem):
        create_model({**MINE, "yaml_file": "yolo11n.yaml", **keys})


# Words ----------------------------------------------------------------------------------------------------------------
PARTS = "ultralytics.nn.modules"
WORDS_OF_ULTRALYTICS = sorted(
    name
    for name, kind in vars(tasks).items()
    if isinstance(kind, type) and issubclass(kind, torch.nn.Module) and kind.__module__.startswith(PARTS)
)


@pytest.mark.parametrize("word", WORDS_OF_ULTRALYTICS)
def test_every_word_of_ultralytics_is_one_here_or_is_named_with_the_reason(word):
    here = word in LAYERS or word in THEIR_HEADS
    assert here != (word in absent.WORDS)
    if not here:
        with pytest.raises(ConfigError, match=f"{word} is no word here: "):
            check_word(word)


def test_every_module_that_a_file_of_ultralytics_names_is_swept():
    contents = [yaml.safe_load(path.read_text()) for path in THEIRS.values()]
    named = {row[2] for content in contents for row in content["backbone"] + content["head"]}
    assert named <= {*WORDS_OF_ULTRALYTICS, *(word for word in LAYERS if word.startswith("nn."))}


def test_words_that_are_absent_are_absent():
    assert not absent.WORDS.keys() & {*LAYERS, *THEIR_HEADS}
