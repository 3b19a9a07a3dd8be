"""What stands for nothing: variations of pictures with each null and guidance, side by side.

Guidance moves away from what a model would draw given nothing, and what that is can be chosen:
zeros, or the embedding of a picture that shows nothing.  Counted are the variations that show the
picture's objects, and those that have its style; a contact sheet shows some.  The model must have
an encoder of pictures (`PatchContext`, `ImageContext`) for more nulls than zeros.

    python experiments/versatile_nulls.py MODEL [--scenes 10] [--out out/versatile_nulls]

Source of the choices: Xu et al., "Versatile Diffusion", 2022, arXiv 2211.08332, and its releases.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from everyway.data.lattice import Lattice
from everyway.data.styles import Styled
from everyway.generate import Model, load
from everyway.metrics.lattice import styled
from everyway.sheet import Cell, Section, sheet

GUIDANCES = (1.5, 3.0, 6.0)
SHOWN = 2
"""Scenes on the sheet."""


def measured(model: Model, count: int, **settings) -> tuple[list[dict], list[Section]]:
    """A row for each null and guidance, and a section for each null of the first scenes."""
    data, rows, sections = Styled(scenes=Lattice(seed=1_000_000, count=1)), [], []
    samples = [data.sample(index) for index in range(count)]
    pictures = [Image.fromarray(sample.image) for sample in samples]
    for null in model.system.conditions["image"].nulls:
        made = {}
        for guidance in GUIDANCES:
            made[guidance] = [
                model.generate(
                    kind="image-variation", image=picture, null=null, guidance=guidance, seed=index,
                    **settings,
                )[0].image
                for index, picture in enumerate(pictures)
            ]  # fmt: skip
            seen = styled(made[guidance])
            objects = sum(
                {thing["name"] for thing in s.record["objects"]} == {*found.scene.names}
                for s, found in zip(samples, seen)
            )
            style = sum(s.raw["style"] == found.style for s, found in zip(samples, seen))
            level = sum(found.db for found in seen) / count
            rows.append(
                {"null": null, "guidance": guidance, "objects": objects / count,
                 "style": style / count, "db": level, "n": count}
            )  # fmt: skip
        sections += [_section(null, pictures[k], {g: m[k] for g, m in made.items()})
                     for k in range(min(SHOWN, count))]  # fmt: skip
    return rows, sections


def _section(null: str, picture: Image.Image, made: dict[float, Image.Image]) -> Section:
    shown = [Cell(image=image, text=f"guidance {g:g}") for g, image in made.items()]
    return Section(title=null, cells=[Cell(image=picture, given=True), *shown])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, default=10)
    parser.add_argument("--steps", type=int, help="of the sampler; by default the model's own")
    parser.add_argument("--out", type=Path, default=Path("out/versatile_nulls"))
    args = parser.parse_args()
    rows, sections = measured(load(args.model), args.scenes, steps=args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    sheet(sections).save(args.out / "sheet.png", optimize=True)
    print("| null | guidance | objects | style | dB to the nearest rendering | n |")
    print("|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['null']} | {row['guidance']:g} | {row['objects']:.2f} | {row['style']:.2f} | "
            f"{row['db']:.1f} | {row['n']} |"
        )


if __name__ == "__main__":
    main()
