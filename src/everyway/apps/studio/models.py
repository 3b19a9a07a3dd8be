"""Models: what is here, what each can do and knows, and what lies in memory."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import gradio as gr

from everyway.apps.studio import views
from everyway.apps.studio.create import LABELS
from everyway.apps.studio.parts import Page
from everyway.errors import EverywayError
from everyway.generate import Model
from everyway.library import metadata_of


class Models(Page):
    """A card a model."""

    def build(self, tab: gr.Tab) -> None:
        """tab: whose opening shows the cards."""
        say = self.say
        said = say(
            "What is here. A model is loaded when it is first used; its card then says more."
        )
        gr.HTML(views.lead(say("Models"), said), js_on_load=None)
        with gr.Row():
            names = [*self.studio.names]
            name = gr.Dropdown(names, value=names[0], label=say("Model"), elem_id="which")
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
        training = metadata.get("training", {})
        size = metadata.get("image_size", 64)
        rows: list[tuple[str, Any]] = [
            (say("system"), self.studio.system(name)),
            (say("pictures"), f"{size} × {size}"),
            (say("learned from"), training.get("data")),
            (say("samples seen"), training.get("samples")),
            (say("hours"), round(training["seconds"] / 3600, 1) if "seconds" in training else ""),
            (say("on"), training.get("hardware")),
            (say("licence"), metadata.get("licence")),
        ]
        if model:
            rows += self._facts(model)
        state = say("in memory") if model else say("on disk")
        badge = views.tag("span", escape(state), class_="ew-badge", data_on="1" if model else "0")
        return views.tag(
            "div", views.tag("h3", escape(name), badge), views.facts(rows), class_="ew-card"
        )

    def _facts(self, model: Model) -> list[tuple[str, Any]]:
        """What only a model in memory tells."""
        say, system = self.say, model.system
        networks = {id(p): p for m in system.components.values() for p in m.parameters()}
        count = sum(p.numel() for p in networks.values())
        held = sum(p.numel() * p.element_size() for p in networks.values())
        tasks = ", ".join(say(LABELS.get(task, task)) for task in system.tasks)
        lexicons = (getattr(codec, "lexicon", None) for codec in system.codecs.values())
        words = next((known for known in lexicons if known), None)
        own = [
            (say("tasks"), tasks),
            (say("parameters"), f"{count / 1e6:.2f} M"),
            (say("memory"), f"{held / 1e6:.1f} MB, {system.placement.memory}, {system.device}"),
            (say("hash"), model.hash),
        ]
        if words:
            known = [*words.objects, *words.backgrounds]
            own.append((say("knows"), ", ".join(known)))
        return own
