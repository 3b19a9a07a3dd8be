"""The classifier: shapes of its outputs, the score of what is stated, and that it learns."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from everyway.data.emoji import HEADS, EmojiScenes, parse_caption, targets
from everyway.metrics.scenes import classes, features, load_classifier, read, score
from everyway.nets.classifier import Classifier
from everyway.train import train
from everyway.train.classifier import TEST_SEED, look_loss, loss_of, soften


def test_logits_and_features():
    net = Classifier(HEADS).eval()
    images = torch.zeros(2, 3, 64, 64)
    assert {k: v.shape[1] for k, v in net(images).items()} == HEADS
    assert net.features(images).shape == (2, 576)
    assert sum(p.numel() for p in net.parameters()) < 1.2e6


def test_perfect_logits_read_back_the_scene():
    data = EmojiScenes(seed=1)
    scenes = [data.scene(i) for i in range(40)]
    rows = [targets(scene) for scene in scenes]
    logits = {
        name: torch.nn.functional.one_hot(
            torch.tensor([max(row[name], 0) for row in rows]), HEADS[name]
        ).float()
        for name in HEADS
    }
    from everyway.data.emoji import scene_of

    assert [scene_of(row) for row in classes(logits)] == scenes
    assert all(all(score(s, s).values()) for s in scenes)


def test_only_what_is_stated_is_scored():
    seen = parse_caption("a small teapot right of a large fox on red")
    assert score(parse_caption("a fox left of a teapot"), seen) == {
        "object": True,
        "relation": True,
    }
    wrong = score(parse_caption("a small fox above a teapot on blue"), seen)
    assert wrong == {"object": True, "size": False, "relation": False, "background": False}
    assert score(parse_caption("a fox on the left"), seen) == {"object": False, "place": False}
    assert score(parse_caption("a fox on red"), None) == {"object": False, "background": False}


def test_it_trains_saves_goes_on_and_loads(tmp_path):
    given = dict(out=str(tmp_path), batch=16, test=20, budget_s=0)
    assert train("classifier", steps=2, **given)["step"] == 2
    assert train("classifier", steps=3, **given)["step"] == 3
    metadata = json.loads((tmp_path / "classifier.json").read_text(encoding="utf-8"))
    assert metadata["steps"] == 3 and 0 <= metadata["accuracy"]["all_correct"] <= 1
    net = load_classifier(tmp_path)
    pictures = [EmojiScenes(seed=3).sample(i).image for i in range(3)]
    assert len(read(net, pictures)) == 3
    assert features(net, pictures).shape == (3, 576)
    assert not list(tmp_path.glob("*.partial"))


def test_it_learns():
    torch.manual_seed(0)
    data = EmojiScenes(seed=1, count=1)
    net = Classifier(HEADS, width=8, dim=48)
    optimiser = torch.optim.AdamW(net.parameters(), 3e-3)
    losses = []
    for step in range(40):
        scenes = [data.scene(i) for i in range(step * 16, step * 16 + 16)]
        pixels = np.stack([data.render(s, i) for i, s in enumerate(scenes)])
        rows = [targets(s) for s in scenes]
        wanted = {k: torch.tensor([r[k] for r in rows]) for k in HEADS}
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        loss = loss_of(net(soften(images, np.random.default_rng(step))), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])


def test_the_test_seed_is_its_own():
    assert TEST_SEED != 77
    with pytest.raises(FileNotFoundError):
        load_classifier("no/such/folder")


def test_looks_are_guided_to_the_objects():
    look = torch.full((1, 2, 64), -9.0)
    look[0, 0, 8 * 1 + 3] = 0.0  # the second row, the fourth column
    centres = torch.tensor([[[3.5 / 8, 1.5 / 8], [float("nan")] * 2]])
    assert look_loss(look, centres) == 0
    assert look_loss(look, centres.flip(-1)) == 9
    assert look_loss(look, centres + 0.5 / 8) == pytest.approx(0.75 * 9)
