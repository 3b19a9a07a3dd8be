"""Linear codecs: principal components of cells and thumbnails, and the table of tokens."""

from __future__ import annotations

import pytest
import torch

from everyway.codecs.pca import PCA, CellPCA, ThumbnailPCA
from everyway.codecs.text_tokens import PromptError, word_tokens
from everyway.codecs.token_table import TokenTable
from everyway.data.lattice import LEXICON, Lattice
from everyway.data.sample import to_tensor


def test_as_many_axes_as_there_are_lose_nothing():
    basis = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    data = torch.randn(300, 5, generator=torch.Generator().manual_seed(1)) @ basis + 3
    for power in (1.0, 0.5):
        pca = PCA(40, 5, power)
        pca.fit(data)
        states = pca(data)
        assert torch.allclose(pca.inverse(states), data, atol=1e-4)
        assert float(states.square().mean()) == pytest.approx(1, abs=1e-3)
    assert float(pca(data).std(0)[0] / pca(data).std(0)[-1]) > 1


def test_cells_are_coded_apart():
    pictures = to_tensor([Lattice().sample(i).image for i in range(200)])
    codec = CellPCA(cell=32, channels=96)
    codec.fit(pictures)
    state = codec.encode(pictures)
    assert state.shape == (200, 96, 3, 3)
    changed = pictures.clone()
    changed[:, :, :32, :32] = 0
    moved = (codec.encode(changed) - state).abs().amax((0, 1)) > 1e-4
    assert moved.tolist() == [[True, False, False], [False] * 3, [False] * 3]
    assert float((codec.decode(state) - pictures).square().mean()) < 4e-3


def test_cells_may_be_of_smaller_pictures():
    pictures = to_tensor([Lattice().sample(i).image for i in range(200)])
    small = torch.nn.functional.avg_pool2d(pictures, 2)
    codec, whole = CellPCA(cell=16, channels=64, side=48), CellPCA(cell=16, channels=64)
    codec.fit(pictures)
    whole.fit(small)
    state = codec.encode(pictures)
    assert state.shape == (200, 64, 3, 3)
    torch.testing.assert_close(state, whole.encode(small), atol=1e-3, rtol=1e-3)
    assert codec.decode(state).shape == (200, 3, 48, 48)
    torch.testing.assert_close(codec.encode(small), state, atol=1e-3, rtol=1e-3)


def test_thumbnails_are_one_white_vector():
    pictures = to_tensor([Lattice().sample(i).image for i in range(300)])
    codec = ThumbnailPCA(side=12, channels=16)
    codec.fit(pictures)
    states = codec.encode(pictures)
    assert states.shape == (300, 1, 16)
    assert torch.allclose(states[:, 0].std(0), torch.ones(16), atol=0.05)
    assert codec.decode(states).shape == (300, 3, 12, 12)


@pytest.fixture(scope="module")
def table():
    data = Lattice(partial=True)
    spec = word_tokens(c for i in range(4000) for c in data.sample(i).captions)
    codec = TokenTable(spec, 12, 32, LEXICON.to_json())
    codec.fit(torch.randn(len(codec.tokens), 32, generator=torch.Generator().manual_seed(0)))
    return codec


def test_texts_come_back(table):
    texts = [c for i in range(50) for c in Lattice(seed=5).sample(i).captions]
    noise = torch.randn(100, 12, 32, generator=torch.Generator().manual_seed(2))
    assert table.decode(table.encode(texts) + 0.3 * noise) == texts


@pytest.mark.parametrize(
    ("said", "plain"),
    [
        ("Draw me a big fox on blue, please!", "a large fox, blue background"),
        ("a teapot right of a fox", "a fox left of a teapot"),
        ("파란 배경에 큰 여우", "파란 배경, 큰 여우"),
        ("a tiny pizza under a cactus", "a cactus above a small pizza"),
    ],
)
def test_a_text_in_other_words_is_read_as_the_plain_caption(table, said, plain):
    assert table.phrased(said) == plain
    assert torch.equal(table.encode([said]), table.encode([plain]))


@pytest.mark.parametrize(
    ("said", "completed"),
    [
        ("a fox left of a teapot on blue", "a large fox left of a large teapot, blue background"),
        ("a small fox", "a small fox in the middle, white background"),
        ("초록 배경, 왼쪽에 여우", "초록 배경, 왼쪽에 큰 여우"),
    ],
)
def test_a_prompt_is_completed_and_that_is_told(table, said, completed):
    assert table.completed(said) == completed == table.completed(completed)
    assert table.remarks(said) == [f"taken as: {completed}"] and not table.remarks(completed)


@pytest.mark.parametrize(
    ("said", "where", "taken"),
    [
        (
            "a fox and a teapot",
            {"a teapot": (0.5, 0.2), "fox": (0.6, 0.8)},
            "a large teapot left of",
        ),
        ("a fox and a teapot", {"fox": (0.9, 0.7), "a teapot": (0.2, 0.4)}, "a large teapot above"),
        ("a fox and a teapot", {"fox": (0.4, 0.9)}, "a large teapot left of a large fox"),
        ("a fox and a teapot", {"white background": (0.1, 0.1)}, "a large fox left of"),
        ("a fox left of a teapot", {"fox": (0.5, 0.9)}, "a large fox left of a large teapot"),
        ("a fox left of a cow", {"fox": (0.5, 0.9), "cow": (0.4, 0.4)}, "cow left of a large fox"),
        ("a fox at the top", {"fox": (0.5, 0.9)}, "a large fox on the right"),
        ("a fox", {"a large fox": (0.8, 0.6)}, "a large fox at the bottom"),
        ("a fox", {"fox": (0.6, 0.4)}, "a large fox in the middle"),
        ("여우와 피자", {"여우": (0.5, 0.9)}, "큰 여우 왼쪽에 큰 피자"),
    ],
)
def test_a_map_says_where_things_are(table, said, where, taken):
    """What a prompt leaves open, and of all objects also what it says."""
    made = table.completed(said, where)
    assert taken in made and table.remarks(said, where) == [f"taken as: {made}"]


def test_what_no_scene_can_hold_is_told(table):
    taken = "taken as: a large fox left of a small rocket, white background"
    assert table.remarks("two small rockets and a fox") == [
        taken,
        "each is drawn once, not several times: rocket",
    ]


def test_an_unknown_object_is_said_with_the_nearest_known_one(table):
    with pytest.raises(PromptError, match="no object in 'a pizzza'; did you mean pizza"):
        table.encode(["a pizzza"])
    with pytest.raises(PromptError, match="say one of fox"):
        table.encode(["a dragon on blue"])
