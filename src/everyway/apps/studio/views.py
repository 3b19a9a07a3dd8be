"""Results as HTML: pictures with their words, how sure tokens are, and films."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from everyway.apps.server.scheduler import Frame, Step
from everyway.apps.studio.bench import Made
from everyway.media import medium
from everyway.request import GenerateRequest

Say = Callable[[str], str]
"""Translates a sentence into the language of the page."""
WEB = Path(__file__).with_name("web")
LARGE = 256
"""Pixels a side; larger frames on the way are sent as JPEG."""


def loaded(name: str) -> str:
    """The JavaScript of load/NAME.js, by which a piece of HTML calls the page with `trigger`."""
    return (WEB / "load" / f"{name}.js").read_text(encoding="utf-8")


def tag(name: str, *inside: str, **attributes: Any) -> str:
    """An element.  inside: HTML.  attributes: `class_` and `aria_label` as in HTML; False leaves
    one out, True has no value."""
    said = {k.strip("_").replace("_", "-"): v for k, v in attributes.items()}
    own = "".join(
        f" {k}" if v is True else f' {k}="{escape(str(v))}"'
        for k, v in said.items()
        if v is not False and v is not None
    )
    return f"<{name}{own}>{''.join(inside)}</{name}>"


def picture(address: str, class_: str = "") -> str:
    """A picture without an alternative text, since words beside it describe it."""
    own = f' class="{class_}"' if class_ else ""
    return f'<img src="{escape(address)}" alt="" loading="lazy"{own}>'


def each(values: Iterable[float | None]) -> str:
    """The different ones of some numbers, in a line."""
    return ", ".join(f"{value:g}" for value in dict.fromkeys(values) if value is not None)


def address(picture: Image.Image | bytes, whole: bool = True) -> str:
    """A picture as a data: address.  bytes: of a PNG.  whole: whether it has to keep every bit; if
    not, large ones become JPEG."""
    kind = "png"
    if isinstance(picture, Image.Image):
        held = io.BytesIO()
        kind = "png" if whole or max(picture.size) <= LARGE else "jpeg"
        picture.convert("RGB").save(held, format=kind)
        picture = held.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def pair(
    outputs: Mapping[str, Any], note: str = "", picture: str = "", extra: str = "", asked: str = ""
) -> str:
    """A figure of one sample: its picture beside its words, or else beside the prompt.

    note: HTML in small print below.  picture: the address of its file, if it has one.  extra: HTML
    beside the picture.  asked: the prompt.
    """
    image = outputs.get("image")
    others = [
        str(medium(name, {}).preview(value)) for name, value in outputs.items() if name != "image"
    ]
    shown = ""
    if image is not None:
        src = picture or address(image, whole=False)
        said = others[0] if others else asked
        shown = tag("div", f'<img src="{src}" alt="{escape(said)}">', extra, class_="ew-picture")
    words = "".join(tag("p", escape(text), class_="ew-words") for text in others)
    if asked and not others:
        words = tag("p", escape(asked), class_="ew-words ew-asked")
    small = tag("p", note, class_="ew-note") if note else ""
    return tag("figure", shown, tag("figcaption", words, small), class_="ew-pair")


def said_of(request: GenerateRequest) -> str:
    """The prompt of a request, with the texts of its contexts."""
    return " + ".join(filter(None, (request.text, *(c.text for c in request.contexts))))


def heat(sure: Tensor, say: Say) -> str:
    """How sure each token is, sure (H, W) in [0, 1]: light is sure, hatched is still masked."""
    side = sure.shape[-1]
    cells = "".join(
        f'<i class="{"ew-masked" if p == 0 else ""}" style="--p:{p:.2f}" title="{p:.0%}"></i>'
        for p in sure.flatten().tolist()
    )
    label = say("how sure each token is; hatched is masked still")
    return tag("div", cells, class_="ew-heat", style=f"--side:{side}", role="img", aria_label=label)


def heats(frame: Frame, say: Say) -> str:
    """How sure the tokens of a sample are, for each of its token modalities."""
    return "".join(heat(sure, say) for sure in frame.certainty.values())


def going(step: Step, say: Say, plane: str = "") -> str:
    """A run on its way.  plane: HTML of where it is in the plane of times."""
    figures = [pair(frame.outputs, extra=heats(frame, say)) for frame in step.frames]
    stage = f" · {step.stage}/{step.stages}" if step.stages > 1 else ""
    where = say(f"step {step.step} of {step.steps}") + stage
    return tag(
        "div",
        bar(step.done),
        tag("div", tag("span", where), plane, class_="ew-where"),
        tag("div", *figures, class_="ew-pairs", data_count=len(figures)),
        class_="ew-run ew-going",
        aria_busy="true",
    )


def under_way(done: float, inside: str = "") -> str:
    """Something that goes on, and can be stopped.  inside: HTML of what there is by now."""
    return tag("div", bar(done), inside, class_="ew-run ew-going")


def bar(done: float) -> str:
    """How far a run is."""
    return tag("div", f'<i style="width:{done:.0%}"></i>', class_="ew-bar")


def made(results: Sequence[Made], say: Say, foot: str = "", picture: Callable = None) -> str:
    """The results of a run.  foot: HTML below.  picture: Made -> the address of its file."""
    figures = []
    for one in results:
        name = one.row.get("image")
        src = picture(one) if picture and name else ""
        seed = say(f"seed {one.result.seed}")
        save = tag("a", say("download"), href=src, download=name, class_="ew-link") if name else ""
        note = " · ".join(filter(None, (seed, stopped(one.row, say), save)))
        figures.append(pair(one.result.outputs, note, src, asked=said_of(one.result.request)))
    grid = tag("div", *figures, class_="ew-pairs", data_count=len(figures))
    return tag("div", grid, foot, class_="ew-run ew-made")


def stopped(row: Mapping[str, Any], say: Say) -> str:
    """Where a result was stopped, or ""."""
    where = row["facts"].get("stopped")
    return say(f"stopped at step {where[0]} of {where[1]}") if where else ""


def film(
    frames: Iterable[Mapping[str, Any]],
    label: str,
    say: Say,
    at: int = -1,
    notes: Sequence[str] = (),
    beside: Sequence[str] = (),
) -> str:
    """A row of pictures and words to scrub through.

    frames: each modality -> value, of "image" the picture or its address.  label: of the film.
    at: which is shown first.  notes: a line in small print for each.  beside: HTML for each.
    """
    listed = [
        {
            "image": _source(f.get("image")),
            "text": " · ".join(str(v) for k, v in f.items() if k != "image"),
        }
        for f in frames
    ]
    for name, own in (("note", notes), ("beside", beside)):
        for one, said in zip(listed, own):
            one[name] = said
    return tag(
        "ew-film",
        frames=json.dumps(listed, ensure_ascii=False),
        at=at % len(listed) if listed else 0,
        label=label,
        play=say("play"),
        pause=say("pause"),
    )


def _source(picture: Image.Image | str | None) -> str:
    """The address of a frame's picture, "" for none."""
    return address(picture, whole=False) if isinstance(picture, Image.Image) else picture or ""


def trouble(message: str) -> str:
    """An error: one line that says how to mend it."""
    return tag("p", escape(message), class_="ew-trouble", role="alert")


def hint(message: str) -> str:
    """What will appear in a place that is still empty."""
    return tag("div", tag("p", escape(message)), class_="ew-hint")


def facts(rows: Iterable[tuple[str, Any]]) -> str:
    """Names and values, a line each, without empty ones."""
    inside = "".join(
        tag("dt", escape(name)) + tag("dd", escape(str(value)))
        for name, value in rows
        if value not in ("", None, (), [], {})
    )
    return tag("dl", inside, class_="ew-facts")


def lead(title: str, said: str) -> str:
    """The head of a page."""
    return tag("header", tag("h2", escape(title)), tag("p", escape(said)), class_="ew-lead-in")
