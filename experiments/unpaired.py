"""Half of the captions taken away: a run that also learns from the pictures without a caption,
against one that leaves them out, at equal steps and batch.

A folder of coloured shapes, of which every second picture has lost its caption.  A row an arm and a
seed: how many attributes of unseen prompts are drawn right, how many of unseen pictures are named
right, the Frechet distance of what is drawn to real pictures, on their thumbnails of 4 x 4, and
the losses on unseen pairs, which vary least: of a picture given its text, of a picture alone, and
of a text given its picture.

    python experiments/unpaired.py [--pictures 400] [--steps 600] [--seeds 2] [--shares 0,0.25]

Source of the idea: Bao et al., "One Transformer Fits All Distributions in Multi-Modal Diffusion at
Scale", 2023, arXiv 2303.06555: a picture alone is a pair whose text is at t = 1.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from everyway import objective
from everyway.data.folder import write_folder
from everyway.data.sample import Sample
from everyway.data.shapes import Shapes, parse
from everyway.generate import Model, load
from everyway.metrics import shapes
from everyway.metrics.frechet import frechet_distance
from everyway.sampling.noise import StreamNoise
from everyway.train import sources, train
from everyway.train.config import resolve

UNSEEN = 1_000_000
SIDE = 4
LOSSES = 512


def half_captioned(path: Path, pictures: int, seed: int) -> None:
    """Every second picture with no caption; the captions of the others have every word."""
    drawn = Shapes(seed=seed, size=16, languages=("en",))
    own = (replace(drawn.sample(k), key=f"{k:05d}") for k in range(pictures))
    write_folder(path, (s if k % 2 else replace(s, captions=()) for k, s in enumerate(own)))


def right(stated: list[dict[str, str]], seen: list[dict[str, str]]) -> float:
    """Share of the stated attributes that are seen."""
    found = [v for a, b in zip(stated, seen) for v in shapes.score(a, b).values()]
    return sum(found) / len(found)


def thumbnails(pictures: list[Image.Image]) -> Tensor:
    small = [p.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for p in pictures]
    return torch.from_numpy(np.stack([np.asarray(p) for p in small])).flatten(1) / 255


LINES = {"picture of text": ("image", {"text": 0.0}), "picture": ("image", {"text": 1.0})}
LINES |= {"text of picture": ("text", {"image": 0.0})}
"""Name -> the modality whose loss it is, and the times that are not drawn."""


@torch.no_grad()
def losses(model: Model, samples: list[Sample]) -> dict[str, float]:
    """On lines of the square of times, the free one evenly spread; the same noise for any model."""
    system = model.system
    x0 = {k: v[:, 0] for k, v in sources.encode(system, samples).items()}
    free = (torch.arange(len(samples), dtype=torch.float64) * 0.6180339887 + 0.5) % 1
    out = {}
    for name, (modality, fixed) in LINES.items():
        noise = StreamNoise(torch.Generator().manual_seed(0))
        times = {"image": free, "text": free}
        times |= {clock: torch.full_like(free, t) for clock, t in fixed.items()}
        found = objective.losses(system, x0, times, noise)[modality]
        out[name] = round(float(found.mean()), 4)
    return out


def scored(path: str, count: int) -> dict[str, float]:
    model, unseen = load(path, device="cpu"), Shapes(seed=UNSEEN, size=16, languages=("en",))
    samples = [unseen.sample(k) for k in range(count)]
    real, truths = [Image.fromarray(s.image) for s in samples], [s.record for s in samples]
    drawn = model.generate(kind="text-to-image", text=[s.captions[0] for s in samples], steps=15)
    pictures = [r.image for r in sorted(drawn, key=lambda r: r.job)]
    named = sorted(model.generate(image=real, kind="image-to-text", steps=15), key=lambda r: r.job)
    return losses(model, [unseen.sample(k) for k in range(count, count + LOSSES)]) | {
        "drawn": right(truths, [shapes.read(picture) for picture in pictures]),
        "named": right(truths, [parse(result.text) for result in named]),
        "frechet": frechet_distance(thumbnails(real), thumbnails(pictures)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--shares", default="0,0.25", help="of a batch, that are unpaired")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--unseen", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "unpaired")
    args = parser.parse_args()
    for seed in range(args.seeds):
        data = args.out / f"data-{args.pictures}-{seed}"
        half_captioned(data, args.pictures, seed)
        for share in map(float, args.shares.split(",")):
            given = {"data": str(data), "steps": args.steps, "batch": args.batch, "seed": seed}
            run = args.out / f"run-{args.pictures}-{args.steps}-{share:g}-{seed}"
            config = resolve("nano", given | {"unpaired": share}, out=str(run))
            model = train(config)["model"]
            row = {"seed": seed, "unpaired": share, **scored(model, args.unseen)}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
