"""The Gaussian process x_t = alpha x_0 + sigma noise, and what a network's raw output means in it.

Coefficients are float64 and cast once; the arithmetic on states is float32 or better, never in the
network's own dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from everyway.contracts import Noise, expand_times
from everyway.errors import UsageError
from everyway.process.schedules import Schedule


class Parameterisation(Protocol):
    """What the network predicts.  raw: its output.  raw, x_t, x0 and draw, the noise, are
    (B, ...); alpha and sigma broadcast against them.

    noise_from: the least time from which (x_t - alpha x_0) / sigma of a clean estimate x_0 is a
    good estimate of the noise.
    """

    noise_from: ClassVar[float]

    def check(self, schedule: Schedule) -> None:
        """Raises UsageError where this prediction cannot be used with `schedule`."""
        ...

    def to_clean(self, raw: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The clean estimate (B, ...) that `raw` means at x_t."""
        ...

    def slope(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The factor by which an error of what `loss` measures becomes an error of the clean
        estimate, in the shape of alpha."""
        ...

    def loss(self, raw: Tensor, x0: Tensor, draw: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(B,) float32."""
        ...

    def scale_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """By what x_t is multiplied before the network sees it, in the shape of alpha."""
        ...


class Linear:
    """The base of parameterisations whose clean estimate is linear in the network's output, which
    learns a target by the square error."""

    def to_clean(self, raw: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError

    def target(self, x0: Tensor, draw: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network's output should be, (B, ...)."""
        raise NotImplementedError

    def slope(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.to_clean(torch.ones_like(alpha), torch.zeros_like(alpha), alpha, sigma)

    def loss(self, raw: Tensor, x0: Tensor, draw: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(B,) float32, the mean over elements of (raw - target)^2."""
        target = self.target(x0, draw, alpha, sigma)
        return (raw.float() - target.float()).square().flatten(1).mean(1)


@dataclass(frozen=True, kw_only=True)
class Noised(Linear):
    """The network predicts the noise: x_0 = (x_t - sigma raw) / alpha (Ho et al., 2020)."""

    noise_from: ClassVar[float] = 1e-3

    def check(self, schedule: Schedule) -> None:
        if float(schedule.alpha_sigma(1.0)[0]) == 0.0:
            raise UsageError(
                f"EPS cannot be used with {type(schedule).__name__}: alpha is 0 at t = 1, where "
                "the noise says nothing about the clean state; predict V or X0 instead"
            )

    def to_clean(self, raw: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * raw) / alpha

    def target(self, x0: Tensor, draw: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return draw

    def scale_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


@dataclass(frozen=True, kw_only=True)
class Clean(Linear):
    """The network predicts the clean state itself (x0-prediction).

    faded: whether the network sees alpha x_t / (alpha^2 + sigma^2), the best linear estimate of a
    clean state of unit variance, in place of x_t.  Of pure noise it then sees nothing.
    floor: the least factor of x_t when faded; above 0 the noise at t = 1 still decides something.
    """

    faded: bool = False
    floor: float = 0.0
    noise_from: ClassVar[float] = 0.1  # an error of x_0 is divided by sigma, however small that is

    def check(self, schedule: Schedule) -> None:
        pass

    def to_clean(self, raw: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return raw

    def target(self, x0: Tensor, draw: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return x0

    def scale_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        if not self.faded:
            return torch.ones_like(alpha)
        return (alpha / (alpha**2 + sigma**2)).clamp(min=self.floor)


@dataclass(frozen=True, kw_only=True)
class Velocity(Linear):
    """v = alpha noise - sigma x_0, so x_0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2).

    Source: Salimans and Ho, "Progressive Distillation", 2022, arXiv 2202.00512.
    """

    noise_from: ClassVar[float] = 1e-3

    def check(self, schedule: Schedule) -> None:
        pass

    def to_clean(self, raw: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (alpha * x_t - sigma * raw) / (alpha**2 + sigma**2)

    def target(self, x0: Tensor, draw: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return alpha * draw - sigma * x0

    def scale_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


@dataclass(frozen=True, kw_only=True)
class Flow(Linear):
    """u = noise - x_0, so x_0 = (x_t - sigma u) / (alpha + sigma); on Rectified this is dx/dt.

    Source: Liu et al., "Flow Straight and Fast", 2022, arXiv 2209.03003.
    """

    noise_from: ClassVar[float] = 1e-3

    def check(self, schedule: Schedule) -> None:
        pass

    def to_clean(self, raw: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (x_t - sigma * raw) / (alpha + sigma)

    def target(self, x0: Tensor, draw: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return draw - x0

    def scale_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


EPS = Noised()
X0 = Clean()
V = Velocity()
FLOW = Flow()


@dataclass(frozen=True, kw_only=True)
class EDMPrecond(Linear):
    """x_0 = c_skip x_t + c_out raw, and the network is shown c_in x_t; needs alpha = 1.

    sigma_data: standard deviation of the clean states.  The plain mean square on `raw` is the
    weighted loss of the paper.  Source: Karras et al., 2022, arXiv 2206.00364, table 1.
    """

    sigma_data: float = 0.5
    noise_from: ClassVar[float] = 1e-3

    def check(self, schedule: Schedule) -> None:
        if float(schedule.alpha_sigma(1.0)[0]) != 1.0:
            raise UsageError(
                f"EDMPrecond cannot be used with {type(schedule).__name__}: it needs alpha = 1 at "
                "every t; use EDMSigma"
            )

    def _skip_out(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data / torch.sqrt(total)

    def to_clean(self, raw: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        skip, out = self._skip_out(sigma)
        return skip * x_t + out * raw

    def target(self, x0: Tensor, draw: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        # (x_0 - c_skip x_t) / c_out, written without the cancellation at small sigma
        root = torch.sqrt(sigma**2 + self.sigma_data**2)
        return (sigma * x0 / self.sigma_data - self.sigma_data * draw) / root

    def scale_in(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return 1 / torch.sqrt(sigma**2 + self.sigma_data**2)


def working(x: Tensor) -> Tensor:
    """x in float32, or in its own dtype where that is better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def mixed(conditional: Tensor, unconditional: Tensor, w: Tensor) -> Tensor:
    """u + w (c - u) in the estimates' own dtype; w (B,)."""
    weight = expand_times(w, conditional).to(conditional)
    return unconditional + weight * (conditional - unconditional)


@dataclass(frozen=True, kw_only=True)
class GaussianProcess:
    """contracts.Process for continuous states: a schedule and what the network predicts."""

    schedule: Schedule
    parameterisation: Parameterisation

    kernel = "gaussian"
    steps = 0

    def __post_init__(self) -> None:
        self.parameterisation.check(self.schedule)

    def _at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), each (B, 1, ..., 1) in the dtype of `like`."""
        alpha, sigma = self.schedule.alpha_sigma(t.to(like.device))
        return expand_times(alpha, like).to(like.dtype), expand_times(sigma, like).to(like.dtype)

    def draw(self, noise: Noise, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal (B, ...)."""
        return noise.normal(name, shape)

    def prior(self, draw: Tensor) -> Tensor:
        """The terminal distribution for data of unit variance: N(0, 1), or N(0, sigma_max^2) for
        EDM."""
        return draw * self.schedule.terminal_scale

    def corrupt(self, x0: Tensor, draw: Tensor, t: Tensor) -> Tensor:
        """alpha x_0 + sigma draw.  x0, draw (B, ...), t (B,); at t = 0 exactly x0."""
        x0 = working(x0)
        alpha, sigma = self._at(t, x0)
        return alpha * x0 + sigma * draw.to(x0)

    def existing(self, t: Tensor) -> Tensor:
        """t as it is."""
        return t

    def known(self, x0: Tensor, draw: Tensor, t: Tensor) -> Tensor:
        """What is known is corrupted to the time of the rest."""
        return self.corrupt(x0, draw, t)

    def preview(self, clean: Tensor, state: Tensor) -> tuple[Tensor, None]:
        """The clean estimate; there are no tokens to be sure of."""
        return clean, None

    @property
    def flow_from(self) -> float:
        """The least time from which the clean estimate gives a good estimate of the noise."""
        return self.parameterisation.noise_from

    def flow(self, x_t: Tensor, clean: Tensor, t: float, s: float) -> Tensor:
        """A deterministic step between any two times above 0, in either direction.

        Source: Song et al., 2021, arXiv 2010.02502.
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (self.schedule.alpha_sigma(u) for u in (t, s))
        eps = (x_t - alpha_t * clean) / sigma_t
        return (alpha_s * clean + sigma_s * eps).float()

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """What the network is shown of x_t: x_t itself, or c_in x_t under EDMPrecond."""
        alpha, sigma = self._at(t, working(x_t))
        return x_t * self.parameterisation.scale_in(alpha, sigma).to(x_t.dtype)

    def to_clean(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean estimate (B, ...) that `raw` means at x_t."""
        x_t = working(x_t)
        return self.parameterisation.to_clean(raw.to(x_t.dtype), x_t, *self._at(t, x_t))

    def combine(self, conditional: Tensor, unconditional: Tensor, w: Tensor) -> Tensor:
        """u + w (c - u); w (B,)."""
        return mixed(conditional, unconditional, w)

    def min_snr(self, t: Tensor, gamma: float) -> Tensor:
        """The weight (B,) float64 that makes `loss` at t min(SNR, gamma) times the square error of
        the clean estimate: min(SNR, gamma) / SNR for EPS, min(SNR, gamma) / (SNR + 1) for V.

        SNR is (alpha / sigma)^2; where that is 0, at the t = 1 of some schedules, so is the weight.
        Source: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023,
        arXiv 2303.09556.
        """
        alpha, sigma = self.schedule.alpha_sigma(t)
        slope = self.parameterisation.slope(alpha, sigma)
        return (alpha / sigma).square().clamp(max=gamma) * slope.square()

    def loss(self, raw: Tensor, x0: Tensor, draw: Tensor, t: Tensor) -> Tensor:
        """(B,) float32, the loss of `parameterisation`."""
        x0 = working(x0)
        return self.parameterisation.loss(raw, x0, draw.to(x0), *self._at(t, x0))
