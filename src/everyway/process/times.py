"""Times: how they are drawn in training, and the grids they follow in sampling.  All float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from everyway.contracts import Noise, Times
from everyway.errors import UsageError
from everyway.process.schedules import Schedule

LAM_FLOOR = -6.0
"""Where a schedule ends with no signal, grids in log-SNR are laid from here instead of -inf."""


def uniform_times(noise: Noise, clocks: Sequence[str], batch: int) -> Times:
    """Every clock on its own, uniform in [0, 1): clock -> (batch,).

    Independent times are what makes one loss train every marginal, conditional and joint
    distribution (Bao et al., 2023, arXiv 2303.06555).
    """
    return {c: noise.uniform(f"time:{c}", (batch,)).to(torch.float64) for c in clocks}


KNOTS = 1000
"""Steps of the discrete schedules that networks were trained on."""


def knot_times(noise: Noise, clocks: Sequence[str], batch: int, steps: int = KNOTS) -> Times:
    """Every clock on its own, uniform on 1/steps, 2/steps, ..., 1: clock -> (batch,).

    These are the times that networks of a discrete schedule were trained at.
    """
    drawn = uniform_times(noise, clocks, batch)
    return {c: ((u * steps).floor() + 1) / steps for c, u in drawn.items()}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A part of the square of times.

    share: of the samples.  at: clock -> fixed time.  tie: the other clocks share one draw.
    """

    share: float
    at: Mapping[str, float] = field(default_factory=dict)
    tie: bool = False


def task_lines(
    to_image: float = 0.53,
    to_text: float = 0.32,
    joint: float = 0.06,
    image_alone: float | None = None,
    text_alone: float | None = None,
) -> tuple[Line, ...]:
    """The lines that tasks of two clocks sample on, and a little of the whole square.

    to_image, to_text, joint: shares of the samples with the text given, with the image given, and
    with both at one time.  image_alone, text_alone: with the text absent, and the image; each a
    third of what is left by default.  The rest is of the whole square.
    """
    third = (1 - to_image - to_text - joint) / 3
    image_alone = third if image_alone is None else image_alone
    text_alone = third if text_alone is None else text_alone
    return (
        Line(share=1 - to_image - to_text - joint - image_alone - text_alone),
        Line(share=to_image, at={"text": 0.0}),
        Line(share=to_text, at={"image": 0.0}),
        Line(share=joint, tie=True),
        Line(share=image_alone, at={"text": 1.0}),
        Line(share=text_alone, at={"image": 1.0}),
    )


TWO_CLOCKS = task_lines()


def lines_within(lines: Sequence[Line], clock: str, low: float, high: float) -> tuple[Line, ...]:
    """The lines that have times of `clock` from quantile `low` to `high`, by how many they have.

    A line that fixes the clock at 0 is of the part that begins at 0, one at 1 of that which ends
    there.
    """

    def share(line: Line) -> float:
        if clock not in line.at:
            return line.share * (high - low)
        return line.share * ((low == 0) if line.at[clock] == 0 else (high == 1))

    whole = sum(map(share, lines))
    return tuple(replace(line, share=share(line) / whole) for line in lines if share(line))


def shifted(t: Tensor, shift: float) -> Tensor:
    """shift t / (1 + (shift - 1) t): uniform times moved towards 1 for a shift above 1.

    Source: Esser et al., "Scaling Rectified Flow Transformers", 2024, arXiv 2403.03206.
    """
    return shift * t / (1 + (shift - 1) * t)


def mixture_times(
    noise: Noise,
    clocks: Sequence[str],
    batch: int,
    lines: Sequence[Line] = TWO_CLOCKS,
    shift: float = 1.0,
) -> Times:
    """Each sample falls on one of `lines` by its share (shares add to 1): clock -> (batch,).

    shift: above 1 draws the free times nearer to 1, where what a sample shows is decided.
    """
    shares = torch.tensor([line.share for line in lines], dtype=torch.float64)
    if abs(float(shares.sum()) - 1.0) > 1e-9:
        raise ValueError(f"the lines' shares add to {float(shares.sum()):g}; they must add to 1")
    unknown = {c for line in lines for c in line.at} - set(clocks)
    if unknown:
        raise ValueError(f"the lines name unknown clocks {sorted(unknown)}; use {[*clocks]}")
    free = {c: shifted(t, shift) for c, t in uniform_times(noise, clocks, batch).items()}
    u = noise.uniform("time-line", (batch,)).to(torch.float64)
    edges = shares.cumsum(0).to(u.device)
    which = torch.searchsorted(edges, u, right=True).clamp(max=len(lines) - 1)  # (batch,)
    times = {}
    for clock in clocks:
        t = free[clock].clone()
        for i, line in enumerate(lines):
            if clock in line.at:
                t = torch.where(which == i, torch.full_like(t, line.at[clock]), t)
            elif line.tie:
                t = torch.where(which == i, free[clocks[0]], t)
        times[clock] = t
    return times


def lognormal_times(
    noise: Noise,
    clocks: Sequence[str],
    batch: int,
    *,
    schedule: Schedule,
    mean: float = -1.2,
    std: float = 1.2,
) -> Times:
    """log(sigma / alpha) ~ N(mean, std^2), as times of `schedule` kept in [0, 1].

    Source: Karras et al., 2022, arXiv 2206.00364, table 1.
    """
    drawn = uniform_times(noise, clocks, batch)
    return {c: lognormal_quantile(u, schedule, mean, std) for c, u in drawn.items()}


def lognormal_quantile(u: Tensor, schedule: Schedule, mean: float, std: float) -> Tensor:
    """The time of `schedule`, kept in [0, 1], at quantile u of the least noise up."""
    normal = torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9))
    return schedule.t_of_lam(-(mean + std * normal)).clamp(0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Within:
    """A contracts.Noise whose times are of a part of their distribution, an expert's share of it.

    low, high: quantiles in [0, 1] of the distribution; under uniform times they are times.
    clock: whose times; "" is every clock's.
    Source: Balaji et al., "eDiff-I", 2022, arXiv 2211.01324, section 4.1.
    """

    noise: Noise
    low: float
    high: float
    clock: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high <= 1.0:
            raise UsageError(f"times from {self.low:g} to {self.high:g}; give 0 <= low < high <= 1")

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform in [low, high) for times, in [0, 1) for all else."""
        drawn = self.noise.uniform(name, shape)
        if not (name == f"time:{self.clock}" if self.clock else name.startswith("time:")):
            return drawn
        return self.low + (self.high - self.low) * drawn.to(torch.float64)

    def __getattr__(self, name: str) -> Any:
        """Every other kind of draw is the noise's own."""
        return getattr(self.noise, name)


SEEN = 10
"""Importance sampling waits until every step has been drawn more often than this."""


def importance(history: Tensor, counts: Tensor) -> Tensor:
    """The distribution (T,) of the steps of a process that are trained on: in proportion to
    sqrt(E[L^2]).

    history: moving mean of L^2 at each step; counts: how often it was drawn.  Uniform until every
    step has been seen.  The first step, whose loss is another one, is drawn like the second.
    Source: Nichol and Dhariwal, 2021, arXiv 2102.09672; constants as in VQ-Diffusion's release.
    """
    if not bool((counts > SEEN).all()):
        return torch.full_like(history, 1 / len(history))
    distribution = torch.sqrt(history + 1e-10) + 1e-4
    distribution[0] = distribution[1]
    return distribution / distribution.sum()


def remember(history: Tensor, counts: Tensor, index: Tensor, loss: Tensor) -> None:
    """Take losses (B,) at steps index (B,) into history and counts, in place."""
    history[index] = 0.1 * loss.detach().to(history).square() + 0.9 * history[index]
    counts.index_add_(0, index, torch.ones_like(index).to(counts))


@dataclass(frozen=True)
class Step:
    """From time t down to s with so many network `evaluations`: one at t, the others at `inner`.

    share: of the masked tokens, how many a kernel that chooses positions writes; None leaves it to
    the process.  Such a kernel may take several steps at one t (s = t).
    """

    t: float
    s: float
    evaluations: int = 1
    inner: tuple[float, ...] = ()
    share: float | None = None


Grid = Callable[[Schedule, int, float, float], Tensor]
"""(schedule, cells, t_start, t_end) -> (cells + 1,) float64 falling times."""


def time_grid(schedule: Schedule, cells: int, t_start: float, t_end: float) -> Tensor:
    """Equal steps of time (on EDMSigma this is the rho grid of Karras et al.)."""
    return torch.linspace(t_start, t_end, cells + 1, dtype=torch.float64)


def quadratic_grid(schedule: Schedule, cells: int, t_start: float, t_end: float) -> Tensor:
    """Equal steps of sqrt(t): finer near the data."""
    return torch.linspace(t_start**0.5, t_end**0.5, cells + 1, dtype=torch.float64) ** 2


def logsnr_grid(schedule: Schedule, cells: int, t_start: float, t_end: float) -> Tensor:
    """Equal steps of log(alpha / sigma); t_end must be above 0."""
    if t_end <= 0:
        raise UsageError(f"grid 'logsnr' needs t_end above 0, got {t_end:g}; try 0.001")
    first = max(float(schedule.lam(t_start)), LAM_FLOOR)
    lams = torch.linspace(first, float(schedule.lam(t_end)), cells + 1, dtype=torch.float64)
    times = schedule.t_of_lam(lams)
    times[0], times[-1] = t_start, t_end
    return times


GRIDS: dict[str, Grid] = {
    "time": time_grid,
    "logsnr": logsnr_grid,
    "quadratic": quadratic_grid,
}


def first_time(schedule: Schedule) -> float:
    """1, or just below it where the schedule has no signal left at 1 and log-SNR is -inf."""
    if math.isinf(float(schedule.lam(1.0))):
        return float(schedule.t_of_lam(LAM_FLOOR))
    return 1.0
