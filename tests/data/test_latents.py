"""A cache is read back; a damaged one is one line."""

from __future__ import annotations

import pytest
import torch

from everyway.data.latents import CacheError, Latents, load


def test_round_trip(tmp_path):
    made = Latents(states={"image": torch.arange(6.0).half().view(3, 1, 2)}, facts={"seed": "0"})
    made.save(tmp_path / "a.safetensors")
    found = load(tmp_path / "a.safetensors")
    assert len(found) == 3 and found.facts == made.facts
    assert torch.equal(found.states["image"], made.states["image"])


@pytest.mark.parametrize("kept", [0, 5, 20, -1])
def test_a_damaged_cache_is_one_line(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    Latents(states={"image": torch.zeros(3, 1, 2)}, facts={}).save(path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CacheError, match=r"a\.safetensors .*delete it") as caught:
        load(path)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1
