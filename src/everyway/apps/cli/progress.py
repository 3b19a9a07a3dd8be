"""What a person at a terminal sees while something is made: a bar, and what is being made."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from PIL import Image
from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.style import Style
from rich.text import Text

if TYPE_CHECKING:
    from everyway.generate import Model, Preview

COLUMNS = 32
"""Of a picture; it has half as many lines, of two pixels one above the other."""
ROOM = (COLUMNS + 8, COLUMNS // 2 + 6)
"""Columns and lines of a terminal that shows pictures."""
SHARE = 0.1
"""Of the time, at most, in which previews are decoded."""
Track = Callable[[str, float], None]
"""Is told what is worked on, and which share of all work is done."""


class Bar(Progress):
    """A bar on standard error, gone at the end, with `below` under it.

    quiet: none is shown; nor is one where standard error is no terminal.
    """

    def __init__(self, *columns: ProgressColumn | str, quiet: bool = False) -> None:
        self.below: RenderableType = ""
        console = Console(stderr=True)
        super().__init__(
            *columns,
            console=console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what is piped stays apart
            disable=quiet or not console.is_terminal,
        )

    def get_renderables(self) -> Iterable[RenderableType]:
        return [*super().get_renderables(), self.below]


@contextmanager
def tracked(quiet: bool, what: str = "") -> Iterator[tuple[Bar, Track]]:
    """A bar of work as a share of it, and what moves it.  what: it begins with."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    with Bar(*columns, TimeRemainingColumn(), quiet=quiet) as bar:
        job = bar.add_task(what, total=1.0)
        yield bar, lambda what, done: bar.update(job, description=what, completed=done)


def previews(bar: Bar) -> Callable[[Model, Preview], None]:
    """Shows under a bar what is being made, as often as SHARE allows."""
    from everyway.media import medium

    shown_at, took = 0.0, 0.0

    def show(model: Model, event: Preview) -> None:
        nonlocal shown_at, took
        began = time.monotonic()
        if bar.disable or began - shown_at < took / SHARE:
            return
        outputs, _ = model.frame(event.progress, system=event.system)
        media = model.system.media
        bar.below = Group(*(drawn(medium(n, media).preview(v)) for n, v in outputs.items()))
        shown_at = time.monotonic()
        took = shown_at - began

    return show


def has_room(console: Console) -> bool:
    """Whether a terminal can show pictures: it has the colours, the signs and the size."""
    colours = console.color_system in ("256", "truecolor")
    wide, high = console.size
    return colours and "utf" in console.encoding and wide >= ROOM[0] and high >= ROOM[1]


def drawn(preview: Image.Image | str) -> Text:
    """A picture in half blocks, or a text on one line."""
    if isinstance(preview, str):
        return Text(preview, no_wrap=True, overflow="ellipsis")
    picture = preview.convert("RGB").resize((COLUMNS, COLUMNS), Image.Resampling.BOX)
    lines = []
    for y in range(0, COLUMNS, 2):
        pairs = (((x, y), (x, y + 1)) for x in range(COLUMNS))
        colours = ([Color.from_rgb(*picture.getpixel(at)) for at in pair] for pair in pairs)
        lines.append(Text.assemble(*(("▀", Style(color=a, bgcolor=b)) for a, b in colours)))
    return Text("\n").join(lines)
