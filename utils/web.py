"""The page of `detect.py --web`: drop a picture or a video, see the boxes and what fusing and exporting buy.

Gradio serves it on this machine alone (127.0.0.1), without statistics and without anything from other hosts. What
the page can read is what was dropped on it and the weights on its list, which is made when it starts.
"""

from __future__ import annotations

import html
import importlib.util
import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from ultralytics.engine.results import Results
from ultralytics.utils import LOGGER

from models.errors import ConfigError, UserError, WeightsError
from utils.benchmark.forms import FORMS, FUSED, ONNX, UNFUSED, make
from utils.checkpoint import load_checkpoint
from utils.data.pictures import is_picture
from utils.deploy.formats import format_of
from utils.deploy.run import RUN_ERRORS, load_runner
from utils.deploy.write import ExportError
from utils.detect.frame import Frame
from utils.detect.predictor import Predictor, create_predictor
from utils.detect.sources import Files, is_video
from utils.detect.writers import Wanted, draw
from utils.latency import measure
from utils.paths import ROOT, find_weights, newest_weights
from utils.text import printable

GRADIO = "6.31.0"  # that was tested
PAGES = Path(__file__).parent / "pages"
EXAMPLES = ROOT / "data" / "images"
COMPARED = (UNFUSED, FUSED, ONNX)  # forms whose speed the page shows
ROUNDS = 10  # of measuring them
MAX_PORT = 65535
UPLOAD = "500mb"  # the largest file that the page takes
WIDEST = 1280  # pixels of a result; larger ones are scaled down
FAILURES = (UserError, ConfigError, WeightsError, ExportError, *RUN_ERRORS)  # that become a sentence in the page


def find_listed(named: Sequence[str], project: str | Path = "runs/train") -> dict[str, Path]:
    """Return the weights that the page offers: those that the user named, then all of this folder's trainings.

    Raises:
        UserError: a named file does not exist, or there are none at all.
    """
    found = [find_weights(name) for name in named]
    trained = sorted(Path(project).glob("*/weights/*"), key=lambda path: path.stat().st_mtime, reverse=True)
    found += [path for path in trained if path.suffix == ".pt" or format_of(path)]
    if not found:
        newest_weights(project)  # which says what to do
    return {printable(path): path for path in dict.fromkeys(found)}


def serve(weights: dict[str, Path], port: int | None, wanted: Wanted, **options: Any) -> None:
    """Serve the page until Ctrl-C.

    Args:
        weights: what the page offers, from `find_listed`; the first is chosen at the start.
        port: on 127.0.0.1; None: the first free one from 7860 on.
        wanted: how boxes are drawn.
        options: of `create_predictor`; `conf_thres` and `iou_thres` are where the sliders start.

    Raises:
        UserError: Gradio is not installed, or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise UserError(f"--web needs the package gradio: pip install gradio=={GRADIO}")
    if port and port > MAX_PORT:
        raise UserError(f"--port goes up to {MAX_PORT}, not {port}")
    with tempfile.TemporaryDirectory(prefix="repyolo-web-") as folder:
        studio = Studio(weights, Path(folder), wanted, options)
        with _private_gradio(Path(folder) / "uploads"):
            page, launch = _make_page(studio)
            try:
                _, address, _ = page.launch(server_name="127.0.0.1", server_port=port, **launch)
            except OSError as error:
                raise UserError(f"--port {port or '7860 to 7959'} is taken: name another one") from error
            try:
                LOGGER.info(f"The page is at {address} (Ctrl-C ends it)")
                threading.Event().wait()
            finally:
                page.close()


@contextmanager
def _private_gradio(uploads: Path) -> Iterator[None]:
    """Set Gradio's switches before it is imported: no statistics, and files in a folder that goes with the page."""
    former = dict(os.environ)
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", GRADIO_TEMP_DIR=str(uploads), GRADIO_SHARE="False")
    os.environ.update(HF_HUB_OFFLINE="1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


# What the page does ---------------------------------------------------------------------------------------------------
class Studio:
    """Everything behind the page, without the page: weights that are open, results as files and HTML.

    Args:
        weights: name → path of what may be loaded; nothing else is.
        folder: where videos and exports are written.
        wanted: how boxes are drawn.
        options: of `create_predictor`.
    """

    def __init__(self, weights: dict[str, Path], folder: Path, wanted: Wanted, options: dict[str, Any]) -> None:
        self.weights, self.folder, self.wanted, self.options = weights, folder, wanted, options
        self.predictors: dict[str, Predictor] = {}
        self.speeds: dict[str, str] = {}
        self.videos = 0

    def predictor(self, name: str, conf: float, iou: float) -> Predictor:
        """Return the predictor of listed weights with these thresholds.

        Raises:
            UserError: the weights are not on the list.
            WeightsError: the file is damaged.
        """
        if name not in self.weights:
            raise UserError(f"{name} is not on the list of weights")
        if name not in self.predictors:
            self.predictors[name] = create_predictor(self.weights[name], **self.options)
        predictor = self.predictors[name]
        predictor.args.conf, predictor.args.iou = float(conf), float(iou)
        return predictor

    def detect(
        self, upload: Path, name: str, conf: float, iou: float, progress: Callable[..., object]
    ) -> tuple[np.ndarray | Path, str, str]:
        """Return what was found: the picture (H, W, 3) in RGB or the path of a video, a table of counts, a sentence.

        Args:
            upload: a picture or a video.
            name: of weights on the list.
            conf, iou: thresholds, from 0 to 1.
            progress: is called with a share from 0 to 1 and `desc`.

        Raises:
            UserError: the upload cannot be read, or the weights cannot be used.
        """
        files = open_upload(upload)
        progress(0, desc="opening the weights")
        predictor = self.predictor(name, conf, iou)
        video = bool(files.videos)
        film = Film(self.folder / f"video{self.videos}.webm")
        self.videos += video
        tally = Tally()
        start = time.perf_counter()
        for frame in files:
            found = predictor.detect(frame)
            tally.add(found.result)
            image = shrink(draw(found.result, self.wanted))
            if video:
                film.write(image, frame.fps)
                progress(share_of(frame), desc=frame.title.split(upload.name)[0].rsplit(" ", 1)[0])
        film.close()
        reason = files.unreadable.get(upload.absolute(), "")
        if not tally.frames:
            raise UserError(f"{upload.name} cannot be read: {reason}")
        seconds = time.perf_counter() - start
        height, width = found.shape[2:]
        said = f"{tally.text()} in {seconds:.2f} s, with an input of {width}×{height} pixels."
        if reason:
            said += f" The end is missing: {reason}."
        return (film.path if video else image[..., ::-1]), tally.table(), said

    def speed(self, name: str, progress: Callable[..., object]) -> str:
        """Return a table of how long the forms of listed weights take: unfused, fused and ONNX, or the export itself.

        The forms are made in a temporary folder and measured in turns; the table is kept for the next time.

        Raises:
            UserError, WeightsError, ExportError: the weights cannot be used or exported.
        """
        if name not in self.speeds:
            height, width = self.predictor(name, 0.25, 0.45).imgsz
            self.speeds[name] = self._measure(self.weights[name], (height, width), progress)
        return self.speeds[name]

    def _measure(self, path: Path, size: tuple[int, int], progress: Callable[..., object]) -> str:
        runs: dict[str, Callable[[], object]] = {}
        kind = format_of(path)
        images = torch.rand(1, 3, *size)
        with tempfile.TemporaryDirectory(dir=self.folder) as temporary:
            if kind:
                runs[kind.title] = partial(load_runner(path), images)
            else:
                for number, key in enumerate(COMPARED):
                    progress(number / 4, desc=f"preparing {FORMS[key].title}")
                    made = make(key, load_checkpoint(path), size, Path(temporary))
                    runs[FORMS[key].title] = partial(made.load(torch.get_num_threads()), images)
            done = iter(range(1, ROUNDS + 1))
            latency = measure(
                runs, ROUNDS, lambda: progress(0.75 + 0.25 * next(done) / ROUNDS, desc="measuring in turns")
            )
        threads = torch.get_num_threads()
        cores = f"{threads} CPU thread{'s' * (threads > 1)}"
        how = f'<p class="note">{size[1]}×{size[0]} pixels, {cores}, the least of {ROUNDS} runs in turns</p>'
        return speed_table({title: times.minimum for title, times in latency.items()}) + how


def open_upload(upload: Path) -> Files:
    """Return the frames of a dropped file; UserError for what is no picture and no video.

    A list of paths or a pattern with * would have other files read, which the page must not.
    """
    if not (is_picture(upload) or is_video(upload)) or "*" in str(upload):
        raise UserError(f"{upload.name} is neither a picture nor a video, going by the end of its name")
    return Files(upload)


def shrink(image: np.ndarray) -> np.ndarray:
    """Return a picture that is at most WIDEST pixels wide and high."""
    factor = WIDEST / max(image.shape[:2])
    if factor >= 1:
        return image
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def share_of(frame: Frame) -> float:
    """Return which part of a video is done, 0 to 1, of the line `video 1/1 (3/12) …`."""
    numbers = re.search(r"\((\d+)/(\d+)\)", frame.title)
    return min(1.0, int(numbers[1]) / max(1, int(numbers[2]))) if numbers else 0.0


class Film:
    """A video that every browser plays: VP8 in WebM, which OpenCV writes without further libraries."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writer: cv2.VideoWriter | None = None

    def write(self, image: np.ndarray, fps: float) -> None:
        """Add a frame; the first one sets the size."""
        if self.writer is None:
            height, width = image.shape[:2]
            self.writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"VP80"), fps, (width, height))
            if not self.writer.isOpened():
                raise UserError("this build of OpenCV cannot write videos that a browser plays (VP8)")
        self.writer.write(image)

    def close(self) -> None:
        """Finish the file."""
        if self.writer is not None:
            self.writer.release()


class Tally:
    """Counts what is found, over one picture or all frames of a video."""

    def __init__(self) -> None:
        self.frames = 0
        self.boxes: Counter[str] = Counter()
        self.most: Counter[str] = Counter()  # in one frame
        self.best: dict[str, float] = {}  # confidence

    def add(self, result: Results) -> None:
        """Count the boxes of one frame."""
        self.frames += 1
        names = [result.names[int(kind)] for kind in result.boxes.cls]
        for name, count in Counter(names).items():
            self.boxes[name] += count
            self.most[name] = max(self.most[name], count)
        for name, confidence in zip(names, result.boxes.conf, strict=True):
            self.best[name] = max(self.best.get(name, 0.0), float(confidence))

    def text(self) -> str:
        """Return a sentence without its full stop."""
        boxes = sum(self.boxes.values())
        found = f"{boxes} object{'s' * (boxes != 1)}" if self.frames == 1 else f"{boxes} boxes in {self.frames} frames"
        return f"{found or 'Nothing'} found"

    def table(self) -> str:
        """Return the counts as HTML, the most frequent class first."""
        film = self.frames > 1
        heads = ["Class", "Boxes in all frames", "Most in one frame"] if film else ["Class", "Count"]
        rows = []
        for name, count in self.boxes.most_common():
            numbers = [count, self.most[name]] if film else [count]
            rows.append([name, *map(str, numbers), f"{self.best[name]:.2f}"])
        return html_table("Objects", [*heads, "Highest confidence"], rows)


def speed_table(milliseconds: dict[str, float]) -> str:
    """Return latencies as HTML: a bar for each and how many times as fast as the first it is."""
    first, longest = next(iter(milliseconds.values())), max(milliseconds.values())
    rows = [
        [title, f"{time_ms:.1f} ms", f"{first / time_ms:.2f}×", f"share:{100 * time_ms / longest:.1f}"]
        for title, time_ms in milliseconds.items()
    ]
    return html_table("Speed of the network", ["Form", "Latency", "Speed", ""], rows)


def html_table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the first column names its row, `share:50` is a bar of half the width, the rest are numbers."""

    def cell(text: str) -> str:
        if text.startswith("share:"):
            return f'<td class="track"><span style="width: {float(text[6:]):.1f}%"></span></td>'
        return f'<td class="number">{html.escape(text)}</td>'

    head = "".join(
        f'<th scope="col"{" class=number" * (i > 0)}>{html.escape(text)}</th>' for i, text in enumerate(heads)
    )
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th>{"".join(map(cell, cells))}</tr>' for name, *cells in rows
    )
    return (
        f'<table class="plain"><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


# The page -------------------------------------------------------------------------------------------------------------
def _make_page(studio: Studio) -> tuple[Any, dict[str, Any]]:
    """Return Gradio's page, and the options that it is launched with."""
    import gradio as gr  # noqa: PLC0415 (optional, and its switches are set before)

    def sentence(text: str, kind: str = "") -> str:
        return f'<p role="status" class="{kind}">{html.escape(text)}</p>'

    def on_detect(
        upload: str | None,
        name: str,
        conf: float,
        iou: float,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, ...]:
        hidden = gr.update(value=None, visible=False)
        if upload is None:
            return gr.update(value=None, visible=True), hidden, "", sentence("Drop a picture or a video to begin.")
        try:
            shown, counts, said = studio.detect(Path(upload), name, conf, iou, progress)
        except FAILURES as error:
            return gr.update(value=None, visible=True), hidden, "", sentence(str(error), "error")
        if isinstance(shown, Path):
            return hidden, gr.update(value=str(shown), visible=True), counts, sentence(said)
        return gr.update(value=shown, visible=True), hidden, counts, sentence(said)

    def on_speed(upload: str | None, name: str, progress: Any = gr.Progress()) -> str:  # noqa: B008
        if upload is None:
            return ""
        try:
            return studio.speed(name, progress)
        except FAILURES as error:
            return sentence(str(error), "error")

    names = list(studio.weights)
    with gr.Blocks(title="RepYOLO", analytics_enabled=False) as page:
        gr.HTML(
            "<h1>RepYOLO</h1><p>Drop a picture or a video, and see what the weights find and what fusing buys. "
            "Nothing leaves this machine.</p>",
            elem_id="top",
        )
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                upload = gr.File(label="Picture or video", elem_id="upload", height=150)
                weights = gr.Dropdown(names, value=names[0], label="Weights", elem_id="weights", filterable=False)
                conf = gr.Slider(0, 1, studio.options["conf_thres"], step=0.01, label="Confidence", elem_id="conf")
                iou = gr.Slider(0, 1, studio.options["iou_thres"], step=0.01, label="IoU of NMS", elem_id="iou")
                button = gr.Button("Detect", variant="primary", elem_id="detect")
                if pictures := sorted(EXAMPLES.glob("*.jpg")):
                    gr.Examples([[str(path)] for path in pictures], [upload], label="Pictures to try")
                speed = gr.HTML(elem_id="speed", min_height=60)
            with gr.Column(scale=3, min_width=400):
                picture = gr.Image(
                    label="Result",
                    elem_id="picture",
                    format="jpeg",
                    height=480,
                    interactive=False,
                    buttons=["download", "fullscreen"],
                )
                video = gr.Video(
                    label="Result", elem_id="video", height=480, visible=False, autoplay=True, buttons=["download"]
                )
                message = gr.HTML(sentence("Drop a picture or a video to begin."), elem_id="message")
                counts = gr.HTML(elem_id="counts")
        shown = [picture, video, counts, message]
        settings: dict[str, Any] = {"concurrency_id": "network", "concurrency_limit": 1, "api_visibility": "private"}
        for event in (button.click, upload.change):
            event(on_detect, [upload, weights, conf, iou], shown, show_progress_on=[picture, video], **settings).then(
                on_speed, [upload, weights], speed, **settings
            )
        for slider in (conf, iou):
            slider.release(on_detect, [upload, weights, conf, iou], shown, show_progress="minimal", **settings)
    fonts = ["system-ui", "sans-serif"]
    launch = {
        "theme": gr.themes.Base(font=fonts, font_mono=["ui-monospace", "monospace"], primary_hue="blue"),
        "css": (PAGES / "web.css").read_text(encoding="utf-8"),
        "footer_links": [],
        "max_file_size": UPLOAD,
        "prevent_thread_lock": True,
        "share": False,
        "quiet": True,
        "inbrowser": False,
        "ssr_mode": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "run_history": False,
        "pwa": False,
    }
    return page, launch
