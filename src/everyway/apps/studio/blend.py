"""Blend: pictures with weights, masks and a focus, and words, as one result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr
from PIL import Image

from everyway.apps.studio import views
from everyway.apps.studio.parts import PAIR, Page, opened, picture_of, values_of
from everyway.request import MIXES, GenerateRequest, RequestError

SLOTS = 3
"""How many pictures a blend may have on this page."""
UNSET = (None, 0.5, 0.5)
"""Picture, weight and focus of an empty slot."""
MIXED = {
    "": "the model's own",
    "attention": "in every attention",
    "layer": "layer by layer",
    "model": "step by step",
    "tokens": "as one sequence",
}
"""How contexts are mixed (`mix` of a request) -> its name."""


class Blend(Page):
    """Several contexts on one page."""

    def build(self) -> None:
        say = self.say
        said = say(
            "Give several things at once. A weight says how much each counts, a mask which part of "
            "a picture is seen, the focus whether its content or its style is taken."
        )
        gr.HTML(views.lead(say("Blend"), said), js_on_load=None)
        with gr.Row(equal_height=False, elem_classes="ew-work"):
            with gr.Column(scale=7, min_width=300):
                with gr.Row(elem_classes="ew-slots"):
                    self.slots = [self._slot(k) for k in range(1, SLOTS + 1)]
                with gr.Row():
                    with gr.Column(scale=3, min_width=160):
                        self.text = self.prompt(label=say("Words"), elem_id="blend-text")
                    self.weight = gr.Slider(0, 1, value=0.5, step=0.05, label=say("Weight"))
                with gr.Row():
                    made = [(say("a picture"), "image"), (say("words"), "text")]
                    self.kind = gr.Radio(made, value="image", label=say("Make of it"))
                    mixes = self.labelled(MIXED, ("", *MIXES))
                    self.mix = gr.Dropdown(mixes, value="", label=say("How it is mixed"))
                with self.settings(lambda system: system == "versatile"):
                    self.colours = gr.Slider(
                        0, 1, value=0, step=0.1, label=say("Colours of the first picture")
                    )
            with gr.Column(scale=5, min_width=300):
                with gr.Row():
                    make = self.button("Blend", elem_id="blend", scale=3)
                    self.stopping()
                example = self.example("blend-example")
                self.shown = gr.HTML(
                    views.hint(say("Give two things or more; their blend appears here.")),
                    elem_id="blended",
                    js_on_load=None,
                )
        masks = [gr.Textbox(visible="hidden") for _ in self.slots]
        flat = [part for *slot, _ in self.slots for part in slot]
        rest = [self.text, self.weight, self.kind, self.mix, self.colours, *self.shared]
        given = [*flat, *masks, *rest]
        self.fields = [*flat, *(mask for *_, mask in self.slots), *rest]
        drawn = values_of(len(given), {f"blend-mask-{k + 1}": len(flat) + k for k in range(SLOTS)})
        make.click(
            self._made, given, self.shown, js=drawn, show_progress="hidden", concurrency_limit=4
        )
        outputs = [self.slots[0][0], self.text, self.weight]
        example.click(self._example, None, outputs)

    def _slot(self, number: int) -> tuple[gr.Image, gr.Slider, gr.Slider, gr.State]:
        """A picture with its weight, its focus, and the mask of a record that is loaded."""
        say = self.say
        with gr.Column(min_width=170, elem_classes="ew-slot"):
            image = self.picture(f"Picture {number}", 170, elem_id=f"blend-{number}")
            weight = gr.Slider(0, 1, value=0.5, step=0.05, label=say("Weight"))
            said = say("0 content, 1 style")
            focus = gr.Slider(0, 1, value=0.5, step=0.05, label=say("Focus"), info=said)
            with gr.Accordion(say("Mask: what of it is seen"), open=False, visible=False) as part:
                mask = self.canvas(f"blend-mask-{number}", "mask")
        given = gr.State("")
        masks = [part, mask, given]
        image.change(self.masking, [image, given], masks, queue=False, show_progress="hidden")
        return image, weight, focus, given

    def _example(self) -> tuple[Image.Image, str, float]:
        seen, said = PAIR[self.language]
        return self.studio.example(seen).picture, said, 0.5

    def _made(self, request: gr.Request, *fields: Any) -> Iterator[str]:
        for html, _ in self.running(self.place(request), lambda: [self.request_of(*fields)]):
            yield html

    def request_of(self, *fields: Any) -> GenerateRequest:
        """The request of the page, whose pictures and masks are kept with the studio."""
        pictures, masks = fields[: 3 * SLOTS], fields[3 * SLOTS : 4 * SLOTS]
        text, share, kind, mix, colours, *shared = fields[4 * SLOTS :]
        contexts: list[dict[str, Any]] = []
        for k, masked in enumerate(masks):
            image, weight, focus = pictures[3 * k : 3 * k + 3]
            if image is None:
                continue
            mask = picture_of(masked)
            own = {"mask": self.studio.keep(mask)} if mask is not None else {}
            contexts.append({"image": self.kept(image), "weight": weight, "focus": focus, **own})
        if (text or "").strip():
            contexts.append({"text": text.strip(), "weight": share})
        if not contexts:
            raise RequestError("nothing is given yet; give a picture, words, or both")
        several = sum(context["weight"] > 0 for context in contexts) > 1
        return GenerateRequest(
            kind=kind,
            contexts=contexts,
            mix=mix if mix and several else None,
            colours=colours if any(image is not None for image in pictures[::3]) else 0.0,
            **self.asked(*shared),
        )

    def values(self, request: GenerateRequest) -> list[Any]:
        """Values of `fields` for a request.  Raises RequestError for more than they hold."""
        seen: list[Any] = [context for context in request.contexts if context.image]
        said = [context for context in request.contexts if context.text]
        most = max(context.weight for context in request.contexts)
        other = len(request.contexts) - len(seen + said)
        if len(seen) > SLOTS or len(said) > 1 or other or most > 1:
            raise RequestError("this page has no room for all of it; Replay makes it again")
        seen += [None] * (SLOTS - len(seen))
        flat = [v for c in seen for v in ((opened(c.image), c.weight, c.focus) if c else UNSET)]
        masks = [views.address(opened(c.mask)) if c and c.mask else "" for c in seen]
        words = (said[0].text, said[0].weight) if said else ("", UNSET[1])
        mixed = [request.kind, request.mix or "", request.colours]
        return [*flat, *masks, *words, *mixed, *self.shared_values(request)]
