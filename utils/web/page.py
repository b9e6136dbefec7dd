"""The page itself: Gradio's components, what they call, and the options that it is launched with.

Importing this module imports Gradio, whose switches `utils.web.server` sets before.
"""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from models.errors import ConfigError, UserError, WeightsError
from utils.deploy.run import RUN_ERRORS
from utils.deploy.write import ExportError
from utils.paths import ROOT
from utils.web.service import DetectionService

CSS = Path(__file__).with_name("web.css")
PICTURES_TO_TRY = ROOT / "data" / "images"
SHOWN_ERRORS = (UserError, ConfigError, WeightsError, ExportError, *RUN_ERRORS)  # that become a sentence in the page
INTRODUCTION = (
    "<h1>RepYOLO</h1><p>Drop a picture or a video, and see what the weights find and what fusing buys. "
    "Nothing leaves this machine.</p>"
)
HINT = "Drop a picture or a video to begin."
EVENTS: dict[str, Any] = {"concurrency_id": "network", "concurrency_limit": 1, "api_visibility": "private"}
OWN_NAMES = ["127.0.0.1", "localhost"]  # another one in a request is that of a site whose name was led to this machine
LAUNCH: dict[str, Any] = {
    "app_kwargs": {"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=OWN_NAMES)]},
    "server_name": "127.0.0.1",
    "footer_links": [],
    "max_file_size": "500mb",  # of an upload
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


class Page:
    """Gradio's page: uploads, weights and thresholds on the left, what was found on the right.

    Args:
        service: answers what the page asks for.
    """

    def __init__(self, service: DetectionService) -> None:
        self.service = service
        with gr.Blocks(title="RepYOLO", analytics_enabled=False) as self.blocks:
            gr.HTML(INTRODUCTION, elem_id="top")
            with gr.Row():
                with gr.Column(scale=2, min_width=300):
                    self._add_inputs()
                with gr.Column(scale=3, min_width=400):
                    self._add_results()
            self._connect()

    def launch(self, port: int | None) -> str:
        """Start serving in threads of their own and return the address; OSError if the port is taken."""
        theme = gr.themes.Base(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue"
        )
        css = CSS.read_text(encoding="utf-8")
        _, address, _ = self.blocks.launch(server_port=port, theme=theme, css=css, **LAUNCH)
        return address

    def close(self) -> None:
        """Stop serving, and what is still computed."""
        self.blocks.close()
        self.service.close()

    # Components -------------------------------------------------------------------------------------------------------
    def _add_inputs(self) -> None:
        names, options = list(self.service.weights), self.service.options
        self.upload = gr.File(label="Picture or video", elem_id="upload", height=150)
        self.weights = gr.Dropdown(names, value=names[0], label="Weights", elem_id="weights", filterable=False)
        self.conf = gr.Slider(0, 1, options["conf_thres"], step=0.01, label="Confidence", elem_id="conf")
        self.iou = gr.Slider(0, 1, options["iou_thres"], step=0.01, label="IoU of NMS", elem_id="iou")
        self.button = gr.Button("Detect", variant="primary", elem_id="detect")
        if pictures := sorted(PICTURES_TO_TRY.glob("*.jpg")):
            gr.Examples([[str(path)] for path in pictures], [self.upload], label="Pictures to try")
        self.speed = gr.HTML(elem_id="speed", min_height=60)

    def _add_results(self) -> None:
        sized: dict[str, Any] = {"label": "Result", "height": 480}
        self.picture = gr.Image(
            elem_id="picture", format="jpeg", interactive=False, buttons=["download", "fullscreen"], **sized
        )
        self.video = gr.Video(elem_id="video", visible=False, autoplay=True, buttons=["download"], **sized)
        self.message = gr.HTML(_sentence(HINT), elem_id="message")
        self.counts = gr.HTML(elem_id="counts")

    def _connect(self) -> None:
        asked = [self.upload, self.weights, self.conf, self.iou]
        shown = [self.picture, self.video, self.counts, self.message]
        for event in (self.button.click, self.upload.change):
            event(self.on_detect, asked, shown, show_progress_on=[self.picture, self.video], **EVENTS).then(
                self.on_speed, [self.upload, self.weights], self.speed, **EVENTS
            )
        for slider in (self.conf, self.iou):
            slider.release(self.on_detect, asked, shown, show_progress="minimal", **EVENTS)

    # What they call ---------------------------------------------------------------------------------------------------
    def on_detect(
        self,
        upload: str | None,
        name: str,
        conf: float,
        iou: float,
        progress: Any = gr.Progress(),  # noqa: B008 (Gradio finds it by this default)
    ) -> tuple[Any, Any, str, str]:
        """Return what to show as picture, video, counts and message for an upload and the choices beside it."""
        hidden, no_picture = gr.update(value=None, visible=False), gr.update(value=None, visible=True)
        if upload is None:
            return no_picture, hidden, "", _sentence(HINT)
        try:
            found = self.service.detect(Path(upload), name, conf, iou, progress)
        except SHOWN_ERRORS as error:
            return no_picture, hidden, "", _sentence(str(error), "error")
        if isinstance(found.drawn, Path):
            return hidden, gr.update(value=str(found.drawn), visible=True), found.counts, _sentence(found.sentence)
        return gr.update(value=found.drawn, visible=True), hidden, found.counts, _sentence(found.sentence)

    def on_speed(
        self,
        upload: str | None,
        name: str,
        progress: Any = gr.Progress(),  # noqa: B008 (Gradio finds it by this default)
    ) -> str:
        """Return the table of latencies of these weights, once there is an upload."""
        if upload is None:
            return ""
        try:
            return self.service.speed(name, progress)
        except SHOWN_ERRORS as error:
            return _sentence(str(error), "error")


def _sentence(text: str, kind: str = "") -> str:
    """Return plain text as a paragraph of this CSS class."""
    return f'<p role="status" class="{kind}">{html.escape(text)}</p>'
