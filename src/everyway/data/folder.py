"""A data set as an ordinary folder: image.png, image.txt with one caption a line, metadata.jsonl.

Reading takes what people have: png, jpg or webp, captions in .txt files or in metadata.jsonl
(`file_name` with `captions` or `text`).  Every file is written whole or not at all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from everyway.data.sample import Sample
from everyway.whole import whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
METADATA = "metadata.jsonl"


class FolderError(ValueError):
    """A folder that cannot be read; the message is one line that names the file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderReport:
    """What `check` found.  unreadable: (file, reason).  sheet: the first pictures, or None."""

    images: int
    captions: int
    records: int
    missing_captions: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]
    stray_captions: tuple[str, ...]
    sizes: dict[str, int]
    sheet: Image.Image | None

    @property
    def good(self) -> bool:
        """Whether every picture can be read and has a caption."""
        return self.images > 0 and not self.missing_captions and not self.unreadable

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the sheet."""
        rest = {k: v for k, v in vars(self).items() if k != "sheet"}
        return rest | {"good": self.good}


def write_folder(path: Path, samples: Iterable[Sample]) -> int:
    """Writes samples and returns how many; files of the same key are replaced, others stay."""
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    rows = _metadata(path)
    count = 0
    for count, sample in enumerate(samples, 1):
        stem = _stem(sample.key) or f"{count - 1:08d}"
        image, captions = Image.fromarray(sample.image), "\n".join(_lines(sample.captions)) + "\n"
        with whole(path / f"{stem}.png") as temporary:
            image.save(temporary, format="PNG")
        with whole(path / f"{stem}.txt") as temporary:
            temporary.write_text(captions, encoding="utf-8")
        row = {"file_name": f"{stem}.png", "text": sample.captions[0] if sample.captions else ""}
        row["captions"] = list(sample.captions)
        rows[f"{stem}.png"] = row | ({"record": sample.record} if sample.record else {})
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())
    with whole(path / METADATA) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return count


def read_folder(path: Path) -> Iterator[Sample]:
    """The samples in the order of their names; folders inside are read too.

    Raises FolderError for no such folder, no pictures, or a picture that cannot be read.
    """
    folder = Folder(path)
    for index in range(len(folder)):
        yield folder.sample(index)


class Folder:
    """A folder as a data set: sample(k) reads its k-th picture, in the order of the names.

    size: the side of the square that a picture's middle is fitted to; 0 leaves pictures as they
    are.  captioned: a picture without a caption is refused.
    classes: names of the folders right inside that hold pictures, sorted; the number of a picture's
    class is its folder's place among them.
    """

    def __init__(self, path: Path, size: int = 0, captioned: bool = False) -> None:
        self.path, self.size, self.captioned = Path(path), size, captioned
        self.names = _images(self.path)
        self.rows = _metadata(self.path)
        self.classes = tuple(sorted({name.partition("/")[0] for name in self.names if "/" in name}))

    def __len__(self) -> int:
        return len(self.names)

    def sample(self, index: int) -> Sample:
        """The (index modulo length)-th sample.  Raises FolderError where it cannot be read."""
        name = self.names[index % len(self)]
        row, file = self.rows.get(name, {}), self.path / name
        try:
            image = _open(file)
        except OSError as error:
            raise FolderError(f"{file} cannot be read: {_reason(error)}") from None
        captions = _captions(file, row)
        if self.captioned and not captions:
            raise FolderError(f"{file} has no caption; write one into {file.with_suffix('.txt')}")
        if self.size:
            image = ImageOps.fit(image, (self.size,) * 2, Image.Resampling.LANCZOS)
        return Sample(
            image=np.asarray(image),
            captions=captions,
            record=row.get("record"),
            key=str(Path(name).with_suffix("")),
            label=self.classes.index(name.partition("/")[0]) if "/" in name else None,
        )


def check(path: Path, sheet: int = 64, side: int = 96) -> FolderReport:
    """Reads every file and reports counts, sizes, and exactly which files are at fault.

    sheet: pictures on the contact sheet, 0 for none; side: pixels of each.
    """
    path = Path(path)
    names, rows = _images(path), _metadata(path)
    missing, unreadable, shown = [], [], []
    sizes: Counter[str] = Counter()
    captions = 0
    for name in names:
        said = _captions(path / name, rows.get(name, {}))
        captions += len(said)
        if not said:
            missing.append(name)
        try:
            image = _open(path / name)
        except OSError as error:
            unreadable.append((name, _reason(error)))
            continue
        sizes[f"{image.width}x{image.height}"] += 1
        if len(shown) < sheet:
            shown.append(image)
    stems = {str(Path(name).with_suffix("")) for name in names}
    texts = [p.relative_to(path) for p in sorted(path.rglob("*.txt"))]
    return FolderReport(
        images=len(names),
        captions=captions,
        records=sum("record" in rows.get(name, {}) for name in names),
        missing_captions=tuple(missing),
        unreadable=tuple(unreadable),
        stray_captions=tuple(str(t) for t in texts if str(t.with_suffix("")) not in stems),
        sizes=dict(sizes.most_common()),
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
        small = image.copy()
        scale = side / max(small.size)
        shape = tuple(max(1, round(scale * length)) for length in small.size)
        small = small.resize(shape, Image.Resampling.LANCZOS)
        x, y = gap + (i % columns) * step, gap + (i // columns) * step
        out.paste(small, (x + (side - small.width) // 2, y + (side - small.height) // 2))
    return out


def _images(path: Path) -> list[str]:
    if not path.is_dir():
        raise FolderError(f"{path} is not a folder; give a folder of pictures with captions")
    found = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
    if not found:
        raise FolderError(f"{path} holds no pictures ({', '.join(SUFFIXES)})")
    return sorted(p.relative_to(path).as_posix() for p in found)


def _metadata(path: Path) -> dict[str, dict[str, Any]]:
    """file name -> its row.  Raises FolderError naming the line that is not JSON."""
    file = path / METADATA
    if not file.exists():
        return {}
    rows = {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FolderError(f"{file} cannot be read: {_reason(error)}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
                rows[row["file_name"]] = row
            except (ValueError, KeyError, TypeError):
                raise FolderError(
                    f"{file} line {number} is not a JSON object with file_name"
                ) from None
    return rows


def _captions(image: Path, row: dict[str, Any]) -> tuple[str, ...]:
    """From the .txt beside the picture, or else from its metadata row."""
    text = image.with_suffix(".txt")
    if text.exists():
        try:
            return tuple(_lines(text.read_text(encoding="utf-8-sig").splitlines()))
        except (OSError, UnicodeDecodeError) as error:
            raise FolderError(f"{text} is not UTF-8 text: {_reason(error)}") from None
    said = row.get("captions") or row.get("text") or row.get("caption") or ()
    return tuple(_lines([said] if isinstance(said, str) else said))


def _lines(captions: Iterable[str]) -> list[str]:
    """One line each, without blank ones."""
    flat = (" ".join(str(caption).split()) for caption in captions)
    return [line for line in flat if line]


def _open(path: Path) -> Image.Image:
    """RGB pixels, upright, transparency on white.  Raises OSError for anything unreadable."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image)
            return image.convert("RGB")
    except (ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(str(error)) from None


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return (str(error).splitlines() or [type(error).__name__])[0]


def _stem(key: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in key).strip(".")
