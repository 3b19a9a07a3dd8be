"""Requests in Python: what is refused in one line, and where each result stands."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from everyway.generate import BATCH, Preview, Result
from everyway.request import GenerateRequest, RequestError

TEXT = "a red ring top on blue"


@pytest.fixture
def picture(tmp_path) -> str:
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    return str(tmp_path / "red.png")


def request(**settings) -> GenerateRequest:
    return GenerateRequest(**{"kind": "text-to-image", "text": TEXT, "steps": 1, **settings})


def same(a: Result, b: Result) -> bool:
    return np.array_equal(np.array(a.image), np.array(b.image)) and a.text == b.text


@pytest.mark.parametrize("given", ["a red circle", {"kind": "image"}, 5, ""])
def test_what_is_no_request_is_refused(nano, given):
    with pytest.raises(RequestError, match="is no GenerateRequest; give settings by name"):
        nano.generate(given)


def test_a_request_has_its_own_settings(nano):
    with pytest.raises(RequestError, match="a request has its own seed, n; give it alone"):
        nano.generate(request(), seed=7, n=3)


def test_results_are_counted_as_they_come(nano):
    """Batch by batch and round by round; seed and part say of which sample they are."""
    count, rounds = BATCH + 2, 2
    events = list(nano.run(request(kind="chain", n=count, rounds=rounds)))
    results = [e for e in events if isinstance(e, Result)]
    assert [r.index for r in results] == list(range(count * 2 * rounds))
    places = {(r.seed, r.part) for r in results}
    assert places == {(k, part) for k in range(count) for part in range(2 * rounds)}
    assert isinstance(events[0], Preview) and isinstance(events[-1], Result)


# -- each -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "seeds", "given", "said"),
    [
        ("text-to-image", [0, 1, 2], {"text": [TEXT]}, "3 seeds and 1 texts; give as many"),
        ("image-to-text", [0], {"image": []}, "1 seeds and 0 pictures; give as many"),
        ("text-to-image", [0], {"text": "a"}, "takes a list of texts, one a seed"),
        ("image-to-text", [0], {"image": "a.png"}, "takes a list of pictures"),
        ("text-to-image", [0], {"text": [None]}, "every text of each is a string"),
        ("joint", [0], {"text": [None]}, "every text of each is a string"),
        ("text-to-image", [0], {"text": [" "]}, "the text is empty"),
        ("text-to-image", [-1], {"text": [TEXT]}, "seed=-1"),
        ("image-to-text", [0], {"image": [5]}, "5 is no picture; give one of PIL, or a path"),
        ("image-to-text", [0], {"image": ["none.png"]}, "no picture at 'none.png'"),
        ("chain", [0], {"text": [TEXT]}, "chain is several; use generate"),
        ("vary-text", [0], {"text": [TEXT]}, "vary-text is several; use generate"),
        ("image", [0], {"settings": {"n": 2}}, "each has no setting n"),
    ],
)
def test_conditions_that_do_not_fit_are_told(nano, task, seeds, given, said):
    with pytest.raises(RequestError, match=said) as caught:
        nano.each(task, seeds, **given)
    assert "\n" not in str(caught.value)


def test_each_takes_paths_and_pictures(nano, picture):
    asked = {"settings": {"steps": 1}}
    by_path = nano.each("image-to-text", [3, 4], image=[picture, Image.open(picture)], **asked)
    (alone,) = nano.generate(kind="image-to-text", images=(picture,), seed=4, steps=1)
    assert same(by_path[1], alone) and [r.index for r in by_path] == [0, 1]


# -- noise of what is given -------------------------------------------------------------------


def test_noise_of_the_text_of_a_masked_picture(nano, picture):
    drawn = {"kind": "inpaint", "images": (picture,), "mask": picture, "seed": 1, "steps": 2}
    Image.new("RGB", (16, 16), "white").save(picture)
    made = [nano.generate(request(**drawn, given_noise=n))[0] for n in ({}, {"text": 0.5})]
    assert not same(*made)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "inpaint", "given_noise": {"image": 0.5}}, "image: inpaint is given text"),
        ({"kind": "inpaint", "text": None}, "text: inpaint is given nothing"),
        ({"kind": "image-to-image", "given_noise": {"x": 0.5}}, "x: image-to-image is given text"),
        ({"kind": "vary-image", "text": None}, "is for one task, vary-image is several"),
        ({"kind": "vary-image", "text": None, "given_noise": {"x": 0.1}}, "vary-image is several"),
        ({"kind": "chain", "images": ()}, "is for one task, chain is several"),
        ({"kind": "joint", "text": None, "images": ()}, "text: joint is given nothing"),
    ],
)
def test_noise_that_nothing_takes_is_refused(nano, picture, settings, said):
    base = {"images": (picture,), "given_noise": {"text": 0.5}, **settings}
    if base["kind"] == "inpaint":
        base["mask"] = picture
    with pytest.raises(RequestError, match=f"--given-noise.*{said}"):
        nano.generate(request(**base))


def test_a_mask_of_another_shape_is_refused(nano, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    Image.new("L", (20, 20)).save(tmp_path / "m.png")
    given = {"images": (str(tmp_path / "a.png"),), "mask": str(tmp_path / "m.png")}
    with pytest.raises(RequestError, match="the mask is 20x20, the picture 40x20"):
        nano.generate(kind="inpaint", steps=1, **given)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"null": "empty"}, "knows no null"),
        ({"tokens_per_step": 4}, "need the sampler purity"),
    ],
)
def test_what_the_model_cannot_use_is_refused(nano, settings, said):
    with pytest.raises(RequestError, match=said):
        nano.generate(request(**settings))
