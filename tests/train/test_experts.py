"""A model is split, stage after stage; every stage resumes; what comes out is a model."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from everyway.checkpoints import store
from everyway.generate import load
from everyway.process.intervals import Node
from everyway.systems import ensemble
from everyway.train import experts, train
from everyway.train.config import ConfigError, resolve

RECIPE = str(Path(__file__).parents[2] / "recipes" / "uvit-nano.toml")
SMALL = {"steps": 3, "cache": 64, "batch": 8, "log_every": 1, "warmup": 1, "weights": "fp32"}


def split(base, out, **given):
    return resolve("experts", {**SMALL, "base": str(base), "plan": "edges-2", **given}, str(out))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A U-ViT that is trained for a moment."""
    out = tmp_path_factory.mktemp("base")
    return Path(train(resolve(RECIPE, SMALL | {"optimiser": "muon"}, out=str(out)))["model"])


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    """It as an ensemble, in one go."""
    out = tmp_path_factory.mktemp("whole")
    notes = []
    summary = train(split(base, out, deltas=False), note=notes.append)
    return out, summary, notes


STAGES = ["E1_0", "E1_1", "E2_0", "E2_3", "rest"]


def test_every_stage_is_a_training_of_its_interval_from_its_parent(whole, base):
    out, summary, notes = whole
    assert summary["model"] == str(out / "model") and not summary["stopped"]
    told = [line for line in notes if "quantiles" in line]
    assert told[3] == "E2_3, 4 of 5: quantiles 0.75 to 1, from E1_1, 24 samples: 3 steps of 8"
    begun = {"E1_0": base, "E1_1": base, "rest": base}
    begun |= {"E2_0": out / "E1_0" / "model", "E2_3": out / "E1_1" / "model"}
    for name in STAGES:
        config = json.loads((out / name / "config.json").read_text())
        assert config["model"]["init"] == str(begun[name]) and config["steps"] == 3
        low, high = (config["model"]["times"][k] for k in ("low", "high"))
        if name != "rest":
            node = Node(level=int(name[1]), index=int(name[3]))
            assert (low, high) == (node.low, node.high)
        assert config["optim"]["optimiser"] == "muon"  # as the base was trained
    assert (low, high) == (0.25, 0.75)
    caches = [*out.glob("latents-*")]
    assert len(caches) == 1 and not [*out.glob("*/latents-*")]


def test_the_experts_are_what_the_stages_made(whole):
    out, _, _ = whole
    model = load(out, device="cpu")
    assert model.name == out.name and model.system.network.names == ("E2_0", "rest", "E2_3")
    for name, network in model.system.networks.items():
        stage = load(out / name.removeprefix("network."), device="cpu").system.network
        pairs = zip(network.state_dict().values(), stage.state_dict().values())
        assert all(torch.equal(a, b) for a, b in pairs)
    made = model.generate(kind="image", n=2, steps=3, seed=1)
    assert made[0].image.size == (16, 16)
    history = store.document(out / "model")["facts"]["history"]
    assert [row.get("expert", "") for row in history] == ["", *STAGES]
    card = (out / "model" / "README.md").read_text()
    assert "| expert E2_3 | shapes | 3 | 8 |" in card


def test_killed_at_every_stage_it_ends_as_it_would_have(whole, base, tmp_path):
    """What a stage made before it was stopped is not made again."""
    out, _, _ = whole
    config, now, seen = split(base, tmp_path / "run", deltas=False), [""], []

    def note(line):
        now[0] = line.partition(",")[0] if "quantiles" in line else now[0]

    def progress(p):
        seen.append((now[0], p.step))
        if p.step == 2:
            signal.raise_signal(signal.SIGINT)

    for _ in STAGES:
        assert train(config, progress, note)["stopped"]
        assert not (tmp_path / "run" / "model").exists()
    assert not train(config, progress, note)["stopped"]
    assert seen == [(name, step) for name in STAGES for step in (1, 2, 3)]
    own, theirs = (store.document(k / "model")["sha256"] for k in (tmp_path / "run", out))
    assert own == theirs


def test_a_base_that_is_a_recipe_is_trained_first(tmp_path):
    config = split(RECIPE, tmp_path, plan="edges-1", steps=1, cache=16)
    root = experts._first(config)
    assert root.steps == 3000 and root.run.out == str(tmp_path / "root")
    assert root.source.latents == str(tmp_path) and root.source.cache == 16
    halves = experts._first(split(RECIPE, tmp_path, budget_s=60.0))
    assert halves.budget_s == 30.0


def test_a_measured_plan_is_measured_once(base, tmp_path, monkeypatch):
    monkeypatch.setattr(experts.measure, "LEVEL", 2)
    monkeypatch.setattr(experts.measured, "__defaults__", (2, 2, print))
    config = split(base, tmp_path, plan="measured-3", steps=1)
    model = load(train(config)["model"], device="cpu")
    assert len(model.system.networks) == 3
    rows = json.loads((tmp_path / "measured.json").read_text())
    assert [(r["level"], r["index"]) for r in rows] == [(0, 0), (1, 0), (1, 1)] + [
        (2, k) for k in range(4)
    ]
    assert all(r["low"] < r["loss"] < r["high"] for r in rows)
    assert [r["gain"] is None for r in rows] == [False] * 3 + [True] * 4
    halves = sum(r["loss"] for r in rows if r["level"] == 1) / 2
    assert halves == pytest.approx(rows[0]["loss"], rel=1e-5)
    monkeypatch.setattr(experts.measure, "by_interval", lambda *_: pytest.fail("again"))
    assert not train(config)["stopped"]


def test_two_halves_that_pull_apart_gain_what_calculus_says():
    """Of the losses |w - 1|^2 and |w + 1|^2 a joint step at w = 0 gains nothing."""
    one, other = (
        experts.measure.Seen(losses=torch.ones(2), gradients=torch.tensor([[g], [g]]))
        for g in (-2.0, 2.0)
    )
    assert one.apart(other) == 4.0 and one.apart(one) == 0.0
    assert torch.equal(one.with_(other).gradients, torch.zeros(2, 1))


def test_what_cannot_be_split_is_refused(whole, base, tmp_path):
    out, _, _ = whole
    for given, said in (
        ({"base": str(out)}, "is made of experts already"),
        ({"plan": "edges"}, "plan 'edges' is unknown; give one as edges-3"),
        ({"plan": "measured-99"}, "give measured-2 to measured-8"),
        ({"clock": "text"}, "clock 'text' is unknown; choose one of image"),
        ({"base": "nowhere"}, "there is no model 'nowhere'"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            train(split(**({"base": base, "out": tmp_path / "run"} | given)))
        assert "\n" not in str(caught.value) and not (tmp_path / "run" / "model").exists()
    with pytest.raises(ConfigError, match="an ensemble is split from a trained model"):
        ensemble.Training(init="x").system(None)


def test_the_command_splits_measures_and_reports(run, base, tmp_path):
    settings = [word for k, v in SMALL.items() for word in ("--set", f"{k}={v}")]
    code, out, _ = run(
        "experts", "split", base, "--plan", "edges-1", "--out", "made", *settings, "--quiet"
    )
    assert code == 0 and json.loads(out)["model"] == "made/model"
    code, out, _ = run(
        "experts", "measure", base, "--level", 1, "--batches", 2, "--json", *settings
    )
    assert code == 0 and [r["level"] for r in json.loads(out)["rows"]] == [0, 1, 1]
    code, out, _ = run("experts", "report", "made", "-n", 0, "--json")
    report = json.loads(out)
    assert code == 0 and [row["expert"] for row in report["losses"]] == ["E1_0", "E1_1"]
    assert set(report["losses"][0]["by"]) == {"E1_0", "E1_1"} and report["scores"] == []
    code, out, _ = run("experts", "report", "made", "-n", 0)
    assert code == 0 and "noise of" in out
    code, _, err = run("experts", "report", base)
    assert code == 2 and "is no ensemble of experts" in err
