"""Every process and every way to draw times is reached from plain data."""

from __future__ import annotations

import json

import pytest
import torch

from everyway.objective import losses
from everyway.process.config import PREDICTIONS, SCHEDULES, gaussian
from everyway.process.gaussian import X0, EDMPrecond
from everyway.process.schedules import CosineVP, EDMSigma, LinearVP
from everyway.process.times import Within, lognormal_times, mixture_times, uniform_times
from everyway.process.training_times import Knots, LogNormal, Tasks, Uniform
from everyway.sampling.loop import final, sample
from everyway.sampling.noise import PerSampleNoise, StreamNoise
from everyway.settings import ConfigError
from everyway.systems import system_module, uvit
from everyway.train.config import resolve
from everyway.train.sources import Data

NETWORK = uvit.network(size=4, patch=2, channels=3, dim=16, depth=2, heads=2).to_json()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_system_on_every_schedule_trains_and_samples(name):
    """Named in its config, and kept there as it was given."""
    config = uvit.UViTSystemConfig(network=NETWORK, schedule=name, sampler="dpm++2m", steps=4)
    system = uvit.build(json.loads(json.dumps(uvit.build(config).config)))
    assert system.config["schedule"] == name
    noise = PerSampleNoise([0, 1, 2])
    times = uniform_times(noise, ("image",), 3)
    found = losses(system, {"image": torch.randn(3, 3, 4, 4)}, times, noise)["image"]
    assert found.isfinite().all() and (found > 0).all()
    run = sample(
        system.denoiser(),
        processes=system.processes,
        clocks=system.clocks,
        task=system.tasks["image"],
        states={},
        shapes=system.shapes(2),
        noise=PerSampleNoise([0, 1]),
        steps=4,
    )
    assert final(run).states["image"].isfinite().all()


def test_settings_of_a_schedule_and_of_what_is_predicted():
    process = gaussian({"name": "edm", "sigma_max": 20.0, "sigma_data": 0.3})
    assert process.schedule == EDMSigma(sigma_max=20.0)
    assert process.parameterisation == EDMPrecond(sigma_data=0.3)
    assert gaussian({"name": "linear", "predicts": "x0"}).parameterisation == X0
    assert gaussian("linear").schedule == LinearVP() and gaussian("cosine").schedule == CosineVP()
    for wrong, said in (
        ("sine", "schedule 'sine' is unknown; choose one of linear"),
        ({"predicts": "v"}, "schedule '' is unknown"),
        ({"name": "linear", "predicts": "noise"}, f"choose one of {', '.join(PREDICTIONS)}"),
        ({"name": "linear", "sigma_max": 3.0}, "schedule 'linear' with 'eps'"),
        ({"name": "flow", "sigma_data": 1.0}, "schedule 'flow' with 'flow'"),
        ({"name": "cosine", "predicts": "eps"}, "EPS cannot be used with CosineVP"),
        ({"name": "linear", "predicts": "edm"}, "EDMPrecond cannot be used"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            gaussian(wrong)
        assert "\n" not in str(caught.value)


def noise(seed: int = 0) -> StreamNoise:
    return StreamNoise(torch.Generator().manual_seed(seed))


def test_log_normal_times():
    schedule = EDMSigma()
    t = lognormal_times(noise(), ("x",), 40_000, schedule=schedule)["x"]
    log_sigma = -schedule.lam(t)
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=0.03)
    assert float(log_sigma.std()) == pytest.approx(1.2, abs=0.03)


def test_an_expert_draws_its_own_share_of_the_times():
    """Two halves of a distribution have no time in common, and are the whole of it together."""
    schedule = EDMSigma()
    low, high = (
        lognormal_times(Within(noise=noise(k), low=a, high=b), ("x",), 20_000, schedule=schedule)
        for k, (a, b) in enumerate(((0.0, 0.5), (0.5, 1.0)))
    )
    assert float(low["x"].max()) <= float(high["x"].min()) + 1e-9
    log_sigma = -schedule.lam(torch.cat([low["x"], high["x"]]))
    assert float(log_sigma.mean()) == pytest.approx(-1.2, abs=0.03)
    t = uniform_times(Within(noise=noise(), low=0.25, high=0.5), ("x", "y"), 1000)
    assert all(0.25 <= float(v.min()) and float(v.max()) < 0.5 for v in t.values())
    lines = mixture_times(Within(noise=noise(), low=0.9, high=1.0), ("image", "text"), 4000)
    assert float((lines["text"] == 0).double().mean()) == pytest.approx(0.53, abs=0.03)
    with pytest.raises(ValueError, match="give 0 <= low < high <= 1"):
        Within(noise=noise(), low=0.5, high=0.5)


@pytest.mark.parametrize("distribution", [Uniform, Knots, LogNormal, Tasks])
def test_a_training_may_keep_to_an_interval_of_noise(distribution):
    """All of the times are there unless told; the two parts of an interval have none in common."""
    clocks = dict.fromkeys(("image", "text"), gaussian("edm"))
    whole, low, high = (
        distribution(**given).draw(noise(), clocks, 500)
        for given in ({}, {"high": 0.4}, {"low": 0.4})
    )
    plain = distribution()._drawn(noise(), clocks, 500)
    assert all(torch.equal(whole[k], plain[k]) for k in clocks)
    free = (0 < whole["image"]) & (whole["image"] < 1)
    assert float(low["image"][free].max()) <= float(high["image"][free].min()) + 1e-9


@pytest.mark.parametrize(("system", "preset"), [("unidiffuser", "nano"), ("uvit", "nano")])
def test_schedules_and_intervals_are_settings_of_a_training(system, preset):
    given = {"system": system, "times": "uniform", "high": "0.5"}
    for schedule in ("edm", "flow", {"name": "zero-terminal", "steps": 10}):
        config = resolve(preset, given | {"schedule": schedule})
        assert config.model.times.high == 0.5
        made = config.model.system(Words("shapes", 0))
        assert made.processes["image"] == gaussian(schedule) == build(made).processes["image"]
    with pytest.raises(ConfigError, match="schedule 'odd' is unknown; choose one of linear"):
        resolve(preset, given | {"schedule": "odd"})
    with pytest.raises(ConfigError, match="low is 0.7 and high 0.5; give low < high"):
        resolve(preset, given | {"low": "0.7"})


class Words(Data):
    """Data of two words."""

    words = ("blue", "red")


def build(made):
    return system_module(made.name).build(json.loads(json.dumps(made.config)))
