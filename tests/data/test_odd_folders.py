"""Folders and shards as people have them: every picture that can be read is used, with its caption
or class; what is left out is named; nothing waits for ever."""

from __future__ import annotations

import json
import os
import tarfile
from itertools import product

import numpy as np
import pytest
import torch
from PIL import Image

from everyway.apps.cli import main
from everyway.data import listing
from everyway.data.check import check
from everyway.data.decode import read_picture
from everyway.data.folder import Folder, FolderError
from everyway.errors import UsageError


def picture(path, seed: int = 0, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **settings)


def pictures(path, count: int = 3, captions: bool = True):
    for k in range(count):
        picture(path / f"{k}.png", k)
        if captions:
            (path / f"{k}.txt").write_text(f"a red circle {k}\n")
    return path


def said(path) -> list[tuple[str, ...]]:
    data = Folder(path, captioned=True)
    return [data.captions(k) for k in range(len(data))]


CIRCLES = [(f"a red circle {k}",) for k in range(3)]


def test_hidden_files_are_no_data(tmp_path):
    data = pictures(tmp_path / ".mine")
    for name in ("._1.png", "._1.txt", ".DS_Store", "__MACOSX/._0.png", ".git/a.png"):
        (data / name).parent.mkdir(exist_ok=True)
        (data / name).write_bytes(b"\0\5\x16\7")
    assert said(data) == CIRCLES
    found = check(data)
    assert found.good and not found.stray_captions
    assert set(found.left_out) == {
        (name, "hidden") for name in (".DS_Store", "._1.png", "._1.txt", ".git", "__MACOSX")
    }


def test_linked_class_folders_are_classes(tmp_path):
    for kind in ("cat", "dog"):
        pictures(tmp_path / "store" / kind, 2, captions=False)
    pictures(tmp_path / "set" / "cow", 1, captions=False)
    for kind in ("cat", "dog"):
        (tmp_path / "set" / kind).symlink_to(tmp_path / "store" / kind)
    data = Folder(tmp_path / "set")
    assert data.classes == ("cat", "cow", "dog")
    assert [s.label for s in data] == [0, 0, 1, 2, 2]
    assert check(tmp_path / "set").classes == {"cat": 2, "cow": 1, "dog": 2}


@pytest.mark.parametrize("to", ["..", ".", "0"])
def test_a_folder_that_is_linked_again_is_read_once(tmp_path, to):
    data = tmp_path / "set"
    pictures(data / "0")
    (data / "0" / "also").symlink_to(data / "0" / to)
    (data / "0a").symlink_to(data / "0", target_is_directory=True)
    (data / "here").symlink_to("here")
    found = check(data)
    assert found.images == 3 and dict(found.left_out)["0a"].startswith("the same folder as 0")
    assert "here" in dict(found.left_out)


@pytest.mark.parametrize("key", ["text", "caption", "prompt", "description"])
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_metadata_in_every_form_and_place(tmp_path, form, key):
    data = tmp_path / "train"
    pictures(data / "images", captions=False)
    names = ("./images/0.png", "images\\1.png", "images/2.png")
    rows = [{"file_name": name, key: f"a red circle {k}"} for k, name in enumerate(names)]
    if form == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), data / "metadata.parquet")
    elif form == "jsonl":
        (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = [f'{row["file_name"]},"{row[key]}"' for row in rows]
        (data / "metadata.csv").write_text("\n".join([f"\ufefffile_name,{key}", *lines]))
    assert said(tmp_path) == said(data) == CIRCLES
    assert check(tmp_path).good


def test_parquet_without_its_reader_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (pictures(tmp_path) / "metadata.parquet").write_bytes(b"PAR1")
    assert "pip install pyarrow" in dict(check(tmp_path).bad_captions)["metadata.parquet"]


CSV = {
    "no captions": ("file_name,told\n0.png,a\n", "metadata.csv", "file_name, told; name them text"),
    "a comma": ("file_name,text\n0.png,a,b\n1.png,c\n", "metadata.csv line 2", "fields"),
    "latin": ("file_name,text\n0.png,caf\xe9\n1.png,c\n", "metadata.csv line 2", "as UTF-8"),
    "no name": ("id,text\n0.png,a\n", "metadata.csv line 2", "file_name"),
    "no end": ("file_name,text\n0.png," + "a" * 2**21, "metadata.csv", "longer"),
}


@pytest.mark.parametrize("kind", CSV)
def test_a_bad_csv_is_named(tmp_path, kind):
    content, where, why = CSV[kind]
    (pictures(tmp_path, captions=False) / "metadata.csv").write_bytes(content.encode("latin-1"))
    assert [name for name, _ in check(tmp_path).bad_captions] == [where]
    assert why in dict(check(tmp_path).bad_captions)[where]


def test_of_splits_train_alone_is_data(tmp_path):
    for split, kind in product(("train", "test", "validation"), ("cat", "dog")):
        pictures(tmp_path / split / kind, 1)
    data = Folder(tmp_path)
    assert [s.key for s in data] == ["train/cat/0", "train/dog/0"]
    assert data.classes == ("cat", "dog")
    assert {name for name, _ in check(tmp_path).left_out} == {"test", "validation"}
    assert len(Folder(tmp_path / "test")) == 2
    pictures(tmp_path / "car", 1)
    assert len(Folder(tmp_path)) == 7 and "train" in Folder(tmp_path).classes


def test_whatever_pillow_reads_is_a_picture(tmp_path):
    kinds = [k for k in ("a.gif", "b.TIF", "c.avif", "d.JPG", "e.ppm") if _suffix(k)]
    for seed, name in enumerate(kinds):
        picture(tmp_path / name, seed)
    for name in ("a.TXT", "b.caption", "c.txt", "d.Caption", "e.ppm.txt"):
        (tmp_path / name).write_text("a cup\na mug\n")
    for name in ("f.heic", "g.mp4", "h.eps"):
        (tmp_path / name).write_bytes(b"%!PS")
    assert said(tmp_path) == [("a cup", "a mug")] * len(kinds) and len(kinds) >= 4
    found = check(tmp_path)
    assert found.good
    assert [name for name, _ in found.left_out] == ["f.heic", "g.mp4", "h.eps"]
    (tmp_path / "h.eps").rename(tmp_path / "h.png")
    assert dict(check(tmp_path).unreadable) == {"h.png": "not an image"}  # Ghostscript never ran


def _suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in listing.suffixes()


def test_every_mode_is_three_colours(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "b.png", "c.webp", "d.tif"):
        more = {"lossless": True} if name == "c.webp" else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **more)
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "e.tif")
    for name in sorted(os.listdir(tmp_path)):
        with (tmp_path / name).open("rb") as file:
            assert read_picture(file).getpixel((0, 0)) == (255, 0, 0), name
    assert len(list(Folder(tmp_path))) == 5


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("name", ["0.txt", "0.png", "metadata.jsonl", "notes.md", "0.cls"])
def test_what_is_no_file_is_never_opened(tmp_path, name, kind):
    pictures(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    found = check(tmp_path)
    named = dict(found.unreadable + found.bad_captions + found.left_out)
    assert "a pipe, a socket or a device" in named[name]
    assert len(said(tmp_path)) == (2 if name in ("0.txt", "0.png") else 3)


def test_a_file_without_end_is_no_caption(tmp_path):
    with (pictures(tmp_path) / "0.txt").open("wb") as file:
        file.truncate(2**40)
    assert said(tmp_path) == CIRCLES[1:]
    assert "too much for captions" in dict(check(tmp_path).bad_captions)["0.txt"]


def test_a_folder_that_may_not_be_entered_is_named(tmp_path, monkeypatch):
    pictures(tmp_path / "cat")
    pictures(tmp_path / "dog")
    listdir = os.listdir

    def closed(path):
        if str(path).rstrip("/").endswith(("dog", "other")):
            raise PermissionError(13, "Permission denied")
        return listdir(path)

    monkeypatch.setattr(os, "listdir", closed)
    found = check(tmp_path)
    assert found.images == 3 and not found.good
    assert found.unreadable == (("dog", "a folder that may not be entered: Permission denied"),)
    assert len(Folder(tmp_path, captioned=True)) == 3
    (tmp_path / "other").mkdir()
    with pytest.raises(FolderError, match="other may not be entered: Permission denied"):
        Folder(tmp_path / "other")


def test_rows_of_one_picture_are_its_captions(tmp_path):
    rows = [("0.png", "a fox"), ("0.png", "ein Fuchs"), ("./0.png", "a fox")]
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (pictures(tmp_path, 1, captions=False) / "metadata.jsonl").write_text("\n".join(lines))
    assert said(tmp_path) == [("a fox", "ein Fuchs")]
    assert [where for where, _ in check(tmp_path).repeated_rows] == [
        "metadata.jsonl line 2",
        "metadata.jsonl line 3",
    ]


def test_the_stamp_knows_class_caption_and_place(tmp_path):
    pictures(tmp_path / "cat")
    pictures(tmp_path / "dog", 1)
    stamps = [Folder(tmp_path).stamp()]

    def changed() -> bool:
        stamps.append(Folder(tmp_path).stamp())
        return len(set(stamps)) == len(stamps)

    assert Folder(tmp_path).stamp() == stamps[0]
    (tmp_path / "cat").rename(tmp_path / "cow")
    assert changed()
    (tmp_path / "cow" / "2.png").rename(tmp_path / "dog" / "-.png")  # the same order of files
    (tmp_path / "cow" / "2.txt").rename(tmp_path / "dog" / "-.txt")
    assert changed()
    at = (tmp_path / "dog" / "0.txt").stat()
    (tmp_path / "dog" / "0.txt").write_text("a big circle 0\n")
    os.utime(tmp_path / "dog" / "0.txt", ns=(at.st_atime_ns, at.st_mtime_ns))
    assert changed()


def test_no_picture_is_read_for_its_words(tmp_path, monkeypatch):
    from everyway.train.sources import Data

    pictures(tmp_path)
    monkeypatch.setattr("everyway.data.folder.read_picture", None)
    assert Data(str(tmp_path), 0).words == ("0", "1", "2", "a", "circle", "red")


def test_a_caption_that_a_model_cannot_read_is_named(tmp_path, capsys):
    (pictures(tmp_path) / "0.txt").write_text("a fox\n" + "a very " * 30 + "red fox\n")
    (tmp_path / "1.txt").write_text("a very " * 30)
    assert main(["data", "check", str(tmp_path), "--model", "mini", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["captions"] == 2 and not found["missing_captions"]
    assert [name for name, _ in found["bad_captions"]] == ["1.png", "2.png"]
    assert "this model knows no object in 'a red circle 2'" in found["bad_captions"][1][1]
    assert main(["data", "check", str(tmp_path), "--json"]) == 0

    def short(text: str) -> None:
        if len(text) > 20:
            raise UsageError("too long")

    data = Folder(tmp_path, captioned=True, reads=short)
    assert [data.captions(k) for k in range(2)] == [("a fox",), ("a red circle 2",)]
    assert [name for name, _ in data.faults] == ["0.png", "1.png"]


def test_duplicates_are_named(tmp_path):
    picture(pictures(tmp_path, 2) / "b.bmp", 1)
    assert check(tmp_path).duplicates == (("b.bmp", "1.png"),)


def shard(path, folder):
    with tarfile.open(path, "w") as tar:
        for name in sorted(os.listdir(folder)):
            tar.add(folder / name, f"./{name}")


def test_every_form_gives_the_same_batches(tmp_path):
    files = pictures(tmp_path / "files", 4)
    rows = [{"file_name": f"{k}.png", "text": f"a red circle {k}"} for k in range(4)]
    for form in ("jsonl", "csv", "json"):
        pictures(tmp_path / form, 4, captions=False)
    (tmp_path / "jsonl" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lines = [f"{row['file_name']},{row['text']}" for row in rows]
    (tmp_path / "csv" / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    for k, row in enumerate(rows):
        (tmp_path / "json" / f"{k}.json").write_text(json.dumps({"caption": row["text"]}))
    (tmp_path / "shards").mkdir()
    for k in range(2):
        part = tmp_path / f"part{k}"
        for n, end in product((2 * k, 2 * k + 1), ("png", "txt")):
            part.mkdir(exist_ok=True)
            (part / f"{n}.{end}").write_bytes((files / f"{n}.{end}").read_bytes())
        shard(tmp_path / "shards" / f"{8 + 2 * k:02d}.tar", part)
    shards = ("shards", "shards/*.tar", "shards/{08..10}.tar", "shards/{08,10}.tar")
    wanted = list(Folder(files, 8, captioned=True))
    for form in ("jsonl", "csv", "json", *shards):
        data = Folder(tmp_path / form, 8, captioned=True)
        for made, sample in zip(data, wanted, strict=True):
            assert made.captions == sample.captions, form
            assert np.array_equal(made.image, sample.image), form


def test_shards_have_classes_and_stamps(tmp_path):
    files = pictures(tmp_path / "files", 2)
    (files / "0.cls").write_text("7")
    (files / "1.cls").write_text("seven")
    (files / "._1.png").write_bytes(b"\0\5")
    shard(tmp_path / "a.tar", files)
    data = Folder(tmp_path / "a.tar")
    assert [s.label for s in data] == [7, None]
    assert [name.rpartition("/")[2] for name, _ in data.faults] == ["1.cls"]
    stamp = data.stamp()
    os.utime(tmp_path / "a.tar", ns=(1, 1))
    assert Folder(tmp_path / "a.tar").stamp() != stamp


@pytest.mark.parametrize("kind", ["cut", "links", "text", "gone"])
def test_a_broken_shard_is_read_as_far_as_it_goes(tmp_path, kind):
    data = tmp_path / "shards"
    data.mkdir()
    shard(data / "0.tar", pictures(tmp_path / "files", 2))
    shard(data / "1.tar", pictures(tmp_path / "more", 2))
    if kind == "cut":
        whole = (data / "1.tar").read_bytes()
        (data / "1.tar").write_bytes(whole[: len(whole) // 2 - 700])
    elif kind == "links":
        with tarfile.open(data / "1.tar", "w") as tar:
            member = tarfile.TarInfo("a.png")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    elif kind == "text":
        (data / "1.tar").write_text("no shard" * 200)
    else:
        (data / "1.tar").unlink()
    found = check(str(data / "{0..1}.tar"))
    assert found.images >= 2 and found.captions >= 2
    assert "1.tar" in " ".join(name for name, _ in found.unreadable)


def test_a_broken_picture_is_left_out_of_a_training(tmp_path, caplog):
    from everyway.train import sources
    from everyway.train.config import resolve
    from everyway.train.systems import prepared

    data = pictures(tmp_path / "data", 6)
    (data / "0.png").write_bytes(b"no picture")
    (data / "1.txt").write_text("\n")
    notes: list[str] = []

    def cached(count: int):
        config = resolve("nano", {"data": str(data), "cache": str(count)}, out=str(tmp_path))
        return sources.cached(prepared(config), config, notes.append)

    latents = cached(100)
    assert len(latents) == 5
    (part,) = latents.shards
    assert all(torch.equal(states[0], states[1]) for states in part.values())
    assert sum("0.png cannot be read" in line for line in caplog.messages) == 1
    assert "5 of the 6 pictures" in notes[-1]
    assert "1 of them are broken" in notes[-1]
    assert "names 1 faults" in notes[-1]
    cached(2)
    assert "2 of the 6 pictures" in notes[-1]
    assert "cache=5 takes all" in notes[-1]


def test_no_pair_at_all_is_one_line(tmp_path, capsys):
    pictures(tmp_path, captions=False)
    with pytest.raises(FolderError, match=r"none of the 3 pictures.*0\.png: no caption; write"):
        Folder(tmp_path, captioned=True)
    picture(tmp_path / "sub" / "a.png")
    (tmp_path / "sub" / "a.png").rename(tmp_path / "sub" / "a.heic")
    with pytest.raises(FolderError, match=r"sub holds no pictures; .*a\.heic: not a picture"):
        Folder(tmp_path / "sub")
    assert main(["data", "check", str(tmp_path / "none.tar")]) == 2
    assert "none.tar: there is no such file" in capsys.readouterr().err


def spreadsheet(*lines: str, mark: str = ",") -> str:
    return "".join(f"{line.replace('|', mark)}\r\n" for line in ("file_name|text", *lines))


LINES = [f"{k}.png|a red circle {k}" for k in range(3)]
ROWS = [{"file_name": f"{k}.png", "text": f"a red circle {k}"} for k in range(3)]
TABLES = {
    "semicolons": ("metadata.csv", "\ufeff" + spreadsheet(*LINES, mark=";")),
    "tabs": ("metadata.csv", spreadsheet(*LINES, mark="\t")),
    "commas behind objects": (
        "metadata.jsonl",
        "".join(f"{json.dumps(row)},\n" for row in ROWS),
    ),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_as_spreadsheets_and_people_write_them(tmp_path, kind):
    name, content = TABLES[kind]
    (pictures(tmp_path, captions=False) / name).write_text(content, encoding="utf-8")
    assert said(tmp_path) == CIRCLES and check(tmp_path).good


def test_whole_paths_in_a_table_are_places_in_the_folder(tmp_path):
    data = pictures(tmp_path / "inner", captions=False)
    rows = [{**row, "file_name": str(data / row["file_name"])} for row in ROWS]
    (data / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert said(tmp_path) == said(data) == CIRCLES


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("metadata.csv", spreadsheet(*LINES).encode("utf-16"), "not UTF-8 text but UTF-16"),
        ("metadata.jsonl", json.dumps(ROWS, indent=1).encode(), "a list in JSON; write its obj"),
        ("metadata.json", json.dumps(ROWS).encode(), "captions of several pictures: metadata.js"),
        ("captions.csv", spreadsheet(*LINES).encode(), "call it metadata.csv"),
        ("9.cls", b"1", "beside no picture of its name"),
    ],
)
def test_a_table_that_is_not_read_is_one_line(tmp_path, name, content, why):
    (pictures(tmp_path) / name).write_bytes(content)
    (tmp_path / "0.txt").unlink()
    found = check(tmp_path)
    ((where, told),) = found.bad_captions + found.left_out
    assert where == name and why in told


def test_a_split_that_is_read_as_a_class_is_told(tmp_path):
    for name in ("train", "val", "extra"):
        pictures(tmp_path / name, 1)
    assert dict(check(tmp_path).odd) == dict.fromkeys(
        ("train", "val"), "called as a split, and read as a class"
    )
    assert not check(tmp_path / "train").odd


def test_thousands_of_faults_are_a_hundred_lines(tmp_path):
    for k in range(130):
        (tmp_path / f"{k:03d}.png").write_bytes(b"no picture")
    found = check(tmp_path)
    lines = [line for line in found.lines() if line.startswith("no caption")]
    assert len(lines) == 100 and len(found.to_json()["missing_captions"]) == 130
    assert "... and 30 more of these; --json names all" in [*found.lines()]
