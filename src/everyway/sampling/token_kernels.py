"""How tokens move: the steps of a run of tokens alone, one step of a token modality, truncation.

`ancestral` draws from the posterior.  `purity` writes few positions a call, drawn by how sure the
network is of them; what it has written it does not touch again until the last step, which draws
from the posterior.
Sources: Gu et al., 2021, arXiv 2111.14822; Tang et al., 2022, arXiv 2205.16007.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from everyway.contracts import Bundle, Denoise, Noise, Query
from everyway.errors import UsageError
from everyway.process.mask_replace import FLOOR, MaskReplace, sample
from everyway.process.times import Step

LayTokenSteps = Callable[[MaskReplace, int, int, float], tuple[Step, ...]]
"""(process, steps, masked tokens at the start, t_start) -> the steps of a run of tokens alone."""

TokenKernel = Callable[[MaskReplace, Tensor, Tensor, Step, Noise, str], Tensor]
"""(process, x_t (B, L), clean estimate (B, L, K + 1), step, noise, name) -> x_s (B, L)."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What a sampler does to token modalities."""

    lay_steps: LayTokenSteps
    kernel: TokenKernel


# -- ancestral ------------------------------------------------------------------------------------


def stride_steps(process: MaskReplace, steps: int, masked: int, t_start: float) -> tuple[Step, ...]:
    """`steps` steps of the process, as equal as they can be, from t_start to 0."""
    times = _process_times(process, steps, t_start)
    return tuple(Step(t, s) for t, s in zip(times, times[1:]))


def ancestral(
    process: MaskReplace, x_t: Tensor, clean: Tensor, step: Step, noise: Noise, name: str
) -> Tensor:
    """x_s from the exact posterior p(x_s | x_t), however wide the step is."""
    t, s = (torch.full((len(x_t),), end, dtype=torch.float64) for end in (step.t, step.s))
    distribution = process.posterior(clean, x_t, t.to(x_t.device), s.to(x_t.device))
    return sample(distribution, process.draw(noise, name, tuple(x_t.shape)).to(distribution))


ANCESTRAL = Tokens(lay_steps=stride_steps, kernel=ancestral)


# -- the published fast sampler --------------------------------------------------------------------


def leap_steps(process: MaskReplace, steps: int, masked: int, t_start: float) -> tuple[Step, ...]:
    """Equal leaps of ceil(T / steps) steps of the process, then what is left as one step and a
    last.

    What is left is asked at its own time, moved by a single step, and asked again just above 0.
    """
    total, leap = process.steps, math.ceil(process.steps / steps)
    n = round(total * t_start)
    made = []
    while n > leap:
        made.append(Step(n / total, (n - leap) / total))
        n -= leap
    if n > 1:
        made.append(Step(n / total, (n - 1) / total))
    return (*made, Step(1 / total, 0.0))


def leap(
    process: MaskReplace, x_t: Tensor, clean: Tensor, step: Step, noise: Noise, name: str
) -> Tensor:
    """As published: x_t is taken as if it stood one step of the process above s.

    Not the exact posterior of a wide step, which `ancestral` draws from at the same cost.
    """
    near = Step(step.s + 1 / process.steps, step.s)
    return ancestral(process, x_t, clean, near, noise, name)


LEAPS = Tokens(lay_steps=leap_steps, kernel=leap)


# -- purity ---------------------------------------------------------------------------------------

RELEASED_RATES = {100: (31 / 3, 0.0), 50: (41 / 2, 10.0), 25: (41.0, 21.0), 10: (102.0, 69.0)}
"""steps -> (tokens a step, tokens left to the last step) of the released tables, of 1024 tokens."""


def token_counts(tokens: int, steps: int, a_call: int | None = None) -> tuple[int, ...]:
    """Tokens to write at the papers' indices 0..steps-1; what 0 has is left to the posterior.

    One rule for every length: below index i >= 1 there are still round(left + rate (i - 1)) masked
    tokens, and all of them below `steps`.  With RELEASED_RATES, scaled to the length, this yields
    every released table; elsewhere rate = tokens / steps, and half as many are left.  The
    released table for at most 10 tokens a call leaves 4 fewer.

    Of 16 tokens in 4 steps, the first (index 3) writes 6, the next two 4 each, and the posterior
    the last 2: (2, 4, 4, 6).
    """
    if steps in RELEASED_RATES:
        rate, left = (value * tokens / 1024 for value in RELEASED_RATES[steps])
        if steps == 100 and a_call is not None and a_call <= 10:
            left -= 4 * tokens / 1024
    else:
        rate, left = tokens / steps, tokens / steps / 2
    below = [max(0, math.floor(left + rate * (i - 1) + 0.5)) for i in range(1, steps)]
    below = [min(n, tokens) for n in below] + [tokens]
    return below[0], *(b - a for a, b in zip(below, below[1:]))


def calls(tokens_now: int, a_call: int | None) -> list[int]:
    """A step's tokens in network calls of at most `a_call` tokens; never one token alone."""
    made: list[int] = []
    while (rest := tokens_now - sum(made)) > 0:
        count = rest if a_call is None else min(rest, a_call)
        made.append(rest if rest - count == 1 else count)
    return made


def purity(weight: float = 1.0, tokens_a_call: int | None = None, by_purity: bool = True) -> Tokens:
    """Purity sampling.

    weight: how much a sure position's distribution is sharpened, 0 is not at all.
    tokens_a_call: at most so many positions are written a network call, for quality; None: no cap.
    by_purity: False chooses positions at random.
    """
    if weight < 0:
        raise UsageError(f"purity weight {weight:g} must be 0 or more")
    if tokens_a_call is not None and tokens_a_call < 1:
        raise UsageError(f"tokens a step {tokens_a_call} must be 1 or more")

    def lay_steps(
        process: MaskReplace, steps: int, masked: int, t_start: float
    ) -> tuple[Step, ...]:
        times = _process_times(process, steps, t_start)
        still, made = masked, []  # how many are masked before the next call
        falling = reversed(token_counts(masked, steps, tokens_a_call))
        for t, s, tokens_now in zip(times[:-2], times[1:-1], falling):
            counts = calls(tokens_now, tokens_a_call)
            for number, count in enumerate(counts, 1):
                end = s if number == len(counts) else t
                made.append(Step(t, end, share=count / still))
                still -= count
        return (*made, Step(times[-2], 0.0))

    def kernel(
        process: MaskReplace, x_t: Tensor, clean: Tensor, step: Step, noise: Noise, name: str
    ) -> Tensor:
        if step.s == 0:
            return ancestral(process, x_t, clean, step, noise, name)
        masked = x_t == process.mask
        sure = relative_purity(clean) if by_purity else torch.ones_like(clean[..., 0])
        distribution = sharpened(clean, sure, weight) if by_purity and weight else clean
        drawn = sample(distribution, process.draw(noise, name, tuple(x_t.shape)).to(distribution))
        counts = (masked.sum(1) * _share(process, step)).round().long()
        chosen = noise.choose(f"{name}:place", torch.where(masked, sure, 0.0), counts)
        return torch.where(chosen.to(x_t.device), drawn, x_t)

    return Tokens(lay_steps=lay_steps, kernel=kernel)


def relative_purity(clean: Tensor) -> Tensor:
    """(B, L): the chance of the likeliest token at a position, over the sample's largest."""
    sure = clean.amax(-1).exp().clamp(0, 1)
    return sure / (sure.amax(1, keepdim=True) + 1e-10)


def sharpened(clean: Tensor, sure: Tensor, weight: float) -> Tensor:
    """log softmax of (1 + weight * purity) log p, as in the published code."""
    return ((1 + weight * sure)[..., None] * clean).softmax(-1).log().clamp(FLOOR, 0)


def _share(process: MaskReplace, step: Step) -> float:
    """Of the masked tokens, the share that this step writes: the process's own by default."""
    if step.share is not None:
        return step.share
    ends = torch.tensor([step.t, step.s], dtype=torch.float64)
    t, s = process.cumulative(ends)[2].tolist()
    return 1 - s / t


def _process_times(process: MaskReplace, steps: int, t_start: float) -> list[float]:
    """steps + 1 falling times of the process, from t_start to 0."""
    start = round(process.steps * t_start)
    if not 1 <= steps <= start:
        raise UsageError(f"steps must be from 1 to {start}, the process's own, got {steps}")
    return [math.floor(start * k / steps + 0.5) / process.steps for k in range(steps, -1, -1)]


# -- truncation -----------------------------------------------------------------------------------


EDGE = 1e-6
"""Mass this near to the rate has reached it: more than the last bits of float32 estimates move."""


def truncate(log_p: Tensor, rate: float) -> Tensor:
    """The fewest of the likeliest classes that hold `rate` of the mass; the others fall to FLOOR.

    A class is kept where the mass of those before it is below rate - EDGE, summed in float64 as a
    share of the whole, so that the last bit of a processor decides nothing.  The likeliest class is
    always kept; of equal classes the first comes first; rate 1 keeps every class.
    What is kept is not normalised again.  log_p (..., C).  Source: Tang et al., 2022, whose
    released code this follows, except at rate 1, where that code drops what float32 cannot add.
    """
    if rate == 1:
        return log_p
    ordered, order = log_p.sort(dim=-1, descending=True, stable=True)
    share = ordered.double().softmax(-1)
    kept = share.cumsum(-1) - share < rate - EDGE
    kept[..., 0] = True
    return torch.where(kept.gather(-1, order.argsort(-1)), log_p, FLOOR)


@dataclass(frozen=True, kw_only=True, eq=False)
class Truncated:
    """A contracts.Denoise whose estimates are truncated; wrap the guided one.

    rates: modality -> mass kept, in (0, 1].
    """

    denoise: Denoise
    rates: Mapping[str, float]

    def __post_init__(self) -> None:
        for name, rate in self.rates.items():
            if not 0 < rate <= 1:
                raise UsageError(f"truncation of {name!r} is {rate:g}; it must be in (0, 1]")

    def forwards(self, query: Query) -> int:
        """How many network forwards the answer to `query` costs."""
        return getattr(self.denoise, "forwards", lambda query: 1)(query)

    def __call__(self, queries: Sequence[Query]) -> list[Bundle]:
        return [
            {k: truncate(v, self.rates[k]) if k in self.rates else v for k, v in answer.items()}
            for answer in self.denoise(queries)
        ]
