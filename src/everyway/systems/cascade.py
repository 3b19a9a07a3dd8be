"""Any system of pictures with systems that enlarge what it draws, one after the other.

Its config is the base's, with an entry `cascade`; tasks, conditions and sampling are the base's.
Each stage is one of the system's `systems`, samples as it does alone, and can be used alone.

Sources: Ho et al., "Cascaded Diffusion Models for High Fidelity Image Generation", 2021, arXiv
2106.15282; Balaji et al., "eDiff-I", 2022, arXiv 2211.01324 (64, 256 and 1024 pixels).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import Field
from torch import nn

from everyway.errors import UsageError
from everyway.process.training_times import TwoClocks, Uniform
from everyway.settings import ConfigError, Settings
from everyway.system import System
from everyway.systems import TrainingData, system_module
from everyway.validation import checked

NAME = "cascade"


@dataclass(frozen=True, kw_only=True)
class CascadeConfig:
    """of: the base's system.  stages: name -> "system" and "config" of what enlarges, in order."""

    of: str
    stages: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        checked(self)
        if self.of == NAME:
            raise UsageError(
                "the base of a cascade is no cascade; give its base and all the stages"
            )


def read(config: Mapping[str, Any]) -> tuple[CascadeConfig, dict[str, Any]]:
    """(the cascade, the config of its base)."""
    own = dict(config)
    return CascadeConfig(**own.pop("cascade")), own


def build(config: Mapping[str, Any]) -> System:
    """With fresh weights."""
    cascade, own = read(config)
    base = system_module(cascade.of).build(own)
    stages = {
        name: system_module(stage["system"]).build(stage["config"])
        for name, stage in cascade.stages.items()
    }
    return assembled(base, stages)


def assembled(base: System, stages: Mapping[str, System]) -> System:
    """`base` with `stages` that enlarge its pictures, in order.

    A stage that reads by a codec of the base's name and sizes takes that one: it is stored once.
    """
    described = {n: {"system": s.name, "config": dict(s.config)} for n, s in stages.items()}
    cascade = CascadeConfig(of=base.name, stages=described)
    return replace(
        base,
        name=NAME,
        config={**base.config, "cascade": asdict(cascade)},
        systems={name: _reading_as(base, stage) for name, stage in stages.items()},
    )


def _reading_as(base: System, stage: System) -> System:
    own = {}
    for name, condition in stage.conditions.items():
        other = base.conditions.get(name)
        same = other is not None and _alike(other.codec, condition.codec)
        own[name] = replace(condition, codec=other.codec) if same else condition
    return replace(stage, conditions=own)


def _alike(a: Any, b: Any) -> bool:
    """Codecs of one kind, with weights of the same names and shapes."""
    if type(a) is not type(b) or not isinstance(a, nn.Module):
        return False
    shapes = ({k: v.shape for k, v in codec.state_dict().items()} for codec in (a, b))
    return next(shapes) == next(shapes)


def missing_parts(config: Mapping[str, Any]) -> list[str]:
    """Those of the base."""
    cascade, own = read(config)
    return system_module(cascade.of).missing_parts(own)


def image_size(config: Mapping[str, Any]) -> int:
    """Side in pixels of what its base draws."""
    cascade, own = read(config)
    return system_module(cascade.of).image_size(own)


class Training(Settings):
    """What a training of a cascade as a whole reads, of which there is none."""

    preset: str = NAME
    init: str
    times: TwoClocks = Uniform()
    drop: float = Field(0.1, ge=0, lt=1)

    def system(self, data: TrainingData) -> System:
        raise ConfigError(
            "the base and the stages of a cascade are trained alone: everyway cascade"
        )

    def started(self, former: System) -> System:
        raise ConfigError(
            "the base and the stages of a cascade are trained alone: everyway cascade"
        )


TRAININGS: dict[str, dict[str, Any]] = {}
