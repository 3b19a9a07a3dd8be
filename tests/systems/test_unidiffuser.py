"""Every use of one UniDiffuser: all tasks from the same weights, seeds independent of batches."""

from __future__ import annotations

import numpy as np
import pytest

from everyway.data.shapes import Shapes
from everyway.generate import load
from everyway.library import ModelError
from everyway.request import GenerateRequest

STEPS = 6


@pytest.fixture(scope="module")
def caption():
    return Shapes(seed=5).sample(0).captions[0]


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("in") / "shape.png"
    Image.fromarray(Shapes(seed=5).sample(0).image).save(path)
    return str(path)


def test_every_task_from_one_model(nano, caption, picture):
    made = {
        "text-to-image": dict(text=caption),
        "image-to-text": dict(images=(picture,)),
        "joint": {},
        "image": {},
        "text": {},
        "vary-image": dict(images=(picture,)),
        "vary-text": dict(text=caption),
        "chain": dict(text=caption, rounds=2),
        "interpolate": dict(images=(picture, picture), frames=3),
    }
    for kind, inputs in made.items():
        results = nano.generate(GenerateRequest(kind=kind, steps=STEPS, **inputs))
        images = [r for r in results if r.image is not None]
        texts = [r for r in results if r.text is not None]
        expected = {
            "joint": (1, 1),
            "chain": (2, 2),
            "interpolate": (3, 0),
            "image-to-text": (0, 1),
            "text": (0, 1),
            "vary-text": (0, 1),
        }.get(kind, (1, 0))
        assert (len(images), len(texts)) == expected, kind
        assert sorted({r.index for r in results}) == list(range(len(results))), kind


def test_a_noisy_condition_changes_the_picture(nano, caption):
    base = dict(kind="text-to-image", text=caption, steps=STEPS)
    clean = nano.generate(GenerateRequest(**base))[0].image
    noisy = nano.generate(GenerateRequest(**base, given_noise={"text": 0.5}))[0].image
    assert (np.array(clean) != np.array(noisy)).any()


def test_sample_k_is_the_same_in_any_batch(nano, caption):
    base = dict(kind="text-to-image", text=caption, steps=STEPS)
    four = nano.generate(GenerateRequest(**base, n=4, seed=0))
    one = nano.generate(GenerateRequest(**base, n=1, seed=2))
    assert np.array_equal(np.array(four[2].image), np.array(one[0].image))
    assert four[2].seed == one[0].seed == 2


def test_joint_sample_k_is_the_same_in_any_batch(nano):
    three = nano.generate(GenerateRequest(kind="joint", n=3, seed=7, steps=STEPS))
    one = nano.generate(GenerateRequest(kind="joint", n=1, seed=8, steps=STEPS))
    assert three[1].text == one[0].text
    assert np.array_equal(np.array(three[1].image), np.array(one[0].image))


def test_guidance_costs_the_forwards_it_says(nano, caption):
    def forwards(**settings):
        return nano.generate(GenerateRequest(steps=STEPS, **settings))[0].metadata["forwards"]

    assert forwards(kind="text-to-image", text=caption, guidance=1.0) == STEPS
    assert forwards(kind="text-to-image", text=caption, guidance=2.0) == 2 * STEPS
    assert forwards(kind="joint", guidance=2.0) == 3 * STEPS
    assert forwards(kind="image", guidance=2.0) == STEPS


def test_unknown_model_is_one_clear_line():
    with pytest.raises(ModelError) as caught:
        load("minny")
    assert "minny" in str(caught.value) and "\n" not in str(caught.value)


def test_it_draws_the_right_background(nano):
    """Well past chance: the prompt's background colour shows in the corners of the picture."""
    data, right, total = Shapes(seed=99), 0, 12
    for index in range(total):
        sample = data.sample(index)
        request = GenerateRequest(
            kind="text-to-image", text=sample.captions[0], steps=12, guidance=2.0
        )
        corner = np.array(nano.generate(request)[0].image, float)[0, 0]
        real = sample.image[0, 0].astype(float)
        right += np.abs(corner - real).max() < 80
    assert right >= 5
