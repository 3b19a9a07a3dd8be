"""A U-ViT to train: a size with the options of a recipe, told what the data can tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from everyway.checkpoints.tensor_files import Entries, check
from everyway.errors import UsageError
from everyway.layouts import convert
from everyway.nets.tokens import Label, Patches
from everyway.nets.uvit import UViTConfig
from everyway.system import System
from everyway.systems import uvit
from everyway.train import sources
from everyway.train.config import ConfigError, TrainConfig

_NANO: dict[str, Any] = dict(
    size=16, patch=4, channels=3, dim=128, depth=4, heads=4, time_scale=999.0, init="unit"
)
NANO = {
    "nano": uvit.network(**_NANO),
    "nano-class": uvit.network(**_NANO, classes=2),
    "nano-text": uvit.network(**_NANO, context=(10, 16)),
}
"""Sizes for tests and first steps: 16x16 pixels, a few minutes of training."""
NANO_SAMPLING: dict[str, Any] = dict(sampler="dpm-fast", steps=50, guidance=1.5)
RUNS = "runs/"
"""Where recipes keep the codecs that were made for them; nobody on the hub is called so."""
READ = {"image": ("", ("autoencoder", "fold", "scale")), "text": ("states.", ("text", "tokenizer"))}
"""Component -> what is read of it from other models: how tensors' names begin, and settings."""


def network_of(config: TrainConfig) -> UViTConfig:
    """The preset's network with the options of `config`; classes are the preset's own."""
    sizes = {**NANO, **uvit.PRESETS}
    if config.preset not in sizes:
        raise ConfigError(f"preset {config.preset!r} is unknown; choose one of {', '.join(sizes)}")
    made = sizes[config.preset]
    options: dict[str, Any] = {"skip": config.skip, "time": config.told_time}
    if config.conv:
        options |= {"conv": config.conv != "none", "conv_first": config.conv == "before"}
    try:
        made = replace(made, **{k: v for k, v in options.items() if v != ""})
        return _with(made, Patches, patch=config.patch) if config.patch else made
    except UsageError as error:
        raise ConfigError(str(error)) from None


def _with(network: UViTConfig, kind: type, **changes: Any) -> UViTConfig:
    """The network with its stream of that kind changed."""
    layout = (replace(s, **changes) if isinstance(s, kind) else s for s in network.layout)
    return replace(network, layout=tuple(layout))


def system_of(config: TrainConfig) -> System:
    """The system with a fresh network; its classes are the folders of the data.

    A null class is added where conditions are dropped.  Raises ConfigError for data without
    classes or codecs that are missing, ValueError for codecs that do not fit.
    """
    network = network_of(config)
    told = uvit.told_of(network)
    if told == "label":
        network = _with(network, Label, classes=_classes(config) + (config.drop > 0))
    settings, weights = _codecs(config, told)
    own = replace(uvit.full(network, settings), null_class=told == "label" and config.drop > 0)
    if config.preset in NANO:
        own = replace(own, **NANO_SAMPLING)
    if told == "label" and not own.null_class:
        own = replace(own, guidance=1.0)
    if parts := uvit.lacking(own):
        raise ConfigError(f"codecs={config.codecs!r} lacks {', '.join(parts)}; {_how(parts)}")
    system = uvit.build(own)
    for name, entries in weights.items():
        _fill(system.codecs[name], entries)
    return system


def _how(parts: list[str], folder: str = "DIR") -> str:
    """The command that makes a folder of the codecs that are lacking."""
    rest = "".join(f" --part {part}" for part in parts[1:])
    return f"give one: everyway convert {parts[0].partition('=')[2]} --out {folder}{rest}"


def _classes(config: TrainConfig) -> int:
    found = getattr(sources.open_data(config.data, config.seed, captioned=False), "classes", ())
    if not found:
        raise ConfigError(f"data {config.data!r} has no classes; give a folder with a folder each")
    return len(found)


def _codecs(config: TrainConfig, told: str) -> tuple[dict[str, Any], dict[str, Entries]]:
    """(settings, tensors) of the codecs in config.codecs, by component."""
    if config.preset in NANO:
        words = {"text": {"vocabulary": list(sources.vocabulary(config))}} if told == "text" else {}
        return words, {}
    if not config.codecs:
        return {}, {}
    if not Path(config.codecs).exists() and config.codecs.startswith(RUNS):
        parts = uvit.lacking(uvit.full(network_of(config)))
        raise ConfigError(f"there is no folder {config.codecs!r}; {_how(parts, config.codecs)}")
    opened = convert.open_model(config.codecs)
    had, settings, weights = opened.config["config"].get("codec_config", {}), {}, {}
    for name, (start, fields) in READ.items():
        if fields[0] in had.get(name, {}) and (name == "image" or told == name):
            settings[name] = {k: v for k, v in had[name].items() if k in fields}
            tensors = opened.components[name].items()
            weights[name] = {k: entry for k, entry in tensors if k.startswith(start)}
    return settings, weights


def _fill(codec: torch.nn.Module, entries: Entries) -> None:
    wanted = {k: tuple(v.shape) for k, v in codec.state_dict().items()}
    check({k: e.shape for k, e in entries.items()}, wanted)
    codec.load_state_dict({k: e.read(torch.float32) for k, e in entries.items()})
