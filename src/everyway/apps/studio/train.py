"""Train: point at a folder, see what it takes, start, watch, stop, go on."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from collections.abc import Iterator, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from everyway.apps.cli.flags import seconds
from everyway.apps.cli.train import settings as settings_of
from everyway.apps.studio import chart, views
from everyway.apps.studio.create import Create
from everyway.apps.studio.parts import Page
from everyway.apps.studio.trainings import Trainings
from everyway.errors import EverywayError
from everyway.train.config import PRESETS

BUILT_IN = {
    "shapes": "coloured shapes (built in)",
    "emoji": "emoji in any place and size (built in)",
    "lattice-whole": "64 emoji in nine places (built in)",
}
"""Data set -> its name."""
NAME = 9
"""Letters of a name in a line of a price."""
CURVE = 400
"""Points of a curve, at most."""


class Train(Page):
    """The page of trainings.  One is in sight at a time; others go on."""

    def build(self, create: Create, tabs: gr.Tabs, tab: gr.Tab) -> None:
        """create: the page that gets a trained model.  tab: of this page; when it is opened, what
        runs is shown."""
        say = self.say
        said = say(
            "Your own pictures, each with its captions in a text file of the same name. Start it, "
            "stop it, and start it again: it goes on where it was, bit for bit."
        )
        gr.HTML(views.lead(say("Train"), said), js_on_load=None)
        with gr.Row(equal_height=False, elem_classes="ew-work"):
            with gr.Column(scale=5, min_width=300):
                self.data = gr.Dropdown(
                    self.labelled(BUILT_IN, BUILT_IN),
                    value="shapes",
                    allow_custom_value=True,
                    label=say("A folder of yours, or a built-in set"),
                    elem_id="train-data",
                )
                self.preset = gr.Dropdown(
                    [*PRESETS], value="nano", label=say("Preset"), elem_id="train-preset"
                )
                with gr.Row():
                    self.out = gr.Textbox("runs/mine", label=say("Run folder"), elem_id="train-out")
                    self.budget = gr.Textbox(
                        "", label=say("Time, as 30m; empty: all steps"), elem_id="train-budget"
                    )
                self.set = gr.Textbox(
                    "sample_every=100",
                    label=say("Settings, as steps=500, with spaces between"),
                    elem_id="train-set",
                )
                self.price = gr.HTML("", elem_id="train-price", js_on_load=None)
                with gr.Row():
                    price = gr.Button(say("See the price"), elem_id="train-see")
                    start = self.button("Start or go on", elem_id="train-start")
                    stop = gr.Button(say("Stop"), elem_id="train-stop", elem_classes="ew-stop")
            with gr.Column(scale=7, min_width=300):
                self.shown = gr.HTML(
                    views.hint(say("Losses and samples appear here.")),
                    elem_id="training",
                    js_on_load=None,
                )
                self.use = gr.Button(say("Use this model"), visible=False, elem_id="train-use")
        given = [self.data, self.preset, self.out, self.budget, self.set]
        beat = gr.Timer(2, active=False)
        self.seen = gr.State([])
        shown, given_out = [self.shown, self.use, beat, self.seen], [self.out, self.seen]
        price.click(self._priced, given, self.price, show_progress="hidden")
        start.click(self._started, given, [self.price, *shown], queue=False)
        stop.click(self._stop_training, self.out, shown, queue=False)
        beat.tick(self._watched, given_out, shown, queue=False, show_progress="hidden")
        tab.select(self._opened, self.out, shown, queue=False, show_progress="hidden")
        self.use.click(self._used, self.out, [create.model, tabs], queue=False)

    @property
    def trainings(self) -> Trainings:
        """The studio's, in every language."""
        return self.studio.trainings

    def _words(
        self, data: str | None, preset: str, out: str, budget: str | None, given: str | None
    ) -> tuple[str, list[str]]:
        """(the run folder, the fields as words of the command `everyway train`, which checks them).

        Raises UsageError or argparse's ArgumentTypeError for a field that cannot be read.
        """
        folder, budget = out.strip() or f"runs/{preset}", (budget or "").strip()
        words = [preset, "--out", folder, *(["--data", data] if data else [])]
        if budget:
            seconds(budget)  # raises
            words += ["--budget", budget]
        settings = (given or "").split()
        settings_of(settings)  # raises
        return folder, [*words, *(w for setting in settings for w in ("--set", setting))]

    def _priced(self, request: gr.Request, *given: str) -> Iterator[str]:
        say = self.say
        waiting = say("some steps are tried; this takes a while")
        yield views.under_way(0.1, views.tag("p", escape(waiting)))
        try:
            _, words = self._words(*given)
            with self.studio.work(self.place(request)) as work:
                lines = self.trainings.price(words, self.language, work).splitlines()
        except (EverywayError, ArgumentTypeError, OSError) as error:
            yield views.trouble(say(str(error)))
            return
        rows = [(line[:NAME].strip(), line[NAME:].strip()) for line in lines]
        yield views.tag("div", views.facts(rows), class_="ew-card") if rows else ""

    def _started(self, *given: str) -> tuple[Any, ...]:
        try:
            out, words = self._words(*given)
            self.trainings.start(out, words)
        except (EverywayError, ArgumentTypeError, OSError) as error:
            return views.trouble(self.say(str(error))), *(gr.skip(),) * 4
        return "", *self._watched(out, ())

    def _stop_training(self, out: str, request: gr.Request) -> tuple[Any, ...]:
        """Stops the training, or the rehearsal of a price."""
        self.studio.stop(self.place(request))
        self.trainings.stop(out.strip())
        return self._watched(out, ())

    def _opened(self, out: str) -> tuple[Any, ...]:
        """The page as it is opened: with what runs there, or lies there."""
        if self.trainings.runs(out.strip()) or (Path(out.strip()) / "log.jsonl").is_file():
            return self._watched(out, ())
        return (gr.skip(),) * 4

    def _watched(self, out: str, seen: Sequence[Any]) -> tuple[Any, ...]:
        """Where a training is: its curves, its newest samples, and whether to look again.

        seen: what was shown last, which is not shown again.
        """
        out, say = out.strip(), self.say
        runs, folder = self.trainings.runs(out), Path(out)
        said, rows = self.trainings.said(out), _log(folder / "log.jsonl")
        sheets = sorted((folder / "samples").glob("*.png"))
        made = (folder / "model" / "config.json").is_file() and not runs
        now = [out, runs, made, self.trainings.ends(out), len(rows), len(sheets), len(said)]
        if now == list(seen):
            return (gr.skip(),) * 4
        if self.trainings.failed(out):
            why = (said.splitlines() or [say("it failed")])[-1].removeprefix("everyway: ")
            return views.trouble(say(why)), gr.skip(), gr.Timer(active=False), now
        where = say(f"step {rows[-1]['step']}") if rows else ""
        state, on = self._state(out, runs, bool(rows)), "1" if runs else "0"
        badge = views.tag("span", escape(state), class_="ew-badge", data_on=on)
        head = views.tag("p", badge, " ", escape(where), class_="ew-state")
        before = views.tag("pre", escape(said), class_="ew-said") if said and not rows else ""
        body = views.tag(
            "div",
            head + before + self._curves(rows) + self._samples(sheets),
            class_="ew-run ew-going" if runs else "ew-run",
        )
        return body, gr.update(visible=made), gr.Timer(active=runs), now

    def _state(self, out: str, runs: bool, begun: bool) -> str:
        """In words."""
        if not runs:
            done = self.trainings.finished(out)
            return self.say("done") if done else self.say("it stands; Start goes on")
        if self.trainings.ends(out):
            return self.say("it ends, and is saved")
        return self.say("it runs") if begun else self.say("it prepares its data")

    def _curves(self, rows: list[dict[str, float]]) -> str:
        names = [n for n in (rows[-1] if rows else {}) if n not in ("step", "seconds")]
        every = max(1, len(rows) // CURVE)
        lines = {n: [(r["step"], r[n]) for r in rows[::every] if n in r] for n in names}
        return chart.lines(lines, self.say("losses"), self.say("step")) if len(rows) > 1 else ""

    def _samples(self, sheets: Sequence[Path]) -> str:
        """The newest sheet that is whole."""
        for path in sheets[::-1]:
            with suppress(OSError), Image.open(path) as sheet:
                said, src = self.say("samples of the average"), views.address(sheet)
                return f'<img class="ew-sheet" src="{src}" alt="{escape(said)}">'
        return ""

    def _used(self, out: str) -> tuple[Any, Any]:
        """The trained model on every page's list, and on the first page."""
        name = out.strip()
        if name not in self.studio.names:
            self.studio.names.append(name)
        self.studio.forget(name)
        chosen = gr.update(choices=[*self.studio.names], value=name)
        return chosen, gr.update(selected="create")


def _log(path: Path) -> list[dict[str, float]]:
    """The rows of a training's log, but for one that is being written."""
    rows = []
    with suppress(OSError):
        for line in path.read_text("utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                rows.append(json.loads(line))
    return rows
