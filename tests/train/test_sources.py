"""What a training makes its latents of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from everyway.data.folder import Folder, write_folder
from everyway.data.shapes import Shapes
from everyway.train import sources
from everyway.train.config import ConfigError, TrainConfig


def test_of_a_larger_folder_the_pictures_are_spread_evenly(tmp_path):
    shapes = Shapes(seed=1)
    write_folder(tmp_path, (replace(shapes.sample(k), key=f"{k}") for k in range(6)))
    folder = Folder(tmp_path)
    assert [s.key for s in sources._samples(folder, 3, flip=False)] == ["0", "2", "4"]
    assert [s.key for s in sources._samples(folder, 6, flip=False)] == [
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
    ]


def test_another_picture_or_caption_of_the_same_name_is_seen(tmp_path):
    shapes, stamps = Shapes(seed=1), set()
    write_folder(tmp_path, [replace(shapes.sample(0), key="a")])
    stamps.add(Folder(tmp_path).stamp())
    write_folder(tmp_path, [replace(shapes.sample(1), key="a")])
    stamps.add(Folder(tmp_path).stamp())
    (tmp_path / "a.txt").write_text("a pear on a plate of silver\n", encoding="utf-8")
    stamps.add(Folder(tmp_path).stamp())
    assert len(stamps) == 3
    assert Folder(tmp_path).stamp() in stamps


def test_endless_data_is_taken_from_its_start():
    shapes = Shapes(seed=1)
    keys = [s.key for s in sources._samples(shapes, 3, flip=False)]
    assert keys == [shapes.sample(k).key for k in range(3)]


def test_a_mirrored_picture_is_a_sample_of_its_own():
    own, mirrored, *others = sources._samples(Shapes(seed=1), 2, flip=True)
    assert len(others) == 2 and own.captions == mirrored.captions
    assert np.array_equal(mirrored.image[:, ::-1], own.image)


def test_pictures_whose_captions_say_left_are_not_mirrored(tmp_path):
    with pytest.raises(ConfigError, match="captions of shapes say left and right"):
        sources.prepare(TrainConfig(out=str(tmp_path), cache=3, flip=1))


def test_every_state_of_a_mirrored_sample_is_of_the_mirrored_picture(tmp_path):
    write_folder(tmp_path / "data", (Shapes(seed=1).sample(k) for k in range(3)))
    config = TrainConfig(data=str(tmp_path / "data"), out=str(tmp_path), cache=3, flip=1)
    system, latents = sources.prepare(config)
    assert len(latents) == 6
    data = sources.data_of(system, config)
    for row, sample in enumerate(sources._samples(data, 3, flip=True)):
        picture = torch.from_numpy(sample.image.copy()).permute(2, 0, 1)[None] / 127.5 - 1
        for name, state in system.encode({"image": picture}).items():
            torch.testing.assert_close(
                latents.states[name][row].float(), state, rtol=1e-3, atol=1e-3
            )
