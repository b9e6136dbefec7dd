"""compare.py: what it plans, that a kill loses nothing, and that one failure stops nothing."""

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure

import compare
import export
import train
from models.errors import UserError
from tests.comparison.kills import Done
from tests.comparisons import make_comparison, make_networks
from tests.helpers import tiny, write
from tests.networks import NAMES as DISC_NAMES
from tests.runs import make_data
from utils import cli, convert
from utils.checkpoint import load_checkpoint
from utils.checkpoint.foreign import read_model
from utils.checkpoint.unpickle import read_pickled
from utils.comparison import train_ultralytics, work
from utils.comparison.detections import Detections
from utils.comparison.entries import Entry, find_entries
from utils.comparison.measure import finish, load_found, trained_minutes
from utils.comparison.options import LONGEST
from utils.comparison.plan import Job, Plan, kind_of, load_plan, named
from utils.comparison.report import Compared, cells, counted, draw, frontier, text_table, verdict
from utils.comparison.statistics import Estimate
from utils.comparison.work import command_lines
from utils.comparison.work import start as start_step
from utils.data.description import load_dataset
from utils.data.files import list_images
from utils.data.shapes import NAMES, Recipe, ensure_shapes
from utils.distributed.scripts import why_ended
from utils.latency import Latency

ROOT = Path(__file__).parents[2]
PLANNED = {"data": "d.yaml", "imgsz": 64, "batch_size": 2, "seeds": 1, "runtime": "onnx", "int8": False}
BREAKS = """
from torch import nn

from models import BACKBONES, Backbone


@BACKBONES.register("Breaks")
class Breaks(Backbone):
    archs = ("small",)

    def __init__(self, arch="small", in_channels=3, out_strides=None):
        super().__init__()
        self.in_channels, self.strides, self.channels = in_channels, (4, 8), (16, 32)
        self.layers = nn.ModuleList([nn.Conv2d(in_channels, 16, 4, 4), nn.Conv2d(16, 32, 2, 2)])
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        if self.calls > 8:
            raise RuntimeError("it broke on purpose")
        first = self.layers[0](x)
        return [first, self.layers[1](first)]
"""


# Entries --------------------------------------------------------------------------------------------------------------
def test_entries_are_yamls_and_backbones_of_timm_and_models_of_ultralytics():
    words = "yolov5n timm:resnet18 ultralytics:yolo11n ultralytics:yolov8s ultralytics-trainer:yolo11n"
    entries = find_entries(words.split())
    assert [entry.name for entry in entries] == [
        "yolov5n",
        "timm-resnet18",
        "ultralytics-yolo11n",
        "ultralytics-yolov8s",
        "ultralytics-trainer-yolo11n",
    ]
    assert entries[1].cfg["backbone"][0][3][0] == "resnet18"
    assert [entry.cfg["width_multiple"] for entry in entries[2:]] == [0.25, 0.5, 0.25]
    assert [(entry.trainer, entry.model) for entry in entries[3:]] == [
        ("repyolo", "yolov8s"),
        ("ultralytics", "yolo11n"),
    ]


def test_names_of_timm_are_kept_whole():
    entries = find_entries(["timm:resnet18.a1_in1k", "timm:resnet18.a2_in1k"])
    assert [entry.name for entry in entries] == ["timm-resnet18.a1_in1k", "timm-resnet18.a2_in1k"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["yolov5n", "yolov5n.yaml"], "--cfg names yolov5n twice"),
        (["timm:resnet18", "timm:resnet18"], "--cfg names timm-resnet18 twice"),
        (["ultralytics-trainer:"], "the name behind it is missing"),
        (["ultralytics:yolo11n-cls"], "ultralytics-yolo11n-cls is for the task classify"),
        (["yolov5n", "repvgg-cls"], "repvgg-cls is for the task classify"),
        (["yolov5n", "yolov5n-seg"], "networks of one task can be compared"),
        (["yolov5m5"], "no model YAML .yolov5m5"),
        (["ultralytics:yolo99n"], "ultralytics has no such model"),
        (["ultralytics-trainer:../11/yolo11"], "ultralytics has no such model"),
    ],
)
def test_wrong_entries_are_told(words, said):
    with pytest.raises(UserError, match=said):
        find_entries(words)


def test_entries_have_options_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    teacher = tmp_path / "runs/large/weights/best.pt"
    teacher.parent.mkdir(parents=True)
    teacher.write_bytes(b"weights")
    words = ["yolov5n", "yolov5n --teacher runs/large/weights/best.pt --cos-lr", "yolov5n --freeze backbone neck"]
    plain, taught, frozen = find_entries(words)
    assert [entry.name for entry in (plain, taught, frozen)] == [
        "yolov5n",
        "yolov5n--cos-lr--teacher-large",
        "yolov5n--freeze-backbone-neck",
    ]
    assert plain.options == () and plain.cfg == taught.cfg == frozen.cfg
    assert taught.options == ("--cos-lr", f"--teacher={teacher}")
    assert list(taught.files) == [str(teacher)]
    plan = Plan(tmp_path, {**PLANNED, "hyp": "all.yaml"}, [taught, frozen], {taught.name: 3, frozen.name: 3})
    plan.save()
    assert load_plan(tmp_path) == plan
    (job, _) = plan.jobs()
    job.folder.mkdir(parents=True)
    first, *_ = command_lines(plan, job, "cpu", compare.make_parser().parse_args([]))
    options = train.make_parser().parse_args(first[1:])
    assert (options.teacher, options.cos_lr, options.epochs, options.hyp) == (str(teacher), True, 3, "all.yaml")
    assert compare.read_plan(tmp_path).entries == [taught, frozen]
    teacher.write_bytes(b"others")
    with pytest.raises(UserError, match="is no longer what it was"):
        compare.resumed_plan(compare.make_parser().parse_args(["--resume", str(tmp_path)]))


def test_names_of_entries_with_options_are_names_of_folders():
    (entry,) = find_entries([f"yolov5n --freeze {'backbone.stages.0-1 ' * 20}"])
    (other,) = find_entries([f"yolov5n --freeze {'backbone.stages.0-1 ' * 21}"])
    assert len(entry.name) == len(other.name) == LONGEST
    assert entry.name != other.name
    (entry,) = find_entries(["yolov5n --teacher 'timm:a/../b c'"])
    assert entry.name == "yolov5n--teacher-timm-a-..-b-c"


def test_entries_with_files_of_one_name_have_names_of_their_own(tmp_path):
    files = [tmp_path / folder / "best.pt" for folder in ("a", "b", "runs/large/weights")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"weights")
    names = [entry.name for entry in find_entries([f"yolov5n --teacher {file}" for file in files])]
    assert names[0] == "yolov5n--teacher-best"
    assert re.fullmatch(r"yolov5n--teacher-best-[0-9a-f]{8}", names[1])
    assert names[2] == "yolov5n--teacher-large"
    with pytest.raises(UserError, match="names yolov5n--teacher-best twice"):
        find_entries([f"yolov5n --teacher {files[0]}"] * 2)


def test_a_file_that_changes_while_others_train_fails_its_own_trainings(tmp_path):
    teacher = tmp_path / "best.pt"
    teacher.write_bytes(b"weights")
    plain, taught = find_entries(["yolov5n", f"yolov5n --teacher {teacher}"])
    plan = Plan(tmp_path, {**PLANNED, "hyp": ""}, [plain, taught], {plain.name: 3, taught.name: 3})
    plan.save()
    args = compare.make_parser().parse_args([])
    _, job = plan.jobs()
    teacher.write_bytes(b"others")
    assert work.begin(plan, job, "cpu", args) is None
    assert "is no longer what it was" in job.result()["problem"]
    lock = job.take()
    assert lock is not None
    os.close(lock)
    assert compare.about(plan, args)["files"] == taught.files


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("yolov5n --teecher best.pt", "there is no option --teecher .did you mean '--teacher'"),
        ("yolov5n --epochs 3", "--epochs is the same for all entries: it is an option of compare.py"),
        ("yolov5n --batch-size 3", "--batch-size is the same for all entries"),
        ("yolov5n --qat --weights best.pt", "--qat cannot be compared"),
        ("yolov5n --hyp 'a", "no closing quotation"),
        ("ultralytics-trainer:yolo11n --teacher ema", "--teacher behind the name of an entry is for entries"),
        ("yolov5n --lr-backbone -1", "--lr-backbone"),
        ("yolov5n --help", "there is no option --help"),
    ],
)
def test_wrong_options_of_entries_are_told(word, said):
    with pytest.raises(UserError, match=said):
        find_entries([word])


@pytest.mark.parametrize(
    "options", [["--plugins", "evil.py"], ["evil.py"], ["--epochs", "9"], ["--teacher", "ema"], [1], "x", {"a": 1}, 7]
)
def test_a_plan_holds_no_other_options_of_entries(tmp_path, options):
    plan = make_plan(tmp_path)
    plan.save()
    content = json.loads((tmp_path / "plan.json").read_text())
    content["entries"][0]["options"] = options
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(UserError):
        compare.read_plan(tmp_path)


# Plans ----------------------------------------------------------------------------------------------------------------
def make_plan(folder: Path, **options) -> Plan:
    plan = Plan(
        folder,
        {"data": str(make_data(folder)), "seeds": 2, "runtime": "onnx", "int8": False, **options},
        [Entry("a", tiny()), Entry("b", tiny())],
        {"a": 3, "b": 4},
    )
    plan.save()
    return plan


def test_a_plan_is_read_as_it_was_written(tmp_path):
    plan = make_plan(tmp_path)
    assert load_plan(tmp_path) == plan
    assert [job.name for job in plan.jobs()] == ["a-0", "b-0", "a-1", "b-1"]


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 9999, '{"options": {}, "entries": [{}], "epochs": {}}'])
def test_a_damaged_plan_is_told(tmp_path, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        load_plan(tmp_path)


@pytest.mark.parametrize("name", ["../../a", "a/b", "", "$(a)", "\ud800", 7, None, "b"])
def test_a_plan_names_no_other_folders(tmp_path, name):
    make_plan(tmp_path)
    content = json.loads((tmp_path / "plan.json").read_text())
    content["entries"][0]["name"] = name
    content["epochs"][str(name)] = 3
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is damaged"):
        load_plan(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer": "os.system"},
        {"trainer": ["ultralytics"]},
        {"trainer": "ultralytics"},
        {"trainer": "ultralytics", "model": "../yolo11n"},
        {"trainer": "ultralytics", "model": "--plugins=evil.py"},
        {"model": 7},
    ],
    ids=str,
)
def test_a_plan_names_no_other_trainers(tmp_path, changes):
    make_plan(tmp_path)
    content = json.loads((tmp_path / "plan.json").read_text())
    content["entries"][0] |= changes
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is damaged"):
        load_plan(tmp_path)


def test_a_plan_of_an_earlier_version_says_nothing_of_trainers_and_options(tmp_path):
    plan = make_plan(tmp_path)
    content = json.loads((tmp_path / "plan.json").read_text())
    for entry in content["entries"]:
        del entry["trainer"], entry["model"], entry["options"], entry["files"]
    (tmp_path / "plan.json").write_text(json.dumps(content))
    assert load_plan(tmp_path) == plan


def test_ultralytics_trains_anew_until_its_weights_are_converted(tmp_path):
    entry = Entry("u", tiny(), "ultralytics", "yolo11n")
    plan = Plan(tmp_path, {**PLANNED, "hyp": "h.yaml"}, [entry], {"u": 3})
    job = plan.jobs()[0]
    args = compare.make_parser().parse_args(["--megapixels", "7"])
    (job.run / "weights").mkdir(parents=True)
    (job.run / "weights/last.pt").touch()
    (training, conversion, *others) = command_lines(plan, job, "cpu", args)
    assert training[:2] == ["-m", "utils.comparison.train_ultralytics"]
    options = train_ultralytics.make_parser().parse_args(training[2:])
    assert (options.cfg, options.epochs, options.imgsz, options.batch_size) == ("yolo11n", 3, 64, 2)
    assert (options.seed, options.device, options.megapixels, options.exist_ok) == (0, "cpu", 7, True)
    assert conversion == ["-m", "utils.convert", str(job.run / "weights/best.pt"), "--output", str(job.weights)]
    job.weights.touch()
    assert command_lines(plan, job, "cpu", args) == others
    assert [words[0] for words in others] == ["export.py", "compare.py"]


def test_files_are_written_for_each_runtime_and_at_the_size_of_the_timing(tmp_path):
    options = {"runtime": ["onnx", "openvino"], "int8": True, "imgsz": 64, "time_imgsz": 96}
    plan = make_plan(tmp_path, hyp="", batch_size=2, **options)
    args = compare.make_parser().parse_args([])
    first, _, again, _ = plan.jobs()
    assert list(first.files) == ["onnx", "onnx-int8", "openvino", "openvino-int8"]
    assert {path.parent for path in first.timed_files.values()} == {first.folder / "timed"}
    assert again.timed_files == again.files
    folders = {path.parent for path in first.files.values()}
    for job, sizes in ((first, [None, [96]]), (again, [None])):
        job.folder.mkdir(parents=True)
        exports = [words for words in command_lines(plan, job, "", args) if words[0] == "export.py"]
        parsed = [export.make_parser().parse_args(words[1:]) for words in exports]
        assert [one.imgsz for one in parsed] == sizes
        assert all(one.include == ["onnx", "openvino"] and one.int8 for one in parsed)
        folders |= {Path(one.output) for one in parsed if one.output}
    assert folders == {first.weights.parent, first.folder / "timed"}
    plan.options["time_imgsz"] = 64
    assert all(job.timed_files == job.files for job in plan.jobs())


def test_several_data_sets_have_folders_of_their_own(tmp_path):
    data = ["/sets/bccd.yaml", "/sets/deep pcb.yaml"]
    plan = make_plan(tmp_path, data=data, imgsz=64, time_imgsz=96)
    names = ["a@bccd", "b@bccd", "a@deep-pcb", "b@deep-pcb"]
    plan.epochs.clear()
    plan.epochs.update(zip(names, (1, 2, 3, 4), strict=True))
    plan.save()
    assert load_plan(tmp_path) == plan
    jobs = plan.jobs()
    assert [job.name for job in jobs] == [f"{name}-{seed}" for seed in (0, 1) for name in names]
    assert [job.data for job in jobs[:4]] == [data[0], data[0], data[1], data[1]]
    assert [job.time_imgsz for job in jobs] == [96, 96, *[None] * 6]
    assert [plan.epochs[job.kind] for job in jobs[:4]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["/a/data.yaml"], [""]),
        (["/a/x.yaml", "/b/y.yaml"], ["x", "y"]),
        (["/a/data.yaml", "/b/data.yaml"], ["a-data", "b-data"]),
        (["/a/../x.yaml", "/b/x.yaml"], ["..-x", "b-x"]),
    ],
)
def test_data_sets_have_names(files, names):
    assert named(files) == dict(zip(names, files, strict=True))


@pytest.mark.parametrize("files", [[], ["/a.yaml", 7], ["/a.yaml", "/a.yaml"], ["/a.yaml", ""], [{}], [None, None]])
def test_a_plan_names_each_data_set_once(tmp_path, files):
    make_plan(tmp_path)
    content = json.loads((tmp_path / "plan.json").read_text())
    content["options"]["data"] = files
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="is damaged"):
        load_plan(tmp_path)


@pytest.mark.parametrize("other", ["/dev/zero", "http://192.0.2.1/x.yaml", "--plugins=evil.py", "none.yaml"])
def test_data_sets_of_a_plan_are_checked_as_those_of_a_command_line(tmp_path, other):
    files = [str(make_data(tmp_path)), other]
    plan = make_plan(tmp_path, data=files)
    plan.epochs.update({kind_of(entry, name): 1 for entry in ("a", "b") for name in named(files)})
    plan.save()
    with pytest.raises(UserError):
        compare.resumed_plan(compare.make_parser().parse_args(["--resume", str(tmp_path)]))


def test_a_data_set_that_is_named_twice_is_told(data):
    twice = [str(data), str(data.parent / "images/.." / data.name)]
    with pytest.raises(UserError, match=r"--data names .* twice"):
        compare.new_plan(compare.make_parser().parse_args(["--cfg", "yolov5n", "--data", *twice]))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--threads", "1", "1"], "--threads names 1 twice"),
        (["--runtime", "onnx", "openvino", "onnx"], "--runtime names onnx twice"),
        (["--threads", "0"], "--threads"),
        (["--runtime", "onnx", "zip"], "--runtime"),
    ],
)
def test_wrong_numbers_of_values_are_told(words, said):
    with pytest.raises(UserError, match=said):
        compare.make_parser().parse_args(words)


def test_one_value_stays_one_and_several_are_a_list():
    parser = compare.make_parser()
    args = parser.parse_args(["--threads", "1", "2", "--runtime", "onnx"])
    assert (args.threads, args.runtime) == ([1, 2], "onnx")
    again = parser.from_keywords(threads=args.threads, runtime=args.runtime)
    assert (again.threads, again.runtime) == (args.threads, args.runtime)


@pytest.mark.slow
def test_a_module_runs_as_a_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "utils.py").write_text("raise SystemExit('the wrong utils')")
    job = Job(Entry("a", {}), 0, tmp_path / "a-0", "")
    lock = job.take()
    args = compare.make_parser().parse_args([])
    process = start_step(["-m", "utils.convert", str(tmp_path / "none.pt")], job, lock, args)
    assert process.wait(timeout=100) == 2
    assert "there is no weights file" in why_ended(job.log, 2)
    os.close(lock)


SOUND = {"minutes": 1.0, "params": 9, "maps": {"onnx": 0.5}, "sizes": {"small": 0.25}, "input": [3, 64, 64]}


def test_a_result_is_read_as_it_was_written(tmp_path):
    job = Job(Entry("a", {}), 0, tmp_path, "")
    assert job.result() is None
    job.end(**SOUND)
    assert job.result() == SOUND


@pytest.mark.parametrize("changes", [{"minutes": None}, {"params": -1}, {"maps": {}}, {"input": [3, 10**9, 10**9]}])
def test_a_damaged_result_is_told(tmp_path, changes):
    job = Job(Entry("a", {}), 0, tmp_path, "")
    job.end(**{**SOUND, **changes})
    with pytest.raises(UserError, match=r"result.json is damaged: remove it"):
        job.result()


def found_objects(**changes) -> Detections:
    """Return one object that is found in the second of two pictures."""
    one = {"tp": np.ones((1, 10), bool), "conf": np.ones(1), "names": ["0.png", "1.png"]}
    return Detections(
        **{**one, **{key: np.ones(1, int) for key in ("cls", "picture", "true_cls", "true_picture")}, **changes}
    )


def test_what_was_found_is_read_as_it_was_written(tmp_path):
    found_objects().save(tmp_path / "found.npz")
    read, want = (vars(found) for found in (Detections.load(tmp_path / "found.npz"), found_objects()))
    assert all(np.array_equal(read[key], value) for key, value in want.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"conf": np.ones(2)},
        {"conf": np.full(1, np.nan)},
        {"conf": np.array(["a"])},
        {"tp": np.ones((1, 9), bool)},
        {"picture": np.full(1, 2)},
        {"true_cls": np.full(1, -1)},
        {"names": []},
    ],
    ids=str,
)
def test_damaged_detections_are_told(tmp_path, changes):
    found_objects(**changes).save(tmp_path / "found.npz")
    with pytest.raises(UserError, match=r"found\.npz is damaged"):
        Detections.load(tmp_path / "found.npz")


def test_detections_in_other_pictures_are_told(tmp_path):
    data = load_dataset(make_data(tmp_path))
    job = Job(Entry("a", {}), 0, tmp_path, "")
    pictures = list_images(data["val"])
    found_objects(names=pictures).save(job.found)
    assert load_found(job, data).names == pictures
    for others in ({"names": [pictures[0], "/dev/zero"]}, {"names": pictures, "true_cls": np.full(1, 2)}):
        found_objects(**others).save(job.found)
        with pytest.raises(UserError, match="is not of the val pictures of"):
            load_found(job, data)


def test_options_of_a_plan_are_checked_as_those_of_a_command_line(tmp_path):
    make_plan(tmp_path, imgsz="wide")
    with pytest.raises(UserError, match="--imgsz"):
        compare.read_plan(tmp_path)


def test_another_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="is not the folder of a comparison"):
        load_plan(tmp_path)


def test_a_job_is_taken_once_and_free_after_a_kill(tmp_path):
    job = make_plan(tmp_path).jobs()[0]
    code = (
        "import sys, time; from pathlib import Path; from utils.comparison.plan import load_plan\n"
        f"print(load_plan(Path({str(tmp_path)!r})).jobs()[0].take() is not None, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "True\n"
        assert job.take() is None
    finally:
        holder.kill()
        holder.wait()
    assert job.take() is not None


def test_only_what_changes_no_result_may_change_when_it_goes_on(tmp_path):
    make_plan(tmp_path)
    parser = compare.make_parser()
    with pytest.raises(UserError, match="--seeds cannot be changed in a comparison that goes on"):
        compare.resumed_plan(parser.parse_args(["--resume", str(tmp_path), "--seeds", "5"]))
    args = parser.parse_args(["--resume", str(tmp_path), "--jobs", "2"])
    assert compare.resumed_plan(args).options["seeds"] == args.seeds == 2


def test_what_failed_is_tried_again(tmp_path):
    done, failed, *_ = make_plan(tmp_path).jobs()
    for job in (done, failed):
        job.folder.mkdir(parents=True)
    done.end(**SOUND)
    failed.end(problem="no memory")
    compare.resumed_plan(compare.make_parser().parse_args(["--resume", str(tmp_path)]))
    assert done.result() == SOUND
    assert failed.result() is None


def test_the_time_of_a_run_that_was_resumed_adds_up(tmp_path):
    (tmp_path / "results.csv").write_text("epoch,time\n1,60\n2,120\n3,30\n4,90\n")
    assert trained_minutes(tmp_path / "results.csv") == 3.5


@pytest.mark.slow
def test_what_ultralytics_trains_becomes_a_checkpoint_of_ours(data, tmp_path):
    secret, place = tmp_path / "secret.txt", tmp_path / "runs/exp"
    secret.write_text("stays")
    (place / "weights").mkdir(parents=True)
    (place / "weights/last.pt").symlink_to(secret)
    settings = {"data": data, "epochs": 1, "imgsz": 64, "batch_size": 4, "device": "cpu", "exist_ok": True}
    folder = train_ultralytics.run(cfg="yolo11n", project=tmp_path / "runs", **settings)
    assert folder == place
    assert secret.read_text() == "stays"
    assert trained_minutes(folder / "results.csv") > 0
    trained = read_model(read_pickled(folder / "weights/best.pt"), "best.pt").tensors
    converted = load_checkpoint(convert.run(folder / "weights/best.pt"))
    assert (converted.nc, converted.names, converted.imgsz) == (len(NAMES), dict(enumerate(NAMES)), 64)
    assert all(
        torch.equal(converted.state_dict()[key], tensor.float()) for key, tensor in trained.items() if tensor.ndim
    )
    assert not any(path.suffix in (".cache", ".npy") for path in data.parent.rglob("*"))


# What is said ---------------------------------------------------------------------------------------------------------
class Fixed:
    """A sample with these accuracies, of which some may be equal to the best one."""

    def __init__(self, scores, equals):
        self.scores = {name: np.array([score]) for name, score in scores.items()}
        self.best, self.equals, self.ranked = lambda: next(iter(scores)), lambda: equals, lambda: list(scores)
        self.data_sets = 1
        self.accuracy = lambda name: Estimate(scores[name], 0.01)
        self.difference = lambda a, b: Estimate(scores[a] - scores[b], 0.02)


@pytest.mark.parametrize(
    ("equals", "said"),
    [
        (["a"], "a is the best on this data: mAP50-95 50.0 ± 1.0. The next is b, 1.0 ± 2.0 points behind."),
        (["a", "b"], "The data cannot tell b from a, .* Of these b is the fastest, 2.0 ms a picture."),
        (["a", "d"], "The data cannot tell d from a, .* They are as fast as each other, 8.9 ms a picture."),
    ],
)
def test_the_winner_is_named_or_that_there_is_none(equals, said):
    rows = [
        Compared(name, 3, by_threads={1: {"onnx": Latency((ms,))}})
        for name, ms in (("a", 9.0), ("b", 2.0), ("c", 1.0), ("d", 8.9))
    ]
    assert re.match(said, verdict(Fixed({"a": 0.5, "b": 0.49, "c": 0.1, "d": 0.48}, equals), rows))


def test_the_table_has_the_best_first_and_failures_last():
    rows = [
        Compared("broken", 3, problem="no memory"),
        Compared("b", 3, accuracy=Estimate(0.4, 0.01), by_threads={1: {"onnx": Latency((2.0,))}}),
        Compared("a", 3, accuracy=Estimate(0.5, 0.01), by_threads={1: {"onnx": Latency((9.0,))}}),
        Compared("c", 3, accuracy=Estimate(0.3, 0.01), by_threads={1: {"onnx": Latency((5.0,))}}),
    ]
    lines = cells(rows)
    assert [line[0] for line in lines] == ["", "a", "b", "c", "broken"]
    assert lines[-1][-1] == "no memory"
    assert len({len(line) for line in text_table(lines).splitlines()}) == 1
    assert frontier(rows) == [(2.0, 40.0), (9.0, 50.0)]


def test_long_names_of_entries_stay_inside_the_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    names = ["short", "yolov5n" + "--freeze-backbone.stages.0-1" * 4, "m" * 200]
    draw([Compared(name, 3, accuracy=Estimate(0.5, 0.01)) for name in names], tmp_path / "a.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    legend, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0 and legend.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= legend.y0 and legend.y1 < axes.y0
    assert axes.height > 0.6 * figure.bbox.height


def test_several_runtimes_and_threads_have_their_columns_and_the_fastest_is_named():
    times = {"onnx": 4.0, "onnx-int8": 3.0, "openvino": 2.0, "openvino-int8": 3.5}
    first = {form: Latency((ms,)) for form, ms in times.items()}
    second = {form: Latency((ms / 2,)) for form, ms in times.items()}
    maps = dict.fromkeys(times, 0.5)
    row = Compared("a", 3, accuracy=Estimate(0.5, 0.01), maps=maps, by_threads={2: first, 1: second})
    assert row.milliseconds == 2.0
    head, line = cells([row])
    assert [name for name in head if name.endswith(("thread", "threads"))] == [
        f"{form} ms, {threads}" for threads in ("2 threads", "1 thread") for form in times
    ]
    assert dict(zip(head, line, strict=True))["fastest"] == "openvino onnx-int8"
    assert counted([row]) == "the fastest of onnx, openvino, threads: 2"
    content = row.as_dict()
    assert content["fastest"] == {"float": "openvino", "int8": "onnx-int8"}
    assert content["latency"] == content["latency_by_threads"]["2"]
    assert content["latency_by_threads"]["1"]["openvino"] == {"median_ms": 1.0, "minimum_ms": 1.0}
    assert "by_threads" not in content


# As users run it ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    ensure_shapes(folder, Recipe(side=64, train=16, val=8, test=2, film_side=64, film_frames=2))
    splits = {split: f"images/{split}" for split in ("train", "val")}
    (folder / "data.yaml").write_text(yaml.safe_dump({"path": str(folder), **splits, "names": list(NAMES)}))
    return folder / "data.yaml"


def words(data, *entries):
    options = ["--data", data, "--imgsz", 64, "--batch-size", 4, "--seeds", 1, "--rounds", 2, "--device", "cpu"]
    return [*map(str, ["--cfg", *entries, *options])]


def script(*args):
    return [sys.executable, str(ROOT / "compare.py"), *map(str, args)]


def test_a_dry_run_writes_nothing(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, tiny(), "one.yaml")
    args = words(data, "one.yaml")
    assert compare.main(compare.make_parser().parse_args([*args, "--epochs", "2", "--dry-run"])) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["one.yaml"]


def test_a_budget_gives_the_faster_network_more_epochs(data, tmp_path, monkeypatch):
    seconds = iter([2.0, 6.0])
    monkeypatch.setattr(compare, "epoch_seconds", lambda *_: next(seconds))
    for name in ("fast", "slow"):
        write(tmp_path, tiny(), f"{name}.yaml")
    args = words(data, tmp_path / "fast.yaml", tmp_path / "slow.yaml")
    plan = compare.new_plan(compare.make_parser().parse_args([*args, "--budget-minutes", "1", "--dry-run"]))
    assert plan.epochs == {"fast": 30, "slow": 10}


@pytest.fixture
def steps_here(monkeypatch):
    """Have a comparison do its steps in this process and draw no curves, which takes longer than to train."""

    def start(words, job, lock, args):
        module = importlib.import_module(words[0].removesuffix(".py"))
        plain = ["--noplots"] if words[0] == "train.py" else []
        assert cli.run_script(module.main, module.make_parser(), [*words[1:], *plain]) == 0
        return Done()

    monkeypatch.setattr(work, "start", start)
    monkeypatch.setattr(work, "POLL", 0)


@pytest.mark.slow
def test_a_comparison_that_is_killed_ends_with_the_same_numbers(data, tmp_path, monkeypatch, steps_here):
    """As one that was never stopped, which has done all of its steps in one process."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, tiny(nc=4), "one.yaml")
    (tmp_path / "breaks.py").write_text(BREAKS)
    rows = [[-1, 1, "Breaks", ["small"]]], [[["P2", "P3"], 1, "Detect", ["nc"]]]
    write(tmp_path, {"nc": 4, "backbone": rows[0], "head": rows[1]}, "broken.yaml")
    options = ["--epochs", "3", "--project", ".", "--name"]
    entry = "one.yaml --teacher ema --optimizer SGD"
    whole = [*words(data, entry), *options, "whole"]
    assert cli.run_script(compare.main, compare.make_parser(), whole) == 0
    timing = ["--runtime", "onnx", "torchscript", "--time-imgsz", "96"]
    both = words(data, entry, "broken.yaml", *timing)
    process = start(script(*both, *options, "killed", "--plugins", "breaks.py"), tmp_path)
    name = "one--optimizer-SGD--teacher-ema"
    wait_for(tmp_path / f"killed/jobs/{name}-0/train/weights/last.pt", process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    again = script("--resume", "killed", "--plugins", "breaks.py", "--device", "cpu", "--rounds", 2)
    again += ["--threads", "1", "2"]
    assert start(again, tmp_path).wait(timeout=200) == 0
    jobs = [tmp_path / folder / f"jobs/{name}-0" for folder in ("whole", "killed")]
    whole, killed = (load_checkpoint(job / "train/weights/best.pt").state_dict() for job in jobs)
    assert all(torch.equal(killed[key], value) for key, value in whole.items())
    whole, killed = (vars(Detections.load(job / "found.npz")) for job in jobs)
    assert all(np.array_equal(killed[key], value) for key, value in whole.items())
    found = json.loads((tmp_path / "killed/compare.json").read_text())
    assert [entry["name"] for entry in found["entries"]] == [name, "broken"]
    assert "train/cwd_loss" in (jobs[1] / "train/results.csv").read_text()
    assert "it broke on purpose" in found["entries"][1]["problem"]
    assert found["verdict"]
    one = found["entries"][0]
    assert [list(forms) for forms in one["latency_by_threads"].values()] == [["onnx", "torchscript"]] * 2
    assert one["maps"].keys() == one["latency"].keys()
    assert (jobs[1] / "timed/best.torchscript").is_file()
    assert json.loads((jobs[1] / "result.json").read_text())["input"] == [3, 96, 96]
    page = (tmp_path / "killed/compare.html").read_text()
    assert "it broke on purpose" in page
    assert 'src="http' not in page
    assert page.count("data:image/") == 1


def start(command, folder: Path):
    """Start a process in a group of its own, which says nothing here."""
    return subprocess.Popen(
        command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )


def wait_for(path: Path, process):
    """Wait until a file is there, while a process runs."""
    while not path.is_file():
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.slow
def test_the_mean_over_data_sets_decides(tmp_path):
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(make_data(tmp_path / name, names=list(DISC_NAMES.values())))
    boxes = tmp_path / "two/labels/val"
    for label in boxes.iterdir():
        label.write_text("1 0.64 0.5 0.75 0.75\n")  # where `b` sees it
    for label in (tmp_path / "one/labels/val").iterdir():
        label.write_text("1 0.5 0.5 0.75 0.75\n")
    plan = make_comparison(tmp_path / "exp", files, make_networks(tmp_path))
    for job in plan.jobs():
        finish(job)
    rows = compare.report(plan, compare.make_parser().parse_args(["--rounds", "1"]))
    found = json.loads((tmp_path / "exp/compare.json").read_text())
    assert list(found["data_sets"]) == found["data"] == ["one-data", "two-data"]
    each = [part["entries"] for part in found["data_sets"].values()]
    scores = [[entry["accuracy"]["value"] for entry in entries] for entries in each]
    assert scores[0][0] > scores[0][1] and scores[1][0] < scores[1][1]
    assert [row.accuracy.value for row in rows] == pytest.approx(np.mean(scores, axis=0))
    assert [entry["latency"]["onnx"] for entry in found["entries"]] == [one["latency"]["onnx"] for one in each[1]]
    assert [entry["minutes"] for entry in found["entries"]] == [1, 1]
    assert "2 data sets" in found["verdict"] or "cannot tell" in found["verdict"]
    page = (tmp_path / "exp/compare.html").read_text()
    assert page.count("disagree most") == 2 and "<h1>two-data</h1>" in page


@pytest.mark.slow
def test_a_stop_reaches_the_training(data, tmp_path):
    write(tmp_path, tiny(nc=4), "one.yaml")
    args = [*words(data, "one.yaml"), "--epochs", "200", "--project", ".", "--name", "exp"]
    process = start(script(*args), tmp_path)
    wait_for(tmp_path / "exp/jobs/one-0/train/weights/last.pt", process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert Job(Entry("one", {}), 0, tmp_path / "exp/jobs/one-0", "").take() is not None
