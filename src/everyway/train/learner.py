"""What the one loop trains: a module that draws its part of a batch and answers its losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from everyway.sampling.noise import StreamNoise, mixed_seed


@dataclass(frozen=True, kw_only=True)
class Share:
    """The rows of step `step`'s batch of `size` that one process takes at once.

    What is random is drawn for the whole batch, from (seed, step) alone, and cut: the number of
    processes, and of parts of a batch, changes nothing.
    """

    seed: int
    step: int
    size: int
    rows: slice
    device: torch.device

    @property
    def samples(self) -> range:
        """The numbers of its samples among all that the training draws in order."""
        first = self.step * self.size
        return range(first + self.rows.start, first + self.rows.stop)

    @property
    def count(self) -> int:
        return self.rows.stop - self.rows.start

    def generator(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """Of the step, for draws of one purpose: those of another are independent of them."""
        seed = mixed_seed(self.seed * 1_000_003 + self.step, name)
        return torch.Generator(device).manual_seed(seed)

    def noise(self) -> RowNoise:
        """Drawn on the device."""
        return RowNoise(StreamNoise(self.generator("noise", self.device)), self.size, self.rows)


class RowNoise:
    """Some rows of what a source of noise draws for a whole batch."""

    def __init__(self, whole: StreamNoise, size: int, rows: slice) -> None:
        self.whole, self.size, self.rows = whole, size, rows

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.whole.normal(name, (self.size, *shape[1:]))[self.rows]

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.whole.uniform(name, (self.size, *shape[1:]))[self.rows]

    def choose(self, name: str, weights: Tensor, counts: Tensor) -> Tensor:
        raise NotImplementedError("no training chooses places")


class Learner(nn.Module):
    """A training, as the loop sees it: `forward` answers what a batch teaches.

    Its parameters that need gradients are trained, and its whole state dict is averaged.

    memory: tensors on the CPU that are kept with the state, such as a history of losses.
    partial: whether it may be exported before its last step.
    skips: whether some steps leave some of its parameters without a gradient.
    base: the hash of a model whose weights it needs and does not keep, as a LoRA does; "" if none.
    """

    memory: dict[str, Tensor]
    partial = False
    skips = False
    base = ""

    def __init__(self) -> None:
        super().__init__()
        self.memory = {}

    def batch(self, share: Share) -> Any:
        """What `forward` takes, on the device."""
        raise NotImplementedError

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """(what is minimised, a scalar; name -> losses (B,) or a scalar, as they are logged)."""
        raise NotImplementedError

    def learn(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Takes in the losses of the whole batch of a step, on the CPU.

        Raises StateError where they are not finite.
        """

    def rate_of(self, name: str) -> float:
        """Of the parameter of that name, as a part of the training's rate."""
        return 1.0

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks, to shard, to checkpoint, and for Muon."""
        found = (block for module in self.modules() for block in _declared(module))
        return list(dict.fromkeys(found))  # a wrapper answers for what it wraps, too

    @property
    def _no_split_modules(self) -> list[str]:
        """What FSDP wraps, as transformers name it."""
        return sorted({type(block).__name__ for block in self.blocks})

    def show(self, weights: Mapping[str, Tensor]) -> Image.Image | None:
        """A sheet of samples of the averaged weights, if it shows any."""

    def compare(self, weights: Mapping[str, Tensor]) -> Image.Image | None:
        """The same of the weights that it started from, and beside them of these."""

    def export(self, weights: Mapping[str, Tensor], run: Mapping[str, Any], out: Path) -> None:
        """Writes what was learned into the run folder.

        weights: the averaged state dict.  run: the row of the training in a model's history.
        """
        raise NotImplementedError

    def exported(self, out: Path) -> int:
        """The steps of what lies there, or -1 where there is nothing whole."""
        raise NotImplementedError


def _declared(module: nn.Module) -> Sequence[nn.Module]:
    """The blocks that a network says it has, of whatever kind it is."""
    return () if isinstance(module, Learner) else getattr(module, "blocks", ())
