"""`everyway train codec-image`: the autoencoder of pictures, or its decoder alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everyway.checkpoints import codec_folder
from everyway.codecs.image_vae import SMALL, ImageVAE, psnr, reconstruction_loss
from everyway.settings import Settings
from everyway.train import sources
from everyway.train.codec import MEASURED, SETTINGS, CodecLearner
from everyway.train.config import TrainConfig
from everyway.train.learner import RowNoise, Share

CONFIG: dict[str, Any] = {"autoencoder": SMALL, "fold": 4}
KL = 1e-4 / 1024  # weight of the posterior's summed divergence: 1e-4 an element
LATENT_NOISE = 0.1  # of a latent's own spread, added while the decoder learns


class Training(Settings):
    """codecs: the folder that the codec is written into.

    decoder: train only what follows the latent, which stays as it is there; a trained system
    depends on the latent alone.
    """

    codecs: str = "runs/codecs"
    decoder: bool = False

    def learner(self, config: TrainConfig, note: sources.Note) -> ImageLearner:
        return ImageLearner(config)


TRAININGS = {"codec-image": dict(SETTINGS, seed=12, out="runs/codec-image")}


class ImageLearner(CodecLearner):
    name = "image"

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.image = ImageVAE(**CONFIG)
        if config.model.decoder:
            codec_folder.fill(Path(config.model.codecs), "image", self.image).requires_grad_(False)
            self.image.autoencoder.decoder.requires_grad_(True)
            self.image.autoencoder.post_quant_conv.requires_grad_(True)

    @property
    def codec(self) -> ImageVAE:
        return self.image

    def settings(self) -> dict[str, Any]:
        return CONFIG

    def batch(self, share: Share) -> tuple[Tensor, RowNoise]:
        return self.pictures(share), share.noise()

    def forward(self, batch: tuple[Tensor, RowNoise]) -> tuple[Tensor, dict[str, Tensor]]:
        wanted, noise = batch
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.model.decoder):
            posterior = self.image.posterior(wanted)
        shape = tuple(posterior.mean.shape)
        latent = posterior.mean + posterior.std * noise.normal("posterior", shape)
        spread = latent.detach().std((0, 2, 3), keepdim=True)
        latent = latent + LATENT_NOISE * spread * noise.normal("latent", shape)
        loss = reconstruction_loss(self.image.reconstruct(latent), wanted)
        return loss + KL * posterior.kl().mean(), {"loss": loss}

    def finish(self, out: Path) -> dict[str, Any]:
        if not self.config.model.decoder:
            sample = sources.pictures(self.seen(range(MEASURED, MEASURED + 1000)))
            latents = torch.cat([self.image.posterior(part).mean for part in sample.split(50)])
            self.image.whiten.measure(latents.movedim(1, -1).flatten(0, 2))
        unseen = sources.pictures(self.unseen(range(200)))
        made = torch.cat([self.image.decode(self.image.encode(part)) for part in unseen.split(50)])
        return {"psnr_db": round(psnr(made, unseen).item(), 2)}
