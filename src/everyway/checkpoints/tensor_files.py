"""Tensors in files, read one by one: safetensors, and PyTorch's .pth files as weights only.

Opening a file reads names and shapes; the bytes of a tensor are read when it is asked for, so that
memory holds what is wanted and no more.  Nothing that a file says is ever run.
"""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import os
import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from everyway.errors import EverywayError


class StoreError(EverywayError, RuntimeError):
    """A file or folder that could not be written or read; the message is one line."""

    exit_code = 1


Load = Callable[[torch.dtype | None], Tensor]
"""Gives a tensor with its floats in a number format; None is that of the file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stored:
    """A tensor that is still in its file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Load

    def read(self, dtype: torch.dtype | None = None) -> Tensor:
        """In memory; floats as `dtype` (None: as they are), anything else as it is."""
        return self.load(dtype)

    def chunk(self, parts: int) -> tuple[Stored, ...]:
        """Equal parts of its rows."""
        rows = self.shape[0] // parts

        def part(number: int) -> Stored:
            cut = slice(number * rows, (number + 1) * rows)
            shape = (rows, *self.shape[1:])
            return replace(self, shape=shape, load=lambda dtype: self.read(dtype)[cut].clone())

        return tuple(part(number) for number in range(parts))

    def reshape(self, shape: Sequence[int]) -> Stored:
        shape = tuple(shape)
        return replace(self, shape=shape, load=lambda dtype: self.read(dtype).reshape(shape))

    def clone(self) -> Stored:
        return self


Entries = dict[str, Stored]
BLOCK = 1 << 20
"""Elements that are read at a time on the way to another number format."""


def held(tensor: Tensor) -> Stored:
    """A tensor that is in memory already; it is brought to main memory when it is read."""
    tensor = tensor.detach()

    def load(dtype: torch.dtype | None) -> Tensor:
        return cast(tensor, dtype).cpu()

    return Stored(shape=tuple(tensor.shape), dtype=tensor.dtype, load=load)


E = TypeVar("E", Tensor, Stored)
"""What a state dict holds: tensors, or the entries of a file, which are not read yet."""


def joined(parts: Sequence[E]) -> E:
    """The parts below each other."""
    if not isinstance(parts[0], Stored):
        return torch.cat(list(parts))
    shape = (sum(p.shape[0] for p in parts), *parts[0].shape[1:])
    return replace(parts[0], shape=shape, load=lambda dtype: _below(parts, shape, dtype))


def _below(parts: Sequence[Stored], shape: tuple[int, ...], dtype: torch.dtype | None) -> Tensor:
    made, row = torch.empty(shape, dtype=_stored_as(parts[0], dtype)), 0
    for part in parts:
        made[row : row + part.shape[0]] = part.read(dtype)
        row += part.shape[0]
    return made


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Floats as `dtype` (None: as they are); anything else as it is."""
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def size(entries: Mapping[str, Stored], dtype: torch.dtype | None = None) -> int:
    """Bytes of all tensors, floats as `dtype` (None: as they are)."""
    return sum(prod(e.shape) * _stored_as(e, dtype).itemsize for e in entries.values())


def _stored_as(entry: Stored, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and entry.dtype.is_floating_point else entry.dtype


def _at(path: Path, start: int, shape: tuple[int, ...], dtype: torch.dtype, crc: int = 0) -> Stored:
    """The contiguous tensor that begins at byte `start` of a file.  crc: of its bytes, if known."""

    def load(wanted: torch.dtype | None) -> Tensor:
        kind = wanted if wanted is not None and dtype.is_floating_point else dtype
        made, found = _memory(prod(shape), kind), 0
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(start)
                spare = None if kind == dtype else _memory(min(BLOCK, len(made)), dtype)
                for part in made.split(BLOCK):
                    block = part if spare is None else spare[: len(part)]
                    found = zlib.crc32(_filled(file, block, path), found)
                    if spare is not None:
                        part.copy_(block)
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error}); copy it again") from None
        if crc and crc != found:
            raise _damaged(path)
        return made.reshape(shape)

    return Stored(shape=shape, dtype=dtype, load=load)


def _memory(count: int, dtype: torch.dtype) -> Tensor:
    """(count,), memory of its own that is given back whole.

    Freed among lasting tensors, what malloc gives leaves holes that nothing fits into: bf16 weights
    took up to 1.8 times their size.
    """
    if count * dtype.itemsize < BLOCK:
        return torch.empty(count, dtype=dtype)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, **private), dtype=dtype)


def _filled(file: Any, block: Tensor, path: Path) -> memoryview:
    """The bytes of `block` after they were read from where the file is."""
    view = memoryview(block.view(torch.uint8).numpy())
    got = 0
    while got < len(view):
        more = file.readinto(view[got:])
        if not more:
            raise _damaged(path)
        got += more
    return view


def _odd(path: Path, kind: str) -> StoreError:
    return StoreError(f"{path} holds {kind}, numbers that are not read here; save it as float32")


def _damaged(path: Path) -> StoreError:
    return StoreError(f"{path} is damaged or truncated; copy it again from its source")


# -- safetensors ------------------------------------------------------------------------------

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NOT_READ = ("C64", "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0")
"""Formats of floats that no network here is computed in."""
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def open_safetensors(path: Path) -> Entries:
    """The tensors of a .safetensors file.  Raises StoreError where it is damaged or truncated."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            body, end = 8 + length, path.stat().st_size
            if not 2 <= length <= end - 8:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        return {name: _entry(path, body, end, row) for name, row in header.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged or truncated ({error}); copy it again") from None


def _entry(path: Path, body: int, end: int, row: Mapping[str, Any]) -> Stored:
    if row["dtype"] in _NOT_READ:
        raise _odd(path, row["dtype"])
    shape, dtype = tuple(row["shape"]), _DTYPES[row["dtype"]]
    first, last = row["data_offsets"]
    if last - first != prod(shape) * dtype.itemsize or not 0 <= first <= last <= end - body:
        raise ValueError("a tensor lies outside the file")
    return _at(path, body + first, shape, dtype)


def write_safetensors(
    path: Path,
    entries: Mapping[str, Stored],
    dtype: torch.dtype | None = None,
    exact: Callable[[str], bool] = lambda name: False,
) -> str:
    """The tensors into a .safetensors file, one after the other; returns its sha256.

    dtype: of the floats (None: as they are), but for the names that `exact` says yes to.
    """
    kept = {name: None if exact(name) else dtype for name in entries}
    stored = {name: _stored_as(e, kept[name]) for name, e in entries.items()}
    order = sorted(entries, key=lambda name: (-stored[name].itemsize, name))  # keeps all aligned
    header, place = {}, 0
    for name in order:
        bytes_ = prod(entries[name].shape) * stored[name].itemsize
        header[name] = {
            "dtype": _CODES[stored[name]],
            "shape": list(entries[name].shape),
            "data_offsets": [place, place + bytes_],
        }
        place += bytes_
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for block in (len(head).to_bytes(8, "little"), head):
            file.write(block)
            digest.update(block)
        for name in order:
            tensor = entries[name].read(kept[name]).contiguous().reshape(-1)
            block = tensor.view(torch.uint8).numpy().data
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


# -- PyTorch ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Storage:
    """The bytes of a record of a .pth file that tensors are views of.  crc: 0 is not known."""

    path: Path
    start: int
    count: int  # of elements
    dtype: torch.dtype
    crc: int


def open_pth(path: Path) -> Any:
    """What a file of `torch.save` holds: dicts and lists with Stored for tensors.

    Raises StoreError for a file that is damaged and for one that holds more than weights: nothing
    of it is run.  Files older than PyTorch 1.6 are read into memory whole.
    """
    path = Path(path)
    try:
        if not zipfile.is_zipfile(path):
            return _legacy(path)
        with zipfile.ZipFile(path) as archive:
            return _open_archive(path, archive)
    except StoreError:
        raise
    except Exception as error:  # a damaged file may fail in any place of zip and pickle
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StoreError(f"{path} is damaged or truncated ({reason}); copy it again") from None


def _open_archive(path: Path, archive: zipfile.ZipFile) -> Any:
    names = {name.partition("/")[2]: name for name in archive.namelist()}
    if "constants.pkl" in names:
        raise StoreError(f"{path} is a program (TorchScript), not weights; save its state dict")
    if "data.pkl" not in names:
        raise StoreError(f"{path} is no file of torch.save; give a .pth or .safetensors file")
    if "byteorder" in names and _record(path, archive, names["byteorder"]).strip() != b"little":
        raise StoreError(f"{path} was written on a big-endian machine; save it again on another")

    def storage(dtype: torch.dtype, key: str, count: int) -> _Storage:
        info = archive.getinfo(names[f"data/{key}"])
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < count * dtype.itemsize:
            raise ValueError(f"record {key} is short")
        crc = info.CRC if info.file_size == count * dtype.itemsize else 0
        return _Storage(path, _body(path, info), count, dtype, crc)

    pickled = _record(path, archive, names["data.pkl"])
    return _WeightsOnly(io.BytesIO(pickled), path, storage).load()


def _record(path: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """A small record whole; zipfile itself would refuse one that was written without a sum."""
    info = archive.getinfo(name)
    stored = _at(path, _body(path, info), (info.file_size,), torch.uint8, info.CRC)
    return stored.read().numpy().tobytes()


def _body(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of a record begin, after its local header of 30 bytes and two names."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        head = file.read(30)
    if head[:4] != b"PK\x03\x04":
        raise ValueError(f"record {info.filename} has no header")
    return info.header_offset + 30 + sum(struct.unpack("<HH", head[26:30]))


def _tensor(storage: _Storage, offset: int, shape, stride, *_: Any) -> Stored:
    """What stands in for torch._utils._rebuild_tensor_v2."""
    shape, stride = tuple(shape), tuple(stride)
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) if prod(shape) else 0
    if min((offset, *shape, *stride)) < 0 or offset + extent > storage.count:
        raise ValueError("a tensor lies outside its record")
    start = storage.start + offset * storage.dtype.itemsize
    if stride == _contiguous(shape) or not extent:
        crc = storage.crc if extent == storage.count else 0
        return _at(storage.path, start, shape, storage.dtype, crc)
    flat = _at(storage.path, start, (extent,), storage.dtype)

    def load(dtype: torch.dtype | None) -> Tensor:
        return flat.read(dtype).as_strided(shape, stride).contiguous()

    return replace(flat, shape=shape, load=load)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): lambda sizes=(): tuple(sizes),
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch.storage", "UntypedStorage"): torch.uint8,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}
"""Every name that a weights file may use -> what stands in for it here."""

_ODD = {("torch._utils", "_rebuild_tensor_v3"), ("torch._utils", "_rebuild_qtensor")}
"""Of tensors in number formats that are not read here."""


class _WeightsOnly(pickle.Unpickler):
    """Puts dicts, lists and tensors together; any other name ends the reading before it is used."""

    def __init__(self, file, path: Path, storage: Callable[..., _Storage]) -> None:
        super().__init__(file)
        self.path, self.storage = path, storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if (module, name) in _ODD or module == "torch" and name.endswith("Storage"):
            raise _odd(self.path, f"{module}.{name}")
        raise _refused(self.path, f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise ValueError(f"a reference to {kind!r}")
        return self.storage(dtype, key, count)


NO_WEIGHTS = {b"version https://git-lfs": "a pointer of Git LFS", b"<": "a web page"}
"""How files begin that a download leaves in place of weights."""


def _legacy(path: Path) -> Any:
    """A file without an archive, by PyTorch's own weights-only reading."""
    with open(path, "rb") as file:
        begun = file.read(64).lstrip()
    if begun.startswith(b"PK"):
        raise StoreError(f"{path} is damaged or truncated (its end is lost); copy it again")
    for mark, what in NO_WEIGHTS.items():
        if begun.startswith(mark):
            raise StoreError(f"{path} is {what}, not the weights themselves; download them again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the protocol of what is refused below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        names = re.findall(r"GLOBAL (\w[\w.]*)", str(error))
        raise _refused(path, names[0] if names else "more than tensors") from None
    except Exception:
        raise StoreError(
            f"{path} is no file of torch.save, or damaged; give a .pth or .safetensors file"
        ) from None
    return _held(found)


def _refused(path: Path, what: str) -> StoreError:
    return StoreError(
        f"{path} is refused: it holds {what}, which is code or data other than weights; nothing of "
        "it was run; ask its author for safetensors"
    )


def _held(found: Any) -> Any:
    if isinstance(found, Tensor):
        return held(found)
    if isinstance(found, Mapping):
        return {key: _held(value) for key, value in found.items()}
    return [_held(value) for value in found] if isinstance(found, (list, tuple)) else found


def write_pth(path: Path, entries: Mapping[str, Any]) -> None:
    """The tensors as a state dict that `torch.load` reads, or as several of them by name.

    A tensor that is there twice is stored once.  Raises OSError where it cannot be written.
    """
    made: dict[int, Tensor] = {}

    def read(found: Stored | Mapping[str, Any]) -> Any:
        if not isinstance(found, Stored):
            return OrderedDict((name, read(entry)) for name, entry in found.items())
        if id(found) not in made:
            made[id(found)] = found.read()
        return made[id(found)]

    try:
        torch.save(read(entries), path)
    except RuntimeError as error:  # what PyTorch makes of a full disk
        raise OSError(str(error)) from None
