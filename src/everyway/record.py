"""What a result says of itself, which is enough to make it again: a row of plain data, kept in its
picture and in results.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from PIL import Image, PngImagePlugin
from pydantic import BaseModel, Field, model_validator

from everyway.atomic import atomic_write
from everyway.data.faults import printable
from everyway.request import GenerateRequest, RequestError
from everyway.systems import HUB

Row = Mapping[str, Any]
MADE_BY_A_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""What IPTC calls the origin of a picture that a trained model made."""
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description '
    'rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="{}"/></rdf:RDF></x:xmpmeta>'
)
"""The source type in IPTC's extension schema, as XMP of a picture has it."""


class Machine(BaseModel):
    """What a result was computed on; float32 differs in its last bits from one to another."""

    device: str
    processor: str
    threads: int


class Loading(BaseModel):
    """How a model was loaded that made a result."""

    dtype: str = "auto"
    parts: dict[str, str] = {}
    settings: dict[str, Any] = {}


class Metadata(BaseModel):
    """Of those that stand in a record, what a replay needs."""

    model_hash: str
    torch: str
    loaded: Loading = Loading()
    machine: Machine | None = None

    def differences(self, now: Metadata) -> list[str]:
        """What differs of where both were computed, a phrase each."""
        then, found = self.machine or now.machine, []
        pairs = {"torch": (self.torch, now.torch)}
        if then and now.machine:
            own, other = then.model_dump(), now.machine.model_dump()
            pairs |= {name: (own[name], other[name]) for name in own}
        for name, (was, is_) in pairs.items():
            if was != is_:
                found.append(f"{name} was {was}, here it is {is_}")
        return found


class Record(BaseModel):
    """What a picture of ours says of itself.

    request: of this sample alone.  part: of its results.  inputs: name -> digest of the pictures
    that were given.  own: settings of the request that are the model's own, as none was asked for.
    """

    request: GenerateRequest
    part: Annotated[int, Field(ge=0)]
    metadata: Metadata = Field(alias="facts")
    inputs: dict[str, str] = {}
    own: list[str] = []

    @model_validator(mode="after")
    def _of_one_sample(self) -> Record:
        if self.request.n != 1 or self.part >= self.request.parts:
            raise ValueError("a record is of one result of one sample")
        return self

    def loading(self, model: str | None, parts: Mapping[str, str]) -> dict[str, Any]:
        """What to load: name_or_path, dtype, parts and settings.

        model, parts: what stands in place of the record's.  Nothing is fetched because a record
        asks for it: RequestError for a source on the hub that is not among `model` and `parts`.
        """
        own = self.metadata.loaded.model_dump()
        own["parts"] |= parts
        asked = {"model": self.request.model} if model is None else {}
        asked |= {k: v for k, v in own["parts"].items() if k not in parts}
        for name, source in asked.items():
            if source.startswith(HUB):
                flag = f"--model {source}" if name == "model" else f"--part {name}={source}"
                raise RequestError(
                    f"it was made with {source}, on the hub; to fetch it give {flag}"
                )
        return {"name_or_path": model or self.request.model, **own}


def record_of(line: str) -> Record:
    """A line of results.jsonl, as pictures carry it too.  Raises ValueError or RecursionError."""
    return Record.model_validate(json.loads(line))


def one_line(value: Any) -> str:
    """Plain data as a line of JSON; what is not Unicode, as in some names of files, is escaped."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def png_info(image: Image.Image, row: Row) -> PngImagePlugin.PngInfo:
    """What a picture carries: the `parameters` text that viewers read, our JSON under `everyway`,
    and, where its facts have a `provenance`, that as XMP."""
    request, metadata = row["request"], row["facts"]
    info = PngImagePlugin.PngInfo()
    info.add_text(
        "parameters",
        f"{request['text'] or request['kind']}\nSteps: {request['steps']}, "
        f"Sampler: {request['sampler']}, CFG scale: {request['guidance']}, "
        f"Seed: {row['seed']}, Size: {image.width}x{image.height}, "
        f"Model hash: {metadata['model_hash']}, Model: {printable(metadata['model'])}",
    )
    info.add_text("everyway", one_line(row))
    if "provenance" in metadata:
        info.add_itxt("XML:com.adobe.xmp", XMP.format(metadata["provenance"]))
    return info


def write_png(path: Path, image: Image.Image, row: Row) -> None:
    """The picture with its `png_info`."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=png_info(image, row))


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
            f"{str(path)!r} carries a request that is damaged, of another version, or not of this "
            "picture alone"
        ) from None
