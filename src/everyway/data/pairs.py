"""Pictures with what is said of them: captions beside them, or rows of metadata.

A .txt or .caption beside a picture counts, a caption a line; else its .json and its rows in a
metadata.jsonl, .csv or .parquet, in whatever folder that lies, whose file names start from there.
Several rows of one picture are several captions.  Where no picture has one, and there are classes,
their names are the captions.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import os
import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from everyway.data.columns import COLUMNS, Columns, read_name
from everyway.data.faults import FolderError, Named, printable, reason, text_fault
from everyway.data.listing import MOST_TEXT, TEXTS, File, Found, FoundPicture, Listing, listed
from everyway.errors import EverywayError


@dataclass(slots=True)
class Row:
    """What metadata say of a picture."""

    captions: tuple[str, ...] = ()
    record: dict[str, Any] | None = None
    label: str | int | None = None

    def add(self, row: dict[str, Any], columns: Columns = COLUMNS) -> None:
        """Another row of the same picture.  Raises FolderError where it has no texts."""
        self.captions = tuple(dict.fromkeys(self.captions + captions_of(row, columns)))
        self.record = row.get("record") or self.record
        label = next((row[key] for key in columns.label if row.get(key) not in (None, "")), None)
        if label is not None and not isinstance(label, (str, int)):
            raise FolderError(f"the class {label!r:.40} is neither a name nor a number; mend it")
        self.label = self.label if label is None else label


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture and what is said of it.

    label: the name of its class, or its number.  fault: why it has no captions; "" if nothing but
    that they are missing.
    """

    name: str
    picture: FoundPicture
    captions: tuple[str, ...]
    record: dict[str, Any] | None
    label: str | int | None
    fault: str = ""


@dataclass
class Pairs:
    """Every picture of some data, in the order of the names, and what is wrong beside them.

    bad: files, rows and captions that cannot be read.  repeated: rows of a picture that has one.
    silent: tables without a caption, which are bad where captions are missing.
    stray_texts, stray_rows: captions without a picture, by name.
    by_class: whether the names of the classes are the captions.
    """

    listing: Listing
    pairs: list[Pair] = field(default_factory=list)
    bad: list[Named] = field(default_factory=list)
    silent: list[Named] = field(default_factory=list)
    repeated: list[Named] = field(default_factory=list)
    stray_texts: dict[str, File] = field(default_factory=dict)
    stray_rows: dict[str, Row] = field(default_factory=dict)
    by_class: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of their numbers; where there are numbers alone, these."""
        if self.listing.classes:
            return self.listing.classes
        labels = {pair.label for pair in self.pairs}
        names = sorted(label for label in labels if isinstance(label, str))
        numbers = (label for label in labels if isinstance(label, int))
        return tuple(names or map(str, range(1 + max(numbers, default=-1))))


def pairs_of(where: str | Path, reads: Callable[[str], object] | None = None) -> Pairs:
    """where: as `listing.listed` has it, and what is told behind it (`columns.read_name`).
    reads: raises ValueError for a caption that a model cannot read, which is then left out.

    Raises FolderError where there are no pictures.
    """
    own, columns = read_name(where)
    out = Pairs(listed(own, columns))
    rows = _rows(out, columns, own)
    for name in sorted(out.listing.pictures):
        row = rows.pop(_place(name), Row())
        out.pairs.append(_pair(name, row, out, columns))
    out.stray_rows |= rows
    silent = not any(pair.captions or pair.fault for pair in out.pairs)
    if silent and len({p.label for p in out.pairs if isinstance(p.label, str)}) > 1:
        out.by_class, out.pairs = True, [*map(_called, out.pairs)]
    if not all(pair.captions for pair in out.pairs):
        out.bad += out.silent
    if reads:
        out.pairs = [_understood(pair, reads, out) for pair in out.pairs]
    known = {stem for name in out.listing.pictures for stem in (name, os.path.splitext(name)[0])}
    for stem, files in out.listing.sidecars.items():
        if stem not in known:
            own = {name: file for name, file in files.items() if isinstance(file, File)}
            texts = {name: file for name, file in own.items() if name.lower().endswith(TEXTS)}
            out.stray_texts |= texts
            out.listing.left_out += [(name, _stray(name)) for name in own.keys() - texts.keys()]
    return out


def lone_captions(found: Pairs, reads: Callable[[str], object] | None = None) -> list[Pair]:
    """The captions without a picture, in the order of their names; faults go to `found.bad`."""
    out = []
    for name, held in sorted({**found.stray_texts, **found.stray_rows}.items()):
        try:
            own = isinstance(held, Row)
            said = held.captions if own else one_a_line(_content(held).split("\n"))
        except (OSError, UnicodeDecodeError, FolderError) as error:
            found.bad.append((name, text_fault(error)))
            continue
        pair = Pair(name, "no picture", tuple(dict.fromkeys(said)), None, None)
        out.append(_understood(pair, reads, found) if reads else pair)
    return [pair for pair in out if pair.captions]


def captions_of(row: dict[str, Any], columns: Columns = COLUMNS) -> tuple[str, ...]:
    """Those of a row.  Raises FolderError where they are no texts."""
    for key in columns.caption:
        said = row.get(key)
        texts = [] if said is None else said if isinstance(said, list) else [said]
        if not all(isinstance(text, str) for text in texts):
            raise FolderError(f"{key} is neither a text nor a list of texts; mend it")
        if not all(map(_is_text, texts)):
            raise FolderError(f"{key} is not UTF-8 text; save it as UTF-8")
    said = next((row[key] for key in columns.caption if row.get(key)), ())
    return one_a_line([said] if isinstance(said, str) else said)


def one_a_line(captions: Iterable[str]) -> tuple[str, ...]:
    """One line each, without blank ones."""
    flat = (" ".join(caption.split()) for caption in captions)
    return tuple(line for line in flat if line)


def _pair(name: str, row: Row, out: Pairs, columns: Columns) -> Pair:
    beside = out.listing.beside(name)
    own = any(n.lower().endswith(TEXTS) for n in beside)
    number: int | None = None
    captions: tuple[str, ...] = ()
    fault = ""
    for other, found in beside.items():
        end = os.path.splitext(other)[1].lower()
        try:
            if end in TEXTS:
                captions += one_a_line(_content(found).split("\n"))
            elif end == ".cls":
                number = _class_number(_content(found))
            elif not own:
                row.add(json_row(_content(found)), columns)
        except (OSError, UnicodeDecodeError, FolderError) as error:
            fault = text_fault(error)
            out.bad.append((other, fault))
    captions = tuple(dict.fromkeys(captions if own else row.captions))
    labels = (number, row.label, out.listing.class_of(name))
    label = next((label for label in labels if label is not None), None)
    return Pair(name, out.listing.pictures[name], captions, row.record, label, fault)


def _called(pair: Pair) -> Pair:
    """With the name of its class as its caption."""
    name = pair.label if isinstance(pair.label, str) else ""
    return replace(pair, captions=one_a_line([name.replace("_", " ")]))


def _understood(pair: Pair, reads: Callable[[str], object], out: Pairs) -> Pair:
    """Without the captions that a model cannot read."""
    unread = {caption: why for caption in pair.captions if (why := _refusal(reads, caption))}
    if not unread:
        return pair
    out.bad += [(pair.name, f"{caption[:40]!r}: {why}") for caption, why in unread.items()]
    captions = tuple(caption for caption in pair.captions if caption not in unread)
    return replace(pair, captions=captions, fault=pair.fault or next(iter(unread.values())))


def _stray(name: str) -> str:
    """Why a .json or .cls is not read."""
    table = " (captions of several pictures: metadata.jsonl, one object a line)"
    return f"it is beside no picture of its name{table * name.lower().endswith('.json')}"


def _content(found: Found) -> str:
    """Raises FolderError where there is no file."""
    if isinstance(found, str):
        raise FolderError(found)
    return found.text().decode("utf-8-sig")


def _class_number(content: str) -> int:
    if not content.strip().isdecimal():
        raise FolderError("not the number of a class; mend it or take it out")
    return int(content)


def _refusal(reads: Callable[[str], object], caption: str) -> str:
    """Why a model does not read a caption; "" where it does."""
    try:
        reads(caption)
    except EverywayError as error:
        return reason(error)
    return ""


def _rows(out: Pairs, columns: Columns, root: str) -> dict[str, Row]:
    """Place of a picture -> its rows, of all tables.  root: the folder that places are relative
    to."""
    rows: dict[str, Row] = {}
    for name, held in out.listing.rows.items():
        row = rows.setdefault(name, Row())
        try:
            row.add(held, columns)
        except FolderError as error:
            out.bad.append((f"row {int(name)}", str(error)))
    for table, found in sorted(out.listing.tables.items()):
        keys: set[str] = set()
        try:
            if isinstance(found, str):
                raise FolderError(found)
            for line, row in READERS[os.path.splitext(table)[1].lower()](found):
                where = f"{table} line {line}"
                try:
                    row = json_row(row) if isinstance(row, bytes) else row
                    named, folder = name_of(row, columns), posixpath.dirname(table)
                    if os.path.isabs(named):
                        named, folder = os.path.relpath(named, root), ""
                    place = _place(named, folder)
                    if place in rows:
                        out.repeated.append((where, f"{printable(place)} once more"))
                    rows.setdefault(place, Row()).add(row, columns)
                    keys |= row.keys()
                except (UnicodeDecodeError, FolderError) as error:
                    out.bad.append((where, text_fault(error)))
            if keys and keys.isdisjoint(columns.caption):
                fault = f"no captions among {', '.join(sorted(keys))}; name them text"
                out.silent.append((table, printable(fault)))
        except (OSError, csv.Error, FolderError) as error:
            out.bad.append((table, text_fault(error)))
    return rows


def json_row(text: str | bytes) -> dict[str, Any]:
    """A row of metadata.jsonl; a comma at its end, as in a list, is ignored.

    Raises UnicodeDecodeError, or FolderError with the reason alone.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        row = json.loads(text.rstrip().removesuffix(","))
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise FolderError("not a JSON object; mend it or take it out")
    return row


def name_of(row: dict[str, Any], columns: Columns = COLUMNS) -> str:
    """The file that a row is of."""
    name = next((row[key] for key in columns.image if key in row), None)
    if not _is_text(name) or None in row:
        raise FolderError("no row with a file_name, in as many fields as there are; mend it")
    return name


def _place(name: str, folder: str = "") -> str:
    """Where a file lies, however that is written: ./a.png, inner\\a.png, an accent as two signs."""
    place = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))
    return unicodedata.normalize("NFC", place)


def _lines(file: File) -> Iterator[bytes]:
    """The lines of a table.  Raises FolderError for a line without an end, and for UTF-16, as
    spreadsheets write it."""
    with file.open() as stream:
        line = stream.readline(MOST_TEXT).removeprefix(codecs.BOM_UTF8)
        if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise FolderError("not UTF-8 text but UTF-16; save it as UTF-8")
        while line:
            if len(line) == MOST_TEXT:
                raise FolderError("a line is longer than a megabyte; mend it")
            yield line
            line = stream.readline(MOST_TEXT)


def _jsonl(file: File) -> Iterator[tuple[int, bytes]]:
    rows = ((number, line) for number, line in enumerate(_lines(file), 1) if line.strip())
    for place, (number, line) in enumerate(rows):
        if place == 0 and line.strip().startswith(b"["):
            raise FolderError("a list in JSON; write its objects without it, one a line")
        yield number, line


def _csv(file: File) -> Iterator[tuple[int, dict]]:
    """The rows of a CSV, with commas between fields, or semicolons or tabs as in the first line.

    Bytes that are no UTF-8 become halves of characters, which no text has.
    """
    lines = (line.decode("utf-8", "surrogateescape") for line in _lines(file))
    first = next(lines, "")
    mark = next((mark for mark in (",", ";", "\t") if mark in first), ",")
    reader = csv.DictReader(itertools.chain([first], lines), delimiter=mark)
    return ((reader.line_num, row) for row in reader)


def _parquet(file: File) -> Iterator[tuple[int, dict]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise FolderError("needs pyarrow; pip install pyarrow, or save it as .csv") from None
    try:
        with file.open() as stream:
            batches = parquet.ParquetFile(stream).iter_batches()
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except ArrowException as error:
        raise FolderError(f"cannot be read: {error}") from None


READERS = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def _is_text(value: Any) -> bool:
    """A string, and no half of a character of two."""
    return isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value)
