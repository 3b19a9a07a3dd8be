"""What a trained network loses at each interval of noise, and where experts would help.

Two halves of an interval pull one network in two directions: with g_a and g_b the gradients of
their losses, steps along each by itself lower the loss by |g_a - g_b|^2 / 4 more, to first order
and of equal steps, than steps along their mean.  That, times the share of the noise, is the gain of
parting the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from everyway import objective
from everyway.contracts import Bundle
from everyway.process.intervals import Interval, Node
from everyway.sampling.noise import StreamNoise
from everyway.system import System
from everyway.systems import ensemble
from everyway.train import sources
from everyway.train.config import TrainConfig
from everyway.train.devices import PartialState
from everyway.train.learner import Share
from everyway.train.systems import SystemLearner, prepared

LEVEL = 3
"""The deepest level that is measured by default."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Of an interval.  loss: its mean, low to high: a 95 % interval of that.  gain: of parting it,
    None at the deepest level that was measured."""

    level: int
    index: int
    loss: float
    low: float
    high: float
    gain: float | None = None

    @property
    def node(self) -> Node:
        return Node(level=self.level, index=self.index)


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """losses: (n,) of samples.  gradients: two estimates (P,), each of half of the batches."""

    losses: Tensor
    gradients: Tensor

    def with_(self, other: Seen) -> Seen:
        """Of two halves of an interval together."""
        losses = torch.cat([self.losses, other.losses])
        return Seen(losses=losses, gradients=(self.gradients + other.gradients) / 2)

    def apart(self, other: Seen) -> float:
        """|g_a - g_b|^2 / 4 without the noise of the estimates, which may make it negative."""
        one, two = self.gradients - other.gradients
        return float(one @ two) / 4


def by_interval(
    config: TrainConfig, level: int, batches: int, note: Callable[[str], None]
) -> list[Row]:
    """The network of config.model.init in the intervals of all levels down to `level`.

    batches: of config.batch samples for each interval of the deepest level.
    """
    learner = _learner(config, note)
    made = {}
    for index in range(2**level):
        node = Node(level=level, index=index)
        made[node] = _seen(learner, node, batches)
        note(f"measured {index + 1} of {2**level} intervals")
    rows = [_row(node, seen) for node, seen in made.items()]
    while len(made) > 1:
        halves = [made.pop(node) for node in sorted(made, key=lambda node: node.index)]
        level -= 1
        for index, (one, other) in enumerate(zip(halves[::2], halves[1::2])):
            node = Node(level=level, index=index)
            made[node] = one.with_(other)
            gain = (node.high - node.low) * one.apart(other)
            rows.append(_row(node, made[node], gain))
    return sorted(rows, key=lambda row: (row.level, row.index))


UNSEEN_SEED = 1_000_000
"""Of samples that no training draws."""


@torch.no_grad()
def by_expert(
    system: System, config: TrainConfig, cells: Sequence[Interval], samples: int
) -> list[dict[str, Any]]:
    """The loss at the noise of every expert of an ensemble, by each of them: a row an interval.

    config: of the training.  cells: the intervals, by rising noise.  samples: of unseen data, at
    the same noise for all.
    """
    experts, _ = ensemble.read(system.config)
    clock = ensemble.restricted(system, experts.clocks[0])
    encoded = _unseen(system, config, samples)
    return [
        {
            "expert": cell.name,
            "low": cell.low,
            "high": cell.high,
            "by": {
                name.removeprefix("network."): _loss(
                    replace(system, network=network), config, encoded, cell, clock
                )
                for name, network in system.networks.items()
            },
        }
        for cell in cells
    ]


def _unseen(system: System, config: TrainConfig, samples: int) -> Bundle:
    """The first variant of each, as states and contexts."""
    data = sources.data_of(system, config.model_copy(update={"seed": UNSEEN_SEED}))
    made = [data.sample(k % len(data) if hasattr(data, "__len__") else k) for k in range(samples)]
    return {name: v[:, 0] for name, v in sources.encode(system, made).items()}


def _loss(
    system: System, config: TrainConfig, encoded: Bundle, cell: Interval, clock: str
) -> float:
    count = len(next(iter(encoded.values())))
    noise = StreamNoise(torch.Generator().manual_seed(UNSEEN_SEED))
    within = {"low": cell.low, "high": cell.high, "clock": clock}
    clocks = {m.clock: m.process for m in system.modalities.values()}
    times = config.model.times.model_copy(update=within).draw(noise, clocks, count)
    contexts = objective.contexts_of(system, encoded, noise, 0.0, count)
    x0 = {name: encoded[name].float() for name in system.modalities}
    losses = objective.losses(system, x0, times, noise, contexts)
    return float(objective.total(system, losses))


def _learner(config: TrainConfig, note: Callable[[str], None]) -> SystemLearner:
    system = prepared(config)
    learner = SystemLearner(system, sources.cached(system, config, note), config)
    return learner.to(PartialState().device).eval()


def _seen(learner: SystemLearner, node: Node, batches: int) -> Seen:
    size, config = learner.config.batch, learner.config
    times = config.model.times.model_copy(update={"low": node.low, "high": node.high})
    learner.config = config.model_copy(
        update={"model": config.model.model_copy(update={"times": times})}
    )
    weights = [p for p in learner.parameters() if p.requires_grad]
    losses, halves = [], [0.0, 0.0]
    for step in range(batches):
        share = Share(
            seed=config.seed, step=step, size=size, rows=slice(0, size), device=weights[0].device
        )
        loss, each = learner(learner.batch(share))
        losses.append(total(learner, each))
        found = torch.autograd.grad(loss, weights, materialize_grads=True)
        halves[step % 2] += torch.cat([g.flatten() for g in found]) * (2 / batches)
    learner.config = config
    return Seen(losses=torch.cat(losses), gradients=torch.stack(halves))


def total(learner: SystemLearner, losses: dict[str, Tensor]) -> Tensor:
    """(B,) the weighted losses of the samples, as they are minimised."""
    modalities = learner.system.modalities
    return sum(modalities[name].weight * value.detach() for name, value in losses.items()).cpu()


def _row(node: Node, seen: Seen, gain: float | None = None) -> Row:
    mean, error = float(seen.losses.mean()), float(seen.losses.std() / len(seen.losses) ** 0.5)
    ends = {"low": mean - 1.96 * error, "high": mean + 1.96 * error}
    return Row(level=node.level, index=node.index, loss=mean, gain=gain, **ends)
