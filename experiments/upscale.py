"""Super-resolution against bicubic enlargement, on scenes of Emoji Lattice that no training saw.

Pictures of 128 pixels are made small and enlarged again, with their captions and without: a row a
side and a way, with its PSNR in dB and its Fréchet distance to the pictures as they were.

    python experiments/upscale.py MODEL [--sides 32,48,64] [-n 100]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from everyway.data.lattice import FINE, Lattice
from everyway.generate import Model, load
from everyway.metrics.frechet import frechet_interval
from everyway.metrics.judge import LATTICE

SEED, SIDE = 1_000_000, 128
Pictures = Sequence[Image.Image]


def held_out(count: int) -> tuple[list[Image.Image], list[str]]:
    """Pictures of pairs that were never trained on, and their captions, in both languages."""
    data = Lattice(seed=SEED, split="heldout", cell=FINE)
    samples = [data.sample(k) for k in range(count)]
    pictures = [Image.fromarray(s.image).resize((SIDE, SIDE), Image.BICUBIC) for s in samples]
    return pictures, [s.captions[k % 2] for k, s in enumerate(samples)]


def psnr(made: Image.Image, real: Image.Image) -> float:
    error = np.asarray(made, np.float64) - np.asarray(real, np.float64)
    return float(-10 * np.log10(np.square(error / 255).mean().clip(1e-10)))


def row(name: str, side: int, made: Pictures, real: Pictures) -> dict[str, Any]:
    found = [psnr(*pair) for pair in zip(made, real)]
    value, low, high = frechet_interval(LATTICE.features(real), LATTICE.features(made))
    return {
        "side": side,
        "way": name,
        "psnr": round(float(np.mean(found)), 2),
        "better_than_bicubic": None,
        "frechet": [round(v, 2) for v in (value, low, high)],
        "each": found,
    }


def enlarged(model: Model, small: Pictures, texts: Sequence[str] | None) -> list[Image.Image]:
    given = {"image": list(small)} | ({"text": list(texts)} if texts else {})
    made = model.generate(kind="upscale", **given)
    return [result.image for result in sorted(made, key=lambda result: result.job)]


def rows_of(model: Model, side: int, count: int) -> list[dict[str, Any]]:
    real, texts = held_out(count)
    small = [picture.resize((side, side), Image.BILINEAR) for picture in real]
    ways = {
        "bicubic": [picture.resize((SIDE, SIDE), Image.BICUBIC) for picture in small],
        "model, with the text": enlarged(model, small, texts),
        "model, without": enlarged(model, small, None),
    }
    made = [row(name, side, pictures, real) for name, pictures in ways.items()]
    for own in made:
        pairs = zip(own["each"], made[0]["each"])
        own["better_than_bicubic"] = round(float(np.mean([a > b for a, b in pairs])), 2)
    return [{k: v for k, v in own.items() if k != "each"} for own in made]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="one that enlarges to 128 pixels, or a cascade that does")
    parser.add_argument("--sides", default="32,48,64", help="of the small pictures")
    parser.add_argument("-n", type=int, default=100, help="scenes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load(args.model, device="cpu")
    for side in args.sides.split(","):
        for own in rows_of(model, int(side), args.n):
            print(json.dumps(own, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
