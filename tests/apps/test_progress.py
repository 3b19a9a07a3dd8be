"""What a person at a terminal sees while something is made, and what nobody else does."""

from __future__ import annotations

import io
import re
import sys

import pytest
from PIL import Image
from rich.console import Console

from everyway.apps import cli
from everyway.apps.cli import progress

FAST = ["--model", "nano", "--steps", "3"]
RED = ["generate", "image", "--text", "a red ring top on blue", "-n", "2", *FAST]


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_terminal(monkeypatch, tmp_path):
    """Run a command whose standard error is a terminal -> (exit code, output, what it shows)."""
    monkeypatch.chdir(tmp_path)
    size = {"COLUMNS": "100", "LINES": "40"}
    for name, value in ({"TERM": "xterm-256color", "COLORTERM": "truecolor"} | size).items():
        monkeypatch.setenv(name, value)

    def call(*words: str, **environment: str) -> tuple[int, str, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        out, err = io.StringIO(), Terminal()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        code = cli.main([*words])
        return code, out.getvalue(), err.getvalue()

    return call


def test_a_terminal_shows_how_far_it_is_and_what_is_made(at_terminal, tmp_path):
    code, out, shown = at_terminal(*RED, "--out", "shown")
    assert code == 0 and "nano, 1 of 2" in shown and "100%" in shown and "▀" in shown
    assert len(out.splitlines()) == 2 and "▀" not in out  # what is piped is the same
    code, out, shown = at_terminal(*RED, "--out", "plain", "--no-preview")
    assert code == 0 and "nano, 1 of 2" in shown and "▀" not in shown
    for name in ("00000.png", "00001.png"):  # to look changes nothing
        a, b = (Image.open(tmp_path / folder / name) for folder in ("shown", "plain"))
        assert a.tobytes() == b.tobytes()


def test_a_text_is_shown_as_it_comes(at_terminal):
    code, out, shown = at_terminal("generate", "text", *FAST, TERM="dumb", COLORTERM="")
    assert code == 0 and out.count("seed") == 1
    code, _, shown = at_terminal("generate", "text", *FAST, "--preview", TERM="xterm")
    assert code == 0 and "▀" not in shown and re.search(r"nano, 1 of 1[^\r]*\n", shown)


def test_a_small_or_grey_terminal_shows_a_bar_alone(at_terminal):
    for environment in ({"COLUMNS": "30"}, {"COLUMNS": "100", "LINES": "10"}, {"COLORTERM": ""}):
        code, _, shown = at_terminal(*RED, TERM="xterm", **environment)
        assert code == 0 and shown and "▀" not in shown


def test_quiet_says_nothing_at_all(at_terminal, run, caplog):
    Image.new("RGB", (40, 20), "red").save("wide.png")
    words = ["generate", "text", "--image", "wide.png", *FAST]
    assert at_terminal(*words)[0] == 0 and "its middle 20x20 is seen" in caplog.text
    caplog.clear()
    assert at_terminal(*words, "--quiet") == (0, "", "") and not caplog.records
    assert run(*words)[0] == 0 and caplog.records  # the next command is as ever


def test_a_pipe_is_told_results_alone(run):
    code, out, err = run(*RED)
    assert code == 0 and len(out.splitlines()) == 2 and not err


def test_a_picture_is_half_blocks_of_its_colours():
    picture = Image.new("RGB", (64, 64), "blue")
    picture.paste("red", (0, 0, 64, 2))  # the upper half of the first line
    text = progress.drawn(picture)
    lines = text.plain.split("\n")
    assert len(lines) == progress.COLUMNS // 2 and {len(row) for row in lines} == {progress.COLUMNS}
    first, last = text.spans[0].style, text.spans[-1].style
    assert (*first.color.triplet, *first.bgcolor.triplet) == (255, 0, 0, 0, 0, 255)
    assert (*last.color.triplet, *last.bgcolor.triplet) == (0, 0, 255, 0, 0, 255)


def test_pictures_need_signs_colours_and_room():
    def room(encoding="utf-8", **settings):
        settings = {"width": 80, "height": 30, "color_system": "truecolor"} | settings
        file = io.TextIOWrapper(io.BytesIO(), encoding)
        return progress.has_room(Console(file=file, force_terminal=True, **settings))

    assert room() and room(color_system="256")
    assert not room("ascii") and not room(width=39) and not room(height=21)
    assert not room(color_system="standard")
