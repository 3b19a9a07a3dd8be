"""What the experts of `mini-ediffi` are good for: how near its pictures come to the scene that a
prompt tells whole, with every expert at its noise, and with each of them at all noise.

A prompt of Emoji Lattice that states everything has one right picture, so every pixel can be
judged: PSNR in dB, and the mean deviation, of 255, in cells that are empty and in those of objects.

    python experiments/ediffi_experts.py MODEL [--also OTHER ...] [-n 100]
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


def row(name: str, model: Model, count: int) -> dict[str, Any]:
    data = Lattice(seed=SEED, split="heldout")
    samples = [data.sample(k) for k in range(count)]
    texts = [s.captions[k % 2] for k, s in enumerate(samples)]
    made = model.generate(kind="text-to-image", text=texts, upscale="none")
    pictures = [result.image for result in sorted(made, key=lambda result: result.job)]
    side = pictures[0].width
    real = [Image.fromarray(s.image).resize((side, side), Image.BOX) for s in samples]
    a, b = (np.stack([np.asarray(p, np.float64) for p in some]) for some in (pictures, real))
    cells = np.abs(a - b).reshape(count, GRID, side // GRID, GRID, -1).mean((2, 4))
    full = np.stack([filled(Scene.from_json(s.record)) for s in samples])
    pairs = zip(texts, LATTICE.read(pictures))
    seen = [all(LATTICE.score(LATTICE.parse(text), scene).values()) for text, scene in pairs]
    return {
        "model": name,
        "psnr": round(float(np.mean(-10 * np.log10(np.square((a - b) / 255).mean((1, 2, 3))))), 2),
        "off_in_empty_cells": round(float(cells[~full].mean()), 2),
        "off_in_objects": round(float(cells[full].mean()), 2),
        "all_correct": round(float(np.mean(seen)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="one of experts")
    parser.add_argument("--also", nargs="*", default=[], help="other models to compare with")
    parser.add_argument("-n", type=int, default=100, help="scenes of pairs never trained on")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name, model in (arm for own in (args.model, *args.also) for arm in arms(own)):
        print(json.dumps(row(name, model, args.n)), flush=True)


if __name__ == "__main__":
    main()
