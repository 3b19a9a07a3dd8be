"""What is written for the user: pictures that carry their request, one JSON line a result."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

from filelock import FileLock
from PIL import Image, PngImagePlugin
from pydantic import BaseModel, Field

from everyway.data.faults import printable
from everyway.errors import EverywayError
from everyway.request import GenerateRequest, RequestError
from everyway.whole import whole

if TYPE_CHECKING:
    from everyway.generate import Result

ROWS = "results.jsonl"
LONGEST = 2**20
"""Bytes; no line of ours is longer."""


class FileError(EverywayError, RuntimeError):
    """Something that could not be written."""

    exit_code = 1


class Loaded(BaseModel):
    """How a model was loaded that made a picture."""

    dtype: str = "auto"
    parts: dict[str, str] = {}
    settings: dict[str, Any] = {}


class Facts(BaseModel):
    """Of those that stand in a record, what a replay needs."""

    model_hash: str
    torch: str
    loaded: Loaded = Loaded()


class Record(BaseModel):
    """What a picture of ours says of itself.

    request: of this sample alone.  part: of its results.  inputs: path -> sha256 of the pictures
    that were given.  own: settings of the request that are the model's own, as none was asked for.
    """

    request: GenerateRequest
    part: Annotated[int, Field(ge=0)]
    facts: Facts
    inputs: dict[str, str] = {}
    own: list[str] = []


class Folder:
    """The folder OUT: pictures OUT/00000.png and so on, and a line a result in OUT/results.jsonl.

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
                return self._saved(row, result.image)
        except OSError as error:
            raise FileError(f"{self.out} cannot be written: {error.strerror or error}") from None

    def _saved(self, row: dict[str, Any], image: Image.Image | None) -> dict[str, Any]:
        self._catch_up()
        row, path = {"index": self.lines} | row, self._picture()
        if image is not None:
            row["image"] = path.name
            save_png(path, image, row)
        try:
            append_line(self.out / ROWS, one_line(row))
        except FileError:
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
                if named := re.search(rb'"image": "([0-9]{5,9})\.png"', line):
                    self.pictures = max(self.pictures, int(named[1]) + 1)

    def _picture(self) -> Path:
        """The next that is neither there nor named in a line."""
        while (path := self.out / f"{self.pictures:05d}.png").exists():
            self.pictures += 1
        return path

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


def record_of(line: str) -> Record:
    """A line of ROWS, as a picture carries it too.  Raises ValueError or RecursionError."""
    return Record.model_validate(json.loads(line))


def one_line(value: Any) -> str:
    """Plain data as a line of JSON; what is not Unicode, as in some names of files, is escaped."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def key(sample: GenerateRequest) -> str:
    """What makes two samples the same work, whatever their numbers in a folder."""
    return one_line(sample.model_copy(update={"n": 1}).model_dump())


def row_of(
    result: Result, request: GenerateRequest, asked: GenerateRequest | None = None
) -> dict[str, Any]:
    """The facts of a result and the request of this sample alone: what a picture carries.

    asked: the request before the model settled what it left open, which is told too.
    """
    sample = request.model_copy(update={"n": 1, "seed": result.seed})
    row: dict[str, Any] = {"seed": result.seed, "part": result.part}
    if result.text is not None:
        row["text"] = result.text
    inputs = {path: digest(path) for path in request.paths}
    row |= {"facts": result.facts, "request": sample.model_dump(), "inputs": inputs}
    own = [
        name for name, value in asked or () if value is None and getattr(request, name) is not None
    ]
    return row | ({"own": own} if own else {})


def digest(path: str) -> str:
    """sha256 of a file; "" where it is not there."""
    file = Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def save_png(path: Path, image: Image.Image, row: dict[str, Any]) -> None:
    """The picture with the `parameters` text that viewers read, and our JSON under `everyway`."""
    request, facts = row["request"], row["facts"]
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters",
        f"{request['text'] or request['kind']}\nSteps: {request['steps']}, "
        f"Sampler: {request['sampler']}, CFG scale: {request['guidance']}, "
        f"Seed: {row['seed']}, Size: {image.width}x{image.height}, "
        f"Model hash: {facts['model_hash']}, Model: {printable(facts['model'])}",
    )
    info.add_text("everyway", one_line(row))
    try:
        with whole(path) as temporary:
            image.save(temporary, format="PNG", pnginfo=info)
    except OSError as error:
        raise FileError(f"{path} was not written: {error.strerror or error}") from None


def read_record(path: Path) -> Record:
    """What a picture of ours says of itself.  Raises RequestError where it says nothing."""
    try:
        with Image.open(path) as image:
            text = image.text.get("everyway") if hasattr(image, "text") else None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise RequestError(f"{str(path)!r} is not a picture that can be read") from None
    if not text:
        raise RequestError(
            f"{str(path)!r} carries no request; only our own PNG files can be replayed"
        )
    try:
        return record_of(text)
    except (ValueError, RecursionError):
        raise RequestError(
            f"{str(path)!r} carries a request that is damaged, or of another version"
        ) from None


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
