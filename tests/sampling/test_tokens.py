"""Tokens in the one loop: exact distributions, alone and together with a Gaussian state; purity's
steps."""

from __future__ import annotations

import pytest
import torch
from toys import picture_and_word

from everyway.process.gaussian import X0, GaussianProcess
from everyway.process.mask_replace import ABSORBING, PAPER, RELEASED, UNIFORM, MaskReplace
from everyway.process.schedules import CosineVP
from everyway.process.times import Step
from everyway.sampling.loop import final, sample
from everyway.sampling.noise import PerSampleNoise, StreamNoise
from everyway.sampling.solvers import Sampler, named_sampler
from everyway.sampling.token_kernels import Truncated, calls, purity, token_counts, truncate
from everyway.tasks import ABSENT, GENERATE, GIVEN, Task

TABLE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
POINTS = torch.tensor([-2.0, 0.0, 2.0], dtype=torch.float64)
STD, N = 0.3, 8000
CLOCKS = {"x": "x", "word": "word"}
BOTH = Task(name="both", roles={"x": GENERATE, "word": GENERATE})
WORD = Task(name="word", roles={"x": ABSENT, "word": GENERATE})


def processes(rates=RELEASED, steps=50):
    return {
        "x": GaussianProcess(schedule=CosineVP(), parameterisation=X0),
        "word": MaskReplace(classes=3, steps=steps, rates=rates),
    }


def run(task, *, rates=RELEASED, n=N, noise=None, **options):
    both = processes(rates)
    return sample(
        picture_and_word(both, TABLE, POINTS, STD),
        processes=both,
        clocks=CLOCKS,
        task=task,
        states={},
        shapes={"x": (n, 1), "word": (n, 1)},
        noise=noise or StreamNoise(torch.Generator().manual_seed(0)),
        **options,
    )


def near(found, expected, n=N):
    return (torch.as_tensor(found) - torch.as_tensor(expected)).abs().max() < 4.5 * (
        0.25 / n
    ) ** 0.5


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "heun", "ddpm"])
@pytest.mark.parametrize("rates", [RELEASED, PAPER, UNIFORM], ids=["released", "paper", "uniform"])
def test_a_picture_and_a_word_drawn_together(name, rates):
    """The word's distribution is the table; given the word, the picture's mean and spread are the
    word's."""
    steps = {"ddim": 200, "ddpm": 200}.get(name, 50)
    made = final(run(BOTH, rates=rates, sampler=name, steps=steps)).states
    word, x = made["word"][:, 0], made["x"][:, 0].double()
    assert near(torch.bincount(word, minlength=4) / N, torch.tensor([*TABLE.tolist(), 0.0]))
    for w in range(3):
        mine = x[word == w]
        assert float(mine.mean()) == pytest.approx(float(POINTS[w]), abs=0.05)
        assert float(mine.std()) == pytest.approx(STD, abs=0.05)


@pytest.mark.parametrize("name", ["ancestral", "purity", "fast-stride"])
@pytest.mark.parametrize("rates", [RELEASED, ABSORBING], ids=["released", "absorbing"])
def test_a_word_alone(name, rates):
    sampler = named_sampler(name)
    if name == "purity":  # without sharpening it is exact
        sampler = Sampler(
            name=name, lay_steps=sampler.lay_steps, move=sampler.move, tokens=purity(weight=0)
        )
    made = final(run(WORD, rates=rates, sampler=sampler, steps=10)).states
    assert set(made) == {"word"}
    found = torch.bincount(made["word"][:, 0], minlength=4) / N
    assert near(found, torch.tensor([*TABLE.tolist(), 0.0]))


def test_a_word_for_a_picture():
    """The posterior of the word given the picture, by Bayes."""
    both = processes()
    task = Task(name="name-it", roles={"x": GIVEN, "word": GENERATE})
    x = torch.full((N, 1), 0.95)
    run_ = sample(
        picture_and_word(both, TABLE, POINTS, 1.0),
        processes=both,
        clocks=CLOCKS,
        task=task,
        states={"x": x},
        shapes={"word": (N, 1)},
        noise=StreamNoise(torch.Generator().manual_seed(1)),
        sampler="ancestral",
        steps=10,
    )
    distribution = (TABLE.log() - 0.5 * (0.95 - POINTS) ** 2).softmax(0)
    assert near(torch.bincount(final(run_).states["word"][:, 0], minlength=3) / N, distribution)


def test_same_seed_same_tokens_whatever_the_batch():
    def words(seeds):
        noise = PerSampleNoise(seeds)
        return final(run(BOTH, n=len(seeds), noise=noise, sampler="purity", steps=8)).states

    together, alone = words([3, 4, 5]), words([4])
    assert torch.equal(together["word"][1:2], alone["word"])


def test_tokens_wait_while_a_solver_asks_at_inner_times():
    seen = []
    both = processes()
    exact = picture_and_word(both, TABLE, POINTS, STD)

    def denoise(queries):
        seen.extend((float(q.times["x"][0]), float(q.times["word"][0])) for q in queries)
        return exact(queries)

    shapes = {"x": (2, 1), "word": (2, 1)}
    noise = PerSampleNoise([0, 1])
    common = dict(processes=both, clocks=CLOCKS, states={}, shapes=shapes, noise=noise)
    final(sample(denoise, task=BOTH, steps=4, sampler="heun", **common))
    assert seen[2][0] < seen[2][1] == seen[1][1]


def test_pinned_tokens_stay_and_are_seen():
    known, seen = torch.tensor([[1]]), []
    both = processes()
    exact = picture_and_word(both, TABLE, POINTS, STD)

    def denoise(queries):
        seen.extend(int(q.states["word"][0, 0]) for q in queries)
        return exact(queries)

    run_ = sample(
        denoise,
        processes=both,
        clocks=CLOCKS,
        task=BOTH,
        states={},
        shapes={"x": (1, 1), "word": (1, 1)},
        noise=PerSampleNoise([0]),
        steps=5,
        pin=lambda states, t: {**states, "word": known},
    )
    assert int(final(run_).states["word"]) == 1 and set(seen) == {1}


def test_a_run_from_the_middle_needs_its_state():
    with pytest.raises(ValueError, match="needs the state 'x' at that time"):
        run(BOTH, t_start=0.5)
    with pytest.raises(ValueError, match="t_start must be"):
        run(BOTH, t_start=1.5)
    both = processes()
    noise = PerSampleNoise([0, 1])
    run_ = sample(
        picture_and_word(both, TABLE, POINTS, STD),
        processes=both,
        clocks=CLOCKS,
        task=WORD,
        states={"word": torch.tensor([[3], [1]])},
        shapes={"x": (2, 1)},
        noise=noise,
        sampler="ancestral",
        steps=10,
        t_start=0.4,
    )
    times = [record.t for record in run_]
    assert times[0] < 0.4 and times[-1] == 0


# -- the steps of purity --------------------------------------------------------------------------


RELEASED_TABLES = {
    (100, None): [1, 10] + 32 * [11, 10, 10] + [11, 11],
    (100, 5): [1, 6] + 32 * [11, 10, 10] + [11, 15],
    (50, None): [10] + 24 * [21, 20] + [30],
    (25, None): [21] + 23 * [41] + [60],
    (10, None): [69] + 8 * [102] + [139],
}


@pytest.mark.parametrize("key", RELEASED_TABLES, ids=str)
def test_one_rule_yields_every_released_table(key):
    steps, a_call = key
    assert list(token_counts(1024, steps, a_call))[1:] == RELEASED_TABLES[key][1:]
    if steps != 100:  # there the released table's first entry is a dummy
        assert token_counts(1024, steps, a_call)[0] == RELEASED_TABLES[key][0]


@pytest.mark.parametrize("tokens", [1, 7, 64, 256, 1000, 4096])
@pytest.mark.parametrize("steps", [2, 8, 10, 25, 30, 50, 100])
def test_every_length_is_written_whole(tokens, steps):
    made = token_counts(tokens, steps)
    assert len(made) == steps and sum(made) == tokens and min(made) >= 0


def test_calls_under_a_cap():
    assert calls(11, 5) == [5, 6] and calls(10, 5) == [5, 5] and calls(0, 5) == []
    assert calls(11, None) == [11] and calls(1, 5) == [1]
    laid = purity(tokens_a_call=5, by_purity=False).lay_steps(
        MaskReplace(classes=9), 100, 1024, 1.0
    )
    assert len(laid) == 199  # network calls of the released high-quality setting


def test_purity_writes_as_planned_and_revises_nothing():
    process = MaskReplace(classes=6, steps=100)
    tokens = purity(weight=1)
    laid = tokens.lay_steps(process, 25, 64, 1.0)
    x, noise = torch.full((3, 64), 6), PerSampleNoise([0, 1, 2])
    for step, tokens_now in zip(laid[:-1], reversed(token_counts(64, 25)[1:])):
        logits = torch.randn(3, 64, 6, generator=torch.Generator().manual_seed(1))
        clean = process.to_clean(logits, x, torch.full((3,), step.t))
        after = tokens.kernel(process, x, clean, step, noise, "image")
        assert ((x == 6).sum(1) - (after == 6).sum(1)).tolist() == [tokens_now] * 3
        assert torch.equal(after[x != 6], x[x != 6])
        x = after


def test_the_surest_positions_come_first():
    process = MaskReplace(classes=4, steps=100)
    logits = torch.zeros(1, 200, 4)
    logits[0, :20, 2] = 12.0
    x = torch.full((1, 200), 4)
    clean = process.to_clean(logits, x, torch.ones(1))
    step = Step(1.0, 0.9, share=0.1)
    made = purity().kernel(process, x, clean, step, PerSampleNoise([0]), "image")
    at_random = purity(by_purity=False).kernel(process, x, clean, step, PerSampleNoise([0]), "i")
    assert (made != 4).sum() == (at_random != 4).sum() == 20
    assert (made[0, :20] != 4).sum() > (at_random[0, :20] != 4).sum()


def test_bad_settings_are_told():
    for settings in ({"weight": -1.0}, {"tokens_a_call": 0}):
        with pytest.raises(ValueError, match="must be"):
            purity(**settings)
    with pytest.raises(ValueError, match="from 1 to 50"):
        run(WORD, sampler="ancestral", steps=51)
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        Truncated(denoise=lambda queries: [], rates={"word": 0.0})


def test_truncation_keeps_the_likeliest():
    log_p = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert (truncate(log_p, 0.6) > -70).tolist() == [True, True, False, False]
    assert (truncate(log_p, 0.01) > -70).tolist() == [True, False, False, False]
    assert torch.equal(truncate(log_p, 0.81)[:3], log_p[:3])


@pytest.mark.parametrize("bits", [-4, -1, 0, 1, 4])
def test_truncation_does_not_hang_on_the_last_bits(bits):
    """Three of four equal classes are before 0.75 of the mass, to the last bit or not."""
    log_p = torch.tensor([0.25] * 4 + [0.0]).log().clamp(min=-70)
    for _ in range(abs(bits)):
        log_p = log_p.nextafter(torch.tensor(float(bits)))
    for rate, kept in ((0.25, 1), (0.5, 2), (0.75, 3), (1.0, 5)):
        assert torch.equal(truncate(log_p, rate)[:kept], log_p[:kept])
        assert (truncate(log_p, rate)[kept:] == -70).all()
