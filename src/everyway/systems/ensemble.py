"""Any system of Gaussian states with experts in place of its network, each for its own noise.

Its config is the other system's, with an entry `experts`; codecs, conditions, tasks and sampling
are the other system's own.

Source: Balaji et al., "eDiff-I", 2022, arXiv 2211.01324.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from pydantic import Field
from torch import nn

from everyway.errors import UsageError
from everyway.nets.experts import Experts
from everyway.process.intervals import Plan
from everyway.process.training_times import Law, TwoClocks, Uniform
from everyway.settings import ConfigError, Settings
from everyway.system import System
from everyway.systems import TrainingData, system_module
from everyway.validation import checked

NAME = "ensemble"


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """of: the system.  clocks, bounds, names: of `nets.experts.Experts`.

    base: the expert that the others are stored as differences from; "" stores all of them whole.
    """

    of: str
    clocks: list[str]
    bounds: list[float]
    names: list[str]
    base: str = ""

    def __post_init__(self) -> None:
        checked(self)
        if self.of == NAME:
            raise UsageError("experts are networks, and no ensembles; split the model they are of")
        if self.base and self.base not in self.names:
            raise UsageError(f"base is {self.base!r}; choose one of {', '.join(self.names)}")

    @property
    def deltas(self) -> dict[str, str]:
        """Component -> the one that it is stored as a difference from."""
        others = {name for name in self.names if self.base and name != self.base}
        return {f"network.{name}": f"network.{self.base}" for name in sorted(others)}


def read(config: Mapping[str, Any]) -> tuple[ExpertsConfig, dict[str, Any]]:
    """(the experts, the config of the system that they are of)."""
    own = dict(config)
    return ExpertsConfig(**own.pop("experts")), own


def whole(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of any system, for weights that are stored whole: experts as they are, and not as
    differences from one of them."""
    experts = {"experts": {**config["experts"], "base": ""}} if "experts" in config else {}
    return {**config, **experts}


def build(config: Mapping[str, Any]) -> System:
    """Experts that are all alike."""
    experts, own = read(config)
    system = system_module(experts.of).build(own)
    networks = {name: deepcopy(system.network) for name in dict.fromkeys(experts.names)}
    return assembled(system, experts, networks)


def assembled(system: System, experts: ExpertsConfig, networks: Mapping[str, nn.Module]) -> System:
    """`system` with `networks`, by name, in place of its own."""
    network = Experts(networks, clocks=experts.clocks, bounds=experts.bounds, names=experts.names)
    config = {**system.config, "experts": asdict(experts)}
    return replace(system, name=NAME, network=network, config=config, deltas=experts.deltas)


def ensemble(
    system: System, plan: Plan, times: Law, networks: Mapping[str, nn.Module] | None = None
) -> System:
    """A system whose network is that of `system`, or `networks` by name, in the cells of `plan`.

    times: of its training.  Errors as of `experts_of`.
    """
    experts = experts_of(system, plan, times)
    own = networks or {name: deepcopy(system.network) for name in experts.names}
    return assembled(system, experts, own)


def experts_of(
    system: System, plan: Plan, times: Law, clock: str = "", base: str = ""
) -> ExpertsConfig:
    """The experts that a plan makes of a system.

    times: the distribution that training draws from, which says where the quantiles lie.
    clock: which decides before the others.  base: of `ExpertsConfig`.
    Raises UsageError for a system of tokens, and for a clock that there is not.
    """
    clocks = deciding(system, clock)
    quantiles = torch.tensor([cell.low for cell in plan.cells[1:]], dtype=torch.float64)
    bounds = times.quantile(quantiles, system.on(clocks[0])[0].process)
    names = [cell.name for cell in plan.cells]
    return ExpertsConfig(
        of=system.name, clocks=clocks, bounds=bounds.tolist(), names=names, base=base
    )


def deciding(system: System, clock: str = "") -> list[str]:
    """The clocks that experts are chosen by: the first of them that a task has, `clock` before all.

    Where one network sees several clocks at once that is the first one, as a picture's in
    UniDiffuser: what is conditional and what is not are then of one expert, as the guidance of
    pictures needs.  Clocks of tokens, whose noise has no quantiles here, do not decide.
    """
    states = [m for name, m in system.modalities.items() if name not in system.tokens]
    clocks = list(dict.fromkeys(m.clock for m in states))
    if not clocks:
        raise UsageError(f"a {system.name} cannot be split; give a system of Gaussian states")
    if clock and clock not in clocks:
        raise UsageError(f"clock {clock!r} is unknown; choose one of {', '.join(clocks)}")
    return sorted(clocks, key=lambda name: name != clock)


def restricted(system: System, clock: str = "") -> str:
    """The clock whose times an expert keeps to in training; "" is all, where a task has but one."""
    alone = all(len(task.roles) == 1 for task in system.tasks.values())
    return "" if alone else deciding(system, clock)[0]


def swapped(system: System, name: str, other: nn.Module) -> System:
    """An ensemble, or a cascade of one, with another network in place of the expert `name`."""
    experts, _ = read(system.config)
    networks = {n.removeprefix("network."): m for n, m in system.networks.items()}
    made = assembled(system, experts, {**networks, name: other})
    return replace(made, name=system.name)


def missing_parts(config: Mapping[str, Any]) -> list[str]:
    """Those of the system that the experts are of."""
    experts, own = read(config)
    return system_module(experts.of).missing_parts(own)


def image_size(config: Mapping[str, Any]) -> int:
    """That of the system that the experts are of."""
    experts, own = read(config)
    return system_module(experts.of).image_size(own)


class Training(Settings):
    """What a training of all experts at once reads; `train.experts` trains them one by one.

    init: the ensemble.  times: a distribution of `process.training_times`.  drop: share of the
    samples without their conditions.
    """

    preset: str = NAME
    init: str
    times: TwoClocks = Uniform()
    drop: float = Field(0.1, ge=0, lt=1)

    def system(self, data: TrainingData) -> System:
        raise ConfigError("an ensemble is split from a trained model: everyway experts split")

    def started(self, former: System) -> System:
        return former


TRAININGS: dict[str, dict[str, Any]] = {}
