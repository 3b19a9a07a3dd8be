"""What pictures lose: nothing where nothing is asked for, and the same in any batch."""

from __future__ import annotations

import pytest
import torch

from everyway.data.degrade import Degradation, blocky, blurred, degraded, resized
from everyway.errors import UsageError
from everyway.sampling.noise import PerSampleNoise


@pytest.fixture(scope="module")
def pictures():
    """(4, 3, 24, 20): smooth colours under a checkerboard."""
    source = torch.Generator().manual_seed(3)
    smooth = resized(torch.rand(4, 3, 4, 4, generator=source) - 0.5, (24, 20))
    board = (torch.arange(24)[:, None] + torch.arange(20)) % 2
    return smooth + 0.4 * board - 0.2


def test_a_degradation_of_nothing_is_the_picture(pictures):
    nothing = Degradation(factor=(1, 1), level=0)
    assert torch.equal(degraded(pictures, PerSampleNoise([1, 2, 3, 4]), nothing), pictures)
    some = Degradation(factor=(1, 1), share=0)
    assert torch.equal(degraded(pictures, PerSampleNoise([1, 2, 3, 4]), some), pictures)


def test_what_a_sample_loses_depends_on_its_seed_alone(pictures):
    how = Degradation()
    whole = degraded(pictures, PerSampleNoise([5, 6, 7, 8]), how)
    for k in range(4):
        alone = degraded(pictures[k : k + 1], PerSampleNoise([5 + k]), how)
        assert torch.equal(alone, whole[k : k + 1])
    assert not torch.equal(whole, degraded(pictures, PerSampleNoise([9, 10, 11, 12]), how))
    assert whole.shape == pictures.shape and whole.abs().max() <= 1


@pytest.mark.parametrize("kind", ["blur", "noise", "jpeg"])
def test_a_higher_level_loses_more(pictures, kind):
    none = {"factor": (1, 1), "blur": 0, "noise": 0, "jpeg": 0}
    errors = []
    for level in (0.25, 0.5, 1.0):
        how = Degradation(**{**none, kind: 0.9}, level=level)
        lost = degraded(pictures, PerSampleNoise([1, 2, 3, 4]), how) - pictures
        errors.append(float(lost.square().mean()))
    assert 0 < errors[0] < errors[1] < errors[2]


def test_blur_keeps_means_and_has_its_width():
    flat = torch.full((1, 3, 12, 12), 0.3)
    torch.testing.assert_close(blurred(flat, 2.0), flat)
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1
    spread = blurred(point, 2.0)[0, 0]
    place = torch.arange(41) - 20.0
    torch.testing.assert_close(float(spread.sum()), 1.0, atol=1e-5, rtol=0)
    assert float((spread.sum(0) * place**2).sum()) == pytest.approx(4.0, abs=0.1)


def test_a_jpeg_rounds_coefficients_and_nothing_else(pictures):
    assert torch.equal(blocky(pictures, 0.0), pictures)
    fine, coarse = (float((blocky(pictures, s) - pictures).abs().max()) for s in (1e-3, 0.5))
    assert fine < 0.02 < coarse
    twice = blocky(blocky(pictures[..., :16, :16], 0.3), 0.3)
    torch.testing.assert_close(twice, blocky(pictures[..., :16, :16], 0.3), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"factor": (0.5, 2)}, "factor"),
        ({"factor": (3, 2)}, "factor"),
        ({"level": 2}, "level"),
        ({"blur": -1}, "blur"),
    ],
)
def test_an_impossible_degradation_is_refused(wrong, said):
    with pytest.raises(UsageError, match=said):
        Degradation(**wrong)
