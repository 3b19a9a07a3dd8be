"""The blocks of U-Nets: what they start as, what the time and a context do to them."""

from dataclasses import replace

import pytest
import torch

from everyway.contracts import Context
from everyway.nets.gradient_checkpointing import run
from everyway.nets.unet_blocks import (
    Downsample,
    ResidualBlock,
    SpatialTransformer,
    TimeEmbedding,
    Upsample,
)


def filled(module):
    """No weight left at zero, so that every part of a block shows."""
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator) + (p.ndim == 1)
    return module.double().eval()


def maps(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_blocks_start_as_nothing_beside_their_input():
    x, context = maps(2, 32, 4, 4).float(), Context(tokens=maps(2, 5, 8).float())
    assert torch.equal(ResidualBlock(32, 32, 16)(x, maps(2, 16).float()), x)
    assert torch.equal(SpatialTransformer(32, 4, 8)(x, context), x)


@pytest.mark.parametrize("scale_shift", [False, True])
def test_the_time_reaches_a_residual_block(scale_shift):
    block = filled(ResidualBlock(32, 64, 16, scale_shift=scale_shift))
    x, time = maps(2, 32, 4, 4), maps(2, 16)
    assert block(x, time).shape == (2, 64, 4, 4)
    assert not torch.allclose(block(x, time), block(x, time + 1))


def test_scale_and_shift_are_those_of_the_second_norm():
    block = filled(ResidualBlock(32, 32, 16, scale_shift=True))
    x, time = maps(2, 32, 4, 4), maps(2, 16)
    with torch.no_grad():
        block.time.weight.zero_()
        block.time.bias.zero_()
        plain = block(x)
        assert torch.allclose(block(x, time), plain)  # (1 + 0) norm + 0
        block.time.bias.copy_(torch.cat([torch.full((32,), -1.0), torch.zeros(32)]))
        nothing = block.conv2.bias[:, None, None] + 0 * plain  # padding sees SiLU(0) = 0 as well
        assert torch.allclose(block(x, time), x + nothing)


def test_samplers_halve_and_double():
    x = maps(1, 32, 6, 6).float()
    assert Downsample(32, 64)(x).shape == (1, 64, 3, 3)
    assert Upsample(32)(x).shape == (1, 32, 12, 12)
    assert Upsample(32)(x, size=(11, 11)).shape == (1, 32, 11, 11)


def test_the_sinusoid_of_a_time_is_cosines_then_sines():
    embedding = TimeEmbedding(4, 8)
    for layer in (embedding[0], embedding[2]):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    tau = torch.tensor([30.0])
    angles = tau[:, None] * torch.tensor([1.0, 0.01])
    wanted = torch.nn.functional.silu(torch.cat([angles.cos(), angles.sin()], -1))
    assert torch.allclose(embedding(tau)[:, :4], wanted)


def test_a_masked_token_does_not_matter_and_a_bias_outweighs_it():
    block = filled(SpatialTransformer(32, 4, 8))
    x, tokens = maps(2, 32, 3, 4), maps(2, 5, 8)
    mask = torch.tensor([[True, True, False, True, False]]).expand(2, -1)
    shown = block(x, Context(tokens=tokens[:, mask[0]]))
    assert torch.allclose(block(x, Context(tokens=tokens, mask=mask)), shown)
    bias = torch.where(mask, 0.0, -1e4)[:, None, None]
    assert torch.allclose(block(x, Context(tokens=tokens, bias=bias)), shown)
    called = Context(tokens=tokens, bias=lambda scores: bias.expand_as(scores))
    assert torch.allclose(block(x, called), shown)
    everywhere = replace(called, bias=None)
    assert not torch.allclose(block(x, everywhere), shown)


def test_each_part_of_a_transformer_is_optional():
    alone = filled(SpatialTransformer(32, 4, 0, feed_forward=False))
    assert {n.split(".")[2] for n, _ in alone.layers.named_parameters(prefix="layers")} == {
        "norm_attn",
        "attn",
    }
    assert alone(maps(1, 32, 2, 2)).shape == (1, 32, 2, 2)
    crossing = filled(SpatialTransformer(32, 4, 8, self_attention=False))
    with pytest.raises(ValueError, match="attends to a context"):
        crossing(maps(1, 32, 2, 2))


def test_gradient_checkpointing_changes_no_gradient():
    block = filled(SpatialTransformer(32, 4, 8)).train()
    x, context = maps(1, 32, 2, 2), Context(tokens=maps(1, 5, 8))
    gradients = []
    for wanted in (False, True):
        block.zero_grad()
        run(block, x, context, gradient_checkpointing=wanted).square().sum().backward()
        gradients.append([p.grad.clone() for p in block.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))
