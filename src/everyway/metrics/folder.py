"""What a picture of somebody's own data shows: the picture of the folder that is nearest, and what
a caption says: the captions that are nearest.  Nothing is asked that the folder does not say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from PIL import Image

from everyway.data.sample import Sample

SIDE = 16
"""Pixels, of thumbnails that are compared."""
Numbers = frozenset[int]
"""Of pictures, by their place among the samples."""


def nearest(pictures: Sequence[Image.Image], samples: Sequence[Sample]) -> list[int]:
    """For each picture the sample whose thumbnail is at the least squared distance."""
    own = np.stack([_thumbnail(Image.fromarray(sample.image)) for sample in samples])
    return [int(np.square(own - _thumbnail(p)).mean((1, 2, 3)).argmin()) for p in pictures]


def crispness(pictures: Sequence[Image.Image], samples: Sequence[Sample]) -> list[float]:
    """PSNR in dB of each picture to the sample that it is nearest to, in the picture's size."""
    return [
        _psnr(picture.convert("RGB"), Image.fromarray(samples[k].image).resize(picture.size))
        for picture, k in zip(pictures, nearest(pictures, samples))
    ]


def named(text: str, samples: Sequence[Sample]) -> Numbers:
    """The samples with a caption that shares most words with a text; none if none shares any."""
    words = _words(text)
    shares = [max((_shared(words, _words(c)) for c in s.captions), default=0) for s in samples]
    best = max(shares)
    return frozenset(k for k, share in enumerate(shares) if share == best > 0)


def score(said: Numbers, seen: int | None) -> dict[str, bool]:
    """Whether the picture that was seen is one of those that were said."""
    return {"picture": seen in said}


def _thumbnail(picture: Image.Image) -> np.ndarray:
    """(SIDE, SIDE, 3) in [0, 1]."""
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float64) / 255


def _psnr(a: Image.Image, b: Image.Image) -> float:
    error = np.square((np.asarray(a, np.float64) - np.asarray(b)) / 255).mean()
    return float(-10 * np.log10(max(error, 1e-10)))


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))


def _shared(a: Counter[str], b: Counter[str]) -> float:
    """F1: twice the words that both have, over the words of both."""
    both = a.total() + b.total()
    return 2 * (a & b).total() / both if both else 0.0
