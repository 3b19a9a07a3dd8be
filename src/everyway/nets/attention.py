"""Attention: one function, the fastest exact kernel for the device and number format."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyway.contracts import ScoreBias

SCORES_IN_CACHE = 4_000_000  # score elements below which one batched product is fastest


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    bias: ScoreBias | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(Dh) + bias) v; q (B, H, N, Dh), k and v (B, H, M, Dh) -> (B, H, N, Dh).

    mask: bool, broadcast to (B, H, N, M), True where a token may be attended to.
    bias: a tensor broadcast likewise, or a function of the scores q k^T / sqrt(Dh) (as in Balaji et
    al., "eDiff-I", 2022, arXiv 2211.01324, section 5), for which they are computed once more.

    On a CPU in bf16 the fused kernel runs at float32 speed, so plain products are used there:
    the whole batch at once while its scores stay in cache, else one head at a time.
    """
    scale = q.shape[-1] ** -0.5
    if callable(bias):
        bias = bias((q.float() * scale) @ k.float().transpose(-1, -2))
    if mask is not None or bias is not None:
        return F.scaled_dot_product_attention(q, k, v, _added(mask, bias, q))
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    if q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2] <= SCORES_IN_CACHE:
        return (q * scale @ k.transpose(-1, -2)).softmax(-1) @ v
    heads = zip(q.flatten(0, 1) * scale, k.flatten(0, 1), v.flatten(0, 1))
    return torch.stack([(a @ b.T).softmax(-1) @ c for a, b, c in heads]).view_as(q)


def _added(mask: Tensor | None, bias: Tensor | None, q: Tensor) -> Tensor:
    """Mask and bias as the fused kernel takes them: bool alone, or one tensor that is added."""
    if bias is None:
        return mask
    bias = bias.to(q.dtype)
    return bias if mask is None else torch.where(mask, bias, -torch.inf)


def attention_weights(
    q: Tensor, k: Tensor, mask: Tensor | None = None, bias: ScoreBias | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(Dh) + bias), float32 (B, H, N, M): what `attention` weighs v with."""
    scores = (q.float() * q.shape[-1] ** -0.5) @ k.float().transpose(-1, -2)
    if callable(bias):
        bias = bias(scores)
    if bias is not None:
        scores = scores + bias
    return (scores if mask is None else scores.where(mask, -torch.inf)).softmax(-1)


class SelfAttention(nn.Module):
    """Fused qkv: rows ordered q, k, v outermost, then head, then head dimension."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        read: slice | None = None,
        mask: Tensor | None = None,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        """x (B, N, D) -> (B, N, D), or only the tokens of `read`; mask, bias: as in `attention`."""
        q, k, v = self.heads_of(x)
        if read is not None:
            q = q[:, :, read]
        return self.proj(attention(q, k, v, mask, bias).transpose(1, 2).flatten(2))  # (B, N, D)

    def heads_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, each (B, H, N, Dh)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v


class CrossAttention(nn.Module):
    """Separate q, k, v; k and v read a context of any width (x itself: self).

    qkv_bias: whether q, k and v have biases; the projection has one.
    """

    def __init__(self, dim: int, heads: int, context_dim: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.k = nn.Linear(context_dim, dim, bias=qkv_bias)
        self.v = nn.Linear(context_dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        """x (B, N, D), context (B, M, C) -> (B, N, D); mask, bias: as in `attention`."""
        q, k, v = self.heads_of(x, context)
        return self.proj(attention(q, k, v, mask, bias).transpose(1, 2).flatten(2))  # (B, N, D)

    def heads_of(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, N, Dh), k and v (B, H, M, Dh)."""
        parts = self.q(x), self.k(context), self.v(context)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in parts)
        return q, k, v
