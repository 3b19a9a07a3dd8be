"""`everyway train text`: the text latent, of what words look like, and its decoder.

The latent is fitted, from the latents of the image codec (`train.looks`); the decoder is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everyway.checkpoints import codec_folder
from everyway.codecs.image_vae import ImageVAE
from everyway.codecs.text_latent import SMALL_DECODER, TextLatent, exact_share
from everyway.codecs.text_tokens import Tokens
from everyway.data.emoji import OBJECTS
from everyway.data.folder import Folder
from everyway.data.sample import Sample
from everyway.settings import Settings
from everyway.train import sources
from everyway.train.codec import MEASURED, SETTINGS, CodecLearner, in_turn, tokenizer
from everyway.train.config import TrainConfig
from everyway.train.folder import STATE
from everyway.train.learner import RowNoise, Share
from everyway.train.looks import codes_of_words, effects_of_words

LENGTH, DIM = 24, 64  # of the text latent
WORDS = {"hidden_size": DIM}
"""What the text latent reads: a vector a token that says what it looks like.  CLIP's last states
are mixed by what a match to pictures needs: where a thing is could not be read from them by a
linear map; and its token embeddings say nothing of what things look like (docs/LOG.md)."""
PORTRAITS = 12
"""Of every object, from which the shapes of words are taken."""
SCENES_RIDGE, PORTRAITS_RIDGE = 30.0, 3.0
SCENES_WEIGHT = 0.5
"""Of what scenes tell of a word, beside what portraits tell."""
TEXT_NOISE = 0.5  # the text decoder reads through noise of sigma uniform in [0, 0.5]


class Training(Settings):
    """codecs: the folder of the tokenizer and the image codec, and of what is written.

    scenes: from which it is taken what words look like, of a folder each once at most.  decoder:
    as of `codec-image`.
    """

    codecs: str = "runs/codecs"
    scenes: int = 12_000
    decoder: bool = False

    def learner(self, config: TrainConfig, note: sources.Note) -> TextLearner:
        return TextLearner(config)


TRAININGS = {"text": dict(SETTINGS, seed=14, batch=128, lr=2e-3, out="runs/text")}


class TextLearner(CodecLearner):
    name = "text"

    def __init__(self, config: TrainConfig) -> None:
        spec = tokenizer(config)
        super().__init__(config, tokens=Tokens(spec, LENGTH))
        self.spec = spec
        self.text = TextLatent(**self.settings()).requires_grad_(False)
        if config.model.decoder:
            codec_folder.fill(Path(config.model.codecs), "text", self.text)
        elif not (config.folder / STATE).exists():
            self._fit()
        self.text.widen.requires_grad_(True)
        self.text.decoder.requires_grad_(True)

    @property
    def codec(self) -> TextLatent:
        return self.text

    def settings(self) -> dict[str, Any]:
        sizes = {"length": LENGTH, "dim": DIM, "text": WORDS, "decoder": SMALL_DECODER}
        return {"tokenizer": self.spec, **sizes}

    def batch(self, share: Share) -> tuple[Tensor, RowNoise]:
        ids = self.text.tokens.encode(in_turn(self.seen(share.samples), share.samples))
        return ids.to(share.device), share.noise()

    def forward(self, batch: tuple[Tensor, RowNoise]) -> tuple[Tensor, dict[str, Tensor]]:
        ids, noise = batch
        sigma = TEXT_NOISE * noise.uniform("sigma", (len(ids), 1, 1))
        latent = self.text.latent(ids) + sigma * noise.normal("text", (len(ids), LENGTH, DIM))
        loss = self.text.loss(latent, ids)
        return loss, {"loss": loss}

    def finish(self, out: Path) -> dict[str, Any]:
        """The shares of captions read back exactly, at sigma 0 and 0.3 (the gate is 0.99)."""
        numbers = range(1000)
        unseen = in_turn(self.unseen(numbers), numbers)
        return {f"exact_at_{sigma}": exact_share(self.text, unseen, sigma) for sigma in (0.0, 0.3)}

    @torch.no_grad()
    def _fit(self) -> None:
        self.text.states.table.weight.copy_(self._codes())
        self.text.narrow.load_state_dict({"weight": torch.eye(DIM), "bias": torch.zeros(DIM)})
        numbers = range(MEASURED, MEASURED + 4000)
        self.text.measure(in_turn(self.seen(numbers), numbers))

    def _codes(self) -> Tensor:
        """(vocabulary, DIM): what each token looks like, from samples with their captions.

        Over scenes in which things stand anywhere the regression finds where and in what colour;
        their shapes it finds in portraits alone, where the data has some.
        """
        folder, size = Path(self.config.model.codecs), len(self.text.tokens)
        image = ImageVAE(**codec_folder.settings(folder, "image")).eval()
        codec_folder.fill(folder, "image", image)
        count = self.config.model.scenes
        data = sources.open_data(self.config.source.data, self.config.seed)
        if isinstance(data, Folder):
            count = min(count, len(data))
        rows = self._rows(image, lambda i: self.seen(range(i, i + 1))[0], count)
        effects, counts = effects_of_words(rows, size, SCENES_RIDGE)
        if hasattr(data, "portrait"):
            rows = self._rows(image, data.portrait, PORTRAITS * len(OBJECTS))
            alone, _ = effects_of_words(rows, size, PORTRAITS_RIDGE)
            effects = torch.cat([SCENES_WEIGHT * effects, alone], 1)
        return codes_of_words(effects, counts, DIM, self.config.seed)

    def _rows(
        self, image: ImageVAE, sample: Callable[[int], Sample], count: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(ids of captions, latents of their pictures), some samples at a time."""
        for start in range(0, count, 50):
            samples = [sample(i) for i in range(start, min(start + 50, count))]
            ids = self.text.tokens.encode([caption for s in samples for caption in s.captions])
            times = torch.tensor([len(s.captions) for s in samples])
            yield ids, image.encode(sources.pictures(samples)).repeat_interleave(times, 0)
