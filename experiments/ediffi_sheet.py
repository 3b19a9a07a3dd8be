"""What `mini-ediffi` does on one labelled sheet: a painted scene, a style, its cascade, another
model's pictures enlarged, and each of its experts in place of all.

Prompts and seeds are fixed; nothing is chosen by hand.

    python experiments/ediffi_sheet.py MODEL [--out sheet.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from everyway.data.lattice import Lattice
from everyway.data.styles import draw as drawn
from everyway.generate import Model, load
from everyway.metrics.judge import LATTICE
from everyway.sheet import Cell, Section, sheet

PROMPTS = (*LATTICE.prompts[:2], *LATTICE.more["two objects"][:2])
STYLED = "a large dog in the middle, green background"
PAINTED = "a large fox left of a small teapot, blue background"
WORDS = {"#e4572e": "a large fox", "#2e86ab": "a small teapot", "#dddddd": "blue background"}
COLOURS = 128
"""Of the sheet as it is written."""


def draw(model: Model, text: str, **settings) -> Image.Image:
    (made,) = model.generate(kind="text-to-image", text=text, seed=0, **settings)
    return made.image


def asked(text: str, picture: Image.Image) -> Cell:
    """A picture with its prompt, right or wrong as the judge reads it."""
    seen = LATTICE.score(LATTICE.parse(text), LATTICE.read([picture])[0])
    return Cell(image=picture, text=text, right=all(seen.values()))


def cascade(model: Model) -> list[Cell]:
    """The base's picture, then what the cascade makes of it."""
    cells = []
    for text in PROMPTS[1:3]:
        base = draw(model, text, upscale="none")
        cells += [
            Cell(image=base, text=f"the base, {base.width} pixels"),
            asked(text, draw(model, text)),
        ]
    return cells


def other(model: Model) -> list[Cell]:
    """What `mini` drew, and the same enlarged."""
    mini, text = load("mini", device="cpu"), PROMPTS[2]
    drawn = draw(mini, text)
    larger = draw(mini.with_upscaler(model), text, upscale="mini-ediffi")
    small = drawn.resize((48, 48), Image.BOX)
    (again,) = model.generate(kind="upscale", image=small, text=text, seed=0)
    return [
        Cell(image=drawn, text=f"mini, {drawn.width} pixels"),
        Cell(image=larger, text=f"enlarged to {larger.width}"),
        Cell(image=small.resize(again.image.size, Image.BICUBIC), text="48 pixels of it, bicubic"),
        Cell(image=again.image, text=f"enlarged to {again.image.width}"),
    ]


def style(model: Model) -> list[Cell]:
    """A prompt in the style of a picture of something else, more and more of it."""
    cells = []
    for name, strengths in (("grey", (1.0,)), ("tinted", (0.0, 0.5, 1.0))):
        given = Image.fromarray(drawn(Lattice(seed=77).scene(3), name))
        cells.append(Cell(image=given, text=f"the style: {name}", given=True))
        for strength in strengths:
            weights = {"style": strength}
            made = draw(model, STYLED, given={"style": given}, context_weights=weights)
            cells.append(Cell(image=made, text=f"{STYLED}; style {strength:g}"))
    return cells


def canvas(left: str, right: str) -> Image.Image:
    """Two objects' colours in the middle row, the background's around them."""
    made = Image.new("RGB", (96, 96), "#dddddd")
    made.paste(left, (0, 32, 32, 64))
    made.paste(right, (64, 32, 96, 64))
    return made


def painted(model: Model) -> list[Cell]:
    """One prompt on a map that agrees with it, and on one that does not."""
    fox, teapot = [*WORDS][:2]
    cells = [asked(PAINTED, draw(model, PAINTED))]
    for order in ((fox, teapot), (teapot, fox)):
        map_ = canvas(*order)
        made = draw(model, PAINTED, paint=map_, words=WORDS)
        cells += [Cell(image=map_, text="painted", given=True), Cell(image=made, text=PAINTED)]
    return cells


def experts(model: Model) -> list[Cell]:
    """All experts, each at its noise; then each of them at all noise."""
    text = PROMPTS[3]
    cells = [asked(text, draw(model, text))]
    for name, network in model.system.networks.items():
        alone = replace(model, system=replace(model.system, network=network, placement=None))
        made = asked(text, draw(alone, text))
        cells.append(replace(made, text=f"{name.removeprefix('network.')} at all noise"))
    return cells


ROWS: dict[str, Callable[[Model], list[Cell]]] = {
    "text to image": lambda model: [asked(text, draw(model, text)) for text in PROMPTS],
    "painted words": painted,
    "a style": style,
    "the cascade": cascade,
    "another model's picture, enlarged": other,
    "experts, on and off": experts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a cascade with experts and a style")
    parser.add_argument("--out", type=Path, default=Path("out/ediffi.png"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.model, device="cpu")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    page = sheet([Section(title=t, cells=made(model)) for t, made in ROWS.items()])
    page.quantize(COLOURS).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
