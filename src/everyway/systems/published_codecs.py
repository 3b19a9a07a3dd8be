"""Fresh networks of published sizes, on codecs that others trained: what all such systems share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from everyway.checkpoints.tensor_files import Entries, check
from everyway.settings import ConfigError
from everyway.system import System
from everyway.systems import TrainingData


def fresh(
    module: ModuleType, settings: Mapping[str, Any], codecs: str, data: TrainingData
) -> System:
    """The system of `module` with a fresh network.

    settings: of the network, as `assembled` takes them.  codecs: a model, or a folder of codecs
    alone as `everyway convert` makes it.
    Raises ConfigError for codecs that are missing, ValueError for those that do not fit.
    """
    if codecs and not Path(codecs).exists() and codecs.startswith("runs/"):
        parts = module.missing_parts(module.assembled(settings, {}, {}))
        raise ConfigError(f"there is no folder {codecs!r}; {how(parts, codecs)}")
    opened = data.opened(codecs) if codecs else None
    config = module.assembled(settings, {}, _settings_of(opened.config["config"] if opened else {}))
    if parts := module.missing_parts(config):
        raise ConfigError(f"codecs={codecs!r} lacks {', '.join(parts)}; {how(parts)}")
    system = module.build(config)
    for name, codec in system.codecs.items():
        fill(codec, opened.components[name])
    return system


def _settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Component -> settings of its codec; models of tokens name theirs each by itself."""
    if "codec" in config:
        return {"image": config["codec"], "text": config.get("text", {})}
    return dict(config.get("codec_config", {}))


def how(parts: list[str], folder: str = "DIR") -> str:
    """The command that makes a folder of the codecs that are missing."""
    rest = "".join(f" --part {part}" for part in parts[1:])
    return f"give one: everyway convert {parts[0].partition('=')[2]} --out {folder}{rest}"


def fill(codec: nn.Module, entries: Entries) -> None:
    """Raises ValueError for tensors that do not fit."""
    wanted = {k: tuple(v.shape) for k, v in codec.state_dict().items()}
    check({k: e.shape for k, e in entries.items()}, wanted)
    codec.load_state_dict({k: e.read(torch.float32) for k, e in entries.items()})
