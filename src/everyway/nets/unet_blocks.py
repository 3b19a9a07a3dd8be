"""What U-Nets are made of: residual blocks that know the time, samplers, and spatial transformers.

Shapes: B batch, C channels, H and W of a feature map, N = H W tokens row by row, E width of the
time's embedding.  A network of these names its layers, and says which are its `blocks`.
Sources: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv 2006.11239; Dhariwal and
Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv 2105.05233 (scale and shift);
Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2021, arXiv
2112.10752 (spatial transformer).
"""

from __future__ import annotations

from math import gcd

import torch.nn.functional as F
from torch import Tensor, nn

from everyway.contracts import Context
from everyway.nets.attention import CrossAttention
from everyway.nets.embed import sinusoid

GROUPS = 32
"""Of a GroupNorm, where the channels can be divided among so many."""


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """Of 32 groups, or of as many as 32 and the channels have in common."""
    return nn.GroupNorm(gcd(GROUPS, channels), channels, eps=eps)


def zeroed(module: nn.Module) -> nn.Module:
    """A last layer that starts at zero, so that its residual branch starts as nothing."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


class TimeEmbedding(nn.Sequential):
    """Times (B,), of any float dtype and raw (0 .. 1000 in published models) -> (B, E).

    A sinusoid of `dim` columns in float32, and two layers.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, tau: Tensor) -> Tensor:
        first = self[0]
        return super().forward(sinusoid(tau, first.in_features).to(first.weight.dtype))


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice; the time comes in between, the input is added.

    time_dim: E, of the embedding that is added to every place; 0 is no time.  scale_shift: the
    time scales and shifts the second norm instead, (1 + scale) norm(x) + shift.
    kernel: 1 makes it of fully connected layers, one at each place.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        time_dim: int,
        *,
        scale_shift: bool = False,
        kernel: int = 3,
        dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = group_norm(channels, eps)
        self.conv1 = nn.Conv2d(channels, out_channels, kernel, padding=kernel // 2)
        if time_dim:
            self.time = nn.Linear(time_dim, out_channels * (1 + scale_shift))
        self.norm2 = group_norm(out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2))
        if channels != out_channels:
            self.skip = nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), time (B, E) -> (B, out_channels, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        known = None if time is None else self.time(F.silu(time))[..., None, None]
        if known is None:
            h = self.norm2(h)
        elif self.scale_shift:
            scale, shift = known.chunk(2, 1)
            h = (1 + scale) * self.norm2(h) + shift
        else:
            h = self.norm2(h + known)
        h = self.conv2(self.dropout(F.silu(h)))
        return h + (self.skip(x) if hasattr(self, "skip") else x)


class Downsample(nn.Conv2d):
    """Half the side: a 3x3 convolution of stride 2, (B, C, H, W) -> (B, out_channels, H/2, W/2)."""

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__(channels, out_channels or channels, 3, stride=2, padding=1)


class Upsample(nn.Conv2d):
    """Twice the side: nearest, then a 3x3 convolution, (B, C, H, W) -> (B, out_channels, 2H, 2W).

    size: (H', W') of the result, where an odd side was halved on the way down.
    """

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__(channels, out_channels or channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        size = size or (2 * x.shape[-2], 2 * x.shape[-1])
        return super().forward(F.interpolate(x, size, mode="nearest"))


class GEGLU(nn.Module):
    """value * GELU(gate), both linear in x and `ratio` times as wide, and back to its width.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020, arXiv 2002.05202.
    """

    def __init__(self, dim: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * ratio * dim)
        self.fc2 = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc1(x).chunk(2, -1)
        return self.fc2(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, attention to a context, GEGLU, each after its LayerNorm and added; each of
    them only where it is wanted.

    context_dim: width of the context's tokens; 0 is no attention to one.
    ratio: of the feed-forward layer's width to its own.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        context_dim: int,
        *,
        self_attention: bool = True,
        feed_forward: bool = True,
        ratio: int = 4,
    ) -> None:
        super().__init__()
        if self_attention:
            self.norm_attn = nn.LayerNorm(dim)
            self.attn = CrossAttention(dim, heads, dim, qkv_bias=False)
        if context_dim:
            self.norm_cross = nn.LayerNorm(dim)
            self.cross = CrossAttention(dim, heads, context_dim, qkv_bias=False)
        if feed_forward:
            self.norm_mlp = nn.LayerNorm(dim)
            self.mlp = GEGLU(dim, ratio)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """x (B, N, D), context: of tokens (B, M, context_dim) -> (B, N, D).

        The context's mask and bias are those of its attention.
        """
        if hasattr(self, "attn"):
            h = self.norm_attn(x)
            x = x + self.attn(h, h)
        if hasattr(self, "cross"):
            x = x + self._attended(self.norm_cross(x), context)
        if hasattr(self, "mlp"):
            x = x + self.mlp(self.norm_mlp(x))
        return x

    def _attended(self, x: Tensor, context: Context | None) -> Tensor:
        if context is None:
            raise ValueError("this block attends to a context; give it, or its null")
        mask = context.attended
        return self.cross(
            x, context.tokens, None if mask is None else mask[:, None, None], context.bias
        )


class SpatialTransformer(nn.Module):
    """`depth` transformer blocks over the places of a feature map, whose input is added.

    heads: of each attention.  The other arguments are a `TransformerBlock`'s.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        context_dim: int,
        *,
        depth: int = 1,
        self_attention: bool = True,
        feed_forward: bool = True,
        ratio: int = 4,
    ) -> None:
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        parts: dict = {"self_attention": self_attention, "feed_forward": feed_forward}
        parts |= {"ratio": ratio}
        self.layers = nn.ModuleList(
            TransformerBlock(channels, heads, context_dim, **parts) for _ in range(depth)
        )
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        """x (B, C, H, W), context: of tokens (B, M, context_dim) -> (B, C, H, W)."""
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)  # (B, N, C)
        for layer in self.layers:
            h = layer(h, context)
        h = h.transpose(1, 2).unflatten(2, x.shape[-2:])
        return x + self.proj_out(h)
