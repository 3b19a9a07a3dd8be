"""Classifier-free guidance: which queries to ask, and how their answers combine.

guided = u + w (c - u), c conditional and u not; w = 1 is off.  Papers that write
c + s (c - u) have w = 1 + s.  Several branches u_b add up: c + sum of (w_b - 1) (c - u_b).
Combining clean estimates is the same as combining noise estimates or velocities at the same state,
because these are linear in each other and the weights add to 1.
Sources: Ho and Salimans, 2022, arXiv 2207.12598; Liu et al., "Compositional Visual Generation",
2022, arXiv 2206.01714; Bao et al., 2023, arXiv 2303.06555, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from everyway.contracts import Bundle, Context, Contexts, Denoise, Process, Query
from everyway.errors import UsageError
from everyway.process.gaussian import mixed
from everyway.tasks import Branch, Task

OFF = 1e-3
"""A weight this near to 1 is 1: the second query is not asked."""

AbsentNoise = Callable[[str, tuple[int, ...]], Tensor]
"""(modality, shape (B, ...)) -> a fresh state at t = 1."""


def branches(task: Task) -> tuple[Branch, ...]:
    """The unconditional queries of a task; none where there is nothing to leave out.

    They are the task's own, or else: without given clocks and contexts, all of them at once; of
    several generated clocks (joint) one branch for each, with the others absent.
    """
    if task.guidance is not None:
        return task.guidance
    if task.given or task.given_contexts:
        return (Branch(keep=task.generated, absent=task.given, without=task.given_contexts),)
    if len(task.generated) > 1:
        others = {c: tuple(o for o in task.generated if o != c) for c in task.generated}
        return tuple(Branch(keep=(c,), absent=others[c]) for c in task.generated)
    return ()


def combine(
    conditional: Bundle,
    unconditional: Bundle,
    w: float | Tensor,
    processes: Mapping[str, Process] | None = None,
    made: Bundle | None = None,
) -> Bundle:
    """The modalities of `unconditional` as their process combines them, the others as they are.

    w: a number, or one per sample (B,).  A modality without a process is u + w (c - u).
    made: what earlier branches made of the conditional estimates.
    """
    out = dict(made or conditional)
    for name, u in unconditional.items():
        c, now = conditional[name], out[name]
        weight = torch.as_tensor(w, dtype=torch.float64, device=u.device).expand(len(u))
        mix = processes[name].combine if processes and name in processes else mixed
        out[name] = mix(now, u if now is c else now - (c - u), weight)
    return out


@dataclass(frozen=True, kw_only=True, eq=False)
class Guided:
    """A contracts.Denoise that asks another one with and without the condition, and combines.

    w: a number, or one per sample (B,).
    interval: times of the generated clocks, ends included, where w counts; outside it w is 1.
    null_contexts: context -> what is given in its place.
    processes: modality -> the process that knows how its estimates combine.
    """

    denoise: Denoise
    task: Task
    clocks: Mapping[str, str]
    w: float | Tensor
    absent_noise: AbsentNoise
    interval: tuple[float, float] = (0.0, 1.0)
    null_contexts: Contexts = field(default_factory=dict)
    processes: Mapping[str, Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0.0 <= low <= high <= 1.0:
            raise UsageError(f"guidance interval {self.interval} must be 0 <= low <= high <= 1")
        missing = {c for b in branches(self.task) for c in b.without} - self.null_contexts.keys()
        if missing and not is_off(self.w):
            lost = ", ".join(sorted(missing))
            raise ValueError(
                f"guidance of {self.task.name!r} needs null_contexts for {lost}; give them, or a "
                "guidance of 1, which is off"
            )

    def weights(self, query: Query, branch: Branch) -> Tensor:
        """(B,) float64: w, or the branch's own, inside the interval and 1 outside."""
        t = query.times[branch.keep[0]]
        w = torch.as_tensor(self.w if branch.weight is None else branch.weight).to(t)
        low, high = self.interval
        return torch.where((t >= low) & (t <= high), w, torch.ones_like(t))

    def asked(self, query: Query) -> tuple[Branch, ...]:
        """The branches that bear on the answer to `query`."""
        kept = {self.clocks[name] for name in query.keep}
        return tuple(
            b for b in branches(self.task)
            if kept & {*b.keep} and not is_off(self.weights(query, b))
        )  # fmt: skip

    def forwards(self, query: Query) -> int:
        """How many network forwards the answer to `query` costs."""
        return 1 + len(self.asked(query))

    def unconditional(self, query: Query) -> list[Query]:
        """The query of every branch.  Fresh states are drawn in the order of the modalities."""
        asked = self.asked(query)
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
        lost = [name for name in branch.without if name in query.contexts]
        contexts = {  # what is said of a state's tokens goes with the state
            name: replace(c, bias=None) if self.clocks.get(name) in branch.absent else c
            for name, c in query.contexts.items()
        } | {name: self._null(name, query.contexts[name]) for name in lost}
        return replace(query, states=states, times=times, keep=keep, contexts=contexts)

    def _null(self, name: str, given: Context) -> Context:
        """What stands for a context, with the weight of that."""
        return replace(self.null_contexts[name], weight=given.weight)

    def asks(self, query: Query) -> list[Query]:
        """What the answer to `query` is made of: itself first, then every branch."""
        return [query, *self.unconditional(query)]

    def answer(self, query: Query, answers: Iterator[Bundle]) -> Bundle:
        """Made of as many `answers` as it asks, which are taken."""
        conditional = made = next(answers)
        for branch in self.asked(query):
            w = self.weights(query, branch)
            made = combine(conditional, next(answers), w, self.processes, made)
        return made

    def __call__(self, queries: Sequence[Query]) -> list[Bundle]:
        answers = iter(self.denoise([q for query in queries for q in self.asks(query)]))
        return [self.answer(query, answers) for query in queries]


def is_off(w: float | Tensor) -> bool:
    """Whether a guidance weight changes nothing."""
    return bool(((torch.as_tensor(w) - 1.0).abs() < OFF).all())


def guided(
    denoise: Denoise,
    task: Task,
    clocks: Mapping[str, str],
    w: float | Tensor,
    absent_noise: AbsentNoise,
    *,
    interval: tuple[float, float] = (0.0, 1.0),
    null_contexts: Contexts | None = None,
    processes: Mapping[str, Process] | None = None,
) -> Denoise:
    """`denoise` with guidance w (1 = off); `denoise` itself where that changes nothing."""
    own = [w if b.weight is None else b.weight for b in branches(task)]
    if all(map(is_off, own)):
        return denoise
    return Guided(
        denoise=denoise,
        task=task,
        clocks=clocks,
        w=w,
        absent_noise=absent_noise,
        interval=interval,
        null_contexts=null_contexts or {},
        processes=processes or {},
    )
