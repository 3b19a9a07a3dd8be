"""Coloured shapes with captions in English and Korean: always at hand, no dependency, endless."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from everyway.data.captions import Lexicon
from everyway.data.reading import parse as parse_scene
from everyway.data.sample import Sample, Scene, SceneObject

SHAPES = {
    "circle": "원",
    "square": "정사각형",
    "triangle": "삼각형",
    "ring": "고리",
    "cross": "십자",
}
COLOURS = {
    "red": ("빨간", (220, 40, 40)),
    "green": ("초록", (40, 170, 70)),
    "blue": ("파란", (50, 80, 220)),
    "yellow": ("노란", (240, 210, 50)),
    "white": ("하얀", (245, 245, 245)),
    "black": ("검은", (25, 25, 25)),
}
PLACES = {
    "left": ("왼쪽", (0.28, 0.5)),
    "right": ("오른쪽", (0.72, 0.5)),
    "top": ("위", (0.5, 0.28)),
    "bottom": ("아래", (0.5, 0.72)),
    "middle": ("가운데", (0.5, 0.5)),
}
OBJECTS = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
LEXICON = Lexicon(
    objects={name: f"{COLOURS[c][0]} {SHAPES[s]}" for name in OBJECTS for c, s in [name.split()]},
    backgrounds={colour: korean for colour, (korean, _) in COLOURS.items()},
)


LANGUAGES = ("en", "ko")


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sample i is a function of (seed, i) alone.

    size: side of the square pictures in pixels.  languages: of the captions, in this order.
    """

    seed: int = 0
    size: int = 32
    languages: tuple[str, ...] = LANGUAGES

    def record(self, index: int) -> dict[str, str]:
        """shape, colour, place and background (never the shape's own colour)."""
        rng = np.random.default_rng((self.seed, index))
        colour, background = rng.choice([*COLOURS], 2, replace=False)
        return {
            "shape": str(rng.choice([*SHAPES])),
            "colour": str(colour),
            "place": str(rng.choice([*PLACES])),
            "background": str(background),
        }

    def scene(self, index: int) -> Scene:
        """The same ground truth as a `Scene`, whose object is named "red circle"."""
        return scene_of(self.record(index))

    def sample(self, index: int) -> Sample:
        record = self.record(index)
        return Sample(
            image=draw(record, self.size, np.random.default_rng((self.seed, index, 1))),
            captions=captions(record, self.languages),
            record=record,
            key=f"shapes-{self.seed}-{index:08d}",
        )


def captions(record: dict[str, str], languages: tuple[str, ...] = LANGUAGES) -> tuple[str, ...]:
    """One caption a language: "a red circle left on blue"."""
    name = f"{record['colour']} {record['shape']}"
    place, background = record["place"], record["background"]
    said = {
        "en": f"a {name} {place} on {background}",
        "ko": f"{COLOURS[background][0]} 배경 {PLACES[place][0]} {LEXICON.objects[name]}",
    }
    return tuple(said[language] for language in languages)


def parse(caption: str) -> dict[str, str]:
    """The part of a record that a caption states; words it does not know are passed over."""
    scene = parse_caption(caption)
    if scene is None:
        return {}
    colour, shape = scene.names[0].split()
    record = {"shape": shape, "colour": colour, "place": scene.objects[0].place}
    record["background"] = scene.background
    return {k: v for k, v in record.items() if v is not None}


def parse_caption(caption: str) -> Scene | None:
    """What a caption in either language states, or None if it names no coloured shape."""
    return parse_scene(caption, LEXICON)


def scene_of(record: dict[str, str]) -> Scene:
    """A shapes record in the form that all captions share."""
    thing = SceneObject(name=f"{record['colour']} {record['shape']}", place=record["place"])
    return Scene(objects=(thing,), background=record["background"])


def draw(record: dict[str, str], size: int, rng: np.random.Generator | None) -> np.ndarray:
    """The picture (size, size, 3) uint8, antialiased by 4x oversampling; rng None: no jitter."""
    fine = 4 * size
    y, x = (np.mgrid[0:fine, 0:fine] + 0.5) / fine
    jitter = 0 if rng is None else rng.uniform(-0.03, 0.03, 2)
    cx, cy = np.array(PLACES[record["place"]][1]) + jitter
    inside = _mask(record["shape"], x - cx, y - cy, 0.22)
    mask = inside.reshape(size, 4, size, 4).mean((1, 3))[..., None]
    front, back = (np.array(COLOURS[record[k]][1], float) for k in ("colour", "background"))
    return (mask * front + (1 - mask) * back).round().astype(np.uint8)


def _mask(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    if shape == "square":
        inside = np.maximum(abs(x), abs(y)) < 0.9 * r
    elif shape == "triangle":
        inside = (y < 0.8 * r) & (y > 2 * abs(x) - r)
    elif shape == "cross":
        inside = (np.minimum(abs(x), abs(y)) < 0.3 * r) & (np.maximum(abs(x), abs(y)) < r)
    else:
        distance = np.hypot(x, y)
        inside = (distance < r) & (distance > (0.55 * r if shape == "ring" else -1))
    return inside.astype(float)
