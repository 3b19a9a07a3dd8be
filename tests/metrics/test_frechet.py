"""The Fréchet distance of Gaussians is known."""

from __future__ import annotations

import pytest
import torch

from everyway.metrics.frechet import frechet_distance, frechet_interval


def test_of_two_gaussians():
    draw = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    draw = (draw - draw.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(draw.T)).T)
    assert frechet_distance(draw, draw) == pytest.approx(0.0, abs=1e-3)
    assert frechet_distance(draw, draw + 2.0) == pytest.approx(12.0, abs=1e-2)
    assert frechet_distance(draw, 3.0 * draw) == pytest.approx(3 * (3 - 1) ** 2, abs=1e-2)


def test_one_picture_is_too_few():
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(5, 3))


def test_the_interval_holds_the_value_of_many_pictures():
    """|m - m'|^2 = 0.75 of two Gaussians of unit covariance, from 2,000 draws of each."""
    source = torch.Generator().manual_seed(1)
    real, made = torch.randn(2, 2000, 3, generator=source)
    value, low, high = frechet_interval(real, made + 0.5)
    assert low < 0.75 < high and low < value < high < 1.2 and high - low < 0.4
