"""Codecs without weights: pixels, thumbnails and words.  They make a `nano` model trainable at once
and keep tests free of trained parts; real models use `image_vae`, `encoders` and `text_latent`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from everyway.errors import UsageError

MOST = 40
"""Names of classes in one message."""


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Images (B, 3, H, W) in [-1, 1] as states (B, 3, size, size), scaled by `gain`.

    mode: of resizing, "area" or "bicubic", which is sharper where pictures become little smaller.
    """

    size: int
    gain: float = 1.0
    mode: str = "area"

    def encode(self, raw: Tensor) -> Tensor:
        size, fine = (self.size, self.size), self.mode == "bicubic"
        made = F.interpolate(raw.float(), size=size, mode=self.mode, antialias=fine)
        return self.gain * (made.clamp(-1, 1) if fine else made)

    def decode(self, state: Tensor) -> Tensor:
        return (state / self.gain).clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class AsGiven:
    """Images (B, 3, H, W) in [-1, 1] of any size, as they are."""

    def encode(self, raw: Tensor) -> Tensor:
        return raw.float()

    def decode(self, state: Tensor) -> Tensor:
        return state.clamp(-1, 1)


@dataclass(frozen=True, kw_only=True)
class Thumbnail:
    """Images (B, 3, H, W) in [-1, 1] as one vector (B, 1, 3 side^2): area means, row-major."""

    side: int

    def encode(self, raw: Tensor) -> Tensor:
        return F.interpolate(raw.float(), size=(self.side, self.side), mode="area").flatten(1)[
            :, None
        ]

    def decode(self, state: Tensor) -> Tensor:
        return state.reshape(-1, 3, self.side, self.side)


@dataclass(frozen=True, kw_only=True)
class PatchTokens:
    """Images (B, 3, H, W) in [-1, 1] as tokens (B, (size / patch)^2, 3 patch^2), row by row."""

    size: int
    patch: int

    def encode(self, raw: Tensor, mask: Tensor | None = None) -> Tensor:
        """mask: (B, 1, H, W) in [0, 1], 1 is seen; each token times how much of its patch is."""
        pixels = F.interpolate(raw.float(), size=(self.size, self.size), mode="area")
        tokens = F.unfold(pixels, self.patch, stride=self.patch).transpose(1, 2)
        if mask is None:
            return tokens
        side = self.size // self.patch
        return tokens * F.interpolate(mask, size=(side, side), mode="area").flatten(1)[..., None]

    def decode(self, state: Tensor) -> Tensor:
        size = (self.size, self.size)
        return F.fold(state.transpose(1, 2), size, self.patch, stride=self.patch).clamp(-1, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Words:
    """Sentences as (B, length, dim): a fixed unit-variance vector a word, the nearest word back.

    vocabulary: the known words, without the end mark; an unknown word is a ValueError.
    """

    vocabulary: tuple[str, ...]
    length: int
    dim: int

    @cached_property
    def table(self) -> Tensor:
        """(1 + words, dim); row 0 is the end mark, repeated to the full length."""
        rng = np.random.default_rng(20230312)
        vectors = rng.standard_normal((len(self.vocabulary) + 1, self.dim))
        vectors *= np.sqrt(self.dim) / np.linalg.norm(vectors, axis=1, keepdims=True)
        return torch.from_numpy(vectors.astype(np.float32))

    @cached_property
    def index(self) -> dict[str, int]:
        """Word -> its row of the table."""
        return {word: row for row, word in enumerate(self.vocabulary, 1)}

    def encode(self, raw: Sequence[str]) -> Tensor:
        ids = torch.zeros(len(raw), self.length, dtype=torch.long)
        for row, sentence in enumerate(raw):
            words = re.findall(r"\w+", sentence.lower())
            for column, word in enumerate(words[: self.length]):
                if word not in self.index:
                    raise UsageError(f"this model has never read the word {word!r}")
                ids[row, column] = self.index[word]
        return self.table[ids]

    def places(self, text: str, phrase: str) -> Tensor:
        """(length,) bool, True where `encode` has the words of a phrase of the text."""
        words, wanted = (re.findall(r"\w+", said.lower()) for said in (text, phrase))
        out = torch.zeros(self.length, dtype=torch.bool)
        for start in range(len(words) - len(wanted) + 1):
            if words[start : start + len(wanted)] == wanted:
                out[start : start + len(wanted)] = True
        return out

    def decode(self, state: Tensor) -> list[str]:
        table = self.table.to(state.device)
        ids = (state @ table.T).argmax(-1).tolist()  # equal norms: nearest = largest product
        return [" ".join(self._until_end(row)) for row in ids]

    def _until_end(self, row: list[int]) -> list[str]:
        stop = row.index(0) if 0 in row else len(row)
        return [self.vocabulary[i - 1] for i in row[:stop]]


class Labels:
    """Classes as their numbers, each given by its number or its name.

    names: of the classes in the order of their numbers, if they have any.
    """

    def __init__(self, classes: int, names: Sequence[str] = ()) -> None:
        self.classes, self.names = classes, tuple(names)

    def encode(self, raw: Sequence[int | str]) -> Tensor:
        """(B,) int64.  Raises ValueError for what is no class."""
        return torch.tensor([self._number(given) for given in raw], dtype=torch.long)

    def _number(self, given: int | str) -> int:
        """Of a text that is no name, its digits."""
        if given in self.names:
            return self.names.index(given)
        number = int(given) if str(given).isascii() and str(given).isdigit() else -1
        if 0 <= number < self.classes:
            return number
        known = f"give a number from 0 to {self.classes - 1}"
        if self.names:
            more = f" and {len(self.names) - MOST} more" if len(self.names) > MOST else ""
            known = f"choose one of {', '.join(self.names[:MOST])}{more}"
        raise UsageError(f"class {given} is unknown; {known}")
