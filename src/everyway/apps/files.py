"""What is written for the user: pictures that carry their request, one JSON line a result."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import FileLock
from PIL import Image

from everyway.errors import EverywayError
from everyway.record import Record, Row, one_line, read_record, record_of
from everyway.request import GenerateRequest, RequestError

__all__ = ["FileError", "Folder", "Record", "key", "read_record", "row_of", "write"]

if TYPE_CHECKING:
    from everyway.generate import Result
    from everyway.media import Medium

ROWS = "results.jsonl"
LONGEST = 2**20
"""Bytes; no line of ours is longer."""


class FileError(EverywayError, RuntimeError):
    """Something that could not be written."""

    exit_code = 1


class Folder:
    """The folder OUT: pictures OUT/00000.png and so on, other outputs by name as in
    OUT/00000.depth.npy, and a line a result in OUT/results.jsonl.

    No file that is there is ever replaced, and several commands may write at once.
    Raises FileError where OUT is a file.
    """

    def __init__(self, out: Path) -> None:
        if out.exists() and not out.is_dir():
            raise FileError(f"{out} is a file; give a folder")
        self.out = out
        self.read = self.lines = self.pictures = 0  # bytes and lines of ROWS; the next picture

    def save(
        self, result: Result, request: GenerateRequest, asked: GenerateRequest | None = None
    ) -> dict[str, Any]:
        """Writes one result of a settled request; returns its line.  asked: as in `row_of`."""
        row = row_of(result, request, asked)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with FileLock(self.out / ".lock"):
                return self._saved(row, result)
        except OSError as error:
            raise FileError(f"{self.out} cannot be written: {error.strerror or error}") from None

    def _saved(self, row: dict[str, Any], result: Result) -> dict[str, Any]:
        self._catch_up()
        media = {name: own for name, own in result.media.items() if own.in_file}
        paths = self._paths({name: own.suffix for name, own in media.items()})
        row = {"index": self.lines} | row | {name: path.name for name, path in paths.items()}
        try:
            for name, path in paths.items():
                write(path, media[name], result.outputs[name], row)
            append_line(self.out / ROWS, one_line(row))
        except FileError:
            for path in paths.values():
                path.unlink(missing_ok=True)
            raise
        return row

    def _catch_up(self) -> None:
        """Counts the lines that this and other commands have written since the last look."""
        path = self.out / ROWS
        if not path.exists():
            return
        with path.open("ab+") as file:
            _mend(file)
            file.seek(self.read)
            for line in file:
                self.read, self.lines = self.read + len(line), self.lines + 1
                if named := re.search(rb'": "([0-9]{5,9})\.', line):
                    self.pictures = max(self.pictures, int(named[1]) + 1)

    def _paths(self, suffixes: Mapping[str, str]) -> dict[str, Path]:
        """Output -> its file, under the next number that neither a file nor a line has."""
        ends = {n: f".{n}{suffix}" if n != "image" else suffix for n, suffix in suffixes.items()}
        while True:
            paths = {n: self.out / f"{self.pictures:05d}{end}" for n, end in ends.items()}
            if not any(path.exists() for path in paths.values()):
                return paths
            self.pictures += 1

    def parts(self) -> dict[str, set[int]]:
        """Key of a sample, as it was asked for and as it was made -> which of its results are here.

        Raises RequestError for a line that cannot be read.
        """
        found: dict[str, set[int]] = {}
        path = self.out / ROWS
        lines = path.read_text("utf-8", errors="replace").split("\n") if path.exists() else [""]
        for number, line in enumerate(lines, 1):
            try:
                made = record_of(line)
            except (ValueError, RecursionError):
                if number == len(lines):  # cut while it was written, or nothing
                    continue
                raise RequestError(
                    f"{path}, line {number} is no result; mend it or take it out"
                ) from None
            asked = made.request.model_copy(update=dict.fromkeys(made.own))
            for form in (made.request, asked):
                found.setdefault(key(form), set()).add(made.part)
        return found


def key(sample: GenerateRequest) -> str:
    """What makes two samples the same work, whatever their numbers in a folder."""
    return one_line(sample.model_copy(update={"n": 1}).model_dump())


def row_of(
    result: Result, request: GenerateRequest, asked: GenerateRequest | None = None
) -> dict[str, Any]:
    """What a picture carries of its result.

    asked: the request before the model settled what it left open, which is told too.
    """
    own = [
        name for name, value in asked or () if value is None and getattr(request, name) is not None
    ]
    return {**result.row, **({"own": own} if own else {})}


def write(path: Path, medium: Medium, value: Any, row: Row) -> None:
    """An output by its medium; FileError where it cannot be written."""
    try:
        medium.write(path, value, row)
    except OSError as error:
        raise FileError(f"{path} was not written: {error.strerror or error}") from None


def append_line(path: Path, line: str) -> None:
    """One whole line at the end of a file: written, or the file as it was."""
    size = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            size = _mend(file)
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if size is not None:
            os.truncate(path, size)
        raise FileError(f"{path} was not written: {error.strerror or error}") from None


def _mend(file: BinaryIO) -> int:
    """Makes the last line of a file of JSON lines whole; returns the size.

    One that a power loss cut is taken away; one that only lacks its end gets it.
    """
    start = max(0, file.seek(0, os.SEEK_END) - LONGEST)
    file.seek(start)
    block = file.read()
    last = block.rpartition(b"\n")[2]
    try:
        if last:
            json.loads(last)
            file.write(b"\n")
    except (ValueError, RecursionError):
        file.truncate(start + len(block) - len(last))
    return file.seek(0, os.SEEK_END)


def open_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def same_pixels(path: Path, image: Image.Image | None) -> bool:
    """Whether the picture at `path` has exactly these pixels."""
    if image is None:
        return False
    stored = open_image(path)
    return stored.size == image.size and stored.tobytes() == image.tobytes()
