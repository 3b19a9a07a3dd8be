"""A data set as an ordinary folder: image.png, image.txt with one caption a line, metadata.jsonl.

Reading takes what people have: png, jpg or webp, captions in .txt files or in metadata.jsonl
(`file_name` with `captions` or `text`).  Every file is written whole or not at all.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import unicodedata
import warnings
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
SAID = ("captions", "text", "caption")
"""Keys of a row of METADATA that hold its captions; the first that is not empty counts."""


class FolderError(ValueError):
    """A folder that cannot be read; the message is one line that names the file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FolderReport:
    """What `check` found; names are escaped where they cannot be printed.

    unreadable: (picture, reason).  bad_captions: (file, or line of metadata.jsonl; reason).
    stray_captions, stray_rows: files of captions, and file names in metadata.jsonl, without a
    picture.  sheet: the first pictures, or None.
    """

    images: int
    captions: int
    records: int
    missing_captions: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]
    bad_captions: tuple[tuple[str, str], ...]
    stray_captions: tuple[str, ...]
    stray_rows: tuple[str, ...]
    sizes: dict[str, int]
    sheet: Image.Image | None

    @property
    def good(self) -> bool:
        """Whether every picture and every caption can be read, and no picture lacks one."""
        faults = self.missing_captions or self.unreadable or self.bad_captions
        return self.images > 0 and not faults

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

    Raises FolderError for no such folder, no pictures, or a file that cannot be read.
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

    def stamp(self) -> str:
        """Changes when a picture, a caption or the metadata is another file than it was."""
        digest = hashlib.sha256()
        pictures = (self.path / name for name in self.names)
        own = (path for p in pictures for path in (p, p.with_suffix(".txt")))
        for path in (*own, self.path / METADATA):
            try:
                found = path.stat()
            except OSError:  # it has none, or is gone, which reading it tells
                continue
            digest.update(
                f"{path.name} {found.st_size} {found.st_mtime_ns}\n".encode("utf-8", "replace")
            )
        return digest.hexdigest()

    def sample(self, index: int) -> Sample:
        """The (index modulo length)-th sample.  Raises FolderError where it cannot be read."""
        name = self.names[index % len(self)]
        row, file = self.rows.get(name, {}), self.path / name
        shown, text = printable(file), file.with_suffix(".txt")
        try:
            image = read_picture(file)
        except OSError as error:
            raise FolderError(
                f"{shown} cannot be read: {reason(error)}; save it anew, or take it out"
            ) from None
        try:
            captions = _captions(text, row)
        except (OSError, UnicodeDecodeError) as error:
            raise FolderError(f"{printable(text)}: {_fault(error)}") from None
        if self.captioned and not captions:
            raise FolderError(f"{shown} has no caption; write one into {printable(text)}")
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
    Raises FolderError for no such folder, or no pictures.
    """
    path = Path(path)
    names, (rows, bad) = _images(path), _rows(path)
    missing, unreadable, shown = [], [], []
    sizes: Counter[str] = Counter()
    captions = 0
    for name in names:
        text = Path(name).with_suffix(".txt")
        try:
            said = _captions(path / text, rows.get(name, {}))
            captions += len(said)
            if not said:
                missing.append(printable(name))
        except (OSError, UnicodeDecodeError) as error:
            bad.append((printable(text), _fault(error)))
        try:
            image = read_picture(path / name)
        except OSError as error:
            unreadable.append((printable(name), reason(error)))
            continue
        sizes[f"{image.width}x{image.height}"] += 1
        if len(shown) < sheet:
            shown.append(_fitted(image, side))
    known, stems = set(names), {str(Path(name).with_suffix("")) for name in names}
    texts = [p.relative_to(path) for p in sorted(path.rglob("*.txt")) if p.is_file()]
    return FolderReport(
        images=len(names),
        captions=captions,
        records=sum("record" in rows.get(name, {}) for name in names),
        missing_captions=tuple(missing),
        unreadable=tuple(unreadable),
        bad_captions=tuple(bad),
        stray_captions=tuple(printable(t) for t in texts if str(t.with_suffix("")) not in stems),
        stray_rows=tuple(printable(name) for name in rows if name not in known),
        sizes=dict(sizes.most_common()),
        sheet=contact_sheet(shown, side) if shown else None,
    )


def read_picture(path: Path, ground: str = "white") -> Image.Image:
    """RGB pixels, upright, transparency on `ground`, greys of 16 bits scaled to 8.

    Raises OSError for whatever cannot be read, UnidentifiedImageError where it is no picture.
    """
    try:
        with warnings.catch_warnings():
            for remark in (Image.DecompressionBombWarning, UserWarning):  # of what can be read
                warnings.simplefilter("ignore", remark)
            with Image.open(path) as file:
                return _rgb(ImageOps.exif_transpose(file), ground)
    except OSError:
        raise
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise OSError(f"it has more than {most} million pixels; make it smaller") from None
    except Exception as error:  # decoders raise anything where a file is broken
        raise OSError(f"it is damaged ({reason(error)})") from None


def printable(name: str | Path) -> str:
    """A file's name in one line: bytes that are not UTF-8 and control characters are escaped."""
    return "".join(
        repr(c)[1:-1].replace("\\udc", "\\x")
        if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")
        else c
        for c in str(name)
    )


def reason(error: Exception) -> str:
    """Why a file could not be read, in one line and without its name."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    text = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return " ".join(printable(line) for line in text.split()) or type(error).__name__


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


def _images(path: Path) -> list[str]:
    if not path.is_dir():
        raise FolderError(
            f"{printable(path)} is not a folder; give a folder of pictures with captions"
        )
    found = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
    if not found:
        raise FolderError(f"{printable(path)} holds no pictures ({', '.join(SUFFIXES)})")
    return sorted(p.relative_to(path).as_posix() for p in found)


def _metadata(path: Path) -> dict[str, dict[str, Any]]:
    """file name -> its row.  Raises FolderError naming the first line that is at fault."""
    rows, faults = _rows(path)
    for where, fault in faults:
        raise FolderError(f"{printable(path)}/{where}: {fault}")
    return rows


def _rows(path: Path) -> tuple[dict[str, dict[str, Any]], list[tuple[str, str]]]:
    """(file name -> its row, the lines at fault as (where, reason))."""
    file = path / METADATA
    if not file.exists():
        return {}, []
    try:
        lines = file.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        return {}, [(METADATA, _fault(error))]
    rows, faults = {}, []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = _row(line)
                rows[row["file_name"]] = row
            except UnicodeDecodeError as error:
                faults.append((f"{METADATA} line {number}", _fault(error)))
            except FolderError as error:
                faults.append((f"{METADATA} line {number}", str(error)))
    return rows, faults


def _row(line: bytes) -> dict[str, Any]:
    """Raises UnicodeDecodeError, or FolderError with the reason alone."""
    text = line.decode("utf-8")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or not _is_text(row.get("file_name")):
        raise FolderError("not a JSON object with file_name; mend it or take it out")
    for key in SAID:
        said = row.get(key)
        if said is not None and not all(map(_is_text, said if isinstance(said, list) else [said])):
            raise FolderError(f"{key} is neither a text nor a list of texts; mend it")
    return row


def _is_text(value: Any) -> bool:
    """A string, and no half of a character of two."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)


def _captions(text: Path, row: dict[str, Any]) -> tuple[str, ...]:
    """From `text`, the .txt beside the picture, or else from its metadata row.

    Raises OSError or UnicodeDecodeError for a .txt that cannot be read.
    """
    if text.exists():
        return tuple(_lines(text.read_text(encoding="utf-8-sig").split("\n")))
    said = next((row[key] for key in SAID if row.get(key)), ())
    return tuple(_lines([said] if isinstance(said, str) else said))


def _lines(captions: Iterable[str]) -> list[str]:
    """One line each, without blank ones."""
    flat = (" ".join(caption.split()) for caption in captions)
    return [line for line in flat if line]


def _rgb(image: Image.Image, ground: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey(image)
    elif image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert("RGB")


def _grey(image: Image.Image) -> Image.Image:
    """8 bits of a picture of 16-bit integers, or of floats.

    White is 65535; of floats it is 1 or 255 where none is larger.
    """
    values = np.asarray(image)
    if image.mode == "F":
        values = np.nan_to_num(values)
        white = next((w for w in (1, 255) if values.max() <= w), 65535)
        values = values * (65535 / white)
    table = np.rint(np.arange(65536) / 257).astype(np.uint8)
    if "transparency" in image.info:
        table[image.info["transparency"]] = 255
    return Image.fromarray(table[values.clip(0, 65535).astype(np.uint16)])


def _fault(error: OSError | UnicodeDecodeError) -> str:
    """What is wrong with a file of text."""
    if isinstance(error, UnicodeDecodeError):
        return "not UTF-8 text; save it as UTF-8"
    if isinstance(error, IsADirectoryError):
        return "a folder; put a file of text in its place"
    return f"cannot be read: {reason(error)}"


def _stem(key: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in key).strip(".")
