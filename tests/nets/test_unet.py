"""The U-Nets of eDiff-I: their sizes, and how contexts reach them."""

from __future__ import annotations

import json

import pytest
import torch

from everyway.contracts import Context
from everyway.errors import UsageError
from everyway.nets.unet import ContextStream, PictureStream, UNet, UNetConfig
from everyway.systems.ediffi import NETWORKS

CONTEXTS = (
    ContextStream(name="words", length=3, dim=8),
    ContextStream(name="sentence", length=4, dim=6, summary="first"),
    ContextStream(name="style", length=1, dim=5, summary="mean"),
)
SMALL = dict(
    size=16,
    channels=3,
    width=8,
    multipliers=(1, 2, 3),
    blocks=(1, 2, 1),
    self_attention=(8,),
    cross_attention=(8, 4),
    head_channels=4,
    context_dim=12,
    contexts=CONTEXTS,
)
KINDS = {
    "plain": UNetConfig(**SMALL),
    "efficient": UNetConfig(
        **SMALL, efficient=True, pictures=(PictureStream(name="low", channels=3),)
    ),
}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(config):
    """A network none of whose layers is zero."""
    network = UNet(config).eval()
    for k, p in enumerate(network.parameters()):
        p.data = 0.2 * normal(*p.shape, seed=k)
    return network


@pytest.fixture(scope="module")
def networks():
    return {name: filled(config) for name, config in KINDS.items()}


@pytest.fixture(scope="module")
def plain(networks):
    return networks["plain"]


def asked(network, batch=2, size=16, **changed):
    """Its answer, with contexts other than the usual ones."""
    own = {s.name: Context(tokens=normal(batch, s.tokens, s.dim)) for s in network.config.contexts}
    own |= {
        p.name: Context(tokens=normal(batch, p.channels, 4, 4)) for p in network.config.pictures
    }
    states = {"image": normal(batch, 3, size, size, seed=1)}
    times = {"image": torch.linspace(0.2, 0.7, batch, dtype=torch.float64)}
    with torch.no_grad():
        return network(states, times, own | changed)["image"]


# -- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, count",
    [
        ("ediffi-base", 806_632_963),
        ("ediffi-sr256", 655_276_931),
        ("ediffi-sr1024", 287_112_579),
    ],
)
def test_published_sizes(name, count):
    with torch.device("meta"):
        network = UNet(NETWORKS[name])
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("name", ["ediffi-base", "ediffi-sr256", "ediffi-sr1024"])
def test_attention_of_published_networks(name):
    """By the table of its appendix: in every block of the base, once a level of the others."""
    with torch.device("meta"):
        network = UNet(NETWORKS[name])
    found = [b.attended for b in network.blocks if b.attended is not None]
    alone, across = (sum(getattr(a, part) is not None for a in found) for part in ("attn", "cross"))
    wanted = {"ediffi-base": (22, 22), "ediffi-sr256": (3, 3), "ediffi-sr1024": (0, 3)}
    assert (alone, across) == wanted[name]


@pytest.mark.parametrize("kind", KINDS)
def test_config_is_plain_data(kind):
    config = KINDS[kind]
    assert UNetConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"blocks": (1, 1)}, "give as many"),
        ({"size": 18}, "cannot be halved"),
        ({"head_channels": 5}, "head_channels that divide"),
        ({"contexts": ()}, "contexts to attend to"),
    ],
)
def test_impossible_sizes(changed, said):
    with pytest.raises(UsageError, match=said):
        UNetConfig(**{**SMALL, **changed})


# -- what it answers --------------------------------------------------------------------------


def test_it_starts_as_zero():
    assert not asked(UNet(KINDS["plain"])).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [16, 24])
def test_shapes(networks, kind, size):
    """Also at another size than it is trained at."""
    out = asked(networks[kind], size=size)
    assert out.shape == (2, 3, size, size) and out.isfinite().all()


def test_time_and_noise_level(plain):
    """It sees its times through `noise_level` alone."""
    one = asked(plain)
    plain.noise_level, usual = (lambda t: 0 * t), plain.noise_level
    constant = asked(plain)
    plain.noise_level = usual
    assert not torch.allclose(one, constant)
    torch.testing.assert_close(asked(plain), one, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["words", "sentence", "style"])
def test_every_context_is_read(plain, name):
    stream = next(s for s in CONTEXTS if s.name == name)
    for k in range(stream.tokens):
        tokens = normal(2, stream.tokens, stream.dim)
        tokens[:, k] += 1
        assert not torch.allclose(asked(plain, **{name: Context(tokens=tokens)}), asked(plain))


def test_a_summary_first_is_not_attended_to(plain):
    """Its token is not among those of the scores."""
    seen = []

    def watched(scores):
        seen.append(scores.shape[-1])
        return torch.zeros_like(scores)

    tokens = normal(2, 5, 6)
    asked(plain, sentence=Context(tokens=tokens, bias=watched))
    assert {*seen} == {4}


def test_a_bias_reaches_every_cross_attention(plain):
    """With the scores of its own tokens at each place of each level."""
    seen = []

    def watched(scores):
        seen.append(tuple(scores.shape))
        return 0 * scores

    out = asked(plain, words=Context(tokens=normal(2, 3, 8), bias=watched))
    across = [b.attended for b in plain.blocks if b.attended and b.attended.cross]
    assert len(seen) == len(across) == 9
    assert {shape[2:] for shape in seen} == {(64, 3), (16, 3)}
    torch.testing.assert_close(out, asked(plain), rtol=1e-4, atol=1e-5)


def test_a_function_of_the_scores_is_a_tensor_of_them(plain):
    tokens = normal(2, 3, 8)
    bias = torch.tensor([0.0, 1.5, -2.0]).expand(2, 1, 1, 3)
    as_tensor = asked(plain, words=Context(tokens=tokens, bias=bias))
    as_function = asked(
        plain, words=Context(tokens=tokens, bias=lambda scores: bias.expand_as(scores))
    )
    torch.testing.assert_close(as_function, as_tensor)
    assert not torch.allclose(as_tensor, asked(plain))


def test_what_is_masked_is_not_seen(plain):
    mask = torch.tensor([[True, True, False], [True, True, True]])
    one = normal(2, 3, 8)
    other = one.clone()
    other[0, 2] += 5
    made = [asked(plain, words=Context(tokens=t, mask=mask)) for t in (one, other)]
    torch.testing.assert_close(made[0], made[1], rtol=0, atol=0)
    assert not torch.allclose(made[0][0], asked(plain)[0])
    torch.testing.assert_close(made[0][1], asked(plain)[1])
    minus = torch.where(mask, 0.0, -1e9)[:, None, None]
    torch.testing.assert_close(asked(plain, words=Context(tokens=one, bias=minus)), made[0])


@pytest.mark.parametrize("name", ["words", "sentence", "style"])
def test_weight_zero_and_dropped_are_zeros(plain, name):
    stream = next(s for s in CONTEXTS if s.name == name)
    tokens = normal(2, stream.tokens, stream.dim)
    zeros = asked(plain, **{name: Context(tokens=0 * tokens)})
    out = asked(plain, **{name: Context(tokens=tokens, weight=torch.zeros(2))})
    torch.testing.assert_close(out, zeros, rtol=0, atol=0)
    dropped = asked(plain, **{name: Context(tokens=tokens, dropped=torch.tensor([True, False]))})
    torch.testing.assert_close(dropped[0], zeros[0])
    torch.testing.assert_close(dropped[1], asked(plain)[1])


def test_a_picture_beside_the_state(networks):
    """It is made as large as the state, so one that is as large already gives the same."""
    network = networks["efficient"]
    small = normal(2, 3, 4, 4)
    large = torch.nn.functional.interpolate(small, (16, 16), mode="bilinear")
    torch.testing.assert_close(asked(network, low=Context(tokens=large)), asked(network))
    assert not torch.allclose(asked(network, low=Context(tokens=0 * small)), asked(network))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_nothing(kind):
    found = []
    for checkpointing in (False, True):
        network = filled(KINDS[kind])
        network.gradient_checkpointing = checkpointing
        own = {s.name: Context(tokens=normal(1, s.tokens, s.dim)) for s in CONTEXTS}
        own["low"] = Context(tokens=normal(1, 3, 4, 4))
        states, times = {"image": normal(1, 3, 16, 16)}, {"image": torch.full((1,), 0.5)}
        network(states, times, own)["image"].square().mean().backward()
        assert all(p.grad is not None for p in network.parameters())
        found.append([p.grad for p in network.parameters()])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


def test_take(plain):
    other = UNet(UNetConfig(**{**SMALL, "channels": 4}))
    missing = other.take(plain)
    assert missing == ["enter.weight", "leave.bias", "leave.weight"]
    assert torch.equal(other.time[0].weight, plain.time[0].weight)
