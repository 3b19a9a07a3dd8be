"""Paint-with-words: phrases of a prompt are bound to regions of the picture, without any training.

Where a phrase's region is, the scores of the picture's attention to its tokens are raised:

    softmax((Q K^T + w A) / sqrt(d)) V,    w = w' g(sigma) stat(Q K^T),

with A (L, N) the share of place l on which the phrase of token j is painted.  In the paper g is
ln(1 + sigma) and stat the maximum; users of reimplementations prefer ln(1 + sigma^2) and the
standard deviation.  Only the conditional branch of guidance is painted.  In joint attention, which
the paper does not have, the same is added to the scores from the text's tokens to the picture's.
Source: Balaji et al., "eDiff-I: Text-to-Image Diffusion Models with an Ensemble of Expert
Denoisers", 2022, arXiv 2211.01324.

B batch, H heads, P phrases, L places of the picture, N tokens of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from everyway.contracts import Context, Query, register
from everyway.controls.asking import Change
from everyway.data.captions import Point
from everyway.errors import UsageError
from everyway.process.schedules import Schedule
from everyway.system import System
from everyway.tasks import Task

MOST_NOISE = 80.0
"""The sigma at which eDiff-I starts; more, as where no signal is left, counts as so much."""
FEW = 8
"""Places in a row, up to which each is painted as a whole."""
LAID = 5.0
"""Noise at which a picture of few places is laid out; what paint changes below it, in
cross-attention, are the objects themselves (docs/paint-with-words.md)."""
GROWTHS: dict[str, Callable[[Tensor], Tensor]] = {
    "log": torch.log1p,
    "log-square": lambda sigma: torch.log1p(sigma**2),
}
"""Name -> g: how the weight grows with the noise."""
STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": lambda scores: scores.amax((1, 2, 3), keepdim=True),
    "std": lambda scores: scores.std((1, 2, 3), keepdim=True),
    "head-max": lambda scores: scores.amax((2, 3), keepdim=True),
    "head-std": lambda scores: scores.std((2, 3), keepdim=True),
}
"""Name -> stat of one layer's scores (B, H, L, N): over all of a sample's, or those of a head."""
FORMS = {
    "max": {"growth": "log", "statistic": "max"},
    "std": {"growth": "log", "statistic": "std"},
    "max-square": {"growth": "log-square", "statistic": "max"},
    "std-square": {"growth": "log-square", "statistic": "std"},
}
"""Name -> settings of a PaintWeight: the paper's first, then those that users prefer."""


@dataclass(frozen=True, kw_only=True)
class PaintWeight:
    """w = value * growth(sigma) * statistic(Q K^T).

    value: w', 0 is off.  growth: a name in GROWTHS.  statistic: a name in STATISTICS.
    whole: where places are few, each is of a phrase that covers half of it or more, and of no
    other; False, as in the paper, is of each by its share.
    above: the noise down to which words are painted; at this sigma or less none are.
    """

    value: float = 0.4
    growth: str = "log"
    statistic: str = "max"
    whole: bool = False
    above: float = 0.0

    def __post_init__(self) -> None:
        for what, table in (("growth", GROWTHS), ("statistic", STATISTICS)):
            if getattr(self, what) not in table:
                raise UsageError(
                    f"{what} {getattr(self, what)!r} is unknown; choose one of {', '.join(table)}"
                )

    def at(self, sigma: Tensor) -> Tensor:
        """w without its statistic: float32, of sigma's shape."""
        made = self.value * GROWTHS[self.growth](sigma.clamp(max=MOST_NOISE))
        return made.where(sigma > self.above, 0).float()


def cross_paint(side: int) -> dict[str, Any]:
    """Settings of a PaintWeight for cross-attention, where a picture has at most side^2 places."""
    return joint_paint(side) | ({"above": LAID} if side <= FEW else {})


def joint_paint(side: int) -> dict[str, Any]:
    """The same for joint attention."""
    return {"whole": True} if side <= FEW else {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """Phrases of a text, each with where it is painted.

    maps: (P, height, width) in [0, 1].
    phrases: P of them.  strengths: as many; a negative one keeps its phrase out of its region.
    """

    text: str
    maps: Tensor
    phrases: tuple[str, ...]
    strengths: tuple[float, ...]

    def words(self, places: Callable[[str, str], Tensor]) -> Tensor:
        """(P, N): the strength of a phrase as much as token j tells it, else 0.

        places: of a text codec, bool or in [0, 1].  Raises UsageError for a phrase that is not in
        the text.
        """
        found = torch.stack([places(self.text, phrase) for phrase in self.phrases])
        for phrase, where in zip(self.phrases, found):
            if not where.any():
                raise UsageError(
                    f"{phrase!r} is not in {self.text!r:.200}; paint words that the prompt says"
                )
        return found * torch.tensor(self.strengths)[:, None]

    def middles(self) -> dict[str, Point]:
        """Phrase -> the middle of where it is painted; those kept out of their region have none."""
        painted = {phrase: torch.zeros(self.maps.shape[1:]) for phrase in self.phrases}
        for phrase, strength, share in zip(self.phrases, self.strengths, self.maps):
            painted[phrase] += max(strength, 0) * share
        return {phrase: _middle(share) for phrase, share in painted.items() if share.any()}


@dataclass(frozen=True, kw_only=True, eq=False)
class PaintBias:
    """A contracts.ScoreBias: w A / sqrt(d), as scores are divided by sqrt(d) already.

    maps: (B, P, height, width).  words: (B, P, N).  weight: (B,), that of `PaintWeight.at`.
    statistic, whole: of a PaintWeight.  Overlapping phrases add up.
    """

    maps: Tensor
    words: Tensor
    weight: Tensor
    statistic: str
    whole: bool = False

    def __call__(self, scores: Tensor) -> Tensor:
        """(B, H, L, N) -> (B, H or 1, L, N)."""
        size = _grid(scores.shape[2], self.maps.shape[-2:])
        shares = F.adaptive_avg_pool2d(self.maps, size).flatten(2)  # (B, P, L)
        shares = (shares >= 0.5).float() if self.whole else shares
        painted = torch.einsum("bpl,bpn->bln", shares, self.words)[:, None]
        return self.weight[:, None, None, None] * STATISTICS[self.statistic](scores) * painted


register(PaintBias, aside=("statistic", "whole"))


def painting(
    canvases: Sequence[Canvas],
    system: System,
    task: Task,
    weight: PaintWeight = PaintWeight(),
) -> Change:
    """What paints the queries of samples with these canvases.

    Raises UsageError for a phrase that is not in its text, and for a system whose text or picture
    cannot be painted.
    """
    clock, schedule = _picture(system, task)
    maps = pad_sequence([c.maps for c in canvases], batch_first=True)
    words = {
        name: pad_sequence([c.words(places) for c in canvases], batch_first=True)
        for name, places in text_readers(system, task).items()
    }

    def paint(query: Query) -> Query:
        alpha, sigma = schedule.alpha_sigma(query.times[clock])
        now = weight.at(sigma / alpha)
        contexts = dict(query.contexts)
        for name, own in words.items():
            given = contexts.get(name) or Context(tokens=query.states[name])
            on = given.tokens.device
            bias = PaintBias(
                maps=maps.to(on),
                words=own.to(on),
                weight=now.to(on),
                statistic=weight.statistic,
                whole=weight.whole,
            )
            contexts[name] = replace(given, bias=bias)
        return replace(query, contexts=contexts)

    return paint


def _picture(system: System, task: Task) -> tuple[str, Schedule]:
    """The clock of the generated picture, and its schedule."""
    for modality in system.modalities.values():
        if modality.source == "image" and modality.clock in task.generated:
            if modality.process.kernel == "gaussian":
                return modality.clock, modality.process.schedule
    raise UsageError(f"{task.name} of {system.name} draws no picture that can be painted")


def text_readers(system: System, task: Task) -> dict[str, Callable[[str, str], Tensor]]:
    """State or context of a text that the task is given -> what says how much its N tokens tell a
    phrase: (text, phrase) -> (N,), bool or in [0, 1].  Raises UsageError where there is none."""
    given = [m for clock in task.given for m in system.on(clock)]
    given += [system.conditions[name] for name in task.given_contexts]
    codecs = {part.name: part.codec for part in given if part.source == "text"}
    tokens = {
        n: c if hasattr(c, "places") else getattr(c, "tokens", None) for n, c in codecs.items()
    }
    readers = {name: t.places for name, t in tokens.items() if hasattr(t, "places")}
    if not readers:
        raise UsageError(f"{task.name} of {system.name} reads no words that can be painted")
    return readers


def _middle(share: Tensor) -> Point:
    """Of what is painted of (height, width)."""
    down, right = (
        float((share.sum(1 - axis) * (torch.arange(n) + 0.5)).sum() / share.sum() / n)
        for axis, n in enumerate(share.shape)
    )
    return down, right


def _grid(places: int, of: Sequence[int]) -> tuple[int, int]:
    """(rows, columns) of so many places, in the shape of a map."""
    rows = max(1, round((places * of[0] / of[1]) ** 0.5))
    if rows * (places // rows) != places:
        raise ValueError(f"{places} places are no grid in the shape of a map {of[0]}x{of[1]}")
    return rows, places // rows
