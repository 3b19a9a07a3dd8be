"""Tensors in files, read one by one: safetensors, and PyTorch's .pth files as weights only.

Opening a file reads names and shapes; the bytes of a tensor are read when it is asked for, so that
memory holds what is wanted and no more.  Nothing that a file says is ever run.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from everyway.errors import EverywayError, UsageError


class StoreError(EverywayError, RuntimeError):
    """A file or folder that could not be written or read; the message is one line."""

    exit_code = 1


class LayoutError(UsageError):
    """Tensors that do not fit a layout; the message lists them on one line."""


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
    dtype = reduce(torch.promote_types, (p.dtype for p in parts))
    whole = replace(parts[0], shape=shape, dtype=dtype)

    def load(wanted: torch.dtype | None) -> Tensor:
        made, row = torch.empty(shape, dtype=_stored_as(whole, wanted)), 0
        for part in parts:
            made[row : row + part.shape[0]] = part.read(wanted)
            row += part.shape[0]
        return made

    return replace(whole, load=load)


def cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Floats as `dtype` (None: as they are); anything else as it is."""
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def size(entries: Mapping[str, Stored], dtype: torch.dtype | None = None) -> int:
    """Bytes of all tensors, floats as `dtype` (None: as they are)."""
    return sum(prod(e.shape) * _stored_as(e, dtype).itemsize for e in entries.values())


def shapes(entries: Mapping[str, Stored]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(entry.shape) for name, entry in entries.items()}


def check(found: Mapping[str, tuple], expected: Mapping[str, tuple]) -> None:
    """Both map names to shapes; LayoutError lists what is missing, extra or misshapen."""
    wrong = [
        f"{k}: {tuple(found[k])} instead of {tuple(expected[k])}"
        for k in expected
        if k in found and tuple(found[k]) != tuple(expected[k])
    ]
    faults = {
        "missing": sorted(set(expected) - set(found)),
        "extra": sorted(set(found) - set(expected)),
        "misshapen": wrong,
    }
    if any(faults.values()):
        details = "; ".join(f"{k}: {some(v)}" for k, v in faults.items() if v)
        raise LayoutError(f"the file does not fit this layout: {details}")


def some(names: Sequence[str], most: int = 8) -> str:
    """The first names in one line, and how many there are more."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _stored_as(entry: Stored, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and entry.dtype.is_floating_point else entry.dtype


def _copied(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A mapped tensor in memory of its own, contiguous."""
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return _memory(tensor.numel(), kind).reshape(tensor.shape).copy_(tensor)


def _memory(count: int, dtype: torch.dtype) -> Tensor:
    """(count,), memory of its own that is given back whole.

    Freed among lasting tensors, what malloc gives leaves holes that nothing fits into: bf16 weights
    took up to 1.8 times their size.
    """
    if count * dtype.itemsize < 1 << 20:
        return torch.empty(count, dtype=dtype)
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, **private), dtype=dtype)


def _odd(path: Path, kind: str) -> StoreError:
    return StoreError(f"{path} holds {kind}, numbers that are not read here; save it as float32")


def _damaged(path: Path, reason: object) -> StoreError:
    details = " ".join(str(reason).split()) or type(reason).__name__
    return StoreError(f"{path} is damaged or truncated ({details:.200}); copy it again")


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
"""Formats that are read; no network here is computed in any other."""
_CODES = {dtype: code for code, dtype in _DTYPES.items()}


def open_safetensors(path: Path) -> Entries:
    """The tensors of a .safetensors file.  Raises StoreError where it is damaged or truncated."""
    path = Path(path)
    with _safe(path) as file:
        return {name: _entry(path, name, file.get_slice(name)) for name in file.keys()}  # noqa: SIM118


def _entry(path: Path, name: str, place: Any) -> Stored:
    if place.get_dtype() not in _DTYPES:
        raise _odd(path, place.get_dtype())

    def load(dtype: torch.dtype | None) -> Tensor:
        with _safe(path) as file:  # opened anew: what is mapped counts as memory while it is open
            return _copied(file.get_tensor(name), dtype)

    return Stored(shape=tuple(place.get_shape()), dtype=_DTYPES[place.get_dtype()], load=load)


@contextmanager
def _safe(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as file:
            yield file
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error}); copy it again") from None
    except SafetensorError as error:
        raise _damaged(path, error) from None


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

REPEATED = 8
"""How often a file's tensors may hold its bytes: tied weights do it twice, views without end."""
READ_AT_ONCE, AT_LEAST = 1 / 128, 1 << 26
"""Of a file, what is read before it is mapped anew, which takes as long as its tensors are many;
and bytes below which that would save no memory to speak of."""
NO_WEIGHTS = {b"version https://git-lfs": "a pointer of Git LFS", b"<": "a web page"}
"""How files begin that a download leaves in place of weights."""


def open_pth(path: Path) -> dict[str, Entries]:
    """The sets of tensors in a file of `torch.save`: name -> tensors; "" is the outermost, "a.b"
    one within another.

    Raises StoreError for a file that is damaged and for one that holds more than weights: nothing
    of it is run.  Files older than PyTorch 1.6 are read into memory whole.
    """
    mapped, made = _Mapped(Path(path)), dict[Any, Stored]()
    found = {
        name: {key: made.setdefault(_view(v), mapped.entry(name, key, v)) for key, v in own.items()}
        for name, own in mapped.sets.items()
    }
    if sum(map(size, found.values())) > REPEATED * mapped.state[0]:
        raise StoreError(f"{path} repeats its numbers without end (expanded tensors); refused")
    return found


class _Mapped:
    """A file of torch.save in mapped memory.

    What was read of a mapping counts as memory while it lasts, so it is made anew now and then.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.state = path, _state(path)
        self.archive = _checked(path)
        self._map()

    def _map(self) -> None:
        self.sets, self.read = _sets(_loaded(self.path, self.archive)), 0

    def entry(self, name: str, key: str, tensor: Tensor) -> Stored:
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.dtype not in _CODES:
            raise _odd(self.path, str(tensor.dtype))

        def load(dtype: torch.dtype | None) -> Tensor:
            if _state(self.path) != self.state:  # to read beyond the end of a mapped file is fatal
                raise _damaged(self.path, "it changed since it was opened")
            if self.archive and self.read > max(AT_LEAST, READ_AT_ONCE * self.state[0]):
                self._map()
            found = self.sets[name][key].detach()
            self.read += found.nbytes
            return _copied(found, dtype)

        return Stored(shape=tuple(tensor.shape), dtype=tensor.dtype, load=load)


def _state(path: Path) -> tuple[int, int]:
    try:
        return path.stat().st_size, path.stat().st_mtime_ns
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error}); copy it again") from None


def _view(tensor: Tensor) -> tuple:
    """The same for tensors that are one; one of no elements is none."""
    place = tensor.data_ptr() or id(tensor)
    return place, tensor.shape, tensor.stride(), tensor.dtype


def _sets(found: Any) -> dict[str, dict[str, Tensor]]:
    """Every mapping with tensors, at most two within another, each once."""
    sets, seen, queue = {}, set(), [("", 0, found)]
    for name, depth, own in queue:  # which grows
        if not isinstance(own, Mapping) or id(own) in seen or depth > 2:
            continue
        seen.add(id(own))
        sets[name] = {str(k): v for k, v in own.items() if isinstance(v, Tensor)}
        queue += [(f"{name}.{k}".lstrip("."), depth + 1, v) for k, v in own.items()]
    return {name: own for name, own in sets.items() if own}


def _loaded(path: Path, archive: bool) -> Any:
    """What PyTorch's own weights-only reader makes of a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the protocol of what is refused below
            return torch.load(path, map_location="cpu", mmap=archive, weights_only=True)
    except pickle.UnpicklingError as error:
        names = re.findall(r"GLOBAL (\w[\w.]*)", str(error))
        raise _refused(path, names[0] if names else "more than tensors") from None
    except Exception as error:  # a damaged file may fail in any place of the reader
        if archive:
            raise _damaged(path, error) from None
        raise StoreError(
            f"{path} is no file of torch.save, or damaged; give a .pth or .safetensors file"
        ) from None


def _checked(path: Path) -> bool:
    """Whether it is an archive, as files are since PyTorch 1.6.

    Raises StoreError for what is no weights, and where a record is not as its sum says.
    """
    try:
        if not zipfile.is_zipfile(path):
            _check_beginning(path)
            return False
        with zipfile.ZipFile(path) as archive:
            _check_records(path, archive)
            return True
    except StoreError:
        raise
    except Exception as error:  # a damaged file may fail in any place of zipfile
        raise _damaged(path, error) from None


def _check_records(path: Path, archive: zipfile.ZipFile) -> None:
    records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if "constants.pkl" in records:
        raise StoreError(f"{path} is a program (TorchScript), not weights; save its state dict")
    if "data.pkl" not in records:
        raise StoreError(f"{path} is no file of torch.save; give a .pth or .safetensors file")
    for info in records.values():
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"record {info.filename} is compressed")
        if not info.CRC:
            del info.CRC  # written without a sum: there is nothing to compare with
        with archive.open(info) as record:
            while record.read(1 << 20):
                pass
    if "byteorder" in records and archive.read(records["byteorder"]).strip() != b"little":
        raise StoreError(f"{path} is of a big-endian machine; save it again on another")


def _check_beginning(path: Path) -> None:
    with open(path, "rb") as file:
        begun = file.read(64).lstrip()
    if begun.startswith(b"PK"):
        raise ValueError("its end is lost")
    for mark, what in NO_WEIGHTS.items():
        if begun.startswith(mark):
            raise StoreError(f"{path} is {what}, not the weights themselves; download them again")


def _refused(path: Path, what: str) -> StoreError:
    return StoreError(
        f"{path} is refused: it holds {what}, which is code or data other than weights; nothing of "
        "it was run; ask its author for safetensors"
    )


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
