"""What a request from outside may be: bounded before anything is decoded, and without any path.

bytes -gate-> JSON -JobRequest-> plain data -within-> small enough -attached-> Job

Pictures are base64 in place of names, embeddings and arrays safetensors in base64, models names of
the server's list.  What is attached is checked by its header alone: formats that browsers have, and
no more pixels than the limit, so that a decompression bomb is never decoded.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from PIL import Image
from pydantic import Field

from everyway.apps.server.config import Limits
from everyway.request import GenerateRequest, GivenContext, RequestError, known

if TYPE_CHECKING:
    from everyway.generate import Model
    from everyway.job import Given, Job

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""Of pictures from outside: few, as every decoder is a door."""
OF_KINDS = {"interpolate": ("frames",), "chain": ("rounds",)}
"""What is long in requests of these kinds alone."""
SOME = 16
"""Contexts, painted words and knots of a path, at most."""


class TooLarge(RequestError):
    """More than a limit of this server allows."""


Base64Picture = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
"""A PNG, JPEG, WebP or GIF; `data:image/png;base64,` may stand before it."""
Base64Tensor = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]
"""A safetensors file with one tensor."""


class JobContext(GivenContext):
    """As `GivenContext`, with pictures and embeddings themselves in place of their names."""

    image: Base64Picture | None = None
    """A picture."""
    embedding: Base64Tensor | None = None
    """Tokens (N, D) in place of what an encoder makes: safetensors with one tensor."""
    mask: Base64Picture | None = None
    """A picture; the bright places of the image are seen, the others are not."""


class JobRequest(GenerateRequest):
    """What to make: a request as the command line and Python have it, with pictures and arrays
    themselves in place of their names."""

    images: Annotated[tuple[Base64Picture, ...], Field(max_length=2)] = ()
    """The pictures that it is given."""
    mask: Base64Picture | None = None
    """A picture; its bright places are drawn anew, the others stay (inpaint)."""
    paint: Base64Picture | None = None
    """A picture in whose colours words of the text are painted."""
    contexts: Annotated[tuple[JobContext, ...], Field(max_length=SOME)] = ()
    """What it is made out of, where that is more than one text: pictures, texts and embeddings."""
    given: dict[str, int | str] = {}
    """What a model reads that has no field here, by name: a text, a number, a picture, or an array
    as safetensors with one tensor."""
    upscale: str = ""
    """A model of this server that enlarges the pictures that are made, or none; by default the
    model's own cascade."""
    model: str = "default"
    """One of the models of this server; by default the first."""


def within(request: GenerateRequest, limits: Limits) -> None:
    """Raises TooLarge for a request that asks for more than it may."""
    for name in ("n", "steps", *OF_KINDS.get(request.kind, ())):
        asked, most = getattr(request, name), getattr(limits, f"max_{name}")
        if asked is not None and asked > most:
            raise TooLarge(f"{name} is {asked}; at most {most} here")
    many = {"contexts": request.contexts, "words": request.words}
    many |= {f"clock_paths.{k}": v for k, v in request.clock_paths.items()}
    for name, values in many.items():
        if len(values) > SOME and not isinstance(values, str):
            raise TooLarge(f"{name} has {len(values)} entries; at most {SOME} here")


def attached(request: JobRequest, model: Model, limits: Limits) -> Job:
    """The job of a request, whose files are what was sent.

    Raises RequestError for what is not base64, no picture, or no tensor, and TooLarge.
    """
    from everyway.job import Job, digest

    within(request, limits)
    files: dict[str, Given] = {}
    values = request.model_dump()

    def named(encoded: str, what: str, read: Callable[[bytes, str, Limits], Given]) -> str:
        content = read(decoded(encoded, what), what, limits)
        name = digest(content)[:12]
        files[name] = content
        return name

    images = enumerate(values["images"])
    values["images"] = [named(image, f"images.{k}", checked_picture) for k, image in images]
    for owner, where in [(values, ""), *_numbered(values["contexts"])]:
        for name, read in READERS.items():
            if owner.get(name) is not None and (where or name != "image"):
                owner[name] = named(owner[name], f"{where}{name}", read)
    for name, value in values["given"].items():
        known("input", name, sorted(model.system.raws))
        if own := _reader(name, model):
            values["given"][name] = named(str(value), f"given.{name}", own)
    job = Job(request=GenerateRequest(**values), files=files)
    _small_when_made(job, model, limits)
    return job


def _numbered(contexts: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    return [(context, f"contexts.{k}.") for k, context in enumerate(contexts)]


def decoded(encoded: str, what: str) -> bytes:
    """base64, or a data URL of it.  RequestError for anything else, an address above all."""
    if encoded.startswith("data:"):
        head, _, encoded = encoded.partition(",")
        if not head.endswith(";base64"):
            raise RequestError(f"{what} is a data URL without ;base64; encode it so")
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise RequestError(
            f"{what} is not base64; send the bytes themselves, as no name or address is opened here"
        ) from None


def checked_picture(content: bytes, what: str, limits: Limits) -> bytes:
    """A picture's file as it is, once its header says that it is one and not too large."""
    width, height = picture_size(content, what)
    if width * height > limits.max_pixels:
        raise TooLarge(
            f"{what} has {width}x{height} pixels; at most {limits.max_pixels} in all here"
        )
    return content


def picture_size(content: bytes, what: str = "the picture") -> tuple[int, int]:
    """(width, height), of which no pixel is decoded.  Raises RequestError, and TooLarge."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return image.size
    except Image.DecompressionBombError:
        raise TooLarge(f"{what} has more pixels than any picture that is read here") from None
    except Exception:  # readers raise anything where a file is broken or a trap
        raise RequestError(f"{what} is no picture that is read here; send a PNG or JPEG") from None


def checked_tensor(content: bytes, what: str, limits: Limits) -> Any:
    """The one tensor of a safetensors file, as float32.

    Their header is checked against their length before anything is read, so that none can ask for
    more memory than was sent.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors: Mapping[str, Any] = load(content)
    except (SafetensorError, ValueError, KeyError):
        raise RequestError(f"{what} is no safetensors file; save one tensor with it") from None
    if len(tensors) != 1:
        raise RequestError(f"{what} has {len(tensors)} tensors; give a file with one")
    return next(iter(tensors.values())).float().numpy()


READERS = {
    "image": checked_picture,
    "mask": checked_picture,
    "paint": checked_picture,
    "embedding": checked_tensor,
}
"""Fields of a request and of its contexts that hold what was sent."""


def _reader(name: str, model: Model) -> Callable[[bytes, str, Limits], Given] | None:
    """Of an input that a model reads by this name, where it is given as a file."""
    from everyway.media import medium

    own = medium(name, model.system.media)
    if not own.in_file:
        return None
    return {".png": checked_picture, ".npy": checked_tensor}.get(own.suffix, _as_it_is)


def _as_it_is(content: bytes, what: str, limits: Limits) -> bytes:
    return content


def _small_when_made(job: Job, model: Model, limits: Limits) -> None:
    """TooLarge where the pictures would become larger than the limit."""
    scale, side = job.request.scale, model.image_size
    if scale is None:
        return
    sizes = [picture_size(c) for c in job.files.values() if isinstance(c, bytes)]
    width, height = (
        max(sizes, default=(side, side)) if job.request.kind == "upscale" else (side,) * 2
    )
    stages = 1 if job.request.kind == "upscale" else max(1, len(model.enlargers))
    if width * height * scale ** (2 * stages) > limits.max_pixels:
        raise TooLarge(
            f"scale {scale:g} makes more than {limits.max_pixels} pixels; give a smaller one"
        )
