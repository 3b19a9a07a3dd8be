"""What a training is: one frozen model of plain values, saved into the run folder.

What is trained, a system or a codec, has settings of its own (`model`), in its own file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Literal, TypeVar

from pydantic import Field, SerializeAsAny, ValidationError, model_validator

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

from everyway.settings import ConfigError, FileName, Settings, fault, merged, places
from everyway.systems import SYSTEMS, system_module

__all__ = ["ConfigError", "TrainConfig", "names", "parsed", "resolve"]

CODECS = {
    "codec-image": "everyway.train.codec_image",
    "codec-vq": "everyway.train.codec_vq",
    "encoder": "everyway.train.encoder",
    "text": "everyway.train.text",
    "classifier": "everyway.train.classifier",
    "distill": "everyway.train.distill",
}
"""What is trained besides systems -> its module.  Like a system's, each has

    Training                a Settings class, the `model` of its config
    TRAININGS               name of a preset -> settings other than the defaults
"""
PRESETS = ("nano", "mini", "mini-vq", "ediffi-nano", *CODECS)
"""What is shipped here, for help that imports no PyTorch; `names` asks every system."""
FORMER = {"recogniser": "classifier"}
"""Names of old commands and run folders -> those of now."""
Own = TypeVar("Own", bound=Settings)


class Source(Settings):
    """What is learned from.

    data: a built-in set, or a folder of pictures, in which folders are classes.
    cache: samples whose latents are cached; of a larger folder so many, spread evenly.
    flip: adds the mirror image of every picture with its captions, which must not say left or
    right.
    compose: pictures of `cache` built-in scenes are put together and encoded on the training's
    device as they are needed, not cached: for GPUs (`train.composed`).
    """

    data: FileName = "shapes"
    cache: int = Field(20_000, ge=1)
    flip: bool = False
    compose: bool = False


class Optimisation(Settings):
    """How weights move.

    optimiser: "muon" is for the matrices inside the blocks, AdamW for the rest.
    warmup: steps.  cooldown: last fraction of the run, in which the rate falls to a fiftieth.
    clip: largest norm of the gradient, 0 for any.  ema: decay of the average that is exported.
    """

    optimiser: Literal["adamw", "muon"] = "muon"
    lr: float = Field(1e-3, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.99, ge=0, lt=1)
    weight_decay: float = Field(0.03, ge=0)
    warmup: int = Field(100, ge=0)
    cooldown: float = Field(0.2, ge=0, lt=1)
    clip: float = Field(1.0, ge=0)
    ema: float = Field(0.9995, ge=0, le=1)


class Run(Settings):
    """Where a training runs, and what it leaves.

    out: the run folder.  device: "auto" takes a GPU if there is one, and each process its own.
    precision: "auto" measures bf16 and float32 once and takes the faster.
    gradient_checkpointing: of the blocks, which saves memory and costs time.
    compile: the network goes through torch.compile.  shard: weights, gradients and optimiser lie in
    shards over the processes' GPUs (FSDP2).
    save_every_s: seconds between savings, of which each exports the average, too, where `publish`
    is true.  sample_every: steps between sheets of samples, 0 for
    none.  log_every: steps.
    weights: number format of what is exported.  licence: of what is exported, for its card.
    """

    out: FileName = "runs/nano"
    device: str = "auto"
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    shard: bool = False
    save_every_s: float = Field(120.0, ge=0)
    publish: bool = False
    sample_every: int = Field(0, ge=0)
    log_every: int = Field(20, ge=1)
    weights: Literal["fp32", "bf16", "fp16"] = "fp32"
    licence: str = ""

    @model_validator(mode="after")
    def _all_read(self) -> Run:
        if self.shard:
            self.unread(("sample_every",), "a training in shards")
        return self


class TrainConfig(Settings, Generic[Own]):
    """Settings of one training run.

    system: a name in SYSTEMS or CODECS.  steps: optimiser steps.  budget_s: stop, cooled down,
    within so many seconds; 0 is no limit.  batch: of all processes together, in `accumulate`
    micro-batches one after the other.
    """

    system: str
    seed: int = Field(0, ge=0, lt=2**32)
    steps: int = Field(1000, ge=1)
    budget_s: float = Field(0.0, ge=0)
    batch: int = Field(64, ge=1)
    accumulate: int = Field(1, ge=1)
    model: SerializeAsAny[Own]
    source: Source = Source()
    optim: Optimisation = Optimisation()
    run: Run = Run()

    @property
    def folder(self) -> Path:
        return Path(self.run.out)

    def to_json(self) -> str:
        return json.dumps(self.model_dump(), indent=2)  # names in any bytes are escaped


def module_of(system: str) -> ModuleType:
    """The module of what is trained; ConfigError lists what can be."""
    system = FORMER.get(system, system)
    if system in SYSTEMS:
        return system_module(system)
    if system not in CODECS:
        raise ConfigError(f"system is {system!r}; choose {', '.join((*SYSTEMS, *CODECS))}")
    return import_module(CODECS[system])


def preset(name: str) -> dict[str, Any] | None:
    """The settings of a preset other than the defaults, its `system` among them.

    No module is imported that need not be: those of codecs are named as their preset is.
    """
    name = FORMER.get(name, name)
    for system in (name,) if name in CODECS else SYSTEMS:
        if name in (found := module_of(system).TRAININGS):
            return {"system": system, **found[name]}
    return None


def names() -> list[str]:
    """Of every preset."""
    return [name for system in SYSTEMS for name in module_of(system).TRAININGS] + [*CODECS]


def _kind(system: Any) -> type[TrainConfig]:
    if not isinstance(system, str):
        raise ConfigError(f"system is {system!r}; it should be a name")
    return TrainConfig[module_of(system).Training]  # type: ignore[misc]


def parsed(*tables: Mapping[str, Any]) -> TrainConfig:
    """The config of plain data, later tables above earlier ones; ConfigError in one line."""
    system = next((t["system"] for t in reversed(tables) if "system" in t), "unidiffuser")
    kind = _kind(system)
    system = FORMER.get(system, system)
    try:
        return kind(**{"model": {}, **merged(kind, *tables), "system": system})
    except ValidationError as error:
        raise ConfigError(fault(error)) from None


def resolve(
    preset_or_toml: str,
    overrides: Mapping[str, Any] | None = None,
    out: str | None = None,
    budget_s: float | None = None,
) -> TrainConfig:
    """A preset's name or a TOML file, with `key=value` overrides on top.

    A key is the path of a setting, such as `optim.lr`, or its last word alone.
    Raises ConfigError (one line) for unknown presets or keys, values of the wrong type or out of
    range, and settings that the training would not read.
    """
    given = {"out": out, "budget_s": budget_s}
    given = {**(overrides or {}), **{k: v for k, v in given.items() if v is not None}}
    base = preset(preset_or_toml) or _table(preset_or_toml)
    if given.get("system", base.get("system")) != base.get("system"):
        known = places(_kind(given["system"]))  # the preset is of another system
        base = {key: value for key, value in base.items() if key in known}
    return parsed(base, given)


def _table(name: str) -> dict[str, Any]:
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"{name!r} is neither a preset ({', '.join(names())}) nor a TOML file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def differences(former: TrainConfig, config: TrainConfig, but: set[str]) -> list[str]:
    """The settings that differ between two configs, `but` for some."""
    one, other = former.model_dump(), config.model_dump()

    def at(data: Any, path: tuple[str, ...]) -> Any:
        for word in path:
            data = data.get(word) if isinstance(data, dict) else None
        return data

    known = places(type(config)) | places(type(former))
    parts = {path[:-1] for path in known.values()}
    leaves = {name: path for name, path in known.items() if path not in parts}
    return [n for n, p in leaves.items() if n not in but and at(one, p) != at(other, p)]
