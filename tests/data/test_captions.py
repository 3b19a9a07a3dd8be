"""Captions say what the record says, in both languages, and are read back."""

from __future__ import annotations

import numpy as np
import pytest

from everyway.data.captions import say, some
from everyway.data.emoji import LEXICON, EmojiScenes, caption, parse_caption
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
    assert parse_caption("foxes and foxgloves") is None
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
