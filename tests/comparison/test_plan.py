"""The plan of a comparison: what it holds, what is refused of it, and the commands of its jobs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import compare
import export
from models.errors import UserError
from tests.comparisons import PLANNED, make_plan
from tests.helpers import tiny
from tests.runs import make_data
from utils.comparison import train_ultralytics
from utils.comparison.entries import Entry
from utils.comparison.plan import Plan, kind_of, load_plan, named
from utils.comparison.work import command_lines
from utils.paths import ROOT


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
