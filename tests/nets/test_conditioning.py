"""Masks, biases, nulls and weights of contexts, in attention and in both networks."""

from __future__ import annotations

import pytest
import torch

from everyway.contracts import Context
from everyway.nets.attention import attention
from everyway.nets.token_transformer import TokenTransformer, TokenTransformerConfig
from everyway.nets.tokens import ContextTokens, Label, Patches, TimeToken
from everyway.nets.uvit import UViT, UViTConfig, _joint_bias

TEXT = dict(length=5, dim=6)
TIMES = {"image": torch.tensor([0.3, 0.8], dtype=torch.float64)}
NO = torch.zeros(2, dtype=torch.bool)


def uvit(*conditioning) -> UViT:
    layout = (
        TimeToken(clock="image"),
        *conditioning,
        Patches(name="image", channels=2, size=4, patch=2),
    )
    return UViT(UViTConfig(layout=layout, dim=16, depth=2, heads=2, init="unit"))


def transformer(**changes) -> TokenTransformer:
    sizes = dict(codes=7, side=2, dim=16, depth=2, heads=2, text_length=5, text_dim=6)
    torch.manual_seed(1)
    made = TokenTransformer(TokenTransformerConfig(**sizes, condition="text", **changes))
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return made


UVIT = uvit(ContextTokens(name="text", **TEXT, null=True))
STATES = {"uvit": torch.randn(2, 2, 4, 4), "transformer": torch.randint(0, 7, (2, 4))}
NETWORKS = {"uvit": UVIT, "transformer": transformer(learned_null=True)}


def ask(name: str, context: Context) -> torch.Tensor:
    with torch.no_grad():
        return NETWORKS[name]({"image": STATES[name]}, TIMES, {"text": context})["image"]


def text(seed: int) -> torch.Tensor:
    return torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_with_mask_and_bias(dtype):
    q, k, v = (torch.randn(2, 3, 5, 8).to(dtype) for _ in range(3))
    scores = (q.double() @ k.double().mT) / 8**0.5
    mask, bias = torch.rand(2, 1, 5, 5) > 0.3, torch.randn(2, 3, 5, 5)
    mask[..., 0] = True
    close = dict(rtol=0, atol=1e-5 if dtype == torch.float32 else 0.05)
    for given, added in (
        ({"mask": mask}, torch.zeros(()).double().where(mask, -torch.inf)),
        ({"bias": bias}, bias),
        ({"mask": mask, "bias": bias}, bias.where(mask, torch.tensor(-torch.inf))),
        ({"bias": lambda s: 2 * s.amax(-1, keepdim=True) * (s > 0)}, None),
    ):
        if added is None:
            added = 2 * scores.amax(-1, keepdim=True) * (scores > 0)
        expected = (scores + added).softmax(-1) @ v.double()
        torch.testing.assert_close(attention(q, k, v, **given).double(), expected, **close)


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_tokens_are_not_seen(name):
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    a, b = text(0), text(1)
    b[:, :3] = a[:, :3]
    seen, other = (ask(name, Context(tokens=t, mask=mask)) for t in (a, b))
    assert torch.equal(seen, other)
    assert not torch.allclose(ask(name, Context(tokens=a)), ask(name, Context(tokens=b)), atol=1e-4)
    everywhere = Context(tokens=a, mask=torch.ones(2, 5, dtype=torch.bool))
    torch.testing.assert_close(ask(name, everywhere), ask(name, Context(tokens=a)))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_bias_is_how_strongly_a_token_is_attended_to(name):
    mask = torch.tensor([[True] * 4 + [False]] * 2)
    far = torch.zeros(2, 1, 1, 5).masked_fill(~mask[:, None, None], -1e9)
    masked, biased = Context(tokens=text(0), mask=mask), Context(tokens=text(0), bias=far)
    torch.testing.assert_close(ask(name, masked), ask(name, biased))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_bias_may_be_a_function_of_the_scores(name):
    """Of those between the picture's four places and the five tokens."""
    seen = []

    def ask_with(bias):
        return ask(name, Context(tokens=text(0), bias=bias))

    stronger = ask_with(lambda scores: seen.append(scores.shape) or scores)
    blocks = 3 if name == "uvit" else 2  # joint attention asks for both directions
    assert seen == [(2, 2, 4, 5)] * (2 * blocks if name == "uvit" else blocks)
    plain = ask(name, Context(tokens=text(0)))
    assert not torch.allclose(stronger, plain)
    torch.testing.assert_close(ask_with(torch.zeros_like), plain)


def test_a_function_bears_on_both_directions_of_joint_attention():
    scores, ones = torch.randn(1, 1, 4, 4), torch.ones(1, 1, 1, 1)
    added = _joint_bias(
        scores,
        [0 * ones, lambda s: 10 + s, 3 * ones],
        lengths=[1, 1, 2],
        pictures=[False] * 2 + [True],
    )
    expected = torch.zeros(4, 4)
    expected[:, 2:] = 3
    expected[2:, 1], expected[1, 2:] = 10 + scores[0, 0, 2:, 1], 13 + scores[0, 0, 1, 2:]
    torch.testing.assert_close(added[0, 0], expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_dropped_samples_have_the_networks_own_null(name):
    network = NETWORKS[name]
    null = network.nulls["text"] if name == "uvit" else network.null
    given = Context(tokens=text(0), dropped=torch.tensor([False, True]))
    by_hand = Context(tokens=torch.stack([text(0)[0], null.detach()]))
    assert torch.equal(ask(name, given), ask(name, by_hand))
    assert torch.equal(
        ask(name, Context(tokens=text(0), dropped=NO)), ask(name, Context(tokens=text(0)))
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_a_weight_blends_with_the_null(name):
    def weighed(w: float) -> torch.Tensor:
        return ask(name, Context(tokens=text(0), weight=torch.full((2,), w)))

    assert torch.equal(weighed(1.0), ask(name, Context(tokens=text(0))))
    assert torch.equal(weighed(0.0), ask(name, Context(tokens=text(0), dropped=~NO)))
    assert not torch.allclose(weighed(0.5), weighed(1.0), atol=1e-4)
    assert not torch.allclose(weighed(0.5), weighed(0.0), atol=1e-4)


def test_two_contexts_of_one_kind_have_each_its_own_null():
    network = uvit(*(ContextTokens(name=n, **TEXT, null=True) for n in ("subject", "style")))
    conditioning = {n: Context(tokens=text(k)) for k, n in enumerate(("subject", "style"))}
    for lost in conditioning:
        given = conditioning | {lost: Context(tokens=text(9), dropped=~NO)}
        by_hand = conditioning | {
            lost: Context(tokens=network.nulls[lost].detach().expand(2, -1, -1))
        }
        answers = [network({"image": STATES["uvit"]}, TIMES, c)["image"] for c in (given, by_hand)]
        assert torch.equal(*answers)


def test_a_label_is_blended_with_the_last_one():
    network = uvit(Label(name="label", classes=4))
    label = Context(tokens=torch.tensor([0, 1]), weight=torch.tensor([0.0, 1.0]))
    answers = [
        network({"image": STATES["uvit"]}, TIMES, {"label": c})["image"]
        for c in (label, Context(tokens=torch.tensor([3, 1])))
    ]
    assert torch.equal(*answers)


def test_every_learned_null_is_trained():
    """It is part of the forward, so a wrapped network (FSDP) gathers and learns it."""
    network = transformer(learned_null=True)
    given = {"text": Context(tokens=text(0), dropped=torch.tensor([False, True]))}
    network({"image": STATES["transformer"]}, TIMES, given)["image"].square().sum().backward()
    assert network.null.grad.abs().sum() > 0


def test_a_null_that_a_network_lacks_is_refused():
    given = {"text": Context(tokens=text(0), dropped=~NO)}
    with pytest.raises(ValueError, match="no null of its own"):
        transformer()({"image": STATES["transformer"]}, TIMES, given)
    with pytest.raises(ValueError, match="no null of its own"):
        uvit(ContextTokens(name="text", **TEXT))({"image": STATES["uvit"]}, TIMES, given)
