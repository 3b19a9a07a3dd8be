"""Where a training is watched: TensorBoard where it is installed, others where asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image

from everyway.train.config import ConfigError, TrainConfig
from everyway.train.devices import Accelerator, tracking

BOARD = "tensorboard"


def check(name: str) -> None:
    """ConfigError for a tracker that Accelerate does not know, or that is not installed."""
    known = sorted(tracking.LOGGER_TYPE_TO_CLASS)
    if name and name not in known:
        raise ConfigError(f"tracker is {name!r}; choose one of {', '.join(known)}")
    if name and name not in map(str, tracking.get_available_trackers()):
        raise ConfigError(f"the tracker {name} is not installed: pip install {name}")


@contextmanager
def told(engine: Accelerator, config: TrainConfig, step: int) -> Iterator[None]:
    """The trackers of a run that goes on from a step; the first process speaks to them.

    What TensorBoard was told of later steps, by a run that was killed, it forgets.
    """
    name, folder = config.run.tracker, config.folder
    if BOARD in map(str, tracking.get_available_trackers()):
        board = tracking.TensorBoardTracker(BOARD, str(folder), purge_step=step + 1)
        engine.log_with.append(board)
    if name not in ("", BOARD):
        engine.log_with.append(tracking.LoggerType(name))
    engine.init_trackers("everyway", init_kwargs={"wandb": {"name": folder.name}})
    for tracker in engine.trackers:
        if tracker.name != BOARD:  # which would write files of its own
            tracker.store_init_configuration(_flat(config.model_dump()))
    try:
        yield
    finally:
        for tracker in engine.trackers:
            tracker.finish()


def show(engine: Accelerator, name: str, picture: Image.Image, step: int) -> None:
    """A picture to every tracker that takes some."""
    pixels = np.asarray(picture.convert("RGB"))[None]
    for tracker in engine.trackers:
        if hasattr(tracker, "log_images"):
            layout = {"dataformats": "NHWC"} if tracker.name == BOARD else {}
            tracker.log_images({name: pixels}, step=step, **layout)


def _flat(settings: dict[str, Any], start: str = "") -> dict[str, Any]:
    """Settings in one table, by the path of each."""
    out: dict[str, Any] = {}
    for key, value in settings.items():
        inner = value if isinstance(value, dict) else {}
        out |= _flat(inner, f"{start}{key}.") if inner else {f"{start}{key}": value}
    return out
