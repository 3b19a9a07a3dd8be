"""Controls: what a mask frees, what is pinned, and the way between two samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from everyway.controls.interpolation import slerp
from everyway.controls.masks import free_places, pinned
from everyway.data.pictures import square
from everyway.data.shapes import Shapes
from everyway.process.gaussian import GaussianProcess, V
from everyway.process.mask_replace import MaskReplace
from everyway.process.schedules import CosineVP
from everyway.request import GenerateRequest
from everyway.sampling.noise import PerSampleNoise


def test_a_place_is_free_where_any_of_its_pixels_is():
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    mask[0, 5, 9] = True
    assert free_places(mask, (16,)).nonzero().tolist() == [[1 * 4 + 2]]
    assert free_places(mask, (3, 8, 8)).nonzero().tolist() == [[0, 2, 4]]
    with pytest.raises(ValueError, match="no places"):
        free_places(mask, (1, 12))


def test_known_states_stand_at_the_time_of_the_others():
    processes = {
        "x": GaussianProcess(schedule=CosineVP(), parameterisation=V),
        "y": MaskReplace(classes=5),
    }
    known = {"x": torch.randn(2, 1, 4, 4), "y": torch.randint(0, 5, (2, 16))}
    free = {"x": torch.zeros(1, 4, 4, dtype=torch.bool), "y": torch.zeros(16, dtype=torch.bool)}
    free["x"][..., 0], free["y"][:3] = True, True
    pin = pinned(known, free, processes, PerSampleNoise([1, 2]))
    states = {"x": torch.full((2, 1, 4, 4), 9.0), "y": torch.full((2, 16), 5), "z": torch.ones(2)}
    at_end, midway, again = (pin(states, {"x": t, "y": t}) for t in (0.0, 0.5, 0.5))
    assert torch.equal(at_end["x"][..., 1:], known["x"][..., 1:])
    assert (at_end["x"][..., 0] == 9).all() and at_end["z"] is states["z"]
    assert not torch.allclose(midway["x"][..., 1:], known["x"][..., 1:], atol=0.1)
    assert torch.equal(midway["x"], again["x"])
    for placed in (at_end, midway):
        assert (
            torch.equal(placed["y"][:, 3:], known["y"][:, 3:]) and (placed["y"][:, :3] == 5).all()
        )


def test_the_way_between_two_samples_keeps_their_size():
    a, b = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    way = slerp(a, b, torch.linspace(0, 1, 5))
    torch.testing.assert_close(way[0], a)
    torch.testing.assert_close(way[-1], b)
    assert (way.norm(dim=1) / a.norm() - 1).abs().max() < 0.1
    torch.testing.assert_close(slerp(a, a, torch.tensor([0.3]))[0], a)


def test_a_gaussian_model_redraws_only_what_the_mask_frees(nano, tmp_path):
    picture, mask = tmp_path / "shape.png", tmp_path / "mask.png"
    scene = Shapes(seed=5).sample(0)
    Image.fromarray(scene.image).save(picture)
    bright = np.zeros(scene.image.shape[:2], np.uint8)
    bright[:, : bright.shape[1] // 2] = 255
    Image.fromarray(bright).save(mask)
    base = {"kind": "inpaint", "images": (picture,), "mask": mask, "steps": 6}
    made = nano.generate(**base, text=scene.captions[0])[0].image
    side = made.width
    given, drawn = (np.array(p, int) for p in (square(Image.fromarray(scene.image), side), made))
    off = np.abs(drawn - given).max(-1)
    assert off[:, side // 2 :].max() == 0 < off[:, : side // 2].max()  # bit for bit
    blended = np.array(nano.generate(**base, text=scene.captions[0], blend=4)[0].image, int)
    border, inside = side // 2 - 1, side // 2 - 5
    assert np.array_equal(blended[:, side // 2 :], given[:, side // 2 :])
    assert np.array_equal(blended[:, : inside + 1], drawn[:, : inside + 1])
    assert abs(blended - given)[:, border].sum() < 0.5 * abs(drawn - given)[:, border].sum()


def test_strength_says_how_much_of_a_picture_is_forgotten(nano, tmp_path):
    picture = tmp_path / "shape.png"
    Image.fromarray(Shapes(seed=5).sample(0).image).save(picture)
    base = {"kind": "image-to-image", "images": (str(picture),), "steps": 10}
    given = np.array(nano.generate(GenerateRequest(**base, strength=0.05))[0].image, int)
    off = []
    for strength in (0.2, 1.0):
        result = nano.generate(GenerateRequest(**base, strength=strength))[0]
        off.append(np.abs(np.array(result.image, int) - given).mean())
        assert result.metadata["forwards"] == round(10 * strength)
    assert off[0] < 0.5 * off[1]
