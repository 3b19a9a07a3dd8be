"""What words look like: effects found in mixtures, codes that keep every word apart."""

from __future__ import annotations

import torch

from everyway.codecs.encoders import WordStates
from everyway.train.looks import codes_of_words, effects_of_words

VOCABULARY, SIDE = 40, 6


def scenes(count: int = 3000):
    """Captions of a filler (1), two of the words 2..29 and padding; a picture is the sum of what
    its words look like, and noise.  Word 29 looks like word 2; 30..39 are never said."""
    generator = torch.Generator().manual_seed(0)
    looks = torch.randn(VOCABULARY, SIDE * SIDE, generator=generator)
    looks[0] = looks[1] = 0
    looks[29] = looks[2]
    said = torch.randint(2, 30, (count, 2), generator=generator)
    ids = torch.cat([torch.ones(count, 1, dtype=torch.long), said, torch.zeros_like(said)], 1)
    noise = torch.randn(count, SIDE * SIDE, generator=generator)
    pictures = 3 + looks[said].sum(1) + 0.5 * noise
    return looks, list(zip(ids.split(500), pictures.view(-1, 1, SIDE, SIDE).split(500)))


def test_the_effect_of_a_word_is_what_it_looks_like():
    looks, rows = scenes()
    effects, counts = effects_of_words(iter(rows), VOCABULARY, 30.0)
    assert counts[0] == 0 and counts[1] == 3000 and counts[2:30].min() > 150
    assert counts[30:].sum() == 0 and effects[30:].abs().max() < 1e-4
    likeness = torch.nn.functional.cosine_similarity(
        effects[2:30] - effects[2:30].mean(0), looks[2:30] - looks[2:30].mean(0)
    )
    assert likeness.min() > 0.9


def test_words_that_look_alike_have_codes_alike_and_no_two_the_same():
    _, rows = scenes()
    codes = codes_of_words(*effects_of_words(iter(rows), VOCABULARY, 30.0), 16, seed=3)
    assert codes.shape == (VOCABULARY, 16)
    apart = torch.cdist(codes, codes).fill_diagonal_(99.0)
    assert apart.min() > 0.5
    others = apart[2, 3:29]
    assert apart[2, 29] < others.min()
    again = codes_of_words(*effects_of_words(iter(rows), VOCABULARY, 30.0), 16, seed=3)
    assert torch.equal(codes, again)


def test_a_rare_word_has_a_code_as_large_as_those_of_others():
    """Words that are said together look alike, and an axis of theirs is rounding."""
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(6, 2, generator=generator) @ torch.randn(2, 64, generator=generator)
    rounding = 1e-6 * torch.randn(6, 64, generator=generator)
    effects = torch.cat([plane + rounding, torch.randn(1, 64, generator=generator)])
    counts = torch.tensor([20.0] * 6 + [5.0])
    codes = codes_of_words(effects, counts, 16, seed=3, least=20)
    assert codes.abs().max() < 6


def test_a_word_that_looks_like_nothing_has_a_code_of_its_own():
    effects, counts = (
        torch.randn(40, 30, generator=torch.Generator().manual_seed(1)),
        torch.ones(40),
    )
    effects[30:] = effects[:30].mean(0)
    codes = codes_of_words(effects, 100 * counts, 8, seed=3)
    assert torch.cdist(codes[30:], codes[30:]).fill_diagonal_(99.0).min() > 1.0


def test_the_states_of_a_word_are_the_same_wherever_it_stands():
    states = WordStates({"hidden_size": 8, "vocab_size": 5})
    made = states(torch.tensor([[1, 4, 2], [4, 3, 0]]))
    assert made.shape == (2, 3, 8) and torch.equal(made[0, 1], made[1, 0])
