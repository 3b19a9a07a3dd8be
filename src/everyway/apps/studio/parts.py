"""What pages are made of: what they know, and the components of our own."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from PIL import Image

from everyway.apps.server.scheduler import Step
from everyway.apps.studio import plane, views
from everyway.apps.studio.bench import Made, Studio
from everyway.errors import EverywayError
from everyway.request import GenerateRequest, RequestError, read_image


@dataclass(kw_only=True, eq=False)
class Page:
    """What every page has: the studio, and its language.

    offered: the choices of a model on it, which follow what the studio has.
    """

    studio: Studio
    say: views.Say
    language: str
    offered: list[gr.Dropdown] = field(default_factory=list)

    def picture(self, label: str, height: int, **settings: Any) -> gr.Image:
        """Where a picture may go; it comes to the page as it is, in no lossy format."""
        return gr.Image(
            label=self.say(label),
            type="pil",
            image_mode="RGB",
            format="png",
            height=height,
            placeholder=self.say("drop a picture here, paste it, or click"),
            sources=["upload", "clipboard"],
            buttons=[],
            **settings,
        )

    def labelled(self, labels: Mapping[str, str], names: Iterable[str]) -> list[tuple[str, str]]:
        """Choices for a person."""
        return [(self.say(labels.get(name, name)), name) for name in names]

    def button(self, text: str, **settings: Any) -> gr.Button:
        """What makes something: Ctrl+Enter presses the one in sight."""
        return gr.Button(self.say(text), variant="primary", **settings)

    def stopping(self) -> gr.Button:
        """Ends what runs for whoever presses it, and keeps what is there."""
        button = gr.Button(self.say("Stop and keep"), elem_classes="ew-stop")
        button.click(self._stop, None, None, queue=False)
        return button

    def _stop(self, request: gr.Request) -> None:
        self.studio.stop(request.session_hash)

    def models(self, wanted: Callable[[str], bool], **settings: Any) -> gr.Dropdown:
        """The studio's models, the first one chosen whose system is `wanted`, else the first."""
        names = self.studio.names
        first = next((n for n in names if wanted(self.studio.system(n))), names[0])
        label = self.say("Model")
        made = gr.Dropdown([*names], value=first, label=label, allow_custom_value=True, **settings)
        self.offered.append(made)
        return made

    def address(self, made: Made) -> str:
        """Where the file of a result is."""
        return f"../made/{made.row['image']}"

    def canvas(self, name: str, mode: str) -> gr.HTML:
        """A canvas of our own."""
        return gr.HTML(self.canvas_html(mode), js_on_load=None, elem_id=name)

    def canvas_html(self, mode: str, picture: str = "", **own: Any) -> str:
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
        }
        return views.tag(
            "ew-canvas",
            mode=mode,
            picture=picture,
            labels=json.dumps(labels, ensure_ascii=False),
            **own,
        )

    def masking(self, image: Image.Image | None, mask: str) -> tuple[Any, Any, str]:
        """The canvas of a picture; mask: what is on it first."""
        picture = views.address(image) if image is not None else ""
        part = gr.update(visible=bool(picture), open=bool(mask))
        return part, self.canvas_html("mask", picture, start=mask), ""

    def running(self, asked: GenerateRequest, session: str) -> Iterator[tuple[str, list[str], Any]]:
        """A request on its way: (HTML, names of the files that were made, the button for them)."""
        film: list[Step] = []
        made: list[Made] = []
        yield views.tag("div", views.bar(0.02), class_="ew-run ew-going"), [], gr.skip()
        try:
            for event in self.studio.run(asked, session):
                if isinstance(event, Made):
                    made.append(event)
                elif event.frames:
                    film.append(event)
                    yield self.going(asked, event), [], gr.skip()
        except EverywayError as error:
            yield views.trouble(self.say(str(error))), [], gr.update(visible=False)
            return
        names = [one.row["image"] for one in made if one.row.get("image")]
        yield self.finished(made, film), names, gr.update(visible=bool(names))

    def going(self, asked: GenerateRequest, step: Step) -> str:
        """A run on its way, with where it is in the plane of times."""
        return views.going(step, self.say, plane.small(self.studio.times(asked, step), self.say))

    def finished(self, made: list[Made], film: list[Step]) -> str:
        """What was made, and the film of how its first sample came."""
        if not made:
            return views.hint(self.say("it was stopped before anything could be seen"))
        return views.made(made, self.say, self.how(film, len(made) == 1), self.address)

    def how(self, film: Sequence[Step], open_: bool = True) -> str:
        """The film of how the first sample of a run came."""
        if len(film) < 2:
            return ""
        notes = [self.say(f"step {f.step} of {f.steps}") for f in film]
        title = self.say("How it came out of the noise")
        first = [step.frames[0] for step in film]
        maps = [views.heats(frame, self.say) for frame in first]
        frames = [frame.outputs for frame in first]
        shown = views.film(frames, title, self.say, notes=notes, beside=maps)
        return views.tag("details", views.tag("summary", title), shown, class_="ew-how", open=open_)


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
    """A picture that is kept."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


def values_of(count: int, canvases: Mapping[str, int], choices: Mapping[str, int] = {}) -> str:
    """JavaScript that puts what pages hold themselves into the inputs of an event, of which there
    are `count`.

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
