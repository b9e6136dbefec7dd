"""What a comparison compares: entries by their names, with options of their own."""

import os
import re

import pytest

import compare
import train
from models.errors import UserError
from tests.comparisons import PLANNED
from utils.comparison import work
from utils.comparison.entries import find_entries
from utils.comparison.options import LONGEST
from utils.comparison.plan import Plan, load_plan
from utils.comparison.work import command_lines


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
