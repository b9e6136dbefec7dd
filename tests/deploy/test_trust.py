"""TorchScript files are programs: those from elsewhere run only when the user says so, and then from then on."""

import shutil

import pytest
import torch
from torch import nn

import export
from models import load
from models.errors import UserError
from tests.helpers import random_model, save, tiny
from utils.deploy import trust
from utils.deploy.opened import open_runner, open_weights


class Writer(nn.Module):
    """Writes to a file when it is run, as any TorchScript file can."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        torch.from_file("written", True, 16).fill_(65.0)
        return torch.zeros(1, 6, 84) + self.weight


@pytest.fixture(autouse=True)
def _stranger(tmp_path, monkeypatch):
    """A user who has trusted nothing yet, in an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(trust, "TRUSTED", set())
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def foreign(tmp_path):
    path = tmp_path / "foreign.torchscript"
    torch.jit.script(Writer()).save(path)
    return path


def forget():
    """Be a later process: only what is on the disk is known."""
    trust.TRUSTED.clear()


def test_a_foreign_program_is_refused_before_it_is_opened(foreign, tmp_path):
    with pytest.raises(UserError, match=r"foreign\.torchscript was not written on this machine, .* program .*--trust"):
        open_weights(foreign)
    foreign.write_bytes(b"no archive at all")
    with pytest.raises(UserError, match="--trust"):
        load(foreign)
    with pytest.raises(UserError, match="--trust"):
        open_runner(foreign, torch.zeros(1, 3, 64, 64), threads=1)
    assert not (tmp_path / "written").exists()


def test_consent_is_asked_for_once_and_is_for_one_content(foreign, tmp_path):
    trust.trust_weights([None, foreign])
    forget()
    trust.check_trusted(foreign)
    shutil.copy(foreign, tmp_path / "copy.torchscript")
    trust.check_trusted(tmp_path / "copy.torchscript")
    with foreign.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="--trust"):
        trust.check_trusted(foreign)


def test_consent_holds_for_this_process_where_nothing_can_be_kept(foreign, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder would be")
    trust.trust(foreign)
    trust.check_trusted(foreign)
    forget()
    with pytest.raises(UserError, match="--trust"):
        trust.check_trusted(foreign)


def test_formats_of_data_need_no_trust(tmp_path):
    for name in ("best.onnx", "best_openvino_model", "best.pt", "best.mnn"):
        trust.check_trusted(tmp_path / name)


def test_what_export_wrote_runs_and_a_report_beside_a_file_is_no_proof(foreign, tmp_path):
    weights = save(random_model(tiny()), tmp_path / "best.pt")
    assert export.run(weights=weights, include=["torchscript"], imgsz=64, output=tmp_path / "out") == 0
    forget()
    ours = tmp_path / "out/best.torchscript"
    detector = load(ours, device="cpu")
    assert detector.names
    foreign.replace(ours)  # the report of the sound file still lies beside it
    with pytest.raises(UserError, match="--trust"):
        load(ours)
