"""Names of classes in any script: which font draws them, and what is said where none has them."""

import argparse

import matplotlib as mpl
import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from ultralytics.engine.results import Results
from ultralytics.utils import plotting

from utils.cli import Parser, add_font
from utils.drawing import Annotator, fonts

CHINESE = "\u5706\u5f62\u6c7d\u8f66"


@pytest.fixture(autouse=True)
def _bare(monkeypatch):
    """A machine with no other fonts than that of matplotlib, on which nothing was said yet."""
    monkeypatch.setattr(fonts, "system_fonts", lambda: ())
    fonts.WARNED.clear()
    fonts.use_font(None)
    yield
    fonts.use_font(None)


@pytest.fixture
def chinese_font(tmp_path):
    """A font of four Chinese characters, each a bar of another height, and of nothing else."""
    names = [".notdef", *(f"bar{i}" for i in range(len(CHINESE)))]
    glyphs = {}
    for i, name in enumerate(names):
        pen = TTGlyphPen(None)
        corners = [(100, 0), (100, 200 * i + 50), (900, 200 * i + 50), (900, 0)]
        pen.moveTo(corners[0])
        for corner in corners[1:]:
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(c): name for c, name in zip(CHINESE, names[1:], strict=True)})
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "Bars", "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(tmp_path / "bars.ttf")
    return str(tmp_path / "bars.ttf")


def drawn(name, **options):
    """The picture of one box with this class name."""
    boxes = torch.tensor([[20.0, 40, 120, 100, 0.9, 0]])
    result = Results(np.full((120, 300, 3), 90, np.uint8), "p.png", {0: name}, boxes=boxes)
    return result.plot(line_width=2, **options)


def test_ultralytics_draws_with_ours():
    assert plotting.Annotator is Annotator
    assert plotting.check_font("Arial.Unicode.ttf") == fonts.bundled_font()


def test_names_that_no_font_has_are_told_apart_and_named_once(log):
    assert not np.array_equal(drawn(CHINESE[:2]), drawn(CHINESE[2:]))
    drawn(CHINESE[:2])
    said = [line for line in log if "no font" in line]
    assert len(said) == 2
    assert "CJK" in said[0] and "--font" in said[0] and r"\u5706" in said[0]
    assert fonts.split_by_font("圆 1") == ((r"\u5706 1", fonts.bundled_font()),)


@pytest.mark.parametrize("of_the_system", [True, False])
def test_a_font_that_has_them_is_found_or_given(chinese_font, of_the_system, monkeypatch, log):
    escaped = drawn(CHINESE[:2])
    if of_the_system:
        monkeypatch.setattr(fonts, "system_fonts", lambda: (chinese_font,))
    fonts.use_font(None if of_the_system else chinese_font)
    log.clear()
    first, second = drawn(CHINESE[:2]), drawn(CHINESE[2:])
    assert not np.array_equal(first, second) and not np.array_equal(first, escaped)
    assert not log
    parts = fonts.split_by_font("圆形 cat")
    assert parts[0][1] == chinese_font and parts[-1] == ("cat", fonts.bundled_font())


def test_latin_names_look_as_before(monkeypatch):
    ours = drawn("caf\xe9 g")
    monkeypatch.setattr("ultralytics.engine.results.Annotator", Annotator.__mro__[1])
    assert np.array_equal(ours, drawn("caf\xe9 g"))


@pytest.mark.parametrize("name", ["\ud800x", "a\nb", "\x00", "\u200c\u0645\u06cc\u200c\u062e", "\U0001f697", " ", ""])
def test_any_text_is_drawn(name):
    assert drawn(name).shape == (120, 300, 3)
    assert drawn(name, conf=False).shape == (120, 300, 3)
    assert plotting.plot_images(
        {"img": torch.zeros(1, 3, 64, 64), "cls": torch.zeros(1), "bboxes": torch.full((1, 4), 0.5)}
        | {"batch_idx": torch.zeros(1)},
        paths=[f"{name}.png"],
        names={0: name},
        save=False,
        threaded=False,
    ).any()


def test_plots_use_the_font(chinese_font, monkeypatch):
    monkeypatch.setitem(mpl.rcParams, "font.family", ["sans-serif"])
    fonts.use_in_plots("cat")
    assert mpl.rcParams["font.family"] == ["sans-serif"]
    monkeypatch.setattr(fonts, "system_fonts", lambda: (chinese_font,))
    fonts.use_in_plots(CHINESE)
    assert mpl.rcParams["font.family"] == ["sans-serif", "Bars"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none.ttf", "does not exist"), ("text.ttf", "is not a font"), (".", "is not a file but a folder")],
)
def test_a_wrong_font_is_one_sentence(name, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.ttf").write_text("no font")
    with pytest.raises(argparse.ArgumentTypeError, match=reason):
        fonts.font_file(name)
    parser = Parser()
    add_font(parser)
    with pytest.raises(ValueError, match=reason):
        parser.parse_args(["--font", name])


def test_fonts_of_the_system_are_scalable_files(tmp_path, monkeypatch):
    (tmp_path / "damaged.ttf").write_bytes(b"\x00\x01\x00\x00")
    found = [str(tmp_path / "damaged.ttf"), fonts.bundled_font()]
    monkeypatch.undo()
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: found)
    fonts.system_fonts.cache_clear()
    assert fonts.system_fonts() == (fonts.bundled_font(),)
    fonts.system_fonts.cache_clear()


@pytest.mark.parametrize(
    ("character", "script"),
    [("圆", "CJK"), ("한", "Hangul"), ("ق", "Arabic"), ("ไ", "Thai"), ("\U0001f697", "symbols")],
)
def test_scripts_have_names(character, script):
    assert fonts.script_of(character) == script
