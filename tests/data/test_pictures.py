"""Pictures of every kind that people have, decoded to the same 8-bit colours, or refused with the reason."""

import os
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.data import pictures
from utils.data.pictures import Unreadable, is_picture, read_picture

# isort: split
from ultralytics.utils import LOGGER

HEIGHT, WIDTH = 40, 60
TURNS = {  # EXIF orientation → what was done to the picture
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def gradient(levels=255, dtype=np.uint8):
    """Red grows to the right, green downwards, blue to the left; (H, W, 3) RGB."""
    x, y = np.meshgrid(np.linspace(0, levels, WIDTH), np.linspace(0, levels, HEIGHT))
    return np.stack([x, y, levels - x], 2).round().astype(dtype)


COLOURS, GREY = gradient(), gradient()[..., :1].repeat(3, 2)
PICTURE = Image.fromarray(COLOURS)


def error(path, expected=COLOURS):
    """Return how far the decoded picture is off on average, of 255."""
    image = read_picture(path)
    assert image.dtype == np.uint8 and image.shape == expected.shape
    return np.abs(image[..., ::-1].astype(int) - expected).mean()


@pytest.fixture
def warnings(monkeypatch):
    lines = []
    monkeypatch.setattr(LOGGER, "warning", lines.append)
    return lines


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sixteen_bits_are_scaled_not_wrapped(tmp_path, warnings, suffix, channels):
    deep = gradient(65535, np.uint16)[..., ::-1]
    alpha = np.full((HEIGHT, WIDTH, 1), 65535, np.uint16)
    image = {1: deep[..., 2], 3: deep, 4: np.concatenate([deep, alpha], 2)}[channels]
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), image)
    assert error(path, GREY if channels == 1 else COLOURS) < 0.5
    assert warnings == []


def test_twelve_bits_in_sixteen_are_said_to_be_dark(tmp_path, warnings):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), gradient(4095, np.uint16)[..., 0])
    assert read_picture(path).max() < 16
    assert len(warnings) == 1 and "12 or fewer" in warnings[0]


@pytest.mark.parametrize(
    ("mode", "suffix", "within"),
    [
        ("CMYK", "jpg", 2),
        ("CMYK", "tif", 0),
        ("RGBA", "png", 0),
        ("RGBA", "tif", 0),
        ("RGBA", "webp", 0),
        ("YCbCr", "tif", 1),
        ("RGB", "jp2", 0),
        ("RGB", "avif", 3),
        ("RGB", "bmp", 0),
    ],
)
def test_colours(tmp_path, mode, suffix, within):
    path = tmp_path / f"a.{suffix}"
    PICTURE.convert(mode).save(path, quality=95, lossless=True)
    assert error(path) <= within


@pytest.mark.parametrize("ending", [".jfif", ".JPE", ".jif", ".ppm", ""])
def test_other_suffixes_and_none(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    PICTURE.save(path, format="PPM" if ending == ".ppm" else "JPEG", quality=95)
    assert is_picture(path)
    assert error(path) < 2


def test_without_suffix_the_first_bytes_decide(tmp_path):
    (tmp_path / "README").write_text("what is here")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    PICTURE.save(tmp_path / "icon", format="ICO")  # which OpenCV does not decode
    assert not any(map(is_picture, [*tmp_path.iterdir(), tmp_path / "gone"]))
    PICTURE.save(tmp_path / "photo", format="WEBP")
    assert is_picture(tmp_path / "photo")


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey(tmp_path, mode, suffix):
    if mode == "LA" and suffix == "jpg":
        pytest.skip("JPEG has no transparency")
    path, picture = tmp_path / f"a.{suffix}", PICTURE.convert("L").convert(mode)
    picture.save(path, quality=95)
    assert error(path, np.asarray(picture.convert("RGB"))) < (30 if (mode, suffix) == ("1", "jpg") else 1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", TURNS)
def test_rotation_is_undone(tmp_path, orientation, suffix):
    turned = PICTURE if TURNS[orientation] is None else PICTURE.transpose(TURNS[orientation])
    exif = Image.Exif()
    exif[0x112] = orientation
    where = {"tiffinfo": {0x112: orientation}} if suffix == "tif" else {"exif": exif}
    turned.save(tmp_path / f"a.{suffix}", quality=95, lossless=True, **where)
    assert error(tmp_path / f"a.{suffix}") < 2


@pytest.mark.parametrize(("suffix", "kinds"), [("tif", "RGB"), ("tif", "L"), ("webp", "RGB"), ("png", "RGB")])
def test_of_several_pictures_in_a_file_the_first_is_taken_and_said_so(tmp_path, warnings, suffix, kinds):
    first = PICTURE.convert(kinds)
    path = tmp_path / f"a.{suffix}"
    first.save(path, save_all=True, append_images=[first.rotate(180), first.rotate(90)], lossless=True)
    assert error(path, np.asarray(first.convert("RGB"))) == 0
    assert warnings == [f"{path} holds 3 pictures, the first of which is taken"]


@pytest.mark.parametrize("channels", [1, 3])
def test_numbers_of_thirty_two_bits_are_refused(tmp_path, channels):
    path = tmp_path / "a.tif"
    cv2.imwrite(str(path), gradient().astype(np.float32)[..., :channels])
    with pytest.raises(Unreadable, match="32 bits a channel" if channels == 1 else "not a picture"):
        read_picture(path)


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x112] = orientation
        turned = PICTURE if orientation == 1 else PICTURE.transpose(TURNS[6])
        heif.from_pillow(turned).save(tmp_path / "a.heic", quality=95, exif=exif.tobytes())
        assert error(tmp_path / "a.heic") < 3


def test_heic_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(Unreadable, match="needs the package pillow-heif: pip install pillow-heif"):
        read_picture(tmp_path / "a.heic")


def test_pages_count_where_all_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setitem(pictures.LIMIT, "megapixels", 1)
    large = PICTURE.resize((800, 500))
    for suffix in ("tif", "webp"):
        large.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[large.rotate(180)] * 2)
    read_picture(tmp_path / "a.webp")
    with pytest.raises(Unreadable, match=r"3 pages of 800x500 pixels, more than the 1 million .* --megapixels 2$"):
        read_picture(tmp_path / "a.tif")


def test_a_larger_picture_is_read_when_that_is_allowed(tmp_path, monkeypatch):
    monkeypatch.setitem(pictures.LIMIT, "megapixels", 1)
    path = tmp_path / "a.png"
    PICTURE.resize((1250, 1000)).save(path)
    with pytest.raises(Unreadable, match=r"1250x1000 pixels, more than the 1 million allowed: give --megapixels 2$"):
        read_picture(path)
    pictures.allow_megapixels(2)
    assert read_picture(path).shape == (1000, 1250, 3)


def test_pixels_that_pillow_refuses_are_counted(tmp_path):
    path = tmp_path / "a.bmp"
    header = np.array([0x36, 0, 0x36, 40, 40_000, 30_000], "<u4").tobytes() + b"\1\0\x18\0" + bytes(24)
    path.write_bytes(b"BM" + header)
    with pytest.raises(Unreadable, match="40000x30000 pixels, more than the 1000 million that can be decoded"):
        read_picture(path)
