"""A System: modalities, a network, its tasks, and how it is sampled unless told.  Every published
recipe is one of these.

The network answers raw outputs; `denoiser` turns them into clean estimates, which is the only thing
samplers, guidance and metrics ever see.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from everyway.contracts import Bundle, Codec, Context, Contexts, Denoise, Process, Query, Times
from everyway.errors import UsageError
from everyway.nets.precision import computing
from everyway.placement import CPU, Placement
from everyway.process.mask_replace import MaskReplace
from everyway.tasks import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Modality:
    """One named stream of a system.

    shape: of one state, without the batch axis.
    clock: the time it follows, which also names its raw data ("image", "text").
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


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """One named context of a system: what reads it, and what is told where nothing is.

    source: the raw data it reads ("text").
    codec: raw -> context tokens, (B, N, D) float or (B,) int64 labels.
    nulls: name -> (batch -> Context); guidance and training take the first.
    null_of: a prompt -> the null that it asks for, where a request names none.
    """

    name: str
    source: str
    codec: Codec
    nulls: Mapping[str, Callable[[int], Context]]
    null_of: Callable[[str], str] | None = None

    def null(self, batch: int, name: str = "") -> Context:
        """What is told to `batch` samples in place of the context; "" is the first null."""
        name = name or next(iter(self.nulls))
        if name not in self.nulls:
            raise UsageError(f"null {name!r} is unknown; choose one of {', '.join(self.nulls)}")
        return self.nulls[name](batch)


@dataclass(frozen=True, kw_only=True, eq=False)
class System:
    """A network over modalities.  `config` is plain data that rebuilds the system (JSON).

    conditions: the contexts that the network is told.
    shared: component -> the shipped model that holds its weights, where it is not this one, and
    after an "@" their sha256.
    placement: where its modules lie and compute; None leaves them where they are.
    sampler, guidance, steps, truncation: what this system is sampled with unless told otherwise.
    """

    name: str
    network: nn.Module
    modalities: Mapping[str, Modality]
    tasks: Mapping[str, Task]
    config: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    placement: Placement | None = None
    sampler: str = "dpm++2m"
    guidance: float = 2.5
    steps: int = 25
    truncation: float = 1.0

    @property
    def processes(self) -> dict[str, Process]:
        return {name: m.process for name, m in self.modalities.items()}

    @property
    def chains(self) -> dict[str, MaskReplace]:
        """modality -> process, of those that are tokens."""
        return {n: p for n, p in self.processes.items() if isinstance(p, MaskReplace)}

    @property
    def clocks(self) -> dict[str, str]:
        """modality -> clock."""
        return {name: m.clock for name, m in self.modalities.items()}

    @property
    def codecs(self) -> dict[str, nn.Module]:
        """Component name -> codec, for the codecs of modalities and conditions that own weights."""
        everything = {**self.modalities, **self.conditions}
        return {n: m.codec for n, m in everything.items() if isinstance(m.codec, nn.Module)}

    def codec_weights(self) -> dict[str, dict[str, Tensor]]:
        """Component name -> state dict, of the codecs that are stored with this system."""
        return {n: c.state_dict() for n, c in self.codecs.items() if n not in self.shared}

    def on(self, clock: str) -> tuple[Modality, ...]:
        """The modalities that follow `clock`."""
        return tuple(m for m in self.modalities.values() if m.clock == clock)

    def shapes(self, batch: int) -> dict[str, tuple[int, ...]]:
        return {name: (batch, *m.shape) for name, m in self.modalities.items()}

    @torch.no_grad()
    def encode(self, raw: Mapping[str, Any]) -> Bundle:
        """raw: clock -> raw data, e.g. image (B, 3, H, W) in [-1, 1], text a list of B strings."""
        unknown = set(raw) - self.raws
        if unknown:
            raise UsageError(
                f"{self.name} knows no {sorted(unknown)}; it takes {sorted(self.raws)}"
            )
        return {m.name: self._encoded(m.codec, raw[m.clock]) for c in raw for m in self.on(c)}

    @property
    def raws(self) -> set[str]:
        """The raw data that its modalities and conditions read."""
        return {*self.clocks.values(), *(c.source for c in self.conditions.values())}

    def reads(self, text: str) -> None:
        """Raises ValueError for a text that a codec of texts cannot read; no network runs."""
        codecs = [m.codec for m in self.on("text")]
        for codec in codecs + [c.codec for c in self.conditions.values() if c.source == "text"]:
            getattr(codec, "tokens", codec).encode([text])

    @torch.no_grad()
    def tell(self, raw: Mapping[str, Any]) -> dict[str, Tensor]:
        """raw: source -> raw data.  Condition -> context tokens."""
        told = self.conditions.values()
        return {c.name: self._encoded(c.codec, raw[c.source]) for c in told if c.source in raw}

    def null_contexts(self, batch: int, name: str = "") -> Contexts:
        """What every condition is told in place of its context."""
        out = {}
        for condition in self.conditions.values():
            with self._using(condition.codec):
                out[condition.name] = condition.null(batch, name)
        return out

    @torch.no_grad()
    def decode(self, states: Bundle) -> dict[str, Any]:
        """Clean states -> raw data by clock; streams that are not shown are left out."""
        return {
            m.clock: self._decoded(m.codec, states[m.name])
            for m in self.modalities.values()
            if m.decodes and m.name in states
        }

    @property
    def device(self) -> torch.device:
        """Where the network computes, and where states are best drawn."""
        placed = self.placement
        if placed is not None and placed.memory == "low":  # the network may lie elsewhere now
            return placed.device
        return next(self.network.parameters()).device

    @contextmanager
    def _using(self, part: nn.Module | Codec) -> Iterator[torch.device]:
        """The network or a codec, ready to run; gives the device that it runs on."""
        if not isinstance(part, nn.Module):
            yield CPU
            return
        placed = self.placement
        with placed.lent(part, self.network) if placed else nullcontext(), computing(part):
            yield next(chain(part.parameters(), part.buffers())).device

    def _encoded(self, codec: Codec, raw: Any) -> Tensor:
        with self._using(codec) as device:
            return codec.encode(raw.to(device) if isinstance(raw, Tensor) else raw)

    def _decoded(self, codec: Codec, state: Tensor) -> Any:
        with self._using(codec) as device:
            return codec.decode(state.to(device))

    def denoiser(self, rows_a_call: int | None = None) -> Denoise:
        """Clean estimates for queries, in float32 or better, where the query's states are.

        rows_a_call: None batches everything (a GPU); 1 gives every sample its own fixed-shape call,
        which makes sample k bit-equal whatever the batch it came in (the default on a CPU, where
        one row of a float32 product differs in its last bits from the same row in a larger batch).
        """
        if rows_a_call is None and self.device.type == "cpu":
            rows_a_call = 1

        @torch.inference_mode()
        def denoise(queries: Sequence[Query]) -> list[Bundle]:
            return [self._clean(query, rows_a_call) for query in queries]

        return denoise

    def shown(self, states: Bundle, times: Times) -> Bundle:
        """What the network is shown of noisy states, each as its process has it."""
        processes = {name: self.modalities[name].process for name in states}
        return {k: processes[k].network_input(x, times[self.clocks[k]]) for k, x in states.items()}

    def _clean(self, query: Query, rows: int | None) -> Bundle:
        keep = query.keep or tuple(self.modalities)
        with self._using(self.network) as device:
            asked = _placed(query, device)
            shown = self.shown(asked[0], asked[1])
            raw = by_rows(lambda s, t, c: self.network(s, t, c, keep=keep), rows)(shown, *asked[1:])
        return {
            name: self.modalities[name].process.to_clean(
                raw[name].to(query.states[name].device, torch.float32),
                query.states[name],
                query.times[self.clocks[name]],
            )
            for name in keep
        }


def _placed(query: Query, device: torch.device) -> tuple[Bundle, Times, Contexts]:
    """What a network is called with, on its device."""
    contexts = {name: Context(tokens=c.tokens.to(device)) for name, c in query.contexts.items()}
    states = {name: state.to(device) for name, state in query.states.items()}
    return states, {clock: t.to(device) for clock, t in query.times.items()}, contexts


Network = Callable[[Bundle, Times, Contexts], Bundle]


def by_rows(network: Network, rows: int | None) -> Network:
    """The network called on `rows` samples at a time, its answers put together again."""
    if rows is None:
        return network

    def call(states: Bundle, times: Times, contexts: Contexts) -> Bundle:
        batch = next(iter(states.values())).shape[0]
        parts = []
        for start in range(0, batch, rows):
            cut = slice(start, start + rows)
            parts.append(
                network(
                    {k: v[cut] for k, v in states.items()},
                    {k: v[cut] for k, v in times.items()},
                    {k: Context(tokens=v.tokens[cut]) for k, v in contexts.items()},
                )
            )
        return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}

    return call
