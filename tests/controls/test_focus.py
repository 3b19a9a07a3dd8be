"""Focus: against the numbers of the released code, and what it does to components."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from everyway.controls.focus import exact, focused, multipliers, released, weighed
from everyway.errors import UsageError
from formula import normal

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "versatile" / "h_focus_head.npz")
LEVELS = ("0", "0.2", "0.4", "0.5", "0.52", "0.6", "0.8", "1")


@pytest.fixture(scope="module")
def structured():
    """(1, 256, 768): 24 well separated components and a little noise."""
    u, v = normal("input:focus_U", (256, 24)), normal("input:focus_V", (768, 24))
    u, v = (x / x.norm(dim=0) for x in (u, v))
    return (u * 400 * 0.8 ** torch.arange(24)) @ v.T + 0.05 * normal("input:focus_N", (1, 256, 768))


@pytest.fixture(scope="module")
def gaussian():
    """(1, 256, 768), whose components are hardly separated."""
    return normal("input:focus_c", (1, 257, 768))[:, 1:]


def check(made, name, atol):
    expected = GOLDEN[f"{name}__flat_sub"]
    stride = int(GOLDEN[f"{name}__flat_stride"])
    np.testing.assert_allclose(made.flatten()[::stride], expected, rtol=0, atol=atol)
    found = [float(x) for x in (made.double().mean(), made.double().std(correction=0))]
    np.testing.assert_allclose(found, GOLDEN[f"{name}__stats"][:2], rtol=0, atol=atol)


def strengths(tokens):
    """Singular values of one sample's tokens less their means, the largest first."""
    x = (tokens - tokens.mean(2, keepdim=True)).double()[0]
    return torch.linalg.eigvalsh(x @ x.T).flip(0).clamp_min(0).sqrt()


def test_multipliers_are_the_released_ones():
    kinds = {"mult_semantic_lvl": slice(0, 2), "mult_style_lvl": slice(5, 20)}
    keys = [(k, part) for start, part in kinds.items() for k in GOLDEN.files if k.startswith(start)]
    assert len(keys) == 12
    for key, part in keys:
        made = multipliers(float(key.partition("lvl")[2]))
        np.testing.assert_allclose(made[part], GOLDEN[key], rtol=0, atol=1e-12)
    assert torch.equal(multipliers(1.0)[:5], torch.ones(5, dtype=torch.float64))
    assert torch.equal(multipliers(0.5), torch.ones(20, dtype=torch.float64))


@pytest.mark.parametrize("level", LEVELS)
def test_a_structured_embedding_is_as_released(structured, level):
    check(focused(structured, float(level), leading=0), f"struct_lvl{level}", 2e-5)


@pytest.mark.parametrize("level", ("0.2", "1"))
def test_the_released_way_of_finding_components(gaussian, structured, level):
    """Hardly separated components are as the processor adds up: on any, as far from the exact ones
    as the golden says of its own, so that two are up to twice that apart."""
    apart = float(GOLDEN[f"gauss_lvl{level}__maxabs_vs_exact_svd"])
    check(focused(gaussian, float(level), leading=0), f"gauss_lvl{level}", 1.5 * apart)
    check(focused(gaussian, float(level), 0, released), f"gauss_lvl{level}", 2 * apart)
    check(focused(structured, float(level), 0, released), f"struct_lvl{level}", 2e-5)


def test_semantic_and_style_focus_share_the_components_out(structured):
    """What semantic focus takes away is the start of what style focus keeps."""
    some = structured[:, :64]
    strength = strengths(some)
    for focus, alive in ((0.0, slice(2, None)), (1.0, slice(0, 5))):
        left = strengths(focused(some, focus, leading=0))[: len(strength[alive])]
        kept = strength[alive] / strength[alive][0]
        torch.testing.assert_close(left / left[0], kept, atol=1e-4, rtol=0)
    with_all = focused(some, 0.5, leading=0)
    assert with_all is some


def test_focus_leaves_global_tokens_and_size_and_knows_no_batch(structured):
    whole = torch.cat([normal("global", (2, 1, 768)), structured.expand(2, -1, -1)], 1)
    whole[1] += normal("other", (257, 768))
    for focus in (0.2, 0.8):
        both = focused(whole, focus)
        assert torch.equal(both[:, :1], whole[:, :1])
        old, new = (x[:, 1:].std((1, 2)) for x in (whole, both))
        torch.testing.assert_close(new, old, rtol=1e-4, atol=0)
        for k in range(2):
            alone = focused(whole[k : k + 1], focus)
            torch.testing.assert_close(both[k : k + 1], alone, atol=1e-5, rtol=0)
    half = focused(whole.half(), 0.2)
    assert half.dtype == torch.half


def test_components_are_weighed_by_hand():
    """Known components: each goes where its number says, and the rest where `rest` does."""
    u, v = (torch.linalg.qr(normal(name, (n, 3)))[0] for name, n in (("u", 8), ("v", 12)))
    v = torch.linalg.qr(v - v.mean(0))[0]  # rows of mean 0
    x = (u * torch.tensor([9.0, 5.0, 2.0])) @ v.T
    for rest in (0.0, 1.0):
        made = weighed(x[None] + 3, torch.tensor([0.5, 0.0]), rest)
        expected = (u * torch.tensor([4.5, 0.0, 2.0 * rest])) @ v.T + 3
        torch.testing.assert_close(made[0], expected, atol=1e-5, rtol=0)
    both = exact(x[None], 2).mT @ u[:, :2]
    torch.testing.assert_close(both[0].abs(), torch.eye(2), atol=1e-5, rtol=0)


def test_what_has_no_focus():
    with pytest.raises(UsageError, match="focus 1.5 is outside"):
        focused(torch.randn(1, 9, 4), 1.5)
    with pytest.raises(UsageError, match="2 local tokens have no focus"):
        focused(torch.randn(1, 3, 4), 0.0)
