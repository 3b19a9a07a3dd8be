"""What is written for the user: pictures that carry their request, one JSON line a result."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock
from PIL import Image, PngImagePlugin
from pydantic import BaseModel, Field, ValidationError

from everyway.errors import EverywayError
from everyway.generate import Result
from everyway.request import GenerateRequest, RequestError
from everyway.whole import whole

ROWS = "results.jsonl"


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
    that were given.
    """

    request: GenerateRequest
    part: Annotated[int, Field(ge=0)]
    facts: Facts
    inputs: dict[str, str] = {}


class Folder:
    """The folder OUT: OUT/00000.png and so on, and a line a result in OUT/results.jsonl.

    No file that is there is ever replaced, and several commands may write at once.
    Raises FileError where OUT is a file.
    """

    def __init__(self, out: Path) -> None:
        if out.exists() and not out.is_dir():
            raise FileError(f"{out} is a file; give a folder")
        self.out, self.free = out, 0

    def save(self, result: Result, request: GenerateRequest) -> dict[str, Any]:
        """Writes one result of a settled request; returns its line."""
        row = row_of(result, request)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            with FileLock(self.out / ".lock"):
                return self._saved(row, result.image)
        except OSError as error:
            raise FileError(f"{self.out} cannot be written: {error.strerror or error}") from None

    def _saved(self, row: dict[str, Any], image: Image.Image | None) -> dict[str, Any]:
        if not self.free:
            self.free = sum(1 for _ in self._lines())
        while self._picture(self.free).exists():
            self.free += 1
        row = {"index": self.free} | row
        path = self._picture(self.free)
        if image is not None:
            row["image"] = path.name
            save_png(path, image, row)
        try:
            append_line(self.out / ROWS, json.dumps(row, ensure_ascii=False))
        except FileError:
            path.unlink(missing_ok=True)
            raise
        self.free += 1
        return row

    def _picture(self, number: int) -> Path:
        return self.out / f"{number:05d}.png"

    def _lines(self) -> Iterator[str]:
        path = self.out / ROWS
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                yield from file

    def parts(self) -> dict[str, set[int]]:
        """Key of a sample -> which of its results are here.

        Raises RequestError for a line that cannot be read.
        """
        found: dict[str, set[int]] = {}
        for number, line in enumerate(self._lines(), 1):
            try:
                made = Record.model_validate_json(line)
            except (ValidationError, RequestError):
                raise RequestError(
                    f"{self.out / ROWS}, line {number} is no result; mend it or take it out"
                ) from None
            found.setdefault(key(made.request), set()).add(made.part)
        return found


def key(sample: GenerateRequest) -> str:
    """What makes two samples the same work, whatever their numbers in a folder."""
    return sample.model_copy(update={"n": 1}).model_dump_json()


def row_of(result: Result, request: GenerateRequest) -> dict[str, Any]:
    """The facts of a result and the request of this sample alone: what a picture carries."""
    sample = request.model_copy(update={"n": 1, "seed": result.seed})
    row: dict[str, Any] = {"seed": result.seed, "part": result.part}
    if result.text is not None:
        row["text"] = result.text
    inputs = {path: digest(path) for path in request.paths}
    return row | {"facts": result.facts, "request": sample.model_dump(), "inputs": inputs}


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
        f"Model hash: {facts['model_hash']}, Model: {facts['model']}",
    )
    info.add_text("everyway", json.dumps(row, ensure_ascii=False))
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
        return Record.model_validate_json(text)
    except (ValidationError, RequestError):
        raise RequestError(
            f"{str(path)!r} carries a request that is damaged, or of another version"
        ) from None


def append_line(path: Path, line: str) -> None:
    """One whole line at the end of a file: written, or the file as it was."""
    size = path.stat().st_size if path.exists() else 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if path.exists():
            os.truncate(path, size)
        raise FileError(f"{path} was not written: {error.strerror or error}") from None


def open_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def same_pixels(path: Path, image: Image.Image | None) -> bool:
    """Whether the picture at `path` has exactly these pixels."""
    if image is None:
        return False
    stored = open_image(path)
    return stored.size == image.size and stored.tobytes() == image.tobytes()
