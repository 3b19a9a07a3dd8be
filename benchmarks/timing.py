"""Time and memory of steps that are run in turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
from torch import Tensor, nn

from everyway.contracts import Bundle

Step = Callable[[], object]
Now = Callable[[], float]
"""The time in seconds, with nothing left running on the device."""


def spread(values: list[float], scale: float = 1.0) -> list[float]:
    """[lower quartile, median, upper quartile]."""
    return [scale * q for q in statistics.quantiles(values, n=4, method="inclusive")]


def compared(steps: dict[str, Step], rounds: int, now: Now) -> dict[str, list[float]]:
    """ms of each step, and theirs over ours of every round; one round goes unmeasured.

    The order turns round every round, since a step runs on the memory that the last one left.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(rounds + 1):
        for name in (tuple(steps), tuple(reversed(steps)))[i % 2]:
            start = now()
            steps[name]()
            seconds[name] += [now() - start] if i else []
    ratios = [b / a for a, b in zip(seconds["everyway"], seconds["diffusers"])]
    return {k: spread(v, 1e3) for k, v in seconds.items()} | {"ratio": spread(ratios)}


def forward(answer: Callable[[], Bundle], context) -> None:
    with torch.no_grad(), context():
        answer()


def train(model: nn.Module, answer: Callable[[], Bundle], context) -> None:
    with context():
        loss = sum(x.float().square().mean() for x in answer().values())
    loss.backward()
    model.zero_grad(set_to_none=True)


def kept(model: nn.Module, answer: Callable[[], Bundle]) -> float:
    """MB that a forward keeps for its backward, weights not counted."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _alive = answer()  # keeps what is packed, so that no address is used twice
    return sum(size for pointer, size in sizes.items() if pointer not in weights) / 1e6


def peak(step: Step) -> float:
    """MB of GPU memory that a step needs beyond what is there before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
