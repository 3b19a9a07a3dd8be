"""Training, from Python as from the command line: `everyway.train.train("nano", steps=100)`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def train(
    config: Any,
    progress: Callable[[Any], None] | None = None,
    note: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> dict[str, Any]:
    """Train, or go on training, and return a summary (`train.loop.train`).

    config: a TrainConfig, or the name of a preset or a TOML file, with `settings` on top.
    """
    from everyway.train.config import TrainConfig, resolve
    from everyway.train.loop import train as run

    config = config if isinstance(config, TrainConfig) else resolve(config, settings)
    if several := getattr(config.model, "run", None):  # a training that is made of others
        return several(config, progress, note)
    return run(config, progress, note)
