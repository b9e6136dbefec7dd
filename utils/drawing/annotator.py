"""ultralytics' Annotator with a font for every script."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from PIL import ImageDraw, ImageFont
from ultralytics.utils import plotting

from models.environment import patch_ultralytics
from utils.drawing.fonts import CHOSEN, default_font, split_by_font, warn_of_missing
from utils.text import printable


class Typeface:
    """Fonts of one size in pixels, as much of a font as the Annotator asks for."""

    def __init__(self, size: float) -> None:
        self.size = size

    def parts(self, text: str) -> list[tuple[str, ImageFont.FreeTypeFont]]:
        """Return the parts of a text and the font of each."""
        return [(part, open_font(font, self.size)) for part, font in split_by_font(text)]

    def ascent(self, text: str) -> int:
        """Return the pixels from the top of a line to what its letters stand on."""
        return max((font.getmetrics()[0] for _, font in self.parts(text)), default=0)

    def getsize(self, text: str) -> tuple[float, float]:
        """Return the width and height of a line in pixels."""
        boxes = [font.getbbox(part, anchor="ls") for part, font in self.parts(text)]
        lengths = [font.getlength(part) for part, font in self.parts(text)]
        right = boxes[-1][2] if boxes else 0  # slanted letters may reach further
        return sum(lengths[:-1]) + right, self.ascent(text) + max((box[3] for box in boxes), default=0)


class Pen(ImageDraw.ImageDraw):
    """Draws a line of text with the fonts of a Typeface."""

    def text(self, xy: Any, text: Any, fill: Any = None, font: Any = None, *args: Any, **kwargs: Any) -> None:
        """Draw a text, the top left corner of which is at `xy`."""
        if not isinstance(font, Typeface):
            super().text(xy, text, fill, font, *args, **kwargs)
            return
        x, y = xy[0], xy[1] + font.ascent(text)
        for part, one in font.parts(text):
            super().text((x, y), part, fill, one, "ls")
            x += one.getlength(part)


class Annotator(plotting.Annotator):
    """ultralytics' Annotator, which draws each label with fonts that have its characters, and says what none has."""

    font: Any  # Pillow's, then a Typeface

    def __init__(
        self,
        im: Any,
        line_width: int | None = None,
        font_size: int | None = None,
        font: str = "Arial.ttf",
        pil: bool = False,
        example: Any = "abc",
    ) -> None:
        names = "".join(map(str, example.values())) if isinstance(example, Mapping) else str(example)
        if not names.isascii():
            warn_of_missing(names)
        super().__init__(im, line_width, font_size, font, pil or bool(CHOSEN), names)
        if self.pil:
            self.font = Typeface(self.font.size)
            self.draw = Pen(self.im, "RGBA")

    def fromarray(self, im: Any) -> None:
        """Go on with another picture."""
        super().fromarray(im)
        self.draw = Pen(self.im)

    def box_label(self, box: Any, label: str = "", *args: Any, **kwargs: Any) -> None:
        """Draw a box and its label."""
        super().box_label(box, label and printable(label), *args, **kwargs)

    def text(self, xy: Any, text: str, *args: Any, **kwargs: Any) -> None:
        """Draw a text of one or more lines."""
        super().text(xy, "\n".join(map(printable, text.split("\n"))), *args, **kwargs)


@functools.lru_cache(maxsize=64)
def open_font(font: str, size: float) -> ImageFont.FreeTypeFont:
    """Return the font of a file, in pixels."""
    return ImageFont.truetype(font, size)


patch_ultralytics(annotator=Annotator, check_font=default_font)
