"""Muon: AdamW, except that the matrices inside the blocks take orthogonalised momentum.

Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the size
of an update, 0.2 sqrt(max(m, n)), which lets it share AdamW's rate and decay: Liu et al., "Muon is
Scalable for LLM Training", 2025, arXiv 2502.16982.

torch.optim.Muon orthogonalises in bf16 alone, and a CPU without bf16 products runs that 80 times
slower than float32; here it is bf16 where that is fast.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from everyway.errors import UsageError
from everyway.nets.precision import fast
from everyway.train.parallel import ALONE, World

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a quintic that drives singular values towards 1
ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """matrices: 2-D weights for Muon, each with the number of square-ish blocks stacked in it.

    Everything else of `network` is left to AdamW.  momentum: of the matrices (Nesterov).
    world: the processes of one training, which share out the matrices; the sums are the same.
    half: whether it computes in bf16; None measures whether that is fast.
    """

    half: bool | None = None

    def __init__(
        self, network: nn.Module, world: World = ALONE, *, momentum: float = 0.95, **adamw
    ) -> None:
        super().__init__(network.parameters(), **adamw)
        self.world, self.momentum = world, momentum
        self.matrices = hidden_matrices(network)
        if not self.matrices:
            raise UsageError("this network has no block in ins, mid, outs or blocks; use adamw")

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        moved = [(p, stacked) for p, stacked in self.matrices if p.grad is not None]
        updates = []
        for number, (p, stacked) in enumerate(moved):
            update = self._nesterov(p)
            if self.world.owns(number):
                updates.append(orthogonalised(update, stacked, self.half))
            else:
                updates.append(torch.zeros_like(update))  # another process's, added below
        self.world.sum(updates)
        for (p, _), update in zip(moved, updates):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(update, alpha=group["lr"])
            p.grad = None  # AdamW passes over parameters without a gradient
        super().step()

    def _nesterov(self, p: nn.Parameter) -> Tensor:
        """The gradient and its running mean, which takes the gradient in."""
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
            state["step"] = torch.zeros(())  # Adam wants one of every parameter it restores
        state["step"] += 1
        state["momentum"].lerp_(p.grad, 1 - self.momentum)
        return p.grad.lerp(state["momentum"], self.momentum)


def hidden_matrices(network: nn.Module) -> list[tuple[nn.Parameter, int]]:
    """(weight, blocks stacked in it) of every linear layer inside a transformer's blocks.

    A fused qkv holds three.  Embeddings and heads are not hidden layers.
    """
    out: list[tuple[nn.Parameter, int]] = []
    for name, module in network.named_modules():
        inside = name.split(".")[0] in ("ins", "mid", "outs", "blocks")
        if inside and isinstance(module, nn.Linear):
            out.append((module.weight, 3 if name.endswith("qkv") else 1))
    return out


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
