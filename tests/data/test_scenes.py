"""What built-in worlds share: the scenes of every seed are for ever, and settings are checked."""

from __future__ import annotations

import hashlib
import json

import pytest

from everyway.data.emoji import CURRICULUM, EmojiScenes
from everyway.data.lattice import LATTICES, Lattice
from everyway.errors import UsageError

DIGESTS = {
    "emoji-portraits": "23b6243a519d190a",
    "emoji-singles": "9e9089b72d8e9fe5",
    "emoji": "65dcc71cb93a1ab4",
    "lattice": "8a2848ff587eeb66",
    "lattice-whole": "209a8da5694a3800",
    "lattice-open": "b46a138d8715cc86",
    "lattice-246": "6aabc6c1c1242292",
    "lattice-fine": "209a8da5694a3800",
}
"""Of the first 200 scenes of seed 3 and their captions."""
COUNTED = {
    (EmojiScenes, 1, "train"): "c54a9fac515da3d1",
    (EmojiScenes, 2, "train"): "fb502045a332fd3c",
    (EmojiScenes, 2, "heldout"): "083e65fec0f7b746",
    (Lattice, 1, "train"): "07d574d7fbe571f0",
    (Lattice, 2, "train"): "d307a13852c66bbc",
    (Lattice, 2, "heldout"): "d5ae1f876004fee8",
}
"""Of seed 5, with so many objects, of a split."""


def digest(data) -> str:
    found = hashlib.sha256()
    for index in range(200):
        scene, captions = data.described(index)
        found.update(json.dumps([scene.to_json(), captions], ensure_ascii=False).encode())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("name", DIGESTS)
def test_a_seed_has_its_scenes_for_ever(name):
    emoji = name in CURRICULUM
    data = EmojiScenes(seed=3, variants=2, **CURRICULUM[name]) if emoji else None
    assert digest(data or Lattice(seed=3, **LATTICES[name])) == DIGESTS[name]


@pytest.mark.parametrize(("world", "count", "split"), COUNTED)
def test_so_has_every_count_and_split(world, count, split):
    assert digest(world(seed=5, count=count, split=split)) == COUNTED[world, count, split]


@pytest.mark.parametrize("world", [EmojiScenes, Lattice])
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"split": "test"}, "split 'test' is unknown; choose train or heldout"),
        ({"count": 3}, "count is 3; choose 1, 2 or None"),
        ({"count": 0}, "count is 0"),
        ({"single": 1.5}, "single is 1.5; choose a share, 0 to 1"),
        ({"seed": -1}, "seed is -1; choose 0 or more"),
    ],
)
def test_settings_that_no_scene_has_are_one_line(world, settings, said):
    with pytest.raises(UsageError, match=said):
        world(**settings)


def test_names_of_a_lattice_are_those_of_emoji():
    with pytest.raises(UsageError, match="no object 'dragonfruit'"):
        Lattice(names=("fox", "dragonfruit"))
    with pytest.raises(UsageError, match="two objects or more"):
        Lattice(names=("fox",))
