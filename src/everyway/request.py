"""One request, in Python, as JSON and on the command line; torch-free, so that help and errors come
at once.

It is plain data: a picture stands in it by a name, and `job.Job` has what the name stands for.
"""

from __future__ import annotations

import difflib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from PIL import Image, UnidentifiedImageError
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from everyway.errors import UsageError
from everyway.validation import Number, Whole

KINDS = (
    "text-to-image",
    "image-to-text",
    "joint",
    "image",
    "text",
    "class-to-image",
    "inpaint",
    "image-to-image",
    "edit-image",
    "vary-image",
    "vary-text",
    "interpolate",
    "chain",
    "upscale",
)
SAMPLER_NAMES = (
    "dpm++2m",
    "dpm++3m",
    "dpm++2s",
    "dpm++3s",
    "dpm++fast",
    "dpm-fast",
    "ddim",
    "ddim-stride",
    "ddpm",
    "purity",
    "fast-stride",
    "heun",
    "edm-euler",
    "edm-heun",
    "kutta3",
    "em-sde",
    "em-ode",
    "euler",
    "ancestral",
)
PAINT_FORMS = ("max", "std", "max-square", "std-square")
PAINTED = ("text-to-image", "image-to-image", "inpaint")
NEEDS_TEXT = ("text-to-image", "vary-text", "chain")
READS_TEXT = (*NEEDS_TEXT, "inpaint", "image-to-image", "edit-image", "upscale")
NEEDS_IMAGES = {
    "image-to-text": 1,
    "vary-image": 1,
    "inpaint": 1,
    "image-to-image": 1,
    "edit-image": 1,
    "interpolate": 2,
    "upscale": 1,
}
ONCE = ("image", "text", "image-to-image", "inpaint")
"""Kinds that may be made out of contexts; the states of the others are given one by one."""
MIXES = ("attention", "layer", "model", "tokens")
"""How contexts are mixed (`controls.blend`)."""
FOCUS = {"semantic": 0.0, "style": 1.0}
OWN_STAGES, NO_STAGES = "", "none"
"""Values of `upscale`: the model's own stages enlarge its pictures, or none do."""
LORA = "lora.safetensors"
"""What a training of a LoRA leaves in its folder."""
MAX_TEXT = 1000
MAX_SEED = 2**62
SETTINGS = (
    "steps",
    "guidance",
    "sampler",
    "truncation",
    "purity_weight",
    "tokens_per_step",
    "null",
    "guidance_interval",
    "thresholds",
)
"""How a request samples, whatever it makes; these decide a score and stand beside it."""


class RequestError(UsageError):
    """A request that cannot be honoured: one line that says how to mend it."""


def _name(given: Any) -> Any:
    """A path as the text that it is."""
    return os.fspath(given) if isinstance(given, os.PathLike) else given


Name = Annotated[str, BeforeValidator(_name)]
"""Of a file.  In Python and on the command line it is a path; a server gives its own files."""
Time = Annotated[Number, Field(ge=0, le=1)]
Colour = Annotated[str, StringConstraints(pattern="^#[0-9A-Fa-f]{6}$", to_lower=True)]
"""As #ff0000."""


class Words(NamedTuple):
    """Painted words.  strength: below 0 keeps them out of their region."""

    phrase: Annotated[str, Field(min_length=1, max_length=200)]
    strength: Annotated[Number, Field(ge=-10, le=10)] = 1.0


def _loras(given: Any) -> Any:
    """Files, or one, each as "FILE" or "FILE:WEIGHT", with the weight of each."""
    listed = [given] if isinstance(given, (str, os.PathLike)) else given
    if not isinstance(listed, (list, tuple)):
        return given
    weight = r"[+-]?(?:[0-9.]+(?:e[+-]?[0-9]+)?|nan|inf)"
    named = re.compile(rf"(.*?)(?::({weight}))?", re.DOTALL | re.IGNORECASE)
    split = [named.fullmatch(str(_name(one))).groups() for one in listed]
    counts = Counter(path for path, _ in split)
    if twice := [path for path, count in counts.items() if count > 1]:
        raise ValueError(f"{twice[0]!r} is given {counts[twice[0]]} times; give it once")
    return {path: weight or 1.0 for path, weight in split}


def _words(given: Any) -> Any:
    """ "a fox" or "a fox:0.5" as Words has it."""
    return tuple(part.strip() for part in given.rsplit(":", 1)) if isinstance(given, str) else given


def _focus(given: Any) -> Any:
    """Its name as the number that it is."""
    return FOCUS.get(given, given) if isinstance(given, str) else given


class GivenContext(BaseModel):
    """One of the things that a result is made out of: a picture, a text, or an embedding."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    image: Name | None = None
    """A picture's path."""
    text: str | None = None
    """A text."""
    embedding: Name | None = None
    """A .npy file of tokens (N, D) in place of what an encoder makes."""
    condition: str = ""
    """The condition that an embedding is for, as image."""
    weight: Annotated[Number, Field(ge=0, le=1000)] = 1.0
    """Its share among all; alone, in [0, 1], how much of it is given."""
    mask: Name | None = None
    """A picture's path; the bright places of the image are seen, the others are not."""
    focus: Annotated[Time, BeforeValidator(_focus)] = 0.5
    """On the semantics of the image (0, "semantic"), or on its style (1, "style")."""

    @model_validator(mode="after")
    def _one_thing(self) -> GivenContext:
        given = [v for v in (self.image, self.text, self.embedding) if v is not None]
        if len(given) != 1:
            raise ValueError("give one image, one text or one embedding a context")
        if (self.embedding is None) != (not self.condition):
            raise ValueError("an embedding goes with the condition that it is for; give both")
        if self.mask is not None and self.image is None:
            raise ValueError("a mask is of an image; leave it out")
        if self.focus != 0.5 and self.text is not None:
            raise ValueError("a text has no focus; leave it out")
        if self.text is not None:
            said(self.text)
        return self

    @property
    def kind(self) -> str:
        """The raw data that it is, or the condition that it is an embedding for."""
        return self.condition or ("text" if self.image is None else "image")


class GenerateRequest(BaseModel):
    """What to make.  The descriptions of its fields are the help of the command line's flags."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=100)]
    """One of KINDS, or a task that the model itself has."""
    text: str | None = None
    """A prompt."""
    images: tuple[Name, ...] = ()
    """Paths of the pictures that it is given."""
    label: Annotated[Whole, Field(ge=0)] | Annotated[str, Field(min_length=1)] | None = None
    """A class by its name or number, for models of classes (everyway models MODEL names them)."""
    n: Annotated[Whole, Field(ge=1, le=10_000)] = 1
    """How many; sample k has seed + k."""
    seed: Annotated[Whole, Field(ge=0, lt=MAX_SEED)] = 0
    """Of the first sample's noise."""
    steps: Annotated[Whole, Field(ge=1, le=1000)] | None = None
    """Of the sampler; by default the model's own."""
    guidance: Annotated[Number, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    """Weight w in u + w (c - u), 1 is off; by default the model's own."""
    sampler: Annotated[str | None, Field(examples=SAMPLER_NAMES)] = None
    """The sampler's name; by default the model's own."""
    mask: Name | None = None
    """A picture's path; its bright places are drawn anew, the others stay (inpaint)."""
    blend: Annotated[Whole, Field(ge=0, le=64)] = 0
    """Within so many pixels of those that stay, what is drawn passes over into them (inpaint)."""
    paint: Name | None = None
    """A picture's path, in whose colours words of the text are painted."""
    words: dict[Colour, Annotated[Words, BeforeValidator(_words)]] = {}
    """Colour of that picture -> the words that are drawn there, and how strongly (1 by default;
    below 0 they are kept out of it), as "#ff0000=a fox" or "#00ff00=a teapot:0.5"."""
    paint_weight: Annotated[Number, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    """How strongly words are painted, 0 is off; by default the model's own."""
    paint_form: Annotated[str | None, Field(examples=PAINT_FORMS)] = None
    """What the weight is a multiple of, and square if it falls faster with the noise; by default
    the model's own."""
    strength: Annotated[Number, Field(gt=0, le=1)] = 1.0
    """How much of a picture is forgotten, in (0, 1] (image-to-image); by default all of it."""
    truncation: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Mass of a token's distribution that is kept, 1 is all; by default the model's own."""
    purity_weight: Annotated[Number, Field(ge=0, le=100)] | None = None
    """Of the sampler purity, how much sharper; 1 by default."""
    tokens_per_step: Annotated[Whole, Field(ge=1)] | None = None
    """Of the sampler purity, at most so many a call; by default as the steps need."""
    guidance_interval: tuple[Time, Time] = (0.0, 1.0)
    """The times, ends included, between which guidance counts; by default all."""
    thresholds: dict[str, Annotated[Number, Field(gt=0, le=1)]] = {}
    """State -> quantile of dynamic thresholding, for pixels in [-1, 1]; by default none."""
    clock_paths: dict[str, Literal["first", "last"] | tuple[tuple[Time, Time], ...]] = {}
    """Clock -> its way through time: "first" is made in the first half of the run and given in the
    second, "last" the other way round; or knots ((u, t), ...), as `tasks.Path`."""
    null: str = ""
    """What stands for no text in guidance, learned or empty; by default the model's first."""
    language: str = ""
    """Of the text that is made, as en or ko; by default the prompt's, else the model's first."""
    negative: str | None = None
    """A text whose meaning is taken out of the picture, as the text's is put in (edit-image)."""
    contexts: tuple[GivenContext, ...] = ()
    """What it is made out of, where that is more than one text: pictures, texts and embeddings."""
    mix: Literal[MIXES] | None = None
    """How the contexts are mixed: attention, layer, model or tokens; by default the model's own."""
    colours: Time = 0.0
    """How far the colours go to those of the first picture given, in [0, 1]; by default nowhere."""
    given: dict[str, int | Name] = {}
    """What a model reads that has no field here, by name: a text, a number, or a file's path."""
    context_weights: dict[str, Time] = {}
    """Context -> its weight: 0 leaves it out, 1 is as given; by default the task's, and 1 where it
    is given by its own name."""
    context_guidance: dict[str, Annotated[Number, Field(ge=0, le=100, allow_inf_nan=False)]] = {}
    """Context -> its own weight in guidance; by default that of all."""
    given_noise: dict[str, Annotated[Number, Field(ge=0, lt=1)]] = {}
    """Clock -> time in [0, 1) at which a condition is given, itself noisy."""
    upscale: str = OWN_STAGES
    """A model that enlarges the pictures that are made, or none; by default the model's own
    cascade."""
    scale: Annotated[Number, Field(gt=0, le=64)] | None = None
    """How much larger a picture becomes; by default as large as what enlarges it draws."""
    frames: Annotated[Whole, Field(ge=2, le=1000)] = 8
    """Of an interpolation."""
    rounds: Annotated[Whole, Field(ge=1, le=1000)] = 5
    """Of a chain."""
    lora: Annotated[
        dict[Name, Annotated[Number, Field(ge=-10, le=10)]], BeforeValidator(_loras)
    ] = {}
    """Added to the model: a LoRA's file, or the folder of its training -> its weight, 1 by default;
    several add up."""
    model: str = "default"
    """A shipped name, a model folder, a file or folder of published weights, or a hub id."""

    def __init__(self, /, **values) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise RequestError(_one_line(error)) from None

    @model_validator(mode="after")
    def _coherent(self) -> GenerateRequest:
        if self.sampler is not None:
            self.needs_purity(known("sampler", self.sampler, SAMPLER_NAMES))
        if (self.mask is not None) != (self.kind == "inpaint"):
            raise ValueError("a mask goes with the kind inpaint; give both or neither")
        if self.blend and self.kind != "inpaint":
            raise ValueError("a blend goes with the kind inpaint; leave it out")
        for text in (self.text, self.negative):
            if text is not None:
                said(text)
        if (self.paint is None) != (not self.words):
            raise ValueError("a map to paint goes with words for its colours; give both or neither")
        if self.paint and (self.text is None or self.kind not in PAINTED):
            raise ValueError(f"words of a text are painted in {', '.join(PAINTED)}; give a text")
        if (self.paint_weight, self.paint_form) != (None, None) and not self.paint:
            raise ValueError("how words are painted goes with a map to paint; leave it out")
        if self.paint_form is not None:
            known("paint form", self.paint_form, PAINT_FORMS)
        if self.negative is not None and self.kind != "edit-image":
            raise ValueError("a negative text goes with the kind edit-image; leave it out")
        if self.contexts:
            self._is_made_of_contexts()
        elif self.mix:
            raise ValueError("a mix is of contexts; give some, or leave it out")
        if self.colours and not (self.images or any(c.image for c in self.contexts)):
            raise ValueError("colours go to those of a picture; give one, or leave them out")
        if self.kind in KINDS:
            self._has_what_it_reads()
        if self.kind == "edit-image" and self.text is None and self.negative is None:
            raise ValueError("edit-image needs a text, a negative one, or both")
        if self.kind == "interpolate" and self.n > 1:
            raise ValueError("an interpolation is one row of frames; leave n out")
        if self.guidance_interval[0] > self.guidance_interval[1]:
            raise ValueError("guidance_interval goes from the lower time to the higher one")
        if self.seed + self.n > MAX_SEED:
            raise ValueError(f"seed + n is above {MAX_SEED}; give a smaller seed")
        return self

    def _has_what_it_reads(self) -> None:
        if (self.label is not None) != (self.kind == "class-to-image"):
            raise ValueError("a label goes with the kind class-to-image; give both or neither")
        if self.text is not None and self.kind not in READS_TEXT:
            raise ValueError(f"{self.kind} reads no text; leave the text out")
        if self.text is None and self.kind in NEEDS_TEXT:
            raise ValueError(f"{self.kind} needs a text; give one with --text")
        needed = NEEDS_IMAGES.get(self.kind, 0)
        if len(self.images) != needed:
            raise ValueError(f"{self.kind} takes {needed} image(s), got {len(self.images)}")

    def _is_made_of_contexts(self) -> None:
        if self.kind in KINDS and self.kind not in ONCE:
            raise ValueError(f"{self.kind} takes no contexts; give its kind as {', '.join(ONCE)}")
        if self.text is not None:
            raise ValueError("the text is one of the contexts; give it there")
        if len(self.contexts) == 1 and self.contexts[0].weight > 1:
            raise ValueError("one context alone has a weight of 0 to 1")
        if len(self.contexts) > 1 and not any(context.weight for context in self.contexts):
            raise ValueError("all weights are 0; give one context more")

    def needs_purity(self, sampler: str) -> None:
        """RequestError for settings of the sampler purity with another."""
        if (self.purity_weight, self.tokens_per_step) != (None, None) and sampler != "purity":
            raise RequestError(
                f"a purity weight and tokens per step need the sampler purity; this is {sampler}"
            )

    @property
    def paths(self) -> tuple[str, ...]:
        """Of every picture that is read for it."""
        blended = (path for context in self.contexts for path in (context.image, context.mask))
        return (*self.images, *filter(None, (self.mask, self.paint, *blended)))

    @property
    def named_contexts(self) -> Iterator[tuple[str, GivenContext]]:
        """By kind and number: "image", "image:2", "text"."""
        seen = Counter[str]()
        for context in self.contexts:
            seen[context.kind] += 1
            number = seen[context.kind]
            yield f"{context.kind}:{number}" if number > 1 else context.kind, context

    @property
    def weights(self) -> dict[str, float]:
        """Name of a context -> its weight; of several those of 0 are left out."""
        alone = len(self.contexts) == 1
        return {name: c.weight for name, c in self.named_contexts if c.weight or alone}

    @property
    def focus(self) -> dict[str, float]:
        """Name of a context -> its focus."""
        return {name: c.focus for name, c in self.named_contexts}

    @property
    def parts(self) -> int:
        """How many results one sample of it has."""
        return {"interpolate": self.frames, "chain": 2 * self.rounds}.get(self.kind, 1)


def known(what: str, name: str, names: Iterable[str]) -> str:
    """`name` if it is among `names`; a RequestError with the nearest one if not."""
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names)}"
    raise RequestError(f"{what} {name!r} is unknown; {hint}")


def said(text: str) -> str:
    """A text as it is.  Raises RequestError for one that is empty, too long, or no Unicode."""
    if not text.strip():
        raise RequestError("the text is empty; say what to draw")
    if len(text) > MAX_TEXT:
        raise RequestError(f"the text has {len(text)} characters; at most {MAX_TEXT}")
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise RequestError("the text is not valid Unicode; write it in UTF-8")
    return text


def read_file(path: str | Path, what: str = "picture") -> bytes:
    """Raises RequestError where there is none that can be read.  what: it is, in errors."""
    from everyway.data.faults import reason

    try:
        if Path(path).is_file():
            return Path(path).read_bytes()
    except OSError as error:
        raise RequestError(
            f"{str(path)!r} cannot be read: {reason(error)}; give another {what}"
        ) from None
    raise RequestError(f"there is no {what} at {str(path)!r}; check the path")


def read_lora(path: str) -> bytes:
    """A LoRA's file, or that in the folder of its training.  Errors as of `read_file`."""
    folder = Path(path)
    return read_file(folder / LORA if folder.is_dir() else folder, "LoRA")


def read_image(
    given: str | Path | bytes | Image.Image, ground: str = "white", name: str = "the picture"
) -> Image.Image:
    """The picture as RGB, read as training reads it; ground: what shows through it.

    given: a path, the bytes of a file, or a picture of Pillow.  name: of the latter two, in errors.
    Raises RequestError where there is none that can be read.
    """
    from everyway.data.decode import read_picture
    from everyway.data.faults import reason

    if isinstance(given, (str, Path)):
        given, name = read_file(given), str(given)
    try:
        return read_picture(io.BytesIO(given) if isinstance(given, bytes) else given, ground)
    except UnidentifiedImageError:
        raise RequestError(f"{name!r} is not a picture; give a PNG or JPEG") from None
    except OSError as error:
        raise RequestError(
            f"{name!r} cannot be read: {reason(error)}; give another PNG or JPEG"
        ) from None


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(p) for p in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"there is no setting {where!r}; {', '.join(GenerateRequest.model_fields)} exist"
    where = " ".join(where.split())
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}={first['input']!r:.80}: {message}" if where else message
