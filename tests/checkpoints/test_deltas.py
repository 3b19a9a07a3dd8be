"""A network as its difference from another: small, close, and the same bytes once more."""

from __future__ import annotations

import pytest
import torch

from everyway.checkpoints import store
from everyway.checkpoints.deltas import quantised
from everyway.checkpoints.tensor_files import StoreError, size

CONFIG = {"system": "uvit", "config": {}}


def network(seed: int, spread: float = 1.0) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {"weight": (64, 96), "conv": (8, 4, 3, 3), "bias": (64,)}
    return {name: spread * torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def near(base: dict, seed: int) -> dict[str, torch.Tensor]:
    return {k: v + d for (k, v), d in zip(base.items(), network(seed, 0.02).values())}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_difference_is_close_and_small(tmp_path, dtype):
    base = network(0)
    other = near(base, 1)
    tensors, deltas = {"other": other, "base": base}, {"other": "base"}
    store.save(tmp_path, CONFIG, tensors, {}, dtype, deltas)
    _, opened, _ = store.open_folder(tmp_path)
    for name, value in other.items():
        found = opened["other"][name].read(torch.float32)
        if value.ndim == 1:
            assert torch.equal(found, value if dtype is None else value.to(dtype).float())
            continue
        error = (found - value).flatten(1).abs().amax(1)
        most = (value - opened["base"][name].read(torch.float32)).flatten(1).abs().amax(1)
        assert bool((error <= most / 200).all())
    files = {p.name.rpartition("-")[0]: p.stat().st_size for p in tmp_path.glob("*.safetensors")}
    assert files["other"] < (0.6 if dtype else 0.35) * files["base"]
    assert size(opened["other"], torch.float32) == 4 * sum(v.numel() for v in other.values())


def test_written_again_it_has_the_same_bytes(tmp_path):
    base = network(0)
    tensors, deltas = {"base": base, "other": near(base, 1), "third": near(base, 2)}, {}
    deltas = {"other": "base", "third": "base"}
    store.save(tmp_path / "a", CONFIG, tensors, {}, None, deltas)
    config, read, metadata = store.load(tmp_path / "a")
    store.save(tmp_path / "b", config, read, metadata, None, deltas)
    one, two = (store.document(tmp_path / k) for k in "ab")
    assert one["sha256"] == two["sha256"] and one["deltas"] == two["deltas"] == deltas
    alone = store.open_component(tmp_path / "a", "third")
    assert all(torch.equal(alone[k].read(), v) for k, v in read["third"].items())


def test_equal_networks_differ_by_nothing(tmp_path):
    base = network(0)
    store.save(tmp_path, CONFIG, {"base": base, "other": base}, {}, None, {"other": "base"})
    _, read, _ = store.load(tmp_path)
    assert all(torch.equal(read["other"][k], v) for k, v in base.items())


def test_scales_keep_the_largest_number_of_a_row():
    x = torch.randn(1000, 7) * torch.logspace(-12, 6, 1000)[:, None]
    whole, scale = quantised(x)
    assert bool((whole.abs().amax(1) == 127).all())
    again, scales = quantised(whole * scale)
    assert torch.equal(again, whole) and torch.equal(scales, scale)


def test_a_difference_without_its_base_is_refused(tmp_path):
    base = network(0)
    store.save(tmp_path, CONFIG, {"base": base, "other": base}, {}, None, {"other": "base"})
    held = store.document(tmp_path)
    text = (tmp_path / "config.json").read_text().replace('"other": "base"', '"other": "lost"')
    (tmp_path / "config.json").write_text(text)
    assert held["deltas"] == {"other": "base"}
    with pytest.raises(StoreError, match="a difference from what is not there"):
        store.load(tmp_path)


def test_a_network_by_itself_is_a_byte_a_weight(tmp_path):
    """Its difference from nothing: close, small, and the same bytes once more."""
    own, deltas = network(0), {"network": ""}
    store.save(tmp_path / "a", CONFIG, {"network": own}, {}, torch.float16, deltas)
    config, read, metadata = store.load(tmp_path / "a")
    assert torch.equal(read["network"]["bias"], own["bias"].half())
    for name in ("weight", "conv"):
        error = (read["network"][name] - own[name]).flatten(1).abs().amax(1)
        assert bool((error <= own[name].flatten(1).abs().amax(1) / 250).all())
    store.save(tmp_path / "b", config, read, metadata, torch.float16, deltas)
    one, two = (store.document(tmp_path / k) for k in "ab")
    assert one["sha256"] == two["sha256"]
    (path,) = (tmp_path / "a").glob("*.safetensors")
    assert path.stat().st_size < 1.2 * sum(v.numel() for v in own.values())
    assert torch.equal(
        store.open_component(tmp_path / "a", "network")["conv"].read(), read["network"]["conv"]
    )
