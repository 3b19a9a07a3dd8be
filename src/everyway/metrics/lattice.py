"""What a picture of Emoji Lattice shows: the nearest of all its renderings, which is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from everyway.data.emoji import paste
from everyway.data.lattice import CELL, CELLS, GRID, OBJECTS, SIDE, SIDES, sprites
from everyway.data.sample import SIZES, Scene, SceneObject
from everyway.data.scenes import BACKGROUNDS, COLOURS
from everyway.data.styles import STYLES

Picture = Image.Image | np.ndarray


def read(images: Sequence[Picture], names: tuple[str, ...] = OBJECTS) -> list[Scene]:
    """The scene that each picture shows.  images: RGB, any size.  names: of all objects."""
    return [nearest(image, names)[0] for image in images]


def crispness(images: Sequence[Picture], names: tuple[str, ...] = OBJECTS) -> list[float]:
    """PSNR in dB of each picture to the nearest rendering; an average of scenes is far from all."""
    return [nearest(image, names)[1] for image in images]


@dataclass(frozen=True, kw_only=True)
class Styled:
    """What a picture shows, in which of STYLES, and the PSNR in dB to that rendering."""

    scene: Scene
    style: str
    db: float


def styled(images: Sequence[Picture], names: tuple[str, ...] = OBJECTS) -> list[Styled]:
    """Of each picture the nearest of all renderings in all styles."""
    return [_in_a_style(image, names) for image in images]


def _in_a_style(image: Picture, names: tuple[str, ...]) -> Styled:
    found = {style: nearest(image, names, style) for style in STYLES}
    style = max(found, key=lambda each: found[each][1])
    return Styled(scene=found[style][0], style=style, db=found[style][1])


def nearest(
    image: Picture, names: tuple[str, ...] = OBJECTS, style: str = "flat"
) -> tuple[Scene, float]:
    """The scene whose rendering is at the least squared distance, and the PSNR to it in dB."""
    empty, things = _errors(image, names, style)
    rest = empty.sum(0)  # (grounds,)
    gain = things - empty[..., None, None]  # of an object in place of an empty cell
    found = []
    for place in CELLS:
        at = gain[_cell(place)].flatten(1)  # (grounds, names x sizes)
        found.append((rest[:, None] + at, (place,)))
    for places in SIDES.values():
        a, b = (gain[_cell(place)].flatten(1) for place in places)
        same = torch.eye(len(names), dtype=torch.bool).repeat_interleave(len(SIZES), 0)
        pairs = a[:, :, None] + b[:, None, :]  # two objects of one scene differ
        pairs.masked_fill_(same.repeat_interleave(len(SIZES), 1), torch.inf)
        found.append((rest[:, None] + pairs.flatten(1), places))
    total, places = min(found, key=lambda each: float(each[0].min()))
    error = float(total.min()) / (3 * SIDE**2)
    ground, which = divmod(int(total.argmin()), total.shape[1])
    return _scene(which, names, places, BACKGROUNDS[ground]), -10 * np.log10(max(error, 1e-10))


def _scene(which: int, names: tuple[str, ...], places: tuple[str, ...], background: str) -> Scene:
    count = len(names) * len(SIZES)
    kinds = divmod(which, count) if len(places) == 2 else (which,)
    named = [(names[k // len(SIZES)], SIZES[k % len(SIZES)]) for k in kinds]
    if len(named) == 1:
        only = SceneObject(name=named[0][0], size=named[0][1], place=places[0])
        return Scene(objects=(only,), background=background)
    relation = next(r for r, sides in SIDES.items() if sides == places)
    pair = tuple(SceneObject(name=name, size=size) for name, size in named)
    return Scene(objects=pair, relation=relation, background=background)


def _errors(image: Picture, names: tuple[str, ...], style: str) -> tuple[Tensor, Tensor]:
    """Squared errors summed over a cell, of pixels in [0, 1]: of an empty one (cells, grounds), and
    with each object (cells, grounds, names, sizes)."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture = picture.convert("RGB")
    if picture.size != (SIDE, SIDE):
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).double() / 255
    cells = pixels.unfold(0, CELL, CELL).unfold(1, CELL, CELL)  # (3, 3, channels, CELL, CELL)
    cells = cells.movedim(2, -1).flatten(2).flatten(0, 1)
    templates, sizes = _templates(names, style)
    errors = cells.square().sum(1, keepdim=True) - 2 * cells @ templates.T + sizes
    errors = errors.clamp_min(0).unflatten(1, (len(BACKGROUNDS), -1))
    return errors[..., 0], errors[..., 1:].unflatten(-1, (len(names), len(SIZES)))


@cache
def _templates(names: tuple[str, ...], style: str) -> tuple[Tensor, Tensor]:
    """Every cell there is, an empty one first on each background: (N, 3 CELL^2) float64 in [0, 1],
    and their squared norms (N,)."""
    cells, look = [], STYLES[style]
    things = [look.sprite(sprite) for sprite in sprites(names).values()]
    for background in BACKGROUNDS:
        empty = np.full((CELL, CELL, 3), COLOURS[background], np.uint8)
        cells.append(empty)
        for thing in things:
            cells.append(empty.copy())
            paste(cells[-1], thing, (0, 0))
    cells = [look.picture(cell) for cell in cells]
    table = torch.from_numpy(np.stack(cells)).double().flatten(1) / 255
    return table, table.square().sum(1)


def _cell(place: str) -> int:
    row, column = CELLS[place]
    return row * GRID + column
