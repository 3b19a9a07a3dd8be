"""One scene in four styles: deterministic, and told apart from the picture alone."""

from __future__ import annotations

import numpy as np

from everyway.data import lattice
from everyway.data.lattice import Lattice
from everyway.data.sample import Scene
from everyway.data.styles import CREAM, NAVY, STYLES, Styled, WithStyle
from everyway.metrics.lattice import styled


def test_a_sample_is_its_scene_in_its_style():
    one, other = Styled(scenes=Lattice(seed=3)), Styled(scenes=Lattice(seed=3))
    for index in (0, 5, 9):
        a, b = one.sample(index), other.sample(index)
        assert np.array_equal(a.image, b.image) and a.raw == b.raw
        assert np.array_equal(a.image, one.renderings(index)[a.raw["style"]])
        plain = one.scenes.sample(index)
        assert (a.captions, a.record) == (plain.captions, plain.record)
    assert {one.style_of(k) for k in range(40)} == set(STYLES)
    assert Styled(style="grey").sample(7).raw == {"style": "grey"}


def test_styles_are_what_they_say():
    data = Styled(scenes=Lattice(count=2, seed=1))
    for index in range(10):
        made = data.renderings(index)
        scene = data.scenes.scene(index)
        assert np.array_equal(made["flat"], lattice.draw(scene))
        assert (made["grey"].max(2) == made["grey"].min(2)).all()
        span = np.sort([NAVY, CREAM], 0)
        assert (made["tinted"] >= span[0]).all() and (made["tinted"] <= span[1]).all()
        changed = (made["outlined"] != made["flat"]).any(2)
        line = made["outlined"][changed]
        assert 0.005 < changed.mean() < 0.2 and line.max() > 250


def test_scene_and_style_are_read_back():
    data = Styled(scenes=Lattice(count=1, seed=2))
    for index in range(2):
        for style, picture in data.renderings(index).items():
            (seen,) = styled([picture])
            assert seen.style == style and seen.db > 60
            assert seen.scene.objects == data.scenes.scene(index).objects, (index, style)


def test_the_record_of_a_sample_is_its_scene():
    sample = Styled().sample(11)
    assert Scene.from_json(sample.record) == Styled().scenes.scene(11)
    assert sample.key.startswith(sample.raw["style"])


def test_a_picture_shows_the_style_of_a_share_of_the_samples():
    """Both are in one style and of scenes of their own; the others are flat and come with none."""
    data = WithStyle(scenes=Lattice(seed=4), styles=("grey", "tinted"), share=0.5)
    given = [data.sample(index) for index in range(40)]
    shown = [sample for sample in given if sample.raw["style"] is not None]
    assert 10 < len(shown) < 30
    own, other = styled([shown[0].image, shown[0].raw["style"]])
    assert own.style == other.style in ("grey", "tinted")
    assert own.scene == Scene.from_json(shown[0].record) != other.scene
    for index, sample in enumerate(given):
        plain = data.scenes.sample(index)
        assert sample.captions == plain.captions
        assert sample.raw["style"] is not None or np.array_equal(sample.image, plain.image)
    again = data.sample(7)
    assert np.array_equal(again.image, given[7].image)
