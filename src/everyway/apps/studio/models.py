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
        """tab: whose opening shows the cards."""
        say = self.say
        said = say("What is here. A model is loaded as it is first used; its card then says more.")
        gr.HTML(views.lead(say("Models"), said), js_on_load=None)
        with gr.Row():
            name = self.models(bool, elem_id="which")
            load = self.button("Load", elem_id="load-model")
            forget = gr.Button(say("Take out of memory"))
        self.cards = gr.HTML("", elem_id="cards", js_on_load=None)
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
        history = metadata.get("history", ())
        size = metadata.get("image_size", 64)
        rows: list[tuple[str, Any]] = [
            (say("system"), self.studio.system(name)),
            (say("pictures"), f"{size} × {size}"),
            (say("learned from"), metadata.get("training", {}).get("data")),
            (say("samples seen"), f"{sum(run.get('samples', 0) for run in history):,}"),
            (say("hours"), f"{sum(run.get('seconds', 0) for run in history) / 3600:.1f}"),
            (say("trained on"), next((run.get("hardware") for run in history), "")),
            *self._scores(metadata),
        ]
        if model:
            rows += self._facts(model)
        state = say("in memory") if model else say("on disk")
        badge = views.tag("span", escape(state), class_="ew-badge", data_on="1" if model else "0")
        return views.tag(
            "div", views.tag("h3", escape(name), badge), views.facts(rows), class_="ew-card"
        )

    def _scores(self, metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
        """How much of what it makes is all right, a line a way that was scored."""
        scored = next(iter(metadata.get("scores", {}).values()), {})
        shares = {kind: scored.get(f"{row}.all_correct") for row, kind in SCORED.items()}
        right = self.say("right")
        return [
            (f"{right}: {self.say(called(kind))}", f"{share:.1%}")
            for kind, share in shares.items()
            if share is not None
        ]

    def _facts(self, model: Model) -> list[tuple[str, Any]]:
        """What only a model in memory tells."""
        say, system = self.say, model.system
        networks = {id(p): p for m in system.components.values() for p in m.parameters()}
        count = sum(p.numel() for p in networks.values())
        held = sum(p.numel() * p.element_size() for p in networks.values())
        tasks = ", ".join(say(called(task)) for task in system.tasks)
        return [
            (say("tasks"), tasks),
            (say("parameters"), f"{count / 1e6:.2f} M"),
            (say("memory"), f"{held / 1e6:.1f} MB, {system.placement.memory}, {system.device}"),
            (say("hash"), model.hash),
            (say("knows"), ", ".join(self.studio.knows(model))),
        ]
