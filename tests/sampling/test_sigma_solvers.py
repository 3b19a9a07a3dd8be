"""Samplers of the sigma form: the layout of Karras et al., and the Runge-Kutta of eDiff-I."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_order import slope
from torch.testing import assert_close
from toys import ALONE, flow_map

from everyway.process.gaussian import X0, EDMPrecond, GaussianProcess
from everyway.process.schedules import CosineVP, EDMSigma, LinearVP, NoiseLevel
from everyway.sampling.gaussian_kernels import point
from everyway.sampling.loop import final, sample
from everyway.sampling.noise import StreamNoise
from everyway.sampling.solvers import kutta3_weights

GOLDEN = Path(__file__).parent.parent / "golden" / "ediffi" / "i_ediffi.npz"
T_END = 1e-10  # where sigma is sigma_min


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as found:
        return {k: torch.from_numpy(np.atleast_1d(v)) for k, v in found.items()}


def drawn(golden, schedule, steps, sampler):
    """(last progress, the sigmas) of the network F = tanh + 0.1 c_noise, from sigma 80."""
    process = GaussianProcess(schedule=schedule, parameterisation=EDMPrecond())
    level = NoiseLevel(schedule=schedule)

    def denoise(queries):
        (query,) = queries
        x, t = query.states["x"], query.times["x"]
        raw = torch.tanh(process.network_input(x, t)) + 0.1 * level(t)[:, None]
        return [{"x": process.to_clean(raw, x, t)}]

    run = sample(
        denoise,
        processes={"x": process},
        clocks={"x": "x"},
        task=ALONE,
        states={"x": golden["ode.x0"][None]},
        noise=StreamNoise(torch.Generator()),
        steps=steps,
        sampler=sampler,
        t_end=T_END,
    )
    seen = [*run]
    sigmas = [80.0, *(point(schedule, p.t).sigma for p in seen)]
    return seen[-1], torch.tensor(sigmas, dtype=torch.float64)


@pytest.mark.parametrize("sampler, calls", [("euler", 10), ("heun", 19)])
def test_layout_of_karras(golden, sampler, calls):
    last, sigmas = drawn(golden, EDMSigma(), 10, f"edm-{sampler}")
    assert last.calls == calls
    assert_close(sigmas, golden["ode.sigmas"], rtol=1e-8, atol=0)
    assert_close(last.states["x"][0], golden[f"ode.{sampler}"], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("steps, power", [(25, 6), (10, 3)])
def test_kutta3_as_published(golden, steps, power):
    """On the published grids, whose power is the schedule's rho."""
    last, sigmas = drawn(golden, EDMSigma(rho=power), steps, "kutta3")
    assert last.calls == 3 * steps
    own = f"kutta3.N{steps}.p{power}"
    assert_close(sigmas, golden[f"{own}.sigmas"], rtol=1e-8, atol=0)
    assert_close(last.states["x"][0], golden[f"{own}.x_end"], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "schedule, grid", [(EDMSigma(), "time"), (CosineVP(zero_terminal=False), "logsnr")]
)
def test_kutta3_is_of_third_order(schedule, grid):
    assert slope("kutta3", schedule, grid, steps=(96, 192)) == pytest.approx(3.0, abs=0.15)


@pytest.mark.parametrize("r", [0.3, 0.5, 0.6])
def test_weights_are_of_third_order(r):
    """The four conditions of third order, for any inner node; at a half they are Kutta's."""
    a32, b2, b3 = kutta3_weights(r)
    assert b2 * r + b3 == pytest.approx(1 / 2)
    assert b2 * r**2 + b3 == pytest.approx(1 / 3)
    assert b3 * a32 * r == pytest.approx(1 / 6)
    if r == 0.5:
        assert (a32, b2, b3) == pytest.approx((2, 4 / 6, 1 / 6))


def test_weights_near_two_thirds_are_of_second_order():
    a32, b2, b3 = kutta3_weights(2 / 3)
    assert (a32, b3) == (0, 0) and b2 * 2 / 3 == pytest.approx(1 / 2)


def test_two_schedules_keep_the_order():
    """The inner time is halfway for the first schedule alone; the other one is as exact."""
    schedules = {"x": LinearVP(), "y": CosineVP(zero_terminal=False)}
    std = 0.5

    def ideal(queries):
        (query,) = queries
        out = {}
        for name, x in query.states.items():
            alpha, sigma = (v[:, None] for v in schedules[name].alpha_sigma(query.times["x"]))
            out[name] = x * std**2 * alpha / (alpha**2 * std**2 + sigma**2)
        return [out]

    def error(steps):
        start = {name: torch.ones(1, 1, dtype=torch.float64) for name in schedules}
        run = sample(
            ideal,
            processes={
                n: GaussianProcess(schedule=s, parameterisation=X0) for n, s in schedules.items()
            },
            clocks=dict.fromkeys(schedules, "x"),
            task=ALONE,
            states=start,
            noise=StreamNoise(torch.Generator()),
            steps=steps,
            sampler="kutta3",
            grid="logsnr",
            t_end=0.05,
        )
        made = final(run).states
        exact = {n: float(flow_map(s, 0.0, std, 1.0, 1.0, 0.05)) for n, s in schedules.items()}
        return {n: abs(float(made[n]) - exact[n]) for n in schedules}

    few, many = error(60), error(120)
    assert all(few[name] / many[name] > 6.5 for name in schedules)  # third order is 8
