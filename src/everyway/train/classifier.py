"""`everyway train classifier`: what reads Emoji Scenes, trained on endless real scenes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from everyway.checkpoints.store import write_module, write_text
from everyway.data.emoji import HEADS, IGNORE, EmojiScenes, targets
from everyway.data.sample import to_tensor
from everyway.layouts import convert
from everyway.nets.classifier import Classifier
from everyway.settings import ConfigError, Settings
from everyway.train import sources
from everyway.train.codec import SETTINGS
from everyway.train.config import TrainConfig
from everyway.train.learner import Learner, Share

TEST_SEED = 900_001  # of the scenes that accuracy is measured on, used for nothing else


class Training(Settings):
    """test: real scenes of each kind to measure on."""

    test: int = Field(2000, ge=0)

    def learner(self, config: TrainConfig, note: sources.Note) -> RecogniserLearner:
        return RecogniserLearner(config)


TRAININGS = {
    "classifier": dict(
        SETTINGS, seed=77, batch=32, lr=2e-3, weight_decay=0.02, budget_s=1500.0,
        out="runs/classifier",
    )
}  # fmt: skip


class RecogniserLearner(Learner):
    """Like every model, it never sees a held-out pair.

    Precision is float32: batch norm and small logits gain nothing from less on a CPU.
    """

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        if config.source.data != "emoji":
            raise ConfigError(f"data is {config.source.data!r}; the classifier reads emoji alone")
        torch.manual_seed(config.seed)  # initial weights only
        self.config, self.data = config, EmojiScenes(seed=config.seed)
        self.net = Classifier(HEADS).to(memory_format=torch.channels_last)

    def batch(self, share: Share) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        images, wanted, centres = _tensors(self.data, share.samples)
        seed = (self.config.seed, share.samples.start, 9)
        images = soften(images, np.random.default_rng(seed)).to(share.device)
        wanted = {k: v.to(share.device) for k, v in wanted.items()}
        return images, wanted, centres.to(share.device)

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        images, wanted, centres = batch
        logits, look = self.net.logits_and_look(images)
        names, looks = loss_of(logits, wanted), look_loss(look, centres)
        return names + looks, {"names": names, "looks": looks}

    def export(self, weights: Mapping[str, Tensor], run: Mapping[str, Any], out: Path) -> None:
        """classifier.safetensors and classifier.json, each written atomically."""
        self.load_state_dict(weights)
        self.to("cpu")
        test = self.config.model.test
        metadata = {
            "steps": run["steps"],
            "minutes": round(run["seconds"] / 60, 1),
            **run["losses"],
            "seed": self.config.seed,
            "heads": HEADS,
            "parameters": sum(p.numel() for p in self.net.parameters()),
            "accuracy": test_accuracy(self.net, test) if test else None,
            "test_seed": TEST_SEED,
        }
        dtype = convert.DTYPES[self.config.run.weights]
        write_module(out / "classifier.safetensors", self.net, dtype)
        write_text(out / "classifier.json", json.dumps(metadata, indent=2))

    def exported(self, out: Path) -> int:
        try:
            return json.loads((out / "classifier.json").read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError, LookupError):
            return -1


def loss_of(logits: dict[str, Tensor], wanted: dict[str, Tensor]) -> Tensor:
    """The sum of the heads' cross entropies, each over the scenes to which it applies."""
    terms = []
    for name, scores in logits.items():
        smooth = 0.05 if name in ("first", "second") else 0.0
        if (wanted[name] != IGNORE).any():
            terms.append(
                F.cross_entropy(scores, wanted[name], ignore_index=IGNORE, label_smoothing=smooth)
            )
    return torch.stack(terms).sum()


def look_loss(look: Tensor, centres: Tensor) -> Tensor:
    """Cross entropy between where the slots look and where their objects lie.

    Without it the two looks stay spread over the whole picture and no name is ever learned.
    look: (B, 2, 64) log shares of an 8 x 8 grid.  centres: (B, 2, 2) as x, y in [0, 1], NaN where
    there is no object.  The target of a centre is spread linearly over its four nearest cells.
    """
    cells = (torch.arange(8, device=look.device) + 0.5) / 8
    inside = centres.nan_to_num(0.5).clamp(1 / 16, 15 / 16)  # a NaN would reach the gradient
    near = (1 - 8 * (inside[..., None] - cells).abs()).clamp(min=0)
    target = (near[..., 1, :, None] * near[..., 0, None, :]).flatten(2)  # (B, 2, 64) rows first
    loss = -(target * look).sum(-1)
    return loss[~centres.isnan().any(-1)].mean()


def soften(images: Tensor, rng: np.random.Generator) -> Tensor:
    """About a third each blurred, noised or recoloured a little, as a decoder would."""
    images = images.clone()
    rows = torch.from_numpy(rng.random((3, len(images))) < 0.35)
    if rows[0].any():
        sigma = rng.uniform(0.3, 0.9)
        taps = torch.exp(-0.5 * (torch.arange(-2, 3) / sigma) ** 2)
        kernel = torch.outer(taps, taps) / taps.sum() ** 2
        part = F.pad(images[rows[0]], (2, 2, 2, 2), mode="replicate")
        images[rows[0]] = F.conv2d(part, kernel.expand(3, 1, 5, 5).contiguous(), groups=3)
    if rows[1].any():
        noise = rng.standard_normal((int(rows[1].sum()), *images.shape[1:]), dtype=np.float32)
        images[rows[1]] += rng.uniform(0.02, 0.1) * torch.from_numpy(noise)
    if rows[2].any():
        shift = torch.from_numpy(rng.uniform(-0.06, 0.06, (int(rows[2].sum()), 3, 1, 1))).float()
        images[rows[2]] = images[rows[2]] * rng.uniform(0.94, 1.06) + shift
    return images.clamp(-1, 1)


@torch.inference_mode()
def test_accuracy(net: Classifier, n: int = 2000, seed: int = TEST_SEED) -> dict[str, float]:
    """Shares of fresh real scenes whose every head is right: one object, two held-out objects."""
    net.eval()
    out = {}
    for kind, data in {
        "one": EmojiScenes(seed=seed, count=1),
        "two": EmojiScenes(seed=seed, count=2, split="heldout"),
    }.items():
        right: dict[str, list[Tensor]] = {name: [] for name in HEADS}
        whole = []
        for start in range(0, n, 100):
            images, wanted, _ = _tensors(data, range(start, min(start + 100, n)))
            every = torch.ones(len(images), dtype=torch.bool)
            for name, scores in net(images).items():
                applies = wanted[name] != IGNORE
                hit = scores.argmax(1) == wanted[name]
                right[name].append(hit[applies])
                every &= hit | ~applies
            whole.append(every)
        named = {k: torch.cat(v) for k, v in right.items()} | {"all_correct": torch.cat(whole)}
        out |= {
            f"{kind}.{k}": round(v.float().mean().item(), 4) for k, v in named.items() if len(v)
        }
    out["all_correct"] = round((out["one.all_correct"] + out["two.all_correct"]) / 2, 4)
    return out


def _tensors(data: EmojiScenes, indices: range) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """(B, 3, 64, 64) in [-1, 1], head -> (B,) targets, centres (B, 2, 2)."""
    scenes = [data.scene(i) for i in indices]
    drawn = [data.draw(scene, i) for scene, i in zip(scenes, indices)]
    images = to_tensor([image for image, _ in drawn])
    centres = np.full((len(scenes), 2, 2), np.nan, np.float32)
    for row, (_, boxes) in zip(centres, drawn):
        row[: len(boxes)] = (boxes[:, :2] + boxes[:, 2:]) / (2 * data.size)
    rows = [targets(scene) for scene in scenes]
    wanted = {name: torch.tensor([row[name] for row in rows]) for name in HEADS}
    return images, wanted, torch.from_numpy(centres)
