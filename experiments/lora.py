"""A LoRA taught one new object with 12 pictures draws it and names it; the model stays as it is.

    python experiments/lora.py [--out runs/lora] [--base-steps 1500] [--steps 200]

The base is a `nano` that learns emoji on plain backgrounds, at 16x16 pixels.  Its vocabulary has
the word of the new object, of which it sees neither a picture nor a caption.  The LoRA is taught on
12 pictures of that object on 6 of the 10 backgrounds.  What is drawn is read by the nearest of all
pictures that the world has; named are pictures that no training had.

Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from everyway import library
from everyway.data import emoji
from everyway.data.lattice import sprites
from everyway.data.scenes import COLOURS
from everyway.generate import Model, Result, load
from everyway.systems import unidiffuser
from everyway.train import train

KNOWN = (
    "fox", "cactus", "rocket", "pizza", "penguin", "envelope", "piano", "bucket", "magnet",
    "camera", "panda",
)  # fmt: skip
NEW = "teapot"
SIDE, SPRITE = 16, 13
STEPS = 15
"""Of the sampler."""
TAUGHT = [*COLOURS][:6]
"""The backgrounds of the 12 pictures."""


class Scene(NamedTuple):
    """at: where the object stands, (x, y) in pixels."""

    name: str
    background: str
    at: tuple[int, int]

    @property
    def caption(self) -> str:
        return f"a {self.name} on {self.background}"

    @property
    def picture(self) -> np.ndarray:
        """(SIDE, SIDE, 3) uint8."""
        cell = Image.fromarray(sprites()[self.name, "large"], "RGBa")
        sprite = cell.resize((SPRITE, SPRITE), Image.Resampling.BOX)
        canvas = np.full((SIDE, SIDE, 3), COLOURS[self.background], np.uint8)
        emoji.paste(canvas, np.asarray(sprite), self.at)
        return canvas


def scenes(names: Sequence[str]) -> list[Scene]:
    """All there are of these objects."""
    places = [(x, y) for x in (1, 2) for y in (1, 2)]
    return [Scene(n, background, at) for n in names for background in COLOURS for at in places]


TWELVE = [s for s in scenes([NEW]) if s.background in TAUGHT and s.at in ((1, 1), (2, 2))]


def write(folder: Path, shown: Sequence[Scene]) -> Path:
    """A folder of pictures and captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(shown):
        Image.fromarray(scene.picture).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(scene.caption)
    return folder


def fresh(folder: Path) -> Path:
    """A nano that has learned nothing, whose vocabulary has every word of the world."""
    if not (folder / "config.json").exists():
        words = {word for scene in scenes([*KNOWN, NEW]) for word in scene.caption.split()}
        system = unidiffuser.build(unidiffuser.nano(tuple(sorted(words))))
        library.save(folder, system, {"image_size": SIDE, "history": []})
    return folder


# -- judging ------------------------------------------------------------------------------------


def nearest(picture: Image.Image) -> Scene:
    """Of all scenes of the world."""
    world = scenes([*KNOWN, NEW])
    pictures = np.stack([scene.picture for scene in world]).astype(np.float32)
    apart = np.square(pictures - np.asarray(picture, np.float32)).mean((1, 2, 3))
    return world[int(apart.argmin())]


def drawn(model: Model, wanted: Sequence[Scene], **settings: Any) -> Iterator[tuple[Scene, Scene]]:
    """(what was asked for, what is seen)."""
    made: list[Result] = model.generate(text=[s.caption for s in wanted], kind="text-to-image",
                                        **settings)  # fmt: skip
    for result in sorted(made, key=lambda result: result.job):
        yield wanted[result.job], nearest(result.image)


def named(model: Model, shown: Sequence[Scene], **settings: Any) -> Iterator[tuple[Scene, str]]:
    """(what was shown, what is said)."""
    pictures = [Image.fromarray(scene.picture) for scene in shown]
    for result in model.generate(image=pictures, kind="image-to-text", **settings):
        yield shown[result.job], result.text


def scores(model: Model, **settings: Any) -> dict[str, float]:
    """Shares of the new object and of the known ones: drawn and named, object and background."""
    settings, rows = {"steps": STEPS, **settings}, dict[str, float]()
    unseen = [scene for scene in scenes([NEW]) if scene not in TWELVE]
    known = scenes(KNOWN)[::13]
    for what, own in {"new": unseen, "known": known}.items():
        seen = [*drawn(model, own, **settings)]
        said = [*named(model, own, **settings)]
        rows |= {
            f"{what} drawn": np.mean([a.name == b.name for a, b in seen]),
            f"{what} drawn, background": np.mean([a.background == b.background for a, b in seen]),
            f"{what} named": np.mean([a.name in text.split() for a, text in said]),
            f"{what} caption exact": np.mean([a.caption == text for a, text in said]),
        }
        if what == "new":
            elsewhere = [(a, b) for a, b in seen if a.background not in TAUGHT]
            rows["new drawn, other backgrounds"] = np.mean([a.name == b.name for a, b in elsewhere])
    return {name: round(float(value), 3) for name, value in rows.items()}


# -- the experiment -------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/lora"))
    parser.add_argument("--base-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--name", default="teapot", help="of the LoRA's folder in --out")
    args = parser.parse_args()
    out, base = args.out, args.out / "base"
    data = write(out / "known", scenes(KNOWN))
    print(train("nano", init=str(fresh(out / "fresh")), data=str(data), out=str(base),
                steps=args.base_steps, batch=32, log_every=100))  # fmt: skip
    model, twelve = load(base, device="cpu"), write(out / "twelve", TWELVE)
    taught = out / args.name
    own = dict(word.split("=", 1) for word in args.set)
    print(train("nano", **{**dict(init=str(base), lora=8, data=str(twelve), out=str(taught),
                                  steps=args.steps, batch=16, log_every=25), **own}))  # fmt: skip
    rows: dict[str, Any] = {"hash": model.hash, "before": scores(model)}
    for weight in (1.0, 0.7):
        rows[f"with the LoRA times {weight:g}"] = scores(model, lora={str(taught): weight})
    rows["untouched"] = load(base, device="cpu").hash == model.hash
    said = json.dumps(rows, indent=1)
    (taught / "scores.json").write_text(said)
    print(said)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
