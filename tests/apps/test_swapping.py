"""What each expert does: its loss at the noise of the others, and the score without it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from everyway.apps import swapping
from everyway.generate import load
from everyway.process.intervals import named
from everyway.systems import cascade
from everyway.systems.ensemble import ensemble
from everyway.train.config import remembered


@pytest.fixture(scope="module")
def model():
    """The shipped nano, and a copy for high noise that was spoiled."""
    made = load("nano")
    plan, times = named("edges-1"), remembered(made.metadata["training"]).model.times
    system = ensemble(made.system, plan, times)
    torch.manual_seed(0)
    for weights in system.networks["network.E1_1"].parameters():
        weights.data = torch.randn_like(weights) * weights.std().nan_to_num()
    rows = [{"name": c.name, "low": c.low, "high": c.high} for c in plan.cells]
    return replace(made, system=system, metadata={**made.metadata, "experts": rows})


@pytest.mark.parametrize("name", ["ensemble", "cascade"])
def test_a_spoiled_expert_is_found(model, monkeypatch, name):
    """By its loss; and every expert is scored with its neighbour in its place, in a cascade too."""
    if name == "cascade":
        model = replace(model, system=cascade.assembled(model.system, {}))
    monkeypatch.setattr(swapping, "UNSEEN", 32)
    asked = []

    def evaluate(model, suite, n, seed, rows):
        assert model.system.name == name
        asked.append([model.system.network.components[k] for k in ("E1_0", "E1_1")])
        return {"rows": {row: n for row in rows}, "frechet": {}}

    monkeypatch.setattr(swapping, "evaluate", evaluate)
    found = swapping.report(model, None, 4, 1_000_000, ("t2i",))
    assert [row["expert"] for row in found["losses"]] == ["E1_0", "E1_1"]
    for row in found["losses"]:
        assert row["by"]["E1_0"] < 0.5 < row["by"]["E1_1"]
    swaps = [(s["without"], s["by"]) for s in found["scores"]]
    assert swaps == [("", ""), ("E1_0", "E1_1"), ("E1_1", "E1_0")]
    low, high = (model.system.networks[f"network.{k}"] for k in ("E1_0", "E1_1"))
    assert asked == [[low, high], [high, high], [low, low]]


def test_the_root_stands_in_where_it_is_named(model, monkeypatch):
    monkeypatch.setattr(swapping, "UNSEEN", 4)
    asked = []
    monkeypatch.setattr(
        swapping,
        "evaluate",
        lambda model, *_: asked.append(model.system.networks) or {"rows": {}, "frechet": {}},
    )
    found = swapping.report(model, "nano", 1, 0, ("t2i",))
    assert [s["by"] for s in found["scores"]] == ["", "nano", "nano"]
    root = load("nano").system.network.state_dict()
    one = asked[2]["network.E1_1"].state_dict()
    assert all(torch.equal(one[k], v) for k, v in root.items())


def test_a_model_without_experts_has_no_report():
    with pytest.raises(ValueError, match="nano is no ensemble of experts; make one: everyway"):
        swapping.report(load("nano"), None, 0, 0, ())
