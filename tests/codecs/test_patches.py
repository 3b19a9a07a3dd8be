"""Tokens of patches: a style lies in what all of them share, and objects in what they do not."""

from __future__ import annotations

import pytest
import torch

from everyway.codecs.patches import TONES, PatchContext, places, tone
from everyway.controls.focus import SEMANTIC, STYLE, focused
from everyway.data.lattice import Lattice
from everyway.data.sample import to_tensor
from everyway.data.styles import STYLES, Styled
from everyway.sampling.noise import PerSampleNoise

CHANNELS = 32
SHOWN, TONE = slice(0, CHANNELS), slice(CHANNELS, CHANNELS + TONES)
WHERE = slice(CHANNELS + TONES + 1, None)
PARTS = {"shown": SHOWN, "tone": TONE}


@pytest.fixture(scope="module")
def data():
    return Styled(scenes=Lattice(seed=4))


@pytest.fixture(scope="module")
def codec(data):
    made = PatchContext(channels=CHANNELS)
    made.fit(to_tensor([data.sample(k).image for k in range(80)]))
    return made


def tokens_of(codec, data, scenes):
    """style -> tokens of the same scenes in it."""
    made = [data.renderings(k) for k in scenes]
    return {name: codec.encode(to_tensor([m[name] for m in made])) for name in STYLES}


def energy(tokens):
    return tokens.square().mean().item()


def test_every_token_tells_the_tone_of_its_picture(codec, data):
    for tokens in tokens_of(codec, data, range(3)).values():
        assert tokens.shape == (3, codec.count, codec.width)
        assert (tokens[..., TONE] - tokens[:, :1, TONE]).abs().max() == 0


def test_what_patches_show_is_brightness_alone(codec, data):
    """Grey pictures have the brightness of flat ones, to half a level in 255."""
    found = tokens_of(codec, data, range(6))
    flat, grey = (found[name][..., SHOWN] for name in ("flat", "grey"))
    assert energy(flat - grey) < 1e-3 * energy(flat)
    flat, grey = (found[name][..., TONE] for name in ("flat", "grey"))
    assert energy(flat - grey) > 0.2 * energy(flat)


def test_tone_counts_edges_and_colours():
    plain = torch.full((1, 3, 8, 8), 0.5)
    assert torch.allclose(tone(plain)[0, :3], torch.tensor(0.5)) and tone(plain)[0, 3:].max() < 1e-6
    halves = plain.clone()
    halves[..., 4:] = -0.5
    assert abs(float(tone(halves)[0, -1]) - 1 / 7) < 1e-6  # one column of seven is a hard edge
    assert tone(halves)[0, 6:8].max() < 1e-6  # without a colour


def test_semantic_focus_takes_the_tone_and_style_focus_takes_what_is_shown(codec, data):
    tokens = torch.cat([*tokens_of(codec, data, range(12)).values()])
    semantic, style = (focused(tokens, at, leading=0) for at in (SEMANTIC, STYLE))
    assert energy(semantic[..., TONE]) < 0.1 * energy(tokens[..., TONE])
    assert energy(semantic[..., SHOWN]) > 0.9 * energy(tokens[..., SHOWN])
    assert energy(style[..., TONE]) > 0.9 * energy(tokens[..., TONE])
    assert energy(style[..., SHOWN]) < 0.4 * energy(tokens[..., SHOWN])


def test_tone_or_what_is_shown_is_hidden_from_half_of_the_variations(codec, data):
    tokens = codec.encode(to_tensor([data.sample(k).image for k in range(40)]))
    taught = codec.varied(tokens, PerSampleNoise(range(40)))
    seen = {name: taught[..., at].abs().amax((1, 2)) > 0 for name, at in PARTS.items()}
    assert (seen["shown"] | seen["tone"]).all()
    assert 4 <= (~seen["shown"]).sum() <= 16 and 4 <= (~seen["tone"]).sum() <= 16
    assert torch.equal(taught[..., WHERE], tokens[..., WHERE])
    whole = seen["shown"] & seen["tone"]
    assert torch.equal(taught[whole], tokens[whole])


def test_places_differ_without_the_strongest_of_their_waves():
    """As semantic focus leaves them."""
    where = places(12, 8)[:, 1:]
    apart = torch.cdist(where, where) + 1e3 * torch.eye(len(where))
    assert apart.min() > 1


def test_a_token_counts_as_much_as_is_seen_of_its_patch(codec, data):
    picture = to_tensor([data.sample(0).image])
    mask = torch.ones(1, 1, 96, 96)
    mask[..., :8, :8], mask[..., :8, 8:12] = 0, 0
    whole, part = codec.encode(picture), codec.encode(picture, mask)
    assert part[0, 0].abs().max() == 0
    assert torch.allclose(part[0, 1], whole[0, 1] / 2) and torch.equal(part[0, 2:], whole[0, 2:])
