"""What the jobs of a comparison leave: their results, and the objects that were found."""

import numpy as np
import pytest

import compare
from models.errors import UserError
from tests.comparisons import make_plan
from tests.runs import make_data
from utils.comparison.detections import Detections
from utils.comparison.entries import Entry
from utils.comparison.measure import load_found, trained_minutes
from utils.comparison.plan import Job
from utils.data.description import load_dataset
from utils.data.files import list_images

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
    ("changes", "said"),
    [
        ({"conf": np.ones(2)}, "its arrays do not fit each other"),
        ({"conf": np.full(1, np.nan)}, "its arrays do not fit each other"),
        ({"conf": np.array(["a"])}, "conf holds values of another type"),
        ({"tp": np.ones((1, 9), bool)}, "its arrays do not fit each other"),
        ({"picture": np.full(1, 2)}, "its arrays do not fit each other"),
        ({"true_cls": np.full(1, -1)}, "its arrays do not fit each other"),
        ({"names": []}, "its arrays do not fit each other"),
    ],
    ids=str,
)
def test_damaged_detections_are_told(tmp_path, changes, said):
    found_objects(**changes).save(tmp_path / "found.npz")
    with pytest.raises(UserError, match=rf"found\.npz is damaged: {said}"):
        Detections.load(tmp_path / "found.npz")


def test_a_file_that_is_no_archive_is_told_with_the_cause(tmp_path):
    (tmp_path / "found.npz").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"found\.npz is damaged: BadZipFile: File is not a zip file"):
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
