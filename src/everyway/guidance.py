"""Classifier-free guidance: which queries to ask, and how their answers combine.

guided = u + w (c - u), c told the condition, u not; w = 1 is off.  Papers that write
c + s (c - u) have w = 1 + s.  Combining clean estimates is the same as combining noise estimates
or velocities at the same state, because these are linear in each other and the weights add to 1.
Sources: Ho and Salimans, 2022, arXiv 2207.12598; Bao et al., 2023, arXiv 2303.06555, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from everyway.contracts import Bundle, Contexts, Denoise, Process, Query
from everyway.errors import UsageError
from everyway.process.gaussian import mixed
from everyway.tasks import Task

OFF = 1e-3
"""A weight this near to 1 is 1: the second query is not asked."""

AbsentNoise = Callable[[str, tuple[int, ...]], Tensor]
"""(modality, shape (B, ...)) -> a fresh state at t = 1."""


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One unconditional query: these clocks go to t = 1, and the kept clocks' answer counts.

    null_contexts: the contexts are replaced by their null form.
    """

    absent: tuple[str, ...]
    keep: tuple[str, ...]
    null_contexts: bool = False


def branches(task: Task) -> tuple[Branch, ...]:
    """The unconditional queries of a task; none where there is nothing to leave out.

    given clocks: one branch without them.  Several generated clocks (joint): one branch per
    generated clock with the others absent.  Only contexts: one branch with null contexts.
    """
    in_context = any(task.contexts.values())
    if task.given:
        return (Branch(absent=task.given, keep=task.generated, null_contexts=in_context),)
    if in_context:
        return (Branch(absent=(), keep=task.generated, null_contexts=True),)
    if len(task.generated) > 1:
        others = {c: tuple(o for o in task.generated if o != c) for c in task.generated}
        return tuple(Branch(absent=others[c], keep=(c,)) for c in task.generated)
    return ()


def combine(
    conditional: Bundle,
    unconditional: Bundle,
    w: float | Tensor,
    processes: Mapping[str, Process] | None = None,
) -> Bundle:
    """The modalities of `unconditional` as their process combines them, c itself for the others.

    w: a number, or one per sample (B,).  A modality without a process is u + w (c - u).
    """
    made = dict(conditional)
    for name, u in unconditional.items():
        weight = w if isinstance(w, Tensor) else torch.full((len(u),), w, dtype=torch.float64)
        mix = processes[name].combine if processes and name in processes else mixed
        made[name] = mix(conditional[name], u, weight.to(u.device))
    return made


@dataclass(frozen=True, kw_only=True, eq=False)
class Guided:
    """A contracts.Denoise that asks another one with and without the condition, and combines.

    interval: times of the generated clocks, ends included, where w counts; outside it w is 1.
    processes: modality -> the process that knows how its estimates combine.
    """

    denoise: Denoise
    task: Task
    clocks: Mapping[str, str]
    w: float
    absent_noise: AbsentNoise
    interval: tuple[float, float] = (0.0, 1.0)
    null_contexts: Contexts | None = None
    processes: Mapping[str, Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0.0 <= low <= high <= 1.0:
            raise UsageError(f"guidance interval {self.interval} must be 0 <= low <= high <= 1")
        if self.w != 1.0 and self.null_contexts is None:
            if any(branch.null_contexts for branch in branches(self.task)):
                raise ValueError(f"guidance of task {self.task.name!r} needs null_contexts")

    def weights(self, query: Query) -> Tensor:
        """(B,) float64: w inside the interval and 1 outside."""
        t = query.times[self.task.generated[0]]
        low, high = self.interval
        inside = (t >= low) & (t <= high)
        return torch.where(inside, torch.full_like(t, self.w), torch.ones_like(t))

    def forwards(self, query: Query) -> int:
        """How many network forwards the answer to `query` costs."""
        if bool(((self.weights(query) - 1.0).abs() < OFF).all()):
            return 1
        return 1 + len(branches(self.task))

    def unconditional(self, query: Query) -> list[Query]:
        """The query of every branch.  Fresh states are drawn in the order of the modalities."""
        asked = branches(self.task)
        hidden = {clock for branch in asked for clock in branch.absent}
        fresh = {
            name: self.absent_noise(name, tuple(x.shape)).to(x)
            for name, x in query.states.items()
            if self.clocks[name] in hidden
        }
        return [self._branch(query, branch, fresh) for branch in asked]

    def _branch(self, query: Query, branch: Branch, fresh: Bundle) -> Query:
        states = {
            name: fresh[name] if self.clocks[name] in branch.absent else x
            for name, x in query.states.items()
        }
        times = {
            clock: torch.ones_like(t) if clock in branch.absent else t
            for clock, t in query.times.items()
        }
        keep = tuple(name for name in query.keep if self.clocks[name] in branch.keep)
        contexts = self.null_contexts if branch.null_contexts else query.contexts
        return replace(query, states=states, times=times, keep=keep, contexts=contexts or {})

    def __call__(self, queries: Sequence[Query]) -> list[Bundle]:
        asked: list[Query] = []
        spans = []
        for query in queries:
            extra = self.unconditional(query) if self.forwards(query) > 1 else []
            spans.append((len(asked), len(extra)))
            asked += [query, *extra]
        answers = self.denoise(asked)
        out = []
        for query, (first, count) in zip(queries, spans, strict=True):
            made = answers[first]
            for answer in answers[first + 1 : first + 1 + count]:
                made = combine(made, answer, self.weights(query), self.processes)
            out.append(made)
        return out


def guided(
    denoise: Denoise,
    task: Task,
    clocks: Mapping[str, str],
    w: float,
    absent_noise: AbsentNoise,
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    null_contexts: Contexts | None = None,
    processes: Mapping[str, Process] | None = None,
) -> Denoise:
    """`denoise` with guidance w (1 = off); `denoise` itself where that changes nothing."""
    made = Guided(
        denoise=denoise,
        task=task,
        clocks=clocks,
        w=w,
        absent_noise=absent_noise,
        interval=interval,
        null_contexts=null_contexts,
        processes=processes or {},
    )
    return denoise if abs(w - 1.0) < OFF or not branches(task) else made
