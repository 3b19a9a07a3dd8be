"""Models: what is here, what each can do and knows, and what lies in memory."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr

from everyway.apps.studio import views
from everyway.apps.studio.kinds import called
from everyway.apps.studio.parts import Page
from everyway.errors import EverywayError
from everyway.generate import Model
from everyway.library import metadata_of

SCORED = {"t2i.one": "text-to-image", "i2t.one": "image-to-text", "joint": "joint"}
"""Row of a report -> the kind that it scores."""


class Models(Page):
    """A card a model."""

    def build(self, tab: gr.Tab) -> None:
        """tab: of this page; when it is opened, the cards are shown."""
        say = self.say
        said = say("What is here. A model is loaded as it is first used; its card then says more.")
        gr.HTML(views.lead(say("Models"), said), js_on_load=None)
        with gr.Row(elem_classes="ew-choose"):
            name = self.models(bool, elem_id="which", scale=3)
            load = self.button("Load", elem_id="load-model", min_width=120)
            forget = gr.Button(say("Take out of memory"), min_width=160)
        self.cards = gr.HTML(self._cards(), elem_id="cards", js_on_load=None)
        tab.select(self._cards, None, self.cards, queue=False, show_progress="hidden")
        load.click(self._load, name, self.cards)
        forget.click(self._forget, name, self.cards, queue=False)

    def _load(self, name: str) -> str:
        try:
            self.studio.model(name)
        except EverywayError as error:
            return views.trouble(self.say(str(error))) + self._cards()
        return self._cards()

    def _forget(self, name: str) -> str:
        self.studio.forget(name)
        return self._cards()

    def _cards(self) -> str:
        loaded = self.studio.loaded
        cards = [self._card(name, loaded.get(name)) for name in self.studio.names]
        return views.tag("div", *cards, class_="ew-cards")

    def _card(self, name: str, model: Model | None) -> str:
        say = self.say
        try:
            metadata: Mapping[str, Any] = model.metadata if model else metadata_of(name)
        except EverywayError as error:
            return views.tag(
                "div",
                views.tag("h3", escape(name)),
                views.trouble(say(str(error))),
                class_="ew-card",
            )
        badge = views.tag(
            "span",
            escape(say("in memory") if model else say("on disk")),
            class_="ew-badge",
            data_on="1" if model else "0",
        )
        return views.tag(
            "div",
            views.tag("h3", escape(name), badge),
            views.facts(self._always(name, metadata)),
            self._more(model) if model else "",
            class_="ew-card",
        )

    def _always(self, name: str, metadata: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """What the card of every model shows."""
        say, history = self.say, metadata.get("history", ())
        side = metadata.get("image_size", 64)
        samples = sum(run.get("samples", 0) for run in history)
        hours = sum(run.get("seconds", 0) for run in history) / 3600
        machine = next((run.get("hardware") for run in history), "")
        return [
            (say("system"), f"{self.studio.system(name)}, {side} × {side}"),
            (say("learned from"), metadata.get("training", {}).get("data")),
            (say("samples seen"), say(f"{samples:,} in {hours:.1f} hours")),
            (say("trained on"), machine),
            (say("right"), self._scores(metadata)),
        ]

    def _scores(self, metadata: Mapping[str, Any]) -> str:
        """The share of all-correct results of each kind that was scored."""
        scored = next(iter(metadata.get("scores", {}).values()), {})
        shares = {kind: scored.get(f"{row}.all_correct") for row, kind in SCORED.items()}
        named = {self.say(called(kind)): share for kind, share in shares.items()}
        return " · ".join(
            f"{kind} {share:.1%}" for kind, share in named.items() if share is not None
        )

    def _more(self, model: Model) -> str:
        """What is known only of a model in memory, folded."""
        say, system = self.say, model.system
        networks = {id(p): p for m in system.components.values() for p in m.parameters()}
        count = sum(p.numel() for p in networks.values())
        held = sum(p.numel() * p.element_size() for p in networks.values())
        rows = [
            (say("tasks"), ", ".join(say(called(task)) for task in system.tasks)),
            (say("parameters"), f"{count / 1e6:.2f} M"),
            (say("memory"), f"{held / 1e6:.1f} MB, {system.placement.memory}, {system.device}"),
            (say("hash"), model.hash),
            (say("knows"), ", ".join(self.studio.knows(model))),
        ]
        summary = views.tag("summary", escape(say("what it does and knows")))
        return views.tag("details", summary, views.facts(rows), class_="ew-how")
