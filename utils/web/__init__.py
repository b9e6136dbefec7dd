"""The page of `detect.py --web`: drop a picture or a video, see the boxes and what fusing and exporting buy.

Gradio serves it on this machine alone (127.0.0.1), without statistics and without anything from other hosts. What
the page can read is what was dropped on it and the weights on its list, which is made when it starts.
"""

from __future__ import annotations

from utils.web.server import find_listed, serve

__all__ = ["find_listed", "serve"]
