"""Tensors in one safetensors file that carries its own digest, so that a flipped bit is noticed.

The last tensor, `sha256`, is the digest of every byte before it.  Tensors are written one after
the other, from whatever device or shards they are on, and read as memory-mapped views.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from everyway.atomic import atomic_write
from everyway.errors import EverywayError

CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
DIGEST = "sha256"


class Damaged(EverywayError, OSError):
    """A file that is not what was written; the message is one line, without what to do."""

    exit_code = 1


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Written atomically.  metadata: plain data.  Raises OSError."""
    tensors = dict(sorted(tensors.items(), key=order))
    header: dict[str, Any] = {"__metadata__": {"facts": json.dumps(metadata)}}
    place = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name], place = _entry(CODES[tensor.dtype], tensor.shape, place, size)
    header[DIGEST], place = _entry("U8", (32,), place, 32)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        for block in (len(head).to_bytes(8, "little"), head, *tensors.values()):
            data = block if isinstance(block, bytes) else _bytes(block)
            file.write(data)
            digest.update(data)
        file.write(digest.digest())


def order(named: tuple[str, Tensor]) -> tuple[int, str]:
    """The key by which tensors are sorted in a file: wide numbers first keep all aligned."""
    return -named[1].element_size(), named[0]


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor, which may be in shards: then every process has to ask."""
    return getattr(tensor, "full_tensor", lambda: tensor)().detach()


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata), on the CPU; nothing but the header is in memory.  Raises Damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("facts", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, OSError) as error:
        raise Damaged(f"{path} is damaged or truncated ({error})") from None
    if tensors.pop(DIGEST, None) is None or not isinstance(metadata, dict):
        raise Damaged(f"{path} is of another version")
    return tensors, metadata


def verify(path: Path) -> None:
    """Raises Damaged where a bit is not as it was written."""
    digest, left = hashlib.sha256(), path.stat().st_size - 32
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        if file.read(33) != digest.digest():
            raise Damaged(f"{path} is damaged: its sha256 is another one")


def _entry(code: str, shape: tuple[int, ...], place: int, size: int) -> tuple[dict[str, Any], int]:
    """Of the header, and where the next one begins."""
    return {
        "dtype": code,
        "shape": list(shape),
        "data_offsets": [place, place + size],
    }, place + size


def _bytes(tensor: Tensor) -> Any:
    return gathered(tensor).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
