"""--logger: services that are asked for follow a training, others are not even imported."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import train
from models.errors import UserError
from tests.helpers import tiny
from tests.runs import make_data
from utils.train import loggers
from utils.train.loggers import SERVICES, Guard, add_loggers, check_loggers, chosen_loggers, is_installed

ROOT = Path(__file__).parents[2]
STAND_IN = """
# A package that keeps what it is told, and writes it down at the end.
import atexit, json, os, sys
from unittest.mock import MagicMock

package = MagicMock(__version__="1", __spec__=__spec__)
package.run = None
package.init.side_effect = lambda **_: setattr(package, "run", package.started)
package.active_run.return_value = None
package.Task.current_task.side_effect = [None] + 100 * [package.task]
package.get_running_experiment.return_value = package.start.return_value
sys.modules[__name__] = package
atexit.register(lambda: open(f"{__name__}.txt", "w").write("\\n".join(map(str, package.mock_calls))))
"""
PROGRAM = """
import sys
import train

own = {"cfg": "net.yaml", "data": "ds/data.yaml", "epochs": 1, "imgsz": 64, "batch_size": 2, "noplots": True}
train.run(**own)
assert not {"wandb", "mlflow", "clearml", "comet_ml", "tensorboard"} & sys.modules.keys()
names = sys.argv[1:]
folder = train.run(**own, logger=names)
if "tensorboard" in names:
    assert list(folder.glob("events.out.tfevents.*"))
    assert "tensorboard" in sys.modules
"""


def shell(folder: Path) -> dict[str, str]:
    """Return an environment in which ultralytics does not see that it is tested."""
    shown = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "GITHUB"))}
    return {**shown, "PYTHONPATH": f"{folder}:{ROOT}"}


def test_the_packages_of_services_must_be_installed(monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--logger wandb comet needs packages .*: pip install wandb comet-ml"):
        check_loggers(["wandb", "comet"])
    with pytest.raises(UserError, match="--logger mlflow needs a package that is not installed: pip install mlflow"):
        train.run(cfg="yolov5n.yaml", logger=["mlflow"])
    check_loggers([])


def test_a_folder_is_no_package(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "leftover_runs").mkdir()
    assert not is_installed("leftover_runs")
    assert not is_installed("no_such_package")
    assert is_installed("json")


def test_none_stands_alone():
    assert chosen_loggers(["mlflow", "wandb", "mlflow"]) == ["mlflow", "wandb"]
    assert chosen_loggers(["none"]) == []
    with pytest.raises(UserError, match="--logger none goes with no other name"):
        chosen_loggers(["none", "wandb"])


def test_a_service_that_fails_is_asked_once(log):
    calls = []
    guarded = Guard("wandb").around(lambda engine: calls.append(engine) or 1 / 0)
    guarded("first")
    guarded("second")
    assert calls == ["first"]
    assert any("wandb fails and gets nothing more" in line for line in log)


def test_an_engine_without_the_option_gets_none():
    add_loggers(SimpleNamespace(args=SimpleNamespace()))


def test_a_package_that_does_not_work_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="the package mlflow is installed but cannot be used"):
        add_loggers(SimpleNamespace(args=SimpleNamespace(logger=["mlflow"])))


@pytest.mark.slow
def test_what_services_are_told(tmp_path):
    make_data(tmp_path / "ds")
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(tiny()))
    faked = [name for name in SERVICES if name != "tensorboard"]
    for name in faked:
        (tmp_path / SERVICES[name].package).mkdir()
        (tmp_path / SERVICES[name].package / "__init__.py").write_text(STAND_IN)
    names = [*faked, *(["tensorboard"] if is_installed("tensorboard") else [])]
    command = [sys.executable, "-c", PROGRAM, *names]
    ended = subprocess.run(command, cwd=tmp_path, env=shell(tmp_path), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "fails and gets nothing more" not in ended.stdout + ended.stderr
    for name, call in {
        "wandb": "call.started.log",
        "mlflow": "call.log_metrics",
        "clearml": "call.task.get_logger().report_scalar",
        "comet": "call.start().log_metrics",
    }.items():
        told = (tmp_path / f"{SERVICES[name].package}.txt").read_text().splitlines()
        assert any(line.startswith(call) and "box_loss" in line for line in told), name
        assert any(line.startswith(call) and "mAP50" in line for line in told), name
    options = yaml.safe_load((tmp_path / "runs/train/exp2/args.yaml").read_text())
    assert options["logger"] == names
    assert json.loads((tmp_path / "runs/train/exp2/final.json").read_text())["epochs"] == 1
