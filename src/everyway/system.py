"""A System: modalities, a network, its tasks, and how it is sampled by default.  Every published
recipe is one of these.

The network answers raw outputs; `denoiser` turns them into clean estimates, which is the only thing
samplers, guidance and metrics ever see.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from everyway.contracts import (
    Bundle,
    Codec,
    Context,
    Contexts,
    Denoise,
    Process,
    Query,
    Times,
    joined,
    kind_of,
    placed,
    rows,
    together,
)
from everyway.errors import UsageError
from everyway.nets.batch_invariance import batch_invariant, by_rows
from everyway.nets.precision import computing
from everyway.placement import CPU, Placement
from everyway.tasks import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Modality:
    """One named stream of a system.

    shape: of one state, without the batch axis.
    clock: the time it follows.  raw: the name of its raw data ("image", "text"), the clock's if "".
    decodes: False for streams that are generated but not shown (an image embedding).
    weight: of its mean loss in training.
    """

    name: str
    clock: str
    shape: tuple[int, ...]
    process: Process
    codec: Codec
    decodes: bool = True
    weight: float = 1.0
    raw: str = ""

    @property
    def source(self) -> str:
        """The raw data it encodes and decodes."""
        return self.raw or self.clock


@dataclass(frozen=True, kw_only=True, eq=False)
class Null:
    """What stands for a context that is not given.

    make: the Context of one sample.  codec: which `make` asks; then its answer is kept until the
    codec's weights change.
    """

    make: Callable[[], Context]
    codec: nn.Module | None = None
    kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def context(self, using: Callable[[Any], AbstractContextManager] = nullcontext) -> Context:
        """Of one sample.  using: makes the codec ready to run."""
        if self.codec is None:
            return self.make()
        own = self.codec.parameters()
        weights = [(id(p), 0 if p.is_inference() else p._version) for p in own]
        if self.kept.get("weights") != weights:
            with using(self.codec), torch.inference_mode(False), torch.no_grad():
                self.kept.update(weights=weights, context=self.make())
        return self.kept["context"]


def dropped(*shape: int) -> Null:
    """That of a network which has one of its own, for one sample's tokens of `shape` (N, D)."""
    yes = [True]
    return Null(make=lambda: Context(tokens=torch.zeros(1, *shape), dropped=torch.tensor(yes)))


def zeros(*shape: int) -> Null:
    """Zeros in place of one sample's tokens, of `shape` (N, D)."""
    return Null(make=lambda: Context(tokens=torch.zeros(1, *shape)))


def labelled(number: int) -> Null:
    """A null label."""
    return Null(make=lambda: Context(tokens=torch.tensor([number])))


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """One named context of a system: what reads it, and what stands for it where it is not given.

    source: the raw data it reads ("text").
    codec: raw -> context tokens, (B, N, D) float or (B,) int64 labels, or a Context of them.  One
    that sees patches takes a mask too: encode(raw, mask).
    nulls: by name, of which guidance and training take the first; none where the network cannot do
    without this condition.
    null_of: a prompt -> the null that it asks for, where a request names none.
    leading: how many tokens stand before those of a picture's patches; None where it has none.
    given_as: the name that a request gives its raw data by, where that is not `source`, which
    training reads (the style of a picture, in training that of the picture itself).
    """

    name: str
    source: str
    codec: Codec
    nulls: Mapping[str, Null]
    null_of: Callable[[str], str] | None = None
    given_as: str = ""
    leading: int | None = None

    @property
    def asked(self) -> str:
        """The name of its raw data in a request."""
        return self.given_as or self.source

    def raw_in(self, names: Iterable[str]) -> list[str]:
        """Those of its own raw data among names, as ["image", "image:2"]."""
        own = [name for name in names if kind_of(name) == self.asked]
        return own or [name for name in names if kind_of(name) == self.source]

    def null(self, name: str = "") -> Null:
        """By name; the first of them where there is none of that name."""
        if not self.nulls:
            raise UsageError(
                f"this model has no null {self.name}; draw with a guidance of 1, which is off, "
                "and train it on with drop=0"
            )
        return self.nulls.get(name, next(iter(self.nulls.values())))


@dataclass(frozen=True, kw_only=True, eq=False)
class System:
    """A network over modalities.  `config` is plain data that rebuilds the system (JSON).

    conditions: the contexts that the network is given.
    systems: other systems that a request passes through, by name (the stages of a cascade).
    media: raw data -> its medium, where that is not of its name, as {"depth": "image"}: a row of
    `media.MEDIA`, or a `media.Medium` of its own.
    shared: component -> the shipped model that holds its weights, where it is not this one, and
    after an "@" their sha256.
    deltas: component -> the one that it is stored as a difference from.
    placement: where its modules lie and compute; None leaves them where they are.
    mixes: whether weights of several contexts are their shares, which the network reads; it is
    shown none but those of a task, and of several none of weight 0.
    sampler, guidance, steps, truncation: what this system is sampled with by default.
    paint: settings of its `controls.paint.PaintWeight` that are not the paper's.
    """

    name: str
    network: nn.Module
    modalities: Mapping[str, Modality]
    tasks: Mapping[str, Task]
    config: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    systems: Mapping[str, System] = field(default_factory=dict)
    media: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    deltas: Mapping[str, str] = field(default_factory=dict)
    placement: Placement | None = None
    mixes: bool = False
    sampler: str = "dpm++2m"
    guidance: float = 2.5
    steps: int = 25
    truncation: float = 1.0
    paint: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shown = Counter(m.source for m in self.modalities.values() if m.decodes)
        if twice := [source for source, count in shown.items() if count > 1]:
            raise ValueError(f"several modalities decode to {twice}; give each a raw of its own")
        own = {"modality": self.modalities, "clock": self.clocks.values()}
        own["condition"] = self.conditions
        for what, names in getattr(self.network, "reads", {}).items():
            if unread := [name for name in own[what] if name not in names]:
                raise ValueError(
                    f"the network of {self.name} has no tokens of {what} {unread[0]!r}"
                )
        for task in self.tasks.values():
            if odd := sorted(task.roles.keys() - set(self.clocks.values())):
                raise ValueError(f"task {task.name!r} has clocks {odd} that {self.name} lacks")
            if odd := sorted(task.contexts.keys() - self.conditions.keys()):
                raise ValueError(f"task {task.name!r} has contexts {odd} that {self.name} lacks")

    @property
    def processes(self) -> dict[str, Process]:
        return {name: m.process for name, m in self.modalities.items()}

    @property
    def tokens(self) -> dict[str, Process]:
        """modality -> process, of those that are tokens."""
        return {n: p for n, p in self.processes.items() if p.kernel == "tokens"}

    @property
    def clocks(self) -> dict[str, str]:
        """modality -> clock."""
        return {name: m.clock for name, m in self.modalities.items()}

    @property
    def codecs(self) -> dict[str, nn.Module]:
        """Component name -> codec, for the codecs of modalities and conditions that own weights.

        A codec has the name of what it is for, a condition's "NAME_condition" where a modality of
        that name has another; one that serves several is there once.
        """
        made: dict[str, nn.Module] = {}
        for part in self._parts:
            if isinstance(part.codec, nn.Module) and not _held(part.codec, made):
                taken = part.name in made or part.name == "network"
                made[f"{part.name}_condition" if taken else part.name] = part.codec
        return made

    @cached_property
    def networks(self) -> dict[str, nn.Module]:
        """Component name -> network, or each of those that it is made of."""
        return nested("network", self.network)

    @property
    def components(self) -> dict[str, nn.Module]:
        """Component name -> module: what is stored, placed and offloaded one by one.

        Those of a system within this one are "NAME.component".
        """
        made = {**self.networks, **self.codecs}
        for name, system in self.systems.items():
            inner = system.components.items()
            made |= {f"{name}.{n}": m for n, m in inner if not _held(m, made)}
        return made

    def weights(self, network: Mapping[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
        """Component name -> state dict, of all that is stored with this system.

        network: other weights of the network than its own, as its state dict names them.
        """
        stored = {n: m.state_dict() for n, m in self.components.items() if n not in self.shared}
        if network is not None:
            for name, start in self.network_places.items():
                own = {k: v for k, v in network.items() if k.startswith(start)}
                stored[name] = {k.removeprefix(start): v for k, v in own.items()}
        return stored

    @property
    def network_places(self) -> dict[str, str]:
        """Component of the network -> how the network's own names of its tensors begin."""
        names = {id(module): name for name, module in self.network.named_modules()}
        found = {name: names[id(module)] for name, module in self.networks.items()}
        return {name: f"{place}." if place else "" for name, place in found.items()}

    def placed(self, placement: Placement) -> System:
        """This system, and those within it, placed so."""
        systems = {name: s.placed(placement) for name, s in self.systems.items()}
        return replace(self, placement=placement, systems=systems)

    def on(self, clock: str) -> tuple[Modality, ...]:
        """The modalities that follow `clock`."""
        return tuple(m for m in self.modalities.values() if m.clock == clock)

    def given(self, task: Task) -> tuple[str, ...]:
        """The raw data that a task is given, by name."""
        names = [m.source for clock in task.given for m in self.on(clock)]
        names += [_numbered(self.conditions[kind_of(n)].asked, n) for n in task.given_contexts]
        return tuple(dict.fromkeys(names))

    def shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        return {name: (batch, *m.shape) for name, m in self.modalities.items()}

    @torch.no_grad()
    def encode(self, raw: Mapping[str, Any], clocks: Collection[str] | None = None) -> Bundle:
        """raw: name -> raw data, e.g. image (B, 3, H, W) in [-1, 1], text a list of B strings.

        clocks: whose states are wanted, all of them where it is None.
        """
        unknown = set(raw) - self.raws
        if unknown:
            raise UsageError(
                f"{self.name} knows no {sorted(unknown)}; it takes {sorted(self.raws)}"
            )
        own = [m for m in self.modalities.values() if clocks is None or m.clock in clocks]
        return {m.name: self._encoded(m.codec, raw[m.source]) for m in own if m.source in raw}

    @property
    def raws(self) -> set[str]:
        """The raw data that its modalities and conditions read."""
        asked = {c.asked for c in self.conditions.values()}
        return {part.source for part in self._parts} | asked

    @property
    def _parts(self) -> tuple[Modality | Condition, ...]:
        return *self.modalities.values(), *self.conditions.values()

    def reads(self, text: str) -> None:
        """Raises ValueError for a text that a codec of texts cannot read; no network runs."""
        codecs = [m.codec for m in self.on("text")]
        for codec in codecs + [c.codec for c in self.conditions.values() if c.source == "text"]:
            read = getattr(codec, "ids", None) or getattr(codec, "tokens", codec).encode
            read([text])

    @torch.no_grad()
    def contexts(
        self, raw: Mapping[str, Any], masks: Mapping[str, Tensor] | None = None
    ) -> Contexts:
        """raw: source -> raw data.  Condition -> its context, where its source is given.

        Of "image:2" the context of a condition that reads "image" is NAME:2.
        masks: the same names -> how much of each pixel is seen (B, 1, H, W), for conditions that
        see patches.
        """
        shown = masks or {}
        pairs = [(c, name) for c in self.conditions.values() for name in c.raw_in(raw)]
        made = {
            _numbered(c.name, n): self._encoded(c.codec, raw[n], shown.get(n)) for c, n in pairs
        }
        return {n: c if isinstance(c, Context) else Context(tokens=c) for n, c in made.items()}

    def contexts_of(self, raw: str) -> tuple[str, ...]:
        """The names of the contexts that are made of raw data, or are embeddings, of this name."""
        own = (c for c in self.conditions.values() if kind_of(raw) in (c.asked, c.name))
        return tuple(_numbered(c.name, raw) for c in own)

    def null_contexts(self, batch: int, name: str = "", task: Task | None = None) -> Contexts:
        """What the network is given in place of every context that it can do without.

        name: of the null, for conditions that have one of that name.  task: of which they are
        asked: where it is given "text:2", that has the null of its kind, and where the network
        `mixes` contexts it is shown no others.
        """
        own = [c for c in self.conditions.values() if c.nulls]
        given = task.contexts if task else ()
        if task and self.mixes:
            own = [c for c in own if c.name in map(kind_of, given)]
        made = {c.name: c.null(name).context(self._using).expand(batch) for c in own}
        return made | {n: made[kind_of(n)] for n in given if kind_of(n) in made}

    def weighed(
        self, contexts: Contexts, nulls: Contexts, weights: Mapping[str, float]
    ) -> Contexts:
        """Every context at its weight: 0 or missing is its null, 1 as given, between them blended;
        where the network `mixes` several, each as it is and with that share.

        What the network has a null of its own for, it blends itself.  Raises ValueError for a
        context that is missing.
        """
        out, own = {}, () if self.mixes else self.conditions
        mixed = self.mixes and sum(map(bool, weights.values())) > 1
        for name in dict.fromkeys([*own, *weights]):
            weight = weights.get(name, 0.0)
            if mixed and not weight:
                continue
            given = (contexts if weight else nulls).get(name)
            if given is None:
                what = "" if weight else "null "
                raise ValueError(f"the network needs a {what}context {name!r}, and there is none")
            if 0 < weight < 1:
                given = _shared(given, weight) if mixed else _blended(given, nulls[name], weight)
            out[name] = given
        return out

    @torch.no_grad()
    def decode(self, states: Bundle) -> dict[str, Any]:
        """Clean states -> raw data by name; streams that are not shown are left out."""
        return {
            m.source: self._decoded(m.codec, states[m.name])
            for m in self.modalities.values()
            if m.decodes and m.name in states
        }

    @property
    def device(self) -> torch.device:
        """Where the network computes, and where states are best drawn."""
        where = self.placement
        if where is not None and where.sparing:  # the network may lie elsewhere now
            return where.device
        return next(self.network.parameters()).device

    @contextmanager
    def _using(
        self, part: nn.Module | Codec, times: Times | None = None, contexts: Contexts | None = None
    ) -> Iterator[torch.device]:
        """The network or a codec, ready to run; gives the device that it runs on.

        times, contexts: what a network of several is asked at, and out of what, which says those of
        them that are needed.
        """
        if not isinstance(part, nn.Module):
            yield CPU
            return
        networks, needed = self.networks, [part]
        if part is self.network and len(networks) > 1:
            own: Any = self.network
            needed = [networks[f"network.{name}"] for name in own.needed(times, contexts)]
        idle = [m for m in networks.values() if id(m) not in map(id, needed)]
        placement = self.placement or Placement()
        with ExitStack() as stack:
            for module in needed:
                stays = (module,) if part is self.network else ()
                stack.enter_context(placement.on_device(module, *idle, *stays))
            if part is self.network and hasattr(part, "after"):
                placement.ahead(networks[f"network.{part.after(times)}"])
            stack.enter_context(computing(needed[0]))
            yield next(chain(needed[0].parameters(), needed[0].buffers())).device

    def _encoded(self, codec: Any, raw: Any, mask: Tensor | None = None) -> Any:
        with self._using(codec) as device:
            raw = raw.to(device) if isinstance(raw, Tensor) else raw
            return codec.encode(raw) if mask is None else codec.encode(raw, mask.to(device))

    def _decoded(self, codec: Codec, state: Tensor) -> Any:
        with self._using(codec) as device:
            return codec.decode(state.to(device))

    def denoiser(self, rows_a_call: int | None = None) -> Denoise:
        """Clean estimates for queries, in float32 or better, where the query's states are.

        rows_a_call: 1 gives every sample of every query its own fixed-shape call, which makes
        sample k bit-equal whatever the batch it came in; 0 makes queries of equal shapes, such as
        conditional and unconditional ones, one call.  None is 0 on a GPU.  On a CPU, where a row
        of a float32 product has other last bits in a larger batch, None is one call for each
        query, with the bits that 1 gives (`nets.batch_invariance`).
        """
        if rows_a_call is None and self.device.type != "cpu":
            rows_a_call = 0

        @torch.inference_mode()
        def denoise(queries: Sequence[Query]) -> list[Bundle]:
            if rows_a_call != 0:
                return [self._clean(query, rows_a_call) for query in queries]
            alike: dict[Any, list[int]] = {}
            for number, query in enumerate(queries):
                alike.setdefault(query.shapes, []).append(number)
            out: list[Bundle] = [{}] * len(queries)
            for numbers in alike.values():
                answer, start = self._clean(together([queries[n] for n in numbers])), 0
                for n in numbers:
                    cut = slice(start, start := start + queries[n].batch)
                    out[n] = rows({k: answer[k] for k in queries[n].kept}, cut)
            return out

        return denoise

    def shown(self, states: Bundle, times: Times) -> Bundle:
        """What the network is shown of noisy states, each as its process has it."""
        processes = {name: self.modalities[name].process for name in states}
        return {k: processes[k].network_input(x, times[self.clocks[k]]) for k, x in states.items()}

    def existing(self, times: Times) -> Times:
        """The nearest times that every modality of a clock has (a token modality has few)."""
        for name, clock in self.clocks.items():
            if clock in times:
                times = times | {clock: self.modalities[name].process.existing(times[clock])}
        return times

    def _clean(self, query: Query, rows_a_call: int | None = 0) -> Bundle:
        """Where one network of several lies on the device at a time, they are asked in turn."""
        place = self._turns(query.times)
        if len(place) < 2:
            return self._asked(query, rows_a_call)
        parts = [self._asked(rows(query, own), rows_a_call) for own in place]
        return rows(joined(parts), torch.cat(place).argsort())

    def _turns(self, times: Times) -> list[Tensor]:
        """The samples (n,) of each network of several that cannot be on the device together."""
        chosen = getattr(self.network, "chosen", None)
        if chosen is None or self.placement is None or not self.placement.sparing:
            return []
        chosen = chosen(times)
        names = dict.fromkeys(chosen)
        return [torch.tensor([k for k, n in enumerate(chosen) if n == name]) for name in names]

    def _asked(self, query: Query, rows_a_call: int | None = 0) -> Bundle:
        with self._using(self.network, query.times, query.contexts) as device:
            asked = placed(query, device)
            asked = replace(asked, states=self.shown(asked.states, asked.times))
            if rows_a_call is None:
                raw = batch_invariant(self.network, asked)
            else:
                raw = by_rows(self.network, asked, rows_a_call or query.batch)
        return {
            name: self.modalities[name].process.to_clean(
                raw[name].to(query.states[name].device, torch.float32),
                query.states[name],
                query.times[self.clocks[name]],
            )
            for name in query.kept
        }


def _numbered(name: str, like: str) -> str:
    """The name with the number of another one, "text:2" of "image:2"."""
    return f"{name}{like.removeprefix(kind_of(like))}"


def nested(name: str, module: nn.Module) -> dict[str, nn.Module]:
    """Component name -> module: itself, or "NAME.part" for those that it is made of.

    A module that is made of others has them as `components`, a mapping, and no other weights; a
    network of several also says which it `needed(times, contexts)`.
    """
    parts = getattr(module, "components", None)
    if parts is None:
        return {name: module}
    own = {id(p) for part in parts.values() for p in part.parameters()}
    if any(id(p) not in own for p in module.parameters()):
        raise ValueError(f"{name} has weights beside its components; put them into one")
    return {f"{name}.{key}": part for key, part in parts.items()}


def _held(module: nn.Module, among: Mapping[str, nn.Module]) -> bool:
    return any(module is other for other in among.values())


def _shared(given: Context, weight: float) -> Context:
    """With that weight, which the network reads."""
    return replace(given, weight=torch.full((len(given.tokens),), weight).to(given.tokens.device))


def _blended(given: Context, null: Context, weight: float) -> Context:
    """By the network where it has the null, or else as a mean of equally long tokens."""
    if null.dropped is not None or not given.tokens.is_floating_point():
        return _shared(given, weight)
    return replace(given, tokens=torch.lerp(null.tokens.to(given.tokens), given.tokens, weight))
