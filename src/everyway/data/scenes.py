"""What every built-in world of one or two objects shares: which scene has which number, and which
pairs of objects are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from everyway.data.sample import PLACES, RELATIONS, SIZES, Sample, Scene, SceneObject
from everyway.errors import UsageError

COLOURS = {
    "red": (208, 46, 48),
    "orange": (240, 138, 44),
    "yellow": (247, 214, 84),
    "green": (84, 174, 92),
    "blue": (72, 126, 224),
    "purple": (138, 80, 188),
    "pink": (246, 170, 200),
    "white": (247, 247, 247),
    "gray": (148, 152, 158),
    "black": (34, 34, 38),
}
BACKGROUNDS = tuple(COLOURS)
LANGS = ("en", "ko")


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Scene i is a function of (seed, i) alone.  A world of them says which `names` objects have.

    split: "train" never holds a held-out pair, "heldout" has no other pairs.  count: 1 or 2 objects
    in every scene; None draws, 1 with the probability `single`.
    Raises UsageError for settings that no scene has.
    """

    seed: int = 0
    split: str = "train"
    count: int | None = None
    single: float = 0.5

    def __post_init__(self) -> None:
        if self.split not in ("train", "heldout"):
            raise UsageError(f"split {self.split!r} is unknown; choose train or heldout")
        if self.count not in (None, 1, 2):
            raise UsageError(f"count is {self.count!r}; choose 1, 2 or None")
        self._check_share("single")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; choose 0 or more")

    def __iter__(self) -> Iterator[Sample]:
        index = 0
        while True:
            yield self.sample(index)
            index += 1

    def sample(self, index: int) -> Sample:
        """The picture of scene `index` and its captions."""
        raise NotImplementedError

    def scene(self, index: int) -> Scene:
        """The whole ground truth of scene `index`, left or upper object first."""
        rng = np.random.default_rng((self.seed, index, 0))
        count = self.count or (1 if rng.random() < self.single else 2)
        background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
        sizes = [SIZES[i] for i in rng.integers(2, size=2)]
        if count == 1:
            name, place = self._alone(rng), PLACES[rng.integers(len(PLACES))]
            only = SceneObject(name=name, size=sizes[0], place=place)
            return Scene(objects=(only,), background=background)
        pair = zip(self._pair(rng), sizes)
        objects = tuple(SceneObject(name=name, size=size) for name, size in pair)
        return Scene(objects=objects, relation=RELATIONS[rng.integers(2)], background=background)

    def _alone(self, rng: np.random.Generator) -> str:
        return self.names[rng.integers(len(self.names))]

    def _pair(self, rng: np.random.Generator) -> tuple[str, str]:
        """Two objects that differ, of the split."""
        while True:
            a, b = (self.names[i] for i in rng.integers(len(self.names), size=2))
            if a != b and heldout_pair(a, b) == (self.split == "heldout"):
                return a, b

    def _check_share(self, name: str) -> None:
        if not 0 <= getattr(self, name) <= 1:
            raise UsageError(f"{name} is {getattr(self, name)}; choose a share, 0 to 1")


@cache
def heldout_pair(a: str, b: str) -> bool:
    """Whether the unordered pair of objects is one of every ten that are never trained on."""
    digest = hashlib.sha256("|".join(sorted((a, b))).encode()).digest()
    return int.from_bytes(digest[:4], "big") % 10 == 0
