"""Sheets: where things stand, and captions in Latin letters and Hangul, with and without a font."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
from PIL import Image, ImageFont

from everyway import sheet as page
from everyway.sheet import GAP, HANGUL_FONTS, LINE, LINES, SIDE, SIZE, TITLE, Cell, Section, sheet

KOREAN, LETTERS = "분홍 배경에 큰 여우", "bunhong baegyeonge keun yeou"


@pytest.fixture
def no_font(monkeypatch):
    """A system without any of the fonts."""
    monkeypatch.setattr(page, "HANGUL_FONTS", ())
    page.hangul_font.cache_clear()
    yield
    page.hangul_font.cache_clear()


@pytest.fixture
def some_font(monkeypatch):
    """A system on which only the fourth font is, for which Pillow's own stands in."""
    asked, own = [], ImageFont.load_default(SIZE)

    def truetype(name: str, size: int):
        asked.append(name)
        if len(asked) < 4:
            raise OSError("cannot open resource")
        return own

    monkeypatch.setattr(page.ImageFont, "truetype", truetype)
    page.hangul_font.cache_clear()
    yield asked
    page.hangul_font.cache_clear()


def drawn(text: str, **settings) -> np.ndarray:
    """A page of one picture with a caption."""
    picture = Image.new("RGB", (8, 8), "navy")
    cell = Cell(image=picture, text=text, **settings)
    return np.asarray(sheet([Section(title="title", cells=[cell])], across=1))


def test_size_and_places():
    red, blue = (Image.new("RGB", (16, 16), c) for c in ("red", "blue"))
    sections = [
        Section(title="first", cells=[Cell(image=red), Cell(image=blue)]),
        Section(title="second", cells=[Cell(text="words")]),
        Section(title="third", cells=[Cell(image=blue)]),
    ]
    made = sheet(sections)
    width, height = 2 * (SIDE + GAP) + 2 * GAP, TITLE + SIDE + LINES * LINE + 2 * GAP
    assert made.size == (2 * width + GAP, 2 * height + GAP)
    x, y = 2 * GAP + SIDE // 2, GAP + TITLE + SIDE // 2
    assert made.getpixel((x, y)) == (255, 0, 0)
    assert made.getpixel((x + SIDE + GAP, y)) == made.getpixel((x, y + height)) == (0, 0, 255)
    assert made.getpixel((x + width, y)) == (244, 244, 246)  # behind words alone


def test_a_verdict_has_its_colour():
    for right, ink in ((True, page.RIGHT), (False, page.WRONG), (None, page.SOFT)):
        colour = tuple(int(ink[i : i + 2], 16) for i in (1, 3, 5))
        below = drawn("M" * 8, right=right)[GAP + TITLE + SIDE + 3 :].reshape(-1, 3)
        assert (below == colour).all(1).any(), right


def test_no_word_leaves_its_column():
    below = drawn("a fox left of a teapot on a plain blue background " * 4)
    below = below[GAP + TITLE + SIDE + 3 :]
    assert (below[:, 2 * GAP + SIDE + 3 :] == 255).all()
    rows = np.nonzero((below < 255).any((1, 2)))[0]
    assert 2 * LINE < rows.max() <= LINES * LINE + 2


def test_without_a_font_hangul_is_romanised(no_font):
    assert page.drawable(f"{KOREAN}, é 日") == f"{LETTERS}, é ?"
    assert page.drawable("a fox") == "a fox"
    assert (drawn(KOREAN) == drawn(LETTERS)).all()
    assert (drawn(KOREAN) != drawn("?? ??? ? ??")).any()


def test_with_a_font_hangul_stays(some_font):
    decomposed = unicodedata.normalize("NFD", KOREAN)
    assert page.drawable(KOREAN) == page.drawable(decomposed) == KOREAN
    assert page.drawable("여우 日") == "여우 ?"
    assert some_font == list(HANGUL_FONTS[:4])  # asked for in order, and once


def test_latin_captions_do_not_depend_on_fonts(monkeypatch, no_font):
    without = drawn("a fox, gjpqy é", right=True)
    monkeypatch.undo()
    page.hangul_font.cache_clear()
    assert (drawn("a fox, gjpqy é", right=True) == without).all()


def test_a_font_of_this_system_has_the_syllables():
    """A font without them draws one box for all."""
    page.hangul_font.cache_clear()
    if page.hangul_font() is None:
        pytest.skip("this system has none of the fonts")
    pages = [drawn(text) for text in ("가각간", "나낙난", "여우곰")]
    for i, one in enumerate(pages):
        assert all((one != other).any() for other in pages[:i])
    below = drawn("뷁" * 60)[GAP + TITLE + SIDE + 2 :]
    assert (below < 255).any() and (below[LINES * LINE + 4 :] == 255).all()
