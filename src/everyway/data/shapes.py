"""Coloured shapes with captions in English and Korean: always at hand, no dependency, endless."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from everyway.data.sample import Sample

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


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Sample i is a function of (seed, i) alone.  size: side of the square pictures in pixels."""

    seed: int = 0
    size: int = 32

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

    def sample(self, index: int) -> Sample:
        record = self.record(index)
        return Sample(
            image=draw(record, self.size, np.random.default_rng((self.seed, index, 1))),
            captions=captions(record),
            record=record,
            key=f"shapes-{self.seed}-{index:08d}",
        )


def captions(record: dict[str, str]) -> tuple[str, str]:
    """The caption in English and in Korean."""
    colour, place = COLOURS[record["colour"]][0], PLACES[record["place"]][0]
    background = COLOURS[record["background"]][0]
    english = f"a {record['colour']} {record['shape']} {record['place']} on {record['background']}"
    return english, f"{background} 배경 {place} {colour} {SHAPES[record['shape']]}"


def parse(caption: str) -> dict[str, str]:
    """The record that a caption states; words it does not know are passed over."""
    for record in _records():
        if caption.strip() in captions(record):
            return record
    return {}


def _records():
    for shape in SHAPES:
        for colour in COLOURS:
            for place in PLACES:
                for background in COLOURS:
                    if background != colour:
                        yield dict(shape=shape, colour=colour, place=place, background=background)


def draw(record: dict[str, str], size: int, rng: np.random.Generator) -> np.ndarray:
    """The picture (size, size, 3) uint8, antialiased by 4x oversampling, with a small jitter."""
    fine = 4 * size
    y, x = (np.mgrid[0:fine, 0:fine] + 0.5) / fine
    cx, cy = np.array(PLACES[record["place"]][1]) + rng.uniform(-0.03, 0.03, 2)
    inside = _mask(record["shape"], x - cx, y - cy, 0.22)
    mask = inside.reshape(size, 4, size, 4).mean((1, 3))[..., None]
    front, back = (np.array(COLOURS[record[k]][1], float) for k in ("colour", "background"))
    return (mask * front + (1 - mask) * back).round().astype(np.uint8)


def _mask(shape: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    distance = np.hypot(x, y)
    return {
        "circle": distance < r,
        "square": np.maximum(abs(x), abs(y)) < 0.9 * r,
        "triangle": (y < 0.8 * r) & (y > 2 * abs(x) - r),
        "ring": (distance < r) & (distance > 0.55 * r),
        "cross": (np.minimum(abs(x), abs(y)) < 0.3 * r) & (np.maximum(abs(x), abs(y)) < r),
    }[shape].astype(float)
