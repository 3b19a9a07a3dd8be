"""How many objects land where they are painted, with and without paint: 500 random canvases of two
objects of Emoji Lattice.

    python experiments/paint_with_words.py [MODEL] [--n 500] [--weight W] [--form F] [--above S]

A canvas has a rectangle for each object, about a place where the world can have it: left and right,
or top and bottom, drawn at random; the rest of it is painted with the words of the background.  A
person types what is to be seen and leaves to the map where: "a large fox and a small teapot, blue
background".  What the network reads of that is `usual` without a map: the first stands left of the
second.  With one it is `map`, completed from the map.  Two more tell what attention does by itself:
`unsaid` is read as it was typed, and `said` says a place at random.

    python experiments/paint_with_words.py [MODEL] --sheet FILE

makes a picture of two prompts, each without paint and on four maps.

Each row is compared with the first, `usual` without paint, canvas by canvas.  Rows that the file
holds already are not made again.
Source of the method: Balaji et al., "eDiff-I", 2022, arXiv 2211.01324.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from everyway.apps.files import append_line
from everyway.codecs.token_table import TokenTable
from everyway.controls.paint import FORMS, Canvas, PaintWeight, painting
from everyway.data.captions import plain
from everyway.data.lattice import CELL, CELLS, LEXICON, SIDE, SIDES, Lattice
from everyway.data.sample import Scene
from everyway.generate import load
from everyway.media import to_picture
from everyway.metrics.inside import drawing
from everyway.metrics.lattice import nearest
from everyway.metrics.scenes import score
from everyway.sampling.loop import final

SEED = 4_000_000
"""Of scenes and canvases that no training saw."""
BATCH = 50
PROMPTS = ("usual", "map", "unsaid", "said")


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """A scene as it is described, and the region of each of its objects: (top, bottom, left, right)
    in pixels."""

    scene: Scene
    regions: dict[str, tuple[int, int, int, int]]

    def text(self, prompt: str, reader: TokenTable) -> str:
        typed = plain(replace(self.scene, relation=None), LEXICON)
        match prompt:
            case "usual":
                return reader.completed(typed)
            case "map":
                return reader.completed(typed, self.canvas(typed).middles())
            case "said":
                return plain(self.scene, LEXICON)
        return typed

    def canvas(self, text: str) -> Canvas:
        maps = torch.zeros(1 + len(self.regions), SIDE, SIDE)
        for one, (top, bottom, left, right) in zip(maps, self.regions.values()):
            one[top:bottom, left:right] = 1
        maps[-1] = 1 - maps.amax(0)
        phrases = (*self.regions, f"{self.scene.background} background")
        return Canvas(text=text, maps=maps, phrases=phrases, strengths=(1.0,) * len(phrases))

    def lands(self, seen: Scene) -> list[bool]:
        """Whether the middle of each object is in its region; an object that is not seen is not."""
        places = SIDES[seen.relation] if seen.relation else (seen.objects[0].place,)
        where = dict(zip(seen.names, places))
        return [name in where and _inside(where[name], self.regions[name]) for name in self.regions]


def _inside(place: str, region: tuple[int, int, int, int]) -> bool:
    (row, column), (top, bottom, left, right) = CELLS[place], region
    y, x = (CELL * (2 * k + 1) // 2 for k in (row, column))
    return top <= y < bottom and left <= x < right


def drawn(index: int) -> Drawn:
    """Scene `index` and its regions: each about a cell, its edges up to 4 pixels inside of the
    cell's or up to 12 outside."""
    rng = np.random.default_rng((SEED, index))
    scene = Lattice(seed=SEED, count=2).scene(index)
    names = [scene.names[k] for k in rng.permutation(2)]
    places = list(SIDES.values())[rng.integers(2)]
    regions = {}
    for name, place in zip(names, places):
        row, column = CELLS[place]
        top, left = (k * CELL - int(rng.integers(-4, 13)) for k in (row, column))
        bottom, right = ((k + 1) * CELL + int(rng.integers(-4, 13)) for k in (row, column))
        regions[name] = (max(top, 0), min(bottom, SIDE), max(left, 0), min(right, SIDE))
    return Drawn(scene=scene, regions=regions)


def measured(model, prompt: str, weight: PaintWeight | None, n: int) -> dict[str, Any]:
    """What is right of each of n pictures, and how crisp they are."""
    samples = [drawn(index) for index in range(n)]
    lands, right, crisp = [], [], []
    for start in range(0, n, BATCH):
        part = samples[start : start + BATCH]
        for sample, seen, psnr in zip(part, *_pictures(model, part, prompt, weight, start)):
            lands.append(np.mean(sample.lands(seen)))
            stated = replace(sample.scene, relation=None)
            right.append(score(stated, seen))
            crisp.append(psnr)
    shares = {name: [float(r[name]) for r in right] for name in right[0]}
    return {"lands": [float(x) for x in lands], **shares, "crisp": float(np.median(crisp))}


def _pictures(model, part: Sequence[Drawn], prompt: str, weight: PaintWeight | None, seed: int):
    """What a batch of pictures shows, and how crisp each is."""
    system = model.system
    parts = (*system.modalities.values(), *system.conditions.values())
    reader = next(p.codec for p in parts if isinstance(p.codec, TokenTable))
    texts = [sample.text(prompt, reader) for sample in part]
    change = None
    if weight:
        canvases = [sample.canvas(text) for sample, text in zip(part, texts)]
        change = painting(canvases, system, system.tasks["text-to-image"], weight)
    made = final(drawing(system, texts, seed, change=change))
    pixels = system.decode({"image": made.states["image"]})["image"]
    return zip(*(nearest(to_picture(one)) for one in pixels))


def line(row: dict[str, Any], first: dict[str, Any]) -> str:
    """lands, objects and sizes with what they are more than in the first row, and 95 % of that."""
    cells = [row["prompt"], row["paint"]]
    for name in ("lands", "object", "size"):
        more = np.subtract(row[name], first[name])
        near = 1.96 * more.std() / len(more) ** 0.5
        cells.append(f"{np.mean(row[name]):.3f} ({more.mean():+.3f} ± {near:.3f})")
    cells += [f"{np.mean(row['background']):.3f}", f"{row['crisp']:.1f}", str(row["n"])]
    return f"| {' | '.join(cells)} |"


SHOWN = {
    "a large fox and a small teapot on blue": ("fox", "teapot"),
    "a small rocket left of a large cactus on yellow": ("rocket", "cactus"),
}
"""Prompt of the sheet -> its objects."""
GROUND, PAINTS = "#dddddd", ("#e4572e", "#2e86ab")


def sheet(model) -> Image.Image:
    """A row of maps and one of pictures for each prompt of SHOWN, the first without a map."""
    sides = [*SIDES.values()]
    laid = [places[::way] for places in sides for way in (1, -1)]
    pad = 8
    made = Image.new("RGB", ((1 + len(laid)) * (SIDE + pad) - pad, 4 * (SIDE + pad) - pad), "white")
    for row, (text, names) in enumerate(SHOWN.items()):
        words = dict(zip(PAINTS, names)) | {GROUND: f"{text.split()[-1]} background"}
        for column, places in enumerate([None, *laid]):
            painted = {} if places is None else {"paint": _painted(places), "words": words}
            one = model.generate(kind="text-to-image", text=text, seed=0, **painted)[0].image
            parts = (painted.get("paint"), one.resize((SIDE, SIDE)))
            for line, part in enumerate(parts):
                if part is not None:
                    made.paste(part, (column * (SIDE + pad), (2 * row + line) * (SIDE + pad)))
    return made


def _painted(places: Sequence[str]) -> Image.Image:
    """A map with a cell of each colour of PAINTS at these places."""
    made = Image.new("RGB", (SIDE, SIDE), GROUND)
    for colour, place in zip(PAINTS, places):
        top, left = (k * CELL for k in CELLS[place])
        made.paste(colour, (left, top, left + CELL, top + CELL))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="mini")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--prompts", nargs="*", default=PROMPTS, choices=PROMPTS)
    parser.add_argument("--weight", type=float, nargs="*", help="by default the model's own")
    parser.add_argument("--form", choices=FORMS, help="by default the model's own")
    parser.add_argument("--above", type=float, help="by default the model's own")
    parser.add_argument("--out", type=Path, default=Path("runs/paint_with_words.jsonl"))
    parser.add_argument("--sheet", type=Path, help="makes this picture alone")
    args = parser.parse_args()
    model = load(args.model)
    if args.sheet:
        return sheet(model).save(args.sheet)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    former = args.out.read_text("utf-8").splitlines() if args.out.exists() else []
    made = [json.loads(text) for text in former]
    print("| prompt | paint | lands | objects | sizes | background | crispness dB | n |")
    print("|---|---|---|---|---|---|---|---|")
    own = {**model.system.paint, **FORMS.get(args.form, {})}
    own |= {} if args.above is None else {"above": args.above}
    values = [PaintWeight(**own).value] if args.weight is None else args.weight
    weights = [PaintWeight(**{**own, "value": value}) for value in values]
    first = None
    for prompt in args.prompts:
        for weight in (None, *weights) if prompt != "usual" else (None,):
            paint = "none"
            if weight:
                paint = f"{weight.value:g} {weight.statistic} {weight.growth} > {weight.above:g}"
            asked = {"model": model.hash, "prompt": prompt, "paint": paint, "n": args.n}
            row = next((one for one in made if asked.items() <= one.items()), None)
            if row is None:
                row = asked | measured(model, prompt, weight, args.n)
                append_line(args.out, json.dumps(row))
            first = row if first is None else first
            print(line(row, first), flush=True)


if __name__ == "__main__":
    main()
