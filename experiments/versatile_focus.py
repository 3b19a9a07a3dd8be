r"""Semantic and style focus: what of a picture goes into its variations, measured and shown.

Scenes of Emoji Lattice are drawn in four styles, and each picture is varied at semantic, neutral
and style focus.  Counted are the variations that show its objects and no others, and those that
have its style; a contact sheet shows both.  The model must have learned the styles:

    python -m everyway.train.fitted --data lattice-styled --out runs/codecs-styled
    everyway train mini-versatile --data lattice-styled --set codecs=runs/codecs-styled \
        --set stage=variation --budget 2h --out runs/versatile-styled

    python experiments/versatile_focus.py MODEL [--scenes 25] [--out out/versatile_focus]

Source of the claim: Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from statistics import mean

from PIL import Image

from everyway.data.lattice import Lattice
from everyway.data.styles import STYLES, Styled
from everyway.generate import Model, load
from everyway.metrics.lattice import styled
from everyway.sheet import Cell, Section, sheet

FOCUS = {"semantic": 0.0, "neutral": 0.5, "style": 1.0}
SHOWN = 3
"""Scenes on the sheet."""


def varied(model: Model, picture: Image.Image, focus: float, seed: int, **settings) -> Image.Image:
    context = {"image": picture, "focus": focus}
    (made,) = model.generate(kind="image", contexts=[context], seed=seed, **settings)
    return made.image


def measured(model: Model, data: Styled, scenes: int, **settings) -> tuple[list[dict], list[Cell]]:
    """A row a focus, with the share of each style that is kept, and cells: of each of the first
    scenes a picture in every style, and its variations."""
    objects, looks = Counter(), Counter()
    cells = []
    for index in range(scenes):
        names = set(data.scenes.scene(index).names)
        for number, (style, pixels) in enumerate(data.renderings(index).items()):
            picture, seed = Image.fromarray(pixels), len(STYLES) * index + number
            made = {n: varied(model, picture, f, seed, **settings) for n, f in FOCUS.items()}
            for name, seen in zip(FOCUS, styled([*made.values()])):
                objects[name] += set(seen.scene.names) == names
                looks[name, style] += seen.style == style
            if index < SHOWN:
                cells.append(Cell(image=picture, text=style, given=True))
                cells += [Cell(image=image, text=name) for name, image in made.items()]
    rows = []
    for name in FOCUS:
        by_style = {style: looks[name, style] / scenes for style in STYLES}
        kept = {"objects": objects[name] / scenes / len(STYLES), "style": mean(by_style.values())}
        rows.append({"focus": name, **kept, **by_style, "n": scenes * len(STYLES)})
    return rows, cells


def page(cells: list[Cell]) -> Image.Image:
    """A section a picture: itself, and its variations."""
    wide = 1 + len(FOCUS)
    groups = [cells[k : k + wide] for k in range(0, len(cells), wide)]
    return sheet([Section(title=group[0].text, cells=group) for group in groups])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, default=25)
    parser.add_argument("--steps", type=int, help="of the sampler; by default the model's own")
    parser.add_argument("--out", type=Path, default=Path("out/versatile_focus"))
    args = parser.parse_args()
    data = Styled(scenes=Lattice(seed=1_000_000, count=1))
    rows, cells = measured(load(args.model), data, args.scenes, steps=args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    page(cells).save(args.out / "sheet.png", optimize=True)
    columns = [*rows[0]]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print("|", *(f"{v:.2f} |" if isinstance(v, float) else f"{v} |" for v in row.values()))


if __name__ == "__main__":
    main()
