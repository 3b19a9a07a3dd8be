"""Codecs trained on a folder of pictures with captions, one training after the other.

Each is an ordinary training of `train.config.CODECS` in a folder of its own, such as
RUN/codec-image, which goes on where it was stopped.  Its codec goes into the folder of codecs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from everyway.checkpoints import codec_folder
from everyway.train import price
from everyway.train.config import TrainConfig, resolve
from everyway.train.folder import TrainingProgress
from everyway.train.loop import train

MADE = {training: part for part, training in codec_folder.MADE_BY.items()}
"""Training -> the codec that it makes."""


def stage(config: TrainConfig, training: str, seconds: float = 0.0) -> TrainConfig:
    """The config of the training of a codec that the system of `config` reads.

    training: its name in MADE.  seconds: its budget; 0 is the one that it has by default.
    """
    own = {"data": config.source.data, "codecs": config.model.codecs, "device": config.run.device}
    return resolve(training, own, str(config.folder / training), seconds or None)


def rehearsed(
    config: TrainConfig, shares: Mapping[str, float], place: Path
) -> tuple[dict[str, float], float]:
    """Tries some steps of each training in the folder `place`.  The system is then rehearsed on the
    codecs that they leave.

    shares: training -> its share of the budget, which includes what it takes beside learning.
    Returns training -> the seconds that it is to learn for, and the seconds of all of them.
    Raises ConfigError where a share leaves no time to learn in.
    """
    stages, spent = {}, 0.0
    for training, share in shares.items():
        own = stage(config, training)
        found = price.rehearsed(own, place / training)
        aside, seconds = found.build + found.finish, own.budget_s
        if config.budget_s:
            seconds = price.left_of(config.budget_s, aside, share)
        stages[training] = seconds
        spent += seconds + aside
    return stages, spent


def run(
    config: TrainConfig,
    stages: Mapping[str, float],
    progress: Callable[[TrainingProgress], None] | None,
    note: Callable[[str], None],
) -> dict[str, Any] | None:
    """Trains the codecs that are not there yet.

    stages: as `rehearsed` returns them.  progress, note: as of `train.loop.train`.
    Returns the summary of a training that was stopped, or None once all codecs are there.
    """
    for training, seconds in stages.items():
        if MADE[training] in codec_folder.metadata(Path(config.model.codecs)):
            continue
        note(f"{training}: {price.spell(seconds)}")
        done = train(stage(config, training, seconds), progress, note)
        if done["stopped"]:
            return done
    return None
