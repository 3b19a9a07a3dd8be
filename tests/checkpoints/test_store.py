"""Model folders: read back as written, refused in one line when damaged, never half-written."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch

from everyway.checkpoints import store
from everyway.checkpoints.store import StoreError

CONFIG = {"system": "x", "config": {"words": ["여우", "fox"], "sizes": [1, 2]}}
FACTS = {"losses": {"image": 0.25}, "note": "붉은 원"}


def weights(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    network = {"w": torch.randn(40, 3, generator=generator), "steps": torch.arange(seed, seed + 5)}
    return {"network": network, "text": {"table": torch.randn(7, generator=generator)}}


@pytest.fixture
def folder(tmp_path) -> Path:
    store.save(tmp_path / "model", CONFIG, weights(1), FACTS, torch.float32)
    return tmp_path / "model"


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*"))


def parts(folder: Path) -> list[str]:
    """The names without the digits of their sha256."""
    return sorted(re.sub("-[0-9a-f]{8}", "", name) for name in names(folder))


def weights_of(folder: Path, part: str) -> Path:
    (path,) = folder.glob(f"{part}-*.safetensors")
    return path


def refused(call, *args) -> str:
    """The one line of the StoreError that `call` raises."""
    with pytest.raises(StoreError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def holds(folder: Path, seed: int) -> bool:
    config, found, metadata = store.load(folder)
    wanted = weights(seed)
    same = all(torch.equal(found[c][k], v) for c in wanted for k, v in wanted[c].items())
    return same and config == CONFIG and metadata == FACTS


# -- as written -------------------------------------------------------------------------------


def test_a_folder_is_read_back_as_written(folder):
    assert holds(folder, 1)
    assert parts(folder) == ["config.json", "network.safetensors", "text.safetensors"]
    assert "여우" in (folder / "config.json").read_text(encoding="utf-8")


def test_floats_are_stored_in_half_the_size_and_integers_as_they_are(tmp_path):
    store.save(tmp_path, CONFIG, weights(1), FACTS)
    _, found, _ = store.load(tmp_path)
    assert found["network"]["w"].dtype == torch.bfloat16
    assert torch.equal(found["network"]["w"], weights(1)["network"]["w"].to(torch.bfloat16))
    assert torch.equal(found["network"]["steps"], weights(1)["network"]["steps"])


def test_views_and_tied_weights_can_be_stored(tmp_path):
    table = torch.randn(6, 4, requires_grad=True)
    tied = {"table": table, "head": table, "turned": table.T, "row": table[1]}
    store.save(tmp_path, CONFIG, {"network": tied}, FACTS, torch.float32)
    found = store.load(tmp_path)[1]["network"]
    assert all(torch.equal(found[k], v) for k, v in tied.items())


def test_the_fingerprint_names_weights_and_config(folder, tmp_path):
    first = store.fingerprint(folder)
    assert len(first) == 12 and int(first, 16) >= 0
    others = {
        "facts": (CONFIG, weights(1), {}),
        "config": (CONFIG | {"system": "y"}, weights(1), FACTS),
        "weights": (CONFIG, weights(2), FACTS),
    }
    changed = {}
    for name, what in others.items():
        store.save(tmp_path / name, *what, torch.float32)
        changed[name] = store.fingerprint(tmp_path / name) != first
    assert changed == {"facts": False, "config": True, "weights": True}


# -- damaged ----------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def change_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def lose_the_tensors(path: Path) -> None:
    """Not a safetensors file, but with the sha256 that the config names."""
    path.write_bytes(b"not tensors")
    document = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
    name, digest = path.stem.split("-")[0], store.sha256(path)
    document["sha256"][name] = digest
    path.rename(store.component(path.parent, name, digest))
    (path.parent / "config.json").write_text(json.dumps(document), encoding="utf-8")


HARMS = {
    "cut": (cut, "damaged or truncated"),
    "empty": (lambda path: path.write_bytes(b""), "damaged or truncated"),
    "changed": (change_a_bit, "damaged or truncated"),
    "gone": (Path.unlink, "is missing"),
    "a folder": (replace_by_a_folder, "is missing"),
    "no tensors": (lose_the_tensors, "damaged or truncated"),
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("part", ["network", "text"])
def test_damaged_weights_are_refused(folder, part, harm):
    path = weights_of(folder, part)
    do, said = HARMS[harm]
    do(path)
    line = refused(store.load, folder)
    assert said in line and f"{part}-" in line and "copy" in line


CONFIGS = {
    "empty": b"",
    "cut": b'{"config": {',
    "not text": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "without parts": b'{"config": {}, "facts": {}}',
    "sums of nothing": b'{"config": {}, "facts": {}, "sha256": null}',
    "a list of sums": b'{"config": {}, "facts": {}, "sha256": ["network"]}',
}


@pytest.mark.parametrize("harm", CONFIGS)
def test_a_damaged_config_is_refused(folder, harm):
    (folder / "config.json").write_bytes(CONFIGS[harm])
    assert "config.json is not a model's config" in refused(store.load, folder)
    assert "config.json is not a model's config" in refused(store.fingerprint, folder)


def test_no_folder_at_all_is_refused(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        assert "config.json" in refused(store.load, place)
        assert "config.json" in refused(store.fingerprint, place)


def test_a_new_model_takes_the_place_of_the_former(folder):
    store.save(folder, CONFIG, weights(2), FACTS, torch.float32)
    assert holds(folder, 2)
    assert parts(folder) == ["config.json", "network.safetensors", "text.safetensors"]


# -- a full disk ------------------------------------------------------------------------------

FULL = OSError(errno.ENOSPC, "No space left on device")
FILES = ("network", "text", "config.json")  # in the order of writing


@pytest.fixture(params=["while writing", "while moving"])
def fill_the_disk(request, monkeypatch):
    """A function of a file's name: from that file on, nothing can be written any more."""

    def fill(name: str) -> None:
        def write(path, *rest, real=store.write_safetensors):
            if path.name.startswith(name):
                path.write_bytes(b"half")
                raise FULL
            return real(path, *rest)

        def write_text(self, text, **options):
            if self.name.startswith(name):
                self.write_bytes(b"half")
                raise FULL
            return self.write_bytes(text.encode())

        def move(source, target, real=os.replace):
            if Path(target).name.startswith(name):
                raise FULL
            real(source, target)

        if request.param == "while writing":
            monkeypatch.setattr(store, "write_safetensors", write)
            monkeypatch.setattr(Path, "write_text", write_text)
        else:
            monkeypatch.setattr(os, "replace", move)

    return fill


@pytest.mark.parametrize("file", FILES)
def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, fill_the_disk, file):
    fill_the_disk(file)
    line = refused(store.save, tmp_path / "model", CONFIG, weights(1), FACTS)
    assert file in line and "No space left on device" in line
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("file", FILES)
def test_a_full_disk_keeps_the_former_model(folder, fill_the_disk, file):
    fill_the_disk(file)
    before = names(folder)
    refused(store.save, folder, CONFIG, weights(2), FACTS, torch.float32)
    assert names(folder) == before and holds(folder, 1)


def test_a_full_disk_keeps_the_former_text(tmp_path, fill_the_disk):
    path = tmp_path / "config.json"
    store.write_text(path, "former")
    fill_the_disk("config.json")
    assert "No space left on device" in refused(store.write_text, path, "latter")
    assert path.read_text(encoding="utf-8") == "former" and names(tmp_path) == ["config.json"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    place = tmp_path / "file" / "model"
    assert "was not written" in refused(store.save, place, CONFIG, weights(1), FACTS)
