"""The main job in one call: every use of one model on a labelled sheet.

Prompts and seed are fixed; nothing is chosen by hand.  A prompted picture is marked with what the
recogniser sees in it, right or wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from everyway.apps import files
from everyway.data.shapes import parse
from everyway.generate import Model, Result, load
from everyway.metrics import shapes

PROMPTS = (
    "a red circle left on white",
    "a green square right on black",
    "a yellow ring middle on blue",
    "a blue cross top on yellow",
)
SEED = 0


def demo(name: str, out: Path, tell: Callable[[str], None]) -> Path:
    """Writes OUT/demo.png and the pictures it needs under OUT/demo/; returns the sheet's path."""
    began = time.monotonic()
    model = load(name)
    tell(f"{model.name} ({model.hash}) loaded in {time.monotonic() - began:.1f} s")
    rows = []
    parts = out / "demo"
    drawn: list[Path] = []

    def run(title: str, cells: Callable[[], list]) -> None:
        start = time.monotonic()
        rows.append((title, cells()))
        tell(f"{title:34} {time.monotonic() - start:6.2f} s")

    def prompted() -> list:
        cells = []
        for index, prompt in enumerate(PROMPTS):
            made = make(model, "text-to-image", text=prompt)[0]
            path = parts / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            made.image.save(path)
            drawn.append(path)
            cells.append((made.image, mark(prompt, made)))
        return cells

    def described() -> list:
        cells = []
        for path in drawn:
            made = make(model, "image-to-text", images=(str(path),))[0]
            cells.append((files.open_image(path), made.text))
        return cells

    def pairs(kind: str, **inputs) -> list:
        return [(r.image, r.text or "") for r in make(model, kind, **inputs)]

    def noisy() -> list:
        made = make(model, "text-to-image", text=PROMPTS[0], n=4, given_noise={"text": 0.3})
        return [(r.image, mark(PROMPTS[0], r)) for r in made]

    def chain() -> list:
        made = make(model, "chain", text=PROMPTS[1], rounds=2)
        return [(r.image, r.text or "") for r in made]

    run("text to image", prompted)
    run("image to text", described)
    run("joint: a picture and its caption", lambda: pairs("joint", n=4))
    run("image alone", lambda: pairs("image", n=4))
    run("text alone", lambda: pairs("text", n=4))
    run("variations of a picture", lambda: pairs("vary-image", n=4, images=(str(drawn[0]),)))
    run("variations of a text", lambda: pairs("vary-text", n=4, text=PROMPTS[2]))
    run("a condition that is itself noisy", noisy)
    run("Gibbs chain", chain)
    run(
        "interpolation of two pictures",
        lambda: pairs("interpolate", frames=4, images=(str(drawn[0]), str(drawn[1]))),
    )
    path = out / "demo.png"
    files.sheet(rows).save(path)
    tell(f"{path} in {time.monotonic() - began:.1f} s")
    return path


def make(model: Model, kind: str, **inputs) -> list[Result]:
    return model.generate(kind=kind, seed=SEED, **inputs)


def mark(prompt: str, made: Result) -> str:
    """What was asked for, and whether the recogniser sees it."""
    stated, seen = parse(prompt), shapes.read(made.image)
    wrong = [f"{seen[a]}" for a, right in shapes.score(stated, seen).items() if not right]
    return "right" if not wrong else "wrong: " + ", ".join(wrong)
