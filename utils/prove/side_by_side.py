"""The picture that goes with a proof: what the unfused model sees and what the file sees, side by side."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from ultralytics.engine.results import Results
from ultralytics.utils import ops

from utils.deploy.run import Outputs
from utils.prove.compare import detections
from utils.prove.reference import Case, Evidence, Reference

PICTURE_SIDE = 640  # pixels that the longer side of each picture has at least
MARGIN, FONT = 10, 18  # pixels
MOST_BOXES = 20  # boxes drawn where the model sees nothing and the best of the background were compared
BLACK, PAPER, GREY = (20, 20, 20), (250, 250, 250), (110, 110, 110)


def draw_side_by_side(reference: Reference, case: Case, title: str) -> np.ndarray:
    """Return what was compared in a case as one picture, (H, W, 3) uint8 in BGR.

    Left are the boxes, and masks, of the unfused model, right those of the file; above, whose they are and how far
    they are apart. Of a batch the picture with the largest error is shown.

    Args:
        reference: the unfused model.
        case: one that has evidence.
        title: of the file.
    """
    if case.evidence is None:
        raise ValueError(f"the case {case.picture} of {case.file} holds no evidence")
    shown = _worst_of(reference, case, case.evidence)
    conf, nms, ranked = case.difference.conf, shown.nms, reference.model.end2end
    nms_options = {"iou_thres": nms.iou_thres, "agnostic": nms.agnostic_nms, "max_det": nms.max_det} if nms else {}
    pairs = [(shown.expected, _rows(reference, shown.expected, ranked, conf, nms_options))]
    pairs.append((shown.got, _rows(reference, shown.got, ranked or nms is not None, conf, {})))
    sides = [_draw(reference, shown.images[0], rows, outputs[1:]) for outputs, rows in pairs]
    height, width = sides[0].shape[:2]
    line = FONT + MARGIN
    sheet = Image.new("RGB", (2 * width + 3 * MARGIN, height + 3 * line + 2 * MARGIN), PAPER)
    for i, (name, side) in enumerate(zip(("unfused PyTorch", title), sides, strict=True)):
        left = MARGIN + i * (width + MARGIN)
        sheet.paste(Image.fromarray(side[..., ::-1]), (left, 3 * line + MARGIN))
        _write(sheet, (left, 2 * line + MARGIN), name, BLACK)
    for i, (text, colour) in enumerate(zip(_caption(case), (BLACK, GREY), strict=True)):
        _write(sheet, (MARGIN, i * line + MARGIN), text, colour)
    return np.ascontiguousarray(np.asarray(sheet)[..., ::-1])


def _caption(case: Case) -> tuple[str, str]:
    """Return two lines: the errors, and what was compared."""
    d = case.difference
    verdict = "agrees" if case.ok else "DIFFERS"
    errors = d.problem or f"box error {d.box_px:.1e} px, score error {d.score:.1e}"
    masks = f", mask error {d.mask:.1e}" if d.mask else ""
    found = f"{d.matched} of {d.reference} boxes found, least IoU {d.min_iou:.6f}"
    if not d.sees_something:
        found = "the model sees nothing here; the best of the background"
    size = "x".join(map(str, case.size))
    return f"{verdict}: {errors}{masks}", f"largest error of all pictures: {case.picture} at {size}; {found}"


def _write(sheet: Image.Image, place: tuple[int, int], text: str, colour: tuple[int, int, int]) -> None:
    """Write a line, as small as it must be to fit."""
    draw = ImageDraw.Draw(sheet)
    text = text.encode("latin-1", "replace").decode("latin-1")  # what the font has
    for size in range(FONT, 6, -1):
        font = ImageFont.load_default(size)
        if place[0] + draw.textlength(text, font) <= sheet.width - MARGIN:
            break
    draw.text(place, text, colour, font)


def _worst_of(reference: Reference, case: Case, evidence: Evidence) -> Evidence:
    """Return the evidence for the one picture of a batch with the largest error."""
    singles = evidence.singles()
    if len(singles) == 1 or case.difference.problem:
        return singles[0]
    return max(singles, key=lambda one: reference.judge(case.file, case.picture, one, case.allowed)[0].excess)


def _draw(reference: Reference, image: Tensor, rows: Tensor, protos: Outputs) -> np.ndarray:
    """Return a picture (ch, H, W) in [0, 1] with detections, enlarged, as (H, W, 3) uint8 BGR."""
    rgb = image[[i % len(image) for i in range(3)]].permute(1, 2, 0).mul(255).round().byte().numpy()
    scale = max(1, round(PICTURE_SIDE / max(rgb.shape)))
    masks = None
    if protos and len(rows):
        masks = ops.process_mask(protos[0][0], rows[:, 6:], rows[:, :4], rgb.shape[:2], upsample=True)
        masks = masks.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    boxes = torch.cat([rows[:, :4] * scale, rows[:, 4:6]], 1)
    large = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    names = {
        kind: reference.model.names.get(kind, f"class {kind}") for kind in map(int, rows[:, 5])
    }  # a wrong file has any
    result = Results(np.ascontiguousarray(large[..., ::-1]), "", names, boxes=boxes, masks=masks)
    return result.plot(line_width=2)


def _rows(reference: Reference, outputs: Outputs, ranked: bool, conf: float, nms_options: dict[str, Any]) -> Tensor:
    """Return the detections of batch 1 that can be drawn; none of outputs that are not the model's.

    Args:
        reference: says how many classes there are.
        outputs: boxes, ranked or before NMS.
        ranked: which of both.
        conf: least score.
        nms_options: options of NMS.
    """
    try:
        rows = detections(outputs[0], reference.model.nc, ranked, conf, **nms_options)[0]
    except (RuntimeError, IndexError, AssertionError):
        return torch.zeros(0, 6)
    return rows[rows.isfinite().all(1)][: MOST_BOXES if conf < 0.25 else None]
