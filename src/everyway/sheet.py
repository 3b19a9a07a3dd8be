"""Labelled sheets of pictures and sentences: what the demo and a training show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, LINE, TITLE = 116, 8, 14, 24
LINES = 3  # of words below a picture
INK, SOFT, RIGHT, WRONG = "#1c1c1e", "#6b6b70", "#1d8a4c", "#c8372d"


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """A picture above words, or words alone.  given: what the model was told, not what it made.

    right: the recogniser's verdict, or None where nothing was asked for.
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


def sheet(sections: Sequence[Section], across: int = 2) -> Image.Image:
    """Sections laid out `across` in a row, each as wide as the one with most cells."""
    columns = max(len(s.cells) for s in sections)
    width = columns * (SIDE + GAP) + 2 * GAP
    height = TITLE + SIDE + LINES * LINE + 2 * GAP
    rows = -(-len(sections) // across)
    page = Image.new("RGB", (across * width + GAP, rows * height + GAP), "white")
    pen = ImageDraw.Draw(page)
    for number, section in enumerate(sections):
        row, column = divmod(number, across)
        _section(page, pen, section, column * width + 2 * GAP, row * height + GAP)
    return page


def _section(page: Image.Image, pen: ImageDraw.ImageDraw, section: Section, x: int, y: int) -> None:
    pen.text((x, y + 2), section.title, fill=INK, font=ImageFont.load_default(14))
    for place, cell in enumerate(section.cells):
        _cell(page, pen, cell, x + place * (SIDE + GAP), y + TITLE)


def _cell(page: Image.Image, pen: ImageDraw.ImageDraw, cell: Cell, x: int, y: int) -> None:
    frame = (x - 2, y - 2, x + SIDE + 1, y + SIDE + 1)
    words, ink = drawable(cell.text), SOFT if cell.given or cell.right is None else INK
    if cell.right is not None:
        ink = RIGHT if cell.right else WRONG
    if cell.image is None:
        pen.rectangle(frame, fill="#f4f4f6")
        _words(pen, words, (x + 6, y + 6), SIDE - 12, SIDE // LINE, INK)
        if cell.given:
            pen.text((x, y + SIDE + 2), "given", fill=SOFT, font=ImageFont.load_default(11))
    else:
        resample = Image.Resampling.NEAREST if cell.image.width < 64 else Image.Resampling.BICUBIC
        page.paste(cell.image.resize((SIDE, SIDE), resample), (x, y))
        words = f"given: {words}".rstrip(": ") if cell.given else words
        _words(pen, words, (x, y + SIDE + 2), SIDE, LINES, ink)
    if cell.given:
        pen.rectangle(frame, outline="#8e8e93", width=2)


def _words(pen, words: str, corner: tuple[int, int], width: int, lines: int, ink: str) -> None:
    font = ImageFont.load_default(11)
    rows = [""]
    for word in words.split():
        longer = f"{rows[-1]} {word}".strip()
        if pen.textlength(longer, font=font) > width and rows[-1]:
            rows.append(word)
        else:
            rows[-1] = longer
    for number, row in enumerate(rows[:lines]):
        pen.text((corner[0], corner[1] + number * LINE), row, fill=ink, font=font)


def drawable(text: str) -> str:
    """What Pillow's own font can draw, Latin letters; a caller may give a gloss instead."""
    return text.encode("latin-1", "replace").decode("latin-1")
