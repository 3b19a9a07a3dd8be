"""The one sampling loop: every task, every sampler, every modality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from everyway.contracts import Bundle, Contexts, Denoise, Noise, Process, Query
from everyway.process.mask_replace import MaskReplace
from everyway.process.schedules import Schedule
from everyway.process.times import GRIDS, Step
from everyway.sampling.solvers import Memory, Sampler, dynamic_threshold, named_sampler
from everyway.tasks import Task, times_for

Pin = Callable[[Bundle, float], Bundle]
"""(generated states, their time) -> the states with what is known put in its place."""

MoveTokens = Callable[[Tensor, Tensor, Step, Noise, str], Tensor]
"""(x_t, clean estimate, step, noise, name) -> x_s: a token modality under the run's sampler."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Progress:
    """Where a run is after `step` of `steps`.

    t: the time reached.  states: the generated modalities there.  clean: the last step's clean
    estimate.  calls: network forwards so far.
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
    """The fixed facts of one run."""

    denoise: Denoise
    clocks: Mapping[str, str]
    task: Task
    kept: Bundle  # given states, and absent ones when held
    absent: Mapping[str, tuple[int, ...]]  # absent modalities that are drawn per evaluation
    fresh: Callable[[str, tuple[int, ...]], Tensor]
    contexts: Contexts
    generated: tuple[str, ...]
    quantiles: Mapping[str, float]

    def query(self, states: Bundle, t: float, clock_times: Mapping[str, float]) -> Query:
        some = next(iter(states.values()))
        batch = torch.full((some.shape[0],), t, dtype=torch.float64, device=some.device)
        times = times_for(self.task, batch)
        times |= {clock: torch.full_like(batch, u) for clock, u in clock_times.items()}
        everything = {**self.kept, **states}
        everything |= {name: self.fresh(name, shape) for name, shape in self.absent.items()}
        ordered = {name: everything[name] for name in self.clocks if name in everything}
        return Query(states=ordered, times=times, contexts=self.contexts, keep=self.generated)

    def ask(self, query: Query) -> Bundle:
        (clean,) = self.denoise([query])
        for name, quantile in self.quantiles.items():
            clean = {**clean, name: dynamic_threshold(clean[name], quantile)}
        return clean


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
) -> Iterator[Progress]:
    """Sample `task`, yielding a record after every step; the last one holds the result.

    states: given clean states, and any generated state at t_start; the other generated states are
        drawn from their priors in `shapes` (modality -> (B, ...)).
    grid, t_end: of the sampler unless told: "time", "logsnr" or "quadratic"; the last time.
    absent: "redraw" draws absent states at every evaluation, "hold" once.
    thresholds: modality -> quantile for dynamic thresholding.
    t_start: where the run begins; below 1 it needs the generated states there.
    pin: puts what is known of the generated states in its place, before and after every step.
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
        process = processes[name]
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
    if pin:
        moving = pin(moving, t_start)
    schedules: dict[str, Schedule] = {}
    moves: dict[str, MoveTokens] = {}
    for name in moving:
        process = processes[name]
        if isinstance(process, MaskReplace):
            moves[name] = partial(chosen.tokens.kernel, process)
        else:
            schedules[name] = process.schedule
    if schedules:
        plan = chosen.plan(steps, grid, (t_start, t_end), next(iter(schedules.values())))
    else:
        plan = _plan_of_tokens(chosen, steps, moving, processes, t_start)
    if chosen.rate:
        for schedule in schedules.values():
            schedule.rate(1.0)  # refuses schedules without one, before the first step

    run = _Run(
        denoise=denoise,
        clocks=clocks,
        task=task,
        kept=kept,
        absent=redrawn,
        fresh=fresh,
        contexts=contexts or {},
        generated=tuple(moving),
        quantiles=thresholds or {},
    )
    return _steps(run, chosen, plan, moving, schedules, moves, noise, pin)


def _plan_of_tokens(
    sampler: Sampler,
    steps: int,
    states: Bundle,
    processes: Mapping[str, Process],
    t_start: float,
) -> tuple[Step, ...]:
    """The steps of a run of tokens alone, laid by the chain of the first modality.

    They are laid for as many masked tokens as there are on average at `t_start`, never for those
    that are there: a sample's steps must not depend on the batch it came in.
    """
    name, x = next(iter(states.items()))
    process = processes[name]
    start = torch.tensor([t_start], dtype=torch.float64)
    masked = round(x.shape[1] * float(process.cumulative(start)[2]))
    return sampler.tokens.plan(process, steps, masked, t_start)


def _steps(
    run: _Run,
    sampler: Sampler,
    plan: tuple[Step, ...],
    states: Bundle,
    schedules: Mapping[str, Schedule],
    moves: Mapping[str, MoveTokens],
    noise: Noise,
    pin: Pin | None,
) -> Iterator[Progress]:
    cost = getattr(run.denoise, "forwards", lambda query: 1)
    memory: Memory = ()
    calls = 0
    for number, step in enumerate(plan, 1):
        tokens = {n: x for n, x in states.items() if n not in schedules}
        held = {run.clocks[n]: step.t for n in tokens}
        at_start: Bundle = {}

        def evaluate(here: Bundle, t: float, tokens=tokens, held=held, at_start=at_start) -> Bundle:
            nonlocal calls
            query = run.query({**here, **tokens}, t, held)
            calls += cost(query)
            clean = run.ask(query)
            if not at_start:
                at_start.update(clean)
            return {n: clean[n] for n in here}

        continuous = {n: x for n, x in states.items() if n in schedules}
        if continuous:
            moved = sampler.move(evaluate, continuous, step, memory, schedules, noise)
            after, memory = moved.states, moved.memory
        else:
            query = run.query(tokens, step.t, held)
            calls += cost(query)
            at_start.update(run.ask(query))
            after = {}
        for n, x in tokens.items():
            after[n] = moves[n](x, at_start[n], step, noise, n)
        states = {n: after[n] for n in states}
        if pin:
            states = pin(states, step.s)
        yield Progress(
            step=number, steps=len(plan), t=step.s, states=states, clean=at_start, calls=calls
        )


def final(progress: Iterator[Progress]) -> Progress:
    """The last record of a run."""
    last = None
    for record in progress:
        last = record
    if last is None:
        raise ValueError("the run had no steps")
    return last
