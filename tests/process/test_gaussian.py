"""The Gaussian process: limits, and every prediction gives the clean state back."""

from __future__ import annotations

import pytest
import torch

from everyway.process.gaussian import EPS, FLOW, X0, EDMPrecond, GaussianProcess, V
from everyway.process.schedules import CosineVP, DiscreteVP, EDMSigma, LinearVP, Rectified
from everyway.sampling.noise import StreamNoise

PAIRS = [
    (LinearVP(), EPS),
    (DiscreteVP(), EPS),
    (CosineVP(), V),
    (CosineVP(), X0),
    (Rectified(), FLOW),
    (Rectified(), V),
    (EDMSigma(), EDMPrecond(sigma_data=0.5)),
    (EDMSigma(), EPS),
]


def make(schedule, parameterisation):
    process = GaussianProcess(schedule=schedule, parameterisation=parameterisation)
    noise = StreamNoise(torch.Generator().manual_seed(0))
    x0 = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    return process, x0, process.draw(noise, "x", tuple(x0.shape))


@pytest.mark.parametrize("schedule, parameterisation", PAIRS)
def test_round_trip(schedule, parameterisation):
    process, x0, draw = make(schedule, parameterisation)
    x0, draw = x0.double(), draw.double()
    t = torch.tensor([0.01, 0.2, 0.5, 0.8, 0.97], dtype=torch.float64)
    x_t = process.corrupt(x0, draw, t)
    alpha, sigma = (x.reshape(-1, 1, 1) for x in schedule.alpha_sigma(t))
    torch.testing.assert_close(x_t, alpha * x0 + sigma * draw)
    raw = parameterisation.target(x0, draw, alpha, sigma)
    torch.testing.assert_close(process.to_clean(raw, x_t, t), x0, rtol=0, atol=1e-9)
    loss = process.loss(raw, x0, draw, t)
    assert loss.shape == (5,) and loss.dtype == torch.float32 and float(loss.max()) < 1e-12
    off = process.loss(raw + 0.5, x0, draw, t)
    torch.testing.assert_close(off, torch.full((5,), 0.25))


@pytest.mark.parametrize("schedule, parameterisation", PAIRS)
def test_limits(schedule, parameterisation):
    process, x0, draw = make(schedule, parameterisation)
    zero = torch.zeros(5, dtype=torch.float64)
    assert torch.equal(process.corrupt(x0, draw, zero), x0)
    assert torch.isfinite(process.loss(torch.zeros_like(x0), x0, draw, zero)).all()
    if parameterisation is not X0:  # there the network is asked for the state itself
        assert torch.equal(process.to_clean(draw, x0, zero), x0)
    one = torch.ones(5, dtype=torch.float64)
    last = process.corrupt(x0, draw, one)
    alpha, sigma = (float(x) for x in schedule.alpha_sigma(1.0))
    torch.testing.assert_close(last, alpha * x0 + sigma * draw)
    assert torch.isfinite(process.to_clean(draw, last, one)).all()


def test_half_precision_is_raised():
    process, x0, draw = make(DiscreteVP(), EPS)
    t = torch.full((5,), 0.3, dtype=torch.float64)
    assert process.corrupt(x0.half(), draw, t).dtype == torch.float32
    assert process.to_clean(draw.bfloat16(), x0.bfloat16(), t).dtype == torch.float32


@pytest.mark.parametrize("schedule", [CosineVP(), Rectified()])
def test_noise_prediction_without_terminal_signal_is_refused(schedule):
    with pytest.raises(ValueError, match="EPS cannot be used with"):
        GaussianProcess(schedule=schedule, parameterisation=EPS)


def test_edm():
    with pytest.raises(ValueError, match="EDMSigma"):
        GaussianProcess(schedule=LinearVP(), parameterisation=EDMPrecond())
    process, x0, draw = make(EDMSigma(), EDMPrecond(sigma_data=0.5))
    one = torch.ones(5, dtype=torch.float64)
    assert torch.equal(process.prior(draw), draw * 80.0)
    shown = process.network_input(process.corrupt(0.5 * x0, draw, one), one)
    assert float(shown.std()) == pytest.approx(1.0, abs=0.2)
    plain, x0, draw = make(CosineVP(), V)
    assert torch.equal(plain.network_input(x0, one), x0) and torch.equal(plain.prior(draw), draw)
