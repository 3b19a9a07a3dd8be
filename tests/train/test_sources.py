"""What a training makes its latents of."""

from __future__ import annotations

from dataclasses import replace

from everyway.data.folder import Folder, write_folder
from everyway.data.shapes import Shapes
from everyway.train import sources


def test_of_a_larger_folder_the_pictures_are_spread_evenly(tmp_path):
    shapes = Shapes(seed=1)
    write_folder(tmp_path, (replace(shapes.sample(k), key=f"{k}") for k in range(6)))
    folder = Folder(tmp_path)
    assert [s.key for s in sources._samples(folder, 3)] == ["0", "2", "4"]
    assert [s.key for s in sources._samples(folder, 6)] == ["0", "1", "2", "3", "4", "5"]


def test_endless_data_is_taken_from_its_start():
    shapes = Shapes(seed=1)
    keys = [s.key for s in sources._samples(shapes, 3)]
    assert keys == [shapes.sample(k).key for k in range(3)]
