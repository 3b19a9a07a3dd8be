"""Paint: regions of a canvas, and the words that are drawn there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from everyway.apps.studio import views
from everyway.apps.studio.bench import MOST
from everyway.apps.studio.parts import Page, opened, picture_of, values_of
from everyway.errors import EverywayError
from everyway.request import PAINT_FORMS, GenerateRequest, RequestError, Words

SIDE = 192
"""Of the map, in pixels."""
REGIONS = (
    {"colour": "#e4572e", "words": "a fox"},
    {"colour": "#2e86ab", "words": "a teapot"},
    {"colour": "#dddddd", "words": "blue background"},
)
TEXT = "a fox and a teapot on blue"


class Paint(Page):
    """A canvas beside what is drawn on it."""

    def build(self) -> None:
        say = self.say
        said = say(
            "Paint where things go: choose a colour, type its words, paint. The words have to "
            "stand in the sentence below, too. Paint all of it, the background as well."
        )
        gr.HTML(views.lead(say("Paint with words"), said), js_on_load=None)
        with gr.Row(equal_height=False, elem_classes="ew-work"):
            with gr.Column(scale=6, min_width=300):
                self.map = gr.HTML(
                    self._canvas(example(), REGIONS),
                    elem_id="map",
                    js_on_load=None,
                )
                self.text = gr.Textbox(
                    TEXT,
                    label=say("The whole sentence; empty: the words of the regions"),
                    elem_id="paint-text",
                )
            with gr.Column(scale=6, min_width=300):
                with gr.Row():
                    make = self.button("Make", elem_id="paint", scale=3)
                    self.stopping()
                self.shown = gr.HTML(
                    views.hint(say("Press Make: the picture follows your map.")),
                    elem_id="painted",
                    js_on_load=None,
                )
                with gr.Accordion(say("Settings"), open=False):
                    self.model = self.models(bool)
                    with gr.Row():
                        self.n = gr.Slider(1, MOST, value=1, step=1, label=say("How many"))
                        self.seed = gr.Number(0, precision=0, minimum=0, label=say("Seed"))
                    with gr.Row():
                        own = say("0: the model's own")
                        self.weight = gr.Slider(
                            0, 10, value=0, step=0.1, label=say("How strongly"), info=own
                        )
                        forms = [(say("the model's own"), ""), *PAINT_FORMS]
                        self.form = gr.Dropdown(forms, value="", label=say("How it falls"))
        painted, regions = gr.Textbox(visible="hidden"), gr.Textbox(visible="hidden")
        rest = [self.text, self.model, self.n, self.seed, self.weight, self.form]
        given, self.fields = [painted, regions, *rest], [self.map, *rest]
        drawn = values_of(len(given), {"map": 0})
        gr.on(
            [make.click, self.text.submit],
            self._made,
            given,
            self.shown,
            js=drawn,
            show_progress="hidden",
            concurrency_limit=4,
        )

    def _canvas(self, painted: Image.Image, regions: Sequence[Mapping[str, Any]]) -> str:
        """With a map on it."""
        own = {"start": views.address(painted), "regions": json.dumps(regions), "side": SIDE}
        return self.canvas_html("words", **own)

    def _made(self, request: gr.Request, *fields: Any) -> Iterator[str]:
        try:
            asked = self.request_of(*fields)
        except EverywayError as error:
            yield views.trouble(self.say(str(error)))
            return
        for html, _, _ in self.running(asked, request.session_hash):
            yield html

    def request_of(
        self,
        painted: str,
        regions: str,
        text: str | None,
        model: str,
        n: int,
        seed: int | None,
        weight: float,
        form: str,
    ) -> GenerateRequest:
        """The request of the page.  painted: the map as a data: address; regions: as JSON, a list
        of {colour, words, strength}.  The map is kept with the studio."""
        picture = picture_of(painted)
        told = {r["colour"]: Words(r["words"], r["strength"]) for r in json.loads(regions or "[]")}
        if picture is None or not told:
            raise RequestError("nothing is painted yet; paint a region and type its words")
        said = (text or "").strip() or " and ".join(
            dict.fromkeys(words.phrase for words in told.values() if words.strength > 0)
        )
        return GenerateRequest(
            kind="text-to-image",
            model=model,
            text=said,
            paint=self.studio.keep(picture),
            words=told,
            paint_weight=weight or None,
            paint_form=form or None,
            n=int(n),
            seed=int(seed or 0),
        )

    def values(self, request: GenerateRequest) -> list[Any]:
        """Of the page's fields for a request."""
        regions = [
            {"colour": colour, "words": words.phrase, "strength": words.strength}
            for colour, words in request.words.items()
        ]
        canvas = self._canvas(opened(request.paint), regions)
        own = [request.paint_weight or 0, request.paint_form or ""]
        return [canvas, request.text or "", request.model, 1, request.seed, *own]


def example() -> Image.Image:
    """A map of REGIONS: two things beside each other, and the background."""
    first, second, rest = (one["colour"] for one in REGIONS)
    picture = Image.new("RGB", (SIDE, SIDE), rest)
    pen, third = ImageDraw.Draw(picture), SIDE // 3
    pen.rectangle((0, third, third - 1, 2 * third - 1), fill=first)
    pen.rectangle((2 * third, third, SIDE, 2 * third - 1), fill=second)
    return picture
