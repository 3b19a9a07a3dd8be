"""What a training shows on its way: a sheet of samples in every direction, from the EMA weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from PIL import Image
from torch import Tensor

from everyway.generate import Model
from everyway.sheet import Cell, Section, sheet
from everyway.system import System

COUNT = 6
FIRST = 2_000_000  # index of the unseen samples that prompts and pictures come from


def samples(
    system: System, weights: Mapping[str, Tensor], data, facts: dict, steps: int = 15
) -> Image.Image:
    """One row a task of the system, its network with these weights; the same prompts, pictures and
    seeds every time."""
    network = system.network
    live = {k: v.clone() for k, v in network.state_dict().items()}
    mode = network.training
    network.load_state_dict(weights)
    network.eval()
    try:
        model = Model(name="training", hash="", system=system, facts=facts)
        unseen = [data.sample(FIRST + k) for k in range(COUNT)]
        sections = [_row(model, name, unseen, steps) for name in system.tasks]
    finally:
        network.load_state_dict(live)
        network.train(mode)
    return sheet(sections, across=1)


@torch.no_grad()
def _row(model: Model, task: str, unseen: list, steps: int) -> Section:
    given: dict[str, list] = {}
    chosen = model.system.tasks[task]
    if "text" in chosen.given or chosen.contexts.get("text"):
        given["text"] = [s.captions[0] for s in unseen]
    if "image" in chosen.given:
        given["image"] = [Image.fromarray(s.image) for s in unseen]
    if chosen.contexts.get("label"):
        classes = model.system.conditions["label"].codec.classes
        given["label"] = [k % classes for k in range(COUNT)]
    made = model.generate(kind=task, steps=steps, **(given or {"n": COUNT}))
    pictures = given.get("image") or [r.image for r in made]
    words = given.get("text") or [r.text or "" for r in made]
    return Section(title=task, cells=[Cell(image=i, text=w) for i, w in zip(pictures, words)])
