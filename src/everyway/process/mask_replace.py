"""The mask-and-replace process over tokens: a token stays, turns into any other, or is masked.

x_t is (B, L) int64 in 0..K; class K is the mask.  Log-probabilities are (B, L, K + 1) float32, the
mask last.  The Markov chain has T steps; step n of 0..T stands at time t = n / T, so the papers'
index i = 0..T-1 is n - 1.  Between these times the cumulative rates are interpolated linearly, and
any t > s can be stepped over exactly: a stride is not an approximation of the process.

Sources: Gu et al., "Vector Quantized Diffusion Model for Text-to-Image Synthesis", 2021,
arXiv 2111.14822; Tang et al., "Improved Vector Quantized Diffusion Models", 2022,
arXiv 2205.16007; absorbing and uniform chains: Austin et al., 2021, arXiv 2107.03006.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from everyway.contracts import Noise
from everyway.errors import UsageError

IMPOSSIBLE = -69.07755278982137
"""log(1e-30): what log-space gives an event that cannot happen, as in the published code."""

FLOOR = -70.0
"""Log-probabilities are kept in [FLOOR, 0]."""


@dataclass(frozen=True, kw_only=True)
class TokenRates:
    """Chance that a token still stays, and that it is masked, at steps 1 and T; linear between.

    What is missing to 1 is the chance that it was replaced, by each of the K tokens alike.
    """

    stay: tuple[float, float]
    mask: tuple[float, float]

    def __post_init__(self) -> None:
        for stay, mask in zip(self.stay, self.mask):
            if not (0 < stay <= 1 and 0 <= mask < 1 and stay + mask <= 1 + 1e-12):
                raise UsageError(
                    f"rates stay={stay:g}, mask={mask:g}: 0 < stay, 0 <= mask and a sum of at "
                    "most 1 are needed"
                )


RELEASED = TokenRates(stay=(0.99999, 9e-6), mask=(9e-6, 0.99999))
"""Of every released model: almost all is masked, almost nothing (1e-6) replaced."""

PAPER = TokenRates(stay=(0.99999, 9e-6), mask=(9e-6, 0.9))
"""The ends that the paper tells: masked 0.9, replaced 0.1."""

ABSORBING = TokenRates(stay=(0.99999, 9e-6), mask=(1e-5, 1 - 9e-6))
"""Masked or not; nothing is ever replaced."""

UNIFORM = TokenRates(stay=(0.99999, 9e-6), mask=(0.0, 0.0))
"""Replaced or not; nothing is ever masked."""


@dataclass(frozen=True, kw_only=True)
class MaskReplace:
    """contracts.Process for tokens.  The network predicts the clean token: logits (B, L, K).

    classes: K.  steps: T.  rates: the chain's.
    auxiliary: weight of the clean-token loss beside the bound; adaptive: falling with t.
    weights: of the bound at masked and at other positions.
    """

    classes: int
    steps: int = 100
    rates: TokenRates = RELEASED
    auxiliary: float = 5e-4
    adaptive: bool = True
    weights: tuple[float, float] = (1.0, 1.0)

    kernel = "tokens"
    flow_from = 1.0

    def __post_init__(self) -> None:
        if self.classes < 2 or self.steps < 2:
            raise UsageError(
                f"classes {self.classes} and steps {self.steps}: both must be 2 or more"
            )

    @property
    def mask(self) -> int:
        """The class of a masked token."""
        return self.classes

    @property
    def replaces(self) -> bool:
        """Whether a token can turn into another one."""
        return any(stay + mask < 1 - 1e-12 for stay, mask in zip(self.rates.stay, self.rates.mask))

    # -- the forward chain ----------------------------------------------------------------------

    def cumulative(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(stay, replaced by each token, masked) at t (B,), each (B,) float64."""
        stay, mask = (_between(table.to(t.device), t) for table in tables(self.rates, self.steps))
        return stay, ((1 - stay - mask) / self.classes).clamp(min=0), mask

    def stride(self, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same from s to a later t: stay, replaced and masked of what there was at s."""
        (stay_t, _, mask_t), (stay_s, _, mask_s) = self.cumulative(t), self.cumulative(s)
        stay = stay_t / stay_s
        mask = 1 - (1 - mask_t) / (1 - mask_s)
        return stay, ((1 - stay - mask) / self.classes).clamp(min=0), mask

    def forward_log(self, log_x: Tensor, rates: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """log of `rates` applied to log_x, both (B, L, K + 1): q(x_t | x_0) or q(x_t | x_s)."""
        stay, replaced, mask = (_log(rate) for rate in rates)
        tokens = torch.logaddexp(log_x[..., :-1] + stay, replaced)
        masked = torch.logaddexp(log_x[..., -1:] + _log(1 - rates[2]), mask)
        return torch.cat([tokens, masked], -1)

    def forward_from(self, x: Tensor, rates: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """`forward_log` of certain tokens x (B, L): all but two of the K + 1 numbers are alike."""
        stay, replaced, mask = (_log(rate) for rate in rates)
        kept, is_mask = _log(1 - rates[2]), (x == self.mask)[..., None]
        other = torch.logaddexp(IMPOSSIBLE + stay, replaced).expand(*x.shape, 1)
        same = torch.where(is_mask, torch.logaddexp(kept, mask), torch.logaddexp(stay, replaced))
        out = other.repeat(1, 1, self.classes + 1)
        out[..., -1:] = torch.logaddexp(IMPOSSIBLE + kept, mask)
        return out.scatter_(-1, x[..., None], same)

    def log_one_hot(self, x: Tensor) -> Tensor:
        """Tokens (B, L) -> log-probabilities (B, L, K + 1): 0, or IMPOSSIBLE."""
        out = torch.full((*x.shape, self.classes + 1), IMPOSSIBLE, device=x.device)
        return out.scatter_(-1, x[..., None], 0.0)

    def posterior(self, log_x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """log p(x_s | x_t) (B, L, K + 1), with log_x0 the clean estimate; s < t, each (B,).

        The sum over x_0 of p(x_0) q(x_t | x_s) q(x_s | x_0) / q(x_t | x_0), which needs K terms
        and not K^2, because q treats all tokens alike.
        """
        masked = (x_t == self.mask)[..., None]  # (B, L, 1)
        _, _, mask_t = self.cumulative(t)
        stay_s, replaced_s, mask_s = self.cumulative(s)
        # q is symmetric between tokens, so its column at x_t is its row applied to x_t
        given_x0 = self.forward_from(x_t, self.cumulative(t))[..., :-1]
        given_x0 = torch.where(masked, _log(mask_t), given_x0)
        stride = self.stride(t, s)
        given_xs = self.forward_from(x_t, stride)[..., :-1]
        given_xs = torch.where(masked, _log(stride[2]), given_xs)
        mask_given = torch.where(masked, 0.0, IMPOSSIBLE)  # the mask never turns back into a token

        weight = log_x0[..., :-1] - given_x0
        total = weight.logsumexp(-1, keepdim=True)
        tokens = torch.logaddexp(weight + _log(stay_s), total + _log(replaced_s)) + given_xs
        impossible = torch.full_like(total, IMPOSSIBLE) + _log(1 - mask_s)
        mask = torch.logaddexp(total + _log(mask_s), impossible) + mask_given
        made = torch.cat([tokens, mask], -1).clamp(FLOOR, 0)
        if not self.replaces:  # a token that is seen is certain, whatever the estimate says
            return torch.where(masked, made, self.log_one_hot(x_t))
        return made

    # -- contracts.Process ----------------------------------------------------------------------

    def draw(self, noise: Noise, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform (B, L, K + 1), drawn as (B, K + 1, L), the order of the published code."""
        batch, length = shape
        return noise.uniform(name, (batch, self.classes + 1, length)).transpose(1, 2)

    def prior(self, draw: Tensor) -> Tensor:
        """Tokens (B, L) at t = 1, as if the clean token were forgotten: masked or uniform."""
        one = torch.ones(1, dtype=torch.float64)
        stay, replaced, mask = (float(rate) for rate in self.cumulative(one))
        distribution = torch.full(
            (self.classes + 1,), replaced + stay / self.classes, dtype=torch.float64
        )
        distribution[-1] = mask
        return sample(distribution.log().clamp(min=-1e4).float().to(draw.device), draw)

    def corrupt(self, x0: Tensor, draw: Tensor, t: Tensor) -> Tensor:
        """x_t (B, L) from clean tokens x0 (B, L); at t = 0 exactly x0."""
        return sample(self.forward_from(x0, self.cumulative(t)), draw)

    def existing(self, t: Tensor) -> Tensor:
        """The step of the process at or above t, so that a uniform t draws each step alike."""
        return self._step(t) / self.steps

    def known(self, x0: Tensor, draw: Tensor, t: Tensor) -> Tensor:
        """Known tokens are seen as they are, at every time."""
        return x0

    def preview(self, clean: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L), the likeliest where they are masked still, and how sure each is in [0, 1],
        0 where it is masked."""
        masked = state == self.mask
        sure = clean.amax(-1).exp().masked_fill(masked, 0.0)
        return torch.where(masked, clean[..., :-1].argmax(-1), state), sure

    def flow(self, x_t: Tensor, clean: Tensor, t: float, s: float) -> Tensor:
        raise ValueError("tokens have no deterministic path; interpolate Gaussian states")

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t as it is."""
        return x_t

    def to_clean(self, raw: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(x_0 | x_t) (B, L, K + 1) from logits (B, L, K); a clean token is never the mask."""
        tokens = raw.double().log_softmax(-1).float().clamp(FLOOR, 0)
        return torch.nn.functional.pad(tokens, (0, 1), value=FLOOR)

    def combine(self, conditional: Tensor, unconditional: Tensor, w: Tensor) -> Tensor:
        """Guided log-probabilities: u + w (c - u) over the tokens, normalised.  w (B,).

        Source: Tang et al., 2022, where the posterior constraint leads to guidance in log space.
        """
        c, u = conditional[..., :-1], unconditional[..., :-1]
        mixed = u + w.to(u)[:, None, None] * (c - u)
        # summed class by class, in the order of the published code
        total = mixed.transpose(1, 2).contiguous().logsumexp(1)[..., None]
        mixed = (mixed - total).clamp(FLOOR, 0)
        return torch.nn.functional.pad(mixed, (0, 1), value=FLOOR)

    def loss(self, raw: Tensor, x0: Tensor, draw: Tensor, t: Tensor) -> Tensor:
        """T times the bound's term at t, plus the auxiliary loss, a token: (B,) float32.

        With t uniform over the T steps its mean is the variational bound.
        """
        parts = self.loss_parts(raw, x0, draw, t)
        index = self._step(t).clamp(min=1) - 1
        first = index == 0
        bound = torch.where(first, parts["decoder"], parts["kl"])
        auxiliary = torch.where(first, parts["decoder"], parts["auxiliary"])
        falling = 2 - index / self.steps if self.adaptive else torch.ones_like(t)
        total = bound + self.auxiliary * falling * auxiliary
        return (self.steps / x0.shape[1] * total).float()

    def loss_parts(self, raw: Tensor, x0: Tensor, draw: Tensor, t: Tensor) -> dict[str, Tensor]:
        """Sums over the positions, each (B,): kl to the true posterior, decoder, auxiliary.

        The network was shown `corrupt(x0, draw, t)`; the posterior is of the chain's step below t.
        """
        s = (self._step(t).clamp(min=1) - 1) / self.steps
        t = torch.where(t > 0, t, 1 / self.steps)  # at 0 nothing is learned, and all is finite
        x_t = self.corrupt(x0, draw, t)
        predicted = self.to_clean(raw, x_t, t)
        model = self.posterior(predicted, x_t, t, s)
        exact = self.posterior(self.log_one_hot(x0), x_t, t, s)
        at_mask, elsewhere = self.weights
        weight = torch.where(x_t == self.mask, at_mask, elsewhere)  # (B, L)
        kl = (exact.exp() * (exact - model)).sum(-1)
        missed, first = (-p.gather(-1, x0[..., None])[..., 0] for p in (predicted, model))
        return {
            "kl": (weight * kl).sum(-1),
            "decoder": first.sum(-1),
            "auxiliary": (weight * missed).sum(-1),
        }

    def _step(self, t: Tensor) -> Tensor:
        """The first step 0..T of the chain that is not below times t; float64."""
        return (t.double() * self.steps - 1e-6).ceil().clamp(0, self.steps)


def sample(log_p: Tensor, draw: Tensor) -> Tensor:
    """Classes (B, L) from log-probabilities (B, L, C) by the Gumbel maximum; draw uniform."""
    gumbel = -torch.log(-torch.log(draw + 1e-30) + 1e-30)
    return (log_p + gumbel).argmax(-1)


@lru_cache(maxsize=32)
def tables(rates: TokenRates, steps: int) -> tuple[Tensor, Tensor]:
    """(stay, mask) at steps 0..T, each (T + 1,) float64."""
    i = torch.arange(steps, dtype=torch.float64)

    def line(first: float, last: float, start: float) -> Tensor:
        values = i / (steps - 1) * (last - first) + first
        return torch.cat([torch.tensor([start], dtype=torch.float64), values])

    return line(*rates.stay, 1.0), line(*rates.mask, 0.0)


def _between(table: Tensor, t: Tensor) -> Tensor:
    """table (T + 1,) read at t (B,) in [0, 1]; exact on the steps of the process."""
    place = t.double() * (len(table) - 1)
    near = place.round()
    place = torch.where((place - near).abs() < 1e-6, near, place)
    low = place.floor().long().clamp(max=len(table) - 1)
    return torch.lerp(table[low], table[(low + 1).clamp(max=len(table) - 1)], place - low)


def _log(rate: Tensor) -> Tensor:
    """log of (B,) float64 rates as (B, 1, 1) float32; of 0 it is -inf."""
    return rate.log().float()[:, None, None]
