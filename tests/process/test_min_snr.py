"""Min-SNR weights: what the paper states for each prediction, and one error for all of them."""

from __future__ import annotations

import pytest
import torch

from everyway.process.gaussian import EPS, FLOW, X0, EDMPrecond, GaussianProcess, V
from everyway.process.schedules import CosineVP, EDMSigma, LinearVP, Rectified

GAMMA = 5.0
T = torch.tensor([0.05, 0.2, 0.5, 0.8, 0.99], dtype=torch.float64)


def snr(schedule) -> torch.Tensor:
    alpha, sigma = schedule.alpha_sigma(T)
    return (alpha / sigma) ** 2


def weight(schedule, prediction) -> torch.Tensor:
    return GaussianProcess(schedule=schedule, parameterisation=prediction).min_snr(T, GAMMA)


def test_weights_are_those_of_the_paper():
    """Hang et al., 2023: min(SNR, gamma), over SNR for noise and over SNR + 1 for velocity."""
    schedule = LinearVP()
    ratio = snr(schedule)
    capped = ratio.clamp(max=GAMMA)
    assert (ratio > GAMMA).any() and (ratio < GAMMA).any()
    for prediction, wanted in ((X0, capped), (EPS, capped / ratio), (V, capped / (ratio + 1))):
        torch.testing.assert_close(weight(schedule, prediction), wanted, rtol=1e-9, atol=0)


PREDICTIONS = [
    (LinearVP(), EPS),
    (CosineVP(), V),
    (Rectified(), FLOW),
    (EDMSigma(), EDMPrecond()),
    (LinearVP(), X0),
]


@pytest.mark.parametrize("schedule, prediction", PREDICTIONS)
def test_the_weighted_loss_is_of_the_clean_estimate_whatever_is_predicted(schedule, prediction):
    process = GaussianProcess(schedule=schedule, parameterisation=prediction)
    source = torch.Generator().manual_seed(0)
    x0, draw, raw = (
        torch.randn(len(T), 3, 4, generator=source, dtype=torch.float64) for _ in range(3)
    )
    x_t = process.corrupt(x0, draw, T)
    error = (process.to_clean(raw, x_t, T) - x0).square().flatten(1).mean(1)
    found = process.loss(raw, x0, draw, T) * process.min_snr(T, GAMMA)
    wanted = snr(schedule).clamp(max=GAMMA) * error
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)


def test_pure_noise_weighs_nothing():
    process = GaussianProcess(schedule=CosineVP(), parameterisation=V)
    assert float(process.min_snr(torch.tensor([1.0], dtype=torch.float64), GAMMA)) == 0.0
