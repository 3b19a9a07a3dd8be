"""Kernels: one Gaussian modality from time t to time s, given a clean estimate.  States (B, ...).

Coefficients are Python floats from float64 schedules; a state keeps its dtype (float32 or better).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from everyway.process.schedules import Schedule


@dataclass(frozen=True)
class Point:
    """A schedule at one time; t is its clock's."""

    t: float
    alpha: float
    sigma: float
    lam: float


@lru_cache(maxsize=4096)
def point(schedule: Schedule, t: float) -> Point:
    """The schedule's coefficients at the run's time t in [0, 1]."""
    alpha, sigma = schedule.alpha_sigma(t)
    return Point(
        t=float(schedule.clock(t)),
        alpha=float(alpha),
        sigma=float(sigma),
        lam=float(schedule.lam(t)),
    )


def noise_estimate(x_t: Tensor, clean: Tensor, at: Point) -> Tensor:
    """(x_t - alpha clean) / sigma; needs t > 0."""
    return (x_t - at.alpha * clean) / at.sigma


def slope(x_t: Tensor, clean: Tensor, at: Point) -> Tensor:
    """d(x / alpha) / d(sigma / alpha) of the probability flow: it is the noise estimate.

    Source: Karras et al., 2022, arXiv 2206.00364; Song et al., 2021, arXiv 2010.02502.
    """
    return noise_estimate(x_t, clean, at)


def advance(x_t: Tensor, slope: Tensor, at: Point, to: Point) -> Tensor:
    """Along a constant slope of x / alpha against sigma / alpha; needs alpha > 0 at the start."""
    ratio = to.alpha / at.alpha
    return ratio * x_t + (to.sigma - ratio * at.sigma) * slope


def euler(x_t: Tensor, clean: Tensor, at: Point, to: Point) -> Tensor:
    """advance(slope) for a held clean estimate, in the form that is finite at both ends of time.

    x_s = (sigma_s / sigma_t) x_t + (alpha_s - alpha_t sigma_s / sigma_t) clean.
    """
    ratio = to.sigma / at.sigma
    return ratio * x_t + (to.alpha - at.alpha * ratio) * clean


def heun(x_t: Tensor, first: Tensor, second: Tensor, at: Point, to: Point) -> Tensor:
    """Advance along the mean of the slopes at both ends (trapezoidal rule)."""
    return advance(x_t, 0.5 * (first + second), at, to)


def posterior_std(at: Point, to: Point) -> float:
    """Standard deviation of q(x_s | x_t, x_0) for s < t."""
    ratio = at.alpha / to.alpha
    fresh = max(at.sigma**2 - ratio**2 * to.sigma**2, 0.0)  # variance added between s and t
    return math.sqrt(fresh) * to.sigma / at.sigma


def ddpm(x_t: Tensor, clean: Tensor, at: Point, to: Point, draw: Tensor | None) -> Tensor:
    """One ancestral draw from q(x_s | x_t, x_0 = clean); draw None gives its mean.

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, equations 6 and 7.
    """
    ratio = at.alpha / to.alpha
    fresh = max(at.sigma**2 - ratio**2 * to.sigma**2, 0.0)
    mean = ratio * (to.sigma / at.sigma) ** 2 * x_t + to.alpha * fresh / at.sigma**2 * clean
    return mean if draw is None else mean + posterior_std(at, to) * draw


def ddim(
    x_t: Tensor, clean: Tensor, at: Point, to: Point, eta: float, draw: Tensor | None
) -> Tensor:
    """x_s = alpha_s clean + sqrt(sigma_s^2 - std^2) noise + std draw with std = eta posterior_std.

    eta 0 is deterministic, 1 is ancestral.  Source: Song et al., 2021, arXiv 2010.02502, eq. 12.
    """
    if draw is None or eta == 0.0:
        return euler(x_t, clean, at, to)
    std = eta * posterior_std(at, to)
    rest = math.sqrt(max(to.sigma**2 - std**2, 0.0))
    return to.alpha * clean + rest * noise_estimate(x_t, clean, at) + std * draw


def euler_maruyama(
    x_t: Tensor,
    clean: Tensor,
    at: Point,
    to: Point,
    *,
    rate: float,
    stochastic: bool,
    draw: Tensor | None,
) -> Tensor:
    """x_s = x_t + drift (s - t) + sqrt(rate (t - s)) draw, in plain time, variance preserving.

    drift = -rate x / 2 - c rate score with score = -noise / sigma; c = 1 (SDE) or 1/2 (ODE).
    Source: Song et al., 2021, arXiv 2011.13456; discretised as in U-ViT (arXiv 2209.12152).
    """
    score = -noise_estimate(x_t, clean, at) / at.sigma
    part = 1.0 if stochastic else 0.5
    drift = -0.5 * rate * x_t - part * rate * score
    moved = x_t + drift * (to.t - at.t)
    if draw is None or not stochastic:
        return moved
    return moved + math.sqrt(rate * (at.t - to.t)) * draw
