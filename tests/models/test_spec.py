"""The YAML as data: what is read, what is refused in one sentence, and that nothing in it is run."""

import contextlib
import copy
import random
from pathlib import Path

import pytest
import ultralytics
import yaml

from models.errors import ConfigError
from models.spec import Call, load_spec, parse_call
from models.yaml_sources import CONFIGS, MAX_BYTES, find_config, read_ultralytics, stem_of, whole_name
from tests.helpers import SHIPPED, TINY_DETECT, TINY_HEAD, mutated, tiny, write
from tests.helpers import tiny_with_row as row

THEIRS = {path.stem: path for path in Path(ultralytics.__file__).parent.glob("cfg/models/*/*.yaml")}


def complaint(cfg):
    """Return the one sentence with which `cfg` is refused."""
    with pytest.raises(ConfigError) as caught:
        load_spec(cfg)
    text = str(caught.value)
    assert "\n" not in text
    assert 0 < len(text) < 600, text[:600]
    return text


# Reading --------------------------------------------------------------------------------------------------------------
def test_rows_are_numbered_over_backbone_and_head():
    spec = load_spec(tiny())
    assert [row.index for row in spec.rows] == list(range(7))
    assert spec.backbone_rows == 3
    assert str(spec.rows[5]) == "[[-1, 2], 1, Concat, [1]]"


def test_defaults_are_yolov5s():
    spec = load_spec({"nc": 4, "head": [[-1, 1, "Detect", ["nc"]]]})
    assert (spec.depth_multiple, spec.width_multiple, spec.ch, spec.activation, spec.anchors) == (1, 1, 3, None, None)
    assert spec.backbone_rows == 0


def test_keys_are_read():
    cfg = tiny(ch=4, activation="nn.ReLU()", anchors=[[1, 2], [3, 4]], depth_multiple=0.33, width_multiple=2, nc=1)
    spec = load_spec(cfg)
    assert (spec.ch, spec.activation, spec.anchors, spec.nc) == (4, "nn.ReLU()", ((1, 2), (3, 4)), 1)
    assert (spec.depth_multiple, spec.width_multiple) == (0.33, 2.0)


def test_text_none_is_none():
    spec = load_spec(tiny())
    quoted = load_spec(tiny(head=[TINY_HEAD[0], [-1, 1, "nn.Upsample", ["None", 2, "nearest"]], *TINY_HEAD[2:]]))
    assert quoted.rows[4].args == spec.rows[4].args == (None, 2, "nearest")


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("form", ["bare", "file", "path", "text path"])
def test_shipped_yamls_are_found_by_every_name(name, form):
    cfg = {"bare": name.removesuffix(".yaml"), "file": name, "path": CONFIGS / name, "text path": str(CONFIGS / name)}
    assert load_spec(cfg[form]).name == name


def test_a_file_here_goes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, tiny(nc=7), SHIPPED[0])
    assert load_spec(SHIPPED[0]).nc == 7


def test_a_spec_is_its_own_spec():
    spec = load_spec(tiny())
    assert load_spec(spec) is spec


@pytest.mark.parametrize("name", SHIPPED)
def test_a_spec_survives_its_plain_form(name):
    spec = load_spec(name)
    assert load_spec({**spec.as_dict(), "yaml_file": name}) == spec


def test_the_plain_form_survives_yaml():
    cfg = tiny(activation="nn.ReLU()", anchors=[[1, 2]], head=[*TINY_HEAD, [[5, 3], 1, "Detect", ["nc", {"a": [1]}]]])
    spec = load_spec(cfg)
    assert load_spec(yaml.safe_load(yaml.safe_dump(spec.as_dict()))) == spec


def test_specs_are_frozen_and_share_nothing_with_what_they_came_from():
    cfg = tiny(head=[*TINY_HEAD, [[5, 3], 1, "Detect", [{"nc": "nc"}]]])
    cfg = copy.deepcopy(cfg)
    spec = load_spec(cfg)
    cfg["head"][-1][3][0]["nc"] = 5
    cfg["backbone"][0][1] = 9
    assert (spec.rows[-1].args, spec.rows[0].number) == (({"nc": "nc"},), 1)
    with pytest.raises(AttributeError):
        spec.nc = 3


def test_replace_leaves_the_original():
    spec = load_spec(tiny())
    assert (spec.replace(nc=9).nc, spec.nc) == (9, 2)


@pytest.mark.parametrize(
    ("row", "stripped"),
    [
        ([-1, 1, "RIFormer", ["s24", {"weights": "a.pth"}]], [-1, 1, "RIFormer", ["s24", {}]]),
        ([-1, 1, "timm", ["x", {"pretrained": True, "a": 1}]], [-1, 1, "timm", ["x", {"a": 1}]]),
        ([-1, 1, "timm", ["x", {"pretrained": False}]], [-1, 1, "timm", ["x", {}]]),
    ],
    ids=str,
)
def test_without_pretrained_no_file_is_named(row, stripped):
    spec = load_spec(tiny(backbone=[row])).without_pretrained()
    assert spec.rows[0].as_list() == stripped


def test_without_pretrained_the_legacy_flag_asks_for_nothing():
    spec = load_spec(tiny(backbone=[[-1, 1, "resnet18", [True]]])).without_pretrained()
    assert True not in spec.rows[0].args


# Refusing -------------------------------------------------------------------------------------------------------------
def without(key):
    return {k: v for k, v in tiny().items() if k != key}


WRONG = {  # name: (YAML, what the message says beside the file)
    "nc missing": (without("nc"), ["'nc' is missing"]),
    "head missing": (without("head"), ["'head' is missing"]),
    "unknown key": (tiny(depth_multipel=1), ["unknown key 'depth_multipel'", "did you mean 'depth_multiple'"]),
    "unknown key, nothing near": (tiny(zzz=1), ["unknown key 'zzz'", "expected nc, depth_multiple"]),
    "key not text": (tiny(**{}) | {5: 1}, ["unknown key '5'"]),
    "nc 0": (tiny(nc=0), ["nc must be a whole number from 1", "got 0"]),
    "nc negative": (tiny(nc=-1), ["nc must be", "got -1"]),
    "nc float": (tiny(nc=2.0), ["nc must be", "got 2.0"]),
    "nc text": (tiny(nc="two"), ["nc must be", "got 'two'"]),
    "nc true": (tiny(nc=True), ["nc must be", "got True"]),
    "nc huge": (tiny(nc=10**9), ["nc must be", "20000"]),
    "nc empty": (tiny(nc=None), ["nc must be", "got None"]),
    "nc list": (tiny(nc=[1]), ["nc must be", "got [1]"]),
    "depth 0": (tiny(depth_multiple=0), ["depth_multiple must be a number above 0", "got 0"]),
    "depth text": (tiny(depth_multiple="0.33x"), ["depth_multiple must be", "got '0.33x'"]),
    "width negative": (tiny(width_multiple=-0.5), ["width_multiple must be", "got -0.5"]),
    "width huge": (tiny(width_multiple=17), ["width_multiple must be", "at most 16"]),
    "width infinite": (tiny(width_multiple=float("inf")), ["width_multiple must be", "got inf"]),
    "width nan": (tiny(width_multiple=float("nan")), ["width_multiple must be", "got nan"]),
    "width true": (tiny(width_multiple=True), ["width_multiple must be", "got True"]),
    "ch 0": (tiny(ch=0), ["ch must be", "got 0"]),
    "activation number": (tiny(activation=3), ["activation must be text", "got 3"]),
    "activation list": (tiny(activation=["nn.ReLU()"]), ["activation must be text"]),
    "backbone mapping": (tiny(backbone={"a": 1}), ["'backbone' must be a list of rows", "mapping"]),
    "head text": (tiny(head="Detect"), ["'head' must be a list of rows", "text"]),
    "no rows": (tiny(backbone=[], head=[]), ["expected 1 to 1000 rows", "got 0"]),
    "rows empty": (tiny(backbone=None, head=None), ["got 0"]),
    "too many rows": (tiny(head=[TINY_DETECT] * 1001), ["rows", "got 1004"]),
    "row of three": (row(-1, 1, "Conv"), ["row 3", "'Conv'", "expected [from, number, module, args]"]),
    "row of five": (row(-1, 1, "Conv", [8], 3), ["row 3", "expected [from, number, module, args]"]),
    "row text": (tiny(head=[*TINY_HEAD, "Detect"]), ["row 6", "'Detect'", "expected [from, number, module, args]"]),
    "row empty": (tiny(head=[None, TINY_DETECT]), ["row 3", "None", "expected [from, number, module, args]"]),
    "from empty": (row([], 1, "Concat", [1]), ["row 3", "'from' must be"]),
    "from float": (row(-1.0, 1, "Conv", [8]), ["row 3", "-1.0", "'from' must be a slot number"]),
    "from null": (row(None, 1, "Conv", [8]), ["row 3", "'from' must be"]),
    "from true": (row(True, 1, "Conv", [8]), ["row 3", "'from' must be"]),
    "from nested": (row([[-1]], 1, "Conv", [8]), ["row 3", "'from' must be"]),
    "from mapping": (row({"a": 1}, 1, "Conv", [8]), ["row 3", "'from' must be"]),
    "number 0": (row(-1, 0, "Conv", [8]), ["row 3", "number must be a whole number from 1", "got 0"]),
    "number float": (row(-1, 1.5, "Conv", [8]), ["row 3", "number must be", "got 1.5"]),
    "number text": (row(-1, "n", "Conv", [8]), ["row 3", "number must be", "got 'n'"]),
    "number huge": (row(-1, 10**6, "Conv", [8]), ["row 3", "number must be", "1000"]),
    "module number": (row(-1, 1, 5, [8]), ["row 3", "module must be a name", "int"]),
    "module null": (row(-1, 1, None, [8]), ["row 3", "module must be a name", "empty"]),
    "module list": (row(-1, 1, ["Conv"], [8]), ["row 3", "module must be a name", "list"]),
    "args number": (row(-1, 1, "Conv", 8), ["row 3", "arguments must be a list", "int"]),
    "args null": (row(-1, 1, "Conv", None), ["row 3", "arguments must be a list", "empty"]),
    "args mapping": (row(-1, 1, "Conv", {"c2": 8}), ["row 3", "arguments must be a list", "mapping"]),
}


@pytest.mark.parametrize(("cfg", "expected"), WRONG.values(), ids=WRONG)
def test_a_wrong_yaml_is_explained(cfg, expected, tmp_path):
    text = complaint(write(tmp_path, cfg))
    for part in ("bad.yaml", *expected):
        assert part in text


HEAD = "head:\n  - [-1, 1, Detect, [nc]]\n"
NOT_A_YAML = {
    "empty": ("", ["must be a mapping", "empty"]),
    "a list": ("- 1\n- 2\n", ["must be a mapping", "list"]),
    "text": ("hello", ["must be a mapping", "text"]),
    "web page": ("<!DOCTYPE html>\n<html><head>\n</head></html>", []),
    "tab": ("nc:\t2\n\thead: []", ["not a YAML file"]),
    "open bracket": (f"nc: 2\n{HEAD}  - [-1, 1", ["not a YAML file", "line"]),
    "two documents": (f"nc: 2\n---\nnc: 3\n{HEAD}", ["not a YAML file"]),
    "list as key": (f"? [1, 2]\n: 3\nnc: 2\n{HEAD}", ["not a YAML file"]),
    "unknown alias": (f"nc: *other\n{HEAD}", ["not a YAML file"]),
    "no such date": (f"nc: 2024-99-99\n{HEAD}", ["bad.yaml"]),
    "endless number": (f"nc: {'9' * 5000}\n{HEAD}", ["bad.yaml"]),
    "endless hexadecimal": (f"nc: 0x{'f' * 9000}\n{HEAD}", ["bad.yaml"]),
    "contains itself": ("nc: 2\nhead:\n  - &a [-1, 1, Detect, [*a]]\n", ["bad.yaml"]),
    "anchors contain themselves": (f"nc: 2\nanchors: &a [*a]\n{HEAD}", ["bad.yaml"]),
    "deep": (f"nc: 2\nanchors: {'[' * 1000}{']' * 1000}\n{HEAD}", ["bad.yaml"]),
    "too large": (f"nc: 2\n{HEAD}#" + "x" * MAX_BYTES, ["larger than 1,000,000 bytes"]),
}


@pytest.mark.parametrize(("content", "expected"), NOT_A_YAML.values(), ids=NOT_A_YAML)
def test_another_kind_of_file_is_explained(content, expected, tmp_path):
    text = complaint(write(tmp_path, content))
    for part in ("bad.yaml", *expected):
        assert part in text


@pytest.mark.parametrize("content", [b"\xff\xfe\x00nc", b"nc: \x00 2", b"\x89PNG\r\n\x1a\n" + bytes(100)])
def test_bytes_are_explained(content, tmp_path):
    (tmp_path / "bad.yaml").write_bytes(content)
    assert "bad.yaml" in complaint(tmp_path / "bad.yaml")


def test_aliases_of_aliases_do_not_grow_without_bound(tmp_path):
    lines = ["a0: &a0 [0, 0, 0, 0, 0, 0, 0, 0]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 7)]
    text = "nc: 2\nhead:\n  - [-1, 1, Detect, [nc]]\nanchors:\n" + "\n".join(f"  {line}" for line in lines)
    complaint(write(tmp_path, text))  # 8^7 numbers from 500 bytes


def test_a_missing_file_is_explained():
    assert "did you mean 'riformer-yolo.yaml'" in complaint("rifromer-yolo.yaml")
    assert "neither as a path nor in" in complaint("/nowhere/at/all.yaml")


@pytest.mark.parametrize("name", ["", ".", "a" * 5000, "a\0b", "models", "/dev/null/x"])
def test_an_impossible_name_is_explained(name):
    assert complaint(name)


def test_find_config_says_where_a_file_is():
    assert find_config("yolov5n") == CONFIGS / "yolov5n.yaml"
    assert load_spec("yolov5n").file == CONFIGS / "yolov5n.yaml"
    assert load_spec("ultralytics:yolo11n").file is None


def test_a_file_beside_the_missing_one_is_suggested(tmp_path):
    write(tmp_path, tiny(), "mine.yaml")
    assert "did you mean 'mine.yaml'" in complaint(tmp_path / "mien.yaml")


# YAMLs by name --------------------------------------------------------------------------------------------------------
def test_a_backbone_of_timm_stands_in_the_yaml_for_timm():
    named, ours = load_spec("timm:resnet18.a1_in1k"), load_spec("timm-yolo")
    assert named.name == "timm-resnet18.a1_in1k.yaml"
    assert named.rows[0].args == ("resnet18.a1_in1k", *ours.rows[0].args[1:])
    assert named.rows[1:] == ours.rows[1:]


@pytest.mark.parametrize(
    ("name", "file", "size"),
    [
        ("yolo11n", "yolo11", "n"),
        ("yolo26x-p2", "yolo26-p2", "x"),
        ("yolov8s-seg-p6", "yolov8-seg-p6", "s"),
        ("yolov8m-cls-resnet50", "yolov8-cls-resnet50", "m"),
        ("yolov9t", "yolov9t", None),
        ("yolov10b", "yolov10b", "b"),
        ("yolov3-tiny", "yolov3-tiny", None),
    ],
)
def test_a_yaml_of_ultralytics_is_what_a_copy_of_the_file_is(name, file, size, tmp_path, caplog):
    content = THEIRS[file].read_text()
    copied = load_spec(write(tmp_path, f"scale: {size}\n{content}" if size else content, f"{name}.yaml"))
    named = load_spec(f"ultralytics:{name}")
    assert named.name == f"ultralytics-{name}.yaml"
    assert named.as_dict() == copied.as_dict()
    assert "is built in size" not in caplog.text
    assert load_spec(write(tmp_path, yaml.safe_dump(named.as_dict()), named.name)) == named  # as a run keeps it


def test_every_yaml_of_ultralytics_has_a_name():
    for name, path in THEIRS.items():
        assert read_ultralytics(name) == yaml.safe_load(path.read_text())


def test_without_the_letter_of_a_size_it_is_the_first(caplog):
    assert load_spec("ultralytics:yolo26").as_dict() == load_spec("ultralytics:yolo26n").as_dict()
    assert "ultralytics-yolo26.yaml is built in size n" in caplog.text


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        ("ultralytics:yolo99", "ultralytics has no such model as 'yolo99' (did you mean 'yolo"),
        ("ultralytics:YOLO26n", "(did you mean 'yolo26n'?)"),
        ("ultralytics:yolo26n.yaml", "(did you mean 'yolo26n'?)"),
        ("ultralytics:yolov3n", "ultralytics has no such model as 'yolov3n'"),  # which has no sizes
        ("ultralytics:yolo11n11", "ultralytics has no such model"),
        ("ultralytics:../11/yolo11", "ultralytics has no such model as '../11/yolo11'"),
        ("ultralytics:*", "ultralytics has no such model as '*'"),
        ("ultralytics:", "ultralytics: is no model YAML: the name behind it is missing"),
        ("timm: ", "the name behind it is missing"),
        ("ultralytics-trainer:yolo26n", "nor by a name behind timm: or ultralytics: (did you mean 'ultralytics:'?)"),
        ("TIMM:resnet18", "(did you mean 'timm:'?)"),
        (r"C:\nets\mine.yaml", r"no model YAML 'C:\\nets\\mine.yaml', neither as a path nor by a name behind"),
        ("C:" + "x" * 5000, "no model YAML 'C:xxx"),
    ],
)
def test_a_wrong_name_is_explained(cfg, said):
    assert said in complaint(cfg)


def test_a_file_with_a_colon_is_one_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine:net.yaml", "timm:resnet18", "ultralytics:yolo11n"):
        write(tmp_path, tiny(), name)
    assert load_spec("mine:net.yaml").as_dict() == load_spec("./timm:resnet18").as_dict() == load_spec(tiny()).as_dict()
    assert load_spec("ultralytics:yolo11n").nc == 80


def test_a_name_means_the_same_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, tiny(), "net.yaml")
    assert whole_name("net.yaml") == str(tmp_path / "net.yaml")
    assert whole_name("yolov5n") == str(CONFIGS / "yolov5n.yaml")
    assert whole_name("timm:resnet18") == "timm:resnet18"


def test_names_are_names_of_files():
    names = ["yolov5n", "nets/mine.v2.yaml", "timm:hf_hub:a/../b c", r"ultralytics:a\b"]
    assert [*map(stem_of, names)] == ["yolov5n", "mine.v2", "timm-hf_hub-a-..-b-c", "ultralytics-a-b"]


# Not run --------------------------------------------------------------------------------------------------------------
def code(marker):
    return f"__import__('pathlib').Path('{marker}').touch()"


@pytest.mark.parametrize("key", ["nc", "ch", "depth_multiple", "width_multiple", "anchors", "activation", "head"])
def test_code_in_a_key_is_text(key, tmp_path):
    marker = tmp_path / "marker"
    with contextlib.suppress(ConfigError):
        load_spec(write(tmp_path, {**tiny(), key: code(marker)}))
    assert not marker.exists()


@pytest.mark.parametrize("column", range(4))
def test_code_in_a_column_is_text(column, tmp_path):
    marker = tmp_path / "marker"
    entries = [-1, 1, "Conv", [8]]
    entries[column] = [code(marker)] if column == 3 else code(marker)
    with contextlib.suppress(ConfigError):
        load_spec(write(tmp_path, row(*entries)))
    assert not marker.exists()


def test_yaml_tags_are_refused(tmp_path):
    marker = tmp_path / "marker"
    tag = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]"
    assert "not a YAML file" in complaint(write(tmp_path, f"nc: {tag}\n{HEAD}"))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("SiLU", Call("SiLU")),
        ("nn.SiLU()", Call("SiLU")),
        ("torch.nn.LeakyReLU(0.1)", Call("LeakyReLU", (0.1,))),
        (" nn.LeakyReLU( -0.1 , inplace = True ) ", Call("LeakyReLU", (-0.1,), (("inplace", True),))),
        ("nn.X('a', [1], None)", Call("X", ("a", [1], None))),
    ],
)
def test_calls_with_plain_values_are_read(text, call):
    assert parse_call(text) == call


@pytest.mark.parametrize(
    "text",
    [
        *("", "nn.", "nn.nn.SiLU", "os.system('ls')", "torch.SiLU()", "SiLU(", "SiLU)", "SiLU()()", "SiLU(x)"),
        *("SiLU(__import__('os'))", "SiLU(), __import__('os')", "SiLU(1 + 1 if x else y)", "SiLU(*[1])", "SiLU(**{})"),
        *("SiLU(lambda: 0)", "SiLU([x for x in y])", "SiLU(f'{x}')", "(SiLU)()", "SiLU() # x\n()"),
        *("SiLU\0()", "SiLU(" + "(" * 500 + ")" * 500 + ")", "SiLU(" + "9" * 5000 + ")", "nn.SiLU() or x", "SiLU;x"),
    ],
    ids=lambda text: repr(text[:24]),
)
def test_anything_else_is_no_call(text):
    with pytest.raises(ValueError, match="is not a name or a call with plain values"):
        parse_call(text)


# At random ------------------------------------------------------------------------------------------------------------
def test_mutated_yamls_are_read_or_explained(tmp_path):
    rng, read = random.Random(0), 0
    for _ in range(500):
        cfg = mutated(rng)
        try:
            load_spec(write(tmp_path, cfg) if rng.random() < 0.2 else cfg)
            read += 1
        except ConfigError as e:
            assert len(str(e)) < 700, cfg
    assert 50 < read < 450, "the changes are too wild or too tame to tell anything"
