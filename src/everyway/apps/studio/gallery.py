"""Gallery: everything that was made here, and how it or any PNG of Everyway was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

import gradio as gr

from everyway.apps.server.scheduler import Cancelled
from everyway.apps.studio import strips, views
from everyway.apps.studio.blend import Blend
from everyway.apps.studio.create import GIVEN, Create
from everyway.apps.studio.explore import Explore
from everyway.apps.studio.kinds import called_of
from everyway.apps.studio.paint import Paint
from everyway.apps.studio.parts import MADE, Page, opened
from everyway.apps.studio.strips import Row
from everyway.errors import EverywayError
from everyway.record import Record, read_record
from everyway.request import GenerateRequest, RequestError

SHOWN = 60
"""Tiles that are shown at once, the newest."""
EVERY = {"kind", "text", "model", "n", "seed", "steps", "guidance", "sampler", "null"}
FIELDS = {
    "create": EVERY | {"images", "mask", "strength"},
    "blend": EVERY | {"contexts", "mix", "colours"},
    "paint": EVERY | {"paint", "words", "paint_weight", "paint_form"},
    "explore": EVERY | {"images", "frames", "rounds"},
}
"""Page -> the fields of a request that it can set; a null follows from the text."""


class Gallery(Page):
    """The page of the folder of what was made."""

    def build(
        self,
        create: Create,
        blend: Blend,
        paint: Paint,
        explore: Explore,
        tabs: gr.Tabs,
        tab: gr.Tab,
    ) -> None:
        """create, blend, paint, explore: pages into which settings are loaded.  tabs: of all pages.
        tab: of this page; when it is opened, what is new is shown."""
        say = self.say
        self.forms = {
            "create": ([*create.fields, create.given_mask], lambda some: create.values(some[0])),
            "blend": (blend.fields, lambda some: blend.values(some[0])),
            "paint": (paint.fields, lambda some: paint.values(some[0])),
            "explore": (explore.fields, explore.values),
        }
        said = say("Everything that was made here, each with the request that makes it again.")
        gr.HTML(views.lead(say("Gallery"), said), js_on_load=None)
        with gr.Row(equal_height=False, elem_classes="ew-work"):
            with gr.Column(scale=7, min_width=300):
                self.more = gr.Button(
                    "↻ " + say("Show what is new"), size="sm", elem_classes="ew-small"
                )
                self.wall = gr.HTML("", elem_id="wall", js_on_load=views.loaded("wall"))
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
                    self.stopping()
                self.answer = gr.HTML("", elem_id="answer", js_on_load=None)
        self.chosen = gr.State("")
        shown = [self.told, self.acts, self.chosen, self.answer]
        quiet = {"queue": False, "show_progress": "hidden"}
        gr.on([tab.select, self.more.click], self._wall, None, self.wall, **quiet)
        self.wall.select(self._picked, None, shown, **quiet)
        self.drop.upload(self._dropped, self.drop, shown, **quiet)
        fields = [field for inputs, _ in self.forms.values() for field in inputs]
        opens = [page.folded for page in (create, blend, paint, explore)]
        loaded = [*fields, *opens, tabs, self.answer]
        load.click(self._loaded, self.chosen, loaded, show_progress="hidden")
        replay.click(self._replayed, self.chosen, self.answer, show_progress="hidden")

    def _wall(self) -> str:
        """The newest results as buttons."""
        groups = strips.together(self.studio.rows())[:SHOWN]
        if not groups:
            return views.hint(self.say("Nothing is here yet. Make something on the first page."))
        return views.tag("div", *map(self._tile, groups), class_="ew-wall")

    def _tile(self, rows: Sequence[Row]) -> str:
        """A button of a result, or of a group of them."""
        row, several = rows[0], len(rows) > 1
        said = str(row.get("text") or row["request"]["text"] or "")
        label = ": ".join(filter(None, (self._title([row["record"] for row in rows]), said)))
        painted = self.studio.within(row["request"]["paint"] or "")
        inside = strips.tile(rows, MADE) if several else views.tag("span", escape(said))
        if not several and row.get("image"):
            inside = views.picture(f"{MADE}/{row['image']}")
            if painted:
                inside += views.picture(f"{MADE}/{painted}", class_="ew-map")
        return views.tag(
            "button",
            inside,
            type="button",
            title=label,
            aria_label=label,
            class_="ew-strip-tile" if several else None,
            data_row=row["index"],
        )

    def _title(self, records: Sequence[Record]) -> str:
        """The name of what a group of results is."""
        request = records[0].request
        return self.say(called_of(request, len(records) if request.parts == 1 else 1))

    def _picked(self, event: gr.EventData) -> tuple[Any, ...]:
        index = int(event._data["index"])
        groups = strips.together(self.studio.rows())
        rows = next((g for g in groups if any(r["index"] == index for r in g)), None)
        if rows is None:
            return views.trouble(self.say("it is not there any more")), gr.skip(), "", ""
        records = [row["record"] for row in rows]
        paths = [str(self.studio.out / row["image"]) if row.get("image") else "" for row in rows]
        return self._told(records, paths, rows)

    def _dropped(self, path: str) -> tuple[Any, ...]:
        try:
            record = read_record(Path(path))
        except EverywayError as error:
            name = Path(path).name
            said = str(error).replace(repr(path), repr(name))
            return views.trouble(self.say(said)), gr.update(visible=False), "", ""
        return self._told([record], [path])

    def _told(
        self, records: Sequence[Record], paths: Sequence[str], rows: Sequence[Row] = ()
    ) -> tuple[Any, ...]:
        """The card of a group, and what can be done with it.

        records: of its results.  paths: of their pictures, "" for words.  rows: of results that
        were made here.
        """
        card = views.tag(
            "div",
            self._shown(records, paths, rows),
            self._given(records[0]),
            self._facts(records, rows),
            self._whole(records[0].request),
            class_="ew-card",
        )
        dumped = [record.model_dump(by_alias=True) for record in records]
        return card, gr.update(visible=True), json.dumps({"records": dumped, "paths": paths}), ""

    def _shown(self, records: Sequence[Record], paths: Sequence[str], rows: Sequence[Row]) -> str:
        """A group as a film, or its picture."""
        if len(rows) > 1:
            return strips.film(rows, MADE, self._title(records), self.say)
        if not paths[0]:
            return ""
        picture = views.picture(views.address(opened(paths[0])))
        return views.tag("div", picture, class_="ew-picture")

    def _facts(self, records: Sequence[Record], rows: Sequence[Row]) -> str:
        """How a group was made, a line each."""
        say, request, row = self.say, records[0].request, rows[0] if rows else {}
        facts = [
            (say("made"), self._title(records)),
            (say("Words"), views.said_of(request)),
            (say("words made"), row.get("text") if len(rows) < 2 else ""),
            (say("Model"), f"{request.model} ({records[0].metadata.model_hash})"),
            (say("Seed"), request.seed),
            (say("Steps"), views.each(r.request.steps for r in records)),
            (say("Guidance"), views.each(r.request.guidance for r in records)),
            (say("Sampler"), request.sampler),
            (say("stopped"), views.stopped(row, say) if row else ""),
        ]
        return views.facts(facts)

    def _whole(self, request: GenerateRequest) -> str:
        """The request as JSON, folded."""
        full = json.dumps(request.model_dump(exclude_defaults=True), indent=1, ensure_ascii=False)
        return views.tag(
            "details",
            views.tag("summary", escape(self.say("the whole request"))),
            views.tag("pre", escape(full)),
            class_="ew-how",
        )

    def _given(self, record: Record) -> str:
        """The pictures that a result was made from, and the words of a map."""
        try:
            request = self.studio.adopted(record)
        except EverywayError:  # reported where the pictures are needed
            return ""
        pictures = [views.picture(f"{MADE}/{self.studio.within(path)}") for path in request.paths]
        words = [
            views.tag("li", views.tag("i", style=f"background:{colour}"), escape(said.phrase))
            for colour, said in request.words.items()
        ]
        listed = views.tag("ul", *words) if words else ""
        return views.tag("div", *pictures, listed, class_="ew-given") if pictures else ""

    def _loaded(self, chosen: str) -> list[Any]:
        """Values of all fields, with the settings of the chosen group on the page that makes it."""
        records = [Record.model_validate(one) for one in json.loads(chosen)["records"]]
        left = {name: [gr.skip()] * len(inputs) for name, (inputs, _) in self.forms.items()}
        try:
            page, values = self._values(records)
        except EverywayError as error:
            still = [gr.skip()] * (len(self.forms) + 1)
            return [*chain(*left.values()), *still, views.trouble(self.say(str(error)))]
        if lacking := self._lacking(records[0], FIELDS[page]):
            gr.Info(self.say(f"that page has no field for {', '.join(lacking)}; Replay has all"))
        folded = [gr.update(open=True) if name == page else gr.skip() for name in self.forms]
        fields = chain(*(left | {page: values}).values())
        return [*fields, *folded, gr.update(selected=page), ""]

    @staticmethod
    def _lacking(record: Record, fields: set[str]) -> list[str]:
        """The settings of a request that a page with these fields cannot show."""
        settings = record.request.model_dump(exclude_defaults=True)
        return sorted(settings.keys() - fields - {*record.own})

    def _values(self, records: Sequence[Record]) -> tuple[str, list[Any]]:
        """(the page that makes a group of results, values of its fields).  RequestError if none
        does."""
        request = records[0].request
        if request.model not in self.studio.names:
            raise RequestError(f"this studio has not {request.model}; give it anew")
        page = self._page(request, len(records))
        adopted = [self.studio.adopted(record) for record in records]
        return page, self.forms[page][1](adopted)

    @staticmethod
    def _page(request: GenerateRequest, results: int) -> str:
        """Which page makes such a request.  results: how many its group has."""
        if results > 1 or request.parts > 1:
            return "explore"
        if request.kind not in chain(*GIVEN.values()):
            raise RequestError("it was made elsewhere; Replay makes it again")
        return "blend" if request.contexts else "paint" if request.paint else "create"

    def _replayed(self, chosen: str, request: gr.Request) -> Iterator[str]:
        held: Mapping[str, Any] = json.loads(chosen)
        records = [Record.model_validate(one) for one in held["records"]]
        made = [(one, Path(path)) for one, path in zip(records, held["paths"]) if path]
        if not made:
            yield views.trouble(self.say("words have no pixels to compare; make them anew"))
            return
        yield views.under_way(0.1)
        try:
            same, why = self.studio.replayed(made, self.place(request))
        except Cancelled:
            yield ""
            return
        except EverywayError as error:
            yield views.trouble(self.say(str(error)))
            return
        if same:
            said = (
                "the same picture, bit for bit" if len(made) == 1 else "all the same, bit for bit"
            )
            yield views.tag("p", escape(self.say(said)), class_="ew-good")
        else:
            said = f"{self.say('not the same picture')}: {self.say(why)}"
            yield views.trouble(said.rstrip(": "))
