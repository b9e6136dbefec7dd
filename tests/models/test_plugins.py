"""Backbones of one's own, from a file named on the command line: never run otherwise."""

import os
import subprocess
import sys

import pytest
import torch

from models import BACKBONES, DetectionModel, plugins
from models.errors import ConfigError, UserError
from models.plugins import load_plugins
from tests.helpers import tiny_backbone, write
from tests.runs import make_data

CODE = """
from pathlib import Path

from torch import nn

from models import BACKBONES, Backbone
from models.backbones.base import select_strides

Path(__file__).with_name("runs.txt").open("a").write("x")


@BACKBONES.register("Pools")
class Pools(Backbone):
    archs = ("plain",)

    def __init__(self, arch="plain", in_channels=3, out_strides=None):
        super().__init__()
        self.in_channels = in_channels
        self.strides = select_strides(out_strides, (8, 16, 32), "Pools")
        self.channels = (16,) * len(self.strides)
        self.stem = nn.Conv2d(in_channels, 16, 8, 8)

    def forward(self, x):
        x = self.stem(x)
        return [nn.functional.avg_pool2d(x, s // 8) for s in self.strides]
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A file that registers Pools, and registries that forget it."""
    monkeypatch.setattr(BACKBONES, "_entries", dict(BACKBONES._entries))
    monkeypatch.setattr(plugins, "LOADED", {})
    path = tmp_path / "my_pools.py"
    path.write_text(CODE)
    yield path
    sys.modules.pop("plugins.my_pools", None)


def test_a_plugin_adds_a_word(plugin):
    load_plugins([plugin])
    model = DetectionModel(tiny_backbone("Pools")).eval()
    assert model(torch.zeros(1, 3, 64, 64))[0].shape == (1, 4 + 2, 64 + 16 + 4)


def test_a_plugin_is_run_once(plugin):
    load_plugins([plugin, str(plugin)])
    load_plugins([plugin])
    assert (plugin.parent / "runs.txt").read_text() == "x"


def test_a_yaml_alone_runs_no_plugin(plugin):
    cfg = tiny_backbone("Pools", plugins=[str(plugin)])
    with pytest.raises(ConfigError, match=r"needs code of its own, .* --plugins .*my_pools\.py"):
        DetectionModel(cfg)
    assert not (plugin.parent / "runs.txt").exists()
    load_plugins([plugin])
    assert DetectionModel(cfg).spec.plugins == (str(plugin),)


def test_the_plugins_of_a_yaml_stay_with_it(plugin):
    load_plugins([plugin])
    spec = DetectionModel(tiny_backbone("Pools", plugins=str(plugin))).spec
    assert spec.as_dict()["plugins"] == [str(plugin)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing.py", "does not exist"),
        ("folder.py", "is not a file but a folder"),
        ("text.txt", r"is no file \*\.py"),
        ("loop.py", "is a link that leads to itself"),
        ("pipe.py", "is not a file but a pipe"),
    ],
)
def test_what_is_no_python_file_is_refused(tmp_path, name, said):
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "folder.py").mkdir()
    (tmp_path / "text.txt").write_text("x = 1")
    (tmp_path / "loop.py").symlink_to("loop.py")
    with pytest.raises(UserError, match=f"--plugins takes Python files, but .*{name} {said}"):
        load_plugins([tmp_path / name])


def test_two_files_of_one_name_are_refused(plugin, tmp_path):
    load_plugins([plugin])
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / plugin.name
    other.write_text("raise SystemExit")
    with pytest.raises(UserError, match=r"two plugins are named my_pools\.py"):
        load_plugins([other])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x = 1\ndef (", r"bad\.py, line 2 is not Python: "),
        (b"x = 1\0", r"bad\.py, line 1 is not Python: "),
        (b"x = '\xe4'", r"bad\.py, line 1 is not Python: "),
        (b"from models import BACKBONES\nBACKBONES.register('RepVGG')(int)", "'RepVGG' is registered twice"),
        (b"from models import BACKBONES\nBACKBONES.register('Own')(int)", "must be a class that derives from Backbone"),
    ],
)
def test_what_is_no_plugin_is_explained(plugin, content, message):
    plugin = plugin.with_name("bad.py")
    plugin.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        load_plugins([plugin])
    assert "\n" not in str(caught.value)


def test_a_bug_in_a_plugin_keeps_its_traceback_and_may_be_mended(plugin):
    plugin.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        load_plugins([plugin])
    plugin.write_text(CODE)
    load_plugins([plugin])
    assert "Pools" in BACKBONES


@pytest.mark.parametrize("value", [1, {"a": 1}, [1]])
def test_plugins_in_a_yaml_are_file_names(value):
    with pytest.raises(ConfigError, match="plugins must name a Python file"):
        DetectionModel(tiny_backbone("RIFormer", plugins=value))


@pytest.mark.slow
def test_a_plugin_goes_the_whole_way(plugin, tmp_path):
    """Train, detect and export with it; without it, the weights say what is missing."""
    root = plugins.__file__.rsplit("/", 2)[0]
    head = [[["P3", "P4", "P5"], 1, "Detect", ["nc"]]]
    cfg = write(tmp_path, tiny_backbone("Pools", head=head, plugins=["my_pools.py"]), "pools.yaml")

    def script(name, *args):
        command = [sys.executable, f"{root}/{name}.py", *map(str, args)]
        return subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    small = ("--data", make_data(tmp_path), "--imgsz", 64, "--epochs", 1, "--noplots")
    trained = script("train", "--cfg", cfg, *small, "--plugins", plugin)
    assert trained.returncode == 0, trained.stderr
    for name in ("detect", "export"):
        assert script(name, "--plugins", plugin).returncode == 0
    without = script("detect")
    assert without.returncode == 2
    assert "--plugins my_pools.py" in without.stderr
