"""What a picture of a coloured shape shows: the nearest of all drawn templates.

The set of shapes is small enough to draw every record once; the template at the least mean square
distance names shape, colour, place and background.  Its own accuracy on real pictures stands in
every report.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image

from everyway.data.shapes import COLOURS, PLACES, SHAPES, draw

ATTRIBUTES = ("shape", "colour", "place", "background")
SIDE = 16


@lru_cache(maxsize=1)
def _templates() -> tuple[list[dict[str, str]], np.ndarray]:
    """(records, (R, SIDE * SIDE * 3) float pixels), drawn without jitter."""
    records = [
        {"shape": shape, "colour": colour, "place": place, "background": background}
        for shape in SHAPES
        for colour in COLOURS
        for place in PLACES
        for background in COLOURS
        if background != colour
    ]
    pictures = [draw(record, SIDE, None).reshape(-1) for record in records]
    return records, np.stack(pictures).astype(np.float32)


def read(image: Image.Image | np.ndarray) -> dict[str, str]:
    """The record of the nearest template.  image: any size, RGB."""
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    records, templates = _templates()
    distance = np.square(templates - np.asarray(small, np.float32).reshape(-1)).mean(1)
    return records[int(distance.argmin())]


def score(stated: dict[str, str], seen: dict[str, str]) -> dict[str, bool]:
    """attribute -> right or wrong, for the attributes that are stated."""
    return {a: stated[a] == seen.get(a) for a in ATTRIBUTES if a in stated}
