"""Explore: interpolations, chains, sweeps of settings, and what the network attends to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from math import isfinite
from typing import Any

import gradio as gr
from PIL import Image

from everyway.apps.server.scheduler import Step
from everyway.apps.studio import chart, strips, views
from everyway.apps.studio.bench import Made
from everyway.apps.studio.parts import MADE, PAIR, Given, Page, opened
from everyway.errors import EverywayError
from everyway.request import GenerateRequest, RequestError

MOST_CELLS = 36
"""How many pictures a sweep makes at most."""
TURNED = {
    "en": "a small rocket left of a large cactus on yellow",
    "ko": "노란 배경, 큰 선인장 왼쪽에 작은 로켓",
}
"""Language -> words of a picture in which settings make a difference."""


class Explore(Page):
    """Four tools, a tab each."""

    def build(self) -> None:
        say = self.say
        said = say("How the model moves: between pictures, in circles, and as its settings turn.")
        gr.HTML(views.lead(say("Explore"), said), js_on_load=None)
        with self.settings(several=False):
            pass
        with gr.Tabs(elem_id="tools") as self.tools:
            with gr.Tab(say("Between"), id="between"):
                self._interpolation()
            with gr.Tab(say("Chain"), id="chain"):
                self._chain()
            with gr.Tab(say("Sweep"), id="sweep"):
                self._sweep()
            with gr.Tab(say("Attention"), id="attention"):
                self._attention()

    def _tool(self, name: str, hint: str, run: Callable, *given: Any) -> None:
        """The button of a tool, and the place of its answer.

        name: of the place.  hint: what stands there first.  run: (request, values of `given`, those
        of `shared`) -> the answer, step by step.
        """
        with gr.Row():
            make = self.button("Make", elem_id=f"{name}-make", scale=3)
            self.stopping(name)
        shown = gr.HTML(views.hint(self.say(hint)), elem_id=name, js_on_load=None)
        inputs = [*given, *self.shared]
        make.click(run, inputs, shown, show_progress="hidden", concurrency_limit=4)

    def _interpolation(self) -> None:
        say = self.say
        with gr.Row():
            self.first, self.last = self.picture("from", 170), self.picture("to", 170)
        example = self.example("between-example")
        self.frames = gr.Slider(2, 32, value=9, step=1, label=say("Frames"))
        said = "A film between the two pictures appears here."
        self._tool("between", said, self._between, self.first, self.last, self.frames)
        example.click(self._ends, None, [self.first, self.last])

    def _ends(self) -> list[Image.Image]:
        return [self.studio.example(text).picture for text in PAIR[self.language]]

    def _between(self, request: gr.Request, *given: Any) -> Iterator[str]:
        title = self.say("Between two pictures")
        yield from self._strip("between", lambda: [self.interpolation(*given)], request, title)

    def interpolation(
        self, first: Given, last: Given, frames: int, *shared: Any
    ) -> GenerateRequest:
        """The request of the first tool.  Raises RequestError without two pictures."""
        if first is None or last is None:
            raise RequestError("two pictures are needed; give both")
        both = (self.kept(first), self.kept(last))
        own = self.asked(*shared)
        return GenerateRequest(kind="interpolate", images=both, frames=int(frames), **own)

    def _chain(self) -> None:
        say = self.say
        with gr.Row():
            with gr.Column(scale=3, min_width=200):
                self.start = self.prompt(PAIR[self.language][0], label=say("Words to begin with"))
            self.rounds = gr.Slider(1, 20, value=4, step=1, label=say("Rounds"))
        said = "It draws the words, describes the picture, draws the description, and so on."
        self._tool("chain", said, self._chained, self.start, self.rounds)

    def _chained(self, request: gr.Request, *given: Any) -> Iterator[str]:
        title = self.say("Words, picture, words, …")
        yield from self._strip("chain", lambda: [self.chain(*given)], request, title)

    def chain(self, text: str, rounds: int, *shared: Any) -> GenerateRequest:
        """The request of the second tool."""
        own = self.asked(*shared)
        return GenerateRequest(kind="chain", text=text, rounds=int(rounds), **own)

    def _strip(
        self,
        tool: str,
        wanted: Callable[[], Sequence[GenerateRequest]],
        request: gr.Request,
        title: str,
    ) -> Iterator[str]:
        """Runs a tool and shows its results as a film.  wanted: as of `running`."""

        def shown(made: list[Made], film: list[Step]) -> str:
            rows = sorted((one.row for one in made), key=lambda row: row["part"])
            return strips.film(rows, MADE, title, self.say)

        for html, _ in self.running(self.place(request, tool), wanted, shown):
            yield html

    def _sweep(self) -> None:
        say = self.say
        self.text = self.prompt(TURNED[self.language], label=say("Words"))
        with gr.Row():
            self.weights = gr.Textbox("0, 1, 2, 4", label=say("Guidance, with commas between"))
            self.counts = gr.Textbox("1, 2, 4, 16", label=say("Steps, with commas between"))
        said = "A table of pictures appears here, a pair of settings each."
        self._tool("grid", said, self._grid, self.text, self.weights, self.counts)

    def _grid(self, request: gr.Request, *given: Any) -> Iterator[str]:
        asked: list[GenerateRequest] = []

        def wanted() -> list[GenerateRequest]:
            asked[:] = self.sweep(*given)
            return asked

        def shown(made: list[Made], film: list[Step]) -> str:
            return self._table(asked, made)

        for html, _ in self.running(self.place(request, "grid"), wanted, shown):
            yield html

    def sweep(self, text: str, weights: str, counts: str, *shared: Any) -> list[GenerateRequest]:
        """The requests of the third tool, row by row of its table.

        weights, counts: guidance and steps, numbers with commas between.  Raises RequestError for
        what is no number, and for more than MOST_CELLS of them.
        """
        rows, columns = numbers(weights), [int(count) for count in numbers(counts)]
        if len(rows) * len(columns) > MOST_CELLS:
            raise RequestError(f"these are more than {MOST_CELLS} pictures; give fewer values")
        own = {"kind": "text-to-image", "text": text} | self.asked(*shared)
        pairs = [{"guidance": w, "steps": count} for w in rows for count in columns]
        return [GenerateRequest(**(own | pair)) for pair in pairs]

    def _table(self, asked: Sequence[GenerateRequest], made: Sequence[Made]) -> str:
        """The table of a sweep.  made: the results of the first of the requests, so far."""
        say = self.say
        columns = list(dict.fromkeys(request.steps for request in asked))
        cells = [f'<td><img src="{self.address(one)}" alt=""></td>' for one in made]
        cells += ["<td></td>"] * (len(asked) - len(cells))
        body = views.tag("th")
        body += "".join(
            views.tag("th", f"{c} {escape(say('steps'))}", scope="col") for c in columns
        )
        lines = [body]
        for k in range(0, len(asked), len(columns)):
            said = f"{escape(say('guidance'))} {asked[k].guidance:g}"
            head = views.tag("th", said, scope="row")
            lines.append(head + "".join(cells[k : k + len(columns)]))
        table = views.tag("table", *(views.tag("tr", line) for line in lines), class_="ew-grid")
        return views.tag("div", table, class_="ew-scroll")

    def _attention(self) -> None:
        self.read = self.prompt(PAIR[self.language][0], label=self.say("Words"))
        said = "How much of the picture's attention goes to the words, at every level of noise."
        self._tool("look", said, self._looked, self.read)

    def _looked(self, request: gr.Request, text: str, *shared: Any) -> Iterator[str]:
        from everyway.metrics.inside import attention_by_noise

        say, own = self.say, self.asked(*shared)
        yield views.under_way(0.1)
        try:
            system = self.studio.model(own["model"]).system
            with self.studio.work(self.place(request, "look")) as work:
                run = {"seed": own["seed"], "steps": own["steps"]}
                shares = attention_by_noise(system, [text], ends=lambda: work.stopped, **run)
        except EverywayError as error:
            yield views.trouble(say(str(error)))
            return
        lines = {
            say("to the words"): [(t, words) for t, words, _ in shares],
            say("to the text's other tokens"): [(t, rest) for t, _, rest in shares],
        }
        said = say("noise, from all of it on the left to none")
        yield chart.lines(lines, say("share of the attention"), said, falling=True)

    @property
    def fields(self) -> list[Any]:
        """The fields of this page, and which tool is open, in the order of `values`."""
        between = [self.first, self.last, self.frames]
        sweep = [self.text, self.weights, self.counts]
        return [self.tools, *between, self.start, self.rounds, *sweep, *self.shared]

    def values(self, requests: Sequence[GenerateRequest]) -> list[Any]:
        """Values of `fields` for one request of the first two tools, or for those of a sweep."""
        one, shared = requests[0], self.shared_values(requests[0])
        between, chain, sweep = [gr.skip()] * 3, [gr.skip()] * 2, [gr.skip()] * 3
        if one.kind == "interpolate":
            tool, between = "between", [*map(opened, one.images), one.frames]
        elif one.kind == "chain":
            tool, chain = "chain", [one.text, one.rounds]
        else:
            turned = [[r.guidance for r in requests], [r.steps for r in requests]]
            listed = [", ".join(f"{v:g}" for v in dict.fromkeys(values)) for values in turned]
            tool, sweep = "sweep", [one.text, *listed]
            shared[3:5] = 0, 0  # the table has them
        return [gr.update(selected=tool), *between, *chain, *sweep, *shared]


def numbers(words: str) -> list[float]:
    """The different numbers of a line with commas.  Raises RequestError for what is no number, and
    for none."""
    try:
        found = list(dict.fromkeys(float(word) for word in words.split(",") if word.strip()))
    except ValueError:
        found = []
    if not found or not all(map(isfinite, found)):
        raise RequestError(f"{words!r} is no line of numbers; write it as 1, 2, 4")
    return found
