"""Create: all tasks on one page.  A side that is left empty is filled by the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import gradio as gr
from PIL import Image

from everyway.apps.studio import kinds, plane, views
from everyway.apps.studio.parts import Given, Page, opened, picture_of, values_of
from everyway.request import GenerateRequest

GIVEN = {
    (False, False): ("joint", "image", "text"),
    (True, False): ("text-to-image", "vary-text"),
    (False, True): ("image-to-text", "vary-image", "image-to-image", "inpaint"),
    (True, True): ("image-to-image", "inpaint", "edit-image"),
}
"""(words are given, a picture is given) -> the kinds that can be meant, the likeliest first."""
EXAMPLES = {
    "en": (
        "a large fox on blue",
        "a small rocket left of a large cactus on yellow",
        "노란 배경에 큰 판다",
    ),
    "ko": ("파란 배경에 큰 여우", "노란 배경에 큰 판다", "a small rocket on pink"),
}
"""Language -> prompts to try; the plane shows the first."""


def ways(kinds: Sequence[str], words: bool, picture: bool, masked: bool = False) -> list[str]:
    """The kinds of request that a model can do with what is given, the likeliest first."""
    fitting = [kind for kind in GIVEN[words, picture] if kind in kinds]
    if masked and "inpaint" in fitting:
        return ["inpaint"]
    return [kind for kind in fitting if kind != "inpaint"]


class Create(Page):
    """The front page."""

    def build(self) -> None:
        say, first = self.say, self.studio.names[0]
        able = self.studio.kinds(first)
        example = self.studio.example(EXAMPLES[self.language][0])
        drawn = plane.hero(example.picture, example.words, able, say)
        hero = gr.HTML(drawn, elem_id="hero", js_on_load=views.loaded("ways"))
        with gr.Row(elem_classes="ew-examples"):
            read = [text for text in EXAMPLES[self.language] if self.studio.reads(first, text)]
            examples = [gr.Button(text, elem_classes="ew-chip-button") for text in read]
        with gr.Row(equal_height=False, elem_classes="ew-work"):
            with gr.Column(scale=5, min_width=300):
                self._inputs(able)
            with gr.Column(scale=7, min_width=300):
                opening = say("drawn as the studio opened; what you make appears here")
                shown = views.pair({"image": example.picture, "text": example.words}, opening)
                grid = views.tag("div", shown, class_="ew-pairs", data_count=1)
                self.shown = gr.HTML(
                    views.tag("div", grid, self.how(example.film, example.result), class_="ew-run"),
                    elem_id="made",
                    js_on_load=None,
                )
                back = say("Give this picture back to the model")
                self.back = gr.Button(back, visible=False, elem_id="back")
        self.last, self.masked = gr.State([]), gr.Textbox(visible="hidden")
        self.given_mask = gr.State("")  # of a record that is loaded
        self.wished = gr.Textbox(visible="hidden")  # a choice that may not be one any more
        self._listen(hero, examples)

    def _inputs(self, able: Sequence[str]) -> None:
        """able: the kinds that the first model can do."""
        say = self.say
        self.text = self.prompt(
            label=say("Words"),
            placeholder=say("what to draw, in English or Korean; or leave it empty"),
            lines=2,
            elem_id="text",
        )
        self.known = gr.HTML(self._known(self.studio.names[0]), elem_id="known", js_on_load=None)
        self.image = self.picture("Picture", 130, elem_id="image")
        with gr.Accordion(say("Redraw a part only"), open=False, visible=False) as self.part:
            self.mask = self.canvas("mask", "mask")
        given = ways(able, False, False)
        self.way = gr.Radio(
            kinds.choices(given, say),
            value=next(iter(given), None),
            label=say("The model fills what is empty"),
            interactive=True,  # its choice is read on the page (`values_of`)
            elem_id="way",
        )
        with gr.Row():
            self.make = self.button("Make", elem_id="make", scale=3)
            self.stopping()
        with self.settings(elem_id="settings"):
            self.strength = gr.Slider(
                0.05, 1, value=0.7, step=0.05, label=say("How much is redrawn")
            )

    def _listen(self, hero: gr.HTML, examples: Sequence[gr.Button]) -> None:
        sides = [self.model, self.text, self.image, self.way]
        quiet = {"queue": False, "show_progress": "hidden"}
        changed = [self.model.change, self.text.change, self.image.change]
        given = [*sides[:-1], self.wished]
        chosen = values_of(len(given), {}, {"way": len(given) - 1})
        gr.on(changed, self._ways, given, self.way, js=chosen, **quiet)
        self.model.change(self._known, self.model, self.known, **quiet)
        masks = [self.part, self.mask, self.given_mask]
        self.image.change(self.masking, [self.image, self.given_mask], masks, **quiet)
        shown = [self.shown, self.last, self.back]
        settings = [self.wished if f is self.way else f for f in self.fields] + [self.masked]
        way = settings.index(self.wished)
        drawn = values_of(len(settings), {"mask": len(settings) - 1}, {"way": way})
        gr.on(
            [self.make.click, self.text.submit],
            self._made,
            settings,
            shown,
            js=drawn,
            show_progress="hidden",
            concurrency_limit=4,
        )
        self.back.click(self._back, self.last, [self.text, self.image])
        for button in examples:
            example = [*sides[1:3], self.wished]
            chosen = button.click(lambda text: (text, None, ""), button, example, queue=False)
            chosen.then(self._made, settings, shown, show_progress="hidden")
        example = [*sides[1:], self.wished]
        chosen = hero.select(self._chosen, self.model, example, show_progress="hidden")
        chosen.then(self._made, settings, shown, show_progress="hidden")

    @property
    def fields(self) -> list[Any]:
        """The fields of this page, in the order of `request_of`."""
        return [self.text, self.image, self.way, self.strength, *self.shared]

    def _ways(self, model: str, text: str, image: Given, way: str) -> Any:
        given = ways(self.studio.kinds(model), bool((text or "").strip()), image is not None)
        chosen = way if way in given else next(iter(given), None)
        return gr.update(choices=kinds.choices(given, self.say), value=chosen)

    def _known(self, model: str) -> str:
        """The words that a model knows, folded."""
        words = self.studio.knows(self.studio.model(model))
        summary = views.tag("summary", self.say("what this model knows"))
        listed = views.tag("p", escape(", ".join(words)), class_="ew-note")
        return views.tag("details", summary, listed, class_="ew-how") if words else ""

    def _chosen(self, model: str, event: gr.EventData) -> tuple[Any, Any, Any, str]:
        """Fills the page with an example of the way that was chosen in the plane."""
        kind, example = event._data["value"], self.studio.example(EXAMPLES[self.language][0])
        text = example.words if kind == "text-to-image" else ""
        image = example.picture if kind == "image-to-text" else None
        given = ways(self.studio.kinds(model), bool(text), image is not None)
        return text, image, gr.update(choices=kinds.choices(given, self.say), value=kind), kind

    def _back(self, last: Sequence[str]) -> tuple[str, Any]:
        return "", Image.open(self.studio.out / last[0]) if last else None

    def _made(self, request: gr.Request, *fields: Any) -> Iterator[tuple[Any, Any, Any]]:
        """Yields the HTML of the run, the files of its pictures, and whether one can be given
        back."""
        for html, made in self.running(self.place(request), lambda: [self.request_of(*fields)]):
            names = [one.row["image"] for one in made if one.row.get("image")]
            yield html, names, gr.update(visible=bool(names))

    def request_of(
        self,
        text: str | None,
        image: Given,
        way: str,
        strength: float,
        *shared: Any,
    ) -> GenerateRequest:
        """The request of the page, whose pictures are kept with the studio.

        shared: as of `asked`, and after them a mask as a data: address, or "".
        """
        *shared, masked = shared
        words = (text or "").strip() or None
        mask = picture_of(masked) if image is not None else None
        own = self.asked(*shared)
        able = self.studio.kinds(own["model"])
        given = ways(able, bool(words), image is not None, mask is not None)
        kind = way if way in given else next(iter(given), way)
        own |= {"mask": self.studio.keep(mask)} if kind == "inpaint" else {}
        own |= {"strength": strength} if kind == "image-to-image" else {}
        images = (self.kept(image),) if image is not None else ()
        return GenerateRequest(kind=kind, text=words, images=images, **own)

    def values(self, request: GenerateRequest) -> list[Any]:
        """Values of `fields` for a request, and its mask."""
        image = opened(request.images[0]) if request.images else None
        mask = views.address(opened(request.mask)) if request.mask else ""
        able = self.studio.kinds(request.model)
        given = ways(able, request.text is not None, image is not None, bool(mask))
        way = gr.update(choices=kinds.choices(given, self.say), value=request.kind)
        shared = self.shared_values(request)
        return [request.text or "", image, way, request.strength, *shared, mask]
