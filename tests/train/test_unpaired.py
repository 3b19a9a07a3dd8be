"""Pictures without a caption and captions without a picture teach what they are alone: the missing
side is pure noise at t = 1, or the null, and has no part in the loss or its gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from everyway import objective
from everyway.data.folder import Folder, write_folder
from everyway.data.shapes import Shapes
from everyway.process.training_times import Tasks
from everyway.train import devices, sources, train
from everyway.train.config import ConfigError, resolve
from everyway.train.learner import Share
from everyway.train.systems import SystemLearner, lacking_of, prepared

PAIRS, PICTURES, TEXTS = 6, 3, 2
SHARE = Share(seed=0, step=0, size=64, rows=slice(0, 64), device=torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six pairs, three pictures, two captions."""
    at = tmp_path_factory.mktemp("data")
    drawn = Shapes(seed=1, size=16, languages=("en",))
    own = [replace(drawn.sample(k), key=f"{k:02d}") for k in range(PAIRS + PICTURES)]
    write_folder(at, own[:PAIRS] + [replace(s, captions=()) for s in own[PAIRS:]])
    for k in range(TEXTS):
        (at / f"alone{k}.txt").write_text(f"a red star {k}\n")
    return at


def learner_of(data, out, **settings) -> SystemLearner:
    devices.joined("cpu")
    given = {"data": str(data), "batch": 64, "unpaired": 0.5, **settings}
    config = resolve("nano", given, out=str(out))
    system = prepared(config)
    return SystemLearner(system, sources.cached(system, config), config)


@pytest.fixture(scope="module")
def learner(data, tmp_path_factory):
    return learner_of(data, tmp_path_factory.mktemp("run"))


def test_a_folder_keeps_what_is_unpaired_apart(data):
    folder = Folder(data, captioned=True, unpaired=True)
    assert (len(folder), len(folder.pictures), len(folder.texts)) == (PAIRS, PICTURES, TEXTS)
    assert folder.picture(0).key == f"{PAIRS:02d}" and not folder.faults
    assert folder.text(1).captions == ("a red star 1",)
    plain = Folder(data, captioned=True)
    assert len(plain) == PAIRS and len(plain.faults) == PICTURES and not plain.texts
    assert plain.stamp() != folder.stamp()


def test_what_is_missing_is_at_time_one_and_the_other_side_at_any(learner):
    _, encoded, times, *_ = learner.batch(SHARE)
    lacking = lacking_of(encoded)
    text, image = lacking["text"], lacking["image"]
    assert 20 < int((text | image).sum()) < 44 and text.any() and image.any()
    assert not (text & image).any()
    own = {"image": times["image"][text], "text": times["text"][image]}
    for t in own.values():  # of no task: neither given nor absent
        assert ((t > 0) & (t < 1)).all() and len(t.unique()) == len(t)
    assert (times["text"][~text & ~image] == 0).any()  # pairs are as tasks have them


def test_its_loss_and_gradient_are_those_of_its_own_side_alone(learner):
    x0, encoded, times, _, noise = learner.batch(SHARE)
    lacking = lacking_of(encoded)
    system = learner.system

    def found(states):
        return objective.losses(system, states, times, SHARE.noise(), None, lacking)

    losses = found(x0)
    assert not losses["text"][lacking["text"]].any() and losses["image"][lacking["text"]].all()
    assert not losses["image"][lacking["image"]].any() and losses["text"][lacking["image"]].all()
    filled = {k: v.clone() for k, v in x0.items()}
    filled["text"][lacking["text"]] = 7.0  # another's caption is not seen
    filled["image"][lacking["image"]] = -7.0
    other = found(filled)
    assert all(torch.equal(losses[k], other[k]) for k in losses)
    absent = {"image": times["image"], "text": torch.where(lacking["text"], 1.0, times["text"])}
    drawn = {k: v.clone() for k, v in x0.items()}
    drawn["text"][lacking["text"]] = 0.0
    whole = objective.losses(system, drawn, absent, SHARE.noise(), None)
    torch.testing.assert_close(losses["image"][lacking["text"]], whole["image"][lacking["text"]])


def test_a_context_that_is_missing_is_the_null(data, tmp_path):
    """A system that reads texts as a context learns its unconditional side from pictures alone."""
    learner = learner_of(data, tmp_path, system="uvit", preset="nano-text", drop=0.0)
    assert {**learner.latents.lacking} == {"text": range(PAIRS, PAIRS + PICTURES)}
    x0, encoded, times, _, noise = learner.batch(SHARE)
    lacking = lacking_of(encoded)
    given = objective.contexts_of(learner.system, encoded, noise, 0.0, 64, lacking)["text"]
    null = learner.system.conditions["text"].null().context().tokens[0]
    is_null = (given.tokens == null).flatten(1).all(1)
    assert torch.equal(is_null, lacking["text"]) and is_null.any() and not is_null.all()


def test_without_the_setting_batches_are_as_they_were(data, tmp_path):
    left = learner_of(data, tmp_path, unpaired=0.0)
    assert not left.latents.lacking and len(left.latents) == PAIRS
    assert not lacking_of(left.batch(SHARE)[1])


def test_times_are_free_on_no_line_of_a_task():
    free = Tasks(to_image=0.5, to_text=0.3, joint=0.1, shift=2.0).free
    assert [line.share for line in free._lines] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert free.shift == 2.0


def test_it_trains_and_resumes(data, tmp_path):
    given = {"data": str(data), "batch": 8, "unpaired": 0.5}
    lines: list[str] = []
    train(resolve("nano", {**given, "steps": 1}, out=str(tmp_path)), note=lines.append)
    assert any("3 more have no caption, and 2 captions no picture" in line for line in lines)
    assert train(resolve("nano", {**given, "steps": 2}, out=str(tmp_path)))["step"] == 2


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"data": "shapes"}, "every picture of shapes has its captions; leave unpaired out"),
        ({"system": "uvit", "preset": "nano"}, "uvit learns nothing from a picture or a caption"),
    ],
)
def test_where_nothing_is_unpaired_it_is_refused(data, tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        learner_of(**{"data": data, "out": tmp_path, **settings})
