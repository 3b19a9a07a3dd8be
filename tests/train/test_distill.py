"""A student of few steps: what it is taught is exactly what its teacher does, and it learns it."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from everyway.generate import load
from everyway.guidance import guided
from everyway.process.config import gaussian
from everyway.sampling.loop import final, sample
from everyway.train import train
from everyway.train.config import ConfigError, resolve
from everyway.train.distill import aims, leading, noise_in, stage, untaught

SMALL = {"teacher": "nano", "data": "shapes", "cache": "256", "batch": "16", "log_every": "1",
         "precision": "fp32"}  # fmt: skip


def drawn(system, seed):
    """Noise (2, ...) of every modality."""
    source = torch.Generator().manual_seed(seed)
    return {n: torch.randn((2, *m.shape), generator=source) for n, m in system.modalities.items()}


def steps_of_the_loop(system, task, clean, draws, steps):
    """What the sampling loop makes of the same noise, with guidance."""
    denoise = guided(
        system.denoiser(),
        task,
        system.clocks,
        system.guidance,
        lambda name, shape: draws[name],
        processes=system.processes,
    )
    noise = SimpleNamespace(normal=lambda name, shape: draws[name.removeprefix("absent:")])
    given = {n: clean[n] for n, clock in system.clocks.items() if clock in task.given}
    run = sample(
        denoise,
        processes=system.processes,
        clocks=system.clocks,
        task=task,
        states=given,
        shapes=system.shapes(2),
        noise=noise,
        steps=steps,
        sampler="ddim",
    )
    return final(run).states


@pytest.mark.parametrize("name", ["text-to-image", "image-to-text", "joint", "image", "text"])
def test_one_step_of_the_student_ends_where_the_guided_teacher_does(nano, name):
    system, task = nano.system, nano.system.tasks[name]
    clean, draws = drawn(system, 1), drawn(system, 2)
    ends = torch.ones(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    part = stage(system, task, torch.arange(2), clean, draws, {}, *ends)
    (made,) = aims(system, [part], 4)
    ended = steps_of_the_loop(system, task, clean, draws, 4)
    assert made.keys() == ended.keys()
    for modality, state in ended.items():
        assert_close(made[modality], state, rtol=0, atol=2e-4)


def test_of_gaussian_data_the_student_is_taught_the_exact_map():
    """Data N(0, 0.4^2): the flow from t to s multiplies a state by the ratio of the spreads."""
    process, spread = gaussian("cosine"), 0.4

    def std(t):
        alpha, sigma = process.schedule.alpha_sigma(t)
        return ((alpha * spread) ** 2 + sigma**2).sqrt()

    def best(x, t):  # E[x_0 | x_t]
        return process.schedule.alpha_sigma(t)[0] * spread**2 / std(t) ** 2 * x

    t, s = torch.tensor([1.0, 0.5]).double(), torch.tensor([0.5, 0.0]).double()
    begin = torch.randn(2, 1).double()
    x, steps = begin, 4000
    for k in range(steps):
        at, to = t + (s - t) * k / steps, t + (s - t) * (k + 1) / steps
        clean = best(x[:, 0], at)[:, None]
        x = process.corrupt(clean, noise_in(process, x, clean, at), to)
    assert_close(x, begin * (std(s) / std(t))[:, None], rtol=0, atol=1e-3)
    aim = leading(process, (begin, t), (x, s))
    assert_close(process.corrupt(aim, noise_in(process, begin, aim, t), s), x)


def test_the_student_learns_and_draws_in_its_steps_without_guidance(tmp_path):
    own = {"steps": "60", "student_steps": "2", "teacher_steps": "4", "lr": "3e-3", "cache": "512"}
    told = []
    train(resolve("distill", SMALL | own, out=str(tmp_path)), note=told.append)
    assert "encoded 512 of 512 samples" in told
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    first, last = ([r["image"] for r in part] for part in (log[:10], log[-10:]))
    assert sum(last) < 0.7 * sum(first)
    student = load(tmp_path).system
    assert (student.sampler, student.guidance, student.steps) == ("ddim", 1.0, 2)
    (result,) = load(tmp_path).generate(kind="text-to-image", text="a red circle")
    assert result.metadata["forwards"] == 2
    metadata = load(tmp_path).metadata
    assert metadata["init"] == "nano" and metadata["history"][-1]["steps"] == 60


def test_an_interrupted_distillation_goes_on_as_if_it_had_not_been(tmp_path):
    for steps, name in (("4", "whole"), ("2", "halves"), ("4", "halves")):
        own = {"steps": steps, "cooldown": "0"}
        train(resolve("distill", SMALL | own, out=str(tmp_path / name)))
    one, other = (load_file(tmp_path / n / "state.safetensors") for n in ("whole", "halves"))
    assert all(torch.equal(one[k], other[k]) for k in one.keys() - {"sha256"})


def test_a_network_that_sees_no_noise_at_the_start_is_shown_it(nano):
    faded = gaussian("cosine-x0")
    modalities = {n: replace(m, process=faded) for n, m in nano.system.modalities.items()}
    config = {**nano.system.config, "schedule": "cosine-x0"}
    teacher = replace(nano.system, modalities=modalities, config=config)
    process = untaught(teacher, 4).processes["image"]
    x, times = torch.ones(3, 1), torch.tensor([1.0, 0.75, 0.25]).double()
    assert faded.network_input(x, times)[0] == 0
    shown = process.network_input(x, times)
    assert_close(shown[0], shown[1])
    assert torch.equal(shown[1:], faded.network_input(x, times)[1:])


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"teacher_steps": "6"}, "teacher_steps is 6; give a multiple of student_steps, 8 or more"),
        ({"teacher_steps": "4"}, "give a multiple of student_steps, 8 or more"),
        ({"drop": "0.1"}, "there is no setting 'drop'"),
        ({"teacher": "mini-vq"}, "a vq_diffusion cannot be a teacher"),
    ],
)
def test_what_cannot_be_taught_is_refused(tmp_path, overrides, said):
    with pytest.raises(ConfigError, match=said):
        train(resolve("distill", SMALL | overrides, out=str(tmp_path)))
