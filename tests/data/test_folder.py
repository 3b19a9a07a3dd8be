"""Folders: what is written is read back; what is wrong is named exactly."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from everyway.data.folder import METADATA, Folder, FolderError, check, read_folder, write_folder
from everyway.data.sample import Sample
from everyway.data.shapes import Shapes


@pytest.fixture
def folder(tmp_path):
    data = Shapes(seed=1, size=16)
    assert write_folder(tmp_path / "set", (data.sample(i) for i in range(6))) == 6
    return tmp_path / "set"


def test_round_trip(folder):
    data = Shapes(seed=1, size=16)
    for index, sample in enumerate(read_folder(folder)):
        wanted = data.sample(index)
        assert np.array_equal(sample.image, wanted.image)
        assert sample.captions == wanted.captions and sample.record == wanted.record
        assert sample.key == wanted.key
    assert index == 5 and not list(folder.glob("*.partial"))


def test_check_names_what_is_wrong(folder):
    whole = check(folder)
    assert whole.good and whole.images == 6 and whole.captions == 12 and whole.records == 6
    assert whole.sizes == {"16x16": 6} and whole.sheet.width > 100
    names = sorted(p.name for p in folder.glob("*.png"))
    (folder / names[0]).write_bytes(b"not a picture")
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:60])
    (folder / names[2]).with_suffix(".txt").write_text("\n \n")
    (folder / "lonely.txt").write_text("no picture")
    Image.new("L", (20, 10)).save(folder / "gray.jpg")
    found = check(folder)
    assert not found.good and found.images == 7
    assert [name for name, _ in found.unreadable] == names[:2]
    assert found.missing_captions == ("gray.jpg", names[2])
    assert found.stray_captions == ("lonely.txt",)
    assert found.sizes == {"16x16": 4, "20x10": 1}
    assert found.to_json()["unreadable"][0] == (names[0], "not an image")
    with pytest.raises(FolderError, match=names[0]):
        list(read_folder(folder))


def test_other_peoples_folders(tmp_path):
    (tmp_path / "inner").mkdir()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "inner" / "a.png")
    (tmp_path / METADATA).write_text('{"file_name": "inner/a.png", "text": "한 장"}\n', "utf-8")
    (sample,) = read_folder(tmp_path)
    assert sample.captions == ("한 장",) and sample.image.min() == 255


def test_writing_again_adds(folder):
    extra = Sample(image=np.zeros((4, 4, 3), np.uint8), captions=("two\nlines",), key="x/y")
    write_folder(folder, [extra])
    found = {s.key: s for s in read_folder(folder)}
    assert len(found) == 7 and found["x_y"].captions == ("two lines",)
    assert check(folder).records == 6


@pytest.mark.parametrize("kind", ["missing", "empty", "metadata"])
def test_errors_are_one_line(tmp_path, kind):
    path = tmp_path / "none" if kind == "missing" else tmp_path
    if kind == "metadata":
        Image.new("RGB", (4, 4)).save(path / "a.png")
        (path / METADATA).write_text("{}\nnonsense\n")
    with pytest.raises(FolderError) as caught:
        list(read_folder(path))
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_old_file(folder, monkeypatch):
    before = (folder / METADATA).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_folder(folder, [Shapes().sample(0)])
    assert (folder / METADATA).read_bytes() == before and not list(folder.glob("*.partial"))


def test_a_folder_is_a_data_set_of_squares(folder):
    (folder / "wide.txt").write_text("a wide one\n", encoding="utf-8")
    Image.new("RGB", (90, 30), "red").save(folder / "wide.png")
    data = Folder(folder, size=24, captioned=True)
    assert len(data) == 7 and data.sample(6).key == data.sample(13).key == "wide"
    assert data.sample(6).image.shape == (24, 24, 3)
    (folder / "wide.txt").unlink()
    with pytest.raises(FolderError, match=r"wide.png has no caption; write one into .*wide.txt"):
        Folder(folder, captioned=True).sample(6)
