"""A system in one file: a picture, a text and a sound, under two conditions of one kind; how it is
trained, the data that it learns from, and the medium of its sound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from everyway.atomic import atomic_write
from everyway.codecs.plain import Pixels, Words
from everyway.data.sample import Sample
from everyway.media import Medium
from everyway.nets.tokens import ContextTokens, Ids, Patches, Sequence, TimeToken
from everyway.nets.uvit import UViT, UViTConfig
from everyway.process.config import gaussian
from everyway.process.mask_replace import MaskReplace
from everyway.process.training_times import OneClock, Uniform
from everyway.request import RequestError
from everyway.settings import Settings
from everyway.system import Condition, Modality, System, dropped
from everyway.systems import TrainingData
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


# -- its sound ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Notes:
    """Four notes, each of four pitches."""

    def encode(self, raw: list[list[int]]) -> Tensor:
        return torch.tensor(raw)

    def decode(self, state: Tensor) -> list[list[int]]:
        return state.tolist()


def read_notes(given: Any, name: str) -> list[int]:
    """given: the bytes of a file of four pitches, or a list of them."""
    pitches = given.split() if isinstance(given, bytes) else given
    try:
        notes = [int(pitch) for pitch in pitches]
    except (TypeError, ValueError):
        notes = []
    if len(notes) != 4 or not set(notes) <= set(range(4)):
        raise RequestError(f"{name} is no tune; give four pitches from 0 to 3, as 0 1 2 3")
    return notes


def write_notes(path: Path, notes: list[int], row: Mapping[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(" ".join(map(str, notes)) + "\n")


TUNE = Medium(
    suffix=".tune",
    in_file=True,
    read=read_notes,
    tensor=lambda tunes, side: list(tunes),
    show=list,
    write=write_notes,
    preview=lambda notes: " ".join(map(str, notes)),
)

# -- the system --------------------------------------------------------------------------------


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
        media={"sound": TUNE, "subject": "text", "style": "text"},
        guidance=1.5,
        steps=12,
    )


def image_size(config: Mapping[str, Any]) -> int:
    return 4


def missing_parts(config: Mapping[str, Any]) -> list[str]:
    return []


# -- its training ------------------------------------------------------------------------------

LOOKS = {"red": (255, 0, 0), "blue": (0, 0, 255)}
SOUNDS = {"soft": [0, 0, 0, 0], "loud": [3, 3, 3, 3]}


@dataclass(frozen=True)
class Tunes:
    """Pictures that show the subject, sounds that are the style, and texts that say both."""

    seed: int

    def sample(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        subject, style = str(rng.choice([*LOOKS])), str(rng.choice([*SOUNDS]))
        return Sample(
            image=np.full((4, 4, 3), LOOKS[subject], np.uint8),
            captions=(f"{subject} {style}",),
            key=f"{index:08d}",
            raw={"sound": SOUNDS[style], "subject": subject, "style": style},
        )


class Training(Settings):
    """What a training of this system reads."""

    preset: str = "toy"
    init: str = ""
    dim: int = 48
    times: OneClock = Uniform()
    drop: float = 0.2

    def system(self, data: TrainingData) -> System:
        return build({"dim": self.dim})

    def started(self, former: System) -> System:
        return former


DATA = {"tunes": Tunes}
TRAININGS = {
    "toy": dict(
        data="tunes", cache=64, steps=350, batch=48, optimiser="adamw", lr=3e-3, warmup=10,
        ema=0.95, out="runs/toy",
    )
}  # fmt: skip
