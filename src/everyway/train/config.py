"""What a training is: one frozen record of plain values, saved into the run folder.  Torch-free."""

from __future__ import annotations

import json
import math
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from everyway.errors import UsageError

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[no-redef]

from everyway.systems import SYSTEMS
from everyway.validation import plain

LEAST: dict[str, int] = dict(
    steps=1, batch=1, cache=1, log_every=1, sample_every=0, warmup=0, patch=0, depth=0,
    budget_s=0, save_every_s=0, weight_decay=0, clip=0,
)  # fmt: skip
"""Setting -> its least value."""
CHOICES: dict[str, tuple] = {
    "system": SYSTEMS,
    "optimiser": ("adamw", "muon"),
    "times": ("uniform", "knots", "tasks", "importance"),
    "conv": ("", "after", "before", "none"),
    "precision": ("auto", "bf16", "fp32"),
    "flip": (0, 1),
    "recompute": (0, 1),
}
BUILT = {"unidiffuser": ("nano", "mini"), "vq_diffusion": ("mini-vq",)}
"""Presets of the systems, but for those of U-ViTs, whose own module knows them."""
BOTH_CLOCKS = ("unidiffuser",)
"""Systems with the clocks `image` and `text`, whose times may lie on the lines of tasks."""


class ConfigError(UsageError):
    """A training configuration that cannot be used; the message says how to mend it."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run.

    system: a name in everyway.systems.SYSTEMS.  preset: of that system.
    skip, told_time, conv: of a U-ViT, other than its preset has them: skip is "concat", "add" or
    "none", told_time "token" or "norm", conv "after", "before" or "none".
    patch: of a U-ViT, or of a UniDiffuser that is trained on from `init`, other than it has it;
    depth: likewise, of the latter.
    data: "shapes", "lattice", "lattice-whole" (whose captions state everything), "emoji", of that
    "emoji-portraits" or "emoji-singles" alone, or a folder, in which folders are classes.
    flip: 1 adds the mirror image of every picture with its captions, which then must not say left
    or right.
    cache: samples whose latents are cached; of a larger folder so many, spread evenly.
    codecs: folder with the trained codecs, for a U-ViT a model or file that holds them.
    tokens: folder with the trained codec of tokens.
    times: how they are drawn: "uniform", on the "knots" of a discrete schedule, on the lines of
    "tasks", or by "importance" (tokens).
    shift: of "tasks", how far the times are drawn towards 1, where what a picture shows is decided.
    to_image, to_text, joint: of "tasks", shares of the samples with the text given, with the image
    given, and with both at one time.
    drop: share of the samples whose conditions are replaced by their null; a U-ViT of classes that
    drops none has no null class.  clip: largest norm of the gradient, 0 for any.
    recompute: 1 keeps no block's inside for the way back, which saves memory and costs time.
    init: a model (name or folder) to start from, codecs and weights; the optimiser starts afresh.
    out: the run folder.  steps: optimiser steps.  budget_s: stop (cooled down) within so many
    seconds; 0 means no limit.  cooldown: last fraction of the run, in which the rate falls to a
    fiftieth.
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
    shift: float = 4.0
    to_image: float = 0.53
    to_text: float = 0.32
    joint: float = 0.06
    drop: float = 0.1
    tokens: str = "runs/vq"
    precision: str = "auto"
    recompute: int = 0
    device: str = "auto"
    save_every_s: float = 120.0
    sample_every: int = 0
    log_every: int = 20

    def __post_init__(self) -> None:
        for name in ("data", "out"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; give a name or a folder")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                wanted = ", ".join(str(c) for c in choices if c != "")
                raise ConfigError(f"{name} is {getattr(self, name)!r}; choose {wanted}")
        for name, least in LEAST.items():
            if not least <= getattr(self, name) < math.inf:
                finite = " and finite" if isinstance(getattr(self, name), float) else ""
                raise ConfigError(
                    f"{name} is {getattr(self, name)}; it must be at least {least}{finite}"
                )
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"lr is {self.lr}; it must be above 0 and finite")
        if not 1 <= self.shift < math.inf:
            raise ConfigError(f"shift is {self.shift}; it must be at least 1 and finite")
        for name in ("cooldown", "drop", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it is from 0 to below 1")
        shares = (self.to_image, self.to_text, self.joint)
        if not (min(shares) >= 0 and sum(shares) <= 1):
            told = f"to_image is {shares[0]}, to_text {shares[1]} and joint {shares[2]}"
            raise ConfigError(f"{told}; they are shares, from 0 to 1 together")
        if not 0 <= self.ema <= 1:
            raise ConfigError(f"ema is {self.ema}; it is from 0 to 1")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed is {self.seed}; it must be from 0 to {2**32 - 1}")
        presets = BUILT.get(self.system, (self.preset,))
        if not self.init and self.preset not in presets:
            raise ConfigError(
                f"preset {self.preset!r} is unknown to {self.system}; "
                f"choose {' or '.join(presets)}, or another system"
            )
        if self.times == "tasks" and self.system not in BOTH_CLOCKS and not self.init:
            raise ConfigError(
                f"times is 'tasks', lines of two clocks, and {self.system} has one; choose uniform"
            )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


PRESETS: dict[str, TrainConfig] = {
    "nano": TrainConfig(
        preset="nano", data="shapes", steps=1500, lr=5e-3, shift=2.0, out="runs/nano"
    ),
    "mini": TrainConfig(
        preset="mini",
        data="lattice",
        cache=60_000,
        steps=200_000,
        lr=5e-3,
        weight_decay=0.0,
        ema=0.997,
        shift=8.0,
        to_image=0.42,
        to_text=0.30,
        joint=0.20,
        drop=0.0,
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

    Raises ConfigError (one line) for unknown presets or keys, values of the wrong type or out of
    range, and settings that the training would not read.
    """
    told = _settings(overrides or {})
    if out is not None:
        told["out"] = out
    if budget_s is not None:
        told["budget_s"] = budget_s
    if preset_or_toml in PRESETS:
        base = asdict(PRESETS[preset_or_toml])
    else:
        base = asdict(TrainConfig()) | _settings(_table(preset_or_toml))
    config = TrainConfig(**{**base, **told})
    for field in fields(TrainConfig):
        value = getattr(config, field.name)
        inherited = value == base[field.name] and _reads(base, field.name)
        if value != field.default and not inherited and not _reads(asdict(config), field.name):
            whose = f"preset {config.preset!r} of {config.system}"
            whose = "a training that starts from init" if config.init else whose
            raise ConfigError(f"{field.name}={value!r} has no effect on {whose}; leave it out")
    return config


def typed(name: str, value: object) -> int | float | str:
    """A setting's value from a TOML file, JSON or a command line; ConfigError for another kind."""
    kinds = typing.get_type_hints(TrainConfig)
    if name not in kinds:
        raise ConfigError(f"there is no setting {name!r}; the settings are {', '.join(kinds)}")
    kind = kinds[name]
    broken = kind is int and isinstance(value, float) and not value.is_integer()
    try:
        if broken or isinstance(value, bool) or (kind is str and not isinstance(value, str)):
            raise TypeError
        return kind(value if kind is str else plain(value))
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name}={value!r} is not {_spoken[kind]}") from None


def _settings(table: Mapping[str, object]) -> dict[str, typing.Any]:
    return {name: typed(name, value) for name, value in table.items()}


def _table(name: str) -> dict[str, object]:
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"{name!r} is neither a preset ({', '.join(PRESETS)}) nor a TOML file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _reads(config: Mapping[str, typing.Any], name: str) -> bool:
    """Whether a training of these settings looks at that one."""
    fresh, system = not config["init"], config["system"]
    if name in ("skip", "told_time", "conv"):
        return fresh and system == "uvit"
    if name == "patch":
        return not fresh or system == "uvit"
    if name == "depth":
        return not fresh
    if name == "codecs":
        return fresh and not config["preset"].startswith("nano")
    if name in ("shift", "to_image", "to_text", "joint"):
        return config["times"] == "tasks"
    if name == "tokens":
        return fresh and system == "vq_diffusion"
    return True


_spoken = {int: "a whole number", float: "a number", str: "text"}
