"""All that a training needs to go on, saved as one unit: weights, EMA, optimiser and position.

The randomness of step k is a function of (seed, k) alone, so no generator's inner state has to be
kept, and a resumed run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from everyway.errors import EverywayError
from everyway.train.ema import EMA
from everyway.whole import whole


class StateError(EverywayError, RuntimeError):
    """A training state that cannot be used; the message says how to mend it."""

    exit_code = 1


def diverged(step: int) -> StateError:
    """What is raised where a loss or a weight is NaN or infinite."""
    return StateError(
        f"the training diverged by step {step}: its numbers are no longer finite; what was saved "
        "before stays; begin again with a smaller lr in another folder"
    )


class TrainState:
    """step: optimiser steps done.  cooldown_from: the step the cool-down began at, or -1.
    seconds: time spent training, over all sessions.
    half: whether the network computes in bf16, or None before that is known; a resumed run goes on
    as it began, whatever it would measure now.
    history, counts: of importance sampling, for each step of a token `chain`."""

    def __init__(
        self, network: nn.Module, optimiser: torch.optim.Optimizer, ema: EMA, chain: int = 0
    ) -> None:
        self.network, self.optimiser, self.ema = network, optimiser, ema
        self.step, self.cooldown_from, self.seconds = 0, -1, 0.0
        self.half: bool | None = None
        self.history = torch.zeros(chain)
        self.counts = torch.zeros(chain)

    def save(self, path: Path, config: str) -> None:
        """Written whole or not at all; a killed process leaves the former state in place.

        Raises StateError where it cannot be written, or where the training diverged.
        """
        if not self.finite():
            raise diverged(self.step)
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.weights.items()}
        if len(self.history):
            tensors |= {"importance.history": self.history, "importance.counts": self.counts}
        for i, slots in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{i}.{k}": torch.as_tensor(v) for k, v in slots.items()}
        facts = {
            "step": self.step,
            "cooldown_from": self.cooldown_from,
            "seconds": self.seconds,
            "half": self.half,
            "config": config,
        }
        tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
        try:
            with whole(path) as temporary:
                save_file(tensors, temporary, metadata={"facts": json.dumps(facts)})
        except (OSError, SafetensorError) as error:
            raise StateError(f"the training state was not saved to {path}: {error}") from None

    def finite(self) -> bool:
        """Whether no weight and no average of one is NaN or infinite."""
        averages = self.ema.weights
        pairs = ((p, averages[name]) for name, p in self.network.named_parameters())
        return all(bool(torch.isfinite(v).all()) for pair in pairs for v in pair)

    def restore(self, path: Path) -> None:
        """Load what `save` wrote.

        Raises StateError for a file that is damaged or of another network.
        """
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {k: file.get_tensor(k) for k in file.keys()}
            self._take(facts, tensors, path)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise StateError(
                f"{path} is damaged ({error}); delete it to start this run again"
            ) from None

    def _take(self, facts: dict[str, Any], tensors: dict[str, torch.Tensor], path: Path) -> None:
        try:
            self.network.load_state_dict(_under("network.", tensors))
        except RuntimeError:  # other names or shapes
            raise StateError(
                f"{path} is of another network; choose another folder, or delete it to start again"
            ) from None
        former = self.ema.weights
        self.ema.weights = {k: v.to(former[k].device) for k, v in _under("ema.", tensors).items()}
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _under("optimiser.", tensors).items():
            index, slot = name.split(".")
            slots.setdefault(int(index), {})[slot] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": slots})
        if len(self.history):
            self.history = tensors["importance.history"]
            self.counts = tensors["importance.counts"]
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.cooldown_from, self.half = facts["cooldown_from"], facts.get("half")


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
