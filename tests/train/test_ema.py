"""Averages of the weights: the classic one, and one by a power function of time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from everyway.train.ema import EMA, exponent


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("x", torch.zeros((), dtype=torch.float64))
        self.register_buffer("n", torch.zeros((), dtype=torch.long))


def average(values: np.ndarray, *settings: float) -> float:
    network = Counting()
    ema = EMA(network, *settings)
    for step, value in enumerate(values):
        network.x.fill_(value)
        ema.update(network, step)
    assert ema.weights["n"].dtype == torch.long
    return float(ema.weights["x"])


@pytest.mark.parametrize("length, gamma", [(0.05, 16.97), (0.10, 6.94)])
def test_a_relative_width_is_a_power(length, gamma):
    """16.97 and 6.94 stand in Karras et al., 2023; the width is that of the density t^gamma."""
    found = exponent(length)
    assert found == pytest.approx(gamma, rel=2e-2)
    mean, square = ((found + 1) / (found + 1 + k) for k in (1, 2))
    assert np.sqrt(square - mean**2) == pytest.approx(length, rel=1e-9)


@pytest.mark.parametrize("steps", [50, 400])
@pytest.mark.parametrize("length", [0.05, 0.10, 0.25])
def test_the_average_weighs_steps_by_that_power_however_long_it_is(steps, length):
    """What a step left is seen by training on a 1 there and 0 elsewhere: linear, so all at once."""
    weights = np.array([average(np.eye(steps)[k], 0.9, length) for k in range(0, steps, 7)])
    gamma, t = exponent(length), np.arange(1, steps + 1)
    kept = (t / steps) ** (gamma + 1)
    wanted = np.diff(kept, prepend=0.0)[::7]  # of a product of (1 - 1/t)^(gamma + 1)
    np.testing.assert_allclose(weights, wanted, rtol=1e-9, atol=1e-12)
    mean = average(np.arange(1, steps + 1) / steps, 0.9, length)
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), abs=1.5 / steps)


def test_the_classic_one_is_as_it_was():
    """min(decay, (1 + n) / (10 + n)), step by step."""
    values = np.random.default_rng(0).standard_normal(60)
    wanted = 0.0
    for n, value in enumerate(values):
        decay = min(0.8, (1 + n) / (10 + n))
        wanted = decay * wanted + (1 - decay) * value
    assert average(values, 0.8) == pytest.approx(wanted, rel=1e-9)
