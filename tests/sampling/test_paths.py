"""Clocks that follow paths of their own, and a Gaussian and a token modality on one clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_tokens import POINTS, STD, TABLE, N, near, processes
from toys import picture_and_word

from everyway.process.mask_replace import PAPER, RELEASED, UNIFORM
from everyway.sampling.loop import final, sample
from everyway.sampling.noise import PerSampleNoise, StreamNoise
from everyway.tasks import FIRST, GENERATE, GIVEN, LAST, Path, Role, Task, times_for

APART = {"x": "x", "word": "word"}
BOTH = Task(name="both", roles={"x": GENERATE, "word": GENERATE})
STEPS = {"ddim": 120, "dpm++2m": 60, "heun": 60, "dpm++2s": 100, "dpm++3s": 150, "ddpm": 200}


def run(task, clocks=APART, rates=RELEASED, n=N, noise=None, seen=None, **options):
    """A picture and its word, each on the clock that `clocks` says."""
    both = processes(rates)
    exact = picture_and_word(both, TABLE, POINTS, STD)

    def denoise(queries):
        if seen is not None:
            seen.extend(tuple(float(q.times[c][0]) for c in ("x", "word")) for q in queries)
        own = ({name: q.times[clock] for name, clock in clocks.items()} for q in queries)
        return exact([replace(q, times=times) for q, times in zip(queries, own)])

    return sample(
        denoise,
        processes=both,
        clocks=clocks,
        task=task,
        states={},
        shapes={"x": (n, 1), "word": (n, 1)},
        noise=noise or StreamNoise(torch.Generator().manual_seed(0)),
        **options,
    )


def check_distribution(states):
    """The word's distribution is the table; given the word, the picture's mean and spread are the
    word's."""
    word, x = states["word"][:, 0], states["x"][:, 0].double()
    assert near(torch.bincount(word, minlength=4) / N, torch.tensor([*TABLE.tolist(), 0.0]))
    for w in range(3):
        mine = x[word == w]
        assert float(mine.mean()) == pytest.approx(float(POINTS[w]), abs=0.04)
        assert float(mine.std()) == pytest.approx(STD, abs=0.025)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "heun", "dpm++2s", "dpm++3s", "ddpm"])
@pytest.mark.parametrize("rates", [RELEASED, PAPER, UNIFORM], ids=["released", "paper", "uniform"])
def test_a_picture_and_a_word_on_one_clock(name, rates):
    """Both stand at the time that the network is told, also where a solver asks inside a step."""
    one, task = {"x": "c", "word": "c"}, Task(name="one", roles={"c": GENERATE})
    check_distribution(final(run(task, one, rates, sampler=name, steps=STEPS[name])).states)


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "heun", "dpm++2s", "dpm++3s"])
@pytest.mark.parametrize(
    "paths",
    [
        {"x": FIRST, "word": LAST},
        {"x": LAST, "word": FIRST},
        {"x": Path(((0, 0), (0.3, 0.6), (1, 1)))},
    ],
    ids=["picture first", "word first", "word ahead"],
)
def test_every_curve_through_the_square_reaches_the_law(name, paths):
    check_distribution(final(run(BOTH.along(paths), sampler=name, steps=STEPS[name])).states)


def test_one_after_the_other():
    """The word is made while the picture is absent, and the picture while the word is given."""
    seen: list = []
    task = BOTH.along({"x": LAST, "word": FIRST})
    final(run(task, n=2, noise=PerSampleNoise([0, 1]), seen=seen, sampler="ddim", steps=10))
    assert len(seen) == 10 and seen[0] == (1.0, 1.0)
    assert all(x == 1 or word == 0 for x, word in seen)


def test_a_straight_path_is_the_run_itself():
    assert BOTH.along({c: Path(((0, 0), (1, 1))) for c in ("x", "word")}) == BOTH


def test_steps_in_which_nothing_moves_are_not_taken():
    late = {"x": Path(((0, 0), (0.5, 1), (1, 1))), "word": Path(((0, 0), (0.5, 1), (1, 1)))}
    last = final(run(BOTH.along(late), n=2, noise=PerSampleNoise([0, 1]), sampler="ddim", steps=10))
    assert last.calls == 5


def test_bad_paths_are_told():
    for knots in (((0, 0),), ((0, 0.1), (1, 1)), ((0, 0), (0.5, 0.6), (0.4, 0.7), (1, 1))):
        with pytest.raises(ValueError, match=r"must rise from \(0, 0\) to \(1, 1\)"):
            Path(knots)
    with pytest.raises(ValueError, match="given clock has no path"):
        Role("given", path=FIRST)
    with pytest.raises(ValueError, match="does not generate sound; give a path to x, word"):
        BOTH.along({"sound": FIRST})
    with pytest.raises(ValueError, match="does not generate word"):
        Task(name="t", roles={"x": GENERATE, "word": GIVEN}).along({"word": LAST})


def test_a_path_is_the_row_of_times():
    u = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    times = times_for(BOTH.along({"x": FIRST, "word": LAST}), u)
    assert times["x"].tolist() == [1.0, 0.5, 0.0, 0.0, 0.0] and FIRST(0.75) == 0.5
    assert times["word"].tolist() == [1.0, 1.0, 1.0, 0.5, 0.0]
