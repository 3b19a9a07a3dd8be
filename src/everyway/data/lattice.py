"""Emoji Lattice: one or two of 64 emoji in the cells of a 3x3 grid, on a plain background.

A world rich in composition and poor in nuisance: 64 objects, two sizes, five places or two
relations and ten backgrounds make 329,000 scenes, all drawn from 128 sprites without jitter, so a
laptop learns in half an hour what the jittered scenes of `data.emoji` ask a GPU for.  The pairs
that those hold out are held out here too.

The sprites lie in the package (`shipped/lattice`), so neither a font nor fontTools is needed; those
of FINE pixels draw the same scenes finer, for super-resolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from everyway.data import emoji
from everyway.data.captions import Lexicon, placeless, plain, some
from everyway.data.reading import parse
from everyway.data.sample import SIZES, Sample, Scene
from everyway.data.scenes import COLOURS, LANGS, Scenes
from everyway.errors import UsageError

CELL, GRID = 32, 3
SIDE = CELL * GRID
"""Of the pictures, in pixels."""
EXTENT = {"small": 20, "large": 32}
"""Longer side of an object in pixels."""
FINE, ACROSS = 48, 8
"""Side of a cell of the same scenes drawn finer, for super-resolution; sprites in a row of its
atlas."""
CELLS = {"left": (1, 0), "right": (1, 2), "top": (0, 1), "bottom": (2, 1), "middle": (1, 1)}
"""Place -> (row, column)."""
SIDES = {"left of": ("left", "right"), "above": ("top", "bottom")}
"""Relation -> the places of the first and the second object: where each would stand alone."""
EXAMPLES = ("fox", "cactus", "rocket", "pizza", "teapot", "penguin")
"""Objects that the examples use; `choose` adds the others."""
OBJECTS = tuple(
    "fox cactus rocket pizza teapot penguin envelope piano bucket magnet camera panda phone "
    "sneaker tooth clock rainbow coffee tiger cherries beer bone coconut bread umbrella globe "
    "dress tangerine train target airplane key chestnut rose pepper hourglass ribbon hat alien "
    "broccoli eggplant avocado mushroom dice lock scissors tractor backpack socks toilet sushi "
    "drum wine volcano cow pill laptop peacock croissant kite caterpillar fire cheese dog".split()
)
LEXICON = Lexicon(
    objects={name: emoji.KOREAN[name] for name in OBJECTS},
    backgrounds=emoji.LEXICON.backgrounds,
    bare=emoji.LEXICON.bare & frozenset(OBJECTS),
)
ATLAS = Path(__file__).parent.parent / "shipped" / "lattice" / "atlas.png"
FINE_ATLAS = ATLAS.with_name("fine.webp")
LATTICES: dict[str, dict[str, Any]] = {
    "lattice": {"partial": True},
    "lattice-whole": {},
    "lattice-open": {"open": True},
    "lattice-246": {"partial": True, "names": emoji.OBJECTS},
    "lattice-fine": {"cell": FINE},
}
"""Name -> settings of a `Lattice`."""
LEAST_COVER = 1 / 3
"""Of its cell, by the artwork of a large object."""


@dataclass(frozen=True, kw_only=True)
class Lattice(Scenes):
    """Sample i is a function of (seed, i) alone.

    partial: every sample has two captions more, which leave some of the scene unsaid.
    open: every sample has two captions more, which leave open where its objects are.
    names: of the objects; others than OBJECTS are drawn from the emoji font.
    cell: side of a cell in pixels, CELL or FINE: the same scenes, 96 or 144 pixels wide.
    """

    single: float = 0.4
    partial: bool = False
    open: bool = False
    names: tuple[str, ...] = OBJECTS
    cell: int = CELL

    def __post_init__(self) -> None:
        super().__post_init__()
        if odd := [name for name in self.names if name not in emoji.OBJECTS]:
            raise UsageError(f"there is no object {odd[0]!r}; data.emoji.OBJECTS has all names")
        if len({*self.names}) < 2:
            raise UsageError("a lattice has two objects or more; give their names")

    @property
    def size(self) -> int:
        """Of the pictures, in pixels."""
        return GRID * self.cell

    @property
    def complete(self) -> float:
        """The share of a sample's captions, at their front, that state everything."""
        return 1 / (1 + self.partial + self.open)

    def _alone(self, rng: np.random.Generator) -> str:
        return self.names[rng.integers(len(self.names), size=2)[0]]  # as it draws a pair

    def sample(self, index: int) -> Sample:
        """A picture with an English and a Korean caption that state everything, then two for each
        of `partial` and `open`, which state the same part of it."""
        scene, captions = self.described(index)
        return Sample(
            image=draw(scene, self.names, self.cell),
            captions=captions,
            record=scene.to_json(),
            key=f"lattice-{self.split}-{self.seed}-{index:08d}",
        )

    def described(self, index: int) -> tuple[Scene, tuple[str, ...]]:
        """The scene and the captions of `sample(index)`, without its picture."""
        stated = [scene := self.scene(index)]
        if self.partial:
            stated.append(some(scene, np.random.default_rng((self.seed, index, 1))))
        if self.open:
            stated.append(placeless(scene))
        said = (plain(part, emoji.LEXICON, lang) for part in stated for lang in LANGS)
        return scene, tuple(said)

    def placed(self, scene: Scene, index: int = 0) -> emoji.Placed:
        """What a picture is put together from."""
        return placed(scene, self.cell)

    def sprites(self) -> dict[tuple[str, str], np.ndarray]:
        """(name, size) -> sprite, of all that `placed` may name."""
        return sprites(self.names, self.cell)


def draw(scene: Scene, names: tuple[str, ...] = OBJECTS, cell: int = CELL) -> np.ndarray:
    """The picture (3 cell, 3 cell, 3) uint8 of a scene that states everything."""
    colour, things = placed(scene, cell)
    canvas = np.empty((GRID * cell, GRID * cell, 3), np.uint8)
    canvas[:] = colour
    for key, x, y in things:
        emoji.paste(canvas, sprites(names, cell)[key], (x, y))
    return canvas


def placed(scene: Scene, cell: int = CELL) -> emoji.Placed:
    """The parts of the picture of a scene that states everything."""
    scene = scene.canonical()
    places = SIDES[scene.relation] if scene.relation else (scene.objects[0].place,)
    things = []
    for thing, place in zip(scene.objects, places, strict=True):
        row, column = CELLS[place]
        things.append(((thing.name, thing.size), column * cell, row * cell))
    return np.array(COLOURS[scene.background]), things


@cache
def sprites(
    names: tuple[str, ...] = OBJECTS, cell: int = CELL
) -> dict[tuple[str, str], np.ndarray]:
    """(name, size) -> its cell, (cell, cell, 4) uint8 with premultiplied alpha.

    Raises UsageError for a cell that is neither CELL nor FINE.
    """
    if cell not in (CELL, FINE):
        raise UsageError(f"cell is {cell}; the sprites are of {CELL} and {FINE} pixels")
    if names != OBJECTS:
        return {(name, size): _centred(name, size, None, cell) for name in names for size in SIZES}
    if cell == FINE:
        return _fine()
    sheet = np.asarray(Image.open(ATLAS))
    return {
        (name, size): sheet[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
        for column, name in enumerate(OBJECTS)
        for row, size in enumerate(SIZES)
    }


def _fine() -> dict[tuple[str, str], np.ndarray]:
    """The sprites of FINE pixels; small objects are large ones made smaller."""
    sheet, made = np.asarray(Image.open(FINE_ATLAS)), {}
    extent = _extent("small", FINE)
    for number, name in enumerate(OBJECTS):
        large = _fine_cell(sheet, number)
        small = Image.fromarray(large, "RGBa").resize((extent, extent), Image.Resampling.LANCZOS)
        made[name, "large"] = large
        made[name, "small"] = _in_middle(np.asarray(small), FINE)
    return made


def parse_caption(text: str) -> Scene | None:
    """What a caption in either language states, or None if it names no object."""
    return parse(text, LEXICON)


def atlas(font: str | None = None) -> Image.Image:
    """The sprites drawn anew from the emoji font, a column an object and a row a size."""
    sheet = np.zeros((len(SIZES) * CELL, len(OBJECTS) * CELL, 4), np.uint8)
    for column, name in enumerate(OBJECTS):
        for row, size in enumerate(SIZES):
            cell = sheet[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            cell[:] = _centred(name, size, font)
    return Image.fromarray(sheet, "RGBA")


def fine_atlas(font: str | None = None) -> Image.Image:
    """The large sprites of FINE pixels drawn anew from the emoji font, ACROSS in a row."""
    sheet = np.zeros((len(OBJECTS) // ACROSS * FINE, ACROSS * FINE, 4), np.uint8)
    for number, name in enumerate(OBJECTS):
        _fine_cell(sheet, number)[:] = _centred(name, "large", font, FINE)
    return Image.fromarray(sheet, "RGBA")


def _fine_cell(sheet: np.ndarray, number: int) -> np.ndarray:
    """An object's part of the fine atlas."""
    row, column = divmod(number, ACROSS)
    return sheet[row * FINE : (row + 1) * FINE, column * FINE : (column + 1) * FINE]


def choose(count: int = len(OBJECTS), font: str | None = None) -> tuple[str, ...]:
    """The rule that chose OBJECTS: names of one word in both languages whose artwork covers a third
    of its cell; after the examples always the one that differs most from all chosen before, by
    8x8 pixels on white, black and green.
    """
    names = [
        name
        for name in emoji.OBJECTS
        if " " not in name + emoji.KOREAN[name]
        and (_centred(name, "large", font)[..., 3] > 127).mean() >= LEAST_COVER
    ]
    looks = np.stack([_look(name, font) for name in names])
    chosen = [names.index(name) for name in EXAMPLES]
    while len(chosen) < count:
        apart = np.square(looks[:, None] - looks[chosen]).mean(-1).min(1)
        chosen.append(int(apart.argmax()))
    return tuple(names[i] for i in chosen)


def _centred(name: str, size: str, font: str | None, cell: int = CELL) -> np.ndarray:
    """(cell, cell, 4) uint8, premultiplied."""
    return _in_middle(emoji.sprite(name, _extent(size, cell), font), cell)


def _extent(size: str, cell: int) -> int:
    """Longer side of an object in a cell of `cell` pixels."""
    return EXTENT[size] * cell // CELL


def _in_middle(sprite: np.ndarray, side: int) -> np.ndarray:
    """A sprite in the middle of a clear cell (side, side, 4)."""
    cell = np.zeros((side, side, 4), np.uint8)
    top, left = (side - sprite.shape[0]) // 2, (side - sprite.shape[1]) // 2
    cell[top : top + sprite.shape[0], left : left + sprite.shape[1]] = sprite
    return cell


def _look(name: str, font: str | None) -> np.ndarray:
    parts = []
    for background in ("white", "black", "green"):
        canvas = np.full((CELL, CELL, 3), COLOURS[background], np.uint8)
        emoji.paste(canvas, _centred(name, "large", font), (0, 0))
        small = Image.fromarray(canvas).resize((8, 8), Image.Resampling.BOX)
        parts.append(np.asarray(small, np.float64).ravel())
    return np.concatenate(parts)
