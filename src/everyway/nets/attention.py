"""Attention: one function, the fastest exact kernel for the device and number format."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SCORES_IN_CACHE = 4_000_000  # score elements below which one batched product is fastest


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(Dh)) v; q (B, H, N, Dh), k and v (B, H, M, Dh) -> (B, H, N, Dh).

    On a CPU in bf16 the fused kernel runs at float32 speed, so plain products are used there:
    the whole batch at once while its scores stay in cache, else one head at a time.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    scale = q.shape[-1] ** -0.5
    if q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] <= SCORES_IN_CACHE:
        return (q * scale @ k.transpose(-1, -2)).softmax(-1) @ v
    heads = zip(q.flatten(0, 1) * scale, k.flatten(0, 1), v.flatten(0, 1))
    return torch.stack([(a @ b.T).softmax(-1) @ c for a, b, c in heads]).view_as(q)


class SelfAttention(nn.Module):
    """Fused qkv: rows ordered q, k, v outermost, then head, then head dimension."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, read: slice | None = None) -> Tensor:
        """x (B, N, D) -> (B, N, D), or only the tokens of `read` (all are attended to)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if read is not None:
            q = q[:, :, read]
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))  # (B, N, D)


class CrossAttention(nn.Module):
    """Separate q, k, v, all with biases; k and v read a context of any width (x itself: self)."""

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(context_dim, dim)
        self.v = nn.Linear(context_dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, N, D), context (B, M, C), all of it attended to -> (B, N, D)."""
        parts = self.q(x), self.k(context), self.v(context)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        return self.proj(attention(q, k, v).transpose(1, 2).flatten(2))  # (B, N, D)
