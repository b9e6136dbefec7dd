"""Following objects from frame to frame: ultralytics' trackers, one for each video or stream.

A tracker takes boxes down to a low confidence, with which it holds on to what it has seen before; new objects start
with `--conf-thres`. ByteTrack: https://arxiv.org/abs/2110.06864, BoT-SORT: https://arxiv.org/abs/2206.14651.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils import YAML, IterableSimpleNamespace
from ultralytics.utils.checks import check_yaml

from models.errors import UserError
from utils.detect.frame import Found

TRACKERS = {"bytetrack": "BYTETracker", "botsort": "BOTSORT"}  # by their names in ultralytics.trackers
LOW_CONF = 0.1  # least confidence of a box that goes on with a track


class Tracking:
    """Gives objects numbers that they keep from frame to frame.

    Args:
        kind: one of TRACKERS.
        conf_thres: confidence with which a new object starts, 0 to 1.

    Raises:
        UserError: the package that the trackers need is missing.
    """

    def __init__(self, kind: str, conf_thres: float) -> None:
        if importlib.util.find_spec("lap") is None:
            raise UserError("--track needs the package lap: pip install lap==0.5.13")
        from ultralytics import trackers  # noqa: PLC0415 (would try to install what is missing)

        self._class = getattr(trackers, TRACKERS[kind])
        options = YAML.load(check_yaml(f"{kind}.yaml"))
        options |= {"track_high_thresh": conf_thres, "new_track_thresh": conf_thres, "track_low_thresh": LOW_CONF}
        self._options = IterableSimpleNamespace(**options)
        self._trackers: dict[Path, Any] = {}  # of the videos and streams that run

    def follow(self, found: Found) -> Found:
        """Return what was found with a number for each object, and without those that are not certain yet.

        Frames must come in order. Pictures, which are no frames of anything, keep their certain boxes.
        """
        frame, result = found.frame, found.result
        if frame.number is None:
            return dataclasses.replace(found, result=result[result.boxes.conf > self._options.track_high_thresh])
        tracks = self._tracker(found).update(result.boxes, frame.image)
        if not len(tracks):
            return dataclasses.replace(found, result=result[:0])
        followed = result[tracks[:, -1].astype(int)]
        followed.update(boxes=torch.as_tensor(tracks[:, :-1]))
        return dataclasses.replace(found, result=followed.numpy())

    def _tracker(self, found: Found) -> Any:
        """Return the tracker of the frame's video, new for each; streams run side by side and have one each."""
        path = found.frame.path
        if path not in self._trackers:
            if not found.frame.live:
                self._trackers.clear()
            self._trackers[path] = self._class(self._options)
        return self._trackers[path]
