"""Tokens that are predicted: the mean of their vectors, and cross-entropy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from everyway.process.categorical import NEAR, Categorical, categorical
from everyway.process.config import gaussian

B, L, V, D = 3, 5, 7, 16


@dataclass
class Alone:
    """A vocabulary whose tokens are independent of each other."""

    table: Tensor
    bigrams: bool = True

    def marginals(self, scores: Tensor) -> Tensor:
        return scores.double().softmax(-1)


@pytest.fixture(scope="module")
def codec() -> Alone:
    return Alone(table=torch.randn(V, D, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def process(codec: Alone):
    return categorical(gaussian("cosine-x0"), codec)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def test_only_of_a_codec_that_counts(process) -> None:
    plain = gaussian("cosine-x0")
    assert categorical(plain, object()) is plain
    assert isinstance(process.parameterisation, Categorical)
    t, x = torch.tensor([0.3, 0.7, 1.0]), drawn(B, L, D)
    assert torch.equal(process.network_input(x, t), plain.network_input(x, t))
    assert torch.equal(process.corrupt(x, x, t), plain.corrupt(x, x, t))


def test_the_clean_state_is_the_mean_by_nearness(process, codec: Alone) -> None:
    raw, t = drawn(B, L, D), torch.full((B,), 0.5)
    distances = torch.cdist(raw, codec.table).square() * NEAR / (2 * D)
    expected = (-distances).softmax(-1) @ codec.table
    torch.testing.assert_close(process.to_clean(raw, raw, t), expected, rtol=1e-4, atol=1e-5)


def test_loss_is_cross_entropy_by_hand(process, codec: Alone) -> None:
    said = torch.arange(B * L).reshape(B, L) % V
    raw, t = drawn(B, L, D).requires_grad_(), torch.full((B,), 0.5)
    loss = process.loss(raw, codec.table[said], raw.detach(), t)
    chances = process.parameterisation.scores(raw).log_softmax(-1)
    expected = -chances.gather(-1, said[..., None])[..., 0].mean(1) / math.log(V)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert raw.grad.abs().sum() > 0


def test_nothing_known_costs_one(codec: Alone) -> None:
    even = Alone(table=torch.nn.functional.normalize(codec.table))  # all as long
    process = categorical(gaussian("cosine-x0"), even)
    loss = process.loss(
        torch.zeros(B, L, D),
        even.table[torch.zeros(B, L, dtype=torch.long)],
        torch.zeros(B, L, D),
        torch.ones(B),
    )
    torch.testing.assert_close(loss, torch.ones(B))


def test_min_snr_weighs_as_a_clean_prediction(process) -> None:
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    assert torch.equal(process.min_snr(t, 5.0), gaussian("cosine-x0").min_snr(t, 5.0))
