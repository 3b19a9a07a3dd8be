"""Emoji Lattice: one scene a (seed, index), captions that can be read back, sprites of the font."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from everyway.data import lattice
from everyway.data.captions import plain
from everyway.data.emoji import MissingFont, find_font
from everyway.data.lattice import LEXICON, OBJECTS, Lattice
from everyway.data.sample import Scene, SceneObject
from everyway.data.scenes import heldout_pair
from everyway.errors import UsageError
from everyway.metrics import lattice as judge


def test_a_sample_depends_on_seed_and_index_alone():
    one, other = Lattice(seed=3, partial=True), Lattice(seed=3, partial=True)
    for index in (7, 2, 40):
        a, b = one.sample(index), other.sample(index)
        assert np.array_equal(a.image, b.image) and a.captions == b.captions
    assert Lattice(seed=4).sample(7).captions != one.sample(7).captions


def test_pairs_are_held_out():
    train, heldout = Lattice(count=2), Lattice(count=2, split="heldout")
    for index in range(200):
        assert not heldout_pair(*train.scene(index).names)
        assert heldout_pair(*heldout.scene(index).names)


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_plain_captions_are_read_back(lang):
    data = Lattice(partial=True)
    for index in range(300):
        text = data.sample(index).captions["en ko".split().index(lang)]
        stated = lattice.parse_caption(text)
        assert plain(stated, LEXICON, lang) == text


def test_captions_that_leave_open_where_things_are():
    """Half of them; the order of the names tells no place."""
    data, first = Lattice(open=True, count=2), []
    assert data.complete == 0.5 and Lattice(partial=True, open=True).complete == 1 / 3
    for index in range(100):
        scene, captions = data.described(index)
        whole, without = (lattice.parse_caption(captions[k]) for k in (0, 2))
        assert whole.relation == scene.canonical().relation and without.relation is None
        assert {*without.objects} == {*scene.objects} and without.background == scene.background
        first.append(without.names[0] == scene.canonical().names[0])
    assert 30 < sum(first) < 70
    (alone,) = lattice.parse_caption(Lattice(open=True, count=1).described(3)[1][3]).objects
    assert alone.place is None


def test_one_of_two_objects_stands_where_it_would_stand_alone():
    fox, cup = SceneObject(name="fox", size="large"), SceneObject(name="teapot", size="small")
    pair = lattice.draw(Scene(objects=(fox, cup), relation="left of", background="blue"))
    left = SceneObject(name="fox", size="large", place="left")
    alone = lattice.draw(Scene(objects=(left,), background="blue"))
    assert np.array_equal(pair[:, :48], alone[:, :48])


def test_the_judge_reads_every_scene_also_through_noise():
    rng = np.random.default_rng(0)
    for split in ("train", "heldout"):
        for index in range(25):
            sample = Lattice(seed=9, split=split).sample(index)
            assert judge.nearest(sample.image)[0] == Scene.from_json(sample.record)
            noisy = np.clip(sample.image + rng.normal(0, 20, sample.image.shape), 0, 255)
            seen, psnr = judge.nearest(noisy.astype(np.uint8))
            assert seen == Scene.from_json(sample.record) and 20 < psnr < 30


def test_the_judge_tells_averages_from_scenes():
    pictures = [Lattice(seed=9).sample(index).image for index in range(40)]
    mean = np.mean(pictures, 0).astype(np.uint8)
    assert judge.crispness(pictures[:1])[0] > 90 > 20 > judge.crispness([mean])[0]


def test_the_sprites_and_their_choice_are_those_of_the_font():
    try:
        find_font()
    except MissingFont:
        pytest.skip("the emoji font is not installed")
    assert lattice.choose() == OBJECTS
    kept = np.asarray(Image.open(lattice.ATLAS)).astype(int)
    assert np.abs(kept - np.asarray(lattice.atlas()).astype(int)).max() <= 2
    kept = np.asarray(Image.open(lattice.FINE_ATLAS)).astype(int)
    assert np.abs(kept - np.asarray(lattice.fine_atlas()).astype(int)).max() <= 2


def test_a_finer_scene_is_the_same_scene():
    coarse, fine = Lattice(seed=9), Lattice(seed=9, cell=lattice.FINE)
    for index in range(10):
        a, b = coarse.sample(index), fine.sample(index)
        assert b.image.shape == (144, 144, 3) and a.captions == b.captions
        assert judge.nearest(b.image)[0] == Scene.from_json(a.record)
        small = np.asarray(Image.fromarray(b.image).resize((96, 96), Image.Resampling.BOX))
        assert np.abs(small.astype(int) - a.image).mean() < 3
    with pytest.raises(UsageError, match="cell is 40"):
        Lattice(cell=40).sample(0)
