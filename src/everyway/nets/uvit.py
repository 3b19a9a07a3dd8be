"""U-ViT: a transformer over tokens of everything, with long skips between its halves.

Shapes: B batch, N tokens, D width, L = 2 (depth // 2) + 1 blocks.
Sources: Bao et al., "All are Worth Words", 2022, arXiv 2209.12152 (pre-norm);
Bao et al., "One Transformer Fits All Distributions", 2023, arXiv 2303.06555 (post-norm).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from everyway.contracts import Bundle, Contexts, ScoreBias, Times
from everyway.errors import UsageError
from everyway.nets.attention import SelfAttention
from everyway.nets.embed import resize_positions, sinusoid, with_null
from everyway.nets.gradient_checkpointing import run
from everyway.nets.tokens import (
    KINDS,
    STATES,
    ContextTokens,
    Flag,
    Ids,
    Label,
    Patches,
    Stream,
    TimeToken,
    TokenLayout,
    embedder,
    head,
    unpatchify,
)


@dataclass(frozen=True, kw_only=True)
class UViTConfig:
    """depth: blocks, the middle one not counted (an odd depth loses one).  norm: "pre" | "post".

    skip: "concat" | "add" | "none".  time_mlp: a small network after the time's sinusoid.
    time: "token" | "norm", which scales and shifts after every norm of a block instead of a token.
    conv: a 3x3 convolution after the patches are put together.  conv_first: it is over the tokens,
    before they become patches.  time_scale: tau = time_scale * t.
    init: "small" is the published one, positions at 0.02; "unit" starts every embedding at unit
    variance and positions as sinusoids of like size, so that a short training learns where things
    are (the small one had not after 190,000 samples; docs/LOG.md).
    """

    layout: TokenLayout
    dim: int
    depth: int
    heads: int
    mlp_ratio: int = 4
    qkv_bias: bool = False
    norm: str = "pre"
    skip: str = "concat"
    time_mlp: bool = False
    time: str = "token"
    conv: bool = True
    conv_first: bool = False
    time_scale: float = 1000.0
    init: str = "small"

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise UsageError(f"dim {self.dim} cannot be divided among {self.heads} heads")
        if self.norm not in ("pre", "post"):
            raise UsageError(f"norm {self.norm!r} is unknown; choose pre or post")
        if self.skip not in ("concat", "add", "none"):
            raise UsageError(f"skip {self.skip!r} is unknown; choose concat, add or none")
        if self.time not in ("token", "norm"):
            raise UsageError(f"time {self.time!r} is unknown; choose token or norm")
        if self.time == "norm" and sum(isinstance(s, TimeToken) for s in self.layout) != 1:
            raise UsageError("time 'norm' is for one clock; tell the times of several as tokens")
        if self.conv_first and not self.conv:
            raise UsageError("conv_first says where the convolution is; it needs conv")
        if self.init not in ("small", "unit"):
            raise UsageError(f"init {self.init!r} is unknown; choose small or unit")

    @property
    def tokens(self) -> TokenLayout:
        """The streams that have tokens."""
        as_tokens = self.time == "token"
        return tuple(s for s in self.layout if as_tokens or not isinstance(s, TimeToken))

    def to_json(self) -> dict[str, Any]:
        layout = [{"kind": type(s).__name__, **asdict(s)} for s in self.layout]
        return {**asdict(self), "layout": layout}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> UViTConfig:
        rows = [dict(row) for row in data["layout"]]
        layout = tuple(KINDS[row.pop("kind")](**row) for row in rows)
        return UViTConfig(**{**data, "layout": layout})


class TimeNorm(nn.LayerNorm):
    """(1 + scale) LayerNorm(x) + shift, both linear in the time's embedding (B, 1, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.told = nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.told(time).chunk(2, -1)
        return (1 + scale) * super().forward(x) + shift


class Block(nn.Module):
    """Attention and MLP with residuals; `skips` blocks first take in a skip."""

    def __init__(self, config: UViTConfig, skips: bool) -> None:
        super().__init__()
        dim = config.dim
        self.post, self.skip = config.norm == "post", config.skip if skips else "none"
        norm = TimeNorm if config.time == "norm" else nn.LayerNorm
        self.norm_attn, self.norm_mlp = norm(dim), norm(dim)
        self.attn = SelfAttention(dim, config.heads, config.qkv_bias)
        self.fc1 = nn.Linear(dim, config.mlp_ratio * dim)
        self.fc2 = nn.Linear(config.mlp_ratio * dim, dim)
        if self.skip == "concat":
            self.skip_linear = nn.Linear(2 * dim, dim)
        if self.post and self.skip != "none":
            self.norm_skip = nn.LayerNorm(dim)

    def forward(
        self,
        x: Tensor,
        skip: Tensor | None = None,
        time: Tensor | None = None,
        mask: Tensor | None = None,
        bias: ScoreBias | None = None,
    ) -> Tensor:
        """x, skip (B, N, D), time (B, 1, D) where norms read it -> (B, N, D).

        mask, bias: of the attention among the tokens.
        """
        condition = () if time is None else (time,)
        if self.skip == "concat":
            x = self.skip_linear(torch.cat([x, skip], -1))  # current first
        elif self.skip == "add":
            x = x + skip
        if not self.post:
            x = x + self.attn(self.norm_attn(x, *condition), mask=mask, bias=bias)
            return x + self._mlp(self.norm_mlp(x, *condition))
        if self.skip != "none":
            x = self.norm_skip(x)
        x = self.norm_attn(x + self.attn(x, mask=mask, bias=bias), *condition)
        return self.norm_mlp(x + self._mlp(x), *condition)

    def _mlp(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))  # the exact, erf form


class UViT(nn.Module):
    """(states, times, contexts) -> raw outputs of every state, in its shape."""

    def __init__(self, config: UViTConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.config, self.gradient_checkpointing = config, gradient_checkpointing
        dim, half = config.dim, config.depth // 2
        named = {_key(s): s for s in config.layout}
        self.embed = nn.ModuleDict({k: m for k, s in named.items() if (m := embedder(s, dim))})
        self.head = nn.ModuleDict({k: m for k, s in named.items() if (m := head(s, dim))})
        if config.time_mlp:
            clocks = [s for s in config.layout if isinstance(s, TimeToken)]
            for s in clocks:
                self.embed[_key(s)] = nn.Sequential(
                    nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim)
                )
        flags = [s for s in config.layout if isinstance(s, Flag)]
        length = sum(s.length for s in config.tokens if not isinstance(s, Flag))
        self.positions = nn.Parameter(torch.zeros(1, length, dim))
        self.flag_positions = nn.ParameterDict(
            {_key(s): nn.Parameter(torch.zeros(1, 1, dim)) for s in flags}
        )
        nullable = [s for s in config.layout if isinstance(s, ContextTokens) and s.null]
        self.nulls = nn.ParameterDict(
            {s.name: nn.Parameter(torch.randn(s.length, s.dim)) for s in nullable}
        )
        self.ins = nn.ModuleList(Block(config, skips=False) for _ in range(half))
        self.mid = Block(config, skips=False)
        self.outs = nn.ModuleList(Block(config, skips=True) for _ in range(half))
        self.norm = nn.LayerNorm(dim)
        pictures = {_key(s): s for s in config.layout if isinstance(s, Patches) and config.conv}
        widths = {k: dim if config.conv_first else s.channels for k, s in pictures.items()}
        self.conv = nn.ModuleDict({k: nn.Conv2d(n, n, 3, padding=1) for k, n in widths.items()})
        self.apply(_initialise)
        nn.init.trunc_normal_(self.positions, std=0.02)
        if config.init == "unit":
            self.embed.apply(_unit_variance)
        if config.init == "unit" and not self.positions.is_meta:  # sums there load the compiler
            fixed = [s for s in config.tokens if not isinstance(s, Flag)]
            self.positions.data += torch.cat([start_positions(s, dim) for s in fixed])

    def forward(
        self,
        states: Bundle,
        times: Times,
        contexts: Contexts | None = None,
        keep: tuple[str, ...] | None = None,
    ) -> Bundle:
        """states: name -> (B, ...); times: clock -> (B,) float64; keep: the outputs wanted.

        States and clocks of the layout that are left out have no tokens.
        """
        contexts = contexts or {}
        batch = next(iter(states.values())).shape[0]
        layout = [s for s in self.config.tokens if _shown(s, states, times)]
        parts = [self._embed(s, states, times, contexts, batch) for s in layout]
        positions = self._positions(layout, states)
        x = torch.cat([p + q for p, q in zip(parts, positions)], 1)  # (B, N, D)
        lengths = [p.shape[1] for p in parts]
        also = (self._condition_time(times), *_attended(layout, lengths, contexts))
        skips, go = [], partial(run, gradient_checkpointing=self.gradient_checkpointing)
        for block in self.ins:
            x = go(block, x, None, *also)
            skips.append(x)
        x = go(self.mid, x, None, *also)
        for block in self.outs:
            x = go(block, x, skips.pop(), *also)
        pieces = self.norm(x).split(lengths, 1)
        return {
            s.name: self._out(s, piece, states[s.name])
            for s, piece in zip(layout, pieces)
            if isinstance(s, STATES) and (keep is None or s.name in keep)
        }

    @property
    def reads(self) -> dict[str, set[str]]:
        """The names in its layout: of states, of clocks and of contexts."""
        layout = self.config.layout
        states = {s.name for s in layout if isinstance(s, STATES)}
        clocks = {s.clock for s in layout if isinstance(s, TimeToken)}
        contexts = {s.name for s in layout if not isinstance(s, TimeToken)} - states
        return {"modality": states, "clock": clocks, "condition": contexts}

    def spans(self, states: Bundle, times: Times) -> dict[str, slice]:
        """Where attention finds the tokens of each stream, for queries of such states and times."""
        layout = [s for s in self.config.tokens if _shown(s, states, times)]
        drawn = {s: states[s.name][0, 0].numel() for s in layout if isinstance(s, Patches)}
        lengths = [drawn[s] // s.patch**2 if s in drawn else s.length for s in layout]
        return dict(zip(map(_key, layout), _slices(lengths)))

    @property
    def blocks(self) -> list[nn.Module]:
        """Every block in order: what is sharded and checkpointed, and whose matrices Muon moves."""
        return [*self.ins, self.mid, *self.outs]

    @torch.no_grad()
    def take(self, other: UViT) -> list[str]:
        """Starts from another network's weights; returns the names of those it has no start for.

        Positions are taken stream by stream, those of patches resized; of a deeper network the
        outer blocks, which skips join.
        """
        last = len(self.outs) - len(other.outs)  # blocks of outs are counted from their end
        own = self.state_dict()
        given = {_counted(name, last): value for name, value in other.state_dict().items()}
        fits = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
        theirs = {_key(s): (s, table) for s, table in other._tables()}
        for s, table in self._tables():
            former, found = theirs.get(_key(s), (s, table))
            if isinstance(s, Patches) and found.shape == (1, former.length, self.config.dim):
                found = resize_positions(found, former.side, s.side, s.side)
            if found.shape == table.shape:
                table.copy_(found)
        self.load_state_dict(own | fits | {"positions": self.positions})
        return sorted(own.keys() - fits.keys() - {"positions"})

    def _tables(self) -> list[tuple[Stream, Tensor]]:
        """Each stream that has positions of its own in `positions`, and those."""
        fixed = [s for s in self.config.tokens if not isinstance(s, Flag)]
        return list(zip(fixed, self.positions.split([s.length for s in fixed], 1)))

    def _condition_time(self, times: Times) -> Tensor | None:
        """(B, 1, D) where norms read it."""
        if self.config.time == "token":
            return None
        (s,) = (s for s in self.config.layout if isinstance(s, TimeToken))
        return self._time(s, times)

    def _time(self, s: TimeToken, times: Times) -> Tensor:
        """(B, 1, D)."""
        tau = times[s.clock].to(torch.float64) * self.config.time_scale
        token = sinusoid(tau, self.config.dim).to(self.positions.dtype)[:, None]
        return self.embed[_key(s)](token) if self.config.time_mlp else token

    def _embed(self, s: Stream, states, times, contexts, batch: int) -> Tensor:
        """One stream as tokens (B, n, D)."""
        match s:
            case TimeToken():
                return self._time(s, times)
            case Label(name=name):
                table, label = self.embed[_key(s)], contexts[name]
                return with_null(label, table(label.tokens), table.weight[-1])[:, None]
            case Flag(name=name, default=default):
                condition = contexts.get(name)
                value = torch.full((batch,), default, device=self.positions.device)
                return self.embed[_key(s)](condition.tokens if condition else value)[:, None]
            case ContextTokens(name=name):
                null = self.nulls[name] if name in self.nulls else None
                return self.embed[_key(s)](with_null(contexts[name], contexts[name].tokens, null))
            case Patches(name=name):
                return self.embed[_key(s)](states[name]).flatten(2).transpose(1, 2)
        return self.embed[_key(s)](states[s.name])

    def _positions(self, layout: list[Stream], states: Bundle) -> list[Tensor]:
        """The positions of each stream, patches resized where the picture is of another size."""
        out, tables = [], {_key(s): table for s, table in self._tables()}
        for s in layout:
            if isinstance(s, Flag):
                out.append(self.flag_positions[_key(s)])
                continue
            table = tables[_key(s)]
            if isinstance(s, Patches):
                height, width = (n // s.patch for n in states[s.name].shape[-2:])
                if (height, width) != (s.side, s.side):
                    table = resize_positions(table, s.side, height, width)
            out.append(table)
        return out

    def _out(self, s: Stream, tokens: Tensor, state: Tensor) -> Tensor:
        if not isinstance(s, Patches):
            return self.head[_key(s)](tokens)
        height, width = (n // s.patch for n in state.shape[-2:])
        if self.config.conv_first:
            tokens = self.conv[_key(s)](unpatchify(tokens, 1, height, width))
            tokens = tokens.flatten(2).transpose(1, 2)
        image = unpatchify(self.head[_key(s)](tokens), s.patch, height, width)
        after = self.config.conv and not self.config.conv_first
        return self.conv[_key(s)](image) if after else image


def _key(stream: Stream) -> str:
    return f"time_{stream.clock}" if isinstance(stream, TimeToken) else stream.name


def _shown(stream: Stream, states: Bundle, times: Times) -> bool:
    """Whether a stream is part of a query: contexts always are."""
    if isinstance(stream, TimeToken):
        return stream.clock in times
    return stream.name in states or not isinstance(stream, STATES)


def _attended(
    layout: list[Stream], lengths: list[int], contexts: Contexts
) -> tuple[Tensor | None, ScoreBias | None]:
    """(mask, bias) among all N tokens, of the contexts that have any: (B, 1, 1, N), and
    (B, H or 1, 1 or N, N) or a function of the scores."""
    own = [None if isinstance(s, TimeToken) else contexts.get(s.name) for s in layout]
    given = [c for c in own if c is not None]
    if all(c.mask is None and c.bias is None for c in given):
        return None, None
    some = given[0].tokens
    everywhere = some.new_ones(len(some), 1, dtype=torch.bool)
    masks = [everywhere.expand(-1, n) for n in lengths]
    biases = [torch.zeros(1, 1, 1, n, device=everywhere.device) for n in lengths]
    for k, context in enumerate(own):
        if context is not None and context.mask is not None:
            masks[k] = context.attended
        if context is not None and context.bias is not None:
            biases[k] = context.bias
    mask = torch.cat(masks, 1)[:, None, None]
    if all(c.bias is None for c in given):
        return mask, None
    if any(callable(b) for b in biases):
        pictures = [isinstance(s, (Patches, Ids)) for s in layout]
        return mask, partial(_joint_bias, biases=biases, lengths=lengths, pictures=pictures)
    shape = torch.broadcast_shapes(*(b.shape[:3] for b in biases))
    return mask, torch.cat([b.expand(*shape, -1) for b in biases], 3)


def _joint_bias(
    scores: Tensor, biases: list[ScoreBias], lengths: list[int], pictures: list[bool]
) -> Tensor:
    """The biases of every stream's tokens, among all scores (B, H, N, N).

    A function is asked for each picture, with the scores from its places to those tokens and,
    turned about, with those from the tokens to its places: either side then knows of the other.
    """
    out, spans = torch.zeros_like(scores), _slices(lengths)
    places = [span for span, picture in zip(spans, pictures) if picture]
    for own, bias in zip(spans, biases):
        if not callable(bias):
            out[..., own] += bias
            continue
        for place in places:
            out[..., place, own] += bias(scores[..., place, own])
            out[..., own, place] += bias(scores[..., own, place].mT).mT
    return out


def _slices(lengths: list[int]) -> list[slice]:
    """Of parts that stand one after the other."""
    return [slice(end - length, end) for end, length in zip(accumulate(lengths), lengths)]


def _counted(name: str, last: int) -> str:
    """The name of a tensor, with `last` added to its number where it is of a block of outs."""
    part, _, rest = name.partition(".")
    number, _, rest = rest.partition(".")
    return f"outs.{int(number) + last}.{rest}" if part == "outs" else name


def start_positions(stream: Stream, dim: int) -> Tensor:
    """(length, dim): sinusoids of a patch's row and column, or of the place in a sequence."""
    if not isinstance(stream, (Patches, Ids)):
        return sinusoid(torch.arange(stream.length, dtype=torch.float64), dim)
    places = 4.0 * torch.arange(stream.side, dtype=torch.float64)
    one = sinusoid(places, dim // 2)
    row, column = one[:, None].expand(-1, stream.side, -1), one[None].expand(stream.side, -1, -1)
    return torch.cat([row, column], -1).flatten(0, 1)


def _unit_variance(module: nn.Module) -> None:
    """Outputs of about unit variance for inputs of unit variance."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
