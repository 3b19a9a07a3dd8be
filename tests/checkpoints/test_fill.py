"""Model folders whose tensors stay in their files, and modules that are filled from them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from everyway.checkpoints import store
from everyway.checkpoints.store import StoreError
from everyway.checkpoints.tensor_files import LayoutError, Stored, held


class Net(nn.Module):
    """A table that is also the output layer, a frozen bias, and buffers stored and counted."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight
        self.bias = nn.Parameter(torch.randn(5), requires_grad=False)
        self.register_buffer("shift", torch.full((5,), 1 / 3))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("position_ids", torch.arange(4).expand(1, -1), persistent=False)


def entries(net: nn.Module) -> dict[str, Stored]:
    return {name: held(tensor) for name, tensor in net.state_dict().items()}


def unfilled() -> Net:
    with store.unfilled():
        return Net()


def test_modules_are_made_without_memory_or_draws():
    before = torch.random.get_rng_state()
    net = unfilled()
    assert all(p.is_meta for p in [*net.parameters(), *net.buffers()])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.zeros(1).is_meta and torch.randn(100).std() > 0  # only within


def test_a_filled_module_is_the_one_it_was_taken_from():
    source, net = Net(), unfilled()
    assert store.fill(net, entries(source)) is net
    found, expected = net.state_dict(), source.state_dict()
    assert all(torch.equal(found[k], v) for k, v in expected.items())
    assert net.head.weight is net.table.weight
    assert net.table.weight.requires_grad and not net.bias.requires_grad
    assert torch.equal(net.position_ids, source.position_ids)


def test_parameters_are_in_the_format_asked_for_and_buffers_are_exact():
    source = Net()
    net = store.fill(unfilled(), entries(source), torch.bfloat16)
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    assert torch.equal(net.table.weight, source.table.weight.to(torch.bfloat16))
    assert torch.equal(net.shift, source.shift) and net.count.dtype == torch.int64


def test_what_does_not_fit_is_listed():
    wrong = entries(Net())
    del wrong["bias"]
    wrong |= {"more": held(torch.ones(1)), "shift": held(torch.ones(4))}
    with pytest.raises(LayoutError) as caught:
        store.fill(unfilled(), wrong)
    assert "missing: bias; extra: more; misshapen: shift" in str(caught.value)


def test_a_buffer_that_no_file_holds_is_told():
    with store.unfilled():
        net = Net()
        net.register_buffer("window", torch.ones(3), persistent=False)
    with pytest.raises(StoreError, match="window of Net is in no file"):
        store.fill(net, entries(Net()))


# -- folders ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    parts = {"network": entries(Net()), "text": {"whiten.scale": held(torch.full((2,), 1 / 3))}}
    store.save_stored(tmp_path / "model", {"system": "x"}, parts, {"n": 1}, torch.bfloat16)
    return tmp_path / "model"


def test_folders_are_the_same_opened_and_loaded(folder):
    config, opened, metadata = store.open_folder(folder)
    again, loaded, _ = store.load(folder)
    assert config == again == {"system": "x"} and metadata == {"n": 1}
    for part, tensors in loaded.items():
        assert opened[part].keys() == tensors.keys()
        assert all(torch.equal(opened[part][k].read(), v) for k, v in tensors.items())
    assert loaded["network"]["bias"].dtype == torch.bfloat16
    assert loaded["text"]["whiten.scale"].dtype == torch.float32  # a measure, not a weight


def test_formats_are_kept_unless_one_is_asked_for(tmp_path):
    mixed = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.float16), "c": torch.tensor(3)}
    store.save_stored(tmp_path, {}, {"x": {k: held(v) for k, v in mixed.items()}}, {})
    found = store.load(tmp_path)[1]["x"]
    assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in mixed.items()}


def test_a_damaged_folder_is_not_opened(folder):
    (path,) = folder.glob("network-*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="damaged or truncated"):
        store.open_folder(folder)
    path.unlink()
    with pytest.raises(StoreError, match="is missing"):
        store.open_folder(folder)


def test_a_source_that_fails_leaves_the_former_model(folder):
    def broken(dtype):
        raise StoreError("source.pth is damaged or truncated")

    before = sorted(p.name for p in folder.iterdir())
    bad = {"a": held(torch.ones(3)), "z": Stored(shape=(3,), dtype=torch.float32, load=broken)}
    with pytest.raises(StoreError, match="source.pth is damaged"):
        store.save_stored(folder, {"system": "y"}, {"network": bad}, {})
    assert sorted(p.name for p in folder.iterdir()) == before
    assert store.open_folder(folder)[0] == {"system": "x"}
