"""A text codec fitted to the captions of a folder: a vector for each word and frequent phrase.

A vector says what the pictures look like whose captions have its token (`train.looks`).  With
phrases, captions are shorter and each token says more: "on the left" is generated as a whole, where
its words, each denoised at its own place, can come from different captions (docs/LOG.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from everyway.codecs.text_tokens import (
    SPECIAL,
    Tokens,
    frequent_phrases,
    train_tokens,
    word_tokens,
)
from everyway.codecs.token_table import TokenTable
from everyway.data.captions import language
from everyway.data.faults import FolderError
from everyway.train.fitted import DIM, LANGUAGE, RIDGE, SEED, WHERE
from everyway.train.looks import SEEN, codes_of_words, effects_of_words

WORDS = 4096
"""Up to so many different words each is a token; of more, frequent parts of words are tokens."""
FREQUENT, OFTEN = 0.005, 5
"""Words are a phrase if they stand together in this share of the captions, and so many times."""
SPARE = 2
"""How many tokens longer a prompt may be than the longest caption in phrases, and than the median
caption in single words."""
LEADING = 16
"""How many numbers of a cell say where in a picture a word is seen, the first ones."""
TOGETHER = 500
"""Captions that are read at once."""


@torch.no_grad()
def fit(
    captions: Sequence[Sequence[str]],
    shown: Sequence[Sequence[str]],
    latents: Tensor,
    longest: int,
) -> tuple[TokenTable, dict[str, Any], dict[str, Any]]:
    """The codec, its settings as plain data, and its metadata.

    captions: of every picture.  shown: those of N pictures.  latents: of these, (N, D, h, w).
    longest: how many tokens a caption may have, its end mark among them.
    Raises FolderError where no caption is short enough.
    """
    said = [caption for own in captions for caption in own]
    words, unit = Tokens(word_tokens(said), 1), "words"
    if len(words) > WORDS:
        tokens = words = Tokens(train_tokens(said, WORDS), 1)
        unit = "parts of words"
    else:
        least = max(OFTEN, round(FREQUENT * len(said)))
        tokens = Tokens(word_tokens(said, frequent_phrases(said, least)), 1)
    lengths = _lengths(tokens, said)
    length = min(longest, max(lengths[-1], _lengths(words, said)[len(said) // 2]) + SPARE)
    if lengths[0] > length:
        raise FolderError(
            f"no caption is short enough: the shortest has {lengths[0] - 1} {unit}, this preset "
            f"reads {length - 1}; shorten them"
        )
    settings = {"tokenizer": tokens.tokenizer.to_str(), "length": length, "dim": DIM}
    codec = TokenTable(**settings)
    short = (text for text in said if len(tokens.tokenizer.encode(text).ids) < length)
    settings["pairs"] = codec.count(short)
    codec.fit(_codes(codec.tokens, words, shown, latents))
    metadata = {
        "words": len(words) - len(SPECIAL),
        "unit": unit,
        "phrases": len(tokens) - len(words),
        "captions": len(said),
        "too_long": sum(n > length for n in lengths),
    }
    return codec, settings, metadata


def _lengths(tokens: Tokens, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has with its end mark, in rising order."""
    return sorted(len(tokens.tokenizer.encode(text).ids) + 1 for text in texts)


def _codes(
    tokens: Tokens, words: Tokens, captions: Sequence[Sequence[str]], latents: Tensor
) -> Tensor:
    """(vocabulary, DIM): what each token looks like and, where there are two languages, its own.

    captions: of N pictures with latents (N, D, h, w).  They are read by `tokens`, in phrases, and
    by `words`, in single words, since words that only stand in phrases would have no vector.
    """
    languages = torch.zeros(len(tokens), 2, dtype=torch.bool)
    looks = torch.cat([latents.sum((2, 3)), WHERE * latents[:, :LEADING].flatten(1)], 1)
    said = [(k, text) for k, own in enumerate(captions) for text in own]

    def rows(reader: Tokenizer) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(said), TOGETHER):
            of, texts = zip(*said[start : start + TOGETHER])
            read = [reader.encode(text).tokens for text in texts]
            ids = [torch.tensor([*map(tokens.tokenizer.token_to_id, own)]) for own in read]
            for row, text in zip(ids, texts):
                languages[row, int(language(text) == "ko")] = True
            yield pad_sequence(ids, batch_first=True, padding_value=tokens.pad), looks[list(of)]

    readers = dict.fromkeys((tokens.tokenizer, words.tokenizer))  # one, where there is no phrase
    effects, counts = effects_of_words(chain(*map(rows, readers)), len(tokens), RIDGE)
    least = min(SEEN, int(counts.median()))
    both = bool(languages.any(0).all())
    codes = codes_of_words(effects, counts, DIM - LANGUAGE * both, SEED, least)
    if not both:
        return codes
    side = languages[:, 1].float() - languages[:, 0].float()  # -1 English, 1 Korean, 0 both
    return torch.cat([codes, side[:, None].expand(-1, LANGUAGE)], 1)
