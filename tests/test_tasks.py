"""The table of tasks."""

from __future__ import annotations

import pytest
import torch

from everyway.tasks import ABSENT, GIVEN, TASKS, Role, Task, given_noisy, named_task, times_for

TABLE = {
    "text-to-image": ("t", 0),
    "image-to-text": (0, "t"),
    "joint": ("t", "t"),
    "image": ("t", 1),
    "text": (1, "t"),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_whole_theory(name):
    t = torch.tensor([0.25, 0.5])
    times = times_for(named_task(name), t)
    for clock, expected in zip(("image", "text"), TABLE[name]):
        value = t.double() if expected == "t" else torch.full((2,), float(expected)).double()
        assert torch.equal(times[clock], value) and times[clock].dtype == torch.float64
    assert set(TASKS) == set(TABLE)


def test_noisy_condition_and_replace():
    task = named_task("text-to-image").replace(text=given_noisy(0.3))
    assert float(times_for(task, torch.tensor([0.9]))["text"]) == pytest.approx(0.3)
    assert task.given == ("text",) and task.generated == ("image",)


def test_errors():
    with pytest.raises(ValueError, match="choose one of text-to-image"):
        named_task("speech")
    with pytest.raises(ValueError, match="generates nothing"):
        Task(name="nothing", roles={"image": GIVEN, "text": ABSENT})
    with pytest.raises(ValueError, match="use generate"):
        Role("maybe")
    with pytest.raises(ValueError, match="outside"):
        given_noisy(1.0)
    with pytest.raises(ValueError, match="has no clock"):
        named_task("joint").replace(sound=ABSENT)
