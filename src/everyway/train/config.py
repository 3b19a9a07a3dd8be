"""What a training is: one frozen record of plain values, saved into the run folder.  Torch-free."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]


class ConfigError(ValueError):
    """A training configuration that cannot be used; the message says how to mend it."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run.

    system: a name in everyway.systems.SYSTEMS.  preset: of that system.
    skip, told_time, conv: of a U-ViT, other than its preset has them: skip is "concat", "add" or
    "none", told_time "token" or "norm", conv "after", "before" or "none".
    patch: of a U-ViT, or of a UniDiffuser that is trained on from `init`, other than it has it;
    depth: likewise, of the latter.
    data: "emoji", "shapes", or a folder, in which folders are classes.  flip: 1 adds the mirror
    image of every picture.  cache: samples whose latents are cached; of a larger
    folder so many, spread evenly.
    codecs: folder with the trained codecs, for a U-ViT a model or file that holds them.
    tokens: folder with the trained codec of tokens.
    times: how they are drawn: "uniform", on the "knots" of a discrete schedule, on the lines of
    "tasks", or by "importance" (tokens).
    drop: share of the samples whose conditions are replaced by their null; a U-ViT of classes that
    drops none has no null class.  clip: largest norm of the gradient, 0 for any.
    recompute: 1 keeps no block's inside for the way back, which saves memory and costs time.
    init: a model (name or folder) to start from, codecs and weights; the optimiser starts afresh.
    out: the run folder.  steps: optimiser steps.  budget_s: stop (cooled down) within so many
    seconds; 0 means no limit.  cooldown: last fraction of the run in which the rate falls to 0.
    optimiser: "adamw", or "muon" for the matrices inside the blocks (AdamW for the rest).
    sample_every: steps between grids of samples in every direction; 0 draws none.
    device: "auto" takes a GPU if there is one.
    precision: "auto" measures bf16 and float32 once and takes the faster; or "bf16" | "fp32".
    """

    system: str = "unidiffuser"
    preset: str = "nano"
    skip: str = ""
    told_time: str = ""
    conv: str = ""
    patch: int = 0
    depth: int = 0
    data: str = "shapes"
    flip: int = 0
    cache: int = 20_000
    codecs: str = ""
    init: str = ""
    out: str = "runs/nano"
    seed: int = 0
    steps: int = 1000
    budget_s: float = 0.0
    batch: int = 64
    optimiser: str = "muon"
    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.03
    warmup: int = 100
    cooldown: float = 0.2
    clip: float = 1.0
    ema: float = 0.9995
    times: str = "tasks"
    drop: float = 0.1
    tokens: str = "runs/vq"
    precision: str = "auto"
    recompute: int = 0
    device: str = "auto"
    save_every_s: float = 120.0
    sample_every: int = 0
    log_every: int = 20

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "cache"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.lr <= 0:
            raise ConfigError(f"lr is {self.lr}; it must be above 0")
        if not 0 <= self.cooldown <= 1:
            raise ConfigError(f"cooldown is {self.cooldown}; it is a fraction from 0 to 1")
        if self.optimiser not in ("adamw", "muon"):
            raise ConfigError(f"optimiser is {self.optimiser!r}; choose adamw or muon")
        if self.times not in ("uniform", "knots", "tasks", "importance"):
            raise ConfigError(f"times is {self.times!r}; choose uniform, knots, tasks, importance")
        if self.conv not in ("", "after", "before", "none"):
            raise ConfigError(f"conv is {self.conv!r}; choose after, before or none")
        if not 0 <= self.drop < 1:
            raise ConfigError(f"drop is {self.drop}; it is a share from 0 to below 1")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise ConfigError(f"precision is {self.precision!r}; choose auto, bf16 or fp32")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


PRESETS: dict[str, TrainConfig] = {
    "nano": TrainConfig(preset="nano", data="shapes", steps=1500, lr=5e-3, out="runs/nano"),
    "mini": TrainConfig(
        preset="mini",
        data="emoji",
        cache=24_000,
        steps=200_000,
        batch=128,
        lr=5e-3,
        weight_decay=0.0,
        warmup=100,
        codecs="runs/codecs",
        out="runs/mini",
    ),
    "mini-vq": TrainConfig(
        system="vq_diffusion",
        preset="mini-vq",
        data="emoji",
        cache=24_000,
        steps=200_000,
        batch=64,
        lr=5e-3,
        weight_decay=0.0,
        times="importance",
        out="runs/mini-vq",
    ),
}


def resolve(
    preset_or_toml: str,
    overrides: Mapping[str, str] | None = None,
    out: str | None = None,
    budget_s: float | None = None,
) -> TrainConfig:
    """A preset's name or a TOML file, with `key=value` overrides on top.

    Raises ConfigError (one line) for unknown presets, keys or values of the wrong type.
    """
    if preset_or_toml in PRESETS:
        config = PRESETS[preset_or_toml]
    else:
        path = Path(preset_or_toml)
        if not path.is_file():
            raise ConfigError(
                f"{preset_or_toml!r} is neither a preset ({', '.join(PRESETS)}) nor a TOML file"
            )
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
        config = _with(TrainConfig(), table)
    config = _with(config, overrides or {})
    if out is not None:
        config = replace(config, out=out)
    if budget_s is not None:
        config = replace(config, budget_s=budget_s)
    return config


def _with(config: TrainConfig, table: Mapping[str, object]) -> TrainConfig:
    kinds = typing.get_type_hints(TrainConfig)
    values = {}
    for key, value in table.items():
        if key not in kinds:
            names = ", ".join(f.name for f in fields(TrainConfig))
            raise ConfigError(f"there is no setting {key!r}; the settings are {names}")
        kind = kinds[key]
        try:
            values[key] = kind(value)
        except (TypeError, ValueError):
            raise ConfigError(f"{key}={value!r} is not {_spoken[kind]}") from None
    return replace(config, **values)


_spoken = {int: "a whole number", float: "a number", str: "text"}
