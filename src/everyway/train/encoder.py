"""`everyway train encoder`: CLIP's two towers against each other; the picture's is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everyway.codecs.encoders import SMALL_TEXT, SMALL_VISION, Contrastive
from everyway.codecs.text_tokens import Tokens
from everyway.settings import Settings
from everyway.train import sources
from everyway.train.codec import MEASURED, SETTINGS, CodecLearner, in_turn, tokenizer
from everyway.train.config import TrainConfig
from everyway.train.learner import Share
from everyway.train.text import LENGTH


class Training(Settings):
    """codecs: the folder of the tokenizer, made if it is not there, and of what is written."""

    codecs: str = "runs/codecs"

    def learner(self, config: TrainConfig, note: sources.Note) -> EncoderLearner:
        return EncoderLearner(config)


TRAININGS = {"encoder": dict(SETTINGS, seed=13, batch=128, out="runs/encoder")}


class EncoderLearner(CodecLearner):
    """The loss matches pictures and texts within what one process has at once."""

    name = "image_embed"

    def __init__(self, config: TrainConfig) -> None:
        tokens = Tokens(tokenizer(config), LENGTH)
        super().__init__(config, tokens=tokens)
        self.tokens = tokens
        self.net = Contrastive(SMALL_VISION, {**SMALL_TEXT, "vocab_size": len(self.tokens)})

    @property
    def codec(self) -> nn.Module:
        return self.net.image

    def settings(self) -> dict[str, Any]:
        return {"vision": SMALL_VISION}

    def batch(self, share: Share) -> tuple[Tensor, Tensor]:
        samples = self.seen(share.samples)
        ids = self.tokens.encode(in_turn(samples, share.samples))
        return sources.pictures(samples).to(share.device), ids.to(share.device)

    def forward(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.net(*batch, self.tokens.end)
        return loss, {"loss": loss}

    def finish(self, out: Path) -> dict[str, Any]:
        """How many of 100 pictures find their own captions among them, by the captions' place."""
        sample = sources.pictures(self.seen(range(MEASURED, MEASURED + 2000)))
        features = torch.cat([self.net.image.features(part) for part in sample.split(100)])
        self.net.image.whiten.measure(features)
        unseen = self.unseen(range(500))
        return {f"retrieval_{n}": self._retrieval(unseen, n) for n in (0, 1)}

    def _retrieval(self, samples: list, number: int) -> float:
        """The share of pictures whose own caption is the likeliest of a hundred."""
        right = 0
        for start in range(0, len(samples), 100):
            part = samples[start : start + 100]
            a = self.net.image.features(sources.pictures(part))
            ids = self.tokens.encode([s.captions[number % len(s.captions)] for s in part])
            b = nn.functional.normalize(self.net.sentence(ids, self.tokens.end), dim=-1)
            right += int(((a @ b.T).argmax(1) == torch.arange(len(part))).sum())
        return right / len(samples)
