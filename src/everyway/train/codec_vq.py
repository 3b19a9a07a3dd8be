"""`everyway train codec-vq`: the image tokens of a VQ-Diffusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from everyway.codecs.image_vae import psnr, reconstruction_loss
from everyway.codecs.image_vq import SMALL, ImageVQ, use_of
from everyway.settings import ConfigError, Settings
from everyway.sheet import Cell, Section, sheet
from everyway.train import sources
from everyway.train.codec import SETTINGS, CodecLearner
from everyway.train.config import TrainConfig
from everyway.train.learner import Share

SHOWN = 8  # pictures in the gallery
REVIVED = "revived"


class Training(Settings):
    """size: side of the pictures in pixels.  codec: settings of the `ImageVQ`.
    codecs: the folder that it is written into; by default the run's own.

    adversarial: weight of a patch discriminator's verdict, 0 for none; it is asked from step
    `adversarial_from` on.
    """

    size: int = Field(64, ge=1)
    codecs: str = ""
    adversarial: float = Field(0.0, ge=0)
    adversarial_from: int = Field(2000, ge=0)
    codec: dict[str, Any] = SMALL

    def learner(self, config: TrainConfig, note: sources.Note) -> VQLearner:
        return VQLearner(config)


TRAININGS = {"codec-vq": dict(SETTINGS, seed=15, lr=3e-3, budget_s=3600.0, out="runs/vq")}


class VQLearner(CodecLearner):
    """memory: how many dead codes were revived since it was started."""

    name = "image_vq"

    def __init__(self, config: TrainConfig) -> None:
        own = config.model
        with torch.device("meta"):  # before anything of the run is written
            factor = ImageVQ(**own.codec).factor
        if own.size % factor:
            raise ConfigError(f"size {own.size} is no multiple of {factor}, a token's side")
        super().__init__(config, own.size)
        self.image = ImageVQ(**own.codec)
        self.critic = Critic() if own.adversarial else None
        self.skips = self.critic is not None  # until it is asked
        self.memory = {REVIVED: torch.zeros(1)}

    @property
    def codec(self) -> ImageVQ:
        return self.image

    def settings(self) -> dict[str, Any]:
        return self.config.model.codec

    def batch(self, share: Share) -> tuple[Tensor, torch.Generator, bool]:
        judged = self.critic is not None and share.step >= self.config.model.adversarial_from
        self.counted = share.step > 0  # at first they are all dead
        return self.pictures(share), share.generator("codes"), judged

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        wanted, generator, judged = batch
        made, quantised = self.image(wanted, generator)
        if self.counted:
            self.memory[REVIVED] += quantised.revived
        loss = reconstruction_loss(made, wanted)
        total = loss + quantised.loss
        if judged:
            total = total + adversarial_loss(
                self.critic, made, wanted, self.config.model.adversarial
            )
        return total, {"loss": loss}

    def finish(self, out: Path) -> dict[str, Any]:
        gallery(self.image, sources.pictures(self.unseen(range(SHOWN)))).save(out / "image_vq.png")
        return self.measure() | {REVIVED: int(self.memory[REVIVED])}

    @torch.no_grad()
    def measure(self, count: int = 200) -> dict[str, Any]:
        """psnr_db of unseen pictures, and the use of their codes (`use_of`)."""
        codes, quality = [], []
        for start in range(0, count, 50):
            part = sources.pictures(self.unseen(range(start, min(start + 50, count))))
            codes.append(self.image.encode(part))
            quality.append(psnr(self.image.decode(codes[-1]), part))
        shown = {"psnr_db": round(torch.stack(quality).mean().item(), 2)}
        return shown | use_of(torch.cat(codes), self.image.classes)


class Critic(nn.Module):
    """Pictures (B, 3, H, W) -> verdicts (B, 1, H/8, W/8), each on a patch, high for real ones."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for n in (1, 2):
            layers += [nn.Conv2d(n * width, 2 * n * width, 4, 2, 1)]
            layers += [nn.GroupNorm(8, 2 * n * width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(4 * width, 1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def adversarial_loss(critic: nn.Module, made: Tensor, wanted: Tensor, weight: float) -> Tensor:
    """`weight` times the pictures' wish to be judged real, and the critic's own hinge loss.

    One sum for one optimiser: the first term moves no weight of the critic, the second no picture.
    """
    still = {k: v.detach() for k, v in critic.named_parameters()}
    wish = -functional_call(critic, still, (made,)).mean()
    real, false = critic(wanted), critic(made.detach())
    return weight * wish + 0.5 * ((1 - real).relu().mean() + (1 + false).relu().mean())


@torch.no_grad()
def gallery(codec: ImageVQ, images: Tensor) -> Image.Image:
    """The pictures above what their tokens say."""
    rows = {"picture": images, "from its tokens": codec.decode(codec.encode(images))}
    sections = [
        Section(title=title, cells=[Cell(image=Image.fromarray(x)) for x in _bytes(row)])
        for title, row in rows.items()
    ]
    return sheet(sections, across=1)


def _bytes(images: Tensor) -> np.ndarray:
    scaled = ((images.clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
