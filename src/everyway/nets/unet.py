"""U-Nets that attend to contexts: a noisy picture, its time, and what it is conditioned on.

Two of one kind.  The plain one is that of ADM: every residual block has a skip, attention stands in
every block of its levels.  The `efficient` one has many blocks where the picture is small and few
where it is large, one attention a level, skips of a factor 1/sqrt(2), and changes its channels
where it changes its side.

Shapes: B batch, C channels, H and W sides of a state, E width of the time's embedding, D width of
the contexts.
Sources: Balaji et al., "eDiff-I: Text-to-Image Diffusion Models with an Ensemble of Expert
Denoisers", 2022, arXiv 2211.01324, appendix A; Dhariwal and Nichol, "Diffusion Models Beat GANs on
Image Synthesis", 2021, arXiv 2105.05233; Saharia et al., "Imagen", 2022, arXiv 2205.11487.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from everyway.contracts import Bundle, Context, Contexts, Times
from everyway.errors import UsageError
from everyway.nets.attention import CrossAttention, SelfAttention
from everyway.nets.embed import with_null
from everyway.nets.gradient_checkpointing import run
from everyway.nets.unet_blocks import (
    Downsample,
    ResidualBlock,
    SpatialTransformer,
    TimeEmbedding,
    Upsample,
    group_norm,
    zeroed,
)


@dataclass(frozen=True, kw_only=True)
class ContextStream:
    """A context (B, tokens, dim), of which `length` tokens are attended to.

    summary: what of it is projected and added to the time's embedding: "" nothing, "mean" the mean
    of its tokens, "first" one more token that stands before the others and is not attended to.
    positions: whether the network learns where each token stands, which a table of tokens does not
    say and the states of a text encoder do.
    """

    name: str
    length: int
    dim: int
    summary: str = ""
    positions: bool = False

    def __post_init__(self) -> None:
        if self.summary not in ("", "mean", "first"):
            raise UsageError(f"summary {self.summary!r} is unknown; choose mean, first or none")

    @property
    def tokens(self) -> int:
        return self.length + (self.summary == "first")


@dataclass(frozen=True, kw_only=True)
class PictureStream:
    """A context (B, channels, h, w) that is shown beside the state: resized to it, bilinear.

    residual: whether it is added to the output, of as many channels, which is then what it lacks.
    """

    name: str
    channels: int
    residual: bool = False


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """Sizes of one U-Net.

    size, channels: of its state (channels, size, size), as it is trained; a larger one has the same
    attention at its levels.  width: channels of the first level.
    fold: so many places of the state and of the pictures, along a side, are one of the first level.
    kernel: of the residual blocks; 1 leaves it to attention that places know of each other.
    feed_forward: attention is that of a spatial transformer, with a feed-forward layer after it, so
    many times as wide; 0 is attention alone.
    multipliers: of `width`, a level each; the side halves from one level to the next.
    blocks: residual blocks of each level on the way down.
    self_attention, cross_attention: sides of the levels that have it; cross-attention comes after
    self-attention where there are both.  head_channels: of each attention head.
    context_dim: width D that contexts are projected to.
    positions: whether the network learns what each place of its first level is; its states are then
    of `size`.  time_dim: width E of the time's embedding; 0 is 4 width.
    state, clock: names of the state and of its time.
    """

    size: int
    channels: int
    width: int
    multipliers: tuple[int, ...]
    blocks: tuple[int, ...]
    self_attention: tuple[int, ...] = ()
    cross_attention: tuple[int, ...] = ()
    head_channels: int = 64
    context_dim: int = 0
    contexts: tuple[ContextStream, ...] = ()
    pictures: tuple[PictureStream, ...] = ()
    efficient: bool = False
    fold: int = 1
    kernel: int = 3
    feed_forward: int = 0
    positions: bool = False
    time_dim: int = 0
    dropout: float = 0.0
    state: str = "image"
    clock: str = "image"

    def __post_init__(self) -> None:
        levels = len(self.multipliers)
        if len(self.blocks) != levels:
            raise UsageError(
                f"there are {levels} multipliers and blocks {self.blocks}; give as many"
            )
        if self.size % self.fold:
            raise UsageError(f"size {self.size} cannot be folded by {self.fold}")
        if self.sides[0] % 2 ** (levels - 1):
            raise UsageError(f"size {self.sides[0]} cannot be halved {levels - 1} times")
        for level, side in enumerate(self.sides):
            if {side} & {*self.self_attention, *self.cross_attention}:
                self.heads(level)
        if self.cross_attention and not self.contexts:
            raise UsageError("cross-attention needs contexts to attend to")

    def heads(self, level: int) -> int:
        """Of its attention; UsageError where its channels cannot be divided among them."""
        channels = self.width * self.multipliers[level]
        if channels % self.head_channels:
            raise UsageError(
                f"level {level} has {channels} channels; give head_channels that divide them"
            )
        return channels // self.head_channels

    def attends(self, level: int, k: int, count: int) -> bool:
        """Whether the k-th of a level's `count` blocks is one that attention may stand in."""
        return not self.efficient or k == count - 1

    @property
    def sides(self) -> tuple[int, ...]:
        """Of the levels."""
        first = self.size // self.fold
        return tuple(first // 2**level for level in range(len(self.multipliers)))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> UNetConfig:
        plain = {k: tuple(v) if isinstance(v, (list, tuple)) else v for k, v in data.items()}
        kinds = {"contexts": ContextStream, "pictures": PictureStream}
        lists = {k: tuple(kind(**row) for row in plain.get(k, ())) for k, kind in kinds.items()}
        return UNetConfig(**{**plain, **lists})


class Attended(nn.Module):
    """Self-attention, then cross-attention, over the places of a feature map, each of them added;
    either only where it is wanted.

    context_dim: width of the tokens that are attended to, 0 for none.
    """

    def __init__(
        self, channels: int, heads: int, context_dim: int, self_attention: bool = True
    ) -> None:
        super().__init__()
        self.attn = self.cross = None
        if self_attention:
            self.norm_attn = group_norm(channels)
            self.attn = SelfAttention(channels, heads, qkv_bias=True)
            zeroed(self.attn.proj)
        if context_dim:
            self.norm_cross = group_norm(channels)
            self.cross = CrossAttention(channels, heads, context_dim)
            zeroed(self.cross.proj)

    def forward(self, x: Tensor, context: Context | None) -> Tensor:
        """x (B, C, H, W), context of tokens (B, N, context_dim) -> (B, C, H, W)."""
        if self.attn is not None:
            x = x + _places(self.attn(_tokens(self.norm_attn(x))), x)
        if self.cross is not None:
            mask = context.mask if context.mask is None else context.mask[:, None, None]
            queries = _tokens(self.norm_cross(x))
            x = x + _places(self.cross(queries, context.tokens, mask, context.bias), x)
        return x


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W, C)."""
    return x.flatten(2).transpose(1, 2)


def _places(tokens: Tensor, like: Tensor) -> Tensor:
    return tokens.transpose(1, 2).unflatten(2, like.shape[-2:])


class Block(nn.Module):
    """A residual block, and the attention after it if any."""

    def __init__(
        self, config: UNetConfig, channels: int, level: int, time_dim: int, attends: bool = True
    ) -> None:
        super().__init__()
        side, out = config.sides[level], config.width * config.multipliers[level]
        self.residual = ResidualBlock(
            channels,
            out,
            time_dim,
            scale_shift=True,
            dropout=config.dropout,
            kernel=config.kernel,
        )
        alone, across = side in config.self_attention, side in config.cross_attention
        self.attended = None
        if attends and (alone or across):
            context_dim = config.context_dim if across else 0
            sizes = out, config.heads(level), context_dim
            if config.feed_forward:
                wide = {"self_attention": alone, "ratio": config.feed_forward}
                self.attended = SpatialTransformer(*sizes, **wide)
            else:
                self.attended = Attended(*sizes, alone)

    def forward(self, x: Tensor, time: Tensor, context: Context | None) -> Tensor:
        """x (B, C, H, W), time (B, E) -> (B, the level's channels, H, W)."""
        x = self.residual(x, time)
        return x if self.attended is None else self.attended(x, context)


class UNet(nn.Module):
    """(states, times, contexts) -> raw output of the state, in its shape.

    noise_level: times (B,) in [0, 1] -> what it is shown of them, (B,); None is 1000 t.
    """

    def __init__(
        self,
        config: UNetConfig,
        noise_level: Callable[[Tensor], Tensor] | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.gradient_checkpointing = config, gradient_checkpointing
        self.noise_level = noise_level or thousandths
        width, time_dim = config.width, config.time_dim or 4 * config.width
        widths = [width * m for m in config.multipliers]
        levels = range(len(widths))
        self.time = TimeEmbedding(width, time_dim)
        own = config.contexts
        self.project = nn.ModuleDict({s.name: nn.Linear(s.dim, config.context_dim) for s in own})
        self.summarise = nn.ModuleDict(
            {s.name: nn.Linear(s.dim, time_dim) for s in own if s.summary}
        )
        self.nothing = nn.Parameter(torch.randn(1, 1, config.context_dim)) if own else None
        self.places = nn.ParameterDict(
            {
                s.name: nn.Parameter(0.5 * torch.randn(1, s.length, config.context_dim))
                for s in own
                if s.positions
            }
        )
        shown = config.channels + sum(p.channels for p in config.pictures)
        self.enter = nn.Conv2d(config.fold**2 * shown, width, 3, padding=1)
        first = config.sides[0]
        places = 0.5 * torch.randn(1, width, first, first)
        self.grid = nn.Parameter(places) if config.positions else None

        block, here, skips = partial(Block, config, time_dim=time_dim), width, []
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        for n in levels:
            if n:
                self.shrink.append(Downsample(here, widths[n] if config.efficient else here))
                here = self.shrink[-1].out_channels
            made = nn.ModuleList()
            skips.append([] if config.efficient else [here])
            for k in range(config.blocks[n]):
                made.append(block(here, n, attends=config.attends(n, k, config.blocks[n])))
                skips[n].append(here := widths[n])
            self.downs.append(made)
        self.middle = nn.ModuleList(block(here, levels[-1], attends=k == 0) for k in range(2))
        for n in reversed(levels):
            made, count = nn.ModuleList(), len(skips[n])
            for k in range(count):
                made.append(block(here + skips[n].pop(), n, attends=config.attends(n, k, count)))
                here = widths[n]
            self.ups.append(made)
            if n:
                self.grow.append(Upsample(here, widths[n - 1] if config.efficient else here))
                here = self.grow[-1].out_channels
        self.norm = group_norm(here)
        self.leave = zeroed(nn.Conv2d(here, config.fold**2 * config.channels, 3, padding=1))

    def forward(
        self,
        states: Bundle,
        times: Times,
        contexts: Contexts | None = None,
        keep: tuple[str, ...] | None = None,
    ) -> Bundle:
        """states: of the state (B, C, H, W), sides that the levels can halve; times: clock -> (B,).

        contexts: all of the config's, each with its mask, its bias and its weight.
        """
        config, contexts = self.config, contexts or {}
        state = states[config.state]
        pictures = [_shown(contexts[p.name], state) for p in config.pictures]
        x = self.enter(F.pixel_unshuffle(torch.cat([state, *pictures], 1), config.fold))
        x = x if self.grid is None else x + self.grid
        time, context = self._time(times[config.clock], contexts), self._joined(contexts)
        go = partial(run, gradient_checkpointing=self.gradient_checkpointing)
        gain = 0.5**0.5 if config.efficient else 1.0
        skips = []
        for n, blocks in enumerate(self.downs):
            x = self.shrink[n - 1](x) if n else x
            skips += [] if config.efficient else [x]
            for block in blocks:
                skips.append(x := go(block, x, time, context))
        for block in self.middle:
            x = go(block, x, time, context)
        for n, blocks in enumerate(self.ups):
            x = self.grow[n - 1](x) if n else x
            for block in blocks:
                x = go(block, torch.cat([x, gain * skips.pop()], 1), time, context)
        made = F.pixel_shuffle(self.leave(F.silu(self.norm(x))), config.fold)
        shown = [p for own, p in zip(config.pictures, pictures) if own.residual]
        return {config.state: sum(shown, made)}

    def spans(self, states: Bundle, times: Times) -> dict[str, slice]:
        """Where cross-attention finds the tokens of each context."""
        ends = list(accumulate(s.length for s in self.config.contexts))
        return {s.name: slice(e - s.length, e) for s, e in zip(self.config.contexts, ends)}

    @property
    def blocks(self) -> list[nn.Module]:
        """Every block in order: what is sharded and checkpointed, and whose matrices Muon moves."""
        return [*(b for level in self.downs for b in level), *self.middle] + [
            b for level in self.ups for b in level
        ]

    @torch.no_grad()
    def take(self, other: UNet) -> list[str]:
        """Starts from another network's weights; returns the names of those it has no start for."""
        own = self.state_dict()
        given = other.state_dict().items()
        fits = {k: v for k, v in given if k in own and v.shape == own[k].shape}
        self.load_state_dict(own | fits)
        return sorted(own.keys() - fits.keys())

    def _time(self, t: Tensor, contexts: Contexts) -> Tensor:
        """(B, E), with what contexts sum up to."""
        made = self.time(self.noise_level(t))
        for s in self.config.contexts:
            if s.summary:
                tokens = _tokens_of(contexts[s.name]).to(made)
                own = tokens[:, 0] if s.summary == "first" else tokens.mean(1)
                made = made + self.summarise[s.name](own)
        return made

    def _joined(self, contexts: Contexts) -> Context | None:
        """All contexts as one of (B, N, D), a learned token that tells nothing at its end."""
        own = self.config.contexts
        if not own:
            return None
        parts = [(contexts[s.name], s.length) for s in own]
        tokens = [
            self.project[s.name](_tokens_of(c)[:, -n:].to(self.nothing.dtype))
            for s, (c, n) in zip(own, parts)
        ]
        tokens = [x + self.places[s.name] if s.positions else x for s, x in zip(own, tokens)]
        last = self.nothing.expand(len(tokens[0]), -1, -1)
        return Context(
            tokens=torch.cat([*tokens, last], 1), mask=_mask(parts, last), bias=_bias(parts)
        )


def thousandths(t: Tensor) -> Tensor:
    """1000 t: the times of published networks."""
    return 1000 * t


def _tokens_of(context: Context) -> Tensor:
    """(B, N, dim); what is dropped or weighs less is zero, or nearer to it."""
    return with_null(context, context.tokens, context.tokens.new_zeros(()))


def _shown(context: Context, like: Tensor) -> Tensor:
    """A picture (B, C, h, w) at the size of the state."""
    picture = _tokens_of(context).to(like)
    if picture.shape[-2:] == like.shape[-2:]:
        return picture
    return F.interpolate(picture, like.shape[-2:], mode="bilinear", align_corners=False)


Parts = list[tuple[Context, int]]
"""Contexts, and how many of their tokens are attended to: the last ones."""


def _mask(parts: Parts, last: Tensor) -> Tensor | None:
    """(B, N) bool, where the joined tokens may be attended to; None is everywhere."""
    if all(c.mask is None for c, _ in parts):
        return None
    everywhere = torch.ones_like(last[..., 0], dtype=torch.bool)  # (B, 1)
    masks = [everywhere.expand(-1, n) if c.mask is None else c.attended[:, -n:] for c, n in parts]
    return torch.cat([*masks, everywhere], 1)


def _bias(parts: Parts) -> Callable[[Tensor], Tensor] | None:
    """Of the scores of attention to the joined tokens.  A function of a context is given the scores
    (B, H, L, n) of its own tokens."""
    if all(c.bias is None for c, _ in parts):
        return None

    def bias(scores: Tensor) -> Tensor:
        made, start = torch.zeros_like(scores), 0
        for context, n in parts:
            cut = slice(start, start := start + n)
            own = context.bias
            if callable(own):
                own = own(scores[..., cut])
            if own is not None:
                made[..., cut] = own[..., -n:]
        return made

    return bias
