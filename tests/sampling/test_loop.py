"""The loop: seeds, several modalities, roles, guidance, and its errors."""

from __future__ import annotations

import pytest
import torch
from toys import ALONE, finite

from everyway.contracts import Query
from everyway.guidance import branches, combine, guided
from everyway.process.gaussian import EPS, X0, GaussianProcess
from everyway.process.schedules import CosineVP, DiscreteVP, LinearVP
from everyway.sampling.loop import absent_states, final, sample
from everyway.sampling.noise import PerSampleNoise, StreamNoise
from everyway.sampling.solvers import SAMPLERS, fast_orders
from everyway.tasks import (
    IMAGE_ALONE,
    IMAGE_TO_TEXT,
    JOINT,
    TEXT_TO_IMAGE,
    Task,
    given_noisy,
)

COSINE = GaussianProcess(schedule=CosineVP(), parameterisation=X0)
LINEAR = GaussianProcess(schedule=LinearVP(), parameterisation=X0)
PROCESSES = {"image": COSINE, "embed": COSINE, "text": LINEAR}
CLOCKS = {"image": "image", "embed": "image", "text": "text"}
POINTS = {
    "image": torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]),
    "embed": torch.tensor([[0.5], [0.0], [-0.5]]),
    "text": torch.tensor([[1.0], [-1.0], [2.0]]),
}
DENOISE = finite(PROCESSES, POINTS, CLOCKS)


def shapes(batch):
    return {name: (batch, x.shape[1]) for name, x in POINTS.items()}


def run(task, seeds, states=None, denoise=DENOISE, noise=None, **options):
    return sample(
        denoise,
        processes=PROCESSES,
        clocks=CLOCKS,
        task=task,
        states=states or {},
        shapes=shapes(len(seeds)),
        noise=noise or PerSampleNoise(seeds),
        **options,
    )


@pytest.mark.parametrize("sampler", [n for n in SAMPLERS if not n.startswith("em-")])
def test_seed_k_is_the_same_in_any_batch(sampler):
    options = {"sampler": sampler, "steps": 12}
    together = final(run(JOINT, [5, 6, 7, 8], **options)).states
    alone = final(run(JOINT, [7], **options)).states
    for name, x in alone.items():
        torch.testing.assert_close(together[name][2:3], x, rtol=0, atol=1e-6)


def test_noise_forms():
    a = PerSampleNoise([3, 4])
    first, second = a.normal("x", (2, 5)), a.normal("x", (2, 5))
    b = PerSampleNoise([4])
    b.normal("other", (1, 9))  # does not move x
    assert torch.equal(b.normal("x", (1, 5)), first[1:])
    assert not torch.equal(first, second)
    assert not torch.equal(a.normal("y", (2, 5)), first)
    assert 0 <= float(a.uniform("u", (2, 100)).min()) < float(a.uniform("u", (2, 9)).max()) < 1
    with pytest.raises(ValueError, match="2 seeds"):
        a.normal("x", (3, 5))
    stream = StreamNoise(torch.Generator().manual_seed(9))
    expected = torch.randn(2, 3, generator=torch.Generator().manual_seed(9))
    assert torch.equal(stream.normal("anything", (2, 3)), expected)


@pytest.mark.parametrize("sampler", ["dpm++2m", "dpm++fast", "heun", "ddpm"])
def test_joint_modalities_agree(sampler):
    """Two schedules in one step; the pieces of one point come out together."""
    steps = 300 if sampler == "ddpm" else 60
    states = final(run(JOINT, [*range(300)], sampler=sampler, steps=steps)).states
    which = {n: torch.cdist(states[n], POINTS[n]).argmin(1) for n in states}
    agree = (which["image"] == which["text"]) & (which["image"] == which["embed"])
    assert float(agree.double().mean()) > 0.97
    share = torch.bincount(which["image"], minlength=3) / 300
    assert float((share - 1 / 3).abs().max()) < 0.1


def test_conditional_and_marginal():
    text = POINTS["text"][[0, 1, 2, 0]]
    last = final(run(TEXT_TO_IMAGE, [1, 2, 3, 4], {"text": text}, steps=40))
    torch.testing.assert_close(
        last.states["image"], POINTS["image"][[0, 1, 2, 0]], rtol=0, atol=0.02
    )
    assert set(last.states) == {"image", "embed"} and last.calls == 40
    for absent in ("redraw", "hold"):
        states = final(run(IMAGE_ALONE, [*range(200)], steps=40, absent=absent)).states
        near = torch.cdist(states["image"], POINTS["image"]).min(1).values
        assert float(near.max()) < 0.1 and set(states) == {"image", "embed"}


def test_absent_states_redraw_or_hold():
    seen = []

    def denoise(queries):
        seen.extend(q.states["text"].clone() for q in queries)
        return DENOISE(queries)

    final(run(IMAGE_ALONE, [1], denoise=denoise, steps=3, absent="hold"))
    assert torch.equal(seen[0], seen[2])
    seen.clear()
    final(run(IMAGE_ALONE, [1], denoise=denoise, steps=3))
    assert not torch.equal(seen[0], seen[2])


def test_noisy_condition():
    """A slightly noisy caption is held at its level and still tells the picture."""
    task = TEXT_TO_IMAGE.replace(text=given_noisy(0.05))
    times = []

    def denoise(queries):
        times.extend(float(q.times["text"][0]) for q in queries)
        return DENOISE(queries)

    text = POINTS["text"][[2]]
    last = final(run(task, [1], {"text": text}, denoise=denoise, steps=30))
    assert set(times) == {0.05}
    torch.testing.assert_close(last.states["image"], POINTS["image"][[2]], rtol=0, atol=0.02)


def test_progress_records():
    records = list(run(JOINT, [1], steps=5, sampler="heun"))
    assert [r.step for r in records] == [1, 2, 3, 4, 5] and records[0].steps == 5
    assert records[-1].t == 0 and [r.calls for r in records] == [1, 3, 5, 7, 8]
    assert set(records[0].clean) == {"image", "embed", "text"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 0}, "steps must be"),
        ({"steps": 2.5}, "steps must be"),
        ({"sampler": "best"}, "choose one of dpm"),
        ({"grid": "round"}, "choose one of time, logsnr, quadratic"),
        ({"t_end": 1.0}, "t_end must be"),
        ({"absent": "none"}, "choose redraw or hold"),
        ({"sampler": "em-sde"}, "LinearVP"),
        ({"sampler": "dpm++2s", "t_end": 0.0}, "t_end above 0"),
        ({"sampler": "dpm++3s", "steps": 2}, "3 steps or more"),
        ({"grid": "logsnr", "t_end": 0.0}, "t_end above 0"),
    ],
)
def test_errors_come_before_the_first_step(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        run(JOINT, [1], **options)
    assert "\n" not in str(caught.value)


def test_missing_states():
    with pytest.raises(ValueError, match="needs the state 'text'"):
        run(TEXT_TO_IMAGE, [1])
    with pytest.raises(ValueError, match="needs the shape"):
        sample(
            DENOISE,
            processes={"x": COSINE},
            clocks={"x": "x"},
            task=ALONE,
            states={},
            noise=PerSampleNoise([1]),
        )


def test_fast_orders_use_every_step():
    for order in (1, 2, 3):
        for steps in range(1, 60):
            assert sum(fast_orders(steps, order)) == steps
    assert fast_orders(50, 3) == (3,) * 16 + (2,)


def test_branches():
    (null,) = branches(TEXT_TO_IMAGE)
    assert (null.absent, null.keep) == (("text",), ("image",))
    assert [(b.absent, b.keep) for b in branches(JOINT)] == [
        (("text",), ("image",)),
        (("image",), ("text",)),
    ]
    assert branches(IMAGE_ALONE) == ()
    given = Task(name="class", roles={"x": ALONE.roles["x"]}, contexts={"label": True})
    assert branches(given)[0].without == ("label",)
    with pytest.raises(ValueError, match="null_contexts"):
        guided(DENOISE, given, {"x": "x"}, 2.0, lambda n, s: torch.zeros(s))


@pytest.mark.parametrize("task, cost", [(TEXT_TO_IMAGE, 2), (IMAGE_TO_TEXT, 2), (JOINT, 3)])
def test_guidance_asks_its_own_marginals(task, cost):
    fresh = absent_states(PROCESSES, StreamNoise(torch.Generator().manual_seed(0)))
    made = guided(DENOISE, task, CLOCKS, 3.0, fresh, interval=(0.2, 0.8))
    states = {name: torch.randn(2, x.shape[1]) for name, x in POINTS.items()}
    generated = tuple(n for n, c in CLOCKS.items() if c in task.generated)
    for t, forwards in ((0.5, cost), (0.1, 1), (0.9, 1)):
        batch = torch.full((2,), t, dtype=torch.float64)
        times = {c: role.time(batch) for c, role in task.roles.items()}
        query = Query(states=states, times=times, keep=generated)
        assert made.forwards(query) == forwards
        (given,), (answer,) = DENOISE([query]), made([query])
        assert set(answer) == set(generated)
        if forwards == 1:
            assert all(torch.equal(answer[n], given[n]) for n in given)
    nulls = made.unconditional(query)
    for null in nulls:
        for name, clock in CLOCKS.items():
            absent = bool((null.times[clock] == 1).all())
            assert torch.equal(null.states[name], states[name]) != absent
    assert guided(DENOISE, task, CLOCKS, 1.0, fresh) is DENOISE


def test_guided_run_counts_forwards():
    fresh = absent_states(PROCESSES, PerSampleNoise([1]))
    made = guided(DENOISE, JOINT, CLOCKS, 2.0, fresh)
    assert final(run(JOINT, [1], denoise=made, steps=4)).calls == 12


def test_combining_clean_estimates_is_combining_noise():
    process = GaussianProcess(schedule=DiscreteVP(), parameterisation=EPS)
    x, c, u = (torch.randn(2, 5, dtype=torch.float64) for _ in range(3))
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    noise = process.to_clean(u + 4.0 * (c - u), x, t)
    clean = combine({"x": process.to_clean(c, x, t)}, {"x": process.to_clean(u, x, t)}, 4.0)
    torch.testing.assert_close(clean["x"], noise)
    weights = torch.tensor([1.0, 2.0], dtype=torch.float64)
    mixed = combine({"x": c}, {"x": u}, weights)["x"]
    torch.testing.assert_close(mixed[0], c[0])
    torch.testing.assert_close(mixed[1], 2 * c[1] - u[1])
