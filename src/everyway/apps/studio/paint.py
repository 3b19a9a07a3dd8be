"""Paint: words are drawn where their colours are on a canvas."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from everyway.apps.studio import views
from everyway.apps.studio.parts import Page, opened, picture_of, values_of
from everyway.request import PAINT_FORMS, GenerateRequest, RequestError, Words

SIDE = 192
"""Side of the map in pixels."""
COLOURS = ("#e4572e", "#2e86ab", "#dddddd")
"""Colours of the example: of two things, and of the background."""
EXAMPLES = {
    "en": ("a fox and a teapot on blue", ("a fox", "a teapot", "blue background")),
    "ko": ("파란 배경에 여우와 찻주전자", ("여우", "찻주전자", "파란 배경")),
}
"""Language -> a sentence, and its words for these colours."""
FORMS = {
    "": "the model's own",
    "max": "with the noise, by the highest score",
    "std": "with the noise, by how scores vary",
    "max-square": "faster, by the highest score",
    "std-square": "faster, by how scores vary",
}
"""How painted words act (`paint_form` of a request) -> its name."""


class Paint(Page):
    """A canvas beside what is drawn on it."""

    silent = ("taken as: ",)  # the map says where things are

    def build(self) -> None:
        say = self.say
        sentence, words = EXAMPLES[self.language]
        regions = [{"colour": c, "words": said} for c, said in zip(COLOURS, words)]
        said = say(
            "Paint where things go: choose a colour, type its words, paint. The words have to "
            "stand in the sentence below, too. Paint all of it, the background as well."
        )
        gr.HTML(views.lead(say("Paint with words"), said), js_on_load=None)
        with gr.Row(equal_height=False, elem_classes="ew-work"):
            with gr.Column(scale=5, min_width=300):
                self.map = gr.HTML(
                    self._canvas(example(), regions),
                    elem_id="map",
                    js_on_load=None,
                )
                self.text = self.prompt(
                    sentence,
                    label=say("The whole sentence; empty: the words of the regions"),
                    elem_id="paint-text",
                )
            with gr.Column(scale=7, min_width=300):
                with gr.Row():
                    make = self.button("Make", elem_id="paint", scale=3)
                    self.stopping()
                self.shown = gr.HTML(
                    views.hint(say("Press Make: the picture follows your map.")),
                    elem_id="painted",
                    js_on_load=None,
                )
                with self.settings(), gr.Row():
                    own = say("0: the model's own")
                    self.weight = gr.Slider(
                        0, 100, value=0, step=0.1, label=say("How strongly"), info=own
                    )
                    forms = self.labelled(FORMS, ("", *PAINT_FORMS))
                    self.form = gr.Dropdown(forms, value="", label=say("How it falls"))
        held = [gr.Textbox(visible="hidden"), gr.Textbox(visible="hidden")]  # map and regions
        rest = [self.text, self.weight, self.form, *self.shared]
        given, self.fields = [*held, *rest], [self.map, *rest]
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
        """A canvas with a map.  regions: {colour, words, strength} of each."""
        own = {"start": views.address(painted), "regions": json.dumps(regions), "side": SIDE}
        return self.canvas_html("words", **own)

    def _made(self, request: gr.Request, *fields: Any) -> Iterator[str]:
        for html, _ in self.running(self.place(request), lambda: [self.request_of(*fields)]):
            yield html

    def request_of(
        self,
        painted: str,
        regions: str,
        text: str | None,
        weight: float,
        form: str,
        *shared: Any,
    ) -> GenerateRequest:
        """The request of the page, whose map is kept with the studio.

        painted: the map as a data: address.  regions: JSON, a list of {colour, words, strength}.
        shared: as of `asked`.  Raises RequestError where nothing is painted.
        """
        picture = picture_of(painted)
        listed = json.loads(regions or "[]")
        words = {region["colour"]: Words(region["words"], region["strength"]) for region in listed}
        if picture is None or not words:
            raise RequestError("nothing is painted yet; paint a region and type its words")
        said = (text or "").strip() or " and ".join(
            dict.fromkeys(own.phrase for own in words.values() if own.strength > 0)
        )
        return GenerateRequest(
            kind="text-to-image",
            text=said,
            paint=self.studio.keep(picture),
            words=words,
            paint_weight=weight or None,
            paint_form=form or None,
            **self.asked(*shared),
        )

    def values(self, request: GenerateRequest) -> list[Any]:
        """Values of `fields` for a request."""
        regions = [
            {"colour": colour, "words": words.phrase, "strength": words.strength}
            for colour, words in request.words.items()
        ]
        canvas = self._canvas(opened(request.paint), regions)
        own = [request.paint_weight or 0, request.paint_form or ""]
        return [canvas, request.text or "", *own, *self.shared_values(request)]


def example() -> Image.Image:
    """A map in COLOURS: two things side by side, and the background."""
    first, second, rest = COLOURS
    picture = Image.new("RGB", (SIDE, SIDE), rest)
    pen, third = ImageDraw.Draw(picture), SIDE // 3
    pen.rectangle((0, third, third - 1, 2 * third - 1), fill=first)
    pen.rectangle((2 * third, third, SIDE, 2 * third - 1), fill=second)
    return picture
