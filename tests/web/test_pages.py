"""The pages in a real browser: the benchmark's from a file, and `detect.py --web` with pictures, videos and rubbish."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models import DetectionModel
from models.errors import UserError
from tests.detecting import video
from tests.helpers import tiny
from utils import cli, web
from utils.benchmark.report import BenchmarkRow, page
from utils.checkpoint import pack_model, save_checkpoint
from utils.detect.writers import Wanted
from utils.web.service import DetectionService
from utils.web.tables import html_table

ROOT = Path(__file__).parents[2]
PICTURES = sorted((ROOT / "data/images").glob("*.jpg"))
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
PATIENCE = 120  # seconds; the machine may be busy
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,1000"
)
TITLES = {"eager": "PyTorch, unfused", "onnx": "ONNX Runtime"}
ROWS = [
    BenchmarkRow("small.yaml", "eager", 2_000_000, 5.0, 41.0, 40.0, 1.0, 1.0, map=30.0),
    BenchmarkRow("small.yaml", "onnx", 1_900_000, 4.5, 21.0, 20.0, 0.5, 1.0, map=29.0, file_mb=7.6),
    BenchmarkRow("large.yaml", "eager", 9_000_000, 25.0, 161.0, 160.0, 1.0, 4.0, map=41.0),
    BenchmarkRow("large.yaml", "onnx", note="an operator is missing"),
]
ABOUT = {
    **{"imgsz": [64], "threads": 1, "rounds": 2, "backbone": False, "data": "shapes.yaml", "date": "2026-11-25"},
    "machine": {"processor": "CPU", "cores": 2, "system": "Linux"},
    "versions": {"torch": "2"},
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium that keeps a log of what it asks for."""
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("selenium is not installed (requirements-dev.txt)")
    if not CHROMIUM or not DRIVER:
        pytest.skip("chromium and chromedriver are not installed (apt-get install chromium chromium-driver)")
    from selenium import webdriver  # noqa: PLC0415

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def asked(driver) -> set[str]:
    """Return where the browser's requests since the last call went: hosts, and schemes that need none."""
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return {re.match(r"(?:https?|wss?)://([^/]+)|(\w+):", url)[0].split("//")[-1] for url in urls} - {
        "chrome:",
        "data:",
    }


def find(driver, selector, text=""):
    """Return the elements that a selector finds, once there is one whose content holds `text`."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = driver.execute_script("return [...document.querySelectorAll(arguments[0])]", selector)
        if any(text in (element.get_attribute("textContent") or "") for element in found):
            return found
        time.sleep(0.1)
    content = [element.get_attribute("textContent") for element in found]
    raise AssertionError(f"no '{text}' in {selector} but {content} after {PATIENCE} s")


def texts(driver, selector):
    return [element.get_attribute("textContent") for element in find(driver, selector)]


# The benchmark's page -------------------------------------------------------------------------------------------------
@pytest.fixture
def report(browser, tmp_path):
    """The page of a benchmark, opened as a file."""
    path = tmp_path / "benchmark.html"
    path.write_text(page(ROWS, TITLES, ABOUT), encoding="utf-8")
    asked(browser)
    browser.get(path.as_uri())
    return browser


def column(driver, key):
    """Return a column of the table's rows that are shown."""
    script = """
    const index = [...document.querySelectorAll('thead th')].findIndex((th) => th.dataset.key === arguments[0]);
    const shown = [...document.querySelectorAll('tbody tr')].filter((tr) => !tr.hidden);
    return shown.map((tr) => (tr.cells[index] ?? tr.cells[2]).textContent);
    """
    return driver.execute_script(script, key)


@pytest.mark.slow
def test_a_column_sorts_both_ways_and_what_is_not_there_stays_last(report):
    header = "th[data-key=minimum_ms]"
    button = find(report, f"{header} button")[0]
    assert find(report, header)[0].get_attribute("aria-sort") is None
    button.click()
    assert column(report, "minimum_ms") == ["20.0", "40.0", "160.0", "an operator is missing"]
    assert find(report, header)[0].get_attribute("aria-sort") == "ascending"
    button.click()
    assert column(report, "minimum_ms") == ["160.0", "40.0", "20.0", "an operator is missing"]
    find(report, "th[data-key=model] button")[0].click()
    assert column(report, "model") == ["large.yaml", "large.yaml", "small.yaml", "small.yaml"]
    assert asked(report) == {"file:"}


@pytest.mark.slow
def test_points_and_the_frontier(report):
    points = find(report, ".point")
    assert [point.get_attribute("data-frontier") for point in points] == ["true", "true", "true"]
    assert points[1].get_attribute("aria-label") == "small.yaml, ONNX Runtime: 20.0 ms, mAP50-95 29.0, on the frontier"
    places = [[float(x) for x in re.findall(r"[\d.]+", point.get_attribute("transform"))] for point in points]
    assert places[1][0] < places[0][0] < places[2][0]  # faster is to the left
    assert places[1][1] > places[0][1] > places[2][1]  # better is above
    choose = find(report, "#upward")[0]
    assert texts(report, "#upward option") == ["mAP50-95", "Work", "Parameters", "File size"]
    choose.send_keys("Parameters")
    assert find(report, "#plot-title")[0].text == "Parameters against latency"
    assert [p.get_attribute("data-frontier") for p in find(report, ".point")] == ["false", "true", "false"]


@pytest.mark.slow
def test_a_point_tells_its_row_to_the_mouse_and_to_the_keyboard(report):
    tip = find(report, "#tip")[0]
    assert not tip.is_displayed()
    point = find(report, ".point")[2]
    report.execute_script("arguments[0].focus()", point)
    assert tip.is_displayed()
    assert tip.text.splitlines()[:2] == ["large.yaml", "PyTorch, unfused"]
    assert "9.00" in tip.text  # parameters, in millions
    assert "lit" in find(report, "tr[data-index='2']")[0].get_attribute("class")
    report.execute_script("arguments[0].blur()", point)
    assert not tip.is_displayed()
    report.execute_script("arguments[0].dispatchEvent(new MouseEvent('mouseenter'))", find(report, ".point")[1])
    assert "small.yaml" in tip.text


@pytest.mark.slow
def test_forms_and_models_are_filtered(report):
    button = find(report, "button[data-form=eager]")[0]
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert column(report, "form") == ["ONNX Runtime", "ONNX Runtime"]
    assert len(find(report, ".point")) == 1
    button.click()
    find(report, "#search")[0].send_keys("LARGE")
    assert column(report, "model") == ["large.yaml", "large.yaml"]
    find(report, "#search")[0].send_keys("st")
    assert column(report, "model") == []
    assert "Nothing to show" in find(report, "#plot-note")[0].text


@pytest.mark.slow
def test_light_and_dark(report):
    color = "return getComputedStyle(document.body).backgroundColor"
    before = report.execute_script(color)
    find(report, "#theme")[0].click()
    assert report.execute_script(color) != before
    find(report, "#theme")[0].click()
    assert report.execute_script(color) == before
    wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert report.execute_script(wide)


# The page to try weights on -------------------------------------------------------------------------------------------
def save_weights(path, **changes):
    torch.manual_seed(0)
    model = DetectionModel(tiny(**changes))
    model.imgsz = 64
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint({**pack_model(model), "ema": model.state_dict()}, path)
    return path


def free_port():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


@pytest.fixture(scope="module")
def site(browser, tmp_path_factory):
    """The page served by `detect.py --web`: (browser, address, folder)."""
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("gradio is not installed (requirements-dev.txt)")
    folder = tmp_path_factory.mktemp("site")
    save_weights(folder / "runs/train/exp/weights/best.pt")
    save_weights(folder / "other.pt")
    (folder / "secret.pt").write_bytes((folder / "other.pt").read_bytes())
    (folder / "tmp").mkdir()
    port = free_port()
    words = ["--web", "--port", str(port), "--conf-thres", "0", "--max-det", "5", "--weights", "other.pt"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, str(ROOT / "detect.py"), *words],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(lambda: "The page is at" in (folder / "log").read_text(), server)
        asked(browser)
        browser.get(f"http://127.0.0.1:{port}/")
        yield browser, f"127.0.0.1:{port}", folder
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 130
        assert "Traceback" not in (folder / "log").read_text()
        assert list((folder / "tmp").glob("repyolo-web-*")) == []
    finally:
        server.kill()


def wait_for(condition, server):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert server.poll() is None, f"ended with {server.returncode}"
        assert time.monotonic() < end
        time.sleep(0.1)


def drop(driver, path):
    """Drop a file on the page, in place of the one before."""
    for close in driver.find_elements(
        "css selector", "#upload button[aria-label='Clear'], #upload button[title='Clear']"
    ):
        close.click()
    find(driver, "#upload input[type=file]")[0].send_keys(str(path))


@pytest.mark.slow
def test_a_picture_is_dropped_and_found_in(site):
    driver, host, _ = site
    drop(driver, PICTURES[0])
    find(driver, "#upload", PICTURES[0].stem)
    find(driver, "#detect")[0].click()
    find(driver, "#counts table caption", "Objects")
    image = find(driver, "#picture img")[0]
    assert driver.execute_script("return arguments[0].naturalWidth", image) == cv2.imread(str(PICTURES[0])).shape[1]
    assert sum(map(int, texts(driver, "#counts tbody td:nth-child(2)"))) == 5  # --max-det
    assert "5 objects found in" in find(driver, "#message", "found")[0].text
    find(driver, "#speed table caption", "Speed")
    assert texts(driver, "#speed tbody th") == ["PyTorch, unfused", "PyTorch, fused", "ONNX Runtime"]
    assert texts(driver, "#speed tbody td:nth-child(3)")[0] == "1.00×"
    assert all(re.fullmatch(r"\d+\.\d ms", text) for text in texts(driver, "#speed tbody td:nth-child(2)"))
    assert asked(driver) == {host}


@pytest.mark.slow
def test_a_video_is_dropped_and_plays(site, tmp_path):
    driver, host, _ = site
    film = cv2.VideoWriter(str(tmp_path / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (96, 64))
    for value in range(6):
        film.write(np.full((64, 96, 3), 40 * value, np.uint8))
    film.release()
    drop(driver, tmp_path / "film.mp4")
    find(driver, "#message", "boxes in 6 frames")
    video = find(driver, "#video video")[0]
    script = "return arguments[0].readyState >= 2 ? [arguments[0].videoWidth, arguments[0].error] : null"
    end = time.monotonic() + PATIENCE
    while (playing := driver.execute_script(script, video)) is None:
        assert time.monotonic() < end
    assert playing == [96, None]
    assert "Most in one frame" in texts(driver, "#counts thead th")
    assert asked(driver) == {host}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("list.txt", b"other.pt\n/etc/passwd\n", "list.txt is neither a picture nor a video"),
        ("broken.jpg", b"\xff\xd8\xff not a picture", "broken.jpg cannot be read"),
        ("broken.mp4", b"no video", "broken.mp4 cannot be read"),
        ("<b>bold<b>.gz", b"", "neither a picture nor a video"),
    ],
)
def test_rubbish_is_answered_with_a_sentence(site, tmp_path, name, content, sentence):
    driver, _, _ = site
    (tmp_path / name).write_bytes(content or b" ")
    drop(driver, tmp_path / name)
    find(driver, "#message .error", sentence)
    assert not driver.find_elements("css selector", "#message b, #counts table")


@pytest.mark.slow
def test_the_server_gives_no_files_and_only_listed_weights(site):
    _, host, folder = site
    for path in (folder / "secret.pt", folder / "log", "/etc/passwd", ROOT / "README.md"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"http://{host}/gradio_api/file={path}")
    config = json.loads(urllib.request.urlopen(f"http://{host}/config").read())
    choices = [c["props"]["choices"] for c in config["components"] if c["props"].get("elem_id") == "weights"]
    assert choices == [[["other.pt"] * 2, ["runs/train/exp/weights/best.pt"] * 2]]


# Behind the page ------------------------------------------------------------------------------------------------------
@pytest.fixture
def service(tmp_path):
    weights = {"listed": save_weights(tmp_path / "listed.pt")}
    save_weights(tmp_path / "secret.pt")
    return DetectionService(weights, tmp_path, Wanted(), {"conf_thres": 0.0, "iou_thres": 0.45, "max_det": 5})


def quiet(*_, **__):
    """A progress bar that shows nothing."""


def test_what_is_computed_ends_with_the_page(service, tmp_path):
    path, begun, ended = video(tmp_path / "clip.avi", frames=2000), threading.Event(), []

    def detect():
        with pytest.raises(UserError, match="the page is closed"):
            service.detect(path, "listed", 0.25, 0.45, lambda *_, **__: begun.set())
        ended.append(True)

    thread = threading.Thread(target=detect)
    thread.start()
    assert begun.wait(PATIENCE)
    service.close()
    assert not service.working.locked()
    thread.join(PATIENCE)
    assert ended
    for begin in (lambda: service.detect(path, "listed", 0.25, 0.45, quiet), lambda: service.speed("listed", quiet)):
        with pytest.raises(UserError, match="the page is closed"):
            begin()


@pytest.mark.parametrize("name", ["secret.pt", "../listed.pt", "", "{folder}/secret.pt"])
def test_weights_that_are_not_listed_are_not_opened(service, tmp_path, name):
    with pytest.raises(UserError, match="is not on the list of weights"):
        service.detect(PICTURES[0], name.format(folder=tmp_path), 0.25, 0.45, quiet)


def test_thresholds_are_those_of_the_sliders(service):
    counts = [service.detect(PICTURES[0], "listed", conf, 0.45, quiet)[1].count('scope="row"') for conf in (0.0, 1.0)]
    assert counts[0] > counts[1] == 0


def test_uploads_name_no_other_files(service, tmp_path):
    shutil.copy(PICTURES[0], tmp_path / "a.jpg")
    (tmp_path / "list.txt").write_text("a.jpg\n")
    for name in ("list.txt", "*.jpg", "a.streams"):
        with pytest.raises(UserError, match="is neither a picture nor a video"):
            service.detect(tmp_path / name, "listed", 0.25, 0.45, quiet)


def test_names_of_classes_are_text():
    table = html_table("<i>", ["<b>", "n"], [["<script>", "1"]])
    assert "&lt;script&gt;" in table
    assert not re.search("<(i|b|script)>", table)


def test_the_list_of_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="train first"):
        web.find_listed([])
    trained = save_weights(Path("runs/train/exp/weights/best.pt"))
    trained.with_name("notes.txt").touch()
    trained.with_suffix(".onnx").touch()
    own = save_weights(Path("own.pt"))
    assert set(web.find_listed(["own.pt"]).values()) == {own, trained, trained.with_suffix(".onnx")}
    assert next(iter(web.find_listed([str(own)]))) == "own.pt"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--web", "--save-txt"], "--save-txt does not go with --web"),
        (["--web", "--source", "0"], "--source does not go with --web"),
        (["--port", "8000"], "--port goes with --web"),
        (["--web", "--port", "99999"], "--port goes up to 65535, not 99999"),
    ],
)
def test_options_that_do_not_go_with_the_page(words, message, capsys, tmp_path):
    import detect  # noqa: PLC0415

    words += ["--weights", str(save_weights(tmp_path / "best.pt"))]
    assert cli.run_script(detect.main, detect.make_parser(), words) == 2
    assert message in capsys.readouterr().err


def test_without_gradio_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--web needs the package gradio: pip install gradio==\d"):
        web.serve({"a": tmp_path}, None, Wanted(), conf_thres=0.25, iou_thres=0.45)


@pytest.mark.slow
def test_a_taken_port_is_one_sentence(tmp_path):
    pytest.importorskip("gradio")
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        port = door.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} is taken"):
            web.serve({"a": tmp_path}, port, Wanted(), conf_thres=0.25, iou_thres=0.45)
