"""Tiles cover a map from edge to edge; one is no tile at all; where several meet, no seam is."""

from __future__ import annotations

import pytest
import torch

from everyway.contracts import Query
from everyway.controls.tiles import Tiled, blended, windows


def query(*shape: int) -> Query:
    states = {"image": torch.randn(*shape)}
    return Query(states=states, times={"image": torch.zeros(shape[0], dtype=torch.float64)})


@pytest.mark.parametrize(
    ("size", "count"), [((8, 8), 1), ((8, 9), 2), ((14, 14), 4), ((15, 8), 3), ((20, 14), 6)]
)
def test_as_few_tiles_as_cover_the_map(size, count):
    places = windows(*size, side=8, overlap=2)
    assert len(places) == count
    covered = torch.zeros(size)
    for rows, columns in places:
        covered[rows, columns] += 1
        assert covered[rows, columns].shape == (8, 8)
    assert covered.min() >= 1


@pytest.mark.parametrize("length", range(9, 40))
def test_neighbours_overlap_by_no_less_than_asked(length):
    spans = [columns for _, columns in windows(8, length, side=8, overlap=3)]
    assert spans[0].start == 0 and spans[-1].stop == length
    assert all(a.stop - b.start >= 3 for a, b in zip(spans, spans[1:]))
    least = -(-(length - 3) // 5)
    assert len(spans) == least


def test_a_map_smaller_than_a_tile_is_one():
    assert windows(5, 3, side=8, overlap=2) == [(slice(0, 5), slice(0, 3))]


@pytest.mark.parametrize("overlap", [-1, 8])
def test_an_impossible_overlap_is_refused(overlap):
    with pytest.raises(ValueError, match="cannot overlap"):
        windows(20, 20, side=8, overlap=overlap)


def test_one_tile_is_the_untiled_answer_bit_for_bit():
    asked = []

    def denoise(queries):
        asked.extend(queries)
        return [{"image": 3 * q.states["image"]} for q in queries]

    whole = query(2, 3, 8, 8)
    (made,) = Tiled(denoise=denoise, side=8, overlap=4)([whole])
    assert asked == [whole]
    assert torch.equal(made["image"], 3 * whole.states["image"])


def test_what_does_not_depend_on_the_tile_comes_back_as_untiled():
    def denoise(queries):
        return [{"image": torch.tanh(q.states["image"])} for q in queries]

    whole = query(2, 3, 21, 17)
    (made,) = Tiled(denoise=denoise, side=8, overlap=3)([whole])
    torch.testing.assert_close(made["image"], torch.tanh(whole.states["image"]))


def test_tiles_that_disagree_leave_no_seam():
    """Every tile is of another brightness, and yet no step is larger than a ramp's."""
    places = windows(16, 40, side=16, overlap=8)
    tiles = [torch.full((1, 1, 16, 16), float(k % 2)) for k in range(len(places))]
    like = torch.zeros(1, 1, 16, 40)
    apart = like.clone()
    for tile, (rows, columns) in zip(tiles, places):
        apart[..., rows, columns] = tile
    seam = apart.diff(dim=-1).abs().max()
    blend = blended(tiles, places, like)
    assert len(places) == 4 and seam == 1
    assert blend.diff(dim=-1).abs().max() < 0.15
    assert blend.diff(dim=-2).abs().max() < 1e-6
