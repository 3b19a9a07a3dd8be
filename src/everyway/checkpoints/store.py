"""Model folders: one safetensors file a component, and a config.json with the sha256 of each.

A file's name carries the first digits of its sha256, and config.json is moved in last: a folder
holds the former model whole until it holds the new one whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


class StoreError(RuntimeError):
    """A folder that could not be written or read; the message is one line."""


def save(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    facts: Mapping[str, Any],
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """config: plain data that rebuilds the model.  tensors: component -> state dict."""
    folder = Path(folder)
    sums = {}
    for name, weights in tensors.items():
        cast = {k: _cast(v, dtype) for k, v in weights.items()}
        sums[name] = _write_component(folder, name, cast)
    document = {"config": dict(config), "facts": dict(facts), "sha256": sums}
    write_text(folder / "config.json", json.dumps(document, indent=2, ensure_ascii=False))
    current = {component(folder, name, digest) for name, digest in sums.items()}
    for name in sums:
        for path in set(folder.glob(f"{name}-????????.safetensors")) - current:
            path.unlink()


def load(folder: Path) -> tuple[dict, dict[str, dict[str, Tensor]], dict]:
    """(config, component -> state dict, facts).  Raises StoreError for missing or damaged files."""
    folder = Path(folder)
    document = _document(folder)
    tensors = {}
    for name, expected in document["sha256"].items():
        path = component(folder, name, expected)
        if not path.is_file():
            raise StoreError(f"{path} is missing; copy the whole model folder again")
        try:
            if sha256(path) != expected:
                raise StoreError(f"{path} is damaged or truncated; copy it again from its source")
            tensors[name] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise StoreError(f"{path} cannot be read ({error}); copy it again") from None
    return document["config"], tensors, document["facts"]


def component(folder: Path, name: str, digest: str) -> Path:
    """Where the component with that sha256 lies."""
    return folder / f"{name}-{digest[:8]}.safetensors"


def fingerprint(folder: Path) -> str:
    """Twelve hex digits that name the weights and config of a folder."""
    document = _document(Path(folder))
    named = json.dumps([document["config"], document["sha256"]], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()[:12]


def write_text(path: Path, text: str) -> None:
    """The file whole, or as it was."""
    _atomic(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _document(folder: Path) -> dict:
    path = folder / "config.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        document["config"], document["facts"]
        if not all(isinstance(digest, str) for digest in document["sha256"].values()):
            raise ValueError("its sha256 are not text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"{path} is not a model's config ({reason}); copy it again") from None
    return document


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach().cpu()
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous().clone()


def _write_component(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> str:
    """The sha256 that the file is named after."""
    temporary = folder / f"{name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), temporary)
        digest = sha256(temporary)
        os.replace(temporary, component(folder, name, digest))
        return digest
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{folder / name} was not written: {error}") from None
    finally:
        _discard(temporary)


def _discard(path: Path) -> None:
    with suppress(OSError):  # its folder may not exist
        path.unlink(missing_ok=True)


def _atomic(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path} was not written: {error}") from None
    finally:
        _discard(temporary)
