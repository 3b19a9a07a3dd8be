"""One folder of more than thirty kinds of broken and odd files: it trains, and `data check` names
each."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
import tarfile
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from everyway.apps.cli import main
from everyway.data.folder import Folder
from everyway.train import train
from everyway.train.config import resolve

SEEDS = iter(range(10**6))


def drawn(mode: str = "RGB", size: tuple[int, int] = (24, 18)) -> Image.Image:
    rng = np.random.default_rng(next(SEEDS))
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 255, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if bands == 1 else pixels, mode=mode)


def save(path: Path, image: Image.Image | None = None, said: str = "", **settings) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or drawn()).save(path, **settings)
    path.with_suffix(".txt").write_text(said or f"picture {path.stem}\n", encoding="utf-8")


def encoded(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, form)
    return file.getvalue()


def put(path: Path, content: bytes) -> None:
    """A file with a caption beside it."""
    path.write_bytes(content)
    path.with_suffix(".txt").write_text(f"picture {path.stem}\n")


def bomb() -> bytes:
    """A PNG of half a kilobyte that says it is 50,000 x 50,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        end = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + end

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 200)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


def turned(at: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(at / "turned.jpg", exif=exif)


def deep(at: Path) -> None:
    save(at / "deep.png", drawn("L").convert("I;16"))
    save(at / "real.tif", drawn("L").convert("F"))


def moving(at: Path) -> None:
    save(at / "moving.gif", drawn(), save_all=True, append_images=[drawn(), drawn()])


def crc(at: Path) -> None:
    data = bytearray(encoded(drawn(), "PNG"))
    data[60] ^= 255
    put(at / "flipped.png", bytes(data))


def twin(at: Path) -> None:
    save(at / "twin.png")
    shutil.copy(at / "twin.png", at / "twin2.png")
    (at / "twin2.txt").write_text("picture twin2\n")


def shard(at: Path) -> None:
    with tarfile.open(at / "beside.tar", "w") as tar:
        tar.add(at / "plain.png", "inside.png")


def metadata(at: Path) -> None:
    """The accent of the file is one sign, that of its row is two."""
    (at / unicodedata.normalize("NFC", "é.png")).write_bytes(encoded(drawn(), "PNG"))
    said = {"file_name": unicodedata.normalize("NFD", "é.png"), "text": "picture accent"}
    rows = [said, {"file_name": "nowhere.png", "text": "picture nowhere"}]
    bad = [b"{no json", b'{"file_name": "plain.png", "text": 3}']
    lines = [json.dumps(row).encode() for row in rows] + bad
    (at / "metadata.jsonl").write_bytes(b"\n".join(lines))


def bare(name: str, content: bytes):
    """Beside its picture, which is whole."""

    def make(at: Path) -> None:
        save(at / f"{Path(name).stem}.png")
        (at / Path(name).with_suffix(".txt")).unlink()
        (at / name).write_bytes(content)

    return make


def alone(name: str, content: bytes):
    def make(at: Path) -> None:
        (at / name).parent.mkdir(exist_ok=True)
        (at / name).write_bytes(content)

    return make


USED, OUT = True, False
KINDS = {
    # kind: (what makes it, its name in the report, words of its line, whether a picture is used)
    "EXIF rotation": (turned, "turned.jpg", "odd, it is turned upright", USED),
    "alpha": (lambda at: save(at / "clear.png", drawn("RGBA")), "clear.png", "white", USED),
    "grey": (lambda at: save(at / "grey.png", drawn("L")), "grey.png", "odd, grey is", USED),
    "CMYK": (lambda at: save(at / "ink.jpg", drawn("CMYK")), "ink.jpg", "CMYK is", USED),
    "16 bits": (deep, "deep.png", "16 bits or more is", USED),
    "floats": (deep, "real.tif", "floats is", USED),
    "animated": (moving, "moving.gif", "the first of 3 frames is read", USED),
    "huge and narrow": (
        lambda at: save(at / "wide.png", drawn(size=(9000, 4))), "wide.png", "middle square", USED,
    ),
    "one pixel": (lambda at: save(at / "dot.png", drawn(size=(1, 1))), "1x1 (1)", "sizes", USED),
    "wrong ending": (
        lambda at: put(at / "really.png", encoded(drawn(), "JPEG")), "really.png", "JPEG", USED,
    ),
    "bomb": (lambda at: put(at / "bomb.png", bomb()), "bomb.png", "million pixels", OUT),
    "truncated": (
        lambda at: put(at / "cut.jpg", encoded(drawn(), "JPEG")[:400]), "cut.jpg", "Truncated", OUT,
    ),
    "a flipped byte": (crc, "flipped.png", "cannot be read", OUT),
    "zero bytes": (lambda at: put(at / "none.png", b""), "none.png", "not an image", OUT),
    "a web page": (lambda at: put(at / "page.jpg", b"<html>"), "page.jpg", "not an image", OUT),
    "a link to nothing": (
        lambda at: (at / "lost.png").symlink_to("nothing"), "lost.png", "a link to nothing", OUT,
    ),
    "a link in a circle": (
        lambda at: (at / "round").symlink_to(at), "round", "the same folder as", OUT,
    ),
    "a pipe": (lambda at: os.mkfifo(at / "pipe.png"), "pipe.png", "not a file but a pipe", OUT),
    "no right to read": (lambda at: save(at / "shut.png"), "shut.png", "Permission denied", OUT),
    "a name of no UTF-8": (alone(os.fsdecode(b"caf\xe9.png"), b""), r"caf\xe9.png", "image", OUT),
    "two lines of name": (alone("two\nlines.png", b""), r"two\nlines.png", "image", OUT),
    "an accent in two ways": (metadata, "metadata.jsonl line 3", "not a JSON object", USED),
    "a caption that is a number": (metadata, "metadata.jsonl line 4", "neither a text", OUT),
    "a row without its picture": (metadata, "nowhere.png", "row of metadata", OUT),
    "BOM": (bare("bom.txt", "\ufeffpicture bom\r\n".encode()), "", "", USED),
    "UTF-16 captions": (
        bare("wide16.txt", "picture".encode("utf-16")), "wide16.txt", "not UTF-8 text", OUT,
    ),
    "Latin-1 captions": (
        bare("latin.txt", "caf\xe9".encode("latin-1")), "latin.txt", "not UTF-8 text", OUT,
    ),
    "an empty caption": (bare("mute.txt", b"\n \n"), "mute.png", "no caption", OUT),
    "no caption": (bare("silent.md", b"x"), "silent.png", "no caption", OUT),
    "a caption too long": (
        bare("long.txt", b"picture " * 60), "long.png", "more than 320 characters", USED,
    ),
    "a megabyte of caption": (
        bare("novel.txt", b"a" * 2**21), "novel.txt", "too much for captions", OUT,
    ),
    "a class of no number": (
        lambda at: (at / "plain.cls").write_text("seven"), "plain.cls", "number of a class", OUT,
    ),
    "twice the same": (twin, "twin2.png and twin.png", "the same picture twice", USED),
    "nested": (lambda at: save(at / "in" / "deep" / "er.png"), "", "", USED),
    ".DS_Store": (alone(".DS_Store", b"\0"), ".DS_Store", "left out, hidden", OUT),
    "__MACOSX": (alone("__MACOSX/._plain.png", b"\0"), "__MACOSX", "left out, hidden", OUT),
    "resource fork": (alone("._plain.png", b"\0"), "._plain.png", "left out, hidden", OUT),
    "a caption without its picture": (alone("lone.txt", b"lone"), "lone.txt", "without its", OUT),
    "a picture of another kind": (alone("f.heic", b"\0"), "f.heic", "not a picture", OUT),
    "a shard beside": (shard, "beside.tar", "a shard beside pictures", OUT),
    "a table beside": (alone("t.parquet", b"PAR1"), "t.parquet", "a table beside pictures", OUT),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    at = tmp_path_factory.mktemp("kinds")
    save(at / "plain.png", said="picture plain\n")
    for make in {make: None for make, *_ in KINDS.values()}:
        make(at)
    return at


@pytest.fixture
def shut(monkeypatch):
    """One file may not be read, also by who may read everything."""
    from everyway.data import listing

    opened = listing.File.open

    def closed(file):
        if file.path.endswith("shut.png"):
            raise PermissionError(13, "Permission denied")
        return opened(file)

    monkeypatch.setattr(listing.File, "open", closed)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_each_of_thirty_kinds_is_named_and_the_folder_trains(data, shut, tmp_path, capsys):
    assert len(KINDS) > 30
    assert main(["data", "check", str(data), "--out", str(tmp_path / "sheet")]) == 1
    lines = capsys.readouterr().out.splitlines()
    for kind, (_, name, why, _) in KINDS.items():
        assert any(name in line and why in line for line in lines), (kind, lines)
    assert Image.open(tmp_path / "sheet" / "contact-sheet.png").width > 400

    folder = Folder(data, size=16, captioned=True)
    used = {sample.key: sample.captions for sample in folder}
    assert len(used) == sum(use for *_, use in KINDS.values()) + 2  # plain, and one of the twins
    assert used["bom"] == ("picture bom",) and used["in/deep/er"] == ("picture er",)
    assert used[unicodedata.normalize("NFC", "é")] == ("picture accent",)

    lines = []
    config = resolve("nano", {"data": str(data), "steps": 2, "batch": 4}, str(tmp_path / "run"))
    made = train(config, note=lines.append)
    assert made["step"] == 2 and all(np.isfinite([*made["losses"].values()]))
    assert any(f"of the {folder.total} pictures" in line for line in lines)
