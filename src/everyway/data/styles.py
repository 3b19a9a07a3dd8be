"""The scenes of Emoji Lattice in four styles: what a picture shows and how it looks are drawn
apart, so that each can be measured for itself.

| style | what it is |
|---|---|
| flat | the artwork as it is |
| outlined | every object within a white and a black line |
| grey | brightness alone |
| tinted | brightness, from navy to cream |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from PIL import Image, ImageFilter

from everyway.data import emoji
from everyway.data.lattice import OBJECTS, SIDE, Lattice, placed, sprites
from everyway.data.sample import Sample, Scene

LINES = ((5, 0), (3, 255))
"""(window of the widening in pixels, brightness) of an outline's lines, the outer one first."""
NAVY, CREAM = (25, 20, 70), (255, 235, 190)
LUMA = (0.299, 0.587, 0.114)
Change = Callable[[np.ndarray], np.ndarray]


def as_it_is(pixels: np.ndarray) -> np.ndarray:
    return pixels


def outlined(sprite: np.ndarray) -> np.ndarray:
    """A sprite (h, w, 4) uint8, premultiplied, over its own lines."""
    over = np.zeros_like(sprite)
    for window, brightness in LINES:
        wide = Image.fromarray(sprite[..., 3]).filter(ImageFilter.MaxFilter(window))
        alpha = np.asarray(wide).astype(np.uint16)[..., None]
        line = np.concatenate([np.repeat(alpha * brightness // 255, 3, 2), alpha], 2)
        over = _over(line.astype(np.uint8), over)
    return _over(sprite, over)


def _over(top: np.ndarray, under: np.ndarray) -> np.ndarray:
    """One premultiplied picture over the other."""
    through = (255 - top[..., 3:]).astype(np.uint16)
    return np.minimum(top + (through * under + 127) // 255, 255).astype(np.uint8)


def grey(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> the brightness of every pixel, in all channels."""
    return np.repeat(_brightness(picture).round().astype(np.uint8), 3, 2)


def tinted(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> the brightness of every pixel, on a way from navy to cream."""
    dark, light = np.array(NAVY), np.array(CREAM)
    return (dark + _brightness(picture) / 255 * (light - dark)).round().astype(np.uint8)


def _brightness(picture: np.ndarray) -> np.ndarray:
    """(H, W, 1) in [0, 255]."""
    return picture @ np.array(LUMA)[:, None]


@dataclass(frozen=True, kw_only=True)
class Style:
    """What is done to every sprite (h, w, 4), and to the whole picture, pixel by pixel."""

    sprite: Change = as_it_is
    picture: Change = as_it_is


STYLES: dict[str, Style] = {
    "flat": Style(),
    "outlined": Style(sprite=outlined),
    "grey": Style(picture=grey),
    "tinted": Style(picture=tinted),
}


def draw(scene: Scene, style: str, names: tuple[str, ...] = OBJECTS) -> np.ndarray:
    """The picture (96, 96, 3) uint8 of a scene that states everything, in one of STYLES."""
    colour, things = placed(scene)
    canvas = np.empty((SIDE, SIDE, 3), np.uint8)
    canvas[:] = colour
    for key, x, y in things:
        emoji.paste(canvas, STYLES[style].sprite(sprites(names)[key]), (x, y))
    return STYLES[style].picture(canvas)


@dataclass(frozen=True, kw_only=True)
class Styled:
    """The samples of a lattice, each in a style that its own number draws; captions tell the scene
    and nothing of the style, which `Sample.raw` has.

    style: of all samples; "" draws one of `styles` for each.
    """

    scenes: Lattice = field(default_factory=Lattice)
    style: str = ""
    styles: tuple[str, ...] = tuple(STYLES)
    size: ClassVar[int] = SIDE

    @property
    def complete(self) -> float:
        """As of its lattice."""
        return self.scenes.complete

    def __iter__(self) -> Iterator[Sample]:
        index = 0
        while True:
            yield self.sample(index)
            index += 1

    def style_of(self, index: int) -> str:
        drawn = np.random.default_rng((self.scenes.seed, index, 2)).integers(len(self.styles))
        return self.style or self.styles[drawn]

    def scene(self, index: int) -> Scene:
        """As of its lattice."""
        return self.scenes.scene(index)

    def described(self, index: int) -> tuple[Scene, tuple[str, ...]]:
        """As of its lattice."""
        return self.scenes.described(index)

    def sample(self, index: int) -> Sample:
        plain, style = self.scenes.sample(index), self.style_of(index)
        picture = draw(Scene.from_json(plain.record), style, self.scenes.names)
        key = plain.key.replace("lattice", style)
        return replace(plain, image=picture, key=key, raw={"style": style})

    def renderings(self, index: int) -> Mapping[str, np.ndarray]:
        """Scene `index` in every style."""
        scene = self.scenes.scene(index)
        return {style: draw(scene, style, self.scenes.names) for style in STYLES}


@dataclass(frozen=True, kw_only=True)
class WithStyle(Styled):
    """A share of the samples in a style that another picture shows, which `Sample.raw` has as
    "style"; the others are flat, and have None there.

    share: of the samples that come with such a picture, which is of another scene.
    """

    styles: tuple[str, ...] = ("flat", "grey", "tinted")
    share: float = 0.4

    def sample(self, index: int) -> Sample:
        rng = np.random.default_rng((self.scenes.seed, index, 3))
        if rng.random() >= self.share:
            return replace(self.scenes.sample(index), raw={"style": None})
        other = self.scenes.scene(int(rng.integers(2**31)))
        shown = draw(other, self.style_of(index), self.scenes.names)
        return replace(super().sample(index), raw={"style": shown})
