"""Everything is a token: a network's input is an ordered layout of streams, and that is its config.

Times, labels and contexts are only read; sequences, vectors and patches are states, so they have an
embedding on the way in and a head on the way out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from everyway.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class TimeToken:
    """One token of the time of `clock`."""

    clock: str
    length: int = 1


@dataclass(frozen=True, kw_only=True)
class Label:
    """One token for a class label, a context of int64 (B,) named `name`."""

    name: str
    classes: int
    length: int = 1


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One token for a setting with few values, a context or `default`.

    Its position is a table of its own, spliced into the others.
    """

    name: str
    values: int
    default: int
    length: int = 1


@dataclass(frozen=True, kw_only=True)
class ContextTokens:
    """`length` context tokens of width `dim`.  null: with learned ones that tell nothing."""

    name: str
    length: int
    dim: int
    null: bool = False


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """A state (B, length, dim), a token an entry."""

    name: str
    length: int
    dim: int


@dataclass(frozen=True, kw_only=True)
class Vector:
    """A state (B, 1, dim), one token."""

    name: str
    dim: int
    length: int = 1


@dataclass(frozen=True, kw_only=True)
class Patches:
    """A state (B, channels, size, size), a token a patch of patch x patch, row-major."""

    name: str
    channels: int
    size: int
    patch: int

    def __post_init__(self) -> None:
        if self.patch < 1 or self.size % self.patch:
            raise UsageError(f"patch is {self.patch}; it must divide {self.size}, the state's side")

    @property
    def side(self) -> int:
        return self.size // self.patch

    @property
    def length(self) -> int:
        return self.side**2


@dataclass(frozen=True, kw_only=True)
class Ids:
    """A state (B, side^2) of int64 codes 0..K, K = `codes` the mask: a token each, row by row.

    Its output is logits (B, side^2, K): a clean token is never the mask.
    """

    name: str
    side: int
    codes: int

    @property
    def length(self) -> int:
        return self.side**2


Stream = TimeToken | Label | Flag | ContextTokens | Sequence | Vector | Patches | Ids
TokenLayout = tuple[Stream, ...]
KINDS = {
    k.__name__: k for k in (TimeToken, Label, Flag, ContextTokens, Sequence, Vector, Patches, Ids)
}
STATES = (Sequence, Vector, Patches, Ids)


def embedder(stream: Stream, dim: int) -> nn.Module | None:
    """The input layer of a stream; times need none here."""
    match stream:
        case Label(classes=n) | Flag(values=n):
            return nn.Embedding(n, dim)
        case Ids(codes=n):
            return nn.Embedding(n + 1, dim)
        case ContextTokens(dim=width) | Sequence(dim=width) | Vector(dim=width):
            return nn.Linear(width, dim)
        case Patches(channels=c, patch=p):
            return nn.Conv2d(c, dim, p, stride=p)
    return None


def head(stream: Stream, dim: int) -> nn.Module | None:
    """The output layer of a state stream."""
    match stream:
        case Sequence(dim=width) | Vector(dim=width):
            return nn.Linear(dim, width)
        case Patches(channels=c, patch=p):
            return nn.Linear(dim, p * p * c)
        case Ids(codes=n):
            return nn.Linear(dim, n)
    return None


def unpatchify(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """(B, height * width, p * p * C), each ordered (row, column, channel) -> (B, C, H, W)."""
    grid = tokens.unflatten(-1, (patch, patch, -1)).unflatten(1, (height, width))
    return torch.einsum("bhwpqc->bchpwq", grid).flatten(4).flatten(2, 3)  # (B, C, H, W)
