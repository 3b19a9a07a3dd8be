"""A multi-flow network: one set of layers, of which each flow takes those that it needs.

A flow makes one modality out of contexts of one or more kinds.  It takes the *data layers* of what
it makes and the *context layers* of what it is given; the time layers are shared.  Another modality
is one more set of data layers, of context layers, or of both.

Shapes: B batch, C channels, E width of the time's embedding, S places of a vector, P context
layers of one kind (16 as published), K contexts.
Source: Xu et al., "Versatile Diffusion: Text, Images and Variations All in One Diffusion Model",
2022, arXiv 2211.08332.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from everyway.contracts import Bundle, Context, Contexts, Times, kind_of, like_rows
from everyway.errors import UsageError
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
class Maps:
    """Data layers of a state (B, channels, H, W): convolutional residual blocks.

    kernel: side of their convolutions.  size: H = W of states that are so small that every place
    learns a position; 0 is none, as published.
    """

    name: str
    channels: int
    kernel: int = 3
    size: int = 0


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Data layers of a state (B, *shape), read as one vector: fully connected residual blocks.

    places: S; context layers see a map (B, C, S, 1), and data layers the 4 C numbers of it.
    """

    name: str
    shape: tuple[int, ...]
    places: int = 4

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Data layers of a state (B, length, dim): residual blocks at each place, which learns a
    position; context layers, whose self-attention joins the places, see a map (B, C, length, 1).
    """

    name: str
    length: int
    dim: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.length, self.dim


KINDS = {kind.__name__: kind for kind in (Maps, Vectors, Sequences)}


@dataclass(frozen=True, kw_only=True)
class MultiFlowConfig:
    """data: what can be made, each with its data layers.  contexts: kind of context -> width of its
    tokens.

    dim: channels of the first level; multipliers: of them, level by level.  depth: residual blocks
    a level, one more on the way up.  attending: how many levels, from the first, have context
    layers; the middle has one.  heads: of each attention.
    clocks: modality -> clock, where that is not its name.
    steps: the network is told steps * t - 1, the number of one of so many steps.
    """

    data: tuple[Maps | Vectors | Sequences, ...]
    contexts: Mapping[str, int]
    dim: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    depth: int = 2
    attending: int = 3
    heads: int = 8
    clocks: Mapping[str, str] = field(default_factory=dict)
    steps: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "multipliers", tuple(self.multipliers))
        if odd := [m for m in self.multipliers if self.dim * m % self.heads]:
            raise UsageError(
                f"{self.dim * odd[0]} channels cannot be divided among {self.heads} heads"
            )
        if not 0 <= self.attending <= len(self.multipliers):
            raise UsageError(f"attending is {self.attending}; there are {len(self.multipliers)}")

    def to_json(self) -> dict[str, Any]:
        data = [{"kind": type(d).__name__, **asdict(d)} for d in self.data]
        rows = [{k: [*v] if isinstance(v, tuple) else v for k, v in row.items()} for row in data]
        return {**asdict(self), "data": rows, "multipliers": [*self.multipliers]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> MultiFlowConfig:
        rows = [dict(row) for row in data["data"]]
        made = tuple(KINDS[row.pop("kind")](**row) for row in rows)
        return MultiFlowConfig(**{**data, "data": made})


@dataclass(frozen=True)
class Layer:
    """A place in the order in which a flow runs.  kind: of DATA a data layer, "context" a context
    layer, "keep" and "take" what a skip leads past the layers between them.

    before, after: channels.  way: "in", "middle" or "out", and the level there.
    """

    kind: str
    way: str
    level: int
    before: int = 0
    after: int = 0


DATA = ("stem", "residual", "down", "up", "head")


def layers(config: MultiFlowConfig) -> tuple[Layer, ...]:
    """Every flow's order, whatever it makes and is given."""
    made: list[Layer] = []
    widths, kept, now = [config.dim * m for m in config.multipliers], [], config.dim
    last = len(widths) - 1

    def add(way: str, level: int, kind: str, after: int = 0, skip: int = 0) -> None:
        """A layer, whose input has the channels of a skip beside those of the one before it."""
        nonlocal now
        made.append(Layer(kind, way, level, now + skip, after))
        now = after

    def keep(level: int) -> None:
        made.append(Layer("keep", "in", level))
        kept.append(now)

    made.append(Layer("stem", "in", 0, 0, now))
    keep(0)
    for level, width in enumerate(widths):
        for _ in range(config.depth):
            add("in", level, "residual", width)
            if level < config.attending:
                add("in", level, "context", width)
            keep(level)
        if level < last:
            add("in", level, "down", width)
            keep(level)
    for kind in ("residual", "context", "residual"):
        add("middle", last, kind, now)
    for level, width in reversed([*enumerate(widths)]):
        for _ in range(config.depth + 1):
            made.append(Layer("take", "out", level))
            add("out", level, "residual", width, skip=kept.pop())
            if level < config.attending:
                add("out", level, "context", width)
        if level:
            add("out", level, "up", width)
    add("out", 0, "head")
    return tuple(made)


# -- data layers ------------------------------------------------------------------------------


class FlatResidual(ResidualBlock):
    """A residual block of fully connected layers, (B, C, S, 1) -> (B, out_channels, S, 1)."""

    def __init__(self, channels: int, out_channels: int, time_dim: int, places: int) -> None:
        super().__init__(places * channels, places * out_channels, time_dim, kernel=1)
        self.places = places

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        made = super().forward(x.flatten(1)[..., None, None], time)
        return made.reshape(len(x), -1, self.places, 1)


class FlatLinear(nn.Linear):
    """A linear layer between whole maps or vectors (B, ...) -> (B, *shape)."""

    def __init__(self, features: int, shape: tuple[int, ...]) -> None:
        super().__init__(features, prod(shape))
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1)).unflatten(1, self.shape)


class Placed(nn.Module):
    """A first layer, and a learned vector for each place of its map (B, *shape)."""

    def __init__(self, layer: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layer = layer
        self.positions = nn.Parameter(0.5 * torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.positions


class ToMap(nn.Linear):
    """(B, L, features) -> (B, C, L, 1), each place by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(1, 2)[..., None]


class FromMap(nn.Linear):
    """(B, C, L, 1) -> (B, L, features), each place by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., 0].transpose(1, 2))


def _of_maps(data: Maps, layer: Layer, time_dim: int) -> nn.Module:
    before, after = layer.before, layer.after
    padding = data.kernel // 2
    match layer.kind:
        case "stem":
            first = nn.Conv2d(data.channels, after, data.kernel, padding=padding)
            return Placed(first, (after, data.size, data.size)) if data.size else first
        case "residual":
            return ResidualBlock(before, after, time_dim, kernel=data.kernel)
        case "down":
            return Downsample(before, after)
        case "up":
            return Upsample(before, after)
    last = zeroed(nn.Conv2d(before, data.channels, data.kernel, padding=padding))
    return nn.Sequential(group_norm(before), nn.SiLU(), last)


def _of_sequences(data: Sequences, layer: Layer, time_dim: int) -> nn.Module:
    before, after = layer.before, layer.after
    match layer.kind:
        case "stem":
            return Placed(ToMap(data.dim, after), (after, data.length, 1))
        case "residual":
            return ResidualBlock(before, after, time_dim, kernel=1)
        case "down" | "up":
            return nn.Conv2d(before, after, 1)
    return nn.Sequential(group_norm(before), nn.SiLU(), zeroed(FromMap(before, data.dim)))


def _of_vectors(data: Vectors, layer: Layer, time_dim: int) -> nn.Module:
    before, shape = layer.before, (layer.after, data.places, 1)
    match layer.kind:
        case "stem":
            return FlatLinear(prod(data.shape), shape)
        case "residual":
            return FlatResidual(before, layer.after, time_dim, data.places)
        case "down" | "up":
            return FlatLinear(data.places * before, shape)
    last = zeroed(FlatLinear(data.places * before, data.shape))
    return nn.Sequential(group_norm(before), nn.SiLU(), last)


_MAKERS = {Maps: _of_maps, Vectors: _of_vectors, Sequences: _of_sequences}

# -- mixing -----------------------------------------------------------------------------------


def shares(contexts: Contexts) -> Tensor:
    """(K, B, 1 or P) float64: the contexts' weights, made to sum to 1; without one a context has 1.

    Raises ValueError where a sample's weights are all 0.
    """
    given = [_weight(context) for context in contexts.values()]
    wide = max(w.shape[1] for w in given)
    weights = torch.stack([w.expand(-1, wide) for w in given])
    total = weights.sum(0)
    if (total <= 0).any():
        raise ValueError(f"the weights of {', '.join(contexts)} are all 0; give one of them more")
    return weights / total


def _weight(context: Context) -> Tensor:
    """(B, 1 or P) float64."""
    if context.weight is None:
        return torch.ones(len(context.tokens), 1, dtype=torch.float64, device=context.tokens.device)
    return context.weight.double().reshape(len(context.weight), -1)


def layer_level(contexts: Contexts, uniforms: Tensor) -> Contexts:
    """The contexts with weights (B, P) of 0 and 1: each context layer sees one of them alone, drawn
    with its weight as its probability.

    uniforms: (B, P) in [0, 1), one for each context layer in the order in which they run.  The
    first context has the interval from 0, the second the one after it.
    Source: Xu et al., 2022, arXiv 2211.08332 (layer-level mixing).
    """
    edges = shares(contexts)[..., 0].T.cumsum(1).contiguous()  # (B, K)
    found = torch.searchsorted(edges, uniforms.to(edges).contiguous(), right=True)
    drawn = found.clamp(max=len(contexts) - 1)  # (B, P), where rounding left a gap below 1
    return {
        name: replace(context, weight=(drawn == k).double())
        for k, (name, context) in enumerate(contexts.items())
    }


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many parameters the layers have.

    components: of each set of layers.  flows: (what is made, what is given) -> of all that the flow
    takes.  total: of the network.  separate: of as many networks as there are flows.
    """

    components: Mapping[str, int]
    flows: Mapping[tuple[str, str], int]

    @property
    def total(self) -> int:
        return sum(self.components.values())

    @property
    def separate(self) -> int:
        return sum(self.flows.values())


# -- the network ------------------------------------------------------------------------------


class MultiFlow(nn.Module):
    """(states, times, contexts) -> raw outputs, each state by a flow of its own.

    A context's name is that of its kind, or begins with it and ":", as "image:2" does.  Several are
    mixed at every context layer, x + sum of share_k (layer_k(x) - x), their shares being their
    `weight`s made to sum to 1: (B,), or (B, P), one for each context layer.
    """

    def __init__(self, config: MultiFlowConfig, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        self.config, self.gradient_checkpointing = config, gradient_checkpointing
        self.layers, width = layers(config), 4 * config.dim
        parts: dict[str, nn.Module] = {"time": TimeEmbedding(config.dim, width)}
        for data in config.data:
            make, own = _MAKERS[type(data)], (layer for layer in self.layers if layer.kind in DATA)
            parts[f"{data.name}_data"] = nn.ModuleList(make(data, layer, width) for layer in own)
        channels = [layer.after for layer in self.layers if layer.kind == "context"]
        for kind, dim in config.contexts.items():
            parts[f"{kind}_context"] = nn.ModuleList(
                SpatialTransformer(c, config.heads, dim) for c in channels
            )
        self.parts = nn.ModuleDict(parts)

    def forward(
        self,
        states: Bundle,
        times: Times,
        contexts: Contexts | None = None,
        keep: tuple[str, ...] | None = None,
    ) -> Bundle:
        """states: name -> (B, ...); times: clock -> (B,) float64; contexts: at least one, of tokens
        (B, M, width of its kind); keep: the outputs wanted.

        Raises ValueError for contexts that the network has no layers for, and where there is none.
        """
        contexts = contexts or {}
        if not contexts or any(kind_of(name) not in self.config.contexts for name in contexts):
            known, found = ", ".join(self.config.contexts), ", ".join(contexts) or "nothing"
            raise ValueError(f"a flow is given {known}, or several of them; here it is {found}")
        given = self._given(contexts)
        return {
            data.name: self._flow(data.name, states[data.name], times[self._clock(data)], given)
            for data in self.config.data
            if data.name in states and (keep is None or data.name in keep)
        }

    @property
    def context_layers(self) -> int:
        """P, how many layers there are of each kind of context."""
        return sum(layer.kind == "context" for layer in self.layers)

    @property
    def components(self) -> dict[str, nn.Module]:
        """The sets of layers, stored and placed one by one: "time", "NAME_data", "NAME_context"."""
        return dict(self.parts.items())

    def needed(self, times: Times, contexts: Contexts) -> list[str]:
        """The components of the flows that make what has a time, out of these contexts."""
        data = [f"{data.name}_data" for data in self.config.data if self._clock(data) in times]
        kinds = dict.fromkeys(map(kind_of, contexts))
        return ["time", *data, *(f"{kind}_context" for kind in kinds)]

    @property
    def blocks(self) -> list[nn.Module]:
        """What is sharded and checkpointed, and whose matrices Muon moves."""
        return [m for m in self.modules() if isinstance(m, (ResidualBlock, SpatialTransformer))]

    @torch.no_grad()
    def take(self, other: MultiFlow) -> list[str]:
        """Starts from the weights of another one, which may have fewer flows; returns the names of
        those it has no start for."""
        own = self.state_dict()
        theirs = other.state_dict().items()
        fits = {k: v for k, v in theirs if k in own and v.shape == own[k].shape}
        self.load_state_dict(own | fits)
        return sorted(own.keys() - fits.keys())

    def parameters_report(self) -> Parameters:
        """What the flows share, and what they would have as networks of their own."""
        counts = {name: sum(p.numel() for p in m.parameters()) for name, m in self.parts.items()}
        pairs = product((data.name for data in self.config.data), self.config.contexts)
        flows = {
            (made, given): sum(counts[n] for n in ("time", f"{made}_data", f"{given}_context"))
            for made, given in pairs
        }
        return Parameters(components=counts, flows=flows)

    def _clock(self, data: Maps | Vectors | Sequences) -> str:
        return self.config.clocks.get(data.name, data.name)

    def _given(self, contexts: Contexts) -> list[list[tuple[nn.Module, Context, Tensor | None]]]:
        """For each context layer those that run there: (layer, its context, its share (B,)).

        A share is None where there is no other; a context without any is left out.
        """
        sets = [self.parts[f"{kind_of(name)}_context"] for name in contexts]
        if len(contexts) == 1:
            (context,) = contexts.values()
            return [[(layer, context, None)] for layer in sets[0]]
        share = shares(contexts).expand(-1, -1, self.context_layers)  # (K, B, P)
        used = (share > 0).any(1).tolist()
        own = [*enumerate(zip(sets, contexts.values()))]
        return [
            [(own_layers[p], c, share[k, :, p]) for k, (own_layers, c) in own if used[k][p]]
            for p in range(self.context_layers)
        ]

    def _flow(self, name: str, x: Tensor, t: Tensor, given: list) -> Tensor:
        """The state x at times t (B,) -> the raw output, of its shape."""
        time = self.parts["time"](self.config.steps * t.to(torch.float64) - 1)
        data, places, skips = iter(self.parts[f"{name}_data"]), iter(given), []
        for layer in self.layers:
            match layer.kind:
                case "keep":
                    skips.append(x)
                case "take":
                    x = torch.cat([x, skips.pop()], 1)
                case "context":
                    x = self._mixed(x, next(places))
                case "residual":
                    x = self._run(next(data), x, time)
                case _:
                    x = next(data)(x)
        return x

    def _mixed(self, x: Tensor, place: list[tuple[nn.Module, Context, Tensor | None]]) -> Tensor:
        """The sum of what each context's layer makes of x, by their shares."""
        made = [(self._run(layer, x, context), share) for layer, context, share in place]
        if len(made) == 1:  # it has all of it
            return made[0][0]
        return sum(like_rows(share, x).to(x.dtype) * h for h, share in made)

    def _run(self, layer: nn.Module, *inputs: Any) -> Tensor:
        return run(layer, *inputs, gradient_checkpointing=self.gradient_checkpointing)
