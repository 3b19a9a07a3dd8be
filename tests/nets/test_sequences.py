"""Data layers of sequences and of small maps: a block at each place, which knows where it is."""

from __future__ import annotations

import pytest
import torch

from everyway.contracts import Context
from everyway.nets.multiflow import Maps, MultiFlow, MultiFlowConfig, Sequences


@pytest.fixture(scope="module")
def network():
    config = MultiFlowConfig(
        data=(
            Maps(name="image", channels=6, kernel=1, size=3),
            Sequences(name="text", length=5, dim=4),
        ),
        contexts={"image": 7},
        dim=16,
        multipliers=(1, 2),
        depth=1,
        attending=2,
        heads=2,
    )
    assert MultiFlowConfig.from_json(config.to_json()) == config
    network = MultiFlow(config)
    for p in network.parameters():  # also those that start at zero
        torch.nn.init.normal_(p, std=0.3)
    return network


def asked(network, name, x):
    context = {"image": Context(tokens=torch.ones(2, 3, 7))}
    return network({name: x}, {name: torch.tensor([0.3, 0.9]).double()}, context)[name]


def test_what_is_made_has_the_shape_of_what_is_given(network):
    x = torch.randn(2, 5, 4)
    assert asked(network, "text", x).shape == x.shape


def test_a_place_is_another_than_the_next_by_its_position_alone(network):
    """Moved along with their positions, what stands at the places gives the same, moved."""
    x, order = torch.randn(2, 5, 4), torch.tensor([3, 1, 4, 0, 2])
    stem = network.parts["text_data"][0]
    before, alone = asked(network, "text", x), asked(network, "text", x[:, order])
    assert not torch.allclose(alone, before[:, order], atol=1e-2)
    kept = stem.positions.data.clone()
    stem.positions.data = kept[:, order]
    both = asked(network, "text", x[:, order])
    stem.positions.data = kept
    torch.testing.assert_close(both, before[:, order], rtol=1e-3, atol=1e-3)


def test_a_small_map_tells_its_places_apart():
    """At t = 1 a fading network sees nothing: what differs from place to place is the position."""
    data = (Maps(name="image", channels=6, kernel=1, size=3),)
    sizes = dict(dim=24, multipliers=(1,), depth=1, attending=1, heads=2)
    network = MultiFlow(MultiFlowConfig(data=data, contexts={"image": 7}, **sizes))
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.3)
    made = asked(network, "image", torch.zeros(2, 6, 3, 3))
    assert made.shape == (2, 6, 3, 3) and made.flatten(2).std(2).min() > 1e-3
    network.parts["image_data"][0].positions.data.zero_()
    flat = asked(network, "image", torch.zeros(2, 6, 3, 3))
    assert flat.flatten(2).std(2).max() < 1e-3
