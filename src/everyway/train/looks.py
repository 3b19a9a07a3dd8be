"""What a word looks like: the part of a picture's latent that a token of its captions explains.

A transformer that is conditioned on random codes of objects must learn every object by itself; on
codes that say what things look like, it starts from what like things have in common, in every
language at once (docs/LOG.md has the figures).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

SEEN = 30
"""Tokens seen in fewer captions than this do not bear on the axes."""
TINY = 1e-6
OWN = 0.2
"""Least size of what each token has for itself, against 1 for the looks of most: it keeps words
apart that look alike or like nothing."""


@torch.no_grad()
def effects_of_words(
    rows: Iterable[tuple[Tensor, Tensor]], vocabulary: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """Ridge regression of pictures on the tokens of their captions, wherever those stand.

    rows: batches of ids (B, L), 0 for padding, and of latents (B, ...).  ridge: in captions; tokens
    seen less often hardly count.
    Returns the effect of each token (vocabulary, D) and in how many captions it was (vocabulary,).
    """
    among, pictured, total = torch.zeros(vocabulary, vocabulary), 0.0, 0.0
    counts, captions = torch.zeros(vocabulary), 0
    for ids, latents in rows:
        bag = torch.zeros(len(ids), vocabulary).scatter_add_(1, ids, (ids > 0).float())
        states = latents.flatten(1).float()
        among += bag.T @ bag
        pictured = pictured + bag.T @ states
        total = total + states.sum(0)
        counts += bag.sum(0)
        captions += len(ids)
    centred = pictured - counts[:, None] * (total / captions)
    return torch.linalg.solve(among + ridge * torch.eye(vocabulary), centred), counts


def codes_of_words(
    effects: Tensor, counts: Tensor, dim: int, seed: int, least: int = SEEN
) -> Tensor:
    """(vocabulary, dim): the main axes of the effects, of variance 1 each over the tokens that were
    seen, and something of its own for every token: the more, the less it looks like anything.

    least: captions in which a token counts as seen.  Others go as far along an axis as those do,
    and no farther: an axis may be next to nothing but rounding, where tokens are said together.
    """
    often = counts >= least
    seen = effects[often]
    mean = seen.mean(0)
    axes = torch.linalg.svd(seen - mean, full_matrices=False)[2][: min(dim, len(seen) - 1)]
    spread = ((seen - mean) @ axes.T).std(0).clamp_min(TINY)  # tokens may all be said together
    looks = (effects - mean) @ axes.T / spread
    most = looks[often].abs().amax(0)
    looks = looks.clamp(-most, most)
    looks = F.pad(looks, (0, dim - looks.shape[1]))  # few words have few axes
    own = (1 - looks.square().mean(1, keepdim=True).sqrt()).clamp_min(OWN)
    generator = torch.Generator().manual_seed(seed)
    return looks + own * torch.randn(looks.shape, generator=generator)
