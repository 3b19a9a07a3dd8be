"""What a training shows on its way: a sheet of samples in every direction, from the EMA weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from everyway.data.sample import Sample
from everyway.generate import Model
from everyway.job import LISTS, jobs
from everyway.media import medium
from everyway.sheet import Cell, Section
from everyway.system import System
from everyway.tasks import Task
from everyway.train.sources import sample_at

COUNT = 6
FIRST = 2_000_000
"""Index of the unseen samples that prompts and pictures come from; of a folder some of its own."""


def samples(
    system: System,
    weights: Mapping[str, Tensor],
    data,
    metadata: dict,
    when: str = "",
    steps: int = 15,
) -> list[Section]:
    """One row a task of the system, its network with these weights; the same prompts, pictures and
    seeds every time.

    when: is said in the titles.
    """
    network = system.network
    live = {k: v.clone() for k, v in network.state_dict().items() if k in weights}
    mode = network.training
    network.load_state_dict(weights, strict=False)
    network.eval()
    try:
        model = Model(name="training", hash="", system=system, metadata=metadata)
        unseen = [sample_at(data, FIRST + k, COUNT) for k in range(COUNT)]
        return [_row(model, name, unseen, steps, when) for name in system.tasks]
    finally:
        network.load_state_dict(live, strict=False)
        network.train(mode)


@torch.no_grad()
def _row(model: Model, task: str, unseen: list, steps: int, when: str) -> Section:
    work, given = [], []
    for number, sample in enumerate(unseen):
        given.append(_given(model.system, model.system.tasks[task], sample, number))
        named = {k: v for k, v in given[-1].items() if k in LISTS}
        other = {k: v for k, v in given[-1].items() if k not in LISTS}
        wanted = {"kind": task, "steps": steps, "seed": number, "given": other}
        work += jobs(wanted | named, model.system)
    made = sorted(model.generate(work), key=lambda result: result.job)
    media = model.system.media
    cells = [_cell(media, {**own, **result.outputs}) for own, result in zip(given, made)]
    return Section(title=f"{task}, {when}" if when else task, cells=cells)


def _given(system: System, task: Task, sample: Sample, number: int) -> dict[str, Any]:
    """What a task is given of a sample; classes are taken in turn."""
    own = {"image": Image.fromarray(sample.image), **dict.fromkeys(("text", "label")), **sample.raw}
    if sample.captions:
        own["text"] = sample.captions[0]
    own |= {c.given_as: own.get(c.source) for c in system.conditions.values() if c.given_as}
    if "label" in (names := system.given(task)):
        codec = system.conditions["label"].codec
        own["label"] = (codec.names or range(codec.classes))[number % codec.classes]
    return {name: medium(name, system.media).read(own[name], name) for name in names}


def _cell(media: Mapping[str, Any], values: Mapping[str, Any]) -> Cell:
    """A picture, and in words all else that it is of."""
    views = [medium(name, media).preview(value) for name, value in values.items()]
    pictures = [view for view in views if isinstance(view, Image.Image)]
    words = ", ".join(view for view in views if isinstance(view, str))
    return Cell(image=pictures[-1] if pictures else None, text=words)
