"""Several processes on one training, started by torchrun: each draws a part of every batch.

    torchrun --nproc-per-node 2 -m everyway.apps.cli train mini

On a CPU one process a core beats one process with many threads.  Without torchrun this is one
process and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from everyway.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among all of them."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and tells progress."""
        return self.rank == 0

    def share(self, batch: int) -> int:
        """This process's part of a batch."""
        if batch % self.size:
            raise UsageError(f"batch {batch} cannot be divided among {self.size} processes")
        return batch // self.size

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes."""
        grads = [p.grad for p in parameters if p.grad is not None]
        self.sum(grads)
        torch._foreach_div_(grads, self.size)

    def sum(self, tensors: list[Tensor]) -> None:
        """Replace every tensor by its sum over the processes."""
        if self.size == 1:
            return
        flat = torch.cat([t.flatten() for t in tensors])
        distributed.all_reduce(flat)
        parts = flat.split([t.numel() for t in tensors])
        torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors)])

    def owns(self, number: int) -> bool:
        """Whether the piece of work of this number is this process's: they take turns."""
        return number % self.size == self.rank

    def agreed(self, value: float) -> float:
        """The first process's value, on every process: clocks and stop signals differ."""
        if self.size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        distributed.broadcast(told, 0)
        return float(told)


ALONE = World()


def join() -> World:
    """The world that torchrun made, or a world of one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return ALONE
    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return World(rank=distributed.get_rank(), size=size)
