"""The shipped eDiff-I: what its preset is made of, and what its experts, its style and its cascade
do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from everyway.data.lattice import Lattice
from everyway.data.sample import to_tensor
from everyway.data.styles import draw
from everyway.generate import load
from everyway.metrics.judge import JUDGES
from everyway.train.config import resolve
from everyway.train.sources import Data, data_of

sys.path.insert(0, str(Path(__file__).parents[2] / "experiments"))
ediffi_experts = importlib.import_module("ediffi_experts")

TEXTS = ("a large fox left of a small teapot, blue background", "파란 배경에 큰 여우")


@pytest.fixture(scope="module")
def config():
    return resolve("mini-ediffi")


@pytest.fixture(scope="module")
def system(config):
    torch.manual_seed(0)
    return config.model.system(Data("lattice-with-style", 0))


@pytest.fixture(scope="module")
def shipped():
    return load("mini-ediffi", device="cpu")


def test_its_latents_hold_every_style_it_learns(system, config):
    """35 dB of flat pictures of 48 pixels, more of grey and tinted ones."""
    data, codec = data_of(system, config), system.codecs["image"]
    for style in data.styles:
        scenes = (Lattice(seed=700_001).scene(k) for k in range(32))
        real = to_tensor([draw(scene, style) for scene in scenes])
        small = torch.nn.functional.interpolate(real, size=(48, 48), mode="area")
        error = (codec.decode(codec.encode(real)) - small) / 2
        assert -10 * error.square().mean().log10() > 33
    assert system.media == {"style": "image"} and system.conditions["style"].asked == "style"
    assert sum(p.numel() for p in system.network.parameters()) < 2_500_000


def test_it_draws_what_is_said_in_one_request(shipped):
    made = shipped.generate(kind="text-to-image", text=list(TEXTS), n=3)
    assert {result.image.size for result in made} == {(128, 128)}
    seen = JUDGES["lattice"].read([result.image for result in made])
    assert sum("fox" in scene.names and scene.background == "blue" for scene in seen) >= 5
    (small,) = shipped.generate(kind="text-to-image", text=TEXTS[0], upscale="none")
    assert small.image.size == (48, 48)


def test_its_expert_of_little_noise_brings_pictures_nearer(shipped):
    """With each at its noise they come nearer to what a prompt tells than with the expert of much
    noise at all noise, above all where nothing should be."""
    assert [*shipped.system.networks] == ["network.E1_0", "network.E1_1"]
    models = dict(ediffi_experts.arms("mini-ediffi"))
    both, alone = (
        ediffi_experts.row(name, models[name], 16)
        for name in ("mini-ediffi", "mini-ediffi, E1_1 alone")
    )
    assert both["psnr"] > max(33, alone["psnr"] + 0.3)
    assert both["off_in_empty_cells"] < min(3, 0.8 * alone["off_in_empty_cells"])


def test_a_picture_gives_its_style(shipped):
    """A grey one takes the colours away, the more the stronger; a flat one leaves them."""
    scene = Lattice(seed=5).scene(2)

    def colour(style: str, strength: float) -> float:
        given = {"style": Image.fromarray(draw(scene, style))}
        weights = {"style": strength}
        settings = {"given": given, "context_weights": weights, "upscale": "none"}
        (made,) = shipped.generate(kind="text-to-image", text=TEXTS[0], **settings)
        return float(np.ptp(np.asarray(made.image, np.float64), axis=2).mean())

    flat, none, grey = colour("flat", 1.0), colour("grey", 0.0), colour("grey", 1.0)
    assert grey < 0.3 * none and flat > 0.8 * none
