"""What is written for the user: never lost, never replaced, made again from itself."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from everyway.apps import files
from everyway.apps.cli import main
from everyway.request import GenerateRequest, RequestError

FAST = ("--model", "nano", "--steps", "1", "--quiet")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def made(nano):
    request = nano.settled(GenerateRequest(kind="image", steps=1, n=4, model="nano"))
    return request, nano.generate(request)


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / files.ROWS).read_text("utf-8").split("\n") if line]


def test_what_an_interrupted_request_lacks_is_made(here, made, capsys):
    request, results = made
    (here / "p.jsonl").write_text('{"n": 4}\n')
    folder = files.Folder(here / "out")
    folder.save(results[0], request)
    folder.save(results[2], request)
    words = ["generate", "image", "--prompts", "p.jsonl", *FAST]
    assert main(words) == 0
    assert sorted(row["seed"] for row in rows(here / "out")) == [0, 1, 2, 3]
    assert main(words) == 0
    assert len(rows(here / "out")) == 4


def test_of_a_chain_the_missing_results_are_made(here):
    (here / "p.jsonl").write_text('{"kind": "chain", "text": "a red ring", "rounds": 2}\n')
    words = ["generate", "image", "--prompts", "p.jsonl", *FAST]
    assert main(words) == 0
    whole = (here / "out" / files.ROWS).read_text("utf-8").split("\n")
    (here / "out" / files.ROWS).write_text(whole[0] + "\n", "utf-8")
    assert main(words) == 0
    assert sorted(row["part"] for row in rows(here / "out")) == [0, 1, 2, 3]


def test_two_writers_share_a_folder(here, made):
    request, results = made

    def save(seed: int) -> None:
        folder = files.Folder(here / "out")
        for result in results:
            folder.save(result, request)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(save, range(2)))
    names = [row["image"] for row in rows(here / "out")]
    assert len(set(names)) == 8 and all((here / "out" / name).is_file() for name in names)
    for row in rows(here / "out"):
        assert files.read_record(here / "out" / row["image"]).request.seed == row["seed"]


def test_a_picture_that_is_there_is_never_replaced(here, made):
    request, results = made
    Image.new("RGB", (30, 20)).save(here / "00000.png")
    row = files.Folder(here).save(results[0], request)
    assert row["image"] == "00001.png"
    assert Image.open(here / "00000.png").size == (30, 20)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_a_line_separator_in_a_prompt_breaks_no_line(here, mark):
    prompt = {"text": f"a red{mark}ring"}
    (here / "p.jsonl").write_text(json.dumps(prompt, ensure_ascii=False), "utf-8")
    words = ["generate", "image", "--prompts", "p.jsonl", *FAST]
    assert main(words) == 0 and main(words) == 0
    assert len(rows(here / "out")) == 1


def test_a_damaged_line_is_named(here, capsys):
    (here / "out").mkdir()
    (here / "out" / files.ROWS).write_text("{}\n")
    (here / "p.jsonl").write_text("{}\n")
    assert main(["generate", "image", "--prompts", "p.jsonl", *FAST]) == 2
    assert "results.jsonl, line 1" in capsys.readouterr().err


DAMAGED = {
    "nothing": "{}",
    "a list": "[]",
    "no JSON": "{",
    "no facts": '{"request": {"kind": "image"}, "part": 0}',
    "a part below zero": '{"request": {"kind": "image"}, "part": -1, "facts": FACTS}',
    "an unknown field": '{"request": {"kind": "image", "self": 1}, "part": 0, "facts": FACTS}',
    "odd facts": '{"request": {"kind": "image"}, "part": 0, "facts": {"model_hash": 3}}',
}


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_record_is_refused(here, text):
    info = PngImagePlugin.PngInfo()
    info.add_text("everyway", text.replace("FACTS", '{"model_hash": "x", "torch": "2"}'))
    Image.new("RGB", (4, 4)).save(here / "x.png", pnginfo=info)
    with pytest.raises(RequestError, match="x.png"):
        files.read_record(here / "x.png")


def test_replay_finds_what_a_picture_was_made_from(here, capsys):
    Image.new("RGB", (16, 16), "red").save(here / "given.png")
    assert main(["vary", "image", "given.png", *FAST]) == 0
    (here / "given.png").rename(here / "moved.png")
    assert main(["replay", "out/00000.png"]) == 2
    assert "--image" in capsys.readouterr().err
    assert main(["replay", "out/00000.png", "--image", "moved.png"]) == 0
    Image.new("RGB", (16, 16), "blue").save(here / "given.png")
    assert main(["replay", "out/00000.png"]) == 2
    assert "not the picture" in capsys.readouterr().err


def test_the_work_goes_on_when_nobody_reads(here, monkeypatch):
    import sys

    class Gone:
        def write(self, text):
            raise BrokenPipeError

        def flush(self): ...

        def fileno(self):
            raise OSError

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["generate", "image", "-n", "3", *FAST[:-1]]) == 0
    assert len(rows(here / "out")) == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("generate", "text", "--prompts", "p.jsonl", "--text", "x"), "--text goes into the lines"),
        (("interpolate", "a.png", "b.png", "-n", "4"), "leave n out"),
        (("generate", "image", "--seed", str(2**62 - 1), "-n", "2"), "smaller seed"),
        (("generate", "image", "--text", "\udcff"), "not valid Unicode"),
        (("generate", "image", "--prompt", "x"), "unrecognized"),
        (("generate", "image", "--text", "-fox"), "--flag=VALUE"),
        (("generate", "image", "--out", "p.jsonl"), "give a folder"),
        (("generate", "image", "--out", ""), "give a folder"),
        (("generate", "image", "--image", "a.png"), "--strength"),
        (("data", "shapes", "--seed=-1"), "from 0 up"),
        (("evaluate", "nano", "--seed=-5"), "from 0 up"),
    ],
)
def test_mistakes_are_one_line(here, capsys, words, said):
    (here / "p.jsonl").write_text("{}\n")
    assert main(list(words)) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
