"""`everyway train text-vae`: a text latent of a variational autoencoder, one vector or a sequence.

The divergence from the prior counts nothing at first (Bowman et al., "Generating Sentences from a
Continuous Space", 2015, arXiv 1511.06349), and the first nats of each number are free: without
both, a strong writer learns to do without its latent.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor

from everyway.codecs.text_latent import exact_share
from everyway.codecs.text_tokens import Tokens
from everyway.codecs.text_vae import SequenceText, TextVAE, VectorText
from everyway.settings import Settings
from everyway.train import sources
from everyway.train.codec import MEASURED, SETTINGS, CodecLearner, in_turn, tokenizer
from everyway.train.config import TrainConfig
from everyway.train.learner import RowNoise, Share

LONGEST = 24
"""Tokens of a sentence."""


class Training(Settings):
    """codecs: the folder of the tokenizer, made if it is not there, and of what is written.

    length: vectors of a latent; 1 is the published form, of the whole sentence's state.  dim: of
    each.
    divergence: weight of the divergence from the prior: 0 in the first half of `anneal` steps, in
    which the latent learns to tell the text, and reached in the second.  free: nats of each number
    of a latent that cost nothing.
    """

    codecs: str = "runs/codecs"
    length: int = Field(1, ge=1, lt=LONGEST)
    dim: int = Field(384, ge=1)
    divergence: float = Field(1.0, ge=0)
    anneal: int = Field(1000, ge=1)
    free: float = Field(0.1, ge=0)

    def learner(self, config: TrainConfig, note: sources.Note) -> TextVAELearner:
        return TextVAELearner(config)


TRAININGS = {"text-vae": dict(SETTINGS, seed=15, batch=64, out="runs/text-vae")}


class TextVAELearner(CodecLearner):
    name = "text"

    def __init__(self, config: TrainConfig) -> None:
        spec = tokenizer(config)
        super().__init__(config, tokens=Tokens(spec, LONGEST))
        self.spec = spec
        kind = VectorText if config.model.length == 1 else SequenceText
        self.text: TextVAE = kind(**self._sizes())

    @property
    def codec(self) -> TextVAE:
        return self.text

    def settings(self) -> dict[str, Any]:
        return {"kind": type(self.text).__name__, **self._sizes()}

    def _sizes(self) -> dict[str, Any]:
        own = self.config.model
        length = {"length": own.length} if own.length > 1 else {}
        return {"tokenizer": self.spec, "longest": LONGEST, **length, "dim": own.dim}

    def batch(self, share: Share) -> tuple[Tensor, float, RowNoise]:
        ids = self.text.tokens.encode(in_turn(self.seen(share.samples), share.samples))
        longest = max(self.text.length, int(self.text.tokens.mask(ids).sum(1).max()))
        return ids[:, :longest].to(share.device), self.weight(share.step), share.noise()

    def weight(self, step: int) -> float:
        """Of the divergence in that step."""
        own = self.config.model
        return own.divergence * min(1.0, max(0.0, 2 * step / own.anneal - 1))

    def forward(self, batch: tuple[Tensor, float, RowNoise]) -> tuple[Tensor, dict[str, Tensor]]:
        ids, weight, noise = batch
        draw = noise.normal("text", (len(ids), self.text.length, self.text.dim))
        wrong, divergence = self.text.losses(ids, draw, self.config.model.free)
        return (wrong + weight * divergence).mean(), {"wrong": wrong, "divergence": divergence}

    def finish(self, out: Path) -> dict[str, Any]:
        """The shares of unseen captions read back exactly, at sigma 0 and 0.3."""
        numbers = range(MEASURED, MEASURED + 2000)
        self.text.measure(in_turn(self.seen(numbers), numbers))
        numbers = range(500)
        unseen = in_turn(self.unseen(numbers), numbers)
        return {f"exact_at_{sigma}": exact_share(self.text, unseen, sigma) for sigma in (0.0, 0.3)}
