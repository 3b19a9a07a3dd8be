"""The main job in one call: every use of one model on a labelled sheet.

Prompts and seed are fixed; nothing is chosen by hand.  A prompted picture is marked with what the
classifier sees in it, right or wrong.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from everyway.apps import files
from everyway.atomic import atomic_write
from everyway.generate import Model, Result
from everyway.metrics.judge import Judge, judge_of
from everyway.request import GenerateRequest, RequestError
from everyway.sheet import Cell, Section, hangul_font, sheet

SEED = 0
APART = 100
"""Added to the seed of what is drawn from nothing, so that no row repeats another's."""
LEGEND = (
    "Framed: what the model was given.  Green: the judge sees in the picture what is said, and no "
    "more.  Red: it does not.  Grey: nothing was asked.  [ko]: Korean, told by what it states."
)


def demo(model: Model, out: Path, tell: Callable[[str], None], **settings) -> Path:
    """Writes OUT/demo.png, and what is on it under OUT/demo/; returns the sheet's path.

    settings: of every request, as steps=10; else the model's own.  Raises RequestError for a model
    that can do nothing shown here.
    """
    began = time.monotonic()
    show = _Show(model=model, judge=judge_of(model), out=out / "demo", settings=settings)
    show.out.mkdir(parents=True, exist_ok=True)
    sections = []
    for title, (needed, cells) in USES.items():
        if not needed <= set(model.system.tasks):
            continue
        start = time.monotonic()
        if not (made := cells(show)):
            continue
        sections.append(Section(title=title, cells=made))
        tell(f"{title:60} {time.monotonic() - start:6.2f} s")
    if not sections:
        raise RequestError(f"model {model.name} can do {[*model.system.tasks]}: no demo for it")
    path = out / "demo.png"
    with atomic_write(path) as temporary:
        sheet(sections, foot=LEGEND).save(temporary, format="PNG")
    files.append_line(show.out / "texts.jsonl", json.dumps(show.texts, ensure_ascii=False))
    tell(f"{path} in {time.monotonic() - began:.1f} s")
    return path


@dataclass(frozen=True, kw_only=True, eq=False)
class _Show:
    """A model, its judge, where files go, and the pictures that later uses take as given."""

    model: Model
    judge: Judge
    out: Path
    settings: dict[str, Any]
    drawn: list[Path] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    def make(self, kind: str, seed: int = SEED, **inputs) -> list[Result]:
        return self.model.generate(kind=kind, seed=seed, **inputs, **self.settings)

    def draw(self, prompt: str) -> Result:
        """A prompted picture, which stays as one that later uses take as given."""
        request = self.model.settled(
            GenerateRequest(kind="text-to-image", text=prompt, seed=SEED, **self.settings)
        )
        (made,) = self.model.generate(request)
        self.drawn.append(self.out / f"{len(self.drawn)}.png")
        made.save(self.drawn[-1])
        return made

    def given(self, index: int) -> Cell:
        return Cell(image=files.open_image(self.drawn[index]), given=True)

    def words(self, text: str) -> str:
        """A text as the sheet can draw it: without a font, Korean is told by what it states."""
        self.texts.append(text)
        if text.isascii() or hangul_font():
            return text
        stated = self.judge.parse(text)
        return f"[ko] {self.judge.spell(stated)}" if stated else "[ko]"

    def asked(self, prompt: str, made: Result) -> Cell:
        """A prompted picture, its prompt, and what the classifier sees where that is wrong."""
        seen = self.judge.read([made.image])[0]
        right = all(self.judge.compare(self.judge.parse(prompt), seen).values())
        said = self.words(prompt) if right else f"{self.words(prompt)} (seen: "
        return Cell(
            image=made.image,
            text=said if right else said + self.judge.spell(seen) + ")",
            right=right,
        )

    def seen(self, made: Result, how: str = "") -> Cell:
        """A picture with what the judge sees in it.  how: it came about, in words before that."""
        (read,) = self.judge.read([made.image])
        return Cell(image=made.image, text=f"{how} {self.judge.spell(read)}".strip())


def _text_to_image(show: _Show) -> list[Cell]:
    return [show.asked(prompt, show.draw(prompt)) for prompt in show.judge.prompts]


def _more(title: str) -> Callable[[_Show], list[Cell]]:
    """A further row of prompts, of the judges that have it."""
    return lambda show: [
        show.asked(prompt, show.make("text-to-image", text=prompt)[0])
        for prompt in show.judge.more.get(title, ())
    ]


def _image_to_text(show: _Show) -> list[Cell]:
    cells = []
    for path in show.drawn:
        image, text = (
            files.open_image(path),
            show.make("image-to-text", images=(str(path),))[0].text,
        )
        stated, seen = show.judge.parse(text), show.judge.read([image])[0]
        right = all(show.judge.compare(stated, seen).values())
        cells.append(Cell(image=image, text=show.words(text), right=right))
    return cells


def _variations_of_an_image(show: _Show) -> list[Cell]:
    made = show.make("image-variation", n=3, images=(str(show.drawn[0]),))
    return [show.given(0), *(Cell(image=r.image) for r in made)]


def _variations_of_a_text(show: _Show) -> list[Cell]:
    text = show.judge.prompts[2]
    made = show.make("text-variation", n=3, text=text)
    said = [Cell(text=show.words(r.text)) for r in made]
    return [Cell(text=show.words(text), given=True), *said]


def _blended(show: _Show) -> list[Cell]:
    """A picture and another one's text, by the share of the text."""
    picture, text, cells = str(show.drawn[0]), show.judge.prompts[1], [show.given(0)]
    for share in (0.3, 0.6, 0.9):
        contexts = [{"image": picture, "weight": 1 - share}, {"text": text, "weight": share}]
        (made,) = show.make("image", contexts=contexts)
        cells.append(Cell(image=made.image, text=f"{share:.0%} {show.words(text)}"))
    return cells


def _focused(show: _Show) -> list[Cell]:
    """Of a picture what it shows, all of it, or its style."""
    picture, cells = str(show.drawn[0]), [show.given(0)]
    for name, focus in (("semantic", 0.0), ("neither", 0.5), ("style", 1.0)):
        (made,) = show.make("image", contexts=[{"image": picture, "focus": focus}])
        cells.append(Cell(image=made.image, text=name))
    return cells


def _joint(show: _Show) -> list[Cell]:
    made = show.make("joint", n=4)
    seen = show.judge.read([r.image for r in made])
    agree = [
        all(show.judge.compare(show.judge.parse(r.text), s).values()) for r, s in zip(made, seen)
    ]
    return [Cell(image=r.image, text=show.words(r.text), right=a) for r, a in zip(made, agree)]


def _image(show: _Show) -> list[Cell]:
    return [Cell(image=r.image) for r in show.make("image", SEED + APART, n=4)]


def _text(show: _Show) -> list[Cell]:
    return [Cell(text=show.words(r.text)) for r in show.make("text", SEED + APART, n=4)]


def _noisy_condition(show: _Show) -> list[Cell]:
    prompt, cells = show.judge.prompts[0], []
    for level in (0.2, 0.4, 0.6, 0.8):
        (made,) = show.make("text-to-image", text=prompt, given_noise={"text": level})
        cells.append(show.seen(made, f"at {level:.0%}:"))
    return cells


def _there_and_back(show: _Show) -> list[Cell]:
    """A picture drawn from its own description, a text said of its own picture."""
    text = show.judge.prompts[2]
    (drawn,) = show.make("vary-image", images=(str(show.drawn[0]),))
    (said,) = show.make("vary-text", text=text)
    pictures = [show.given(0), show.seen(drawn)]
    return [*pictures, Cell(text=show.words(text), given=True), Cell(text=show.words(said.text))]


def _chain(show: _Show) -> list[Cell]:
    text = show.judge.prompts[1]
    made = show.make("chain", text=text, rounds=3)
    cells = [Cell(text=show.words(text), given=True)]
    for drawn, said in zip(made[0::2], made[1::2]):
        cells.append(Cell(image=drawn.image, text=show.words(said.text)))
    return cells


def _interpolation(show: _Show) -> list[Cell]:
    pictures = (str(show.drawn[0]), str(show.drawn[1]))
    return [show.seen(made) for made in show.make("interpolate", frames=4, images=pictures)]


def _redrawn(show: _Show) -> list[Cell]:
    """The right third of a picture, drawn anew for other texts."""
    first, *others = show.judge.redrawn or (show.judge.prompts[0],) * 4
    drawn = show.draw(first).image
    mask = Image.new("L", drawn.size)
    mask.paste(255, (drawn.width * 2 // 3, 0, *drawn.size))
    path = show.out / "mask.png"
    with atomic_write(path) as temporary:
        mask.save(temporary, format="PNG")
    inputs = {"images": (str(show.drawn[-1]),), "mask": str(path)}
    made = [show.make("inpaint", text=text, **inputs)[0] for text in others]
    return [show.given(-1), *(show.asked(text, one) for text, one in zip(others, made))]


def _from_noised(show: _Show) -> list[Cell]:
    """One picture on its way to another's prompt."""
    text, cells = show.judge.prompts[1], [show.given(0)]
    for strength in (0.5, 0.75, 1.0):
        (made,) = show.make(
            "image-to-image", text=text, images=(str(show.drawn[0]),), strength=strength
        )
        cells.append(show.seen(made, f"by {strength:.0%}:"))
    return cells


DRAWN, BOTH_WAYS = {"text-to-image"}, {"text-to-image", "image-to-text"}
AS_STATES = {*BOTH_WAYS, "joint"}
"""Of models in which what one task makes is what another is given."""
USES: dict[str, tuple[set[str], Callable[[_Show], list[Cell]]]] = {
    "text to image": (DRAWN, _text_to_image),
    "image to text": (BOTH_WAYS, _image_to_text),
    "two objects": (DRAWN, _more("two objects")),
    "in Korean": (DRAWN, _more("in Korean")),
    "in anybody's words": (DRAWN, _more("in anybody's words")),
    "a part drawn anew, for other texts": (DRAWN, _redrawn),
    "variations of a picture": ({"image-variation"}, _variations_of_an_image),
    "variations of a text": ({"text-variation"}, _variations_of_a_text),
    "a picture and a text, blended": ({"image-variation", "text-to-image"}, _blended),
    "a picture's focus: what it shows, or its style": ({"image-variation"}, _focused),
    "a picture and its caption, from nothing": ({"joint"}, _joint),
    "a picture from nothing": ({"image"}, _image),
    "a text from nothing": ({"text"}, _text),
    "there and back: a picture by its text, a text by its picture": (AS_STATES, _there_and_back),
    "from a text that is on its way to noise": ({"text-to-image", "joint"}, _noisy_condition),
    "a Gibbs chain: text, picture, text, ...": (AS_STATES, _chain),
    "from one picture to another": (AS_STATES, _interpolation),
    "partly forgotten, then drawn for another text": (DRAWN, _from_noised),
}
"""Title -> the tasks that a model must have for it, and what is shown."""
