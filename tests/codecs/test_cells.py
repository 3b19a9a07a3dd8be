"""Contexts of small worlds: which token stands where, and what a variation is taught without."""

from __future__ import annotations

import torch

from everyway.codecs.cells import PlacedCells, PlacedTokens
from everyway.codecs.pca import CellPCA
from everyway.codecs.text_tokens import word_tokens
from everyway.codecs.token_table import TokenTable
from everyway.sampling.noise import PerSampleNoise


def cells() -> PlacedCells:
    codec = CellPCA(cell=8, channels=5)
    codec.fit(torch.rand(50, 3, 24, 24) * 2 - 1)
    return PlacedCells(codec=codec, gain=3.0)


def test_a_token_is_a_cell_and_its_place():
    own, pictures = cells(), torch.rand(2, 3, 24, 24)
    tokens = own.encode(pictures)
    assert tokens.shape == (2, 9, 5 + 9)
    state = own.codec.encode(pictures)
    torch.testing.assert_close(tokens[:, 5, :5], state[:, :, 1, 2])  # row by row
    assert torch.equal(tokens[0, :, 5:], 3.0 * torch.eye(9))


def test_a_masked_cell_is_nothing():
    own, pictures = cells(), torch.rand(2, 3, 24, 24)
    mask = torch.ones(2, 1, 24, 24)
    torch.testing.assert_close(own.encode(pictures, mask), own.encode(pictures))
    mask[:, :, 8:16, :8] = 0.0
    mask[:, :, :8, :4] = 0.0
    masked, whole = own.encode(pictures, mask), own.encode(pictures)
    assert not masked[:, 3].any()
    torch.testing.assert_close(masked[:, 0], 0.5 * whole[:, 0])
    torch.testing.assert_close(masked[:, 4:], whole[:, 4:])


def test_a_variation_is_taught_the_same_cells_elsewhere():
    own = cells()
    tokens = own.encode(torch.rand(40, 3, 24, 24))
    varied = own.varied(tokens, PerSampleNoise([*range(40)]))
    hidden = ~varied.any(2)
    assert 0 < hidden.float().mean() < 0.25
    orders = set()
    for before, after, none in zip(tokens[..., :5], varied[..., :5], hidden):
        near = torch.cdist(after[~none], before)
        assert near.min(1).values.max() < 1e-4  # each is one of them
        assert len(near.argmin(1).unique()) == int((~none).sum())
        orders.add(tuple(near.argmin(1).tolist()))
    assert len(orders) == 40
    assert torch.equal(varied[..., 5:], tokens[..., 5:] * ~hidden[..., None])


def test_words_have_places_too():
    texts = ["a fox", "a small fox"]
    table = TokenTable(word_tokens(texts), length=4, dim=3)
    table.fit(torch.randn(len(table.tokens), 3))
    tokens = PlacedTokens(codec=table, gain=2.0).encode(texts)
    assert tokens.shape == (2, 4, 3 + 4)
    torch.testing.assert_close(tokens[0, 1, :3], tokens[1, 2, :3])  # one word, in two places
    assert not torch.equal(tokens[0, 1], tokens[1, 2])
