"""Colours and texts that are changed after they were made, as the released code changes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from everyway.controls.colour import adjusted
from everyway.controls.editing import along, edited
from everyway.data.cleaning import cleaned, without_repeats
from formula import normal

FOLDER = Path(__file__).parents[1] / "golden" / "versatile"


@pytest.fixture(scope="module")
def colours():
    """(what was drawn, the reference), (3, 32, 32) in [0, 1], and the released results."""
    drawn = torch.sigmoid(normal("input:color_generated", (3, 32, 32)))
    shift = torch.tensor([1.0, 0.0, -1.0])[:, None, None]
    reference = torch.sigmoid(0.5 * normal("input:color_reference", (3, 32, 32)) + shift)
    return drawn, reference, np.load(FOLDER / "r_color_adjust.npz")


def test_colours_are_adjusted_as_released(colours):
    drawn, reference, golden = colours
    made = adjusted(2 * drawn - 1, 2 * reference - 1)
    np.testing.assert_allclose((made + 1) / 2, golden["head_simple_chw"], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("curve", "name"),
    [(False, "legacy_simple_keep0.5_uint8_hwc"), (True, "legacy_cdf_keep0.5_uint8_hwc")],
)
def test_the_first_release_went_half_way_on_bytes(colours, curve, name):
    """The extremes of a channel, five values of 3072, lie beyond the reference's in its curve."""
    drawn, reference = ((255 * x.double()).floor() / 127.5 - 1 for x in colours[:2])
    made = adjusted(drawn, reference, rate=0.5, curve=curve)
    made = ((made + 1) * 127.5 + 1e-9).floor().permute(1, 2, 0).numpy()
    apart = np.abs(made - colours[2][name].astype(float))
    assert (apart > 0).sum() <= (5 if curve else 0)
    assert apart.max() <= 3


def test_adjusted_colours_are_those_of_the_reference(colours):
    drawn, reference = (0.5 * (2 * x - 1) for x in colours[:2])
    made = adjusted(drawn, reference)
    torch.testing.assert_close(made.mean((1, 2)), reference.mean((1, 2)))
    torch.testing.assert_close(made.std((1, 2)), reference.std((1, 2)))
    assert torch.equal(adjusted(drawn, reference, rate=0.0), drawn)
    grey = torch.zeros(3, 8, 8)
    flat = adjusted(grey, reference)
    torch.testing.assert_close(flat[:, 0, 0], reference.mean((1, 2)))
    order = adjusted(drawn, reference, curve=True)[0].flatten()[drawn[0].flatten().argsort()]
    assert (order.diff() >= 0).all()


def test_a_text_latent_is_edited_as_released():
    z, negative = normal("input:edit_zt", (2, 768)), normal("input:edit_zneg", (1, 768))
    positive, golden = normal("input:edit_zpos", (1, 768)), np.load(FOLDER / "h_i2t2i_latent.npz")
    made = edited(z, negative, positive)
    np.testing.assert_allclose(made, golden["z_new"], rtol=0, atol=2e-6)
    unit = negative / negative.norm()
    np.testing.assert_allclose(along(z, negative) @ unit[0], golden["proj"], rtol=0, atol=2e-5)
    assert (along(edited(z, negative), negative).abs() < 1e-6).all()
    sequence = edited(z.reshape(2, 12, 64), negative.reshape(1, 12, 64))
    torch.testing.assert_close(sequence.flatten(1), edited(z, negative))
    assert edited(z) is z


def test_a_caption_says_nothing_twice_in_a_row():
    pairs = json.loads((FOLDER / "r_text_dedup.json").read_text("utf-8"))
    assert {said: without_repeats(said) for said in pairs} == pairs
    for once in pairs.values():
        assert without_repeats(once) == once


@pytest.mark.parametrize(
    ("found", "made"),
    [
        ("A <b>red</b> car&nbsp;for sale, see https://a.example/x?y=1", "A red car for sale, see"),
        ("mail me@place.org or www.place.org", "mail or"),
        ("Sunset (stock photo) [4k] over the sea .", "Sunset over the sea."),
        ("a black-and-white dog_house/kennel", "a black and white dog house kennel"),
        ("the “king” of 'pop' and the fox's tail", "the king of pop and the fox's tail"),
        ("빨간 자동차 (광고)", "빨간 자동차"),
        ("a plain caption", "a plain caption"),
    ],
)  # fmt: skip
def test_captions_of_the_web_are_cleaned(found, made):
    assert cleaned(found) == made
    assert cleaned(made) == made
