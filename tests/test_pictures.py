"""A picture is read alike for a request and for training; what is broken is one line."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from everyway.data.check import check
from everyway.data.folder import Folder, FolderError
from everyway.request import RequestError, read_image


def _both(path) -> np.ndarray:
    """The pixels, which are the same both ways."""
    asked, trained = np.asarray(read_image(path)), Folder(path.parent).sample(0).image
    assert np.array_equal(asked, trained) and np.array_equal(asked, read_image(str(path)))
    return asked


def _chunk(kind: bytes, content: bytes) -> bytes:
    check_sum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check_sum


def _png(width: int, height: int, after: bytes = b"") -> bytes:
    """A grey PNG of few rows, whatever its header says, with `after` behind its pixels."""
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress(b"\0" * (width + 1) * min(height, 8)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + after + _chunk(b"IEND", b"")


def test_a_picture_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    made = _both(tmp_path / "a.png")
    assert made.shape == (16, 8, 3) and made[:8].min() == 255 and made[8:].max() == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(tmp_path, mode):
    clear = {"transparency": 0} if mode == "P" else {}
    Image.new(mode, (3, 2), 0).save(tmp_path / "a.png", **clear)
    assert _both(tmp_path / "a.png").min() == 255


GREYS = {
    "16 bits": (np.array([[0, 257, 32896, 65535]], np.uint16), "PNG"),
    "32 bits": (np.array([[-5, 257, 32896, 65536]], np.int32), "TIFF"),
    "floats": (np.array([[np.nan, 1 / 255, 128.1 / 255, 1]], np.float32), "TIFF"),
    "floats to 255": (np.array([[0, 1.1, 128.1, 255]], np.float32), "TIFF"),
    "floats to 65535": (np.array([[-1, 257, 32896, 65535]], np.float32), "TIFF"),
}


@pytest.mark.parametrize("kind", GREYS)
def test_deep_greys_become_8_bits(tmp_path, kind):
    values, form = GREYS[kind]
    Image.fromarray(values).save(tmp_path / "a.png", format=form)
    made = _both(tmp_path / "a.png")
    assert made.shape == (1, 4, 3) and made[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_deep_grey_that_is_transparent_is_white(tmp_path):
    values = np.array([[0, 300, 257]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png", transparency=300)
    assert _both(tmp_path / "a.png")[0, :, 0].tolist() == [0, 255, 1]


BROKEN = {
    "chunk of text": _png(8, 8, _chunk(b"zTXt", b"a\0\1b")),
    "chunk of size": _png(8, 8, _chunk(b"pHYs", b"ab")),
    "cut": _png(8, 8)[:-24],
    "header": _png(30000, 30000),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_picture_is_one_line(tmp_path, kind):
    path = tmp_path / "bad.png"
    path.write_bytes(BROKEN[kind])
    with pytest.raises(RequestError, match=r"bad\.png.*give") as asked:
        read_image(path)
    with pytest.raises(FolderError, match=r"bad\.png cannot be read: .*take it out") as trained:
        Folder(tmp_path).sample(0)
    assert "\n" not in f"{asked.value}{trained.value}"
    assert [name for name, _ in check(tmp_path).unreadable] == ["bad.png"]


@pytest.mark.filterwarnings("error")
def test_a_picture_of_broken_exif_is_read_without_a_word(tmp_path):
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x09"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert _both(tmp_path / "a.jpg").shape == (8, 8, 3)


@pytest.mark.parametrize("error", [SyntaxError, struct.error, EOFError, KeyError, IndexError])
def test_whatever_a_decoder_raises_is_one_line(tmp_path, monkeypatch, error):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def broken(*_):
        raise error("two\nlines")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", broken)
    with pytest.raises(RequestError, match=r"a\.png.* is damaged \([^\n]*\); give"):
        read_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("error")
def test_a_large_picture_is_read_without_a_word(tmp_path, monkeypatch):
    Image.new("L", (15, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert _both(tmp_path / "a.png").shape == (10, 15, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 70)
    with pytest.raises(RequestError, match="more than 0 million pixels; make it smaller"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["none.png", "", "a\0b", "a" * 5000])
def test_no_picture_is_one_line(tmp_path, name):
    with pytest.raises(RequestError, match="check the path|cannot be read"):
        read_image(str(tmp_path / name))
