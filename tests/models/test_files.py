"""Paths that are no files of data are never opened, whatever names them: a pipe would be waited for, for ever."""

import os

import pytest

from models.backbones.weights import load_plain
from models.errors import UserError
from models.plugins import load_plugins
from models.spec import load_spec
from utils.checkpoint import load_checkpoint
from utils.checkpoint.unpickle import read_pickled
from utils.data.description import load_dataset, read_yaml
from utils.deploy.opened import check_export
from utils.detect.sources import open_source
from utils.paths import find_file, find_weights

READERS = {  # what reads files that a user or a file names, and the suffix of such
    "a model YAML": (load_spec, ".yaml"),
    "a data set YAML": (load_dataset, ".yaml"),
    "a recipe": (lambda path: read_yaml(find_file(path, "data/hyps")), ".yaml"),
    "a list of streams": (open_source, ".streams"),
    "a list of pictures": (open_source, ".txt"),
    "a picture": (lambda path: list(open_source(path)), ".jpg"),
    "weights": (find_weights, ".pt"),
    "a checkpoint": (load_checkpoint, ".pt"),
    "tensors": (load_plain, ".pth"),
    "pickled weights": (read_pickled, ".pt"),
    "a plugin": (lambda path: load_plugins([path]), ".py"),
}


@pytest.mark.parametrize("what", READERS)
@pytest.mark.parametrize(
    ("target", "problem"),
    [
        (None, "is not a file but a pipe"),
        ("/dev/zero", "is not a file but a device"),
        ("/proc/self/environ", "is not a file of data but one of the system"),
        ("nowhere", "is a link to what does not exist"),
        (".", "is not a file but a folder"),
    ],
)
def test_what_is_no_file_is_one_sentence(what, target, problem, tmp_path, never_opened):
    read, suffix = READERS[what]
    path = tmp_path / f"it{suffix}"
    os.mkfifo(path) if target is None else path.symlink_to(target)
    with pytest.raises(UserError) as raised:
        found = read(path)
        reasons = getattr(found, "unreadable", {}).values()
        raise UserError(" ".join(reasons))
    assert problem in str(raised.value) or what in ("a plugin", "a picture", "a list of pictures", "weights")


def test_nothing_in_the_folder_of_an_export_is_a_pipe(tmp_path):
    folder = tmp_path / "best_openvino_model"
    folder.mkdir()
    (folder / "best.xml").touch()
    assert check_export(folder).name == "openvino"
    os.mkfifo(folder / "metadata.yaml")
    with pytest.raises(UserError, match=r"metadata\.yaml is not a file but a pipe"):
        check_export(folder)
