"""The cache: made in turn, gone on with, read as views; what is damaged or does not fit is told."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from everyway.train import latents as cache
from everyway.train import sealed
from everyway.train.latents import CacheError, encode


@pytest.fixture(autouse=True)
def parts_of_four(monkeypatch):
    monkeypatch.setattr(cache, "SHARD", 4)
    monkeypatch.setattr(cache, "CHUNK", 2)


def numbers(samples: list[int]) -> dict[str, torch.Tensor]:
    """Sample i is i, and has the captions 10 i, 10 i + 1, 10 i + 2 under two names."""
    i = torch.tensor(samples)
    captions = 10 * i[:, None] + torch.arange(3)
    return {"image": i[:, None].float(), "text": captions, "context.text": captions.float()}


def test_one_caption_is_drawn_a_sample(tmp_path):
    made = encode(tmp_path, lambda i: i, numbers, 10)
    assert len(made) == 10 and [len(part["image"]) for part in made.shards] == [4, 4, 2]
    index, share = torch.tensor([9, 0, 5, 5]), torch.tensor([0.0, 0.99, 0.4, 0.7])
    batch = made.rows(index, share)
    assert batch["image"].tolist() == [9, 0, 5, 5] and batch["image"].dtype == torch.float32
    assert batch["text"].tolist() == batch["context.text"].tolist() == [90, 2, 51, 52]
    assert batch["text"].dtype == torch.int64
    assert made.shards[0]["text"].dtype == torch.int16


def test_processes_take_parts_in_turn_and_go_on_where_one_stopped(tmp_path, monkeypatch):
    asked: list[int] = []

    def make(samples):
        asked.extend(samples)
        if asked == [*range(4), *range(8, 10)]:
            raise KeyboardInterrupt
        return numbers(samples)

    with pytest.raises(KeyboardInterrupt):
        encode(tmp_path, lambda i: i, make, 10, rank=0, processes=2)
    given: list = []
    monkeypatch.setattr(cache.time, "sleep", timed_out)
    with pytest.raises(TimeoutError):  # it waits for the other's part
        encode(
            tmp_path, lambda i: i, make, 10, rank=0, processes=2,
            progress=lambda *done: given.append(done),
        )  # fmt: skip
    assert asked[6:] == [8, 9] and given == [(10, 10)]
    made = encode(tmp_path, lambda i: i, make, 10, rank=1, processes=2)
    assert asked[8:] == [4, 5, 6, 7]
    assert made.rows(torch.arange(10), torch.zeros(10))["image"].tolist() == [*range(10)]


def timed_out(seconds):
    raise TimeoutError


def test_numbers_that_do_not_fit_16_bits_are_kept_in_32(tmp_path):
    wide = {"ids": torch.tensor([[40_000]]), "image": torch.tensor([[70_000.0]])}
    made = encode(tmp_path, lambda i: i, lambda part: wide, 1)
    batch = made.rows(torch.tensor([0]), torch.zeros(1))
    assert batch["ids"].tolist() == [40_000] and batch["image"].tolist() == [70_000.0]
    with pytest.raises(CacheError, match="codec of image gives numbers that are not finite"):
        encode(tmp_path / "b", lambda i: i, lambda part: {"image": torch.tensor([[torch.nan]])}, 1)


@pytest.mark.parametrize("place", [3, 100, -40, -1])
def test_a_flipped_bit_is_one_line(tmp_path, place):
    encode(tmp_path, lambda i: i, numbers, 3)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)
    with pytest.raises(CacheError, match=r"00000\.safetensors .*delete it") as caught:
        encode(tmp_path, lambda i: i, numbers, 3)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 1


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sealed, "_bytes", full)
    with pytest.raises(CacheError, match="was not written: .*No space left") as caught:
        encode(tmp_path, lambda i: i, numbers, 3)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_file_keeps_its_numbers_and_the_mode_that_files_have(tmp_path):
    tensors = {
        "half": torch.arange(3).bfloat16(),
        "flag": torch.tensor(True),
        "empty": torch.zeros(0, 2),
        "turned": torch.arange(6.0).view(2, 3).T,
    }
    former = os.umask(0o022)
    try:
        sealed.write(tmp_path / "a", tensors, {"step": 3})
    finally:
        os.umask(former)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644
    sealed.verify(tmp_path / "a")
    found, metadata = sealed.read(tmp_path / "a")
    assert metadata == {"step": 3} and found.keys() == tensors.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in tensors.items())
    assert np.array_equal(found["turned"].numpy(), tensors["turned"].numpy())
