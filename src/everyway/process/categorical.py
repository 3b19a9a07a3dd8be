"""Categorical prediction: a network says how likely each token is at each place of a text latent.
The clean estimate is the mean of the tokens' vectors by these probabilities.

Every place of such a latent is one of finitely many vectors.  Cross-entropy teaches a network which
one it is, the square error only their mean.  The probabilities of single places are then combined
with bigrams of the captions, since places that are denoised side by side otherwise choose words of
different sentences while there is much noise (docs/LOG.md).

Shapes: B sentences, L tokens, D width, V vocabulary.
Source: Dieleman et al., "Continuous diffusion for categorical data", 2022, arXiv 2211.15089.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from everyway.process.gaussian import GaussianProcess, Parameterisation
from everyway.process.schedules import Schedule

NEAR = 16.0
"""A score is -|output - vector|^2 / 2 times NEAR / D, up to what all tokens have in common."""


class Vocabulary(Protocol):
    """table: (V, D), a vector a token."""

    table: Tensor

    def marginals(self, scores: Tensor) -> Tensor:
        """(B, L, V): how likely each token is at each place of its sentence.  scores: (B, L, V),
        logits of the tokens of each place by itself."""
        ...


@dataclass(frozen=True, kw_only=True)
class Categorical:
    """A parameterisation: the nearer the network's output (B, L, D) is to the vector of a token,
    the likelier is that token.

    vocabulary: the tokens.  shown: the parameterisation by which the network is shown a state.
    """

    noise_from: ClassVar[float] = 0.1  # as of `Clean`
    vocabulary: Vocabulary
    shown: Parameterisation

    def check(self, schedule: Schedule) -> None:
        self.shown.check(schedule)

    def scale_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.shown.scale_in(alpha, sigma)

    def slope(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)

    def scores(self, raw: Tensor) -> Tensor:
        """raw (..., L, D) -> (..., L, V), logits of the tokens of each place by itself."""
        table = self.vocabulary.table.to(raw)
        return (raw @ table.mT - table.square().sum(1) / 2) * (NEAR / table.shape[1])

    def to_clean(self, raw: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(B, L, D) of raw (B, L, D); x_t, alpha and sigma are not needed.

        Computed sentence by sentence, so that the bits of one do not depend on the batch.
        """
        likely = self.vocabulary.marginals(torch.stack([self.scores(own) for own in raw]))
        table = self.vocabulary.table.to(likely)
        return torch.stack([own @ table for own in likely]).to(raw.dtype)

    def loss(self, raw: Tensor, x0: Tensor, draw: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(B,), the mean cross-entropy of a sentence's tokens, 1 where all V are equally likely.

        x0: (B, L, D), vectors of the tokens.
        """
        table = self.vocabulary.table.to(x0)
        tokens = torch.cdist(x0, table).argmin(-1)
        lost = F.cross_entropy(self.scores(raw.float()).mT, tokens, reduction="none")
        return lost.mean(1) / math.log(len(table))


def categorical(process: GaussianProcess, codec: Any) -> GaussianProcess:
    """A process that predicts tokens, if the codec has bigrams; else the process as it is.

    codec: of the modality, a `Vocabulary` if it has bigrams.
    """
    if getattr(codec, "bigrams", None) is None:
        return process
    made = Categorical(vocabulary=codec, shown=process.parameterisation)
    return replace(process, parameterisation=made)
