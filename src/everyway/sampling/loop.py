"""The one sampling loop: every task, every sampler, every modality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from everyway.contracts import Bundle, Contexts, Denoise, Noise, Process, Query
from everyway.process.schedules import Along, Schedule
from everyway.process.times import GRIDS, Step
from everyway.sampling.gaussian_kernels import euler, point
from everyway.sampling.solvers import (
    Memory,
    Sampler,
    dynamic_threshold,
    named_sampler,
    regular,
)
from everyway.tasks import Role, Task, times_for

Pin = Callable[[Bundle, Mapping[str, float]], Bundle]
"""(generated states, modality -> its time) -> the states with what is known put in its place."""

MoveTokens = Callable[[Tensor, Tensor, Step, Noise, str], Tensor]
"""(x_t, clean estimate, step, noise, name) -> x_s: a token modality under the run's sampler."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingProgress:
    """Where a run is after `step` of `steps`.

    t: the run's time.  states: the generated modalities there.  clean: the clean estimate of the
    last step.  calls: network forwards so far.
    """

    step: int
    steps: int
    t: float
    states: Bundle
    clean: Bundle
    calls: int


def absent_states(
    processes: Mapping[str, Process], noise: Noise, device: torch.device | str | None = None
) -> Callable[[str, tuple[int, ...]], Tensor]:
    """(modality, shape (B, ...)) -> a fresh state that carries no information: a draw at t = 1."""

    def state(name: str, shape: tuple[int, ...]) -> Tensor:
        process = processes[name]
        return process.prior(process.draw(noise, f"absent:{name}", tuple(shape))).to(device)

    return state


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """What is fixed in one run."""

    denoise: Denoise
    clocks: Mapping[str, str]
    task: Task
    kept: Bundle  # given states, and absent ones when held
    absent: Mapping[str, tuple[int, ...]]  # absent modalities that are drawn per evaluation
    fresh: Callable[[str, tuple[int, ...]], Tensor]
    contexts: Contexts
    schedules: Mapping[str, Schedule]  # of the generated modalities that a solver moves
    moves: Mapping[str, MoveTokens]  # of those that are tokens
    generated: tuple[str, ...]
    quantiles: Mapping[str, float]
    noise: Noise

    def role(self, name: str) -> Role:
        return self.task.roles[self.clocks[name]]

    def query(self, states: Bundle, t: float, held: Mapping[str, float]) -> Query:
        """At the run's time t, but for clocks that are held at a time of their own."""
        some = next(iter(states.values()))
        batch = torch.full((some.shape[0],), t, dtype=torch.float64, device=some.device)
        times = times_for(self.task, batch)
        times |= {clock: torch.full_like(batch, u) for clock, u in held.items()}
        everything = {**self.kept, **states}
        everything |= {name: self.fresh(name, shape) for name, shape in self.absent.items()}
        ordered = {name: everything[name] for name in self.clocks if name in everything}
        return Query(states=ordered, times=times, contexts=self.contexts, keep=self.generated)

    def ask(self, query: Query) -> Bundle:
        (clean,) = self.denoise([query])
        for name, quantile in self.quantiles.items():
            clean = {**clean, name: dynamic_threshold(clean[name], quantile)}
        return clean

    def rests(self, name: str, step: Step) -> bool:
        """Whether the path of a modality's clock stands still in a step."""
        path = self.role(name).path
        return path is not None and path(step.t) == path(step.s)


class _Stepping:
    """One step.  A solver asks at several times in it: the clocks that it moves go to each of
    them, tokens on such a clock come along, and everything else waits at the step's start.
    """

    def __init__(self, run: _Run, step: Step, states: Bundle) -> None:
        self.run, self.step, self.start = run, step, states
        kinds = run.schedules.items()
        odd = {run.clocks[n] for n, schedule in kinds if not regular(schedule, step)}
        self.solved = {n: states[n] for n, _ in kinds if run.clocks[n] not in odd}
        going = {run.clocks[n] for n in self.solved}
        self.along = [n for n in run.moves if run.clocks[n] in going]
        waiting = [n for n in states if run.clocks[n] not in going]
        self.held = {run.clocks[n]: run.role(n).time(step.t) for n in waiting}
        self.states = dict(states)
        self.at = dict.fromkeys(run.moves, step.t)  # the run's time of each token modality
        self.first: Bundle = {}  # the clean estimates at the step's start, and the latest ones
        self.latest: Bundle = {}
        self.calls = 0

    def evaluate(self, states: Bundle, t: float) -> Bundle:
        """Clean estimates of `states`, which the solver has moved to t."""
        self.states |= states
        for name in self.along:
            if t < self.at[name]:
                self._move(name, t)
        query = self.run.query(self.states, t, self.held)
        self.calls += getattr(self.run.denoise, "forwards", lambda query: 1)(query)
        self.latest = self.run.ask(query)
        self.first = self.first or self.latest
        return {name: self.latest[name] for name in states}

    def end(self, solved: Bundle) -> Bundle:
        """All states at the step's end, from those that the solver moved."""
        out, step = {}, self.step
        for name, x in self.start.items():
            if name in solved:
                out[name] = solved[name]
            elif self.run.rests(name, step):
                out[name] = x
            elif name in self.run.schedules:
                at, to = (point(self.run.schedules[name], u) for u in (step.t, step.s))
                out[name] = euler(x, self.first[name], at, to)
            else:
                if self.at[name] == step.t or self.at[name] > step.s:
                    self._move(name, step.s)
                out[name] = self.states[name]
        return out

    def _move(self, name: str, s: float) -> None:
        """A token modality from where it is to the run's time s."""
        role, clean = self.run.role(name), self.latest if name in self.along else self.first
        share = None if role.path else self.step.share
        step = replace(self.step, t=role.time(self.at[name]), s=role.time(s), share=share)
        move = self.run.moves[name]
        self.states[name] = move(self.states[name], clean[name], step, self.run.noise, name)
        self.at[name] = s


def sample(
    denoise: Denoise,
    *,
    processes: Mapping[str, Process],
    clocks: Mapping[str, str],
    task: Task,
    states: Bundle,
    noise: Noise,
    steps: int = 20,
    sampler: str | Sampler = "dpm++2m",
    grid: str | None = None,
    t_end: float | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    absent: str = "redraw",
    contexts: Contexts | None = None,
    thresholds: Mapping[str, float] | None = None,
    t_start: float = 1.0,
    pin: Pin | None = None,
    device: torch.device | str | None = None,
) -> Iterator[SamplingProgress]:
    """Sample `task`, yielding a record after every step; the last one holds the result.

    states: given clean states, and any generated state at t_start; the other generated states are
        drawn from their priors in `shapes` (modality -> (B, ...)).
    grid, t_end: of the sampler by default: "time", "logsnr" or "quadratic"; the last time.
    absent: "redraw" draws absent states at every evaluation, "hold" once.
    thresholds: modality -> quantile for dynamic thresholding.
    t_start: where the run begins; below 1 it needs the generated states there.
    pin: puts what is known of the generated states in its place, before and after every step.
    A clock whose role has a path follows it: the run's time is u, the clock's is path(u).
    A bad argument raises ValueError here, before the first step.
    """
    chosen = named_sampler(sampler) if isinstance(sampler, str) else sampler
    grid = chosen.grid if grid is None else grid
    t_end = chosen.t_end if t_end is None else t_end
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of 1 or more, got {steps!r}")
    if grid not in GRIDS:
        raise ValueError(f"grid {grid!r} is unknown; choose one of {', '.join(GRIDS)}")
    if not 0.0 <= t_end < 1.0:
        raise ValueError(f"t_end must be in [0, 1), got {t_end!r}")
    if not t_end < t_start <= 1.0:
        raise ValueError(f"t_start must be in (t_end, 1], got {t_start!r}")
    if absent not in ("redraw", "hold"):
        raise ValueError(f"absent {absent!r} is unknown; choose redraw or hold")
    shapes = {**(shapes or {}), **{name: tuple(x.shape) for name, x in states.items()}}
    roles = {name: task.roles[clock] for name, clock in clocks.items() if clock in task.roles}
    if device is None and states:
        device = next(iter(states.values())).device

    fresh = absent_states(processes, noise, device)
    moving, kept, redrawn = {}, {}, {}
    for name, role in roles.items():
        process: Any = processes[name]
        if role.kind == "given":
            if name not in states:
                raise ValueError(
                    f"task {task.name!r} needs the state {name!r}, which was not given"
                )
            kept[name] = states[name].to(device)
            if role.level > 0:
                draw = process.draw(noise, f"given:{name}", shapes[name]).to(device)
                level = torch.full((shapes[name][0],), role.level, dtype=torch.float64)
                kept[name] = process.corrupt(kept[name], draw, level.to(device))
            continue
        if name not in shapes:
            raise ValueError(f"task {task.name!r} needs the shape of {name!r}; give it in shapes")
        if role.kind == "absent":
            if absent == "hold":
                kept[name] = fresh(name, shapes[name])
            else:
                redrawn[name] = shapes[name]
        elif name in states:
            moving[name] = states[name].to(device)
        elif t_start < 1:
            raise ValueError(f"a run from t = {t_start:g} needs the state {name!r} at that time")
        else:
            moving[name] = process.prior(process.draw(noise, name, shapes[name])).to(device)
    schedules: dict[str, Schedule] = {}
    moves: dict[str, MoveTokens] = {}
    for name in moving:
        process, path = processes[name], roles[name].path
        if process.kernel == "tokens":
            moves[name] = partial(chosen.tokens.kernel, process)
        else:
            schedules[name] = Along(base=process.schedule, path=path) if path else process.schedule
    if schedules:
        lead = next(iter(schedules.values()))
        lead = lead.base if isinstance(lead, Along) else lead
        span = chosen.start(t_start, schedules), t_end
        laid = chosen.lay_steps(steps, grid, span, lead)
    else:
        laid = _token_steps(chosen, steps, moving, processes, t_start)
    if chosen.rate:
        for schedule in schedules.values():
            schedule.rate(1.0)  # refuses schedules without one, before the first step
    if pin:
        moving = pin(moving, {name: roles[name].time(t_start) for name in moving})

    run = _Run(
        denoise=denoise,
        clocks=clocks,
        task=task,
        kept=kept,
        absent=redrawn,
        fresh=fresh,
        contexts=contexts or {},
        schedules=schedules,
        moves=moves,
        generated=tuple(moving),
        quantiles=thresholds or {},
        noise=noise,
    )
    laid = tuple(step for step in laid if not all(run.rests(name, step) for name in moving))
    return _steps(run, chosen, laid, moving, pin)


def _token_steps(
    sampler: Sampler,
    steps: int,
    states: Bundle,
    processes: Mapping[str, Process],
    t_start: float,
) -> tuple[Step, ...]:
    """The steps of a run of token modalities alone, on those of the first one's process.

    They are laid for as many masked tokens as there are on average at `t_start`, never for those
    that are there: a sample's steps must not depend on the batch it came in.
    """
    name, x = next(iter(states.items()))
    process: Any = processes[name]
    start = torch.tensor([t_start], dtype=torch.float64)
    masked = round(x.shape[1] * float(process.cumulative(start)[2]))
    return sampler.tokens.lay_steps(process, steps, masked, t_start)


def _steps(
    run: _Run, sampler: Sampler, laid: tuple[Step, ...], states: Bundle, pin: Pin | None
) -> Iterator[SamplingProgress]:
    memory: Memory = ()
    calls = 0
    for number, step in enumerate(laid, 1):
        now, solved = _Stepping(run, step, states), {}
        if now.solved:
            moved = sampler.move(now.evaluate, now.solved, step, memory, run.schedules, run.noise)
            solved, memory = moved.states, moved.memory
        else:
            now.evaluate({}, step.t)
        states, calls = now.end(solved), calls + now.calls
        if pin:
            states = pin(states, {n: run.role(n).time(step.s) for n in states})
        yield SamplingProgress(
            step=number, steps=len(laid), t=step.s, states=states, clean=now.first, calls=calls
        )


def final(progress: Iterator[SamplingProgress]) -> SamplingProgress:
    """The last record of a run."""
    last = None
    for record in progress:
        last = record
    if last is None:
        raise ValueError("the run had no steps")
    return last
