"""Gallery: everything that was made here, with its request; and what any PNG of ours says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from everyway.apps.studio import views
from everyway.apps.studio.blend import Blend
from everyway.apps.studio.create import LABELS, Create, ways
from everyway.apps.studio.paint import Paint
from everyway.apps.studio.parts import Page
from everyway.errors import EverywayError
from everyway.record import Record, read_record
from everyway.request import GenerateRequest, RequestError

SHOWN = 60
"""Results that are shown at once, the newest."""


class Gallery(Page):
    """The folder of what was made."""

    def build(self, create: Create, blend: Blend, paint: Paint, tabs: gr.Tabs, tab: gr.Tab) -> None:
        """create, blend, paint, tabs: where settings are loaded into.  tab: whose opening shows
        what is new."""
        say, self.create = self.say, create
        self.forms = {
            "create": ([*create.fields, create.given_mask], self._fields),
            "blend": (blend.fields, blend.values),
            "paint": (paint.fields, paint.values),
        }
        said = say("Everything that was made here, each with the request that makes it again.")
        gr.HTML(views.lead(say("Gallery"), said), js_on_load=None)
        with gr.Row(equal_height=False, elem_classes="ew-work"):
            with gr.Column(scale=7, min_width=300):
                self.wall = gr.HTML("", elem_id="wall", js_on_load=views.loaded("wall"))
                self.more = gr.Button(
                    say("Show what is new"), size="sm", elem_classes="ew-chip-button"
                )
            with gr.Column(scale=5, min_width=300):
                self.drop = gr.File(
                    label=say("Drop a PNG of Everyway here: it says how it was made"),
                    file_types=[".png"],
                    height=120,
                    elem_id="drop",
                )
                self.told = gr.HTML(
                    views.hint(say("Choose a picture, or drop one.")),
                    elem_id="told",
                    js_on_load=None,
                )
                with gr.Row(visible=False) as self.acts:
                    load = self.button("Load its settings", elem_id="load")
                    replay = gr.Button(say("Replay"), elem_id="replay")
                self.answer = gr.HTML("", elem_id="answer", js_on_load=None)
        self.chosen = gr.State("")
        shown = [self.told, self.acts, self.chosen, self.answer]
        quiet = {"queue": False, "show_progress": "hidden"}
        gr.on([tab.select, self.more.click], self._wall, None, self.wall, **quiet)
        self.wall.select(self._picked, None, shown, **quiet)
        self.drop.upload(self._dropped, self.drop, shown, **quiet)
        fields = [field for inputs, _ in self.forms.values() for field in inputs]
        loaded = [*fields, tabs, self.answer]
        load.click(self._loaded, self.chosen, loaded, show_progress="hidden")
        replay.click(self._replayed, self.chosen, self.answer)

    def _wall(self) -> str:
        """The newest results as buttons."""
        rows = self.studio.rows()
        if not rows:
            return views.hint(self.say("Nothing is here yet. Make something on the first page."))
        tiles = []
        for row in rows[:SHOWN]:
            name, said = row.get("image"), str(row.get("text") or row["request"]["text"] or "")
            inside = (
                f'<img src="../made/{escape(name)}" loading="lazy" alt="">'
                if name
                else views.tag("span", escape(said))
            )
            label = said or self.say(LABELS.get(row["request"]["kind"], row["request"]["kind"]))
            tiles.append(
                views.tag(
                    "button",
                    inside,
                    type="button",
                    title=label,
                    aria_label=label,
                    data_row=row["index"],
                )  # fmt: skip
            )
        return views.tag("div", *tiles, class_="ew-wall")

    def _picked(self, event: gr.EventData) -> tuple[Any, ...]:
        index = int(event._data["index"])
        row = next((r for r in self.studio.rows() if r["index"] == index), None)
        if row is None:
            return views.trouble(self.say("it is not there any more")), gr.skip(), "", ""
        path = str(self.studio.out / row["image"]) if row.get("image") else ""
        return self._told(row["record"], path, row)

    def _dropped(self, path: str) -> tuple[Any, ...]:
        try:
            record = read_record(Path(path))
        except EverywayError as error:
            name = Path(path).name
            said = str(error).replace(repr(path), repr(name))
            return views.trouble(self.say(said)), gr.update(visible=False), "", ""
        return self._told(record, path, {})

    def _told(self, record: Record, path: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
        """What a record says, and what can be done with it."""
        say, request = self.say, record.request
        picture = ""
        if path:
            with Image.open(path) as image:
                picture = views.tag(
                    "div", f'<img src="{views.address(image)}" alt="">', class_="ew-picture"
                )
        where = views.stopped(row, say) if row else ""
        rows = [
            (say("made"), say(LABELS.get(request.kind, request.kind))),
            (say("Words"), request.text),
            (say("words made"), row.get("text")),
            (say("Model"), f"{request.model} ({record.metadata.model_hash})"),
            (say("Seed"), request.seed),
            (say("Steps"), request.steps),
            (say("Guidance"), request.guidance),
            (say("Sampler"), request.sampler),
            (say("stopped"), where),
        ]
        full = json.dumps(request.model_dump(exclude_defaults=True), indent=1, ensure_ascii=False)
        whole = views.tag(
            "details",
            views.tag("summary", escape(say("the whole request"))),
            views.tag("pre", escape(full)),
            class_="ew-how",
        )
        card = views.tag("div", picture, views.facts(rows), whole, class_="ew-card")
        held = json.dumps({"record": record.model_dump(by_alias=True), "path": path})
        return card, gr.update(visible=True), held, ""

    def _loaded(self, chosen: str) -> list[Any]:
        """The page that makes it, with the settings of a record."""
        request = Record.model_validate(json.loads(chosen)["record"]).request
        page = "blend" if request.contexts else "paint" if request.paint else "create"
        left = {name: [gr.skip()] * len(inputs) for name, (inputs, _) in self.forms.items()}
        try:
            values = self._values(request, page)
        except EverywayError as error:
            return [*chain(*left.values()), gr.skip(), views.trouble(self.say(str(error)))]
        return [*chain(*(left | {page: values}).values()), gr.update(selected=page), ""]

    def _values(self, request: GenerateRequest, page: str) -> list[Any]:
        """Of that page's fields.  RequestError where it cannot be made there."""
        if request.kind not in LABELS:
            raise RequestError("it was made on another page; Replay makes it again")
        lost = [name for name in request.paths if not Path(name).is_file()]
        if request.model not in self.studio.names or lost:
            raise RequestError(
                f"this studio has not {', '.join(lost) or request.model}; give it anew"
            )
        return self.forms[page][1](request)

    def _fields(self, request: GenerateRequest) -> list[Any]:
        """Values of the first page's fields, and the mask."""
        image = Image.open(request.images[0]).convert("RGB") if request.images else None
        mask = views.address(Image.open(request.mask)) if request.mask else ""
        kinds = self.studio.kinds(request.model)
        given = ways(kinds, request.text is not None, image is not None, bool(mask))
        way = gr.update(choices=self.labelled(LABELS, given), value=request.kind)
        own = [request.steps or 0, request.guidance or 0, request.strength, request.sampler or ""]
        return [request.text or "", image, way, request.model, 1, request.seed, *own, mask]

    def _replayed(self, chosen: str) -> str:
        held = json.loads(chosen)
        record = Record.model_validate(held["record"])
        try:
            if not held["path"]:
                return views.trouble(self.say("words have no pixels to compare; make them anew"))
            same, why = self.studio.replayed(record, Path(held["path"]))
        except EverywayError as error:
            return views.trouble(self.say(str(error)))
        if same:
            return views.tag(
                "p", escape(self.say("the same picture, bit for bit")), class_="ew-good"
            )
        return views.trouble(f"{self.say('not the same picture')}: {self.say(why)}".rstrip(": "))
