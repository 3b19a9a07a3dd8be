"""Noise schedules: time in [0, 1] -> (alpha, sigma) with x_t = alpha x_0 + sigma noise, in float64.

Time 0 is exactly clean for every schedule, (alpha, sigma) = (1, 0), whatever the formula says;
time 1 is the terminal distribution.  lam = log(alpha / sigma), half the log-SNR, falls with time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from everyway.errors import UsageError

Time = Tensor | float


def as_time(t: Time) -> Tensor:
    """Any time as a float64 tensor of the same shape and device."""
    return torch.as_tensor(t, dtype=torch.float64)


def log_alpha_of_lam(lam: Tensor) -> Tensor:
    """log alpha of a variance-preserving process: -1/2 log(1 + e^(-2 lam))."""
    return -0.5 * softplus(-2 * lam, threshold=700.0)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What all schedules answer.  Subclasses give `_log_alpha` (t > 0) and `_t_of_lam`.

    Unless a subclass says otherwise the process preserves variance: alpha^2 + sigma^2 = 1.
    """

    @property
    def terminal_scale(self) -> float:
        """Standard deviation of the prior at t = 1, for data of unit variance."""
        return 1.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha(t))

    def _lam(self, t: Tensor) -> Tensor:
        return -0.5 * torch.log(torch.expm1(-2 * self._log_alpha(t)))

    def _t_of_lam(self, lam: Tensor) -> Tensor:
        raise NotImplementedError

    def log_alpha(self, t: Time) -> Tensor:
        """log alpha(t), float64 of t's shape; exactly 0 at t = 0."""
        t = as_time(t)
        return torch.where(t == 0, torch.zeros_like(t), self._log_alpha(t))

    def alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at t, float64 of t's shape; exactly (1, 0) at t = 0."""
        t = as_time(t)
        clean = t == 0
        alpha = torch.where(clean, torch.ones_like(t), self._alpha(t))
        return alpha, torch.where(clean, torch.zeros_like(t), self._sigma(t))

    def lam(self, t: Time) -> Tensor:
        """log(alpha / sigma) at t; +inf at t = 0, -inf where no signal is left."""
        t = as_time(t)
        return torch.where(t == 0, torch.full_like(t, math.inf), self._lam(t))

    def t_of_lam(self, lam: Time) -> Tensor:
        """The time at which log(alpha / sigma) is `lam`, float64."""
        return self._t_of_lam(as_time(lam))

    def clock(self, t: Time) -> Time:
        """The clock's time when the run is at t: t itself, but on a path."""
        return t

    def rate(self, t: Time) -> Tensor:
        """beta(t) = -2 d log alpha / dt, for the stochastic equations of variance preservation."""
        raise UsageError(
            f"{type(self).__name__} has no finite rate beta(t); "
            "em-sde and em-ode need LinearVP or DiscreteVP"
        )


@dataclass(frozen=True, kw_only=True)
class LinearVP(Schedule):
    """beta(t) = beta_min + (beta_max - beta_min) t; log alpha = -integral / 2.

    Source: Song et al., "Score-Based Generative Modeling through SDEs", 2021, arXiv 2011.13456.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    def _t_of_lam(self, lam: Tensor) -> Tensor:
        a, b, c = (self.beta_max - self.beta_min) / 4, self.beta_min / 2, -log_alpha_of_lam(lam)
        return 2 * c / (b + torch.sqrt(b * b + 4 * a * c))

    def rate(self, t: Time) -> Tensor:
        return self.beta_min + (self.beta_max - self.beta_min) * as_time(t)


@dataclass(frozen=True, kw_only=True)
class DiscreteVP(Schedule):
    """A table of `steps` betas; log alpha is piecewise linear between the knots n / steps.

    Outside [1 / steps, 1] it goes on along the nearest piece.  scaled: betas linear in their square
    root (latent diffusion); False gives betas linear in n (Ho et al., 2020, with 1e-4 .. 0.02).
    """

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    scaled: bool = True

    def betas(self) -> Tensor:
        """(steps,) float64."""
        power = 0.5 if self.scaled else 1.0
        ends = self.beta_start**power, self.beta_end**power
        return torch.linspace(*ends, self.steps, dtype=torch.float64) ** (1 / power)

    def _log_alpha(self, t: Tensor) -> Tensor:
        knots, values = _table(self)
        return _piecewise(t, knots, values).clamp(max=0.0)

    def _t_of_lam(self, lam: Tensor) -> Tensor:
        knots, values = _table(self)
        return _piecewise(log_alpha_of_lam(lam), values.flip(0), knots.flip(0))

    def rate(self, t: Time) -> Tensor:
        knots, values = (x.to(as_time(t).device) for x in _table(self))
        high = torch.searchsorted(knots, as_time(t)).clamp(1, self.steps - 1)
        return -2 * (values[high] - values[high - 1]) * self.steps


@lru_cache(maxsize=16)
def _table(schedule: DiscreteVP) -> tuple[Tensor, Tensor]:
    """(times n / steps, log alpha) of n = 1..steps, each (steps,) float64."""
    knots = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
    return knots, 0.5 * torch.log1p(-schedule.betas()).cumsum(0)


def _piecewise(x: Tensor, xs: Tensor, ys: Tensor) -> Tensor:
    """The broken line through (xs rising, ys) at x, continued along its end pieces."""
    xs, ys = xs.to(x.device), ys.to(x.device)
    high = torch.searchsorted(xs, x.contiguous()).clamp(1, len(xs) - 1)
    x0, x1, y0, y1 = xs[high - 1], xs[high], ys[high - 1], ys[high]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


@dataclass(frozen=True, kw_only=True)
class CosineVP(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    zero_terminal: True ends with exactly no signal, so t = 1 is exactly "absent"; False stops at
    0.9946 of the quarter turn, where a noise prediction still means a clean estimate.
    Source: Nichol and Dhariwal, "Improved DDPM", 2021, arXiv 2102.09672 (without its offset).
    """

    zero_terminal: bool = True

    def _turn(self) -> float:
        return (math.pi / 2) * (1.0 if self.zero_terminal else 0.9946)

    def _alpha(self, t: Tensor) -> Tensor:
        alpha = torch.cos(self._turn() * t)
        return torch.where(t == 1, torch.zeros_like(t), alpha) if self.zero_terminal else alpha

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sin(self._turn() * t)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.log(self._alpha(t))

    def _lam(self, t: Tensor) -> Tensor:
        return torch.log(self._alpha(t)) - torch.log(self._sigma(t))

    def _t_of_lam(self, lam: Tensor) -> Tensor:
        return torch.atan(torch.exp(-lam)) / self._turn()


@dataclass(frozen=True, kw_only=True)
class ZeroTerminal(Schedule):
    """`base` with its alpha shifted and stretched to (alpha - alpha_1) / (1 - alpha_1): 0 at t = 1.

    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023,
    arXiv 2305.08891, with t = 0 (alpha = 1) as the end that is kept.
    """

    base: Schedule

    def _last(self) -> Tensor:
        return self.base.alpha_sigma(1.0)[0]

    def _alpha(self, t: Tensor) -> Tensor:
        last = self._last().to(t.device)
        return (self.base.alpha_sigma(t)[0] - last) / (1 - last)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.log(self._alpha(t))

    def _t_of_lam(self, lam: Tensor) -> Tensor:
        last = self._last().to(lam.device)
        log_alpha = torch.log(torch.exp(log_alpha_of_lam(lam)) * (1 - last) + last)
        return self.base.t_of_lam(-0.5 * torch.log(torch.expm1(-2 * log_alpha)))


@dataclass(frozen=True, kw_only=True)
class Rectified(Schedule):
    """alpha = 1 - t, sigma = t: straight paths (Liu et al., 2022, arXiv 2209.03003)."""

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.log1p(-t)

    def _lam(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) - torch.log(t)

    def _t_of_lam(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


@dataclass(frozen=True, kw_only=True)
class EDMSigma(Schedule):
    """alpha = 1; sigma^(1/rho) is linear in t from sigma_min (t -> 0) to sigma_max (t = 1).

    Source: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
    2022, arXiv 2206.00364, equation 5.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    @property
    def terminal_scale(self) -> float:
        return self.sigma_max

    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        low, high = self._roots()
        return (low + t * (high - low)) ** self.rho

    def _lam(self, t: Tensor) -> Tensor:
        return -torch.log(self._sigma(t))

    def _t_of_lam(self, lam: Tensor) -> Tensor:
        low, high = self._roots()
        return (torch.exp(-lam / self.rho) - low) / (high - low)


@dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """What a network is shown of a time: c_noise = scale * log(sigma / alpha), finite at t = 0.

    Source: Karras et al., 2022, arXiv 2206.00364, table 1, where the scale is 1/4.
    """

    schedule: Schedule
    scale: float = 0.25

    def __call__(self, t: Tensor) -> Tensor:
        """(B,) float64 times -> (B,) float64."""
        return -self.scale * self.schedule.lam(t.clamp(min=1e-9))


@dataclass(frozen=True, kw_only=True)
class Along(Schedule):
    """`base` at t = path(u), for a run whose time is u: what solvers see of a clock with a path."""

    base: Schedule
    path: Callable[[Any], Any]

    @property
    def terminal_scale(self) -> float:
        return self.base.terminal_scale

    def clock(self, t: Time) -> Time:
        return self.path(t)

    def alpha_sigma(self, t: Time) -> tuple[Tensor, Tensor]:
        return self.base.alpha_sigma(self.path(t))

    def lam(self, t: Time) -> Tensor:
        return self.base.lam(self.path(t))

    def rate(self, t: Time) -> Tensor:
        return self.base.rate(self.path(t))
