"""What captions say after what, against every sentence written out."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from everyway.codecs.bigrams import LEAST, Bigrams
from everyway.codecs.text_tokens import Tokens, word_tokens

TEXTS = ["a fox left", "a hat", "a fox", "the fox left"]


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens(word_tokens(TEXTS), 4)


@pytest.fixture(scope="module")
def bigrams(tokens: Tokens) -> Bigrams:
    return Bigrams.counted(tokens, TEXTS)


def transitions(tokens: Tokens) -> Tensor:
    """(V + 1, V) by hand: row V is the start."""
    rows = [[len(tokens), *tokens.tokenizer.encode(text).ids, tokens.end] for text in TEXTS]
    counts = torch.zeros(len(tokens) + 1, len(tokens), dtype=torch.float64)
    for row in rows:
        for before, after in zip(row, row[1:]):
            counts[before, after] += 1
    alone = counts.sum(0) / counts.sum()
    followers, seen = (counts > 0).sum(1, keepdim=True), counts.sum(1, keepdim=True)
    found = torch.where(seen > 0, (counts + followers * alone) / (seen + followers), alone)
    found[[tokens.end, tokens.pad]] = 0.0
    found[[tokens.end, tokens.pad], tokens.pad] = 1.0
    return found


def test_marginals_are_those_of_all_sentences(tokens: Tokens, bigrams: Bigrams) -> None:
    scores = 2 * torch.randn(3, 4, len(tokens), generator=torch.Generator().manual_seed(0))
    chain, likely = transitions(tokens), scores.double().softmax(-1) + LEAST
    expected = torch.zeros_like(likely)
    for sentence in product(range(len(tokens)), repeat=4):
        steps = zip((len(tokens), *sentence), sentence)
        prior = torch.stack([chain[step] for step in steps]).prod()
        places = torch.arange(4)
        expected[:, places, list(sentence)] += (prior * likely[:, places, list(sentence)].prod(1))[
            :, None
        ]
    expected /= expected.sum(-1, keepdim=True)
    torch.testing.assert_close(bigrams.marginals(scores), expected, rtol=1e-9, atol=1e-12)


def test_what_is_certain_stays(tokens: Tokens, bigrams: Bigrams) -> None:
    ids = tokens.encode(["left hat", "the hat left", "fox"])  # never said
    scores = 60.0 * torch.nn.functional.one_hot(ids, len(tokens))
    assert torch.equal(bigrams.marginals(scores).argmax(-1), ids)


def test_what_is_uncertain_becomes_a_sentence(tokens: Tokens, bigrams: Bigrams) -> None:
    ids = tokens.encode(["a hat", "the fox left"])
    scores = torch.nn.functional.one_hot(ids, len(tokens)).sum(0).double().log().clamp_min(-30)
    made = bigrams.marginals(scores[None])[0]
    hat, fox = (tokens.tokenizer.token_to_id(word) for word in ("hat", "fox"))
    assert made[1, hat] + made[1, fox] > 0.99
    both = tokens.decode(made.argmax(-1)[None])[0]
    assert both in TEXTS


def test_a_sentence_has_the_bits_it_has_alone(tokens: Tokens, bigrams: Bigrams) -> None:
    scores = torch.randn(5, 4, len(tokens), generator=torch.Generator().manual_seed(1))
    together = bigrams.marginals(scores)
    assert all(
        torch.equal(bigrams.marginals(own[None])[0], row) for own, row in zip(scores, together)
    )
