"""Explore: ways between pictures, chains, sweeps of settings, and what the network looks at."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterator, Sequence
from html import escape

import gradio as gr
from PIL import Image

from everyway.apps.studio import chart, views
from everyway.apps.studio.bench import Made
from everyway.apps.studio.parts import Page
from everyway.errors import EverywayError
from everyway.request import GenerateRequest, RequestError

MOST_CELLS = 36
"""Of a sweep."""
ENDS = ("a large fox on blue", "a small pizza on green")


class Explore(Page):
    """Four tools, a tab each."""

    def build(self) -> None:
        say = self.say
        said = say("How the model moves: between pictures, in circles, and as its settings turn.")
        gr.HTML(views.lead(say("Explore"), said), js_on_load=None)
        self.model = self.models(bool)
        with gr.Tabs():
            with gr.Tab(say("Between")):
                self._interpolation()
            with gr.Tab(say("Chain")):
                self._chain()
            with gr.Tab(say("Sweep")):
                self._sweep()
            with gr.Tab(say("Attention")):
                self._attention()

    def _tool(self, hint: str, name: str) -> tuple[gr.Button, gr.HTML]:
        """The button of a tool, and where its answer goes."""
        make = self.button("Make", elem_id=f"{name}-make")
        shown = gr.HTML(views.hint(self.say(hint)), elem_id=name, js_on_load=None)
        return make, shown

    def _interpolation(self) -> None:
        say = self.say
        with gr.Row():
            first, last = self.picture("from", 170), self.picture("to", 170)
        with gr.Row():
            frames = gr.Slider(2, 32, value=9, step=1, label=say("Frames"))
            example = gr.Button(say("An example"), elem_id="between-example")
        make, shown = self._tool("A film between the two pictures appears here.", "between")
        make.click(self._between, [self.model, first, last, frames], shown, show_progress="hidden")
        example.click(self._ends, None, [first, last])

    def _ends(self) -> list[Image.Image]:
        return [self.studio.example(text).picture for text in ENDS]

    def _between(
        self,
        request: gr.Request,
        model: str,
        first: Image.Image | None,
        last: Image.Image | None,
        frames: int,
    ) -> Iterator[str]:
        def asked() -> GenerateRequest:
            if first is None or last is None:
                raise RequestError("two pictures are needed; give both")
            both = (self.studio.keep(first), self.studio.keep(last))
            return GenerateRequest(kind="interpolate", model=model, images=both, frames=int(frames))

        yield from self._film(asked, request, self.say("Between two pictures"), 1)

    def _chain(self) -> None:
        say = self.say
        with gr.Row():
            text = gr.Textbox(ENDS[0], label=say("Words to begin with"), scale=3)
            rounds = gr.Slider(1, 20, value=4, step=1, label=say("Rounds"))
            seed = gr.Number(0, precision=0, minimum=0, label=say("Seed"))
        make, shown = self._tool(
            "It draws the words, describes the picture, draws the description, and so on.", "chain"
        )
        given = [self.model, text, rounds, seed]
        make.click(self._chained, given, shown, show_progress="hidden")

    def _chained(
        self, request: gr.Request, model: str, text: str, rounds: int, seed: int | None
    ) -> Iterator[str]:
        def asked() -> GenerateRequest:
            own = {"rounds": int(rounds), "seed": int(seed or 0)}
            return GenerateRequest(kind="chain", model=model, text=text, **own)

        yield from self._film(asked, request, self.say("Words, picture, words, …"), 2)

    def _film(
        self, asked: Callable[[], GenerateRequest], request: gr.Request, title: str, size: int
    ) -> Iterator[str]:
        """Runs a request of many parts; so many of them are a frame.  asked: makes the request."""
        made: list[Made] = []
        try:
            wanted = asked()
            yield views.tag("div", views.bar(0.02), class_="ew-run ew-going")
            for event in self.studio.run(wanted, request.session_hash):
                if isinstance(event, Made):
                    made.append(event)
                elif event.frames:
                    yield self.going(wanted, event)
        except EverywayError as error:
            yield views.trouble(self.say(str(error)))
            return
        parts = [one.result.outputs for one in sorted(made, key=lambda one: one.result.part)]
        groups = [parts[k : k + size] for k in range(0, len(parts), size)]
        frames = [dict(ChainMap(*group)) for group in groups]
        yield views.film(frames, title, self.say, at=0)

    def _sweep(self) -> None:
        say = self.say
        text = gr.Textbox(ENDS[1], label=say("Words"))
        with gr.Row():
            guidance = gr.Textbox("1, 2, 4", label=say("Guidance, with commas between"))
            steps = gr.Textbox("2, 4, 8, 16", label=say("Steps, with commas between"))
            seed = gr.Number(0, precision=0, minimum=0, label=say("Seed"))
        make, shown = self._tool(
            "A table of pictures appears here, a pair of settings each.", "grid"
        )
        given = [self.model, text, guidance, steps, seed]
        make.click(self._grid, given, shown, show_progress="hidden")

    def _grid(
        self,
        request: gr.Request,
        model: str,
        text: str,
        guidance: str,
        steps: str,
        seed: int | None,
    ) -> Iterator[str]:
        cells: dict[tuple[float, float], Made] = {}
        try:
            rows, columns = numbers(guidance), [int(s) for s in numbers(steps)]
            if len(rows) * len(columns) > MOST_CELLS:
                raise RequestError(f"these are more than {MOST_CELLS} pictures; give fewer values")
            for w in rows:
                for count in columns:
                    asked = GenerateRequest(
                        kind="text-to-image",
                        model=model,
                        text=text,
                        guidance=w,
                        steps=count,
                        seed=int(seed or 0),
                    )
                    for event in self.studio.run(asked, request.session_hash):
                        if isinstance(event, Made):
                            cells[w, count] = event
                    yield self._table(rows, columns, cells)
        except EverywayError as error:
            yield views.trouble(self.say(str(error)))

    def _table(self, rows: Sequence[float], columns: Sequence[int], cells: dict) -> str:
        say = self.say
        head = "".join(f'<th scope="col">{c} {escape(say("steps"))}</th>' for c in columns)
        body = ""
        for w in rows:
            line = f'<th scope="row">{escape(say("guidance"))} {w:g}</th>'
            for c in columns:
                one = cells.get((w, c))
                src = self.address(one) if one else ""
                line += f'<td><img src="{src}" alt="{w:g}, {c}"></td>' if one else "<td></td>"
            body += f"<tr>{line}</tr>"
        table = f'<table class="ew-grid"><tr><th></th>{head}</tr>{body}</table>'
        return views.tag("div", table, class_="ew-scroll")

    def _attention(self) -> None:
        text = gr.Textbox(ENDS[0], label=self.say("Words"))
        make, shown = self._tool(
            "How much of the picture's attention goes to the words, at every level of noise.",
            "look",
        )
        make.click(self._looked, [self.model, text], shown, show_progress="hidden")

    def _looked(self, model: str, text: str) -> Iterator[str]:
        from everyway.metrics.inside import attention_by_noise

        say = self.say
        try:
            yield views.tag("div", views.bar(0.1), class_="ew-run ew-going")
            system = self.studio.model(model).system
            shares = attention_by_noise(system, [text])
        except EverywayError as error:
            yield views.trouble(say(str(error)))
            return
        lines = {
            say("to the words"): [(t, words) for t, words, _ in shares],
            say("to the text's other tokens"): [(t, rest) for t, _, rest in shares],
        }
        said = say("noise, from all of it on the left to none")
        yield chart.lines(lines, say("share of the attention"), said, falling=True)


def numbers(words: str) -> list[float]:
    """Of a line with commas.  RequestError for what is no number."""
    try:
        return list(dict.fromkeys(float(word) for word in words.split(",") if word.strip()))
    except ValueError:
        raise RequestError(f"{words!r} is no line of numbers; write it as 1, 2, 4") from None
