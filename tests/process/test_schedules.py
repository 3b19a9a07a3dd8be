"""Schedules: exact ends, inverses, and the published tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from everyway.process.schedules import (
    CosineVP,
    DiscreteVP,
    EDMSigma,
    LinearVP,
    Rectified,
    ZeroTerminal,
)
from everyway.process.times import (
    GRIDS,
    TWO_CLOCKS,
    lognormal_times,
    mixture_times,
    task_lines,
    uniform_times,
)
from everyway.sampling.noise import PerSampleNoise, StreamNoise

GOLDEN = Path(__file__).parent.parent / "golden" / "uvit"
ALL = [
    LinearVP(),
    DiscreteVP(),
    DiscreteVP(scaled=False, beta_start=1e-4, beta_end=0.02),
    CosineVP(),
    CosineVP(zero_terminal=False),
    ZeroTerminal(base=DiscreteVP()),
    Rectified(),
    EDMSigma(),
]


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_ends_and_inverse(schedule):
    alpha, sigma = schedule.alpha_sigma(torch.tensor([0.0, 0.5]))
    assert alpha.dtype == torch.float64
    assert (alpha[0], sigma[0]) == (1.0, 0.0)
    assert schedule.log_alpha(0.0) == 0.0 and schedule.lam(0.0) == float("inf")
    t = torch.linspace(0.002, 0.995, 200, dtype=torch.float64)
    alpha, sigma = schedule.alpha_sigma(t)
    lam = schedule.lam(t)
    assert (lam.diff() < 0).all()
    torch.testing.assert_close(lam, torch.log(alpha / sigma), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(schedule.t_of_lam(lam), t, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.log_alpha(t), alpha.log(), rtol=1e-9, atol=1e-12)


def test_terminal_signal():
    for schedule in (CosineVP(), ZeroTerminal(base=DiscreteVP()), Rectified()):
        assert [float(x) for x in schedule.alpha_sigma(1.0)] == [0.0, 1.0]
    assert float(CosineVP(zero_terminal=False).alpha_sigma(1.0)[0]) > 0
    assert float(EDMSigma().alpha_sigma(1.0)[1]) == pytest.approx(80.0)


@pytest.mark.parametrize("schedule", [LinearVP(), DiscreteVP()], ids=str)
def test_rate_is_the_derivative(schedule):
    t, h = torch.tensor([0.1234, 0.7777], dtype=torch.float64), 1e-6
    slope = -2 * (schedule.log_alpha(t + h) - schedule.log_alpha(t - h)) / (2 * h)
    torch.testing.assert_close(schedule.rate(t), slope, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="LinearVP"):
        CosineVP().rate(0.5)


def test_published_discrete_table():
    z, schedule = np.load(GOLDEN / "schedule_discrete.npz"), DiscreteVP()
    betas = schedule.betas().numpy()
    np.testing.assert_allclose(betas[:5], z["betas_first5"], rtol=0, atol=1e-14)
    np.testing.assert_allclose(betas[-5:], z["betas_last5"], rtol=0, atol=1e-14)
    np.testing.assert_allclose(betas[z["idx_n"] - 1], z["beta_at_n"], rtol=0, atol=1e-14)
    n = torch.arange(1, 1001, dtype=torch.float64) / 1000
    alpha, log_alpha = schedule.alpha_sigma(n)[0], schedule.log_alpha(n)
    for part, key in ((slice(5), "first5"), (slice(-5, None), "last5"), (z["idx_n"] - 1, "at_n")):
        cum = "cum_alpha_at_n" if key == "at_n" else f"alphas_cumprod_{key}"
        np.testing.assert_allclose(alpha[part] ** 2, z[cum], rtol=0, atol=1e-14)
        # theirs are float32 sums, which drift by 6.4e-7
        np.testing.assert_allclose(log_alpha[part], z[f"log_alpha_f32_{key}"], rtol=0, atol=1e-6)
    alpha, sigma = schedule.alpha_sigma(torch.from_numpy(z["idx_n"]).double() / 1000)
    np.testing.assert_allclose(sigma**2, z["cum_beta_at_n"], rtol=0, atol=1e-14)
    t = torch.from_numpy(z["t_query"]).double()
    alpha, sigma = schedule.alpha_sigma(t)
    np.testing.assert_allclose(schedule.log_alpha(t), z["log_mean_coeff"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(alpha, z["alpha"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(sigma, z["sigma"], rtol=0, atol=2e-6)
    np.testing.assert_allclose(schedule.lam(t), z["lambda"], rtol=0, atol=5e-5)
    inverse = schedule.t_of_lam(torch.from_numpy(z["lambda_query"]).double())
    np.testing.assert_allclose(inverse, z["inverse_lambda"], rtol=0, atol=5e-6)


def test_published_linear_values():
    """The reference is float32 and cancels at the small end, hence the relative bounds."""
    z, schedule = np.load(GOLDEN / "schedule_vp_linear.npz"), LinearVP()
    t = torch.from_numpy(z["t_query"]).double()
    alpha, sigma = schedule.alpha_sigma(t)
    np.testing.assert_allclose(schedule.log_alpha(t), z["log_mean_coeff"], rtol=1e-6)
    np.testing.assert_allclose(sigma, z["sigma"], rtol=2e-3)
    np.testing.assert_allclose(sigma[2:], z["sigma"][2:], rtol=1e-5)
    np.testing.assert_allclose(schedule.lam(t), z["lambda"], rtol=0, atol=2e-3)
    np.testing.assert_allclose(alpha**2, z["sde_cum_alpha"], rtol=1e-6)
    np.testing.assert_allclose(sigma**2, z["sde_cum_beta"], rtol=3e-3)
    np.testing.assert_allclose(sigma[2:] ** 2, z["sde_cum_beta"][2:], rtol=2e-5)
    np.testing.assert_allclose((alpha / sigma) ** 2, z["sde_snr"], rtol=3e-3)
    np.testing.assert_allclose((alpha / sigma)[2:] ** 2, z["sde_snr"][2:], rtol=2e-5)
    np.testing.assert_allclose(schedule.rate(t), z["sde_beta_t"], rtol=1e-6)
    inverse = schedule.t_of_lam(torch.from_numpy(z["lambda"]).double())
    np.testing.assert_allclose(inverse, z["inverse_lambda_of_lambda"], rtol=0, atol=5e-7)


def test_training_times():
    clocks, noise = ("image", "text"), StreamNoise(torch.Generator().manual_seed(0))
    uniform = uniform_times(noise, clocks, 4000)
    assert uniform["image"].dtype == torch.float64
    assert abs(float(uniform["image"].mean()) - 0.5) < 0.03
    assert not torch.equal(uniform["image"], uniform["text"])
    mixed = mixture_times(noise, clocks, 20000, shift=4.0)
    image, text = mixed["image"], mixed["text"]
    shares = [text == 0, image == 0, image == text, text == 1, image == 1]
    for mask, share in zip(shares, (0.53, 0.32, 0.06, 0.03, 0.03)):
        assert float(mask.double().mean()) == pytest.approx(share, abs=0.012)
    free = image[text == 0]  # 4 u / (1 + 3 u) for uniform u, whose mean is 4/3 - 4/9 log 4
    assert float(free.mean()) == pytest.approx(4 / 3 - 4 / 9 * math.log(4), abs=0.01)
    plain = mixture_times(noise, clocks, 20000)
    assert float(plain["image"][plain["text"] == 0].mean()) == pytest.approx(0.5, abs=0.01)
    log = lognormal_times(noise, ("image",), 20000, schedule=EDMSigma())["image"]
    log_sigma = -EDMSigma().lam(log)
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=0.05)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.05)
    given = mixture_times(noise, clocks, 20000, task_lines(to_image=0.8, to_text=0.1))
    assert float((given["text"] == 0).double().mean()) == pytest.approx(0.8, abs=0.012)
    assert float((given["image"] == 0).double().mean()) == pytest.approx(0.1, abs=0.012)
    alone = mixture_times(noise, clocks, 20000, task_lines(0.2, 0.1, 0.1, image_alone=0.4))
    assert float((alone["text"] == 1).double().mean()) == pytest.approx(0.4, abs=0.012)
    assert float((alone["image"] == 1).double().mean()) == pytest.approx(0.2, abs=0.012)
    with pytest.raises(ValueError, match="add to"):
        mixture_times(noise, clocks, 4, TWO_CLOCKS[:2])
    with pytest.raises(ValueError, match="unknown clocks"):
        mixture_times(noise, ("image",), 4)
    assert mixture_times(PerSampleNoise([1, 2]), clocks, 2)["image"].shape == (2,)


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("schedule", [CosineVP(), DiscreteVP(), EDMSigma()], ids=str)
def test_grids_fall_from_one(name, schedule):
    times = GRIDS[name](schedule, 7, 1.0, 0.01)
    assert times.shape == (8,) and times.dtype == torch.float64
    assert times[0] == 1 and float(times[-1]) == pytest.approx(0.01)
    assert (times.diff() < 0).all()
