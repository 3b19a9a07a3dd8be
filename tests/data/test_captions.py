"""Captions say what the record says, in both languages, and are read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from everyway.data import lattice
from everyway.data.captions import say, some
from everyway.data.emoji import LEXICON, EmojiScenes, caption, parse_caption
from everyway.data.reading import _plurals, read
from everyway.data.sample import Scene, SceneObject


def _scene(*names, **rest):
    return Scene(objects=tuple(SceneObject(name=n) for n in names), **rest)


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_round_trip(lang):
    data = EmojiScenes(seed=11)
    forms = set()
    for index in range(4000):
        rng = np.random.default_rng(index)
        stated = some(data.scene(index), rng)
        text = say(stated, rng, LEXICON, lang)
        assert parse_caption(text).canonical() == stated.canonical(), text
        for thing in stated.objects:
            word = thing.name if lang == "en" else LEXICON.objects[thing.name]
            text = text.replace(word, "#")
        forms.add(text)
    assert len(forms) > 300


def test_every_object_is_read_alone():
    rng = np.random.default_rng(0)
    for name in LEXICON.objects:
        for lang in ("en", "ko"):
            assert parse_caption(say(_scene(name), rng, LEXICON, lang)) == _scene(name)


@pytest.mark.parametrize(
    "text",
    [
        "a fox left of a teapot on blue",
        "A Fox to the left of a teapot, blue background.",
        "a teapot right of a fox on a blue background",
        "on a blue background, a fox on the left and a teapot on the right",
        "파란 배경에 찻주전자 왼쪽에 있는 여우",
        "여우가 찻주전자 왼쪽에 있고 파란색 배경",
        "왼쪽에 여우, 오른쪽에 찻주전자, 파란 배경",
    ],
)
def test_plain_prompts(text):
    wanted = _scene("fox", "teapot", relation="left of", background="blue")
    assert parse_caption(text).canonical() == wanted


def test_sizes_and_places():
    thing = SceneObject(name="fox", size="small", place="left")
    for text in ("a small fox on the left", "왼쪽에 있는 작은 여우", "tiny fox at the left"):
        assert parse_caption(text) == Scene(objects=(thing,))


@pytest.mark.parametrize(
    "text", ["", " ", "blue", "left of", "asdf qwer", "파란 배경", "\0🦊", "((("]
)
def test_junk_names_nothing(text):
    assert parse_caption(text) is None


def test_what_is_not_known_is_passed_over():
    assert parse_caption("foxgloves and dogfish") is None
    assert parse_caption("a fox wearing mauve") == _scene("fox")
    assert parse_caption("fox fox fox") == _scene("fox")
    assert parse_caption("a fox, a cat and a dog on red").names == ("fox", "cat")
    assert parse_caption("fox " * 5000) == _scene("fox")
    assert parse_caption("ice cream above ice").names == ("ice cream", "ice")
    assert parse_caption("배 배경") == _scene("pear")


def test_junk_never_raises():
    rng = np.random.default_rng(1)
    words = (
        "fox teapot a the on left of right above blue background 여우 왼쪽에 배경 , . # (".split()
    )
    for _ in range(3000):
        text = " ".join(rng.choice(words, rng.integers(1, 15)))
        found = parse_caption(text)
        assert found is None or 1 <= len(found.objects) <= 2


def test_caption_is_one_of_several():
    data = EmojiScenes(seed=1)
    said = {caption(data.scene(0), np.random.default_rng(i)) for i in range(50)}
    assert len(said) > 5
    with pytest.raises(ValueError, match="language 'fr'"):
        caption(data.scene(0), np.random.default_rng(0), "fr")


def test_a_scene_is_the_same_in_anybodys_words():
    """A plain prompt a line, its paraphrases indented below it; half of them Korean."""
    prompts, paraphrases, unlike = [], 0, []
    table = Path(__file__).parent.parent / "data" / "paraphrases.txt"
    for line in table.read_text(encoding="utf-8").splitlines():
        scene = lattice.parse_caption(line)
        if not line.startswith(" "):
            prompts.append(line)
            wanted = scene.canonical()
            continue
        paraphrases += 1
        if scene is None or scene.canonical() != wanted:
            unlike.append((prompts[-1], line.strip(), scene))
    assert (len(prompts), paraphrases) == (59, 236)
    assert not unlike


@pytest.mark.parametrize(
    ("text", "unread", "more"),
    [
        ("Draw me a fox, please, on a blue background!", (), ()),
        ("a fox wearing a mauve hatt", ("wearing", "mauve", "hatt"), ()),
        ("a red fox on blue", ("red",), ()),
        ("a fox, a pizza and a dog on red", (), ("dog",)),
        ("파란 배경에 여우 한 마리를 그려 주세요", (), ()),
        ("용과 여우, 파란 배경", ("용과",), ()),
    ],
)
def test_what_was_not_understood_is_told(text, unread, more):
    reading = read(text, lattice.LEXICON)
    assert reading.scene.names[0] == "fox"
    assert (reading.unread, reading.more) == (unread, more)


@pytest.mark.parametrize(
    ("text", "several"),
    [
        ("two small rockets on blue", ("rocket",)),
        ("rockets and a teapot", ("rocket",)),
        ("three foxes and a few teapots", ("fox", "teapot")),
        ("a fox and another fox", ("fox",)),
        ("two cherries", ("cherries",)),
        ("a pair of socks and some cherries", ()),
        ("a fox and another animal", ()),
        ("both a fox and a teapot", ()),
        ("작은 로켓 두 대와 여우", ("로켓",)),
        ("여우들, 2개의 피자", ("여우", "피자")),
        ("여우와 또 다른 여우", ("여우",)),
        ("여우 한 마리와 장미 한 송이", ()),
        ("여우와 다른 동물", ()),
    ],
)
def test_what_is_asked_for_more_than_once_is_told(text, several):
    assert read(text, lattice.LEXICON).several == several


def test_the_plural_of_one_object_is_not_another():
    """Every name is read as itself, and its plurals as that."""
    for lexicon in (lattice.LEXICON, LEXICON):
        for name in lexicon.objects:
            assert read(name, lexicon).scene.names == (name,)
            for plural in set(_plurals(name)) - set(lexicon.objects):
                assert read(f"two {plural}", lexicon).scene.names == (name,)


def test_next_to_is_drawn_beside():
    for text in ("a fox next to a teapot", "찻주전자 옆에 여우"):
        assert parse_caption(text).canonical() == _scene("fox", "teapot", relation="left of")
