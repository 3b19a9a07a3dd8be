"""A training that starts from a model whose pictures it cuts into other patches."""

from __future__ import annotations

import pytest
import torch

from everyway.nets.embed import resize_positions
from everyway.train.config import ConfigError, resolve
from everyway.train.systems import prepared


def started_from(model: str, **other: int):
    return prepared(resolve("nano", {"init": model, **other}))


@pytest.fixture(scope="module")
def finer():
    return started_from("nano", patch=2).network


def test_what_fits_is_taken(nano, finer):
    former, own = nano.system.network.state_dict(), finer.state_dict()
    fresh = {k for k, v in own.items() if v.shape != former[k].shape}
    assert fresh == {"positions", "embed.image.weight", "head.image.weight", "head.image.bias"}
    assert all(torch.equal(own[k], former[k]) for k in own.keys() - fresh)


def test_positions_are_taken_stream_by_stream(nano, finer):
    former = {s.name: v for s, v in nano.system.network._tables() if hasattr(s, "name")}
    own = {s.name: v for s, v in finer._tables() if hasattr(s, "name")}
    assert torch.equal(own["text"], former["text"])
    torch.testing.assert_close(own["image"], resize_positions(former["image"], 4, 8, 8))
    shapes = {s.name: s.length for s, _ in finer._tables() if hasattr(s, "name")}
    assert shapes["image"] == 64


def test_take_names_what_starts_afresh(nano):
    two = started_from("nano", patch=2).network
    assert two.take(nano.system.network) == [
        "embed.image.weight",
        "head.image.bias",
        "head.image.weight",
    ]


def test_of_a_deeper_network_the_outer_blocks_are_taken(nano):
    former = nano.system.network.state_dict()
    own = started_from("nano", depth=2).network.state_dict()
    taken = {"ins.0": "ins.0", "mid": "mid", "outs.0": "outs.1", "norm": "norm"}
    for name, whence in taken.items():
        parts = [k for k in own if k.startswith(f"{name}.")]
        assert parts
        assert all(torch.equal(own[k], former[whence + k[len(name) :]]) for k in parts)
    assert not any(k.startswith(("ins.1", "outs.1")) for k in own)


def test_a_model_of_another_system_is_named():
    with pytest.raises(ConfigError, match="init='nano' is a unidiffuser; set system=unidiffuser"):
        prepared(resolve("mini-vq", {"init": "nano"}))


@pytest.mark.parametrize("patch", [3, 5])
def test_a_patch_that_does_not_divide_is_refused(patch):
    with pytest.raises(ConfigError, match=f"patch is {patch}; it must divide 16"):
        started_from("nano", patch=patch)
