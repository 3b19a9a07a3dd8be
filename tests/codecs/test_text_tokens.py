"""Texts of words and phrases, there and back."""

import pytest

from everyway.codecs.text_tokens import Tokens, frequent_phrases, word_tokens

MARKED = [
    "it's the cat's hat, isn't it?",
    "a well-lit t-shirt -- size 12",
    "no. 3 of 100: 2.5%",
    "and/or (a house); one [two]!",
    "큰 red 원, 집이 있어요 (a house)",
]


@pytest.mark.parametrize("least", [0, 2])
def test_captions_come_back_as_they_were_written(least: int) -> None:
    """With marks where they stood, of words alone and of phrases."""
    texts = MARKED * 3
    tokens = Tokens(word_tokens(texts, frequent_phrases(texts, least) if least else ()), 30)
    assert tokens.decode(tokens.encode(MARKED)) == MARKED
