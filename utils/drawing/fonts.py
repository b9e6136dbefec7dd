"""Fonts that have the characters of a text: that of `--font`, the one that ships with matplotlib, and the system's.

Nothing is downloaded. What no font has is named once, and drawn as an escape such as `\\u5706`, so that two names never
look alike.
"""

from __future__ import annotations

import argparse
import functools
import unicodedata
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from PIL import ImageFont
from ultralytics.utils import LOGGER

from models.files import why_no_file
from utils.text import JOINERS, shorten

MOST_NAMED = 10  # characters that the warning shows
FANCY = ("italic", "oblique", "bold", "black", "light", "thin", "condensed", "mono", "serif")  # come after plain ones
CHOSEN: list[str] = []  # the file of --font
KNOWN: dict[str, str] = {}  # character → font, or nothing where none has it
WARNED: set[str] = set()  # characters


# What a user gives ----------------------------------------------------------------------------------------------------
def font_file(text: str) -> str:
    """Return the path of a `--font`; ArgumentTypeError for a file that is none."""
    problem = why_no_file(text)
    try:
        if not problem:
            ImageFont.truetype(text, 12)
            lacks(text, frozenset())
    except (OSError, ValueError, RuntimeError):
        problem = "is not a font, such as a .ttf, .otf or .ttc file"
    if problem:
        raise argparse.ArgumentTypeError(f"{shorten(text)} {problem}")
    return text


def use_font(font: str | None) -> None:
    """Draw with the font of this file from now on, as far as it goes; None: with the default one."""
    CHOSEN[:] = [font] if font else []
    KNOWN.clear()
    split_by_font.cache_clear()


# Which font has what --------------------------------------------------------------------------------------------------
def default_font(name: str = "") -> str:  # noqa: ARG001 (what ultralytics would look for, and download)
    """Return the font of texts that need no other."""
    return CHOSEN[0] if CHOSEN else bundled_font()


@functools.lru_cache(maxsize=4096)
def split_by_font(text: str) -> tuple[tuple[str, str], ...]:
    """Return the parts of a text as they are drawn and the font of each; what no font has is escaped."""
    fonts = fonts_for(visible(text))
    parts: list[tuple[str, str]] = []
    for character in text:
        font = parts[-1][1] if parts else default_font()
        piece = character
        if character != " " and character not in JOINERS:  # which go with what stands before them
            font = fonts.get(character, default_font())
            piece = character if character in fonts else character.encode("unicode_escape").decode()
        if parts and parts[-1][1] == font:
            piece = parts.pop()[0] + piece
        parts.append((piece, font))
    return tuple(parts)


def fonts_for(characters: Iterable[str]) -> dict[str, str]:
    """Return character → font, for those characters that one of the fonts has; the first font that has it."""
    left = frozenset(characters) - KNOWN.keys()
    for font in all_fonts():
        if not left:
            break
        try:
            missing = lacks(font, left)
        except (OSError, ValueError, RuntimeError):  # of the system's, a damaged one
            continue
        KNOWN.update(dict.fromkeys(left - missing, font))
        left = missing
    KNOWN.update(dict.fromkeys(left, ""))
    return {c: KNOWN[c] for c in characters if KNOWN[c]}


@functools.lru_cache(maxsize=4096)
def visible(text: str) -> frozenset[str]:
    """Return the characters of a text for which a font is needed."""
    return frozenset(c for c in text if c.isprintable() and c != " " and c not in JOINERS)


def all_fonts() -> Iterator[str]:
    """Yield the files of the fonts, the preferred ones first."""
    yield from CHOSEN
    yield bundled_font()
    yield from system_fonts()


def bundled_font() -> str:
    """Return DejaVu Sans, which ships with matplotlib."""
    import matplotlib as mpl  # noqa: PLC0415 (slow)

    return str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@functools.lru_cache(maxsize=1)
def system_fonts() -> tuple[str, ...]:
    """Return the files of the system's fonts that can be drawn in any size, plain ones first."""
    from matplotlib import font_manager  # noqa: PLC0415 (slow)

    files = [path for path in font_manager.findSystemFonts() if not why_no_file(path) and can_scale(path)]
    return tuple(sorted(files, key=lambda path: (sum(word in Path(path).name.lower() for word in FANCY), path)))


def can_scale(font: str) -> bool:
    """Return whether a file is a font that Pillow draws in any size, not one of bitmaps."""
    try:
        ImageFont.truetype(font, 12)
    except (OSError, ValueError):
        return False
    return True


def lacks(font: str, characters: frozenset[str]) -> frozenset[str]:
    """Return those of some characters that a font has not; RuntimeError for what is no font."""
    from matplotlib.ft2font import FT2Font  # noqa: PLC0415 (slow)

    face = FT2Font(font)
    return frozenset(c for c in characters if not face.get_char_index(ord(c)))


# What is said, and plots ----------------------------------------------------------------------------------------------
def warn_of_missing(text: str) -> None:
    """Say once which characters of class names no font has, of which script they are, and what can be done."""
    needed = visible(text)
    missing = sorted(needed - fonts_for(needed).keys() - WARNED)
    if missing:
        WARNED.update(missing)
        scripts = ", ".join(sorted(set(map(script_of, missing))))
        shown = "".join(missing[:MOST_NAMED]) + (f" and {len(missing) - MOST_NAMED} more" * (len(missing) > MOST_NAMED))
        LOGGER.warning(
            f"no font on this machine has the characters {shown} of class names ({scripts}), and pictures show "
            f"{missing[0].encode('unicode_escape').decode()} and so on: install one, such as Noto's, or name a file "
            "with --font"
        )


def script_of(character: str) -> str:
    """Return the script of a character by its Unicode name: CJK, Hangul, Thai; or "symbols"."""
    name = unicodedata.name(character, "").split()
    if not name or unicodedata.category(character)[0] not in "LMN":
        return "symbols"
    return name[0] if name[0] == "CJK" else name[0].title()


def use_in_plots(text: str) -> None:
    """Have matplotlib draw class names in fonts that have their characters, in plots from now on."""
    import matplotlib as mpl  # noqa: PLC0415 (slow)
    from matplotlib import font_manager  # noqa: PLC0415

    warn_of_missing(text)
    warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # said once
    others = dict.fromkeys(font for font in fonts_for(visible(text)).values() if font != bundled_font())
    for font in others:
        font_manager.fontManager.addfont(font)
    families = [font_manager.FontProperties(fname=font).get_name() for font in others]
    mpl.rcParams["font.family"] = [*(families if CHOSEN else []), "sans-serif", *(families if not CHOSEN else [])]
