"""What all pages have in common, and components of our own."""

from __future__ import annotations

import base64
import binascii
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image
from torch import ones_like

from everyway.apps.server.scheduler import Step
from everyway.apps.studio import plane, views
from everyway.apps.studio.bench import MOST, Made, Studio
from everyway.errors import EverywayError
from everyway.generate import Result
from everyway.request import SAMPLER_NAMES, GenerateRequest, RequestError, read_image

Given = Image.Image | bytes | None
"""A picture that was given, or the bytes of its file."""
MADE = "../made"
"""Where a page finds the folder of what was made."""
PAIR = {
    "en": ("a large fox on blue", "a small pizza on green"),
    "ko": ("파란 배경에 큰 여우", "초록 배경에 작은 피자"),
}
"""Language -> words of two pictures, for examples."""


@dataclass(kw_only=True, eq=False)
class Page:
    """A page of the studio in one language.

    say: translates into the language.  offered: the menus of models, which follow `studio.names`.
    prompts: texts for a model, each with the place of remarks on how the model reads it.
    silent: beginnings of remarks that this page leaves out, since they are not true of it.
    """

    silent: ClassVar[tuple[str, ...]] = ()

    studio: Studio
    say: views.Say
    language: str
    offered: list[gr.Dropdown] = field(default_factory=list)
    prompts: list[tuple[gr.Textbox, gr.HTML]] = field(default_factory=list)

    def prompt(self, value: str = "", **settings: Any) -> gr.Textbox:
        """A text that the page's model reads; what it does not know is said below."""
        text = gr.Textbox(value, **settings)
        said = gr.HTML("", elem_classes="ew-remarks", js_on_load=None)
        self.prompts.append((text, said))
        return text

    def heed(self) -> None:
        """Shows remarks on the prompts as they change; called once the page is built."""
        for text, said in self.prompts:
            changed = [text.change, self.model.change]
            quiet = {"queue": False, "show_progress": "hidden"}
            gr.on(changed, self._remarked, [self.model, text], said, **quiet)

    def _remarked(self, model: str, text: str | None) -> str:
        try:
            said = self.studio.remarks(model, text) if (text or "").strip() else []
        except EverywayError:  # of the model, reported when it is used
            said = []
        heard = [one for one in said if not one.startswith(self.silent)]
        return "".join(views.tag("p", escape(self.say(one))) for one in heard)

    @contextmanager
    def settings(
        self, wanted: Callable[[str], bool] = bool, several: bool = True, **named: Any
    ) -> Iterator[None]:
        """The folded settings of model, count and sampling.  What is built inside the block comes
        after them.

        wanted: as of `models`.  several: whether more than one sample may be asked for.
        """
        say, own = self.say, self.say("0: the model's own")
        slider = {"value": 0, "info": own, "min_width": 150}
        with gr.Accordion(say("Settings"), open=False, **named) as self.folded:
            with gr.Row():
                self.model = self.models(wanted, elem_classes="ew-model", min_width=150)
                samplers = [(say("the model's own"), ""), *SAMPLER_NAMES]
                self.sampler = gr.Dropdown(samplers, value="", label=say("Sampler"), min_width=150)
            with gr.Row():
                self.steps = gr.Slider(
                    0, 1000, step=1, label=say("Steps"), elem_classes="ew-steps", **slider
                )
                self.guidance = gr.Slider(0, 100, step=0.1, label=say("Guidance"), **slider)
            with gr.Row():
                self.n = gr.Slider(
                    1, MOST, value=1, step=1, label=say("How many"), visible=several, min_width=150
                )
                with gr.Column(min_width=150):
                    seed = {"elem_classes": "ew-seed", "precision": 0, "minimum": 0}
                    self.seed = gr.Number(0, label=say("Seed"), **seed)
                    dice = gr.Button(say("another seed"), size="sm", elem_classes="ew-small")
            yield
        dice.click(lambda: random.randrange(2**31), None, self.seed, queue=False)

    @property
    def shared(self) -> list[Any]:
        """The fields of `settings`, in the order of `asked`."""
        return [self.model, self.n, self.seed, self.steps, self.guidance, self.sampler]

    @staticmethod
    def asked(
        model: str, n: int, seed: int | None, steps: int, guidance: float, sampler: str
    ) -> dict[str, Any]:
        """The values of `shared` as fields of a request."""
        return {
            "model": model,
            "n": int(n or 1),
            "seed": int(seed or 0),
            "steps": int(steps or 0) or None,
            "guidance": guidance or None,
            "sampler": sampler or None,
        }

    @staticmethod
    def shared_values(request: GenerateRequest) -> list[Any]:
        """Values of `shared` for a request, of one sample."""
        own = [request.steps or 0, request.guidance or 0, request.sampler or ""]
        return [request.model, 1, request.seed, *own]

    def picture(self, label: str, height: int, **settings: Any) -> gr.Image:
        """A place for a picture, which reaches the page as the bytes of its file.  If it cannot be
        read, an error is shown below."""
        with gr.Column(min_width=150):
            place = gr.Image(
                label=self.say(label),
                image_mode="RGB",
                format="png",
                height=height,
                placeholder=self.say("drop a picture here, paste it, or click"),
                sources=["upload", "clipboard"],
                buttons=[],
                **settings,
            )
            said = gr.HTML("", elem_classes="ew-remarks", js_on_load=None)
        place.preprocess = content_of  # a class of our own would write beside its source
        place.change(self._seen, place, said, queue=False, show_progress="hidden")
        return place

    def _seen(self, given: Given) -> str:
        """What is wrong with a picture, if anything is."""
        try:
            if given is not None:
                read_image(given)
        except RequestError as error:
            return views.trouble(self.say(str(error)))
        return ""

    def kept(self, given: Given) -> str:
        """The path of a picture that the studio keeps from now on.  Raises RequestError where it
        cannot be read."""
        return self.studio.keep(read_image(given))

    def labelled(self, labels: Mapping[str, str], names: Iterable[str]) -> list[tuple[str, str]]:
        """Names as the choices of a menu: (label, name)."""
        return [(self.say(labels[name]), name) for name in names]

    def button(self, text: str, **settings: Any) -> gr.Button:
        """A button that makes something; Ctrl+Enter presses the one in sight."""
        return gr.Button(self.say(text), variant="primary", **settings)

    def example(self, name: str) -> gr.Button:
        """A button that fills the page with something to try."""
        return gr.Button(self.say("An example"), size="sm", elem_id=name, elem_classes="ew-small")

    def stopping(self, tool: str = "") -> gr.Button:
        """A button that stops what runs in a place of the page, and keeps what is there.  It is in
        sight while something runs (look.css)."""
        button = gr.Button(self.say("Stop and keep"), elem_classes="ew-stop")

        def stop(request: gr.Request) -> None:
            self.studio.stop(self.place(request, tool))

        button.click(stop, None, None, queue=False)
        return button

    def place(self, request: gr.Request, tool: str = "") -> str:
        """A name for a place on a visitor's page in which one thing runs at a time."""
        return "/".join((request.session_hash or "", type(self).__name__, tool))

    def models(self, wanted: Callable[[str], bool], **settings: Any) -> gr.Dropdown:
        """A menu of the studio's models.  The first one whose system is `wanted` is chosen, or else
        the first of all."""
        names = self.studio.names
        first = next((n for n in names if wanted(self.studio.system(n))), names[0])
        label = self.say("Model")
        made = gr.Dropdown([*names], value=first, label=label, allow_custom_value=True, **settings)
        self.offered.append(made)
        return made

    def address(self, made: Made) -> str:
        """The address of the picture of a result."""
        return f"{MADE}/{made.row['image']}"

    def canvas(self, name: str, mode: str) -> gr.HTML:
        """A canvas of our own."""
        return gr.HTML(self.canvas_html(mode), js_on_load=None, elem_id=name)

    def canvas_html(self, mode: str, picture: str = "", **own: Any) -> str:
        """The HTML of a canvas.  mode: "mask" or "words".  picture: the address of what is below.
        own: further attributes of <ew-canvas>."""
        say = self.say
        labels = {
            "canvas": say("canvas: arrows move the brush, space paints, z takes back"),
            "pick": say("paint with colour"),
            "words": say("words"),
            "strength": say("strength; below 0 keeps the words out"),
            "fill": say("fill what is left"),
            "size": say("size of the brush"),
            "erase": say("eraser"),
            "undo": say("take the last stroke back"),
            "clear": say("clear the canvas"),
            "add": say("one region more"),
            "fill word": say("Fill"),
            "erase word": say("Eraser"),
            "undo word": say("Undo"),
            "clear word": say("Clear"),
            "add word": say("Colour"),
        }
        return views.tag(
            "ew-canvas",
            mode=mode,
            picture=picture,
            labels=json.dumps(labels, ensure_ascii=False),
            **own,
        )

    def masking(self, image: Given, mask: str) -> tuple[Any, Any, str]:
        """The canvas of a picture; mask: what is on it first."""
        try:
            picture = "" if image is None else views.address(read_image(image))
        except RequestError:  # shown beside it
            picture = ""
        part = gr.update(visible=bool(picture), open=bool(mask))
        return part, self.canvas_html("mask", picture, start=mask), ""

    def running(
        self,
        place: str,
        wanted: Callable[[], Sequence[GenerateRequest]],
        shown: Callable[[list[Made], list[Step]], str] | None = None,
    ) -> Iterator[tuple[str, list[Made]]]:
        """Runs requests and yields (HTML, results so far).

        place: as `place` names it.  wanted: returns the requests; its errors are shown.
        shown: (results, steps with frames) -> HTML; by default `finished`.
        """
        film, made, shown = list[Step](), list[Made](), shown or self.finished
        yield views.under_way(0.02), made
        try:
            requests = wanted()
            for event in self.studio.run(*requests, place=place):
                if isinstance(event, Made):
                    made.append(event)
                elif event.frames and len(requests) == 1:
                    film.append(event)
                    yield self.going(requests[0], event), []
                if len(requests) > 1 and made:
                    yield views.under_way(len(made) / len(requests), shown(made, film)), made
        except EverywayError as error:
            there = shown(made, film) if made else ""
            yield views.trouble(self.say(str(error))) + there, made
            return
        if made:
            yield shown(made, film), made
        else:
            yield views.hint(self.say("it was stopped before anything could be seen")), made

    def going(self, asked: GenerateRequest, step: Step) -> str:
        """A running request, with where it is in the plane of times."""
        return views.going(step, self.say, plane.small(self.studio.times(asked, step), self.say))

    def finished(self, made: list[Made], film: list[Step]) -> str:
        """What was made, and the film of how its first sample came."""
        how = self.how(film, made[0].result, len(made) == 1)
        return views.made(made, self.say, how, self.address)

    def how(self, film: Sequence[Step], result: Result, open_: bool = True) -> str:
        """The film of how the first sample of a run came out of the noise.

        It ends with the result, in place of the preview of the last step.  open_: whether the film
        is unfolded.
        """
        seen = [(step, frame) for step in film for frame in step.frames if frame.sample == 0]
        if not seen:
            return ""
        last, frame = seen[-1]
        sure, stopped = frame.certainty, result.metadata.get("stopped")
        if stopped or (last.stage, last.step) == (last.stages, last.steps):
            seen.pop()
        if not stopped:  # every token is what it is by now
            sure = {name: ones_like(each) for name, each in sure.items()}
        frames = [
            *(each for _, each in seen),
            replace(frame, outputs=result.outputs, certainty=sure),
        ]
        steps = [
            *((step.step, step.steps) for step, _ in seen),
            stopped or (last.steps, last.steps),
        ]
        title = self.say("How it came out of the noise")
        shown = views.film(
            [each.outputs for each in frames],
            title,
            self.say,
            notes=[self.say(f"step {step} of {of}") for step, of in steps],
            beside=[views.heats(each, self.say) for each in frames],
        )
        return views.tag("details", views.tag("summary", title), shown, class_="ew-how", open=open_)


def content_of(given: ImageData | None) -> bytes | None:
    """The bytes of the file that was put into a place for a picture."""
    return Path(given.path).read_bytes() if given else None


def picture_of(address: str | None) -> Image.Image | None:
    """The picture of a data: address, as canvases give them; None for "".

    Raises RequestError for what is none.
    """
    if not address:
        return None
    try:
        content = base64.b64decode(address.partition(",")[2], validate=True)
    except binascii.Error:
        raise RequestError("the mask is not a picture; paint it anew") from None
    return read_image(content, "black", "the mask")


def opened(path: str) -> Image.Image:
    """A picture that a record names.  Raises RequestError where there is none."""
    return read_image(path)


def values_of(count: int, canvases: Mapping[str, int], choices: Mapping[str, int] = {}) -> str:
    """JavaScript that fills `count` inputs of an event with what canvases and radios hold.

    canvases: id -> which input takes its map; that after it takes the regions of one of words.
    choices: id of a radio -> which input takes what is chosen in it.
    """
    return (
        f"(...given) => {{ given.length = {count}; "
        f"for (const [id, k] of Object.entries({json.dumps(canvases)})) {{ "
        "const one = document.querySelector(`#${id} ew-canvas`); "
        "given[k] = one ? one.value : ''; "
        "if (one && !one.mask) given[k + 1] = JSON.stringify(one.regions); } "
        f"for (const [id, k] of Object.entries({json.dumps(choices)})) "
        "given[k] = document.querySelector(`#${id} input:checked`)?.value || ''; return given; }"
    )
