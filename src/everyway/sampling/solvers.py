"""Solvers: they move the whole bundle of Gaussian states and decide what to ask the denoiser.

A solver lays steps and moves over one.  Its memory is a value that is passed
in and returned.  All modalities share the time; each has its own schedule, so its own log-SNR.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from everyway.contracts import Bundle, Noise
from everyway.errors import UsageError
from everyway.process.schedules import Along, Schedule
from everyway.process.times import GRIDS, Step, first_time
from everyway.sampling import gaussian_kernels as kernels
from everyway.sampling.gaussian_kernels import Point, point
from everyway.sampling.token_kernels import ANCESTRAL, LEAPS, Tokens, purity

Evaluate = Callable[[Bundle, float], Bundle]
"""(states, t) -> clean estimates of the same modalities."""

Memory = tuple[tuple[float, Bundle], ...]
"""Earlier (t, predictions), newest first."""

Schedules = Mapping[str, Schedule]


@dataclass(frozen=True, kw_only=True, eq=False)
class Moved:
    """The states after a step, and the solver's memory."""

    states: Bundle
    memory: Memory = ()


Span = tuple[float, float]
"""The first and the last time of a run."""

LaySteps = Callable[[int, str, Span, Schedule], tuple[Step, ...]]
"""(steps, grid, span, lead schedule) -> the steps."""

Move = Callable[[Evaluate, Bundle, Step, Memory, Schedules, Noise], Moved]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampler:
    """A named solver with the grid and the last time it uses by default.

    tokens: what it does to token modalities.  rate: whether its schedule must have a rate beta(t).
    signal: whether a run can only begin at a time at which every state has some signal.
    """

    name: str
    lay_steps: LaySteps
    move: Move
    grid: str = "time"
    t_end: float = 0.0
    tokens: Tokens = ANCESTRAL
    rate: bool = False
    signal: bool = False

    def start(self, t_start: float, schedules: Schedules) -> float:
        """The time at which a run begins: t_start, or the first time below it at which every state
        has a signal, if the sampler needs one.  Clocks with a path do not count, since `regular`
        cares for them."""
        own = (schedule for schedule in schedules.values() if not isinstance(schedule, Along))
        return min([t_start, *map(first_time, own)]) if self.signal else t_start


def regular(schedule: Schedule, step: Step) -> bool:
    """Whether a solver's formulas hold on a step: on a path they need a clock that falls at all of
    the step's times, from some signal to some noise."""
    if not isinstance(schedule, Along):
        return True
    times = [schedule.clock(u) for u in sorted({step.t, *step.inner, step.s}, reverse=True)]
    falls = all(float(a) > float(b) for a, b in pairwise(times))
    return falls and float(times[-1]) > 0 and math.isfinite(schedule.lam(step.t))


def dynamic_threshold(clean: Tensor, quantile: float = 0.995, floor: float = 1.0) -> Tensor:
    """Each sample clipped to its `quantile` of |clean| (at least `floor`) and scaled to [-1, 1].

    Source: Saharia et al., "Imagen", 2022, arXiv 2205.11487, section 2.3.
    """
    rows = clean.abs().flatten(1).to(torch.promote_types(clean.dtype, torch.float32))
    limit = torch.quantile(rows, quantile, dim=1).clamp(min=floor).to(clean.dtype)
    limit = limit.reshape(-1, *([1] * (clean.ndim - 1)))
    return clean.clamp(-limit, limit) / limit


# -- steps ------------------------------------------------------------------------------------


def _cells(times: Tensor) -> list[tuple[float, float]]:
    values = times.tolist()
    return list(zip(values, values[1:], strict=False))


def cell_steps(steps: int, grid: str, span: Span, lead: Schedule) -> tuple[Step, ...]:
    """One evaluation per cell of the grid."""
    return tuple(Step(t, s) for t, s in _cells(GRIDS[grid](lead, steps, *span)))


def stride_steps(steps: int, grid: str, span: Span, lead: Schedule) -> tuple[Step, ...]:
    """Numbers 1, 1 + k, 1 + 2 k ... of a schedule's 0 .. T - 1 from the highest on down, then 0.

    k is T // steps, so there are more steps where those do not divide T, which is 1000 where the
    schedule has none.  A run from a time below 1 begins at the first of them below it, with as
    small a k as T times that time allows.  No grid counts, and the last state has the noise of
    number 0: so Versatile Diffusion was sampled (Xu et al., 2022, arXiv 2211.08332).
    """
    whole = getattr(lead, "steps", 1000)
    start = round(whole * span[0])
    last = start if span[0] == 1 else start - 1  # the time of number n is (n + 1) / T
    numbers = [0, *range(1, last, max(1, start // steps))]
    if len(numbers) == 1:
        raise UsageError(f"ddim-stride has no step below t = {span[0]:g}; begin at a later time")
    times = (torch.tensor(numbers[::-1], dtype=torch.float64) + 1) / whole
    return tuple(Step(t, s) for t, s in _cells(times))


def heun_steps(steps: int, grid: str, span: Span, lead: Schedule) -> tuple[Step, ...]:
    """Two evaluations per cell, one where either end has no finite slope."""
    last = float(lead.alpha_sigma(1.0)[0])
    return tuple(
        Step(t, s, 1) if s == 0 or (t == 1 and last == 0) else Step(t, s, 2, (s,))
        for t, s in _cells(GRIDS[grid](lead, steps, *span))
    )


def then_zero(lay_steps: LaySteps) -> LaySteps:
    """The last of the steps goes to 0, the others over the span: the layout of Karras et al., 2022,
    whose last noise level is sigma_min, and of Euler-Maruyama."""

    def lay(steps: int, grid: str, span: Span, lead: Schedule) -> tuple[Step, ...]:
        if steps < 2:
            raise UsageError(f"this sampler needs at least 2 steps, got {steps}")
        laid = lay_steps(steps - 1, grid, span, lead)
        return *laid, Step(laid[-1].s, 0.0)

    return lay


def fast_orders(steps: int, order: int) -> tuple[int, ...]:
    """Orders of single steps that add up to exactly `steps` evaluations, lower ones last.

    Source: Lu et al., "DPM-Solver", 2022, arXiv 2206.00927, section 3.4 ("fast").
    """
    if order == 3:
        whole = steps // 3
        tail = {0: (3,) * (whole - 1) + (2, 1), 1: (3,) * whole + (1,), 2: (3,) * whole + (2,)}
        return tail[steps % 3]
    if order == 2:
        return (2,) * (steps // 2) + (1,) * (steps % 2)
    return (1,) * steps


def _above_zero(span: Span, lead: Schedule) -> Span:
    """The span, from where there is some signal to where there is some noise."""
    t_start, t_end = span
    if t_end <= 0:
        raise UsageError(f"single-step solvers need t_end above 0, got {t_end:g}; try 0.001")
    return min(t_start, first_time(lead)), t_end


def fast_steps(order: int) -> LaySteps:
    """A grid of `steps` cells; a step of order k jumps k cells and asks at the times it skips."""

    def lay_steps(steps: int, grid: str, span: Span, lead: Schedule) -> tuple[Step, ...]:
        t_start, t_end = _above_zero(span, lead)
        times = GRIDS[grid](lead, steps, t_start, t_end).tolist()
        made, start = [], 0
        for k in fast_orders(steps, order):
            inner = tuple(times[start + 1 : start + k])
            made.append(Step(times[start], times[start + k], k, inner))
            start += k
        return tuple(made)

    return lay_steps


def single_steps(order: int, fast: bool = False) -> LaySteps:
    """A grid of whole steps; a step of order k asks also at the k-ths of its log-SNR span.

    All steps have `order` (steps // order of them), or those of `fast_orders` when fast.
    """

    def lay_steps(steps: int, grid: str, span: Span, lead: Schedule) -> tuple[Step, ...]:
        t_start, t_end = _above_zero(span, lead)
        if not fast and steps < order:
            raise UsageError(f"a single-step solver of order {order} needs {order} steps or more")
        orders = fast_orders(steps, order) if fast else (order,) * (steps // order)
        cells = _cells(GRIDS[grid](lead, len(orders), t_start, t_end))
        made = []
        for (t, s), k in zip(cells, orders, strict=True):
            low, high = float(lead.lam(t)), float(lead.lam(s))
            lams = [low + (high - low) * i / k for i in range(1, k)]
            made.append(Step(t, s, k, tuple(float(lead.t_of_lam(lam)) for lam in lams)))
        return tuple(made)

    return lay_steps


def kutta3_steps(steps: int, grid: str, span: Span, lead: Schedule) -> tuple[Step, ...]:
    """Three evaluations per cell: at its start, where sigma / alpha is halfway, and at its end."""

    def halfway(t: float, s: float) -> float:
        ends = [math.exp(-float(lead.lam(u))) for u in (t, s)]
        return float(lead.t_of_lam(-math.log(sum(ends) / 2)))

    cells = _cells(GRIDS[grid](lead, steps, *_above_zero(span, lead)))
    return tuple(Step(t, s, 3, (halfway(t, s), s)) for t, s in cells)


# -- moves with one to three evaluations ------------------------------------------------------


def _draw(noise: Noise, name: str, like: Tensor) -> Tensor:
    return noise.normal(f"step:{name}", tuple(like.shape)).to(like)


def move_ddim(eta: float) -> Move:
    """Euler steps of the probability flow at eta 0; ancestral noise comes in as eta grows."""

    def move(evaluate, states, step, memory, schedules, noise):
        clean = evaluate(states, step.t)
        moved = {}
        for name, x in states.items():
            at, to = point(schedules[name], step.t), point(schedules[name], step.s)
            draw = _draw(noise, name, x) if eta > 0 and step.s > 0 else None
            moved[name] = kernels.ddim(x, clean[name], at, to, eta, draw)
        return Moved(states=moved)

    return move


def move_ddpm(evaluate, states, step, memory, schedules, noise) -> Moved:
    """A draw from the posterior of the next state."""
    clean = evaluate(states, step.t)
    moved = {}
    for name, x in states.items():
        at, to = point(schedules[name], step.t), point(schedules[name], step.s)
        draw = _draw(noise, name, x) if step.s > 0 else None
        moved[name] = kernels.ddpm(x, clean[name], at, to, draw)
    return Moved(states=moved)


def move_heun(evaluate, states, step, memory, schedules, noise) -> Moved:
    """An Euler step, corrected by the slope at its end (Karras et al., 2022, algorithm 1)."""
    clean = evaluate(states, step.t)
    ends = {n: (point(schedules[n], step.t), point(schedules[n], step.s)) for n in states}
    guess = {n: kernels.euler(x, clean[n], *ends[n]) for n, x in states.items()}
    if step.evaluations == 1:
        return Moved(states=guess)
    after = evaluate(guess, step.s)
    moved = {}
    for name, x in states.items():
        at, to = ends[name]
        if at.alpha == 0:
            moved[name] = guess[name]
            continue
        first = kernels.slope(x, clean[name], at)
        second = kernels.slope(guess[name], after[name], to)
        moved[name] = kernels.heun(x, first, second, at, to)
    return Moved(states=moved)


def kutta3_weights(r: float) -> tuple[float, float, float]:
    """(a_32, b_2, b_3) of the third order tableau with nodes 0, r in (0, 1), and 1.

    The rest follows, as rows and b add up to their node and to 1.  r = 1/2 is Kutta's own: 2, 4/6,
    1/6.  For r = 2/3 there is none; near it this is the one of second order that ignores 1.
    """
    if abs(r - 2 / 3) < 0.05:
        return 0.0, 1 / (2 * r), 0.0
    return (
        (1 - r) / (r * (2 - 3 * r)),
        1 / (6 * r * (1 - r)),
        (2 - 3 * r) / (6 * (1 - r)),
    )


def move_kutta3(evaluate, states, step, memory, schedules, noise) -> Moved:
    """Kutta's third order method along sigma / alpha, without memory (Zhang and Chen, "DEIS", 2022,
    arXiv 2204.13902: the exponential integrator is a Runge-Kutta method in that variable).

    Of several schedules the first has its inner time halfway, and each its own weights for it.
    """
    here = states
    slopes: dict[str, list[Tensor]] = {n: [] for n in states}
    points = {n: [point(schedules[n], t) for t in (step.t, *step.inner)] for n in states}
    weights = {}
    for n, at in points.items():
        first, middle, last = (p.sigma / p.alpha for p in at)
        a32, b2, b3 = kutta3_weights((middle - first) / (last - first))
        weights[n] = (1.0,), (1 - a32, a32), (1 - b2 - b3, b2, b3)
    for k, t in enumerate((step.t, *step.inner)):
        clean = evaluate(here, t)
        here = dict(here)
        for n, x in states.items():
            slopes[n].append(kernels.slope(here[n], clean[n], points[n][k]))
            parts = (w * slope for w, slope in zip(weights[n][k], slopes[n], strict=True))
            mean = sum(parts, start=torch.zeros_like(x))
            here[n] = kernels.advance(x, mean, points[n][0], points[n][min(k + 1, 2)])
    return Moved(states=here)


def move_euler_maruyama(stochastic: bool) -> Move:
    """The reverse equation in plain time; no noise in the last step."""

    def move(evaluate, states, step, memory, schedules, noise):
        rates = {name: float(schedules[name].rate(step.t)) for name in states}
        clean = evaluate(states, step.t)
        moved = {}
        for name, x in states.items():
            moved[name] = kernels.euler_maruyama(
                x,
                clean[name],
                point(schedules[name], step.t),
                point(schedules[name], step.s),
                rate=rates[name],
                stochastic=stochastic,
                draw=_draw(noise, name, x) if stochastic and step.s > 0 else None,
            )
        return Moved(states=moved)

    return move


# -- DPM-Solver and DPM-Solver++ --------------------------------------------------------------


def exponential_weights(form: str, at: Point, to: Point) -> tuple[float, float, float, float]:
    """(w, p1, p2, p3) of x_s = w x_t + p1 m + p2 m' + p3 m'', exact for a quadratic prediction m.

    m', m'' are derivatives in the log-SNR, counted in units of the step h.  form "data": m is the
    clean estimate (DPM-Solver++, arXiv 2211.01095, eq. 8); "noise": m is the noise (DPM-Solver,
    arXiv 2206.00927, eq. 3.4).
    """
    h = to.lam - at.lam
    if form == "data":
        e = math.expm1(-h)
        first, second = -to.alpha * e, to.alpha * (e / h + 1)
        third = 0.0 if math.isinf(h) else -to.alpha * ((e + h) / h**2 - 0.5)
        return to.sigma / at.sigma, first, second, third
    e = math.expm1(h)
    first, second = -to.sigma * e, -to.sigma * (e / h - 1)
    return to.alpha / at.alpha, first, second, -to.sigma * ((e / h - 1) / h - 0.5)


def _prediction(form: str, x: Tensor, clean: Tensor, at: Point) -> Tensor:
    return clean if form == "data" else kernels.noise_estimate(x, clean, at)


def single_step(
    form: str, solver_type: str, x: Tensor, m: list[Tensor], points: list[Point], to: Point
) -> Tensor:
    """x moved from points[0] to `to` with the predictions m made at `points` (order len(m))."""
    at = points[0]
    w, p1, p2, p3 = exponential_weights(form, at, to)
    base = w * x + p1 * m[0]
    if len(m) == 1:
        return base
    r = [(p.lam - at.lam) / (to.lam - at.lam) for p in points]
    if len(m) == 2:
        d1 = (m[1] - m[0]) / r[1]
        return base + (0.5 * p1 if solver_type == "dpm_solver" else p2) * d1
    a, b = (m[1] - m[0]) / r[1], (m[2] - m[0]) / r[2]
    if solver_type == "dpm_solver":
        return base + p2 * b
    d1 = (r[2] * a - r[1] * b) / (r[2] - r[1])
    return base + p2 * d1 + p3 * 2 * (b - a) / (r[2] - r[1])


def inner_step(form: str, x: Tensor, m: list[Tensor], points: list[Point]) -> Tensor:
    """x moved from points[0] to points[len(m)], an inner time of a single step of order 3."""
    at, to = points[0], points[len(m)]
    w, p1, p2, _ = exponential_weights(form, at, to)
    base = w * x + p1 * m[0]
    if len(m) == 1:
        return base
    return base + p2 * (to.lam - at.lam) / (points[1].lam - at.lam) * (m[1] - m[0])


def multi_step(
    form: str,
    solver_type: str,
    curvature: float,
    x: Tensor,
    m: list[Tensor],
    points: list[Point],
    to: Point,
) -> Tensor:
    """x moved from points[0] to `to` with predictions m at points, newest first (order len(m)).

    curvature: factor of the second divided difference in the third order term.  2 makes it the
    second derivative, as third order needs; 1 is what the authors' library computes, which is
    second order.
    """
    at = points[0]
    w, p1, p2, p3 = exponential_weights(form, at, to)
    base = w * x + p1 * m[0]
    h = to.lam - at.lam
    if len(m) == 1 or math.isinf(h):
        return base
    r0 = (at.lam - points[1].lam) / h
    a = (m[0] - m[1]) / r0
    if len(m) == 2:
        return base + (0.5 * p1 if solver_type == "dpm_solver" else p2) * a
    r1 = (points[1].lam - points[2].lam) / h
    b = (m[1] - m[2]) / r1
    return base + p2 * (a + r0 / (r0 + r1) * (a - b)) + p3 * curvature * (a - b) / (r0 + r1)


def move_single(form: str, solver_type: str) -> Move:
    """A step of order 1 + len(step.inner), without memory."""

    def move(evaluate, states, step, memory, schedules, noise):
        times = (step.t, *step.inner)
        points = {n: [point(schedules[n], t) for t in times] for n in states}
        found: dict[str, list[Tensor]] = {n: [] for n in states}
        here = states
        for i, t in enumerate(times):
            if i:
                here = {
                    n: inner_step(form, states[n], found[n][:i], points[n][: i + 1]) for n in states
                }
            clean = evaluate(here, t)
            for n in states:
                found[n].append(_prediction(form, here[n], clean[n], points[n][i]))
        moved = {
            n: single_step(form, solver_type, x, found[n], points[n], point(schedules[n], step.s))
            for n, x in states.items()
        }
        return Moved(states=moved)

    return move


def usable(lams: list[float], growth: float) -> int:
    """How many of the newest log-SNRs, lams[0] being the target, a multistep formula may use.

    It extrapolates, so a step more than `growth` times as long as the one before it in log-SNR
    (the last one of a grid in time) does not look back past its own start.
    """
    spans = [a - b for a, b in zip(lams, lams[1:], strict=False)]
    for i in range(len(spans) - 1):
        if spans[i] > growth * spans[i + 1]:
            return i + 1
    return len(spans)


def move_multi(
    form: str, solver_type: str, order: int, curvature: float = 2.0, growth: float = 2.0
) -> Move:
    """One evaluation a step; earlier predictions raise the order, from 1 up to `order`.

    curvature: see `multi_step`.  growth: see `usable`; infinity always uses the whole memory.
    """

    def move(evaluate, states, step, memory, schedules, noise):
        clean = evaluate(states, step.t)
        at = {n: point(schedules[n], step.t) for n in states}
        now = {n: _prediction(form, x, clean[n], at[n]) for n, x in states.items()}
        known = ((step.t, now), *memory)[:order]
        moved = {}
        for n, x in states.items():
            own = [(t, m[n]) for t, m in known if n in m]  # on a path it may have stood still
            points = [point(schedules[n], t) for t, _ in own]
            to = point(schedules[n], step.s)
            count = usable([to.lam, *(p.lam for p in points)], growth)
            values = [m for _, m in own[:count]]
            moved[n] = multi_step(form, solver_type, curvature, x, values, points, to)
        return Moved(states=moved, memory=known)

    return move


def dpm_solver(
    *,
    name: str,
    order: int,
    method: str = "multi",
    form: str = "data",
    solver_type: str = "dpm_solver",
    grid: str = "time",
    t_end: float = 1e-3,
    curvature: float = 2.0,
    growth: float = 2.0,
) -> Sampler:
    """Any member of the DPM-Solver family.

    order: 1, 2 or 3.  form: "data" (++) or "noise".  solver_type: "dpm_solver" or "taylor".
    method: "multi"; "single" (whole steps, inner times by log-SNR); "fast" (a fine grid, jumped);
    "fast-whole" (whole steps of the fast orders).  curvature, growth: of "multi", see `move_multi`;
    the published multistep formulas have curvature 1 and growth infinity.
    """
    methods = {
        "multi": (cell_steps, move_multi(form, solver_type, order, curvature, growth)),
        "single": (single_steps(order), move_single(form, solver_type)),
        "fast": (fast_steps(order), move_single(form, solver_type)),
        "fast-whole": (single_steps(order, fast=True), move_single(form, solver_type)),
    }
    for what, value, known in (
        ("method", method, [*methods]),
        ("form", form, ["data", "noise"]),
        ("solver_type", solver_type, ["dpm_solver", "taylor"]),
        ("order", order, [1, 2, 3]),
    ):
        if value not in known:
            raise UsageError(f"{what} {value!r} is unknown; choose one of {known}")
    lay_steps, move = methods[method]
    signal = method != "multi"
    return Sampler(name=name, lay_steps=lay_steps, move=move, grid=grid, t_end=t_end, signal=signal)


def ddim(eta: float = 0.0, name: str = "ddim", lay_steps: LaySteps = cell_steps) -> Sampler:
    """DDIM with its own eta in [0, 1]."""
    return Sampler(name=name, lay_steps=lay_steps, move=move_ddim(eta))


# when to take which: docs/choose-a-sampler.md; `everyway.request.SAMPLER_NAMES` has the same names
_ALL = (
    dpm_solver(name="dpm++2m", order=2),
    dpm_solver(name="dpm++3m", order=3, solver_type="taylor"),
    dpm_solver(name="dpm++2s", order=2, method="single"),
    dpm_solver(name="dpm++3s", order=3, method="single"),
    dpm_solver(name="dpm++fast", order=3, method="fast"),
    dpm_solver(
        name="dpm-fast",
        order=3,
        method="fast-whole",
        form="noise",
        grid="logsnr",
        t_end=1e-4,
    ),
    ddim(),
    ddim(name="ddim-stride", lay_steps=stride_steps),
    Sampler(
        name="ddpm",
        lay_steps=cell_steps,
        move=move_ddpm,
    ),
    Sampler(
        name="purity",
        lay_steps=cell_steps,
        move=move_ddpm,
        tokens=purity(),
    ),
    Sampler(
        name="fast-stride",
        lay_steps=cell_steps,
        move=move_ddpm,
        tokens=LEAPS,
    ),
    Sampler(name="heun", lay_steps=heun_steps, move=move_heun),
    Sampler(name="edm-euler", lay_steps=then_zero(cell_steps), move=move_ddim(0.0), t_end=1e-3),
    Sampler(name="edm-heun", lay_steps=then_zero(heun_steps), move=move_heun, t_end=1e-3),
    Sampler(name="kutta3", lay_steps=kutta3_steps, move=move_kutta3, t_end=1e-3, signal=True),
    Sampler(
        name="em-sde",
        lay_steps=then_zero(cell_steps),
        move=move_euler_maruyama(True),
        t_end=1e-3,
        rate=True,
    ),
    Sampler(
        name="em-ode",
        lay_steps=then_zero(cell_steps),
        move=move_euler_maruyama(False),
        t_end=1e-3,
        rate=True,
    ),
)

ALIASES = {"euler": "ddim", "ancestral": "ddpm"}
"""Another name of the same formula -> the sampler's own."""
SAMPLERS: dict[str, Sampler] = {s.name: s for s in _ALL}
SAMPLERS |= {alias: SAMPLERS[name] for alias, name in ALIASES.items()}
"""Plain name -> Sampler."""


def named_sampler(name: str) -> Sampler:
    """The sampler of that name; ValueError lists the names there are."""
    if name not in SAMPLERS:
        raise UsageError(f"sampler {name!r} is unknown; choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name]
