"""What is written for the user: pictures that carry their request, one JSON line a result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from everyway.generate import Result
from everyway.request import GenerateRequest, RequestError
from everyway.whole import whole


class FileError(RuntimeError):
    """Something that could not be written: one line."""


def save_result(out: Path, number: int, result: Result, request: GenerateRequest) -> dict[str, Any]:
    """OUT/00000.png (if there is a picture) and a line in OUT/results.jsonl; returns that line."""
    sample = request.model_copy(update={"n": 1, "seed": result.seed})
    row: dict[str, Any] = {"index": number, "seed": result.seed, "part": result.part}
    if result.text is not None:
        row["text"] = result.text
    row |= {"facts": result.facts, "request": sample.model_dump()}
    if result.image is not None:
        row["image"] = f"{number:05d}.png"
        save_png(out / row["image"], result.image, row)
    append_line(out / "results.jsonl", json.dumps(row, ensure_ascii=False))
    return row


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


def read_record(path: Path) -> dict[str, Any]:
    """The JSON inside a picture of ours.  Raises RequestError where there is none."""
    try:
        with Image.open(path) as image:
            text = image.text.get("everyway") if hasattr(image, "text") else None
    except OSError:
        raise RequestError(f"{str(path)!r} is not a picture that can be read") from None
    if not text:
        raise RequestError(
            f"{str(path)!r} carries no request; only our own PNG files can be replayed"
        )
    return json.loads(text)


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


def next_number(out: Path) -> int:
    """The first number that no result in OUT has."""
    rows = out / "results.jsonl"
    if not rows.exists():
        return 0
    return sum(1 for _ in rows.open(encoding="utf-8"))


def key(request: GenerateRequest) -> str:
    """What makes two requests the same work, whatever their numbers in a folder."""
    return request.model_copy(update={"n": 1}).model_dump_json()


def finished(out: Path) -> set[str]:
    """Keys of the requests whose results OUT holds."""
    path = out / "results.jsonl"
    if not path.exists():
        return set()
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {key(GenerateRequest(**row["request"])) for row in rows}


def open_image(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def same_pixels(path: Path, image: Image.Image | None) -> bool:
    """Whether the picture at `path` has exactly these pixels."""
    if image is None:
        return False
    stored = open_image(path)
    return stored.size == image.size and stored.tobytes() == image.tobytes()
