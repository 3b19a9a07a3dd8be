"""Every sampler reaches the distribution it should, with exact denoisers."""

from __future__ import annotations

import pytest
import torch
from toys import ALONE, finite, gaussian

from everyway.process.gaussian import X0, GaussianProcess
from everyway.process.schedules import CosineVP, EDMSigma, LinearVP, Rectified, ZeroTerminal
from everyway.sampling.loop import final, sample
from everyway.sampling.noise import StreamNoise
from everyway.sampling.solvers import SAMPLERS, ddim
from everyway.tasks import GENERATE, Task

MEAN, STD = 0.5, 0.4
ANCESTRAL = ("ddpm", "ancestral", "purity", "fast-stride", "em-sde", "em-ode")
STEPS = {"euler": 200, "ddim": 200, "edm-euler": 200} | dict.fromkeys(ANCESTRAL, 400)


def run(denoise, process, sampler, steps, shape, seed=0, **options):
    return final(
        sample(
            denoise,
            processes={"x": process},
            clocks={"x": "x"},
            task=ALONE,
            states={},
            shapes={"x": shape},
            noise=StreamNoise(torch.Generator().manual_seed(seed)),
            steps=steps,
            sampler=sampler,
            **options,
        )
    )


def check_distribution(process, sampler, steps, **options):
    x = run(gaussian(process, MEAN, STD), process, sampler, steps, (20000, 1), **options)
    x = x.states["x"]
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.std()) == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gaussian_law(name):
    process = GaussianProcess(schedule=LinearVP(), parameterisation=X0)
    check_distribution(process, name, STEPS.get(name, 60))


@pytest.mark.parametrize("name", [n for n in SAMPLERS if not n.startswith("em-")])
@pytest.mark.parametrize(
    "schedule", [CosineVP(), Rectified(), EDMSigma(), ZeroTerminal(base=LinearVP())], ids=str
)
def test_gaussian_law_on_other_schedules(name, schedule):
    """Also where log-SNR is infinite at the start."""
    process = GaussianProcess(schedule=schedule, parameterisation=X0)
    check_distribution(process, name, STEPS.get(name, 60))


@pytest.mark.parametrize("name", ["dpm++2m", "dpm++3m", "heun", "euler", "ddpm"])
def test_last_step_to_exactly_clean(name):
    process = GaussianProcess(schedule=CosineVP(), parameterisation=X0)
    check_distribution(process, name, 400 if name == "ddpm" else 100, t_end=0.0)


def test_ddim_between():
    process = GaussianProcess(schedule=LinearVP(), parameterisation=X0)
    check_distribution(process, ddim(0.5), 300)


@pytest.mark.parametrize("name", [n for n in SAMPLERS if not n.startswith("em-")])
def test_finite_data(name):
    """Four points are reached, each as often as the others, and nothing in between."""
    process = GaussianProcess(schedule=CosineVP(), parameterisation=X0)
    points = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    denoise = finite({"x": process}, {"x": points})
    x = run(denoise, process, name, 100, (4000, 2)).states["x"]
    gap, nearest = torch.cdist(x, points).min(1)
    assert float(gap.quantile(0.99)) < 0.02
    share = torch.bincount(nearest, minlength=4) / 4000
    assert float((share - 0.25).abs().max()) < 0.03


def test_finite_data_stochastic_equation():
    process = GaussianProcess(schedule=LinearVP(), parameterisation=X0)
    points = torch.tensor([[1.0], [-1.0]])
    denoise = finite({"x": process}, {"x": points})
    for name in ("em-sde", "em-ode"):
        x = run(denoise, process, name, 300, (3000, 1)).states["x"]
        assert float((x.abs() - 1).abs().quantile(0.99)) < 0.05
        assert float((x > 0).double().mean()) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("name", [n for n in SAMPLERS if not n.startswith("em-")])
@pytest.mark.parametrize("schedule", [CosineVP(), Rectified()], ids=str)
def test_two_schedules_one_of_which_begins_without_signal(name, schedule):
    """Also where the first one, which lays the steps, has some."""
    processes = {
        "x": GaussianProcess(schedule=LinearVP(), parameterisation=X0),
        "y": GaussianProcess(schedule=schedule, parameterisation=X0),
    }
    points, clocks = torch.tensor([[-1.0], [1.0]]), {"x": "c", "y": "c"}
    states = final(
        sample(
            finite(processes, {"x": points, "y": points}, clocks),
            processes=processes,
            clocks=clocks,
            task=Task(name="one", roles={"c": GENERATE}),
            states={},
            shapes={"x": (64, 1), "y": (64, 1)},
            noise=StreamNoise(torch.Generator().manual_seed(0)),
            steps=12,
            sampler=name,
        )
    ).states
    assert all(float((x.abs() - 1).abs().mean()) < 0.05 for x in states.values())
    assert torch.equal(states["x"].sign(), states["y"].sign())
