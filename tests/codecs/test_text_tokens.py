"""Words and frequent phrases as tokens."""

from __future__ import annotations

import pytest

from everyway.codecs.text_tokens import SPECIAL, Tokens, frequent_phrases, word_tokens

CAPTIONS = [
    f"a {size} {name} {place}"
    for size in ("large", "small")
    for name in ("fox", "hat", "sun")
    for place in ("on the left, blue sky", "on the right", "왼쪽에 있는")
]


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens(word_tokens(CAPTIONS, frequent_phrases(CAPTIONS, 6)), 8)


def read(tokens: Tokens, text: str) -> list[str]:
    return tokens.tokenizer.encode(text).tokens


def test_what_stands_together_often_is_a_phrase() -> None:
    found = frequent_phrases(CAPTIONS, 6)
    assert {"a large", "a small", "on the", "on the left, blue sky", "왼쪽에 있는"} <= set(found)
    assert not any("fox" in phrase for phrase in found)  # three times with each size
    assert frequent_phrases(CAPTIONS, len(CAPTIONS) + 1) == []


def test_the_longest_phrase_is_read(tokens: Tokens) -> None:
    assert read(tokens, "A large fox on the left, blue sky") == [
        "a large",
        "fox",
        "on the left, blue sky",
    ]
    assert read(tokens, "a small hat 왼쪽에 있는") == ["a small", "hat", "왼쪽에 있는"]


def test_words_of_phrases_are_known_alone(tokens: Tokens) -> None:
    assert read(tokens, "the blue hat, left") == ["the", "blue", "hat", ",", "left"]
    assert read(tokens, "an a larger fox")[1:] == ["a", "[unk]", "fox"]  # no phrase ends in a word


def test_only_what_is_read_is_a_token(tokens: Tokens) -> None:
    words = {word for text in CAPTIONS for word in text.replace(",", " ,").split()}
    phrases = {token for token in tokens.tokenizer.get_vocab() if " " in token}
    assert set(tokens.tokenizer.get_vocab()) == {*SPECIAL, *words, *phrases}
    assert phrases == {token for text in CAPTIONS for token in read(tokens, text)} - words


def test_captions_come_back(tokens: Tokens) -> None:
    assert tokens.decode(tokens.encode(CAPTIONS)) == CAPTIONS
    odd = "a (large) fox*. on the left ,blue"
    assert tokens.decode(tokens.encode(["the large, blue fox"])) == ["the large, blue fox"]
    assert "fox" in read(tokens, odd)


def test_marks_that_mean_something_in_patterns() -> None:
    texts = ["what? a+b (c) [d] x.y"] * 9
    own = Tokens(word_tokens(texts, frequent_phrases(texts, 5)), 24)
    assert own.decode(own.encode(["d ] c a x"])) == ["d ] c a x"]
    assert "[unk]" not in read(own, "what? a+b (c) [d] x.y")


MARKED = [
    "it's the cat's hat, isn't it?",
    "a well-lit t-shirt -- size 12",
    "no. 3 of 100: 2.5%",
    "and/or (a house); one!",
    "큰 red 원, 집이 있어요 (a house)",
]


@pytest.mark.parametrize("phrased", [False, True])
def test_marks_come_back_where_they_stood(phrased: bool) -> None:
    texts = MARKED * 3
    own = Tokens(word_tokens(texts, frequent_phrases(texts, 2) if phrased else ()), 30)
    assert own.decode(own.encode(MARKED)) == MARKED


def test_marks_of_the_tokenizer_are_words_in_a_text(tokens: Tokens) -> None:
    ids = tokens.encode(["[end] fox [pad]"])
    assert tokens.decode(ids) == ["fox"]
    assert (ids == tokens.end).sum() == 1
