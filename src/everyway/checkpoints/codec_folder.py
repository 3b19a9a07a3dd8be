"""A folder of trained codecs: NAME.json has the settings of one, NAME.safetensors its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from everyway.checkpoints.store import StoreError, write_module, write_text

MADE_BY = {
    "image": "codec-image",
    "image_embed": "encoder",
    "text": "text",
    "image_vq": "codec-vq",
}
"""Codec -> the training that makes it."""


def settings(folder: Path, name: str) -> dict[str, Any]:
    """What builds a codec of `folder`.  Raises StoreError where it is missing or damaged."""
    try:
        return json.loads(_part(folder, name, "json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{folder}/{name}.json is damaged ({error}); train it again") from None


def fill(folder: Path, name: str, module: nn.Module) -> nn.Module:
    """`module` with the weights in `folder`.  Raises StoreError where they are missing or other."""
    path = _part(folder, name, "safetensors")
    try:
        module.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"{path} cannot be read ({reason}); train it again") from None
    return module


def metadata(folder: Path) -> dict[str, dict[str, Any]]:
    """Codec -> what its training tells of it."""
    files = sorted(Path(folder).glob("*.facts.json"))
    return {p.name.split(".")[0]: json.loads(p.read_text(encoding="utf-8")) for p in files}


def write(
    folder: Path,
    name: str,
    module: nn.Module,
    config: Mapping[str, Any],
    metadata: Mapping[str, Any],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Each written atomically, `metadata` in NAME.facts.json last.  Raises StoreError."""
    write_module(folder / f"{name}.safetensors", module, dtype)
    write_text(folder / f"{name}.json", json.dumps(config, ensure_ascii=False))
    write_text(folder / f"{name}.facts.json", json.dumps(metadata))


def _part(folder: Path, name: str, suffix: str) -> Path:
    path = Path(folder) / f"{name}.{suffix}"
    if not path.is_file():
        made = f"; make it first: everyway train {MADE_BY[name]}" if name in MADE_BY else ""
        raise StoreError(f"{path} is missing{made}")
    return path
