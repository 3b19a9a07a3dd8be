"""What a data set holds, and exactly what is wrong with it: `everyway data check`."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from everyway.data.decode import oddities, read_picture
from everyway.data.faults import Named, printable, reason
from everyway.data.pairs import Pair, pairs_of
from everyway.data.pictures import loses_much

SHOWN = 8
"""How many names, sizes or classes a line shows."""
LINES = 100
"""How many lines are shown of one kind."""
LONG = 320
"""Characters of a caption that few text encoders read to its end: CLIP's has 77 tokens."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderReport:
    """What `check` found; names are escaped where they cannot be printed.

    sizes, classes: how many pictures of each.  unreadable: pictures, folders and shards.
    bad_captions: files, lines of metadata and captions that cannot be read.
    repeated_rows: lines of a picture that has one, whose captions are added to it.
    stray_captions, stray_rows: files of captions, and file names in metadata, without a picture.
    odd: what is read otherwise than it is, and captions that are long.
    by_class: whether there are no captions, and the names of the classes stand for them.
    cut: pictures that lose more than a quarter of their area to the square in their middle.
    duplicates: (picture, the former one that has the same pixels).  left_out: what is no data.
    sheet: the first pictures, or None.
    """

    images: int
    captions: int
    records: int
    sizes: dict[str, int]
    classes: dict[str, int]
    unreadable: tuple[Named, ...]
    missing_captions: tuple[str, ...]
    bad_captions: tuple[Named, ...]
    repeated_rows: tuple[Named, ...]
    stray_captions: tuple[str, ...]
    stray_rows: tuple[str, ...]
    odd: tuple[Named, ...]
    by_class: bool
    cut: int
    duplicates: tuple[Named, ...]
    left_out: tuple[Named, ...]
    sheet: Image.Image | None

    @property
    def good(self) -> bool:
        """Whether every picture and every caption can be read, and no picture lacks one."""
        return not (self.missing_captions or self.unreadable or self.bad_captions)

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the sheet."""
        rest = {k: v for k, v in vars(self).items() if k != "sheet"}
        return rest | {"good": self.good}

    def lines(self) -> Iterator[str]:
        """For people to read."""
        yield f"pictures: {self.images:,}, captions: {self.captions:,}, records: {self.records:,}"
        yield f"sizes: {_counts(self.sizes) or 'none'}"
        if self.cut:
            yield (
                f"{self.cut:,} of {sum(self.sizes.values()):,} lose more than a quarter of their "
                "area, since the square in their middle alone is learned from"
            )
        if self.classes:
            yield f"classes: {_counts(self.classes)}"
        if self.by_class:
            yield "no picture has a caption: the names of the classes are taken for them"
        yield from _short([f"cannot be read: {name} ({why})" for name, why in self.unreadable])
        yield from _short(
            [f"captions cannot be read: {name} ({why})" for name, why in self.bad_captions]
        )
        yield from _short([f"no caption: {name}" for name in self.missing_captions])
        strays = (
            *(f"a caption without its picture: {name}" for name in self.stray_captions),
            *(f"a row of metadata without its picture: {name}" for name in self.stray_rows),
        )
        yield from _short(strays)
        yield from _short(
            [f"captions are added: {name} ({why})" for name, why in self.repeated_rows]
        )
        yield from _short(
            [f"the same picture twice: {name} and {other}" for name, other in self.duplicates]
        )
        yield from (f"odd, {why}: {names}" for why, names in _grouped(self.odd))
        yield from (f"left out, {why}: {names}" for why, names in _grouped(self.left_out))


def check(
    path: Path | str,
    sheet: int = 64,
    side: int = 96,
    reads: Callable[[str], object] | None = None,
) -> FolderReport:
    """Reads every file and reports counts, sizes, and exactly which files are at fault.

    sheet: pictures on the contact sheet, 0 for none; side: pixels of each.
    reads: raises ValueError for a caption that a model cannot read.
    Raises FolderError for no such folder, or no pictures.
    """
    found = pairs_of(path, reads)
    unreadable, duplicates, shown = [*found.listing.faults], [], []
    odd: list[Named] = []
    sizes: Counter[tuple[int, int]] = Counter()
    former: dict[bytes, str] = {}
    for pair in found.pairs:
        image = _opened(pair, odd)
        if isinstance(image, str):
            unreadable.append((pair.name, image))
            continue
        if any(len(caption) > LONG for caption in pair.captions):
            odd.append((pair.name, f"a caption of more than {LONG} characters"))
        sizes[image.size] += 1
        pixels = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        if former.setdefault(pixels, pair.name) != pair.name:
            duplicates.append((pair.name, printable(former[pixels])))
        if len(shown) < sheet:
            shown.append(_fitted(image, side))
    splits = filter(None, (found.listing.split_of(pair.name) for pair in found.pairs))
    odd += [(name, "called as a split, and read as a class") for name in dict.fromkeys(splits)]
    classes = Counter(str(p.label) for p in found.pairs if p.label is not None)
    return FolderReport(
        images=len(found.pairs),
        captions=sum(len(pair.captions) for pair in found.pairs),
        records=sum(pair.record is not None for pair in found.pairs),
        sizes={f"{width}x{height}": n for (width, height), n in sizes.most_common()},
        classes={printable(name): n for name, n in sorted(classes.items())},
        unreadable=_printable(unreadable),
        missing_captions=tuple(
            printable(p.name) for p in found.pairs if not p.captions and not p.fault
        ),
        bad_captions=_printable(found.bad),
        repeated_rows=_printable(found.repeated),
        stray_captions=tuple(map(printable, sorted(found.stray_texts))),
        stray_rows=tuple(map(printable, found.stray_rows)),
        odd=_printable(odd),
        by_class=found.by_class,
        cut=sum(n for size, n in sizes.items() if loses_much(*size)),
        duplicates=_printable(duplicates),
        left_out=_printable(found.listing.left_out),
        sheet=contact_sheet(shown, side) if shown else None,
    )


def contact_sheet(images: Iterable[Image.Image], side: int = 96, gap: int = 4) -> Image.Image:
    """The pictures in a near-square grid on white, each fitted into side x side pixels."""
    images = list(images)
    columns = max(1, int(np.ceil(np.sqrt(len(images)))))
    rows = max(1, -(-len(images) // columns))
    step = side + gap
    out = Image.new("RGB", (columns * step + gap, rows * step + gap), "white")
    for i, image in enumerate(images):
        small = _fitted(image, side)
        x, y = gap + (i % columns) * step, gap + (i // columns) * step
        out.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
    return out


def _fitted(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    shape = tuple(max(1, round(scale * length)) for length in image.size)
    return image.resize(shape, Image.Resampling.LANCZOS)


def _opened(pair: Pair, odd: list[Named]) -> Image.Image | str:
    """The picture, whose oddities are added, or why it cannot be read."""
    if isinstance(pair.picture, str):
        return pair.picture
    try:
        with pair.picture.open() as file:
            image = read_picture(file)
            file.seek(0)
            odd += [(pair.name, why) for why in oddities(file, pair.name)]
            return image
    except OSError as error:
        return reason(error)


def _printable(named: Iterable[Named]) -> tuple[Named, ...]:
    return tuple((printable(name), why) for name, why in named)


def _short(lines: Sequence[str]) -> Iterator[str]:
    """The first of them, and how many there are more."""
    yield from lines[:LINES]
    if len(lines) > LINES:
        yield f"... and {len(lines) - LINES:,} more of these; --json names all"


def _grouped(named: Iterable[Named]) -> Iterator[tuple[str, str]]:
    """(reason, its names in one line) of each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, why in named:
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        yield why, f"{', '.join(names[:SHOWN])}{more}"


def _counts(counts: dict[str, int]) -> str:
    """The first of them, and how many there are more."""
    named = [f"{name} ({n})" for name, n in counts.items()][:SHOWN]
    rest = [f"and {len(counts) - SHOWN} more"] if len(counts) > SHOWN else []
    return ", ".join(named + rest)
