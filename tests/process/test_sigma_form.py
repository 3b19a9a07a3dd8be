"""The sigma form of eDiff-I, on numbers computed from its published formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from everyway.process.gaussian import EDMPrecond, GaussianProcess
from everyway.process.schedules import EDMSigma, NoiseLevel
from everyway.process.times import Within, lognormal_times

GOLDEN = Path(__file__).parent.parent / "golden" / "ediffi" / "i_ediffi.npz"
SCHEDULE = EDMSigma(sigma_min=1e-4)
PRECOND = EDMPrecond(sigma_data=0.5)
CLOSE = dict(rtol=1e-9, atol=1e-12)


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as found:
        return {k: torch.from_numpy(np.atleast_1d(v)) for k, v in found.items()}


def times(sigma):
    return SCHEDULE.t_of_lam(-torch.log(sigma))


def test_preconditioning(golden):
    """D of F = 0 and x = 1 is c_skip, of F = 1 and x = 0 it is c_out."""
    t = times(golden["sigma"])
    process = GaussianProcess(schedule=SCHEDULE, parameterisation=PRECOND)
    one = torch.ones(6, 1, dtype=torch.float64)
    shown = {
        "c_skip": process.to_clean(0 * one, one, t),
        "c_out": process.to_clean(one, 0 * one, t),
        "c_in_paper_and_edm": process.network_input(one, t),
    }
    for name, value in shown.items():
        assert_close(value[:, 0], golden[name], **CLOSE)


@pytest.mark.parametrize("name, scale", [("ln_over_4", 0.25), ("ln", 1.0)])
def test_noise_level(golden, name, scale):
    level = NoiseLevel(schedule=SCHEDULE, scale=scale)
    assert_close(level(times(golden["sigma"])), golden[f"c_noise_{name}"], **CLOSE)
    assert level(torch.zeros(1, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("name, scale", [("ln4", 0.25), ("ln", 1.0)])
def test_denoised(golden, name, scale):
    t, x = times(golden["sigma"]), golden["x"]
    process = GaussianProcess(schedule=SCHEDULE, parameterisation=PRECOND)
    c_noise = NoiseLevel(schedule=SCHEDULE, scale=scale)(t)
    raw = torch.tanh(process.network_input(x, t)) + 0.1 * c_noise[:, None]
    assert_close(process.to_clean(raw, x, t), golden[f"D_toy.{name}"], **CLOSE)


def test_loss_has_the_published_weight(golden):
    """The plain mean square on the raw output is lambda (D - x_0)^2."""
    t = times(golden["sigma"])
    process = GaussianProcess(schedule=SCHEDULE, parameterisation=PRECOND)
    generator = torch.Generator().manual_seed(0)
    raw, x0, draw = torch.randn(3, 6, 50, generator=generator, dtype=torch.float64)
    clean = process.to_clean(raw, process.corrupt(x0, draw, t), t)
    weighted = golden["loss_weight_lambda"] * (clean - x0).square().mean(1)
    assert_close(process.loss(raw, x0, draw, t).double(), weighted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma_min, name", [(0.002, "smin0.002"), (0.0005, "smin0.0005")])
def test_karras_grid_is_equal_steps_of_time(golden, sigma_min, name):
    t = torch.linspace(1, 0, 25, dtype=torch.float64).clamp(min=1e-12)
    _, sigma = EDMSigma(sigma_min=sigma_min).alpha_sigma(t)
    assert_close(sigma, golden[f"karras.N25.{name}.sigmas"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name, low, high",
    [
        ("E0_0", 0, 1),
        ("E1_0", 0, 1 / 2),
        ("E1_1", 1 / 2, 1),
        ("E3_0", 0, 1 / 8),
        ("E9_511", 511 / 512, 1),
        ("mid_C", 1 / 8, 511 / 512),
    ],
)
def test_lognormal_noise_of_an_interval(golden, name, low, high):
    class Given:
        def uniform(self, name, shape):
            return golden["u"]

    drawn = lognormal_times(
        Within(noise=Given(), low=low, high=high), ("image",), 8, schedule=SCHEDULE
    )
    _, sigma = SCHEDULE.alpha_sigma(drawn["image"])
    assert_close(sigma, golden[f"sample.{name}"], rtol=1e-8, atol=0)
