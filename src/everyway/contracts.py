"""The few types that everything else speaks: what flows between the five nouns.

    train   raw -codec.encode-> x0 -process.corrupt(t)-> x_t -network-> out -process.loss-> losses
    sample  prior -loop[queries -> network -> process.to_clean -> guidance -> kernel(t->s)]-> x0
            x0 -codec.decode-> raw

A *modality* is a named stream that can be a diffusing state ("image", "image_embed", "text").  Its
*clock* is the name of the time it follows; several modalities may share one clock.  Time runs from
0 (clean data) to 1 (the schedule's terminal law) and is float64 everywhere outside a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

Bundle = dict[str, Tensor]
"""modality -> tensor (B, ...); a plain dict is the only container of states."""

Times = dict[str, Tensor]
"""clock -> (B,) float64 in [0, 1]; 0 is exactly clean, 1 is the terminal law ("absent")."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """What a network is told without a process: encoder outputs, or a class label as one token.

    tokens: (B, N, D) float states, all of which may be attended to, or (B,) int64 class labels.
    """

    tokens: Tensor


Contexts = dict[str, Context]


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """One question to the denoiser: states at their times, under a context.

    keep: the modalities whose clean estimate is wanted in the answer.
    """

    states: Bundle
    times: Times
    contexts: Contexts = field(default_factory=dict)
    keep: tuple[str, ...] = ()


Denoise = Callable[[Sequence[Query]], list[Bundle]]
"""Queries -> clean estimates (kept modalities only), batched or one by one as suits the device."""


class Noise(Protocol):
    """Where randomness comes from.  `name` says what it is for; the first axis is the batch."""

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 draws of `shape` (B, ...)."""
        ...

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform float32 draws in [0, 1) of `shape` (B, ...)."""
        ...

    def choose(self, name: str, weights: Tensor, counts: Tensor) -> Tensor:
        """counts (B,) places a row of weights (B, L), without replacement: (B, L) bool."""
        ...


class Process(Protocol):
    """How one modality is corrupted, and what a network's raw output says about the clean state."""

    def draw(self, noise: Noise, name: str, shape: tuple[int, ...]) -> Tensor:
        """The randomness one corruption of a state of `shape` consumes."""
        ...

    def prior(self, draw: Tensor) -> Tensor:
        """The state at t = 1, from `draw`."""
        ...

    def corrupt(self, x0: Tensor, draw: Tensor, t: Tensor) -> Tensor:
        """x_t from clean x0 (B, ...), `draw` as from `draw()`, t (B,) float64.  t = 0 gives x0."""
        ...

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network is shown of x_t, in its shape."""
        ...

    def to_clean(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean estimate that the raw network output means, in float32 or better."""
        ...

    def combine(self, conditional: Tensor, unconditional: Tensor, w: Tensor) -> Tensor:
        """Two clean estimates guided with weight w (B,); w = 1 gives the conditional one."""
        ...

    def loss(self, raw: Tensor, x0: Tensor, draw: Tensor, t: Tensor) -> Tensor:
        """Per-sample training loss (B,) float32, meaned over the state's elements."""
        ...


class Codec(Protocol):
    """Between raw data and a state.  Frozen while a system trains."""

    def encode(self, raw: Any) -> Tensor: ...

    def decode(self, state: Tensor) -> Any: ...


def expand_times(t: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1) with the rank of `like`, keeping float64."""
    return t.to(torch.float64).reshape(-1, *([1] * (like.ndim - 1)))
