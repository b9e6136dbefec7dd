"""The frame of the scripts: options, exit codes, run folders, files found by name."""

import argparse
import ctypes
import errno
import importlib
import logging
import os
import re
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from ultralytics.utils import LOGGER
from ultralytics.utils.metrics import ConfusionMatrix
from ultralytics.utils.plotting import plot_labels

import benchmark
import detect
import export
import train
import val
from models import stops
from models.errors import UserError
from utils import cli
from utils.paths import ROOT, check_holds_none, find_file, find_weights, increment_path
from utils.sizes import check_imgsz
from utils.text import printable, quote
from utils.writing import write_text

COMMANDS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("utils/**/*.py")])
    if "\ndef make_parser() -> cli.Parser:" in path.read_text(encoding="utf-8")
]


def make_parser():
    parser = cli.Parser(prog="demo.py")
    parser.add_argument("--weights", default="")
    parser.add_argument("--imgsz", "--img", "--img-size", nargs="+", type=cli.positive_int, default=[640])
    parser.add_argument("--conf-thres", type=cli.fraction, default=0.25)
    parser.add_argument("--max-det", type=cli.positive_int, default=1000)
    parser.add_argument("--vid-rate", type=cli.positive_float, default=1.0)
    parser.add_argument("--side", type=cli.image_side)
    parser.add_argument("--mean", type=cli.finite_float)
    parser.add_argument("--classes", nargs="+", type=cli.non_negative_int)
    parser.add_argument("--device", type=cli.device, default="")
    parser.add_argument("--save-txt", action="store_true")
    parser.add_argument("--fuse", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--resume", nargs="?", const=True, default=False)
    return parser


def exit_code(main, *argv):
    return cli.run_script(main, make_parser(), argv)


def raising(error):
    def main(*_, **__):
        raise error

    return main


# Exit codes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), ("text", 0)])
def test_result_of_main_is_the_exit_code(result, code):
    assert exit_code(lambda args: result) == code


def test_user_error_is_one_sentence_and_2(capsys):
    assert exit_code(raising(UserError("the file\nx is missing"))) == 2
    assert capsys.readouterr().err == "ERROR: the file\\nx is missing\n"


@pytest.mark.parametrize(
    "number",
    [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY],
)
def test_unwritable_output_names_the_path_and_is_2(number, capsys):
    assert exit_code(raising(OSError(number, os.strerror(number), "runs/exp/a.jpg"))) == 2
    assert capsys.readouterr().err == f"ERROR: cannot write runs/exp/a.jpg: {os.strerror(number)}\n"


def test_a_result_whose_name_is_taken_is_named_and_2(tmp_path, capsys):
    (tmp_path / "data.yaml").mkdir()
    (tmp_path / "labels").touch()
    assert exit_code(lambda _: write_text(tmp_path / "data.yaml", "")) == 2
    assert capsys.readouterr().err == f"ERROR: cannot write {tmp_path}/data.yaml: Is a directory\n"
    assert exit_code(lambda _: (tmp_path / "labels").mkdir(exist_ok=True)) == 2
    assert capsys.readouterr().err == f"ERROR: cannot write {tmp_path}/labels: File exists\n"


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ELOOP])
def test_a_name_that_no_file_can_have_is_2(number, capsys):
    assert exit_code(raising(OSError(number, os.strerror(number), "a" * 5000))) == 2
    assert capsys.readouterr().err == f"ERROR: {'a' * 50}...{'a' * 50}: {os.strerror(number)}\n"


@pytest.mark.parametrize("error", [RuntimeError("bug"), ValueError("bug"), OSError(errno.EIO, "bug")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        exit_code(raising(error))


@pytest.mark.parametrize("say", [print, LOGGER.info])
def test_a_reader_that_is_gone_ends_the_program_quietly(say, monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    said = []

    def main(args):
        for number in range(3):
            say("x" * 100_000)
            said.append(number)

    with os.fdopen(write, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        for handler in LOGGER.handlers:
            if type(handler) is logging.StreamHandler:  # not one of pytest
                monkeypatch.setattr(handler, "stream", stream)
        assert exit_code(main) == 141
    assert not said
    assert capfd.readouterr().err == ""


def test_another_broken_pipe_is_a_bug():
    with pytest.raises(BrokenPipeError):
        exit_code(raising(BrokenPipeError(errno.EPIPE, "of a server")))


def test_ctrl_c_is_130():
    assert exit_code(raising(KeyboardInterrupt())) == 130


@pytest.mark.parametrize("stop", [KeyboardInterrupt, cli.Terminated, SystemExit])
@pytest.mark.parametrize(
    "plot",
    [
        lambda folder: plot_labels(np.full((1, 4), 0.5), np.zeros(1), {0: "item"}, folder),
        lambda folder: ConfusionMatrix({0: "item"}).plot(save_dir=folder),
    ],
    ids=["labels", "confusion"],
)
def test_a_stop_within_a_plot_of_ultralytics_ends_the_script(plot, stop, tmp_path, monkeypatch):
    monkeypatch.setattr("matplotlib.pyplot.subplots", raising(stop))
    with pytest.raises(stop):
        plot(tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.subplots", raising(ValueError("no plot")))
    plot(tmp_path)  # is warned of


class Stack(ctypes.Structure):
    """Where the system handles signals, `stack_t` of sigaltstack(2) on Linux."""

    _fields_ = (("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def handle_signals_on_the_usual_stack():
    """Leave the stack that OpenVINO sets for signals.

    Each of its Cores sets one, and at its end the one that was there before, which a Core that ended earlier may have
    taken away: then the next signal ends the process.
    """
    disable = 2
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(Stack(None, disable, 0)), None)


def test_sigterm_is_143_and_runs_finally_blocks():
    handle_signals_on_the_usual_stack()
    cleaned = []

    def main(args):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(5)
        finally:
            cleaned.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert exit_code(main) == 143
    assert cleaned and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--conf-thres", "1.5"], "expected a number from 0 to 1, not '1.5'"),
        (["--conf-thres", "nan"], "expected a number from 0 to 1, not 'nan'"),
        (["--vid-rate", "inf"], "expected a number above 0, not 'inf'"),
        (["--vid-rate", "0"], "expected a number above 0, not '0'"),
        (["--max-det", "0"], "expected a whole number of at least 1, not '0'"),
        (["--max-det", "1e3"], "expected a whole number of at least 1, not '1e3'"),
        (["--max-det", "9" * 400], "expected a whole number of at least 1"),
        (["--side", "8193"], "expected a whole number of pixels from 1 to 8192, not '8193'"),
        (["--side", "0"], "expected a whole number of pixels from 1 to 8192, not '0'"),
        (["--mean", "nan"], "expected a number, not 'nan'"),
        (["--mean", "inf"], "expected a number, not 'inf'"),
        (["--classes", "-1"], "expected a whole number of at least 0, not '-1'"),
        (["--imgsz"], "expected at least one argument"),
        (["--device", "gpu"], "expected cpu, mps, or CUDA numbers such as 0 or 0,1, not 'gpu'"),
        (["--device", "0,0"], "expected cpu, mps, or CUDA numbers such as 0 or 0,1, not '0,0'"),
        (["--save-text"], "there is no option --save-text (did you mean '--save-txt'?)"),
        (["--confthres=0.1"], "there is no option --confthres (did you mean '--conf-thres'?)"),
        (["photo.jpg"], "'photo.jpg' belongs to no option"),
    ],
)
def test_nonsense_on_the_command_line_is_2(argv, message, capsys):
    assert exit_code(lambda args: None, *argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("value", [np.zeros((9, 9, 3), np.uint8), [np.zeros((9, 9, 3), np.uint8)], {"a": 1}, [[1]]])
def test_keywords_that_no_command_line_holds(value):
    with pytest.raises(UserError, match="--weights takes text, paths and numbers, as on the command line, not "):
        make_parser().from_keywords(weights=value)


# Options --------------------------------------------------------------------------------------------------------------
def test_prefixes_and_aliases_are_accepted():
    args = make_parser().parse_args(["--conf", "0.4", "--img", "320", "240", "--weight", "x.pt", "--no-fuse"])
    assert (args.conf_thres, args.imgsz, args.weights, args.fuse) == (0.4, [320, 240], "x.pt", False)


@pytest.mark.parametrize(
    ("keywords", "argv"),
    [
        ({}, []),
        ({"imgsz": 320}, ["--imgsz", "320"]),
        ({"img_size": (320, 240)}, ["--imgsz", "320", "240"]),
        ({"conf_thres": 0.4, "save_txt": True}, ["--conf-thres", "0.4", "--save-txt"]),
        ({"weights": "-odd name.pt"}, ["--weights=-odd name.pt"]),
        ({"save_txt": False, "classes": None, "resume": False}, []),
        ({"resume": True}, ["--resume"]),
        ({"resume": "last.pt"}, ["--resume", "last.pt"]),
        ({"fuse": False}, ["--no-fuse"]),
        ({"fuse": True}, ["--fuse"]),
        ({"device": ""}, ["--device", ""]),
    ],
)
def test_keywords_mean_what_the_flags_mean(keywords, argv):
    assert make_parser().from_keywords(**keywords) == make_parser().parse_args(argv)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_can_be_given_its_default(name):
    """As a plan gives it that is read again."""
    parser = importlib.import_module(name).make_parser()
    for action in parser._actions:
        action.required = False
    usual = parser.parse_args([])
    usual.given = frozenset(action.dest for action in parser.flags.values()) & vars(usual).keys()
    assert parser.parse_args(parser.words_of(usual)) == usual


def test_unknown_keyword_or_value_is_a_user_error():
    with pytest.raises(UserError, match=r"no option 'conf_thresh' \(did you mean 'conf_thres'\?\)"):
        make_parser().from_keywords(conf_thresh=0.1)
    with pytest.raises(UserError, match="from 0 to 1"):
        make_parser().from_keywords(conf_thres=2)


@pytest.mark.parametrize(
    ("script", "flag", "suggestion"),
    [
        (detect, "--save-text", "--save-txt"),
        (detect, "--confidence-threshold", "--conf-thres"),
        (detect, "--max-detections", "--max-det"),
        (train, "--no-save", "--nosave"),
        (train, "--batchsize", "--batch-size"),
        (train, "--evolved", "--evolve"),
        *((train, flag, "") for flag in ("--weight-decay", "--plots", "--autoanchor", "--learning-rate")),
        *((detect, flag, "") for flag in ("--save-json", "--save-xml", "--show-labels", "--no-augment")),
        *((export, flag, "") for flag in ("--int4", "--no-dynamic", "--qat")),
    ],
)
def test_a_suggestion_is_a_misspelling_and_no_other_option(script, flag, suggestion):
    with pytest.raises(UserError) as error:
        script.make_parser().parse_args([flag])
    assert str(error.value).startswith(
        f"there is no option {flag}" + (f" (did you mean '{suggestion}'?)" * bool(suggestion))
    )
    assert ("did you mean" in str(error.value)) == bool(suggestion)


YOLOV5_FLAGS = {  # of the scripts of the same name, with values that YOLOv5 takes; those that have no meaning here
    train: "--evolve_population x|--resume_evolve x|--bucket x|"
    "--local_rank -1|--local-rank=0|--entity x|--upload_dataset|--bbox_interval -1|--artifact_alias latest|"
    "--ndjson-console|--ndjson-file",
    detect: "--dnn|--update|--line-thickness 0",
    val: "--dnn|--save-hybrid",
    export: "--optimize|--inplace|--keras|--workspace 4|--workspace=4|--per-tensor|--mlmodel|--topk-per-class 9|"
    "--cache x|--train",
    benchmark: "--test|--pt-only|--hard-fail 0.3|--half|--device cpu|--batch-size 1",
}


@pytest.mark.parametrize(
    ("script", "words"), [(script, flag.split()) for script, flags in YOLOV5_FLAGS.items() for flag in flags.split("|")]
)
def test_flags_of_yolov5_are_accepted_or_refused_with_a_reason(script, words):
    parser = script.make_parser()
    try:
        args = parser.parse_args([*words, "--plugins", "next"])
    except UserError as error:
        assert re.match(rf"{words[0]} of YOLOv5 is not there: \w.* \(--help lists the options\)$", str(error))
    else:
        changed = {"line_thickness": 0} if words[0] == "--line-thickness" else {}
        assert vars(args) == vars(parser.parse_args([])) | {"plugins": ["next"]} | changed


def test_flags_without_a_meaning_say_so_and_take_no_prefix_away(monkeypatch):
    said = []
    monkeypatch.setattr(cli.LOGGER, "warning", said.append)
    parser = make_parser()
    parser.ignore("--devices", "--image-view", reason="there is one", values=1)
    parser.refuse("--evolve", reason="nothing evolves", values="?")
    assert parser.parse_args(["--devices", "-1", "--dev", "cpu"]).device == "cpu"
    assert parser.from_keywords(image_view=2, evolve=False) == parser.parse_args([])
    assert said == ["--devices has no effect: there is one", "--image-view has no effect: there is one"]
    with pytest.raises(UserError, match="--evolve of YOLOv5 is not there: nothing evolves"):
        parser.from_keywords(evolve=300)


def test_names_of_optimizers_in_any_case():
    assert [train.make_parser().parse_args(["--optimizer", n]).optimizer for n in ("sgd", "ADAMW")] == ["SGD", "AdamW"]
    with pytest.raises(UserError, match="invalid choice: 'sdg'"):
        train.make_parser().parse_args(["--optimizer", "sdg"])


def test_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [cli.device(text) for text in ("", "cpu", "0", "0,1", "cuda:1")] == ["", "cpu", "0", "0,1", "1"]
    with pytest.raises(argparse.ArgumentTypeError, match="CUDA devices 0 to 1"):
        cli.device("2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(argparse.ArgumentTypeError, match="no CUDA device; use cpu"):
        cli.device("0")


@pytest.mark.parametrize(
    ("imgsz", "expected"), [(640, [640, 640]), ([640], [640, 640]), ([100, 320], [128, 320]), (1, [32, 32])]
)
def test_image_size_is_rounded_up(imgsz, expected):
    assert check_imgsz(imgsz, 32) == expected


@pytest.mark.parametrize("imgsz", [0, -5, [1, 2, 3], [], [10**6]])
def test_impossible_image_size(imgsz):
    with pytest.raises(UserError, match="one side or height and width"):
        check_imgsz(imgsz, 32)


# Files and folders ----------------------------------------------------------------------------------------------------
def test_run_folders_count_up(tmp_path):
    names = [increment_path(tmp_path / "runs/detect", "exp").name for _ in range(3)]
    assert names == ["exp", "exp2", "exp3"]
    assert increment_path(tmp_path / "runs/detect", "exp2", exist_ok=True).name == "exp2"


def test_two_runs_at_once_get_two_folders(tmp_path):
    folders = []
    threads = [threading.Thread(target=lambda: folders.append(increment_path(tmp_path, "exp"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 8


@pytest.mark.parametrize(
    ("project", "exist_ok"),
    [("file", False), ("file/below", False), (".", True), ("a\0b", False), ("a" * 300, False), ("loop", False)],
    ids=repr,
)
def test_run_folder_that_cannot_be_made(tmp_path, project, exist_ok):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    name = "file" if exist_ok else "exp"
    with pytest.raises(UserError, match="cannot be made"):
        increment_path(tmp_path / project, name, exist_ok)


@pytest.mark.parametrize(
    ("project", "said"),
    [
        ("/dev/full", "/dev/full is a device"),
        ("photo.png", "photo.png is a file"),
        ("photo.png/below", "photo.png is a file"),
        ("pipe", "pipe is a pipe"),
        ("loop", "loop is a link that leads to itself"),
        ("gone", "gone is a link to what does not exist"),
    ],
)
def test_what_stands_in_the_place_of_a_run_folder_is_named(tmp_path, project, said):
    (tmp_path / "photo.png").write_text("")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to("nothing")
    with pytest.raises(UserError, match=f"exp cannot be made: .*{said}$"):
        increment_path(tmp_path / project, "exp")


def test_a_run_never_writes_where_its_sources_are(tmp_path):
    (tmp_path / "set/images").mkdir(parents=True)
    (tmp_path / "set/data.yaml").write_text("")
    for source in ("set/data.yaml", "set/images", "set"):
        with pytest.raises(UserError, match=r"lies in the folder of the results, .*set, where it could be replaced"):
            increment_path(tmp_path, "set", exist_ok=True, sources=[tmp_path / source])
    assert increment_path(tmp_path / "set", "run", sources=[tmp_path / "set"]).is_dir()
    assert increment_path(tmp_path / "set", "run", exist_ok=True, sources=["", tmp_path / "set/images"]).is_dir()


@pytest.mark.parametrize(
    "name", ["a.pt", "my runs/a b.pt", "it's.pt", "a\nb.pt", os.fsdecode(b"caf\xe9 '.pt"), "$(x).pt"]
)
def test_a_printed_command_can_be_pasted(name):
    assert quote(name).isprintable()
    said = subprocess.run(["bash", "-c", f"printf %s {quote(name)}"], stdout=subprocess.PIPE, check=True).stdout
    assert said == os.fsencode(name)


def test_newest_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"train first, for instance python train\.py"):
        find_weights("")
    for age, run in enumerate(["exp3", "exp", "exp2"]):
        path = tmp_path / "runs/train" / run / "weights/best.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"")
        os.utime(path, (1e9 - age, 1e9 - age))
    assert find_weights("").as_posix() == "runs/train/exp3/weights/best.pt"


def test_weights_that_are_not_there(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"")
    assert find_weights(tmp_path / "best.pt") == tmp_path / "best.pt"
    with pytest.raises(UserError, match=r"does not exist \(did you mean 'best\.pt'\?\)"):
        find_weights(tmp_path / "bets.pt")
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    with pytest.raises(UserError, match=r"loop\.pt is a link that leads to itself$"):
        find_weights(tmp_path / "loop.pt")
    with pytest.raises(UserError, match="not the address"):
        find_weights("https://example.com/best.pt")


def test_find_file_by_path_or_bare_name(tmp_path, monkeypatch):
    monkeypatch.setattr("utils.paths.ROOT", tmp_path)
    config = tmp_path / "models/configs/family/riformer-yolo.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("")
    (tmp_path / "notes.txt").write_text("")
    for name in ("riformer-yolo.yaml", "riformer-yolo", config):
        assert find_file(name, "models/configs") == config
    with pytest.raises(UserError, match=r"did you mean 'riformer-yolo\.yaml'"):
        find_file("rifomer-yolo.yaml", "models/configs/family")
    with pytest.raises(UserError, match=r"not one of the kinds \.yaml, \.yml"):
        find_file(tmp_path / "notes.txt", "models/configs")


def test_names_are_shown_on_one_line():
    assert printable("a\nb\x1b[31m\udcff é.jpg") == "a\\nb\\x1b[31m\\udcff é.jpg"


def test_wrong_input_leaves_no_empty_folder_of_a_run(tmp_path):
    def work(name, file):
        def main(_):
            folder = increment_path(tmp_path, name)
            (folder / "weights").mkdir()
            if file:
                (folder / "weights" / file).write_text("kept")
            raise UserError("wrong")

        return cli.run_script(main, make_parser(), [])

    assert (work("empty", ""), work("full", "last.pt")) == (2, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_a_folder_that_was_there_stays(tmp_path):
    (tmp_path / "exp").mkdir()

    def main(_):
        increment_path(tmp_path, "exp", exist_ok=True)
        raise UserError("wrong")

    assert cli.run_script(main, make_parser(), []) == 2
    assert (tmp_path / "exp").is_dir()


# Stops ----------------------------------------------------------------------------------------------------------------
STUCK = """
import hashlib, sys, threading
from pathlib import Path
from utils import cli
from utils.writing import signals_held

cli.PATIENCE = cli.ENDING = 0.3

def ready():
    print("ready", flush=True)

def native():
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes, in which Python sees no signal

def end():
    try:
        ready()
        threading.Event().wait()
    finally:
        native()

def save():
    with signals_held():
        ready()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 6 * 10**6)  # some seconds
        Path("saved").touch()
    native()

def main(args):
    {"native": lambda: (ready(), native()), "end": end, "save": save}[sys.argv[1]]()

parser = cli.Parser()
sys.exit(cli.run_script(main, parser, []))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["native", "end", "save"])
def test_a_stop_ends_what_no_signal_reaches(number, where, tmp_path):
    script = subprocess.Popen(
        [sys.executable, "-c", STUCK, where],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert script.stdout.readline() == "ready\n"
    script.send_signal(number)
    _, err = script.communicate(timeout=120)
    assert script.returncode == 128 + number
    assert err == f"ERROR: {cli.STOPS[number]}\n"
    assert (tmp_path / "saved").exists() == (where == "save")


def test_signals_are_as_before_when_a_script_has_ended():
    def state():
        fd = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(fd)
        return fd, [signal.getsignal(number) for number in cli.STOPS]

    before = state()
    inside = []
    exit_code(lambda args: inside.append(state()))
    assert state() == before
    assert inside[0][0] != before[0] and not cli.WATCHED


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("words", [[str(ROOT / "detect.py")], ["-m", "utils.convert"]], ids=["script", "module"])
def test_a_stop_while_a_script_imports_is_one_line(words, number, tmp_path):
    (tmp_path / "torch.py").write_text(f"import os\nos.kill(os.getpid(), {int(number)})\nraise RuntimeError")
    ended = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, "", f"ERROR: {cli.STOPS[number]}\n")


@pytest.mark.parametrize("ours", [True, False])
def test_stops_end_a_script_before_and_after_its_work_and_no_other_program(ours, monkeypatch):
    monkeypatch.setattr(stops, "is_script", lambda: ours)
    former = {number: signal.getsignal(number) for number in cli.STOPS}
    try:
        stops.end_at_stops()
        for _ in range(2):
            assert all((signal.getsignal(n) is stops.end) == ours for n in cli.STOPS)
            assert exit_code(lambda _: signal.raise_signal(signal.SIGINT)) == 130
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def test_an_ignored_interrupt_stays_ignored():
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert exit_code(lambda args: os.kill(os.getpid(), signal.SIGINT)) == 0
    finally:
        signal.signal(signal.SIGINT, former)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_tells_nobody_of_its_signals():
    def main(args):
        child = os.fork()
        if child == 0:
            os._exit(0 if signal.set_wakeup_fd(-1) == -1 else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert exit_code(main) == 0


def test_a_source_that_a_file_of_results_would_replace(tmp_path):
    result, link, other = tmp_path / "a.jpg", tmp_path / "link.jpg", tmp_path / "b.jpg"
    result.touch()
    other.touch()
    link.symlink_to(result)
    check_holds_none(result, [other, tmp_path / "missing.jpg"])
    for source in (result, link):
        with pytest.raises(UserError, match=r"\.jpg would be replaced by the results: choose another --output$"):
            check_holds_none(result, [other, source], "--output")
    check_holds_none(link, [other])
