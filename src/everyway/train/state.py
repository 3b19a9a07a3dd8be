"""All that a training needs to go on, saved as one file: weights, EMA, optimiser and position.

The randomness of step k is a function of (seed, k) alone, so no generator's inner state has to be
kept, and a resumed run draws what an uninterrupted one would have drawn.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everyway.atomic import atomic_write
from everyway.errors import EverywayError
from everyway.train import sealed
from everyway.train.ema import EMA
from everyway.train.learner import Learner


class StateError(EverywayError, RuntimeError):
    """A training state that cannot be used; the message says how to mend it."""

    exit_code = 1


def diverged(step: int, fault: str = "", saved: str = "what was saved before") -> StateError:
    """What is raised where a loss, a gradient or a weight is NaN or infinite.

    fault: in words, whose.  saved: what there is to go back to.
    """
    return StateError(
        f"the training diverged by step {step}: {fault or 'its numbers are no longer finite'}; "
        f"{saved} stays; begin again with a smaller lr in another folder"
    )


class TrainState:
    """step: optimiser steps done.  cooldown_from: the step the cool-down began at, or -1.
    seconds: time spent training, over all sessions."""

    def __init__(self, learner: Learner, optimiser: torch.optim.Optimizer, ema: EMA) -> None:
        self.learner, self.optimiser, self.ema = learner, optimiser, ema
        self.step, self.cooldown_from, self.seconds = 0, -1, 0.0
        self.saved = ""  # in words, what was saved last

    def tensors(self) -> dict[str, Tensor]:
        """Everything, where it lies: nothing is copied."""
        out = {f"learner.{k}": v for k, v in self.learner.state_dict().items()}
        out |= {f"ema.{k}": v for k, v in self.ema.weights.items()}
        out |= {f"memory.{k}": v for k, v in self.learner.memory.items()}
        for i, slots in self.optimiser.state_dict()["state"].items():
            out |= {f"optimiser.{i}.{k}": torch.as_tensor(v) for k, v in slots.items()}
        return out

    def save(
        self, path: Path, metadata: Mapping[str, Any], writes: bool = True, keep: int = 1
    ) -> None:
        """Written atomically; a killed process leaves the former state in place.

        metadata: kept beside it.  writes: whether this process is the one of all that writes; every
        one has to call, since tensors may lie in shards.  keep: how many states, this one among
        them; the others become NAME-STEP.
        Raises StateError where it cannot be written, or where the training diverged.
        """
        if not self.finite():
            raise self.diverged()
        if not writes:
            for _, tensor in sorted(self.tensors().items(), key=sealed.order):
                sealed.gathered(tensor)
            return
        own = {"step": self.step, "cooldown_from": self.cooldown_from, "seconds": self.seconds}
        try:
            if keep > 1 and path.exists():
                _put_aside(path, self.step)
            sealed.write(path, self.tensors(), {**metadata, **own})
            for old in formers(path)[::-1][keep - 1 :] if keep > 1 else ():
                old.unlink()
        except OSError as error:
            raise StateError(
                f"the training state was not saved to {path}: {error}; make room, and give the "
                "same command again"
            ) from None
        self.saved = f"{path}, of step {self.step},"

    def diverged(self, fault: str = "") -> StateError:
        """In this step, whose fault it was, and what there is to go back to."""
        return diverged(self.step, fault, *filter(None, [self.saved]))

    def finite(self) -> bool:
        """Whether no weight and no average of one is NaN or infinite."""
        floats = [*self.learner.parameters(), *self.ema.weights.values()]
        return all(bool(_local(v).isfinite().all()) for v in floats)

    def restore(self, path: Path) -> dict[str, Any]:
        """Load what `save` wrote, and return its metadata; its bits are not compared again.

        Raises StateError for a file that is truncated or of another training.
        """
        metadata = metadata_of(path)
        try:
            tensors, _ = sealed.read(path)
            self._take(tensors)
            self.step, self.seconds = metadata["step"], metadata["seconds"]
            self.cooldown_from = metadata["cooldown_from"]
            self.saved = f"{path}, of step {self.step},"
        except (KeyError, RuntimeError, ValueError):  # other names, shapes or numbers
            raise StateError(
                f"{path} is of another network; choose another folder, or delete it to start again"
            ) from None
        return metadata

    def _take(self, tensors: dict[str, Tensor]) -> None:
        own = self.learner.state_dict()
        learner = _under("learner.", tensors)
        self.learner.load_state_dict({k: _laid(v, own[k]) for k, v in learner.items()})
        self.ema.weights = {
            k: _laid(tensors[f"ema.{k}"], v).clone() for k, v in self.ema.weights.items()
        }
        self.learner.memory = {k: v.clone() for k, v in _under("memory.", tensors).items()}
        slots: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        for name, value in _under("optimiser.", tensors).items():
            index, slot = name.split(".")
            like = parameters[int(index)]
            value = _laid(value, like) if value.shape == like.shape else value
            slots.setdefault(int(index), {})[slot] = value.clone()
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": slots})


def formers(path: Path) -> list[Path]:
    """The states before the one at `path` that are kept, oldest first."""
    digits = 7 * "[0-9]"
    return sorted(path.parent.glob(f"{path.stem}-{digits}{path.suffix}"))


def _put_aside(path: Path, step: int) -> None:
    """The state at `path` by another name, too, unless it is of this step.  Raises OSError."""
    if (own := metadata_of(path)["step"]) == step:
        return
    former = path.with_name(f"{path.stem}-{own:07d}{path.suffix}")
    former.unlink(missing_ok=True)
    try:
        os.link(path, former)
    except OSError:  # a file system without links
        with atomic_write(former) as temporary:
            shutil.copyfile(path, temporary)


def metadata_of(path: Path, verify: bool = False) -> dict[str, Any]:
    """The metadata in a state.  verify: every bit of it is compared.  Raises StateError."""
    try:
        metadata = sealed.read(path)[1]
        if verify:
            sealed.verify(path)
    except OSError as error:
        raise StateError(f"{error}; {_instead(path)}") from None
    return metadata


def _instead(path: Path) -> str:
    """What to do about a state that is damaged."""
    if kept := formers(path):
        return f"copy {kept[-1].name} over it to go on from there"
    return "delete it to start this run again"


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _local(tensor: Tensor) -> Tensor:
    """This process's shard, or all of it."""
    return getattr(tensor, "to_local", lambda: tensor)().detach()


def _laid(value: Tensor, like: Tensor) -> Tensor:
    """`value` on the device of `like`, in its shards if it has some."""
    value = value.to(like.device)
    if not hasattr(like, "placements"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements)
