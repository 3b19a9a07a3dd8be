"""Tensors in files: read one by one as they were written, and nothing that a file says is run."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file

from everyway.checkpoints import tensor_files
from everyway.checkpoints.tensor_files import (
    StoreError,
    held,
    joined,
    open_pth,
    open_safetensors,
    size,
    write_pth,
    write_safetensors,
)

KINDS = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    base = 50 * torch.randn(5, 3, generator=generator)
    made = {str(kind): base.to(kind) for kind in KINDS}
    return made | {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 4), "row": base[2].clone()}


def same(found: dict, expected: dict) -> bool:
    alike = all(
        found[k].dtype == v.dtype and found[k].shape == v.shape and torch.equal(found[k], v)
        for k, v in expected.items()
    )
    return alike and found.keys() == expected.keys()


def read(entries: dict) -> dict[str, torch.Tensor]:
    return {name: entry.read() for name, entry in entries.items()}


def refused(call, *args) -> str:
    """The one line of the StoreError that `call` raises."""
    with pytest.raises(StoreError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- as written -------------------------------------------------------------------------------


def test_safetensors_are_read_as_their_library_writes_them(tmp_path):
    save_file(tensors(), tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = open_safetensors(tmp_path / "a.safetensors")
    assert same(read(found), tensors())
    assert all(found[k].shape == tuple(v.shape) for k, v in tensors().items())


def test_safetensors_are_written_as_their_library_reads_them(tmp_path):
    from everyway.checkpoints.store import sha256

    path = tmp_path / "a.safetensors"
    digest = write_safetensors(path, {k: held(v) for k, v in tensors().items()})
    assert same(load_file(path), tensors()) and digest == sha256(path)
    write_safetensors(
        path, {k: held(v) for k, v in tensors().items()}, torch.bfloat16, {"row"}.__contains__
    )
    found = load_file(path)
    assert found["row"].dtype == torch.float32 and found["torch.int64"].dtype == torch.int64
    assert torch.equal(found["torch.float64"], tensors()["torch.float64"].to(torch.bfloat16))


@pytest.mark.parametrize("archive", [True, False])
def test_files_of_torch_are_read_as_they_were_saved(tmp_path, archive):
    base = torch.arange(24.0).reshape(4, 6)
    shared = {"whole": base, "turned": base.T, "row": base[1], "strided": base[:, ::2]}
    weights = torch.nn.ParameterDict({"p": torch.nn.Parameter(torch.ones(2))})
    document = {
        "model": {**tensors(), **shared},
        "nested": weights.state_dict(),
        "kept": torch.nn.Parameter(torch.ones(3)),
        "step": 7,
        "name": "여우",
        "list": [torch.zeros(2), (1, 2.5, None, True)],
        "beside": {"dtype": torch.float32, "seen": {1, 2}, "counted": Counter("aab")},
    }
    path = tmp_path / "a.pth"
    torch.save(document, path, _use_new_zipfile_serialization=archive)
    found = open_pth(path)
    assert found.keys() == {"", "model", "nested"}
    assert same(read(found["model"]), {**tensors(), **shared})
    assert torch.equal(found["nested"]["p"].read(), torch.ones(2))
    assert torch.equal(found[""]["kept"].read(), torch.ones(3))
    assert all(entry.read().is_contiguous() for entry in found["model"].values())


@pytest.mark.parametrize(("least", "times"), [(tensor_files.AT_LEAST, 1), (0, 21)])
def test_a_file_is_mapped_anew_after_much_was_read_of_it(tmp_path, monkeypatch, least, times):
    monkeypatch.setattr(tensor_files, "AT_LEAST", least)
    loaded, made = tensor_files._loaded, []
    monkeypatch.setattr(tensor_files, "_loaded", lambda *args: made.append(1) or loaded(*args))
    expected = {str(k): torch.full((1000,), float(k)) for k in range(21)}
    torch.save(expected, tmp_path / "it.pth")
    assert same(read(open_pth(tmp_path / "it.pth")[""]), expected)
    assert len(made) == times  # of 0 bytes before each tensor but the first


def test_files_of_torch_without_sums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(tensors(), tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read(open_pth(tmp_path / "a.pth")[""]), tensors())


def test_what_is_written_for_torch_is_plain_weights(tmp_path):
    write_pth(tmp_path / "a.pth", {k: held(v) for k, v in tensors().items()})
    assert same(torch.load(tmp_path / "a.pth", weights_only=True), tensors())


def test_stored_tensors_are_cut_joined_and_shaped():
    x = torch.randn(6, 4)
    parts = held(x).chunk(3)
    assert [p.shape for p in parts] == [(2, 4)] * 3
    assert torch.equal(parts[1].read(), x[2:4])
    assert joined(parts).shape == (6, 4) and torch.equal(joined(parts).read(), x)
    assert torch.equal(joined([x[:2], x[2:]]), x)
    assert torch.equal(held(x).reshape((4, 6)).read(), x.reshape(4, 6))
    entries = {"x": held(x), "n": held(torch.zeros(3, dtype=torch.int64))}
    assert size(entries) == 96 + 24 and size(entries, torch.bfloat16) == 48 + 24


# -- damaged ----------------------------------------------------------------------------------


def safetensors_of(header: dict | bytes, body: bytes = b"") -> bytes:
    import json

    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + body


ROW = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD_SAFETENSORS = {
    "empty": b"",
    "short": b"\x00\x01",
    "header beyond the file": (10**15).to_bytes(8, "little") + b"{}",
    "no json": safetensors_of(b"not json"),
    "a list": safetensors_of(b"[1, 2]"),
    "a number": safetensors_of({"a": 3}),
    "unknown kind": safetensors_of({"a": ROW | {"dtype": "F7"}}, b"12345678"),
    "a deep header": safetensors_of(b"[" * 200_000),
    "body cut": safetensors_of({"a": ROW}, b"1234"),
    "offsets that do not fit the shape": safetensors_of({"a": ROW | {"shape": [3]}}, b"12345678"),
    "negative offsets": safetensors_of({"a": ROW | {"data_offsets": [-8, 0]}}, b"12345678"),
}


@pytest.mark.parametrize("harm", BAD_SAFETENSORS)
def test_damaged_safetensors_are_refused(tmp_path, harm):
    (tmp_path / "a.safetensors").write_bytes(BAD_SAFETENSORS[harm])
    assert "damaged or truncated" in refused(open_safetensors, tmp_path / "a.safetensors")


def test_numbers_of_a_kind_that_is_not_read_are_named(tmp_path):
    row = {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}
    (tmp_path / "a.safetensors").write_bytes(safetensors_of({"a": row}, b"12"))
    assert "F8_E4M3, numbers that are not read" in refused(
        open_safetensors, tmp_path / "a.safetensors"
    )
    for kind in (torch.complex64, torch.float8_e4m3fn):
        torch.save({"a": torch.zeros(2, dtype=kind)}, tmp_path / "a.pth")
        assert "save it as float32" in refused(open_pth, tmp_path / "a.pth")


def test_a_file_that_is_cut_after_it_was_opened(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(100)}, path)
    found = open_safetensors(path)
    path.write_bytes(path.read_bytes()[:-5])
    assert "damaged or truncated" in refused(found["a"].read)
    path.unlink()
    assert "cannot be read" in refused(found["a"].read)


def saved(document=None) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(1000.0)} if document is None else document, buffer)
    return buffer.getvalue()


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def archive_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"a/{name}", "hello")
    return buffer.getvalue()


def with_record(name: str, content: bytes) -> bytes:
    """A file of torch with one record replaced."""
    source, buffer = zipfile.ZipFile(io.BytesIO(saved())), io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for info in source.infolist():
            own = info.filename.endswith(name)
            archive.writestr(info.filename, content if own else source.read(info))
    return buffer.getvalue()


BAD_PTH = {
    "empty": (lambda: b"", "no file of torch.save"),
    "text": (lambda: b"hello\n", "no file of torch.save"),
    "cut": (lambda: saved()[:-1500], "damaged or truncated"),
    "cut at the start": (lambda: saved()[900:], "damaged or truncated"),
    "another archive": (lambda: archive_of("readme"), "no file of torch.save"),
    "a program": (lambda: archive_of("constants.pkl"), "TorchScript"),
    "big-endian": (lambda: with_record("byteorder", b"big"), "big-endian"),
    "no pickle": (lambda: with_record("data.pkl", b"\x80\x02}q\x00"), "damaged or truncated"),
    "record short": (lambda: with_record("data/0", b"12345678"), "damaged or truncated"),
}  # fmt: skip


@pytest.mark.parametrize("harm", BAD_PTH)
def test_damaged_files_of_torch_are_refused(tmp_path, harm):
    make, said = BAD_PTH[harm]
    (tmp_path / "a.pth").write_bytes(make())
    line = refused(open_pth, tmp_path / "a.pth")
    assert said in line and "a.pth" in line


def test_a_changed_bit_is_seen_before_anything_is_read(tmp_path):
    data = saved()
    place = data.index(torch.arange(1000.0).numpy().tobytes()) + 1234
    (tmp_path / "a.pth").write_bytes(flipped(data, place))
    assert "damaged" in refused(open_pth, tmp_path / "a.pth")


def test_a_file_that_is_changed_after_it_was_opened(tmp_path):
    """To read beyond the end of a mapped file would end the process."""
    (tmp_path / "a.pth").write_bytes(saved())
    found = open_pth(tmp_path / "a.pth")[""]["a"]
    assert torch.equal(found.read(), torch.arange(1000.0))
    (tmp_path / "a.pth").write_bytes(saved()[:1000])
    assert "it changed since it was opened" in refused(found.read)
    (tmp_path / "a.pth").unlink()
    assert "cannot be read" in refused(found.read)


def test_a_compressed_record_is_refused(tmp_path):
    """A small file may say that it holds any number of bytes."""
    source = zipfile.ZipFile(io.BytesIO(saved()))
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for info in source.infolist():
            archive.writestr(info.filename, source.read(info))
    assert "is compressed" in refused(open_pth, tmp_path / "a.pth")


# -- code -------------------------------------------------------------------------------------


class Harm:
    """A harmless payload: makes a folder where it is run."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def raw(path, payload) -> None:
    path.write_bytes(pickle.dumps({"a": payload}))


def archived(path, payload) -> None:
    torch.save({"a": torch.ones(3), "b": payload}, path)


def old(path, payload) -> None:
    torch.save({"a": torch.ones(3), "b": payload}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [raw, archived, old])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, write):
    ran, path = tmp_path / "ran", tmp_path / "a.pth"
    write(path, Harm(str(ran)))
    line = refused(open_pth, path)
    assert "nothing of it was run" in line and not ran.exists()
    pickle.loads(path.read_bytes()) if write is raw else torch.load(path, weights_only=False)
    assert ran.exists()  # so the payload was a real one


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "torch.load", "torch._utils.x"])
def test_any_other_name_is_refused(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    code = b"\x80\x02c" + f"{module}\n{attribute}\n".encode() + b"U\x01x\x85R."
    (tmp_path / "a.pth").write_bytes(with_record("data.pkl", code))
    assert f"it holds {name.removeprefix('builtins.')}" in refused(open_pth, tmp_path / "a.pth")


class Storage:
    """Stands for the record of `saved`: 1000 numbers."""


class View:
    """A view of it, as `torch.save` writes one."""

    def __init__(self, offset: int, shape: tuple, stride: tuple, storage: object = None) -> None:
        storage = Storage() if storage is None else storage
        self.view = (storage, offset, shape, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.view


class Pickler(pickle.Pickler):
    def persistent_id(self, found):
        if isinstance(found, Storage):
            return "storage", torch.FloatStorage, "0", "cpu", 1000
        return getattr(found, "pid", None)


def pickled(document) -> bytes:
    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(document)
    return with_record("data.pkl", buffer.getvalue())


@pytest.mark.parametrize(
    "offset, shape, stride",
    [
        (0, (1001,), (1,)),
        (999, (2,), (1,)),
        (-1, (1,), (1,)),
        (0, (2, 2), (1000, 1)),
        (0, (3,), (-1,)),
    ],
)
def test_views_beyond_their_record_are_refused(tmp_path, offset, shape, stride):
    """The record of a 1000 numbers; a good view of it is read."""
    path = tmp_path / "a.pth"
    path.write_bytes(pickled({"a": View(990, (5, 2), (2, 1))}))
    assert torch.equal(open_pth(path)[""]["a"].read(), torch.arange(990.0, 1000).reshape(5, 2))
    path.write_bytes(pickled({"a": View(offset, shape, stride)}))
    refused(open_pth, path)


@pytest.mark.parametrize("pid", [OrderedDict(path="FILE"), ("storage", torch.FloatStorage, "FILE")])
def test_a_pickle_that_names_a_local_file_does_not_read_it(tmp_path, pid, monkeypatch):
    """An OrderedDict with attributes passed for a storage, whose bytes lie anywhere."""
    secret, path = tmp_path / "secret.txt", tmp_path / "a.pth"
    secret.write_text("not for anyone's tensor")
    own = OrderedDict()
    own.__dict__ = {"path": str(secret), "start": 0, "count": 23, "dtype": torch.uint8, "crc": 0}
    path.write_bytes(pickled({"weight": View(0, (23,), (1,), own)}))
    assert "a.pth is" in refused(open_pth, path)
    made = type("Named", (), {"pid": pid})()
    path.write_bytes(pickled({"weight": View(0, (23,), (1,), made)}))
    assert "a.pth is" in refused(open_pth, path)


# -- without end ------------------------------------------------------------------------------


def test_expanded_tensors_are_refused_before_they_are_read(tmp_path):
    torch.save({f"w{n}": torch.zeros(1).expand(4096, 4096) for n in range(140)}, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_size < 100_000
    assert "repeats its numbers" in refused(open_pth, tmp_path / "a.pth")


def test_views_of_one_record_are_bounded_together(tmp_path):
    base = torch.zeros(10_000)
    torch.save({f"w{n}": base[: 10_000 - n] for n in range(100)}, tmp_path / "a.pth")
    assert "repeats its numbers" in refused(open_pth, tmp_path / "a.pth")
    torch.save({f"w{n}": base for n in range(4)}, tmp_path / "b.pth")
    assert len(set(open_pth(tmp_path / "b.pth")[""].values())) == 1  # tied, and read once


def test_lists_within_lists_end(tmp_path):
    """Each holds the former twice: 2^200 in all."""
    nested: list = [torch.ones(1)]
    for _ in range(200):
        nested = [nested, nested]
    looped: dict = {"a": torch.ones(2)}
    looped["again"] = looped
    torch.save({"weights": {"a": torch.ones(2)}, "x": nested, "y": looped}, tmp_path / "a.pth")
    assert open_pth(tmp_path / "a.pth").keys() == {"weights", "y"}
