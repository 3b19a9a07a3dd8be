"""Labelled sheets of pictures and sentences: what the demo and a training show."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from everyway.data.hangul import romanised

SIDE, GAP, LINE, TITLE = 116, 8, 14, 24
LINES, SIZE = 3, 11  # of words below a picture
INK, SOFT, RIGHT, WRONG = "#1c1c1e", "#6b6b70", "#1d8a4c", "#c8372d"
HANGUL = "가-힣"
HANGUL_FONTS = (  # Pillow looks these names up in the system's font folders
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKkr-Regular.otf",
    "NotoSansKR-Regular.otf",
    "NotoSansKR-Regular.ttf",
    "NanumGothic.ttf",
    "malgun.ttf",
    "AppleSDGothicNeo.ttc",
    "UnDotum.ttf",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """A picture above words, or words alone.  given: what the model was given, not what it made.

    right: the classifier's verdict, or None where nothing was asked for.
    """

    image: Image.Image | None = None
    text: str = ""
    given: bool = False
    right: bool | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Section:
    """A title and its cells, in one row."""

    title: str
    cells: Sequence[Cell]


def sheet(sections: Sequence[Section], across: int = 2, foot: str = "") -> Image.Image:
    """Sections laid out `across` in a row, each as wide as the one with most cells; foot: below."""
    columns = max(len(s.cells) for s in sections)
    width = columns * (SIDE + GAP) + 2 * GAP
    height = TITLE + SIDE + LINES * LINE + 2 * GAP
    rows = -(-len(sections) // across)
    below = LINES * LINE if foot else 0
    page = Image.new("RGB", (across * width + GAP, rows * height + GAP + below), "white")
    pen = ImageDraw.Draw(page)
    for number, section in enumerate(sections):
        row, column = divmod(number, across)
        _section(page, pen, section, column * width + 2 * GAP, row * height + GAP)
    _words(pen, drawable(foot), (2 * GAP, rows * height + GAP), page.width - 4 * GAP, LINES, SOFT)
    return page


def _section(page: Image.Image, pen: ImageDraw.ImageDraw, section: Section, x: int, y: int) -> None:
    pen.text((x, y + 2), section.title, fill=INK, font=ImageFont.load_default(14))
    for place, cell in enumerate(section.cells):
        _cell(page, pen, cell, x + place * (SIDE + GAP), y + TITLE)


def _cell(page: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, x: int, y: int) -> None:
    frame = (x - 2, y - 2, x + SIDE + 1, y + SIDE + 1)
    words, ink = drawable(cell.text), {None: SOFT, True: RIGHT, False: WRONG}[cell.right]
    if cell.image is None:
        pen.rectangle(frame, fill="#f4f4f6")
        _words(pen, words, (x + 6, y + 6), SIDE - 12, SIDE // LINE, INK)
        if cell.given:
            pen.text((x, y + SIDE + 2), "given", fill=SOFT, font=ImageFont.load_default(SIZE))
    else:
        resample = Image.Resampling.NEAREST if cell.image.width < 64 else Image.Resampling.BICUBIC
        page.paste(cell.image.resize((SIDE, SIDE), resample), (x, y))
        words = f"given: {words}".rstrip(": ") if cell.given else words
        _words(pen, words, (x, y + SIDE + 2), SIDE, LINES, ink)
    if cell.given:
        pen.rectangle(frame, outline="#8e8e93", width=2)


def _words(pen, words: str, corner: tuple[int, int], width: int, lines: int, ink: str) -> None:
    font = font_of(words)
    rows = [""]
    for word in words.split():
        longer = f"{rows[-1]} {word}".strip()
        if pen.textlength(longer, font=font) > width and rows[-1]:
            rows.append(word)
        else:
            rows[-1] = longer
    baseline = corner[1] + ImageFont.load_default(SIZE).getmetrics()[0]  # the same for every font
    for number, row in enumerate(rows[:lines]):
        place = (corner[0], baseline + number * LINE)
        pen.text(place, row, fill=ink, font=font, anchor="ls")


@cache
def hangul_font() -> ImageFont.FreeTypeFont | None:
    """The first of HANGUL_FONTS that this system has, or None."""
    for name in HANGUL_FONTS:
        try:
            return ImageFont.truetype(name, SIZE)
        except OSError:
            continue
    return None


def font_of(words: str) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that a caption is written in, as `drawable` made it."""
    found = hangul_font() if re.search(f"[{HANGUL}]", words) else None
    return found or ImageFont.load_default(SIZE)


def drawable(text: str) -> str:
    """What can be drawn here: Latin letters, and Hangul, romanised where no font has it."""
    text = unicodedata.normalize("NFC", text) if hangul_font() else romanised(text)
    return re.sub(f"[^\x00-\xff{HANGUL}]", "?", text)
