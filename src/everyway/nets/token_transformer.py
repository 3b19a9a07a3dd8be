"""A transformer that reads a grid of noisy image tokens and says what each clean token may be.

Shapes: B batch, L = side^2 tokens in raster order, D width, K codes (class K is the mask), T steps.
Sources: Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021,
arXiv 2111.14822; Tang et al., "Improved Vector Quantized Diffusion Models", 2022, arXiv 2205.16007.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from everyway.contracts import Bundle, Contexts, ScoreBias, Times
from everyway.errors import UsageError
from everyway.nets.attention import CrossAttention
from everyway.nets.embed import with_null
from everyway.nets.gradient_checkpointing import run

CHOICES = {
    "condition": ("none", "class", "text"),
    "time": ("table", "abs"),
    "mlp": ("linear", "conv"),
    "activation": ("gelu2", "gelu"),
}


@dataclass(frozen=True, kw_only=True)
class TokenTransformerConfig:
    """codes: K, the mask not counted.  side: tokens in a row and in a column.  steps: T.

    table_side: columns of the position table, 0 for `side`; a table wider than the grid is read
    in its own order (see TokenEmbedding), as in the published 16 x 16 models.
    condition: "text" is attended to, (B, text_length, text_dim); "class" is a label that scales
    and shifts before each MLP, from a table of `labels` rows; "none".
    learned_null: the condition where none is given: for a text a parameter of its shape, for a
    class the last row of the table.  Without it a class has the mean of the table instead.
    time: "table" is an embedding of every step, "abs" a sinusoid.  mlp: "conv" is 3 x 3.
    name: the modality, and its clock.
    """

    codes: int
    side: int
    dim: int
    depth: int
    heads: int
    mlp_ratio: int = 4
    mlp: str = "linear"
    activation: str = "gelu2"
    table_side: int = 0
    condition: str = "none"
    labels: int = 0
    text_length: int = 77
    text_dim: int = 512
    learned_null: bool = False
    steps: int = 100
    time: str = "table"
    name: str = "image"

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise UsageError(f"dim {self.dim} cannot be divided among {self.heads} heads")
        for field, known in CHOICES.items():
            if getattr(self, field) not in known:
                wrong = f"{field} {getattr(self, field)!r} is unknown"
                raise UsageError(f"{wrong}; choose {', '.join(known)}")
        if (self.condition == "class") != (self.labels > 0):
            raise UsageError(f"labels is {self.labels}; give rows for a class condition, else 0")
        if self.learned_null and self.condition == "none":
            raise UsageError("learned_null needs a condition; choose class or text")
        if 0 < self.table_side < self.side:
            raise UsageError(f"table_side {self.table_side} is below side {self.side}; use 0")

    @property
    def length(self) -> int:
        return self.side**2

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TokenTransformerConfig:
        return TokenTransformerConfig(**data)


class TokenEmbedding(nn.Module):
    """A code plus its place: token n has row n // S and column n % S of tables of side S.

    Where S is wider than the grid these are not the token's row and column in the picture, but
    they still are a place of its own; rows past L / S are never read.
    """

    def __init__(self, config: TokenTransformerConfig) -> None:
        super().__init__()
        self.side = config.table_side or config.side
        self.codes = nn.Embedding(config.codes + 1, config.dim)  # the last is the mask
        self.rows = nn.Embedding(self.side, config.dim)
        self.columns = nn.Embedding(self.side, config.dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 in 0..K -> (B, L, D)."""
        n = torch.arange(tokens.shape[1], device=tokens.device)
        return self.codes(tokens) + self.rows(n // self.side) + self.columns(n % self.side)


class AdaNorm(nn.Module):
    """LayerNorm scaled and shifted by an index: a step of time, or a class label.

    An index outside the table means "none in particular" and has the mean of the table.  This is
    decided sample by sample; the authors let the first sample decide for the whole batch, which
    is the same wherever a batch agrees.
    """

    def __init__(self, dim: int, rows: int, table: bool = True) -> None:
        super().__init__()
        self.rows = rows
        self.table = nn.Embedding(rows, dim) if table else None
        self.scale_shift = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """x (B, N, D), index (B,) int64 -> (B, N, D), normalised in float32."""
        scale, shift = self.scale_shift(F.silu(self._embed(index)))[:, None].chunk(2, -1)
        return (F.layer_norm(x.float(), x.shape[-1:]) * (1 + scale) + shift).to(x.dtype)

    def _embed(self, index: Tensor) -> Tensor:
        """(B,) -> (B, D)."""
        if self.table is None:
            weight = self.scale_shift.weight
            return step_sinusoid(index, self.rows, weight.shape[1]).to(weight.dtype)
        known = self.table(index.clamp(max=self.rows - 1))
        return torch.where((index < self.rows)[:, None], known, self.table.weight.mean(0))


class Mlp(nn.Module):
    """Two layers, of each token alone or ("conv") with its eight neighbours in the picture."""

    def __init__(self, config: TokenTransformerConfig) -> None:
        super().__init__()
        dim, hidden = config.dim, config.mlp_ratio * config.dim
        self.side = config.side if config.mlp == "conv" else None
        self.activation = gelu2 if config.activation == "gelu2" else F.gelu
        layer = partial(nn.Conv2d, kernel_size=3, padding=1) if self.side else nn.Linear
        self.fc1, self.fc2 = layer(dim, hidden), layer(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        if self.side:
            x = x.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)  # (B, D, side, side)
        x = self.fc2(self.activation(self.fc1(x)))
        return x.flatten(2).transpose(1, 2) if self.side else x


class Block(nn.Module):
    """Attention among the tokens, attention to a text if there is one, MLP."""

    def __init__(self, config: TokenTransformerConfig) -> None:
        super().__init__()
        dim, heads, table = config.dim, config.heads, config.time == "table"
        self.condition = config.condition
        self.norm_attn = AdaNorm(dim, config.steps, table)
        self.attn = CrossAttention(dim, heads, dim)
        if self.condition == "text":
            self.norm_cross = AdaNorm(dim, config.steps, table)
            self.cross = CrossAttention(dim, heads, config.text_dim)
        labelled = self.condition == "class"
        self.norm_mlp = AdaNorm(dim, config.labels) if labelled else nn.LayerNorm(dim)
        self.mlp = Mlp(config)

    def forward(
        self,
        x: Tensor,
        step: Tensor,
        context: Tensor | None,
        mask: Tensor | None = None,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        """x (B, L, D), step (B,), context: a text (B, M, W), labels (B,) or None -> (B, L, D).

        mask, bias: of the attention to the text.
        """
        h = self.norm_attn(x, step)
        x = x + self.attn(h, h)
        if self.condition == "text":
            x = x + self.cross(self.norm_cross(x, step), context, mask, bias)
        h = self.norm_mlp(x, context) if self.condition == "class" else self.norm_mlp(x)
        return x + self.mlp(h)


class TokenTransformer(nn.Module):
    """(states, times, contexts) -> raw logits (B, L, K) of the clean tokens; no mask among them."""

    def __init__(
        self, config: TokenTransformerConfig, gradient_checkpointing: bool = False
    ) -> None:
        super().__init__()
        self.config, self.gradient_checkpointing = config, gradient_checkpointing
        self.embed = TokenEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.codes)
        self.apply(_initialise)
        if config.condition == "text" and config.learned_null:
            self.null = nn.Parameter(torch.randn(config.text_length, config.text_dim))

    def forward(
        self,
        states: Bundle,
        times: Times,
        contexts: Contexts | None = None,
        keep: tuple[str, ...] | None = None,
    ) -> Bundle:
        """states: (B, L) int64 in 0..K; times: (B,) float64 in [0, 1]; both under `config.name`.

        contexts: "text" (B, M, W), or "label" (B,) int64.  keep: {} is returned where it does not
        have `config.name`.
        """
        name = self.config.name
        if keep is not None and name not in keep:
            return {}
        tokens, context = states[name], self._condition(contexts or {})
        if tokens.shape[1] != self.config.length:
            raise ValueError(f"{tokens.shape[1]} tokens were given; give {self.config.length}")
        step = step_of(times[name], self.config.steps)
        x = self.embed(tokens)  # (B, L, D)
        for block in self.blocks:
            x = run(block, x, step, *context, gradient_checkpointing=self.gradient_checkpointing)
        return {name: self.head(self.norm(x))}

    @property
    def null_label(self) -> int:
        """The null label: the last row of the table, or outside it the mean."""
        return self.config.labels - 1 if self.config.learned_null else self.config.labels

    def _condition(self, contexts: Contexts) -> tuple[Tensor | None, ...]:
        """What the blocks are conditioned on: tokens or labels, and the text's mask and bias.

        Raises ValueError where it is not given, and for a null or blend that the network lacks.
        """
        if self.config.condition == "none":
            return (None,)
        name = "text" if self.config.condition == "text" else "label"
        if name not in contexts:
            raise ValueError(f"context {name!r} is missing; give it, or its null")
        given = contexts[name]
        if name == "text":
            tokens = with_null(given, given.tokens, getattr(self, "null", None))
            mask = given.attended
            return tokens, mask if mask is None else mask[:, None, None], given.bias
        if given.weight is not None:
            raise ValueError("this network blends no classes; give a weight of 0 or 1")
        if given.dropped is None:
            return (given.tokens,)
        return (torch.where(given.dropped, self.null_label, given.tokens),)


def step_of(t: Tensor, steps: int) -> Tensor:
    """t (B,) in [0, 1] -> the papers' step n = 0 .. T - 1, which lies at t = (n + 1) / T."""
    return ((t * steps).round().long() - 1).clamp(min=0)


def step_sinusoid(step: Tensor, steps: int, dim: int) -> Tensor:
    """(B,) -> (B, dim) float32: sines first, then cosines, of 4000 n / T * 10000^(-k / (half - 1)).

    Unlike `embed.sinusoid` the slowest rate is exactly 1 / 10000.
    """
    half = dim // 2
    rates = torch.exp(torch.arange(half, device=step.device) * (-math.log(10_000) / (half - 1)))
    angles = (step.float() * (4000 / steps))[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def gelu2(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), close to GELU."""
    return x * torch.sigmoid(1.702 * x)


def _initialise(module: nn.Module) -> None:
    """Normal 0.02; convolutions and LayerNorms keep their defaults."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)
