"""Muon: AdamW, except that the matrices inside the blocks take orthogonalised momentum.

Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the size
of an update, 0.2 sqrt(max(m, n)), which lets it share AdamW's rate and decay: Liu et al., "Muon is
Scalable for LLM Training", 2025, arXiv 2502.16982.

torch.optim.Muon orthogonalises in bf16 alone, and a CPU without bf16 products runs that 80 times
slower than float32; here it is bf16 where that is fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from everyway.errors import UsageError
from everyway.nets.precision import fast
from everyway.train.sealed import gathered

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a quintic that drives singular values towards 1
ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """Everything that is no matrix of `blocks` is left to AdamW.

    momentum: of the matrices (Nesterov).
    half: whether it computes in bf16; None measures whether that is fast.
    The processes of one training share out the matrices; the sums are the same.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        blocks: Sequence[nn.Module],
        *,
        momentum: float = 0.95,
        half: bool | None = None,
        **adamw,
    ) -> None:
        super().__init__([*parameters], **adamw)
        self.momentum, self.half = momentum, half
        stacked = {id(weight): count for weight, count in hidden_matrices(blocks)}
        own = enumerate(p for p, _ in self._numbered())
        self.stacked = {n: stacked[id(p)] for n, p in own if id(p) in stacked}
        if not self.stacked:
            raise UsageError("this network has no blocks with linear layers; use adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        numbered = [*self._numbered()]  # wrappers put other parameters in place
        named = [(*numbered[n], stacked) for n, stacked in self.stacked.items()]
        moved = [(p, group, stacked) for p, group, stacked in named if p.grad is not None]
        updates = [(gathered(self._nesterov(p)), stacked) for p, _, stacked in moved]
        for (p, group, _), update in zip(moved, self._shared_out(updates)):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(_in_shards_of(p, update), alpha=group["lr"])
            p.grad = None  # AdamW passes over parameters without a gradient
        super().step()

    def _numbered(self) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
        """Every parameter, with its group."""
        return ((p, group) for group in self.param_groups for p in group["params"])

    def _nesterov(self, p: nn.Parameter) -> Tensor:
        """The gradient and its running mean, which takes the gradient in."""
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
            state["step"] = torch.zeros(())  # Adam wants one of every parameter it restores
        state["step"] += 1
        state["momentum"].lerp_(p.grad, 1 - self.momentum)
        return p.grad.lerp(state["momentum"], self.momentum)

    def _shared_out(self, updates: list[tuple[Tensor, int]]) -> list[Tensor]:
        """Orthogonalised by the processes in turn, and added up."""
        processes, rank = 1, 0
        if distributed.is_initialized():
            processes, rank = distributed.get_world_size(), distributed.get_rank()
        made = [
            orthogonalised(update.flatten(1), stacked, self.half).view_as(update)
            if number % processes == rank
            else torch.zeros_like(update)
            for number, (update, stacked) in enumerate(updates)
        ]
        if processes == 1:
            return made
        flat = torch.cat([update.flatten() for update in made])
        distributed.all_reduce(flat)
        parts = flat.split([update.numel() for update in made])
        return [part.view_as(update) for part, update in zip(parts, made)]


def _in_shards_of(p: Tensor, update: Tensor) -> Tensor:
    if not hasattr(p, "placements"):
        return update
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(update, p.device_mesh, p.placements)


def hidden_matrices(blocks: Iterable[nn.Module]) -> list[tuple[nn.Parameter, int]]:
    """(weight, blocks stacked in it) of every trained linear layer and convolution inside a
    network's blocks.

    A fused qkv holds three.  A convolution is a matrix from all of its taps.  Embeddings and heads
    are not hidden layers.
    """
    layers = [pair for block in blocks for pair in block.named_modules()]
    return [
        (layer.weight, 3 if name.endswith("qkv") else 1)
        for name, layer in layers
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.requires_grad
    ]


def orthogonalised(update: Tensor, stacked: int = 1, half: bool | None = None) -> Tensor:
    """The nearest semi-orthogonal matrix to each block of `update` (m, n), times 0.2 sqrt(max)."""
    if half is None:
        half = fast(torch.bfloat16, update.device.type)
    x = update.to(torch.bfloat16 if half else torch.float32).unflatten(0, (stacked, -1))
    flip = x.shape[-2] > x.shape[-1]
    x = x.mT if flip else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    x = (x.mT if flip else x).flatten(0, 1)
    return (0.2 * max(update.shape[0] // stacked, update.shape[1]) ** 0.5 * x).to(update.dtype)
