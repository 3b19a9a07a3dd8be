"""Trains the image tokens of `mini-vq` on Emoji Scenes or on a folder; run it again to go on.

python -m everyway.train.vq --data emoji --out runs/vq --minutes 60
python -m everyway.train.vq --data my_pictures --out runs/mine --minutes 60
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call

from everyway.checkpoints.store import StoreError, write_module, write_text
from everyway.codecs.image_vae import psnr, reconstruction_loss
from everyway.codecs.image_vq import SMALL, ImageVQ
from everyway.data.emoji import EmojiScenes, MissingFont
from everyway.data.folder import FolderError, read_folder
from everyway.data.sample import to_tensor
from everyway.sheet import Cell, Section, sheet
from everyway.train.codecs import TEST_SEED, pictures
from everyway.train.fit import Report, fit, say
from everyway.train.state import StateError
from everyway.train.stopping import stoppable

SHOWN = 8  # pictures in the gallery
Pictures = Callable[[range], Tensor]
"""Indices -> (B, 3, size, size) in [-1, 1], the same for the same index."""


@dataclass(frozen=True, kw_only=True)
class VQTraining:
    """data: "emoji" or a folder.  minutes: in all, over every session.  size: side in pixels.

    adversarial: weight of a patch discriminator's verdict, 0 for none; it is asked from step
    `adversarial_from` on.  config: settings of the `ImageVQ`.
    """

    data: str = "emoji"
    minutes: float = 60.0
    size: int = 64
    batch: int = 16
    lr: float = 3e-3
    seed: int = 15
    adversarial: float = 0.0
    adversarial_from: int = 2000
    config: Mapping[str, Any] = field(default_factory=lambda: SMALL)

    @property
    def fixed(self) -> str:
        """What must stay as it is when a training goes on, as JSON."""
        return json.dumps({k: v for k, v in asdict(self).items() if k not in ("minutes", "lr")})


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


def train(settings: VQTraining, out: Path, report: Report = say) -> dict[str, Any]:
    """Trains until `settings.minutes`, writes codec and gallery into `out`, returns the facts.

    Facts: psnr_db of unseen pictures; codes_used, the share of codes they use; perplexity of their
    codes; revived, the dead codes since it was started.  Raises StateError for other settings than
    those the folder was begun with, FolderError for a folder that cannot be read.
    """
    torch.manual_seed(settings.seed)  # initial weights only
    codec = ImageVQ(**settings.config)
    if settings.size % codec.factor:
        raise StateError(f"size {settings.size} is no multiple of {codec.factor}, a token's side")
    seen, unseen = sources(settings)
    _begun(out, settings)
    module = nn.ModuleDict({"codec": codec})
    if settings.adversarial:
        module["critic"] = Critic()
    revived = 0

    def loss_at(step: int) -> Tensor:
        nonlocal revived
        wanted = seen(range(step * settings.batch, (step + 1) * settings.batch))
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        made, quantised = codec(wanted, generator)
        revived += quantised.revived if step else 0  # at first they are all dead
        loss = reconstruction_loss(made, wanted) + quantised.loss
        if settings.adversarial and step >= settings.adversarial_from:
            loss = loss + adversarial_loss(module["critic"], made, wanted, settings.adversarial)
        return loss

    facts: dict[str, Any] = dict(
        fit(module, loss_at, out / "image_vq.state.safetensors", minutes=settings.minutes,
            lr=settings.lr, report=report)
    )  # fmt: skip
    facts |= measure(codec, unseen) | {"revived": revived}
    _save(out, codec, settings, facts)
    gallery(codec, unseen(range(SHOWN))).save(out / "image_vq.png")
    return facts


@torch.no_grad()
def measure(codec: ImageVQ, unseen: Pictures, count: int = 200) -> dict[str, Any]:
    """psnr_db, codes_used (share of the classes), perplexity = exp(entropy of the codes)."""
    codes, quality = [], []
    for start in range(0, count, 50):
        part = unseen(range(start, min(start + 50, count)))
        codes.append(codec.encode(part))
        quality.append(psnr(codec.decode(codes[-1]), part))
    often = torch.bincount(torch.cat(codes).flatten(), minlength=codec.classes).double()
    share = often / often.sum()
    return {
        "psnr_db": round(torch.stack(quality).mean().item(), 2),
        "codes_used": round((often > 0).double().mean().item(), 4),
        "perplexity": round(torch.special.entr(share).sum().exp().item(), 1),
    }


@torch.no_grad()
def gallery(codec: ImageVQ, images: Tensor) -> Image.Image:
    """The pictures above what their tokens say."""
    rows = {"picture": images, "from its tokens": codec.decode(codec.encode(images))}
    sections = [
        Section(title=title, cells=[Cell(image=Image.fromarray(x)) for x in _bytes(row)])
        for title, row in rows.items()
    ]
    return sheet(sections, across=1)


def load(folder: Path) -> ImageVQ:
    """The codec that `train` left in `folder`, frozen.  Raises StoreError where there is none."""
    codec = ImageVQ(**config_of(folder))
    codec.load_state_dict(load_file(Path(folder) / "image_vq.safetensors"))
    return codec.eval().requires_grad_(False)


def config_of(folder: Path) -> dict[str, Any]:
    """The settings of that codec."""
    parts = [Path(folder) / f"image_vq.{kind}" for kind in ("json", "safetensors")]
    if not all(part.is_file() for part in parts):
        raise StoreError(f"{folder} holds no trained image tokens; run python -m everyway.train.vq")
    return json.loads(parts[0].read_text(encoding="utf-8"))


def sources(settings: VQTraining) -> tuple[Pictures, Pictures]:
    """(those to learn from, those to be measured on); both without end."""
    size = settings.size
    if settings.data == "emoji":
        learn = EmojiScenes(seed=settings.seed, size=size)
        test = EmojiScenes(seed=TEST_SEED, size=size)
        return (lambda indices: pictures(learn, indices)), (lambda indices: pictures(test, indices))
    stack = folder_pictures(Path(settings.data), size)
    kept = np.arange(len(stack)) % 10 == 9  # every tenth is for measuring
    test_stack = stack[kept] if kept.any() else stack
    return _shuffled(stack[~kept], settings.seed), _shuffled(test_stack, settings.seed)


def folder_pictures(folder: Path, size: int) -> np.ndarray:
    """Every picture of a folder, its middle square, (N, size, size, 3) uint8 in memory."""
    resample = Image.Resampling.LANCZOS
    fitted = (ImageOps.fit(Image.fromarray(s.image), (size, size), resample)
              for s in read_folder(folder))  # fmt: skip
    return np.stack([np.asarray(image) for image in fitted])


def _shuffled(stack: np.ndarray, seed: int) -> Pictures:
    """A new order of the whole stack each time round."""

    @lru_cache(maxsize=2)
    def order(turn: int) -> np.ndarray:
        return np.random.default_rng((seed, turn)).permutation(len(stack))

    def take(indices: range) -> Tensor:
        return to_tensor([stack[order(i // len(stack))[i % len(stack)]] for i in indices])

    return take


def _begun(out: Path, settings: VQTraining) -> None:
    """Notes the settings, or raises StateError where the folder was begun with others."""
    path = out / "image_vq.settings.json"
    if path.exists() and path.read_text(encoding="utf-8") != settings.fixed:
        raise StateError(f"{out} was begun with other settings; give the same or another --out")
    write_text(path, settings.fixed)


def _bytes(images: Tensor) -> np.ndarray:
    scaled = ((images.clamp(-1, 1) + 1) * 127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def _save(out: Path, codec: ImageVQ, settings: VQTraining, facts: dict[str, Any]) -> None:
    write_module(out / "image_vq.safetensors", codec)
    write_text(out / "image_vq.json", json.dumps(settings.config))
    write_text(out / "image_vq.facts.json", json.dumps(facts))


def main() -> int:
    """The command line."""
    own = VQTraining()
    parser = argparse.ArgumentParser(description="train the image tokens of mini-vq")
    parser.add_argument("--data", default=own.data, help="emoji, or a folder of pictures")
    parser.add_argument("--out", type=Path, default=Path("runs/vq"))
    parser.add_argument("--minutes", type=float, default=own.minutes, help="in all, over sessions")
    parser.add_argument("--size", type=int, default=own.size, help="side of the pictures in pixels")
    parser.add_argument("--batch", type=int, default=own.batch)
    parser.add_argument("--lr", type=float, default=own.lr)
    parser.add_argument("--seed", type=int, default=own.seed)
    parser.add_argument("--adversarial", type=float, default=0.0, help="its weight, 0 for none")
    parser.add_argument("--adversarial-from", type=int, default=own.adversarial_from, help="step")
    given = vars(parser.parse_args())
    out = given.pop("out")
    try:
        say(json.dumps(train(VQTraining(**given), out)))
    except (StateError, FolderError, MissingFont) as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(stoppable(main))
