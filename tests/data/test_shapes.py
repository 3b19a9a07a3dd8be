"""Coloured shapes: deterministic, and captions that are read back."""

from __future__ import annotations

import numpy as np

from everyway.data.shapes import COLOURS, Shapes, captions, draw, parse, parse_caption


def test_a_sample_is_a_function_of_seed_and_index():
    a, b = Shapes(seed=2, size=16).sample(7), Shapes(seed=2, size=16).sample(7)
    assert np.array_equal(a.image, b.image) and a.captions == b.captions
    assert a.image.shape == (16, 16, 3)
    assert Shapes(languages=("ko",)).sample(0).captions == Shapes().sample(0).captions[1:]


def test_captions_in_both_languages_are_read_back():
    data = Shapes(seed=1)
    for index in range(500):
        for text in data.sample(index).captions:
            assert parse(text) == data.record(index), text
            assert parse_caption(text) == data.scene(index)


def test_part_of_a_record_and_junk():
    assert parse("a red circle") == {"shape": "circle", "colour": "red"}
    assert parse("nothing to see") == {}
    assert parse("a red thing on blue") == {}


def test_the_background_fills_the_corner_and_no_jitter_is_fixed():
    record = Shapes(seed=4).record(3)
    image = draw(record, 32, None)
    assert tuple(image[0, 0]) == COLOURS[record["background"]][1]
    assert np.array_equal(image, draw(record, 32, None))
    assert len(captions(record)) == 2
