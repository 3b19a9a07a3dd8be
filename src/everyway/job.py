"""Jobs: a request, and what the names in it stand for.  Whoever runs a job opens no file.

settings -jobs-> jobs     request -opened-> job     job -read-> inputs     samples -batches-> ...
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from everyway.contracts import Context, Contexts, kind_of
from everyway.controls.masks import put_back
from everyway.controls.paint import Canvas
from everyway.data.captions import Point
from everyway.data.pictures import square
from everyway.data.sample import to_tensor
from everyway.lora import LoRA, lora_of
from everyway.media import (
    Medium,
    free_pixels,
    medium,
    painted_shares,
    picture_tensor,
    read_numbers,
    read_picture,
    shown_pixels,
)
from everyway.request import (
    GenerateRequest,
    GivenContext,
    RequestError,
    known,
    read_file,
    read_image,
    read_lora,
)
from everyway.system import Condition, System

LISTS = ("text", "image", "label")
"""Settings that may be lists, one condition a job."""
OWN = {"text", "images", "label", "given", "mask", "seed", "n", "model"}
"""Fields of a request in which samples of one batch may differ."""
Given = bytes | Image.Image | np.ndarray | torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A request, which has the seed, with its inputs.

    files: name in the request -> what it stands for: the bytes of a file, a picture of Pillow, an
    array, or a tensor.  A server fills it with what it was sent, so that no name is ever opened.
    """

    request: GenerateRequest
    files: Mapping[str, Given] = field(default_factory=dict)

    def file(self, name: str) -> Given:
        """What a name stands for; RequestError where the job does not hold it."""
        if name not in self.files:
            raise RequestError(f"the job has no file {name!r}; give it with the request")
        return self.files[name]


def opened(
    request: GenerateRequest, system: System, files: Mapping[str, Given] | None = None
) -> Job:
    """The job of a request whose names are paths, but for those in `files`.

    Raises RequestError for what cannot be read.
    """
    held = dict(files or {})
    names = [str(v) for k, v in request.given.items() if _input(k, system).in_file]
    names += [c.embedding for c in request.contexts if c.embedding]
    for name in (*request.paths, *names):
        if name not in held:
            held[name] = read_file(name, "picture" if name in request.paths else "file")
    for name in request.lora.keys() - held.keys():
        held[name] = read_lora(name)
    return Job(request=request, files=held)


def jobs(settings: Mapping[str, Any], system: System) -> list[Job]:
    """Of settings as a caller in Python has them: with pictures, paths, and lists of LISTS."""
    lists = {k: settings[k] for k in LISTS if isinstance(settings.get(k), (list, tuple))}
    if len({len(values) for values in lists.values()}) > 1:
        found = " and ".join(f"{len(values)} of {name}" for name, values in lists.items())
        raise RequestError(f"there are {found}; give as many of each")
    if not lists:
        return [_job(settings, system)]
    made: list[Job] = []
    for row in zip(*lists.values()):
        one = {**settings, **dict(zip(lists, row))}
        if made:
            former = made[-1].request
            one["seed"] = former.seed + former.n
        made.append(_job(one, system))
    return made


def _job(settings: Mapping[str, Any], system: System) -> Job:
    wanted, files = dict(settings), dict[str, Given]()

    def named(given: Any) -> Any:
        if not isinstance(given, Given):
            return given
        name = digest(given)[:12]
        files[name] = given
        return name

    if "image" in wanted:
        if wanted.get("images"):
            raise RequestError("image is one of images; give one of the two")
        wanted["images"] = [wanted.pop("image")]
    if isinstance(wanted.get("images"), (list, tuple)):
        wanted["images"] = [named(given) for given in wanted["images"]]
    if isinstance(wanted.get("contexts"), (list, tuple)):
        wanted["contexts"] = [_named_in(context, named) for context in wanted["contexts"]]
    if isinstance(wanted.get("given"), Mapping):
        wanted["given"] = {name: named(given) for name, given in wanted["given"].items()}
    for name in {"mask", "paint"} & wanted.keys():
        wanted[name] = named(wanted[name])
    return opened(GenerateRequest(**wanted), system, files)


def _named_in(context: Any, named: Callable[[Any], Any]) -> Any:
    """A context of a request with names for what it holds."""
    held = dict(context) if isinstance(context, Mapping) else {}
    return {key: named(value) for key, value in held.items()} if held else context


@dataclass(frozen=True, kw_only=True, eq=False)
class Blended:
    """One context of a request, read.

    value: a picture or a text, or the tokens (1, N, D) of an embedding.
    mask: a picture of the same size, bright where the other one is seen.
    """

    value: Image.Image | str | torch.Tensor
    mask: Image.Image | None = None

    def contexts(self, name: str, system: System, side: int) -> Contexts:
        """Of one sample, by their names.  side: of the system's pictures."""
        if isinstance(self.value, torch.Tensor):
            return {name: Context(tokens=self.value)}
        raw = medium(kind_of(name), system.media).tensor([self.value], side)
        seen = {name: shown_pixels(self.mask, side)} if self.mask else {}
        return system.contexts({name: raw}, seen)


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """What a job is given, read.

    values: name -> what it is given under it, pictures as squares of the system's side.
    contexts: name -> one that is blended, as "image:2"; of several one of weight 0 is left out.
    picture: of inpainting and of upscaling, whole.  mask: of inpainting.
    canvas: what words of the text are painted on.
    loras: each with its weight; one of weight 0 is left out.
    reference: the first picture given, (3, side, side).
    digests: name in the request -> digest.  notes: on how the inputs are seen, for the user.
    """

    values: Mapping[str, Sequence[Any]]
    contexts: Mapping[str, Blended]
    picture: Image.Image | None
    mask: Image.Image | None
    canvas: Canvas | None
    loras: Sequence[tuple[LoRA, float]]
    reference: torch.Tensor | None
    digests: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the picture."""
        return (self.picture.height, self.picture.width) if self.picture else (0, 0)

    @property
    def pixels(self) -> torch.Tensor | None:
        """The picture in its own size, (3, H, W) in [-1, 1]."""
        return to_tensor([np.asarray(self.picture)])[0] if self.picture else None

    def free(self, side: int) -> torch.Tensor:
        """(1, side, side) bool, True where the mask frees a pixel."""
        return free_pixels(self.mask, side)

    def put_back(self, drawn: torch.Tensor, blend: int) -> torch.Tensor:
        """A drawn picture (3, side, side) with the known pixels where the mask frees nothing."""
        side = drawn.shape[-1]
        return put_back(drawn, picture_tensor([self.picture], side)[0], self.free(side), blend)


def read(job: Job, system: System, side: int) -> Inputs:
    """A job's inputs.  side: of the pictures that the system reads.

    Raises RequestError for what it cannot take.
    """
    request = job.request
    embeddings = (c.embedding for c in request.contexts if c.embedding)
    held = {name: job.file(name) for name in (*request.paths, *embeddings, *request.lora)}
    pictures = [read_picture(held[name], name) for name in request.images]
    mask = read_picture(held[request.mask], request.mask, "black") if request.mask else None
    if mask:
        _fits(mask, pictures[0], side)
    whole = bool(mask) or request.kind == "upscale"  # and not the square in its middle
    seen = [] if request.kind == "upscale" else pictures
    painted = read_picture(held[request.paint], request.paint) if request.paint else None
    canvas = _canvas(request, painted, side) if painted else None
    where = canvas.middles() if canvas else None
    text = _completed(request.text, system, where)
    values: dict[str, list[Any]] = {"image": seen, "text": [text]}
    values["label"] = [request.label]
    for name, value in request.given.items():
        kind = _input(name, system)
        if kind.in_file:
            held[str(value)] = value = job.file(str(value))
        values[name] = [kind.read(value, name)]
    contexts = {
        name: _blended(context, job, system, side)
        for name, context in request.named_contexts
        if name in request.weights
    }
    blended = [c.value for c in contexts.values() if isinstance(c.value, Image.Image)]
    first = [*seen, *blended][:1]
    squares = [*zip(request.images, seen), *([(request.mask, mask)] if mask else [])]
    squares += [(request.paint, painted)] if painted else []
    return Inputs(
        values={
            k: [_squared(v, side) for v in own]
            for k, own in values.items()
            if own and own[0] is not None
        },
        contexts=contexts,
        picture=pictures[0] if whole else None,
        mask=mask,
        canvas=replace(canvas, text=text) if canvas else None,
        loras=[(lora_of(held[n], n), weight) for n, weight in request.lora.items() if weight],
        reference=picture_tensor(first, side)[0] if first else None,
        digests={name: digest(content) for name, content in held.items()},
        notes=(
            *(_seen(name, p.size, side) for name, p in squares if p.width != p.height),
            *remarks(request.text, system, where),
        ),
    )


def _canvas(request: GenerateRequest, painted: Image.Image, side: int) -> Canvas:
    """What the words of a request are painted on, by the colours of a map."""
    return Canvas(
        text=request.text,
        maps=painted_shares(painted, list(request.words), side, request.paint),
        phrases=tuple(words.phrase for words in request.words.values()),
        strengths=tuple(words.strength for words in request.words.values()),
    )


def _blended(context: GivenContext, job: Job, system: System, side: int) -> Blended:
    """Raises RequestError for what the system cannot be given so."""
    conditions = system.conditions.values()
    of = {c.name if context.embedding else c.asked: c for c in conditions}
    own = of[known("context", context.kind, sorted(of))]
    if own.leading is None and (context.mask or context.focus != 0.5):
        raise RequestError(
            f"this model sees no patches in its {own.name}; leave focus and mask of a context out"
        )
    if context.embedding is not None:
        return Blended(value=_embedded(context, own, job))
    if context.text is not None:
        return Blended(value=_completed(context.text, system))
    picture = read_picture(job.file(context.image), context.image)
    if context.mask is None:
        return Blended(value=square(picture, side))
    mask = read_picture(job.file(context.mask), context.mask, "black")
    _alike(mask, picture)
    return Blended(value=square(picture, side), mask=square(mask, side))


def _embedded(context: GivenContext, condition: Condition, job: Job) -> torch.Tensor:
    """(1, N, D), of as many numbers a token as the condition's null has."""
    found = torch.from_numpy(read_numbers(job.file(context.embedding), context.embedding))
    wide = condition.null().context().tokens.shape[-1] if condition.nulls else found.shape[-1]
    if found.ndim not in (1, 2) or found.shape[-1] != wide:
        shape = " x ".join(map(str, found.shape))
        raise RequestError(
            f"{context.embedding!r} is {shape} numbers; {condition.name} takes N x {wide}"
        )
    return found.reshape(1, -1, wide)


def _squared(value: Any, side: int) -> Any:
    return square(value, side) if isinstance(value, Image.Image) else value


def _input(name: str, system: System) -> Medium:
    """Of an input; RequestError for one that the system does not read."""
    return medium(known("input", name, sorted(system.raws)), system.media)


def _completed(
    text: str | None, system: System, where: Mapping[str, Point] | None = None
) -> str | None:
    """A prompt as the codecs that know what it leaves unsaid complete it.

    where: phrase -> the middle of where a map has it, to complete places from.
    """
    for codec in (m.codec for m in _readers(system) if text and hasattr(m.codec, "completed")):
        return codec.completed(text, where)
    return text


def _readers(system: System) -> Iterator[Any]:
    """The modalities and conditions that read a text."""
    everything = (*system.modalities.values(), *system.conditions.values())
    return (each for each in everything if each.source == "text")


def remarks(
    text: str | None, system: System, where: Mapping[str, Point] | None = None
) -> Iterator[str]:
    """What the codecs of a system do not read of a text, and how they complete it, a line each.

    where: phrase -> the middle of where it is painted.  Raises UsageError for a text of which they
    read nothing.
    """
    for codec in (m.codec for m in _readers(system) if text):
        reader = codec if hasattr(codec, "remarks") else getattr(codec, "tokens", None)
        also = (where,) if hasattr(reader, "completed") else ()
        yield from reader.remarks(text, *also) if hasattr(reader, "remarks") else ()


def _seen(name: str, size: tuple[int, int], side: int) -> str:
    (w, h), least = size, min(size)
    return f"{name} is {w}x{h}; its middle {least}x{least} is seen, at {side}x{side}"


def _fits(mask: Image.Image, picture: Image.Image, side: int) -> None:
    """RequestError for a mask of another shape than its picture, or that frees nothing."""
    _alike(mask, picture)
    if not free_pixels(mask, side).any():
        least = min(picture.size)
        raise RequestError(
            f"the mask frees nothing of the picture's middle {least}x{least}, which is what the "
            "model sees; its bright part has to reach into it"
        )


def _alike(mask: Image.Image, picture: Image.Image) -> None:
    """RequestError for a mask of another shape than its picture."""
    (w, h), (x, y) = mask.size, picture.size
    if abs(w * y - h * x) > 0.02 * w * y:
        raise RequestError(f"the mask is {w}x{h}, the picture {x}x{y}; give both the same shape")


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One sample of the job-th job: its request is settled, of n = 1 and its own seed.

    tasks: of its stages, by name.
    """

    job: int
    request: GenerateRequest
    inputs: Inputs
    tasks: tuple[str, ...]

    @property
    def rows(self) -> int:
        """Of a batch: the frames of an interpolation belong together."""
        return self.request.frames if self.request.kind == "interpolate" else 1

    @property
    def alike(self) -> str:
        """The same for samples of a model that may share a batch: of equal settings and LoRAs, of
        inputs of the same names, and of pictures of one size where these are enlarged."""
        settings = self.request.model_dump_json(exclude=OWN)
        extent = self.inputs.size if self.request.kind == "upscale" else (0, 0)
        loras = [adapter.digest for adapter, _ in self.inputs.loras]
        return f"{settings} {sorted(self.inputs.values)} {extent} {loras}"


def batches(samples: Sequence[Sample], size: int) -> Iterator[list[Sample]]:
    """At most `size` samples each that are `alike`; what is several rows is alone."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.alike, []).append(sample)
    for group in groups.values():
        together = 1 if group[0].rows > 1 else size
        for start in range(0, len(group), together):
            yield group[start : start + together]


def digest(given: Given) -> str:
    """Names what was given: sha256 of a file's bytes, else of the pixels or numbers."""
    if isinstance(given, Image.Image):
        given = np.asarray(read_image(given))
    if not isinstance(given, bytes):
        array = np.ascontiguousarray(given.cpu() if isinstance(given, torch.Tensor) else given)
        given = repr(array.shape).encode() + array.tobytes()
    return hashlib.sha256(given).hexdigest()


def same(file: bytes, named: str) -> bool:
    """Whether a file is what a digest names: itself, or a picture of the same pixels."""
    return named in (digest(file), digest(read_image(file)))
