"""Scenes that are put together on the device are those that the data draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from everyway.checkpoints import store
from everyway.data import emoji
from everyway.data.emoji import CURRICULUM, EmojiScenes, MissingFont, find_font
from everyway.data.lattice import Lattice
from everyway.train import train
from everyway.train.composed import Composed, write_down
from everyway.train.config import ConfigError, resolve

DATA = {
    "lattice": lambda: Lattice(seed=3, partial=True),
    "emoji": lambda: EmojiScenes(seed=3, variants=2, **CURRICULUM["emoji"]),
    "emoji-singles": lambda: EmojiScenes(seed=3, **CURRICULUM["emoji-singles"]),
}


def _font() -> bool:
    try:
        return bool(find_font())
    except MissingFont:
        return False


needs_font = pytest.mark.skipif(not _font(), reason="no emoji font")


def _lengths(captions):
    return torch.tensor([[len(c), len(c.split())] for c in captions])


@pytest.mark.parametrize(
    "name", ["lattice", *(pytest.param(n, marks=needs_font) for n in DATA if "emoji" in n)]
)
def test_pictures_and_captions_are_those_of_the_data(name):
    data, count = DATA[name](), 60
    records = write_down(data, _lengths, count)
    sprites = [*data.sprites().values()]
    made = Composed(records, sprites, data.size, {}, {}, torch.device("cpu"))
    assert len(made) == count
    pictures = made.pictures(torch.arange(count)).numpy()
    for index, picture in enumerate(pictures):
        sample = data.sample(index)
        assert np.array_equal(picture, sample.image)
        assert torch.equal(records["ids"][index].long(), _lengths(sample.captions))


@needs_font
def test_artwork_that_was_cut_draws_what_the_font_draws(tmp_path):
    emoji.cut(tmp_path / "cut.npz")
    assert (tmp_path / "cut.npz").stat().st_size < 8 * 2**20
    with_font, without = EmojiScenes(), EmojiScenes(font=str(tmp_path / "cut.npz"))
    for index in range(20):
        assert np.array_equal(with_font.sample(index).image, without.sample(index).image)


def test_what_is_no_cut_artwork_is_refused_in_one_line(tmp_path):
    (tmp_path / "cut.npz").write_bytes(b"nothing")
    with pytest.raises(MissingFont, match="cut it again"):
        EmojiScenes(font=str(tmp_path / "cut.npz")).sample(0)


def test_data_without_scenes_is_not_composed(tmp_path):
    with pytest.raises(ConfigError, match="compose is for"):
        train(resolve("nano", {"compose": True}, out=str(tmp_path)))


def test_each_saving_can_export_the_average(tmp_path):
    found = []

    def progress(given):
        if given.step > 1:  # the first was exported before the second step
            found.append(store.document(tmp_path / "model")["facts"]["history"][-1]["steps"])

    settings = {"cache": 16, "batch": 4, "log_every": 1, "steps": 3}
    train(resolve("nano", settings | {"save_every_s": 0, "publish": True}, str(tmp_path)), progress)
    assert found == [1, 2]
