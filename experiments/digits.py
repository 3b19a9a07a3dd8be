"""Handwritten digits, a folder that no shipped codec serves, from pictures to a judged model.

    pip install -e ".[train]" scikit-learn
    python experiments/digits.py write --out digits
    everyway train nano --data digits/train --budget 20m --out runs/digits
    python experiments/digits.py judge --model runs/digits --data digits

`write` makes a folder of 8x8 pictures with the captions "a handwritten three" out of the 1,797 of
scikit-learn's `load_digits`, and holds out every sixth.  `judge` asks the model for ten pictures of
each digit, which a support vector classifier of the real ones reads, and, of a model that names
pictures, for the name of every digit that was held out; it prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from everyway.generate import Model, Result, load

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EACH = 10
"""Pictures that are drawn of a digit."""


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures (1797, 8, 8) from 0 to 16, what they show, and which of them are held out."""
    digits = load_digits()
    return digits.images, digits.target, np.arange(len(digits.target)) % 6 == 5


def caption(digit: int) -> str:
    return f"a handwritten {NAMES[digit]}"


def write(out: Path) -> None:
    """OUT/train and OUT/held-out: NUMBER.png and NUMBER.txt."""
    for number, (image, digit, held_out) in enumerate(zip(*split())):
        folder = out / ("held-out" if held_out else "train")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (image * 255 / 16).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(caption(digit) + "\n", encoding="utf-8")


def judge(path: str, data: Path) -> dict[str, float]:
    """The shares of digits that are drawn as told and named as shown, and of real digits that the
    classifier reads."""
    images, digits, held_out = split()
    flat = images.reshape(len(images), -1)
    classifier = SVC(gamma=0.001).fit(flat[~held_out], digits[~held_out])
    model = load(path)
    told = [digit for digit in range(10) for _ in range(EACH)]
    drawn = _made(model, "text-to-image", text=[caption(digit) for digit in told])
    found = {
        "drawn": float((classifier.predict([_pixels(r.image) for r in drawn]) == told).mean()),
        "classifier": float(classifier.score(flat[held_out], digits[held_out])),
    }
    if "image-to-text" not in model.system.tasks:
        return found
    shown = sorted((data / "held-out").glob("*.png"))
    named = _made(model, "image-to-text", image=[str(path) for path in shown])
    wanted = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in shown]
    return found | {"named": float(np.mean([r.text == w for r, w in zip(named, wanted)]))}


def _made(model: Model, kind: str, **given: list[str]) -> list[Result]:
    return sorted(model.generate(kind=kind, **given), key=lambda result: result.job)


def _pixels(picture: Image.Image) -> np.ndarray:
    """(64,) from 0 to 16, as `load_digits` has them."""
    small = picture.convert("L").resize((8, 8), Image.Resampling.BOX)
    return np.asarray(small, np.float64).ravel() * 16 / 255


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="handwritten digits, written and judged")
    parser.add_argument("what", choices=("write", "judge"))
    parser.add_argument("--out", type=Path, default=Path("digits"), help="of write")
    parser.add_argument("--data", type=Path, default=Path("digits"), help="of judge: what it wrote")
    parser.add_argument("--model", default="runs/digits", help="of judge")
    args = parser.parse_args()
    if args.what == "write":
        write(args.out)
    else:
        print(json.dumps(judge(args.model, args.data)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
