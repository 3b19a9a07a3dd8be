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
    keys = [s.key for s in sources._samples(shapes, 3)]
    assert keys == [shapes.sample(k).key for k in range(3)]
