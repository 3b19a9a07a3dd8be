"""The command line speaks the language of the locale, and every sentence of it."""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import sys
from pathlib import Path

import pytest
from PIL import Image

import everyway
from everyway.apps import cli
from everyway.apps.cli import language
from everyway.apps.cli.language import LOCALE, TABLES, spoken, translated

SOURCES = Path(everyway.__file__).parent
OTHERS = """
usage: {}
positional arguments:
options:
argument {}: {}
argument {}: expected one argument; a value that begins with a dash is written --flag=VALUE
argument {}: ignored explicit argument {}
argument {}: not allowed with argument {}
invalid choice: {} (choose from {})
the following arguments are required: {}
unrecognized arguments: {}
Input should be greater than or equal to {}
Input should be greater than {}
Input should be less than or equal to {}
Input should be less than {}
Input should be a finite number
Input should be a valid integer, unable to parse string as an integer
Input should be a valid number, unable to parse string as a number
Input should be {} or {}
No space left on device
there is no folder {}; check the path, or give {} for a model of the hub
generate {} takes no --{} alone
generate {} takes no --{} alone; --mask or --strength goes with it
presets: {}
{} (default: {})
"""
"""Of argparse, pydantic and the system, and ours that are put together as they are said."""


@pytest.fixture
def table():
    def once(pairs):
        assert len(pairs) == len(dict(pairs)), "a sentence stands in it twice"
        return dict(pairs)

    return json.loads(TABLES["ko"].read_text(encoding="utf-8"), object_pairs_hook=once)


@pytest.fixture
def speak(monkeypatch):
    """Sets the locale; what is not given is not set."""

    def call(**locale):
        for name in LOCALE:
            monkeypatch.delenv(name, raising=False)
        for name, value in locale.items():
            monkeypatch.setenv(name, value)

    return call


def helps(parser: argparse.ArgumentParser) -> set[str]:
    """Every sentence of a command's help, without the defaults of flags."""
    said = {" ".join((parser.description or "").split())}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            said |= {choice.help for choice in action._choices_actions}
            said |= {line for command in action.choices.values() for line in helps(command)}
        else:
            said.add(re.sub(r" \(default: .*\)$", "", " ".join(action.help.split())))
    settings = re.findall(r"^  \w+ {2,}(?:\S+ {2,})?(.+)$", parser.epilog or "", re.M)
    titles = re.findall(r"^\w.*:$", parser.epilog or "", re.M)
    return (said | {*settings, *titles}) - {""}


def test_every_sentence_of_every_help_has_its_korean(speak):
    speak(LANG="C")
    for said in sorted(helps(cli.parser())):
        assert re.search("[가-힣]", translated(said, "ko")), said


def test_every_sentence_of_the_table_is_said(speak, table):
    speak(LANG="C")
    said = helps(cli.parser()) | {*filter(None, OTHERS.split("\n"))}
    said = {re.sub(r"model's own \(.*\)$", "model's own ({})", line) for line in said}
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
                said.add(" ".join("".join(parts).split()))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                said.add(" ".join(node.value.split()))
    assert sorted(table.keys() - said) == []


def test_the_korean_has_what_is_put_into_it(table):
    for sentence, said in table.items():
        count = sentence.count("{}")
        assert {*re.findall(r"\{(\d)\}", said)} == {str(k) for k in range(count)}, sentence
        assert re.search("[가-힣]", said) or not re.search("[a-z]", sentence), sentence


def test_the_first_locale_that_is_set_counts(speak):
    for locale in ({"LANG": "ko_KR.UTF-8"}, {"LC_ALL": "ko"}, {"LANGUAGE": "ko:en", "LANG": "en"}):
        speak(**locale)
        assert spoken("how many samples") == "샘플의 수"
    for locale in ({}, {"LANG": "C"}, {"LC_ALL": "en_GB.UTF-8", "LANG": "ko"}, {"LANG": "fr"}):
        speak(**locale)
        assert spoken("how many samples") == "how many samples"


def test_a_screen_without_hangul_is_told_in_english(speak, monkeypatch):
    speak(LANG="ko_KR")
    for encoding, same in (("ascii", True), ("cp1252", True), ("cp949", False), ("utf-8", False)):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding))
        assert (spoken("a prompt") == "a prompt") == same


def test_what_is_put_into_a_sentence_is_told_too():
    said = (
        "argument -n: n=0: Input should be greater than or equal to 1 (see: everyway data --help)"
    )
    assert (
        translated(said, "ko") == "-n 인자: n=0: 1 이상이어야 합니다 (도움말: everyway data --help)"
    )
    assert translated("there is no picture at 'a {0} b'; check the path", "ko") == (
        "'a {0} b'에 그림이 없습니다. 경로를 확인하세요"
    )
    unknown = translated("language '영어' is unknown; did you mean 'ko'?", "ko")
    assert unknown == "언어 '영어'는 없습니다. 혹시 'ko'인가요?"
    assert translated("a sentence of nobody", "ko") == "a sentence of nobody"


def test_help_and_results_are_korean(speak, run, capsys):
    speak(LANG="ko_KR.UTF-8")
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    out = capsys.readouterr().out
    assert out.startswith("사용법: everyway train") and "옵션:" in out and "학습률" in out
    assert not re.search(r"[a-z]+ (the|of|is|are|by) [a-z]+", out)
    words = ["generate", "image", "--model", "nano", "--steps", 1, "--prompts", "p"]
    Path("p").write_text("a red ring\n")
    assert run(*words)[0] == 0
    assert run(*words)[1] == "이미 있어 건너뜁니다: a red ring\n"
    assert language.spoken("objects: fox 여우") == "물체: fox 여우"
    Image.new("RGB", (40, 20), "red").save("wide.png")
    code, _, err = run("generate", "text", "--model", "nano", "--steps", 1, "--image", "wide.png")
    assert (
        code == 0 and err == "wide.png의 크기는 40x20입니다. 가운데 20x20만 64x64로 줄여 봅니다\n"
    )
