"""A system of flows as a learner: each sample is of one flow, and a step learns from all of them.

The gradients of the flows are summed in one update, as in Xu et al., "Versatile Diffusion", 2022,
arXiv 2211.08332.  A flow is a task: the network is shown what it makes and given what it is made
of, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from everyway import objective
from everyway.contracts import Bundle, Contexts, Times
from everyway.settings import ConfigError
from everyway.system import System
from everyway.train.config import TrainConfig
from everyway.train.latents import Latents
from everyway.train.learner import RowNoise, Share
from everyway.train.systems import SystemLearner

GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, spread evenly from the first on."""


class FlowLearner(SystemLearner):
    """config.model.flows: task -> its share of the samples; 0 leaves it out.

    config.model.rates: component of the network -> part of the training's rate that it learns at.
    """

    def __init__(self, system: System, latents: Latents, config: TrainConfig) -> None:
        super().__init__(system, latents, config)
        self.skips = True  # layers that no flow of a step takes
        self.flows = {name: share for name, share in config.model.flows.items() if share}
        if odd := sorted(self.flows.keys() - system.tasks.keys()):
            known = ", ".join(system.tasks)
            raise ConfigError(f"there is no flow {odd[0]!r}; the flows are {known}")
        if not self.flows:
            raise ConfigError("no flow has a share of the samples; give one of them more than 0")
        parts = system.network.components
        if odd := sorted(config.model.rates.keys() - parts.keys()):
            raise ConfigError(f"there are no layers {odd[0]!r}; they are {', '.join(parts)}")
        whose = {id(p): name for name, part in parts.items() for p in part.parameters()}
        self.rates = {
            name: config.model.rates.get(whose[id(p)], 1.0)
            for name, p in self.named_parameters()
            if id(p) in whose
        }

    def rate_of(self, name: str) -> float:
        return self.rates[name]

    def batch(self, share: Share) -> tuple[Bundle, Bundle, Times, dict[str, Tensor], RowNoise]:
        source, noise = share.generator("samples"), share.noise()
        times, _ = self._times(share, source, noise)
        own = self.samples_of(share)
        texts = [rows for name, rows in own.items() if "text" in self.system.tasks[name].generated]
        encoded = self.encoded(share, source, torch.stack(texts).any(0) if texts else None)
        x0 = {k: v for k, v in encoded.items() if k in self.system.modalities}
        return x0, encoded, times, own, noise

    def samples_of(self, share: Share) -> dict[str, Tensor]:
        """Flow -> its samples (B,) bool, spread evenly over the whole batch."""
        return {name: rows[share.rows].to(share.device) for name, rows in self._whole(share.size)}

    def _whole(self, size: int) -> Iterator[tuple[str, Tensor]]:
        """(flow, its samples (size,) bool) of a whole batch."""
        shares = torch.tensor([*self.flows.values()], dtype=torch.float64)
        at = torch.arange(size, dtype=torch.float64) * GOLDEN % 1
        which = torch.searchsorted(shares.cumsum(0) / shares.sum(), at, right=True)
        for number, name in enumerate(self.flows):
            if not (which == number).any():
                raise ConfigError(
                    f"a batch of {size} has no sample for {name}; give a larger batch or share"
                )
            yield name, which == number

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The losses of a flow are 0 for the samples of others, and as much larger for its own."""
        x0, encoded, times, own, noise = batch
        drop, samples = self.config.model.drop, len(next(iter(x0.values())))
        contexts = objective.contexts_of(self.system, encoded, noise, drop, samples)
        taught = {n: self._taught(n, contexts, noise) for n in own}
        flows = {n: (rows, taught[n]) for n, rows in own.items() if rows.any()}
        min_snr = self.config.model.times.min_snr
        found = objective.flow_losses(self.system, x0, times, noise, flows, min_snr)
        nothing = torch.zeros(samples, device=next(iter(x0.values())).device)
        losses = dict.fromkeys(own, nothing)
        for name, per_modality in found.items():
            weighted = [self.system.modalities[m].weight * x for m, x in per_modality.items()]
            losses[name] = losses[name].masked_scatter(own[name], sum(weighted))
        shares = {name: rows.float().mean() for name, rows in self._whole(self.config.batch)}
        logged = {name: loss / shares[name] for name, loss in losses.items()}
        return sum(loss.mean() for loss in losses.values()), logged

    def _taught(self, flow: str, contexts: Contexts, noise: RowNoise) -> Contexts:
        """A variation is taught with what may vary about its context unknown, where the codec of
        its condition says what that is: else it would learn to copy."""
        task, out = self.system.tasks[flow], dict(contexts)
        made = {m.source for clock in task.generated for m in self.system.on(clock)}
        for name in task.given_contexts:
            condition = self.system.conditions[name]
            varied = getattr(condition.codec, "varied", None)
            if condition.source in made and varied is not None:
                tokens = contexts[name].tokens
                out[name] = replace(contexts[name], tokens=varied(tokens, noise))
        return out
