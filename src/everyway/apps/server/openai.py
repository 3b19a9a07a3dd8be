"""/v1/images, /v1/chat/completions and /v1/models, as OpenAI's clients speak them.

Beyond what they know, requests may have `seed`, `num_inference_steps`, `guidance_scale` and
`sampler` (a client's `extra_body`).  Fields that mean nothing here, as `quality`, are read and left
alone.  Whatever is made is a job of the same queue as all others.
"""

from __future__ import annotations

import io
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from everyway.apps.server.border import checked_picture, decoded, within
from everyway.apps.server.config import Limits
from everyway.apps.server.scheduler import End, Scheduler, Step, Ticket
from everyway.apps.server.served import encoded, picture_bytes
from everyway.apps.server.streams import DONE, apart, line, results, streamed, told
from everyway.request import GenerateRequest, RequestError

if TYPE_CHECKING:
    from everyway.generate import Model, Result

STRENGTH = 0.75
"""How much of a picture is forgotten by an edit without a mask, unless a request says so."""
RANDOM_SEEDS = 2**31
"""A request without a seed has one below it, which its pictures tell."""
NO_USAGE = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
NO_USAGE_OF_CHAT = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
Unread = Annotated[Any, Field(description="Read by OpenAI alone.")]
Named = Annotated[str | None, BeforeValidator(lambda value: value or None)]
"""A text, where none and an empty one are the same, as forms send it."""


class Sampling(BaseModel):
    """What every request may have."""

    model_config = ConfigDict(
        extra="forbid", protected_namespaces=(), use_attribute_docstrings=True
    )

    model: Named = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1)] | None = None
    guidance_scale: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    sampler: Named = None
    user: Unread = None
    safety_identifier: Unread = None

    @property
    def settings(self) -> dict[str, Any]:
        """As `GenerateRequest` has them."""
        return {
            "model": self.model or "default",
            "n": self.n or 1,
            "seed": secrets.randbelow(RANDOM_SEEDS) if self.seed is None else self.seed,
            "steps": self.num_inference_steps,
            "guidance": self.guidance_scale,
            "sampler": self.sampler,
        }


class Pictures(Sampling):
    """A request for pictures."""

    size: Named = None
    """auto, or what the model draws."""
    response_format: Literal["b64_json", "url"] | None = None
    """b64_json, or url, which is a data URL of the same."""
    output_format: Literal["png", "jpeg", "webp"] | None = None
    """png, whose pictures alone carry their facts, jpeg or webp."""
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    quality: Unread = None
    style: Unread = None
    background: Unread = None
    moderation: Unread = None
    output_compression: Unread = None

    @property
    def form(self) -> str:
        return self.output_format or "png"


class Generation(Pictures):
    """POST /v1/images/generations."""

    prompt: str


class Edit(Pictures):
    """POST /v1/images/edits."""

    prompt: str
    image: list[UploadFile] = []
    images: Annotated[list[UploadFile], Field(alias="image[]")] = []
    """As clients send several."""
    mask: UploadFile | None = None
    """A picture that is transparent where to draw anew."""
    strength: Annotated[float, Field(gt=0, le=1)] | None = None
    """How much of the picture is forgotten, in (0, 1]."""
    input_fidelity: Unread = None


class Variation(Pictures):
    """POST /v1/images/variations."""

    image: UploadFile


class ImagePart(BaseModel):
    """The address of a picture, which has to be a data URL."""

    url: str


class Part(BaseModel):
    """A part of a message."""

    type: str
    text: str | None = None
    image_url: ImagePart | None = None


class Message(BaseModel):
    """A message of a chat; of all of them the last picture counts."""

    role: str
    content: str | list[Part] | None = None


class Chat(Sampling):
    """POST /v1/chat/completions: a picture in, its caption out."""

    model_config = ConfigDict(extra="ignore")

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    stream: bool | None = None
    language: Named = None
    """Of the caption, as en or ko, for models that have several."""


router = APIRouter(prefix="/v1", tags=["openai"])


@router.get("/models")
async def models(request: Request) -> dict[str, Any]:
    """The models of this server."""
    scheduler = request.app.state.scheduler
    return {"object": "list", "data": [_model(name, m) for name, m in scheduler.models.items()]}


@router.get("/models/{name}")
async def model(request: Request, name: str) -> dict[str, Any]:
    """One of them, with its tasks and what each is given."""
    scheduler = request.app.state.scheduler
    name = scheduler.name(name)
    return _model(name, scheduler.models[name])


def _model(name: str, model: Model) -> dict[str, Any]:
    system = model.system
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "everyway",
        "hash": model.hash,
        "size": _size(model),
        "tasks": {task: list(system.given(own)) for task, own in system.tasks.items()},
    }


@router.post("/images/generations", response_model=None)
async def generations(request: Request, asked: Generation) -> Response:
    """Pictures of a text."""
    wanted = {"kind": "text-to-image", "text": asked.prompt}
    return await _drawn(request, asked, wanted, {}, "image_generation")


@router.post("/images/edits", response_model=None)
async def edits(request: Request, asked: Annotated[Edit, Form()]) -> Response:
    """A picture drawn anew: where the mask is transparent, or all of it, by a strength; or, out of
    several, what a model that blends makes of them and the text."""
    state = request.app.state
    contents = [await each.read() for each in (*asked.image, *asked.images)]
    mask = await asked.mask.read() if asked.mask else None
    wanted, files = await state.reading(_edit, contents, mask, asked, state.config)
    return await _drawn(request, asked, wanted, files, "image_edit")


@router.post("/images/variations", response_model=None)
async def variations(request: Request, asked: Annotated[Variation, Form()]) -> Response:
    """Pictures like one."""
    content = checked_picture(await asked.image.read(), "image", request.app.state.config)
    wanted = {"kind": "vary-image", "images": ("image",)}
    return await _drawn(request, asked, wanted, {"image": content}, "image_generation")


def _edit(
    contents: Sequence[bytes], mask: bytes | None, asked: Edit, limits: Limits
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what is wanted, what its names stand for) of an edit."""
    files: dict[str, Any] = {
        f"image.{k}": checked_picture(content, "image", limits)
        for k, content in enumerate(contents)
    }
    strength = {} if asked.strength is None else {"strength": asked.strength}
    if not files:
        raise RequestError("an edit needs a picture; send it as image")
    if len(files) > 1:
        if mask is not None or strength:
            raise RequestError("a mask and a strength are of one picture; send one")
        contexts = [{"image": name} for name in files]
        return {"kind": "image", "contexts": [*contexts, {"text": asked.prompt}]}, files
    wanted: dict[str, Any] = {"images": tuple(files), "text": asked.prompt}
    if mask is None:
        return {**wanted, "kind": "image-to-image", "strength": STRENGTH, **strength}, files
    files["mask"] = transparent(checked_picture(mask, "mask", limits))
    return {**wanted, "kind": "inpaint", "mask": "mask", **strength}, files


def transparent(content: bytes) -> Image.Image:
    """A mask as we have it, bright where it is drawn anew, of one as OpenAI has it, transparent
    there.  RequestError for one that is nowhere transparent."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            alpha = opened.convert("RGBA").getchannel("A")
    except Exception:  # a decoder raises anything where a file is broken
        raise RequestError("mask is damaged; send a PNG") from None
    if not any(alpha.histogram()[:128]):
        raise RequestError("the mask is nowhere transparent; make it so where to draw anew")
    return alpha.point(lambda value: 255 * (value <= 127)).convert("RGB")


@router.post("/chat/completions", response_model=None)
async def chat(request: Request, asked: Chat) -> Response:
    """The caption of a picture; what is said beside it is not read."""
    content = await request.app.state.reading(_pictured, asked, request.app.state.config)
    wanted = {"kind": "image-to-text", "images": ("image",), "language": asked.language or ""}
    ticket = await _submitted(request, asked, wanted, {"image": content}, previews=False)
    own = {"id": f"chatcmpl-{ticket.id}", "created": int(ticket.created), "model": _of(ticket)}
    if asked.stream:
        return streamed(_spoken(ticket, own))
    choices = [
        {
            "index": k,
            "message": {"role": "assistant", "content": result.text},
            "finish_reason": "stop",
            "logprobs": None,
        }
        for k, result in enumerate(_in_order(await results(ticket, request)))
    ]
    own |= {"object": "chat.completion", "choices": choices, "usage": NO_USAGE_OF_CHAT}
    return JSONResponse(own)


def _pictured(asked: Chat, limits: Limits) -> bytes:
    parts = [p for m in asked.messages if isinstance(m.content, list) for p in m.content]
    found = [part.image_url.url for part in parts if part.image_url]
    if not found:
        raise RequestError(
            "a chat needs a picture, whose caption is the answer; send a part of type image_url"
        )
    return checked_picture(decoded(found[-1], "image_url"), "image_url", limits)


async def _spoken(ticket: Ticket, own: Mapping[str, Any]) -> AsyncIterator[bytes]:
    """Chunks of a chat: a caption is whole at its end, and told then word by word."""

    def chunk(index: int, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        return line({**own, "object": "chat.completion.chunk", "choices": [choice]})

    made = 0
    try:
        async for event in told(ticket):
            if isinstance(event, End) and event.error is not None:
                raise event.error
            if isinstance(event, (Step, End)):
                continue
            yield chunk(made, {"role": "assistant", "content": ""})
            for word in event.text.replace(" ", " \0").split("\0"):
                yield chunk(made, {"content": word})
            yield chunk(made, {}, "stop")
            made += 1
        yield DONE
    finally:
        ticket.cancel()


async def _submitted(
    request: Request,
    asked: Sampling,
    wanted: Mapping[str, Any],
    files: Mapping[str, Any],
    previews: bool,
) -> Ticket:
    """In the queue, or refused at once."""
    from everyway.job import Job

    state = request.app.state

    def submitted() -> Ticket:
        own = GenerateRequest(**{**asked.settings, **wanted})
        within(own, state.config)
        if isinstance(asked, Pictures):
            _drawable(asked.size, state.scheduler, own)
        return state.scheduler.submit(Job(request=own, files=files), previews=previews)

    return await state.reading(submitted)


def _drawable(size: str | None, scheduler: Scheduler, request: GenerateRequest) -> None:
    """RequestError for a size that the model does not draw."""
    drawn = _size(scheduler.model(request))
    if size not in (None, "auto", drawn):
        raise RequestError(f"size {size:.20} is not drawn here; leave it out, or give {drawn}")


@lru_cache(maxsize=32)
def _size(model: Model) -> str:
    """As WIDTHxHEIGHT, of the pictures that a model draws."""
    import torch

    from everyway.upscale import side_of

    for system in reversed([*model.enlargers.values()]):
        return f"{side_of(system)}x{side_of(system)}"
    for own in model.system.modalities.values():
        if own.source == "image" and own.decodes:
            number = torch.long if own.process.kernel == "tokens" else torch.float32
            state = torch.zeros(1, *own.shape, dtype=number)
            height, width = model.system.decode({own.name: state})["image"].shape[-2:]
            return f"{width}x{height}"
    return "auto"


async def _drawn(
    request: Request,
    asked: Pictures,
    wanted: Mapping[str, Any],
    files: Mapping[str, Any],
    name: str,
) -> Response:
    previews = bool(asked.stream and asked.partial_images)
    ticket = await _submitted(request, asked, wanted, files, previews)
    if asked.stream:
        return streamed(_seen(ticket, asked, name))
    made = await results(ticket, request)
    data = [await apart(_datum, result, asked) for result in _in_order(made)]
    return JSONResponse(
        {
            "created": int(time.time()),
            "data": data,
            "output_format": asked.form,
            "size": _extent(made[0].image),
            "usage": NO_USAGE,
        }
    )


def _in_order(made: Sequence[Result]) -> list[Result]:
    return sorted(made, key=lambda result: (result.seed, result.part))


def _of(ticket: Ticket) -> str:
    return ticket.request.model


def _extent(picture: Image.Image | None) -> str:
    return f"{picture.width}x{picture.height}" if picture else "auto"


def _datum(result: Result, asked: Pictures) -> dict[str, Any]:
    """One picture of an answer, with the seed that makes it again."""
    assert result.image is not None  # all kinds that are asked for here have one
    data = encoded(picture_bytes(result.image, result.row, asked.form))
    if asked.response_format == "url":
        return {"url": f"data:image/{asked.form};base64,{data}", "seed": result.seed}
    return {"b64_json": data, "seed": result.seed}


async def _seen(ticket: Ticket, asked: Pictures, name: str) -> AsyncIterator[bytes]:
    """Events of pictures on their way, at most `partial_images` of them, and of those made."""
    sent, most = 0, asked.partial_images or 0
    inline = asked.model_copy(update={"response_format": None})

    def told_as(kind: str, picture: Image.Image | None, data: Mapping[str, Any]) -> bytes:
        own: dict[str, Any] = {"type": f"{name}.{kind}", "created_at": int(time.time())}
        own |= {"output_format": asked.form, "size": _extent(picture)}
        return line({**own, "background": "opaque", "quality": "auto", **data}, f"{name}.{kind}")

    try:
        async for event in told(ticket):
            if isinstance(event, End):
                if event.error is not None:
                    raise event.error
            elif not isinstance(event, Step):
                data = await apart(_datum, event, inline)
                yield told_as("completed", event.image, {**data, "usage": NO_USAGE})
            elif sent < most and event.done >= (sent + 1) / (most + 1):
                for picture in _partial(event):
                    partly = encoded(await apart(picture_bytes, picture, None, asked.form))
                    data = {"b64_json": partly, "partial_image_index": sent}
                    yield told_as("partial_image", picture, data)
                    sent += 1
        yield DONE
    finally:
        ticket.cancel()


def _partial(step: Step) -> list[Image.Image]:
    """The picture of the first sample, where the step shows it."""
    pictures = [frame.outputs.get("image") for frame in step.frames[:1]]
    return [picture for picture in pictures if isinstance(picture, Image.Image)]
