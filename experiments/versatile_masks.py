"""A masked-out object disappears: variations of pictures of two objects, one of which is hidden.

    python experiments/versatile_masks.py MODEL [--scenes 20] [--out out/versatile_masks]

Counted are the variations that show the first object and the second one, with the whole picture
seen and with the cell of the second one masked out; a sheet shows some.
Source of the claim: Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from everyway.data.lattice import CELL, CELLS, SIDE, SIDES, Lattice, draw
from everyway.data.sample import Scene
from everyway.generate import Model, load
from everyway.metrics import lattice
from everyway.sheet import Cell, Section, sheet

SHOWN = 4
"""Scenes on the sheet."""


def without_second(scene: Scene) -> Image.Image:
    """A mask, dark where the second object of a scene is."""
    mask = Image.new("L", (SIDE, SIDE), 255)
    row, column = CELLS[SIDES[scene.relation][1]]
    mask.paste(0, (column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL))
    return mask


def varied(model: Model, seed: int, context: dict, **settings) -> Image.Image:
    (made,) = model.generate(kind="image", contexts=[context], seed=seed, **settings)
    return made.image


def measured(model: Model, count: int, **settings) -> tuple[list[dict], list[Section]]:
    """A row with the whole picture seen and one with a part of it, and a section a scene."""
    data, sections = Lattice(seed=1_000_000, count=2), []
    shown = {"whole": [0, 0], "masked": [0, 0]}
    for index in range(count):
        scene = data.scene(index).canonical()
        picture, mask = Image.fromarray(draw(scene)), without_second(scene)
        made = {
            "whole": varied(model, index, {"image": picture}, **settings),
            "masked": varied(model, index, {"image": picture, "mask": mask}, **settings),
        }
        for how, seen in zip(made, lattice.read([*made.values()])):
            for place, name in enumerate(scene.names):
                shown[how][place] += name in seen.names
        if index < SHOWN:
            given = [Cell(image=picture, given=True), Cell(image=mask.convert("RGB"), given=True)]
            cells = [*given, *(Cell(image=image, text=how) for how, image in made.items())]
            sections.append(Section(title=" and ".join(scene.names), cells=cells))
    rows = [
        {"seen": how, "first": first / count, "second": second / count, "n": count}
        for how, (first, second) in shown.items()
    ]
    return rows, sections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--steps", type=int, help="of the sampler; by default the model's own")
    parser.add_argument("--out", type=Path, default=Path("out/versatile_masks"))
    args = parser.parse_args()
    rows, sections = measured(load(args.model), args.scenes, steps=args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    sheet(sections).save(args.out / "sheet.png")
    print("| seen | first object | second object | n |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['seen']} | {row['first']:.2f} | {row['second']:.2f} | {row['n']} |")


if __name__ == "__main__":
    main()
