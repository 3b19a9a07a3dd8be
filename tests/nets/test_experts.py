"""Experts are one network: a sample is answered by that of its interval, whatever its batch."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

from everyway.contracts import Context, Query, rows
from everyway.nets.experts import Experts
from everyway.nets.tokens import ContextTokens, Patches, Sequence, TimeToken
from everyway.nets.uvit import UViT, UViTConfig

CONFIG = UViTConfig(
    layout=(
        TimeToken(clock="image"),
        TimeToken(clock="text"),
        ContextTokens(name="mood", length=2, dim=4, null=True),
        Sequence(name="text", length=3, dim=4),
        Patches(name="image", channels=3, size=8, patch=4),
    ),
    dim=16,
    depth=2,
    heads=2,
    conv=False,
    init="unit",
)
PLACES = dict(clocks=("image", "text"), bounds=(0.25, 0.5), names=("low", "rest", "high"))


@pytest.fixture(scope="module")
def networks():
    return {name: UViT(CONFIG).eval() for name in ("low", "rest", "high")}


def asked(image, text=None) -> Query:
    batch, draw = len(image), torch.Generator().manual_seed(1)
    states = {
        "image": torch.randn(batch, 3, 8, 8, generator=draw),
        "text": torch.randn(batch, 3, 4, generator=draw),
    }
    mood = Context(
        tokens=torch.randn(batch, 2, 4, generator=draw), dropped=torch.arange(batch) % 2 == 0
    )
    times = {"image": torch.tensor(image).double(), "text": torch.tensor(text or image).double()}
    return Query(states=states, times=times, contexts={"mood": mood})


@torch.no_grad()
def answer(network, query, keep=None):
    return network(query.states, query.times, query.contexts, keep)


def test_a_batch_of_several_intervals_is_split_and_put_together_again(networks):
    """Bit for bit what each network makes of its own samples, in the batch's order."""
    own, query = Experts(networks, **PLACES), asked([0.9, 0.1, 0.3, 0.25, 0.0, 1.0, 0.5])
    chosen = ["high", "low", "rest", "rest", "low", "high", "high"]
    assert own.chosen(query.times) == chosen
    assert own.needed(query.times) == ["high", "low", "rest"]
    made = answer(own, query)
    assert set(made) == {"image", "text"}
    for name, network in networks.items():
        place = torch.tensor([k for k, c in enumerate(chosen) if c == name])
        alone = answer(network, rows(query, place))
        assert all(torch.equal(made[k][place], alone[k]) for k in made)
    assert set(answer(own, query, keep=("text",))) == {"text"}


def test_equal_experts_are_the_single_network(networks):
    single = networks["rest"]
    own = Experts({name: deepcopy(single) for name in networks}, **PLACES)
    for times in ([0.1, 0.1], [0.7, 0.7], [0.3, 0.3]):
        query = asked(times)
        made, theirs = answer(own, query), answer(single, query)
        assert all(torch.equal(made[k], theirs[k]) for k in theirs)


def test_exactly_one_network_answers_a_step(networks):
    own, calls = Experts(networks, **PLACES), []
    for name, network in networks.items():
        network.register_forward_hook(lambda *_, name=name: calls.append(name))
    for t in (0.9, 0.6, 0.4, 0.2, 0.0):
        answer(own, asked([t, t], [0.3, 0.8]))
    assert calls == ["high", "high", "rest", "low", "low"]


def test_the_first_clock_that_a_call_has_decides(networks):
    own, query = Experts(networks, **PLACES), asked([0.1, 0.1], [0.9, 0.9])
    assert own.needed(query.times) == ["low"]
    assert own.needed({"text": query.times["text"]}) == ["high"]
    swapped = Experts(networks, **PLACES | {"clocks": ("text", "image")})
    assert swapped.needed(query.times) == ["high"]
    with pytest.raises(ValueError, match="chosen by .*image.*, and times are of"):
        own.needed({"sound": query.times["text"]})


def test_one_network_may_have_several_intervals(networks):
    two = {name: networks[name] for name in ("low", "rest")}
    own = Experts(two, **PLACES | {"names": ("rest", "low", "rest")})
    assert own.chosen(asked([0.1, 0.3, 0.9]).times) == ["rest", "low", "rest"]


def test_gradients_reach_the_expert_that_was_asked(networks):
    own = Experts(deepcopy(networks), **PLACES)
    query = asked([0.9, 0.1])
    own(query.states, query.times, query.contexts)["image"].sum().backward()
    moved = {
        n for n, m in own.components.items() if any(p.grad is not None for p in m.parameters())
    }
    assert moved == {"high", "low"}


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"bounds": (0.5, 0.25)}, "give rising times"),
        ({"bounds": (0.5,)}, "3 experts with bounds"),
        ({"names": ("low", "rest", "middle")}, "experts high, middle are without"),
    ],
)
def test_what_does_not_go_together_is_refused(networks, wrong, said):
    with pytest.raises(ValueError, match=said):
        Experts(networks, **PLACES | wrong)
