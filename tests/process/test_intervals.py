"""The tree of intervals: the published boundaries, plans, and what training draws within them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from everyway.process import intervals
from everyway.process.config import gaussian
from everyway.process.intervals import Node, Plan, edges, grown, level, named
from everyway.process.training_times import Knots, LogNormal, Tasks, Uniform
from everyway.sampling.noise import StreamNoise

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "ediffi" / "i_ediffi.npz")
WIDE = gaussian({"name": "edm", "sigma_min": 1e-5, "sigma_max": 1e4})
"""So that no quantile that is compared is cut off."""


def sigmas(quantiles) -> np.ndarray:
    """Of the published distribution, through our times and back."""
    u = torch.as_tensor(np.asarray(quantiles), dtype=torch.float64)
    return WIDE.schedule.alpha_sigma(LogNormal().quantile(u, WIDE))[1].numpy()


@pytest.mark.parametrize("number", range(1, 10))
def test_boundaries_are_the_published_ones(number):
    nodes = [Node(level=number, index=index) for index in range(2**number)]
    bounds = GOLDEN[f"bounds.level{number}"]
    np.testing.assert_allclose(sigmas([node.high for node in nodes[:-1]]), bounds[1:-1], rtol=1e-9)
    ends = (sigmas([nodes[0].high])[0], sigmas([nodes[-1].low])[0])
    lists = ("left_edge_node_upper_sigma_by_level", "right_edge_node_lower_sigma_by_level")
    np.testing.assert_allclose(ends, [GOLDEN[name][number] for name in lists], rtol=1e-9)


@pytest.mark.parametrize("name, node", [("E1_0", (1, 0)), ("E3_0", (3, 0)), ("E9_511", (9, 511))])
def test_draws_within_a_node_are_the_published_ones(name, node):
    own = Node(level=node[0], index=node[1])
    assert own.name == name
    found = sigmas(own.low + (own.high - own.low) * GOLDEN["u"])
    np.testing.assert_allclose(found, GOLDEN[f"sample.{name}"], rtol=1e-8)


def test_configuration_d_chooses_as_published():
    """On the Karras grid and on the Kutta grid of the paper's sampler."""
    cells = named("ediffi-d").cells
    assert [cell.name for cell in cells] == ["E3_0", "rest", "E9_511"]
    bounds = sigmas([cell.low for cell in cells[1:]])
    for grid, chosen in (
        ("karras.N25.smin0.002.sigmas", "karras.N25.smin0.002.expert"),
        ("karras.N25.smin0.0005.sigmas", "karras.N25.smin0.0005.expert"),
    ):
        assert np.array_equal(np.searchsorted(bounds, GOLDEN[grid], "right"), GOLDEN[chosen])


def test_a_node_lies_within_its_parent():
    node = Node(level=9, index=511)
    assert [n.name for n in node.line][:3] == ["E1_1", "E2_3", "E3_7"] and node.line[-1] is node
    for one in node.line:
        first, second = one.children
        assert (first.parent, second.parent) == (one, one)
        assert (first.low, first.high, second.high) == (one.low, second.low, one.high)
    assert Node(level=0, index=0).line == ()


@pytest.mark.parametrize("plan", [edges(3, 9), edges(0, 9), level(3), Plan(leaves=())])
def test_cells_cover_all_noise_once(plan):
    cells = plan.cells
    assert cells[0].low == 0 and cells[-1].high == 1
    assert all(one.high == other.low for one, other in zip(cells, cells[1:]))


def test_stages_grow_the_edges_alone_and_parents_come_first():
    stages = named("ediffi-d").stages
    assert [s.name for s in stages[:4]] == ["E1_0", "E1_1", "E2_0", "E2_3"]
    assert len(stages) == 3 + 9 + 1 and stages[-1].name == "rest"
    trained = {""}
    for stage in stages:
        assert stage.parent in trained
        trained.add(stage.name)
    assert (stages[-1].low, stages[-1].high) == (1 / 8, 511 / 512)
    assert named("ediffi-a").stages == ()


def test_published_configurations():
    names = {c: [cell.name for cell in named(f"ediffi-{c}").cells] for c in "abcd"}
    whole = ["rest"]
    assert names == {
        "a": whole,
        "b": whole,
        "c": ["rest", "E9_511"],
        "d": ["E3_0", "rest", "E9_511"],
    }
    for config in "bcd":
        assert [c.name for c in named(f"ediffi-{config}:sr256").cells] == ["E1_0", "E1_1"]
    assert named("ediffi-d:sr1024").cells == named("ediffi-a:sr256").cells


def test_a_plan_by_its_intervals():
    assert named("E9_511,E3_0") == named("ediffi-d") and named("level-1") == edges(1, 1)
    for wrong, said in (
        ("edges", "plan 'edges' is unknown; give one as edges-3"),
        ("E1_2", "there is no interval E1_2"),
        ("E1_0,E2_1", "E1_0 and E2_1 overlap"),
        ("E3_2,E3_5", "E3_2, E3_5 leave several gaps"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            named(wrong)
        assert "\n" not in str(caught.value)


def test_a_tree_grows_where_it_gains_the_most():
    root = Node(level=0, index=0)
    gains = {root: 1.0, root.children[0]: 0.1, root.children[1]: 0.5}
    assert [n.name for n in grown(gains, 3).leaves] == ["E1_0", "E2_2", "E2_3"]
    with pytest.raises(ValueError, match="5 experts are more than were measured"):
        grown(gains, 5)


def test_an_interval_is_of_one_clock():
    """Of a picture's noise, and of every text's."""
    clocks = dict.fromkeys(("image", "text"), WIDE)
    noise = StreamNoise(torch.Generator().manual_seed(0))
    t = Uniform(low=0.25, high=0.5, clock="image").draw(noise, clocks, 2000)
    assert 0.25 <= float(t["image"].min()) and float(t["image"].max()) < 0.5
    assert float(t["text"].min()) < 0.01 and float(t["text"].max()) > 0.99
    with pytest.raises(ValueError, match="clock is 'sound'; choose one of image, text"):
        Uniform(clock="sound").draw(noise, clocks, 2)


@pytest.mark.parametrize("clock", ["image", "text"])
def test_tasks_within_an_interval_are_those_of_its_noise(clock):
    """The parts of an interval, in proportion, are the whole distribution: every line of tasks is
    in the part where its times are, and ties stay ties."""
    clocks = dict.fromkeys(("image", "text"), WIDE)
    law, count = Tasks(shift=2.0), 40_000
    noise = StreamNoise(torch.Generator().manual_seed(0))
    whole = law.draw(noise, clocks, count)
    edge = float(law.quantile(torch.tensor(0.5), WIDE))
    for low, high, inside in (
        (0.0, 0.5, whole[clock] < edge),
        (0.5, 1.0, whole[clock] >= edge),
    ):
        own = law.model_copy(update={"low": low, "high": high, "clock": clock})
        part = own.draw(noise, clocks, count)
        assert bool(((part[clock] < edge) if low == 0 else (part[clock] >= edge)).all())
        for name in clocks:
            for value in (0.0, 1.0):
                share = float((part[name] == value).double().mean())
                theirs = float((whole[name][inside] == value).double().mean())
                assert share == pytest.approx(theirs, abs=0.015)
        ties, theirs = ((t["image"] == t["text"]).double() for t in (part, whole))
        assert float(ties.mean()) == pytest.approx(float(theirs[inside].mean()), abs=0.01)


def test_the_bound_of_knots_lies_between_them():
    clocks = {"image": WIDE}
    noise = StreamNoise(torch.Generator().manual_seed(0))
    bound = float(Knots().quantile(torch.tensor(0.3, dtype=torch.float64), WIDE))
    low = Knots(high=0.3).draw(noise, clocks, 4000)["image"]
    high = Knots(low=0.3).draw(noise, clocks, 4000)["image"]
    assert float(low.max()) < bound < float(high.min())
    assert intervals.REST == "rest"
