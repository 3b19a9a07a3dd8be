"""What the experts of `mini-ediffi` are good for: how near its pictures come to the scene that a
prompt tells whole, with every expert at its noise, and with each of them at all noise.

A prompt of Emoji Lattice that states everything has one right picture, so every pixel can be
judged: PSNR in dB, and the mean deviation, of 255, in cells that are empty and in those of objects.
With --styles the same in the style of a picture of another scene.

    python experiments/ediffi_experts.py MODEL [--also OTHER ...] [--styles grey,tinted] [-n 100]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from everyway.data.lattice import CELLS, GRID, SIDES, Lattice
from everyway.data.sample import Scene
from everyway.data.styles import draw
from everyway.generate import Model, load
from everyway.metrics.judge import LATTICE

SEED = 1_000_000


def arms(name: str) -> Iterator[tuple[str, Model]]:
    """A model by name or folder, and each of its experts alone."""
    model = load(name, device="cpu")
    yield name, model
    networks = model.system.networks
    for part, network in networks.items() if len(networks) > 1 else ():
        alone = replace(model.system, network=network, placement=None)
        yield f"{name}, {part.removeprefix('network.')} alone", replace(model, system=alone)


def filled(scene: Scene) -> np.ndarray:
    """(GRID, GRID) bool, where its objects stand."""
    scene, cells = scene.canonical(), np.zeros((GRID, GRID), bool)
    places = SIDES[scene.relation] if scene.relation else (scene.objects[0].place,)
    for place in places:
        cells[CELLS[place]] = True
    return cells


def row(name: str, model: Model, count: int, style: str = "") -> dict[str, Any]:
    data = Lattice(seed=SEED, split="heldout")
    samples = [data.sample(k) for k in range(count)]
    texts = [s.captions[k % 2] for k, s in enumerate(samples)]
    asked = {}
    if style:
        shown = Image.fromarray(draw(data.scene(count), style))
        asked = {"given": {"style": shown}, "context_weights": {"style": 1.0}}
    made = model.generate(kind="text-to-image", text=texts, upscale="none", **asked)
    pictures = [result.image for result in sorted(made, key=lambda result: result.job)]
    side = pictures[0].width
    scenes = [Scene.from_json(s.record) for s in samples]
    drawn = (draw(scene, style or "flat") for scene in scenes)
    real = [Image.fromarray(picture).resize((side, side), Image.BOX) for picture in drawn]
    a, b = (np.stack([np.asarray(p, np.float64) for p in some]) for some in (pictures, real))
    cells = np.abs(a - b).reshape(count, GRID, side // GRID, GRID, -1).mean((2, 4))
    full = np.stack([filled(scene) for scene in scenes])
    pairs = zip(texts, LATTICE.read(pictures))
    seen = [all(LATTICE.score(LATTICE.parse(text), scene).values()) for text, scene in pairs]
    right = {} if style else {"all_correct": round(float(np.mean(seen)), 3)}  # it reads flat ones
    return {
        "model": name,
        "psnr": round(float(np.mean(-10 * np.log10(np.square((a - b) / 255).mean((1, 2, 3))))), 2),
        "off_in_empty_cells": round(float(cells[~full].mean()), 2),
        "off_in_objects": round(float(cells[full].mean()), 2),
        **right,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="one of experts")
    parser.add_argument("--also", nargs="*", default=[], help="other models to compare with")
    parser.add_argument("--styles", default="", help="of a picture that is given, such as grey")
    parser.add_argument("-n", type=int, default=100, help="scenes of pairs never trained on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, model in (arm for own in (args.model, *args.also) for arm in arms(own)):
        print(json.dumps(row(name, model, args.n)), flush=True)
    model = load(args.model, device="cpu")
    for style in filter(None, args.styles.split(",")):
        print(json.dumps(row(f"{args.model}, {style}", model, args.n, style)), flush=True)


if __name__ == "__main__":
    main()
