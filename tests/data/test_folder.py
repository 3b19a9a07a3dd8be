"""Folders: what is written is read back; what is wrong is named exactly."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from everyway.apps.cli import main
from everyway.data.check import check
from everyway.data.folder import METADATA, Folder, FolderError, read_folder, write_folder
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


def test_check_names_what_is_wrong(folder, caplog):
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
    assert [s.key for s in read_folder(folder)] == ["gray", *(n[:-4] for n in names[2:])]
    assert [names[0] in line for line in caplog.messages] == [True, False]
    assert names[1] in caplog.messages[1]


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


@pytest.mark.parametrize("kind", ["missing", "empty", "broken"])
def test_errors_are_one_line(tmp_path, kind):
    path = tmp_path / "none" if kind == "missing" else tmp_path
    if kind == "broken":
        (path / "a.png").write_text("a\nb")
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
    data = Folder(folder, captioned=True)
    assert len(data) == 6 and len(Folder(folder)) == 7
    assert data.faults == [("wide.png", "no caption; write one into wide.txt")]


@pytest.fixture
def one(tmp_path):
    """A folder of one picture, a.png, without captions."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return tmp_path


BAD_ROWS = {
    "number": b'{"file_name":"a.png","text":3}',
    "numbers": b'{"file_name":"a.png","captions":5}',
    "fraction": b'{"file_name":"a.png","caption":0.5}',
    "true": b'{"file_name":"a.png","captions":true}',
    "false": b'{"file_name":"a.png","captions":false}',
    "null": b'{"file_name":"a.png","captions":[null]}',
    "object": b'{"file_name":"a.png","captions":{"en":"a"}}',
    "nested": b'{"file_name":"a.png","captions":[["a"]]}',
    "half": b'{"file_name":"a.png","text":"\\ud83d"}',
    "deep": b'{"file_name":"a.png","text":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "name": b'{"file_name":3,"text":"a"}',
    "list": b'["a.png"]',
    "latin": '{"file_name":"a.png","text":"café"}'.encode("latin-1"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_named_by_its_line(one, kind):
    good = b'{"file_name":"a.png","text":"good"}\n'
    (one / METADATA).write_bytes(good + BAD_ROWS[kind] + b"\n" + good)
    ((where, fault),) = Folder(one, captioned=True).faults
    assert where == f"{METADATA} line 2" and fault and "\n" not in fault
    found = check(one)
    assert [where for where, _ in found.bad_captions] == [f"{METADATA} line 2"]
    assert not found.good and found.captions == 1


def test_a_row_ends_at_a_line_feed_alone(one):
    said = '{"file_name":"a.png","text":null,"captions":["one\u2028two\u2029\x85three","four"]}\r\n'
    (one / METADATA).write_text("\ufeff" + said, encoding="utf-8", newline="")
    assert Folder(one).sample(0).captions == ("one two three", "four")
    (one / "a.txt").write_bytes("one\u2028two\x85three\r\nfour".encode())
    assert Folder(one).sample(0).captions == ("one two three", "four")
    assert write_folder(one, []) == 0 and Folder(one).sample(0).captions[0] == "one two three"


def test_check_reads_on_after_a_bad_caption(one):
    for name in ("b", "c", "d"):
        Image.new("RGB", (4, 4)).save(one / f"{name}.png")
    (one / "a.txt").write_bytes("café".encode("latin-1"))
    (one / "b.txt").mkdir()
    (one / "c.txt").write_bytes("한".encode("utf-16"))
    (one / "lonely.txt").mkdir()
    (one / METADATA).write_text('{"file_name":"d.png","text":"d"}\n{"file_name":"e.png"}\n')
    found = check(one)
    assert found.captions == 1 and not found.missing_captions and not found.good
    assert dict(found.bad_captions) == {
        "a.txt": "not UTF-8 text; save it as UTF-8",
        "b.txt": "a folder; put a file of text in its place",
        "c.txt": "not UTF-8 text; save it as UTF-8",
    }
    assert found.stray_rows == ("e.png",) and found.stray_captions == ()
    assert [s.key for s in Folder(one, captioned=True)] == ["d"]


def test_names_that_are_not_utf8_can_be_printed(one, capsys, caplog):
    for name in (b"caf\xe9.png", b"two\nlines.png"):
        try:
            (one / os.fsdecode(name)).write_bytes(b"")
        except OSError:
            pytest.skip("this file system has UTF-8 names alone")
    found = check(one)
    assert [name for name, _ in found.unreadable] == [r"caf\xe9.png", r"two\nlines.png"]
    assert found.missing_captions == ("a.png", r"caf\xe9.png", r"two\nlines.png")
    assert Folder(one).sample(1).key == "a"  # the next after two broken ones
    assert r"caf\xe9.png cannot be read: not an image" in caplog.messages[0]
    for flags in ([], ["--json"]):
        assert main(["data", "check", str(one), *flags]) == 1
        assert r"caf\xe9.png" in capsys.readouterr().out.encode().decode().replace("\\\\", "\\")


def test_the_contact_sheet_of_check(one, tmp_path_factory, capsys):
    (one / "a.txt").write_text("a")
    out = tmp_path_factory.mktemp("out")
    assert main(["data", "check", str(one), "--json", "--out", str(out)]) == 0
    given = json.loads(capsys.readouterr().out)
    assert given["good"] and given["contact_sheet"] == str(out / "contact-sheet.png")
    assert Image.open(out / "contact-sheet.png").width == 104
    for inside in (one, one / "sheets"):
        assert main(["data", "check", str(one), "--out", str(inside)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert len(Folder(one)) == 1 and check(one).good


def test_what_the_crop_takes_is_counted(tmp_path):
    """A photograph of 4:3 loses a quarter, and one of 3:2 more, lying or standing."""
    sizes = [(40, 40), (40, 30), (30, 40), (45, 30), (30, 45), (90, 30)]
    for k, size in enumerate(sizes):
        Image.new("RGB", size, (k, 0, 0)).save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text("a red card")
    (tmp_path / "6.png").write_bytes(b"broken")
    (tmp_path / "6.txt").write_text("a torn card")
    found = check(tmp_path)
    assert found.cut == 3
    assert any(line.startswith("3 of 6 lose more than a quarter") for line in found.lines())
    assert Folder(tmp_path).cut(64) == (6, 3)
    assert Folder(tmp_path).cut(2) == (2, 1)  # the first and the fourth of seven


def test_a_line_of_many_sizes_is_short(tmp_path):
    for k in range(20):
        Image.new("RGB", (20 + k, 20), (k, 0, 0)).save(tmp_path / f"{k:02d}.png")
    found = check(tmp_path)
    first, second, *_ = found.lines()
    assert first == "pictures: 20, captions: 0, records: 0"
    assert second.count("(1)") == 8 and second.endswith(", and 12 more")
    assert len(found.sizes) == 20
