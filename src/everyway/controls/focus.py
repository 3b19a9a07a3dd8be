"""Focus: how much of a picture's embedding is its style, and how much what it shows.

Of the local tokens, a patch each, the leading principal components carry the style and those after
them the semantics; the global tokens before them carry the layout and stay as they are.  Style
focus keeps the leading components, semantic focus takes them away.
Source: Xu et al., "Versatile Diffusion: Text, Images and Variations All in One Diffusion Model",
2022, arXiv 2211.08332; how strong each component is at every focus, as their released code has it.
"""

from __future__ import annotations

from collections.abc import Callable
from math import exp

import torch
from torch import Tensor

from everyway.errors import UsageError

SEMANTIC, NEUTRAL, STYLE = 0.0, 0.5, 1.0
RANK, STYLES, LEADING = 20, 5, 2
"""Components that are told apart; of these, those that style focus keeps whole, and those that
semantic focus takes away."""

Basis = Callable[[Tensor, int], Tensor]
"""(tokens (B, L, D) float32, count) -> the leading left singular vectors (B, L, count)."""


def focused(tokens: Tensor, focus: float, leading: int = 1, basis: Basis | None = None) -> Tensor:
    """Tokens of pictures (B, leading + L, D) at a focus in [0, 1], in their dtype.

    focus: 0 is semantic, 0.5 leaves everything as it is, 1 is style.  Just above 0.5 all beyond the
    first RANK components goes at once.
    leading: how many tokens at the front are global and stay.
    basis: of the components, `exact` unless given, or `released`.
    Raises UsageError for a focus outside [0, 1], and for no more than LEADING local tokens.
    """
    if not 0 <= focus <= 1:
        raise UsageError(f"focus {focus:g} is outside 0 (semantic) to 1 (style)")
    if focus == NEUTRAL:
        return tokens
    local = tokens[:, leading:].float()
    if local.shape[1] <= LEADING:
        raise UsageError(f"{local.shape[1]} local tokens have no focus; leave it at {NEUTRAL}")
    made = weighed(local, multipliers(focus), float(focus < NEUTRAL), basis)
    made = made * (local.std((1, 2), keepdim=True) / made.std((1, 2), keepdim=True))
    return torch.cat([tokens[:, :leading], made.to(tokens)], 1)


def weighed(
    local: Tensor, multipliers: Tensor, rest: float = 0.0, basis: Basis | None = None
) -> Tensor:
    """Local tokens (B, L, D) with each principal component times its own number.

    Components are of the tokens less every token's own mean over its features, which stays.
    multipliers: (count,), the strongest component first.  rest: times all components beyond them.
    """
    mean = local.mean(2, keepdim=True)
    x, count = local - mean, min(len(multipliers), *local.shape[1:])
    u = (basis or exact)(x, count)  # (B, L, count)
    change = (multipliers[:count, None] - rest).to(x) * (u.mT @ x)
    return mean + rest * x + u @ change


def multipliers(focus: float) -> Tensor:
    """(RANK,) float64 in [0, 1], of the components at a focus in [0, 1]."""
    order = torch.arange(RANK, dtype=torch.float64)
    if focus <= NEUTRAL:  # the first fades first
        low = 1 - LEADING * (1 - _toward(focus, SEMANTIC))
        return torch.where(order < LEADING, _faded(low, order / LEADING), 1.0)
    fading = RANK - STYLES  # the last fades first
    low = 1 - (fading + 1) * (1 - _toward(focus, STYLE))
    return torch.where(order < STYLES, 1.0, _faded(low, (RANK - 1 - order) / fading))


def _toward(focus: float, end: float) -> float:
    """From 1 at a neutral focus to 0 at the end of the range, exponentially."""
    at, last = (exp(2 * (f - NEUTRAL)) for f in (focus, end))
    return (at - last) / (1 - last)


def _faded(low: float, share: Tensor) -> Tensor:
    """From `low` at a share of 0 to 1 at a share of 1, nowhere below 0."""
    return (low + share * (1 - low)).clamp_min(0)


def exact(x: Tensor, count: int) -> Tensor:
    """From the eigenvectors of x x^T in float64, for all samples at once."""
    gram = x.double() @ x.double().mT
    return torch.linalg.eigh(gram).eigenvectors.flip(2)[..., :count].to(x)


def released(x: Tensor, count: int) -> Tensor:
    """As the released code finds them: 100 rounds from a random start, which is always the same.

    Where two components are equally strong it mixes them as it likes.
    """

    def of(one: Tensor) -> Tensor:
        torch.manual_seed(0)
        return torch.pca_lowrank(one, count, center=False, niter=100)[0]

    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        return torch.stack([of(one) for one in x])
