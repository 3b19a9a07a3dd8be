"""The few types that everything else speaks: what flows between the five nouns.

    train   raw -codec.encode-> x0 -process.corrupt(t)-> x_t -network-> out -process.loss-> losses
    sample  prior -loop[queries -> network -> process.to_clean -> guidance -> kernel(t->s)]-> x0
            x0 -codec.decode-> raw

A *modality* is a named stream that can be a diffusing state ("image", "image_embed", "text").  Its
*clock* is the name of the time it follows; several modalities may share one clock.  Time runs from
0 (clean data) to 1 (the schedule's terminal distribution) and is float64 everywhere outside a
network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node, tree_map, tree_map_only

T = TypeVar("T")

Bundle = dict[str, Tensor]
"""modality -> tensor (B, ...); a plain dict is the only container of states."""

Times = dict[str, Tensor]
"""clock -> (B,) float64 in [0, 1]; 0 is exactly clean, 1 is the terminal distribution
("absent")."""


ScoreBias = Tensor | Callable[[Tensor], Tensor]
"""What is added to attention scores (B, H, L, N): a tensor of their shape, or one that is broadcast
to it, or a function of the scores (paint-with-words needs their maximum).  In joint attention a
function is of the scores between the picture's L places and the bias's N tokens, either way."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """What a network is conditioned on without a process: encoder outputs, or a class label.

    A context that has the name of a state is the state's own tokens: its mask and bias count in
    joint attention, where those tokens stand already.

    tokens: (B, N, D) float states, or (B,) int64 class labels.
    mask: (B, N) bool, True where a token may be attended to; None is everywhere.
    bias: added to the scores of attention to the tokens, a tensor (B, H or 1, L or 1, N) or a
    function of the scores, which is a pytree of tensors (B, ...) if it is to be batched.
    weight: (B,) in [0, 1], 1 is as given and below that blended with the null; None is 1.  Where a
    network mixes its contexts, their shares instead, 0 or more and to be made to sum to 1: (B,), or
    (B, P), one for each of its P context layers.
    dropped: (B,) bool, True where the network takes its own null instead; None is nowhere.
    """

    tokens: Tensor
    mask: Tensor | None = None
    bias: ScoreBias | None = None
    weight: Tensor | None = None
    dropped: Tensor | None = None

    @property
    def attended(self) -> Tensor | None:
        """(B, N) bool, the mask with all of a dropped sample's tokens; None is everywhere."""
        if self.mask is None or self.dropped is None:
            return self.mask
        return self.mask | self.dropped[:, None]

    def to(self, device: torch.device | str) -> Context:
        return placed(self, device)

    def rows(self, cut: slice) -> Context:
        """Of some samples."""
        return rows(self, cut)

    def expand(self, batch: int) -> Context:
        """One sample's, for `batch` samples."""
        return tree_map_only(Tensor, lambda x: x.expand(batch, *x.shape[1:]), self)

    def where(self, chosen: Tensor, other: Context) -> Context:
        """This one for the samples of `chosen` (B,) bool, the other one for the rest."""

        def pick(*x: Any) -> Any:
            return torch.where(like_rows(chosen, x[0]), *x) if _tensors(*x) else x[0]

        return tree_map(pick, *_alike([self, other]))


Contexts = dict[str, Context]
"""Name -> context.  Of several of one kind the names go on as "image", "image:2", "image:3"."""


def kind_of(name: str) -> str:
    """The kind of a context, "image" of "image:2"."""
    return name.partition(":")[0]


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """What a network is given, and one question to the denoiser: states at their times, in context.

    keep: the modalities whose clean estimate is wanted in the answer, all of them if empty.
    """

    states: Bundle
    times: Times
    contexts: Contexts = field(default_factory=dict)
    keep: tuple[str, ...] = ()

    @property
    def batch(self) -> int:
        return len(next(iter(self.states.values())))

    @property
    def kept(self) -> tuple[str, ...]:
        """`keep`, or every modality where that is empty."""
        return self.keep or tuple(self.states)

    @property
    def shapes(self) -> tuple:
        """What queries must have in common to be asked `together`."""
        seen = {**self.states, **{f"context.{k}": c.tokens for k, c in self.contexts.items()}}
        return (*self.times, *((name, x.shape[1:], x.dtype) for name, x in seen.items()))


def register(cls: type, aside: tuple[str, ...] = ()) -> None:
    """A dataclass as a pytree of its fields, those of `aside` excepted."""
    names = [f.name for f in fields(cls) if f.name not in aside]
    register_pytree_node(
        cls,
        lambda x: ([getattr(x, n) for n in names], tuple(getattr(x, n) for n in aside)),
        lambda children, kept: cls(**dict(zip(names, children)), **dict(zip(aside, kept))),
    )


register(Context)
register(Query, aside=("keep",))


def placed(tree: T, device: torch.device | str) -> T:
    """A query, context or bundle on `device`."""
    return tree_map_only(Tensor, lambda x: x.to(device), tree)


def rows(tree: T, cut: slice | Tensor) -> T:
    """Some samples of a query, context or bundle.  cut: a slice, their numbers (n,), or (B,)
    bool."""
    return tree_map_only(Tensor, lambda x: x[cut], tree)


def joined(parts: Sequence[T]) -> T:
    """Contexts or bundles of equal shapes as one: the samples of each after the other's."""
    return tree_map(lambda *x: torch.cat(x) if _tensors(*x) else x[0], *parts)


def together(queries: Sequence[Query]) -> Query:
    """Queries of equal `shapes` as one, which keeps everything that any of them keeps."""
    keep = tuple(dict.fromkeys(name for q in queries for name in q.kept))
    alike = {name: _alike([q.contexts[name] for q in queries]) for name in queries[0].contexts}
    contexts = ({name: made[k] for name, made in alike.items()} for k in range(len(queries)))
    return joined([replace(q, keep=keep, contexts=c) for q, c in zip(queries, contexts)])


def _tensors(*leaves: Any) -> bool:
    """Whether they are tensors; what is not must be one and the same thing."""
    if not isinstance(leaves[0], Tensor) and any(x is not leaves[0] for x in leaves):
        raise ValueError(
            "contexts with different functions as bias cannot be batched; make the function a "
            "pytree of tensors (torch.utils._pytree.register_pytree_node)"
        )
    return isinstance(leaves[0], Tensor)


_NEUTRAL = {"mask": True, "bias": 0.0, "weight": 1.0, "dropped": False}
"""Field of a context -> its value where it changes nothing."""


def _alike(contexts: Sequence[Context]) -> list[Context]:
    """The same contexts, each with all the fields that any of them has."""
    made = list(contexts)
    for name, value in _NEUTRAL.items():
        held = (getattr(c, name) for c in contexts)
        if (some := next((x for x in held if x is not None), None)) is None:
            continue
        for k, context in enumerate(made):
            if getattr(context, name) is None:
                shape = partial(_filled, batch=len(context.tokens), value=value)
                made[k] = replace(context, **{name: tree_map_only(Tensor, shape, some)})
    return made


def _filled(like: Tensor, batch: int, value: float | bool) -> Tensor:
    return like.new_full((batch, *like.shape[1:]), value)


def flat(contexts: Contexts) -> Bundle:
    """Contexts as named tensors, for caches: "context.NAME", and "context.NAME.FIELD" of what else
    they have; `contexts_in` reads them again.  Raises ValueError for a bias that is a function."""
    out = {}
    for name, context in contexts.items():
        for field_, value in vars(context).items():
            if value is None:
                continue
            if not isinstance(value, Tensor):
                raise ValueError(f"the bias of {name!r} is a function; it cannot be cached")
            out[f"context.{name}" if field_ == "tokens" else f"context.{name}.{field_}"] = value
    return out


def contexts_in(tensors: Bundle) -> Contexts:
    """The contexts among named tensors, as `flat` names them; other tensors are left alone."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        group, _, rest = key.partition(".")
        if group in ("context", "told"):  # "told" in caches of old runs
            name, _, field_ = rest.partition(".")
            boolean = field_ in ("mask", "dropped")
            found.setdefault(name, {})[field_ or "tokens"] = value.bool() if boolean else value
    return {name: Context(**held) for name, held in found.items()}


Denoise = Callable[[Sequence[Query]], list[Bundle]]
"""Queries -> clean estimates (kept modalities only), batched or one by one as suits the device."""


class Noise(Protocol):
    """Where randomness comes from.  `name` says what it is for; the first axis is the batch."""

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 draws of `shape` (B, ...)."""
        ...

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform float32 draws in [0, 1) of `shape` (B, ...)."""
        ...

    def choose(self, name: str, weights: Tensor, counts: Tensor) -> Tensor:
        """counts (B,) places a row of weights (B, L), without replacement: (B, L) bool."""
        ...


class Process(Protocol):
    """How one modality is corrupted, and what a network's raw output says about the clean state.

    kernel: what moves it in sampling: "gaussian" is a solver along a schedule, "tokens" the
    sampler's kernel for discrete states.  steps: how many times there are above 0; 0 is any.
    """

    @property
    def kernel(self) -> Literal["gaussian", "tokens"]: ...

    @property
    def steps(self) -> int: ...

    def existing(self, t: Tensor) -> Tensor:
        """The nearest time at or above each of t (...) that the process has; 0 stays 0."""
        ...

    def known(self, x0: Tensor, draw: Tensor, t: Tensor) -> Tensor:
        """How a part of the clean state that is known stands among states at t (B,)."""
        ...

    def preview(self, clean: Tensor, state: Tensor) -> tuple[Tensor, Tensor | None]:
        """(the clean state to show at `state`, how sure each token is or None)."""
        ...

    @property
    def flow_from(self) -> float:
        """The least time from which `flow` can lead on."""
        ...

    def flow(self, x_t: Tensor, clean: Tensor, t: float, s: float) -> Tensor:
        """x_s on the deterministic path through x_t, in either direction; ValueError if none."""
        ...

    def draw(self, noise: Noise, name: str, shape: tuple[int, ...]) -> Tensor:
        """The randomness one corruption of a state of `shape` consumes."""
        ...

    def prior(self, draw: Tensor) -> Tensor:
        """The state at t = 1, from `draw`."""
        ...

    def corrupt(self, x0: Tensor, draw: Tensor, t: Tensor) -> Tensor:
        """x_t from clean x0 (B, ...), `draw` as from `draw()`, t (B,) float64.  t = 0 gives x0."""
        ...

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network is shown of x_t, in its shape."""
        ...

    def to_clean(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean estimate that the raw network output means, in float32 or better."""
        ...

    def combine(self, conditional: Tensor, unconditional: Tensor, w: Tensor) -> Tensor:
        """Two clean estimates guided with weight w (B,); w = 1 gives the conditional one."""
        ...

    def loss(self, raw: Tensor, x0: Tensor, draw: Tensor, t: Tensor) -> Tensor:
        """Per-sample training loss (B,) float32, meaned over the state's elements."""
        ...


class Codec(Protocol):
    """Between raw data and a state.  Frozen while a system trains."""

    def encode(self, raw: Any) -> Tensor: ...

    def decode(self, state: Tensor) -> Any: ...


def expand_times(t: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1) with the rank of `like`, keeping float64."""
    return like_rows(t.to(torch.float64), like)


def like_rows(x: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ..., 1) with the rank of `like`."""
    return x.reshape(-1, *([1] * (like.ndim - 1)))
