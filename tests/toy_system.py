"""A system in one file: a picture, a text and a sound, under two conditions of one kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from everyway.codecs.plain import Pixels, Words
from everyway.nets.tokens import ContextTokens, Ids, Patches, Sequence, TimeToken
from everyway.nets.uvit import UViT, UViTConfig
from everyway.process.config import gaussian
from everyway.process.mask_replace import MaskReplace
from everyway.system import Condition, Modality, System, dropped
from everyway.tasks import ABSENT, GENERATE, GIVEN, Task

WORDS = Words(vocabulary=("red", "blue", "soft", "loud"), length=2, dim=8)
ALL = dict.fromkeys(("image", "text", "sound"), GENERATE)
BOTH = {"subject": 1.0, "style": 1.0}
TASKS = {
    "everything": Task(name="everything", roles=ALL, contexts=BOTH),
    "freely": Task(name="freely", roles=ALL, contexts={"subject": 0.0, "style": 0.0}),
    "name": Task(name="name", roles={"image": GIVEN, "text": GENERATE, "sound": ABSENT}),
    "image": Task(name="image", roles={"image": GENERATE}, contexts={"subject": 1.0}),
}


@dataclass(frozen=True)
class Notes:
    """Four notes, each of four pitches."""

    def encode(self, raw: list[list[int]]) -> Tensor:
        return torch.tensor(raw)

    def decode(self, state: Tensor) -> list[list[int]]:
        return state.tolist()


def build(config: Mapping[str, Any]) -> System:
    layout = (
        *(TimeToken(clock=clock) for clock in ALL),
        *(ContextTokens(name=name, length=2, dim=8, null=True) for name in BOTH),
        Sequence(name="text", length=2, dim=8),
        Ids(name="sound", side=2, codes=4),
        Patches(name="image", channels=3, size=4, patch=2),
    )
    network = UViT(UViTConfig(layout=layout, dim=config["dim"], depth=2, heads=2, init="unit"))
    continuous = gaussian("cosine")
    streams = {
        "image": ((3, 4, 4), continuous, Pixels(size=4)),
        "text": ((2, 8), continuous, WORDS),
        "sound": ((4,), MaskReplace(classes=4, steps=20), Notes()),
    }
    return System(
        name="toy",
        network=network,
        modalities={
            name: Modality(name=name, clock=name, shape=shape, process=process, codec=codec)
            for name, (shape, process, codec) in streams.items()
        },
        tasks=TASKS,
        config=dict(config),
        conditions={
            name: Condition(name=name, source=name, codec=WORDS, nulls={"own": dropped(2, 8)})
            for name in BOTH
        },
        guidance=1.5,
        steps=12,
    )


def image_size(config: Mapping[str, Any]) -> int:
    return 4


def lacking(config: Mapping[str, Any]) -> list[str]:
    return []
