"""What lies in a folder or in tar shards, by what it is to a data set.

Names are relative, with slashes; a member of a shard is named shard.tar/member.  Nothing but
folders and shards is opened here, and what is no regular file (a pipe, a device) never is.
"""

from __future__ import annotations

import glob
import io
import itertools
import os
import posixpath
import re
import stat
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from everyway.data.columns import Columns, read_name
from everyway.data.decode import suffixes
from everyway.data.faults import FolderError, Named, printable, reason
from everyway.data.hugging_face import FILES, Cell, is_table, opened

TEXTS = (".txt", ".caption")
"""Endings of a picture's own captions, one a line."""
SIDECARS = (*TEXTS, ".json", ".cls")
"""Endings of what may lie beside a picture: also its row of metadata, and its class number."""
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SHARD = ".tar"
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval")
MOST_TEXT = 2**20  # bytes of captions beside a picture, or of one row of a table
MOST_SHARDS = 10**6
HIDDEN = "hidden"


@dataclass(frozen=True, slots=True)
class File:
    """The bytes of a regular file, or of a member of a shard, which begins at `start`.

    changed: when, in nanoseconds.
    """

    path: str
    size: int
    changed: int
    start: int | None = None

    @property
    def stamp(self) -> tuple[int, int, int | None]:
        """Another one where the file is another."""
        return self.size, self.changed, self.start

    def open(self) -> BinaryIO:
        if self.start is None:
            return open(self.path, "rb")
        with open(self.path, "rb") as shard:
            shard.seek(self.start)
            return io.BytesIO(shard.read(self.size))

    def text(self) -> bytes:
        """Raises FolderError where it is too large to be captions."""
        if self.size > MOST_TEXT:
            raise FolderError(f"{self.size / 1e6:.0f} MB are too much for captions; take it out")
        with self.open() as file:
            return file.read(MOST_TEXT)


Found = File | str
"""A file, or why there is none to read."""
FoundPicture = File | Cell | str
"""A picture, in a file or in a table, or why there is none to read."""


@dataclass
class Listing:
    """pictures, tables, shards, packed: by name; the last are tables that may hold pictures.
    sidecars: by the name without its ending, then by name.
    rows: name of a picture -> what the table that holds it says of it.
    classes: in the order of their numbers, where a table says it.
    left_out: what is no data.  faults: what would be, and cannot be read.
    splits: whether the folders right inside are splits, not classes.
    """

    pictures: dict[str, FoundPicture] = field(default_factory=dict)
    sidecars: dict[str, dict[str, Found]] = field(default_factory=lambda: defaultdict(dict))
    tables: dict[str, Found] = field(default_factory=dict)
    shards: dict[str, File] = field(default_factory=dict)
    packed: dict[str, File] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    left_out: list[Named] = field(default_factory=list)
    faults: list[Named] = field(default_factory=list)
    splits: bool = False

    def add(self, name: str, found: Found) -> None:
        """Sorts a name to what it is."""
        stem, end = os.path.splitext(name)
        if end.lower() in suffixes():
            self.pictures[name] = found
        elif end.lower() in SIDECARS:
            self.sidecars[stem][name] = found
        elif posixpath.basename(name).lower() in TABLES:
            self.tables[name] = found
        elif isinstance(found, str):
            self.left_out.append((name, found))
        elif end.lower() == SHARD:
            self.shards[name] = found
        elif end.lower() in FILES:
            self.packed[name] = found
        elif end.lower() in map(_ending, TABLES):
            self.left_out.append((name, f"not read by this name; call it metadata{end.lower()}"))
        else:
            self.left_out.append((name, "not a picture or caption that is read"))

    def beside(self, name: str) -> dict[str, Found]:
        """What belongs to a picture: a.txt or a.png.txt to a.png."""
        return self.sidecars.get(os.path.splitext(name)[0]) or self.sidecars.get(name) or {}

    def class_of(self, name: str) -> str | None:
        """The folder right inside, of the data, of its split or of the shard, that it lies in."""
        folders = name.rpartition(SHARD + "/")[2].split("/")[:-1]
        folders = folders[1:] if self.splits and SHARD + "/" not in name else folders
        return folders[0] if folders else None

    def split_of(self, name: str) -> str | None:
        """The first folder of a file's name, if it has the name of a split but is read as a class,
        since there are folders of other names beside it; else None."""
        folder = name.partition("/")[0]
        return folder if "/" in name and not self.splits and folder.lower() in SPLITS else None


def listed(where: str, columns: Columns) -> Listing:
    """Of a folder and all folders inside, or of shards: a path, a glob, a range as in {000..012};
    or of a table that holds pictures (`data.hugging_face`).

    Where the folders are splits, train among them, the others are left out, and where there are
    pictures, so are shards and tables of pictures beside them.
    Raises FolderError where there are no pictures.
    """
    out = Listing()
    if is_table(where):
        _add_table(out, where, columns)
    elif are_shards(where):
        for name in _shard_names(str(where)):
            found = _regular(name)
            if isinstance(found, str):
                out.faults.append((name, found))
            else:
                _add_shard(out, name, found)
    else:
        _walk(str(where), out)
        if out.pictures:
            whole = "beside pictures; give it alone"
            out.left_out += [(name, f"a shard {whole}") for name in out.shards]
            out.left_out += [(name, f"a table {whole}") for name in out.packed]
        elif out.packed:
            _add_table(out, where, columns)
        else:
            for name, file in out.shards.items():
                _add_shard(out, name, file)
    if not out.pictures:
        raise FolderError(f"{printable(where)} holds no pictures{_instead(out)}")
    return out


def is_data(where: str) -> bool:
    """Whether it is named as data of one's own are: a folder, shards, or a table of pictures."""
    own, _ = read_name(where)
    return os.path.isdir(own) or are_shards(own) or is_table(own)


def are_shards(where: str | Path) -> bool:
    """Whether it is written as shards are, and is no folder."""
    return str(where).endswith(SHARD) and not os.path.isdir(where)


def _instead(out: Listing) -> str:
    named = out.faults + [row for row in out.left_out if row[1] != HIDDEN]
    if not named:
        return " (png, jpg, webp and others)"
    return f"; of {len(named)} other files the first is {printable(named[0][0])}: {named[0][1]}"


def _walk(root: str, out: Listing) -> None:
    """Every folder once: those that lie here first, then those that are linked."""
    seen: dict[tuple[int, int], str] = {}
    own, linked = [""], []
    while own or linked:
        inside = own.pop() if own else linked.pop(0)
        try:
            at = os.stat(os.path.join(root, inside))
            former = seen.setdefault((at.st_dev, at.st_ino), inside)
            if former != inside:
                out.left_out.append((inside, f"the same folder as {printable(former or root)}"))
                continue
            folders = _enter(root, inside, out)
        except (OSError, ValueError) as error:
            if not inside:
                raise FolderError(_no_folder(root, error)) from None
            out.faults.append((inside, f"a folder that may not be entered: {reason(error)}"))
            continue
        for name in folders if inside else _for_training(folders, out):
            (linked if os.path.islink(os.path.join(root, name)) else own).append(name)


def _enter(root: str, inside: str, out: Listing) -> list[str]:
    """Sorts what lies in a folder; returns the folders in it."""
    folders = []
    for own in sorted(os.listdir(os.path.join(root, inside))):
        name = posixpath.join(inside, own)
        path = os.path.join(root, name)
        if _hidden(own):
            out.left_out.append((name, HIDDEN))
        elif os.path.isdir(path):
            folders.append(name)
            if own.lower().endswith(TEXTS):
                out.add(name, "a folder; put a file of text in its place")
        else:
            out.add(name, _regular(path))
    return folders


def _for_training(folders: list[str], out: Listing) -> list[str]:
    """`folders` without the splits that are not for training, if splits are all that there is."""
    out.splits = all(f.lower() in SPLITS for f in folders) and not out.pictures and not out.shards
    train = [f for f in folders if f.lower() in SPLITS[:2]]
    if not out.splits or not train:
        return folders
    others = [f for f in folders if f not in train]
    out.left_out += [(f, "a split that is not for training; give it alone") for f in others]
    return train


def _no_folder(root: str, error: Exception) -> str:
    if isinstance(error, (FileNotFoundError, NotADirectoryError, ValueError)):
        return f"{printable(root)} is not a folder; give a folder of pictures with captions"
    return f"{printable(root)} may not be entered: {reason(error)}"


def _regular(path: str) -> Found:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return "a link to nothing" if os.path.islink(path) else "there is no such file"
    except OSError as error:
        return f"cannot be read: {reason(error)}"
    if not stat.S_ISREG(found.st_mode):
        return "not a file but a pipe, a socket or a device; take it out"
    return File(path, found.st_size, found.st_mtime_ns)


def _add_table(out: Listing, where: str, columns: Columns) -> None:
    table = opened(where, columns)
    out.pictures |= table.cells()
    out.rows |= table.rows()
    out.classes = table.classes


def _add_shard(out: Listing, name: str, file: File) -> None:
    """Its members; up to where it breaks off, if it does."""
    try:
        with tarfile.open(file.path, "r:") as shard:
            for member in shard:
                inside = posixpath.normpath(member.name)
                own = f"{name}/{inside}"
                if member.isdir():
                    continue
                if any(_hidden(part) for part in inside.split("/")):
                    out.left_out.append((own, HIDDEN))
                elif not member.isreg() or member.issparse():
                    out.add(own, "not an ordinary file")
                else:
                    out.add(own, File(file.path, member.size, file.changed, member.offset_data))
    except (tarfile.TarError, OSError, ValueError) as error:
        out.faults.append((name, f"a shard that cannot be read to its end: {reason(error)}"))


def _shard_names(pattern: str) -> list[str]:
    """Paths of a pattern with ranges and wildcards, each range in order."""
    if os.path.lexists(pattern):
        return [pattern]
    parts = [_choices(part) for part in re.split(r"(\{[^{}]*\})", pattern)]
    names = itertools.islice(map("".join, itertools.product(*parts)), MOST_SHARDS)
    return [path for name in names for path in sorted(glob.glob(name)) or [name]]


def _choices(part: str) -> Iterator[str]:
    """ "{08..11}" -> 08, 09, 10, 11; "{a,b}" -> a, b; any other text is itself."""
    if ends := re.fullmatch(r"\{(\d+)\.\.(\d+)\}", part):
        first, last = ends.groups()
        numbers = range(int(first), min(int(last), int(first) + MOST_SHARDS) + 1)
        return (f"{number:0{len(first)}d}" for number in numbers)
    return iter(part[1:-1].split(",") if part.startswith("{") else [part])


def _ending(name: str) -> str:
    return os.path.splitext(name)[1]


def _hidden(own: str) -> bool:
    """Whether a name is one that systems hide: ._a.png is what a Mac notes of a.png."""
    return own.startswith(".") or own == "__MACOSX"
