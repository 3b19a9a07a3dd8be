"""U-Nets of few places: folded pixels, learned places, and outputs beside a picture."""

from __future__ import annotations

import json

import pytest
import torch

from everyway.contracts import Context
from everyway.errors import UsageError
from everyway.nets.unet import ContextStream, PictureStream, UNet, UNetConfig

TINY = dict(size=12, channels=3, width=8, multipliers=(1, 2), blocks=(1, 1), fold=3)
TIMES = {"image": torch.tensor([0.3, 0.8], dtype=torch.float64)}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(config):
    network = UNet(config).eval()
    for k, p in enumerate(network.parameters()):
        p.data = 0.2 * normal(*p.shape, seed=k)
    return network


def test_a_fold_makes_pixels_channels_and_pixels_again():
    config = UNetConfig(**TINY)
    assert config.sides == (4, 2)
    assert UNetConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    network = filled(config)
    assert network.enter.weight.shape == (8, 27, 3, 3)
    for size in (12, 24):
        made = network({"image": normal(2, 3, size, size)}, TIMES)["image"]
        assert made.shape == (2, 3, size, size)
    with pytest.raises(UsageError, match="size 13 cannot be folded by 3"):
        UNetConfig(**{**TINY, "size": 13})


def test_a_fresh_network_that_predicts_what_a_picture_lacks_gives_the_picture():
    low = PictureStream(name="low", channels=3, residual=True)
    network = UNet(UNetConfig(**TINY, pictures=(low,)))
    picture = normal(2, 3, 12, 12, seed=5)
    made = network({"image": normal(2, 3, 12, 12)}, TIMES, {"low": Context(tokens=picture)})
    assert torch.equal(made["image"], picture)
    shown = UNet(UNetConfig(**TINY, pictures=(PictureStream(name="low", channels=3),)))
    made = shown({"image": normal(2, 3, 12, 12)}, TIMES, {"low": Context(tokens=picture)})
    assert not made["image"].any()


@pytest.mark.parametrize("feed_forward", [0, 2])
@pytest.mark.parametrize("positions", [False, True])
def test_the_order_of_tokens_counts_where_the_network_learned_places(positions, feed_forward):
    stream = ContextStream(name="words", length=4, dim=6, positions=positions)
    own = dict(
        size=3, channels=5, width=8, multipliers=(1,), blocks=(1,), kernel=1,
        self_attention=(3,), cross_attention=(3,), head_channels=4, context_dim=8,
        contexts=(stream,), positions=positions, feed_forward=feed_forward,
    )  # fmt: skip
    network, words = filled(UNetConfig(**own)), normal(2, 4, 6, seed=9)
    state = {"image": normal(2, 5, 3, 3)}

    def asked(tokens):
        return network(state, TIMES, {"words": Context(tokens=4 * tokens)})["image"]

    turned, other = asked(words.flip(1)), asked(normal(2, 4, 6, seed=10))
    assert torch.allclose(turned, asked(words), rtol=0, atol=1e-5) != positions
    assert not torch.allclose(other, asked(words), rtol=0, atol=1e-4)
