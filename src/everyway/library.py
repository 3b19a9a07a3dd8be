"""Where models come from and go to: shipped ones, folders, files of others, the hub.

Weights are read tensor by tensor, in the number format asked for, to where they will lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from everyway.checkpoints import card, store
from everyway.checkpoints.tensor_files import Entries, size
from everyway.errors import UsageError
from everyway.layouts import convert
from everyway.nets.precision import fast
from everyway.placement import (
    MEMORY,
    WORK_A_PIXEL,
    Placement,
    free_memory,
    is_network,
    memory_for,
)
from everyway.system import System

SHIPPED, shipped = convert.SHIPPED, convert.shipped
DTYPES = convert.DTYPES


class ModelError(UsageError):
    """A model that cannot be found or loaded; the message says how to mend it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A system out of files.  hash: names its weights and config.  facts: of its folder.

    told: what it was opened with, as plain data; `load` with it again gives the same model.
    note: in one line, how much it is and where it lies.
    """

    name: str
    hash: str
    system: System
    facts: Mapping[str, Any]
    told: Mapping[str, Any]
    note: str


def folder_of(name_or_path: str) -> Path:
    """The model folder of ours of that name or path; ModelError where there is none."""
    folder = convert.shipped_folder(name_or_path) or Path(name_or_path)
    if (folder / "config.json").is_file():
        return folder
    names = ", ".join(shipped()) or "none is shipped"
    raise ModelError(
        f"there is no model {name_or_path!r}; shipped: {names}; or give a folder, a file of "
        "weights, or the id of one on the hub (owner/name)"
    )


def _source(name_or_path: str) -> Path:
    """A shipped model's folder, or the path or hub id itself; ModelError for a mere name."""
    if "/" in name_or_path or Path(name_or_path).exists():
        return convert.shipped_folder(name_or_path) or Path(name_or_path)
    return folder_of(name_or_path)


def load(
    name_or_path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    memory: str = "auto",
    parts: Mapping[str, str | Path] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Loaded:
    """A shipped name, a model folder, a file or folder of others, or a hub id, ready to run.

    device: "cpu", "cuda", ...; "auto" is a GPU where there is one.
    dtype: fp32, bf16 or fp16, what weights are kept in; "auto" is bf16 on a GPU, else fp32.
    memory: a name in MEMORY.
    parts: part -> path or hub id of what a source lacks, as `everyway convert --part` has them.
    settings: what no file shows, as its --set; "layout" and "weights" are its flags of these names.
    Raises ModelError (unknown, or parts are missing), LayoutError and StoreError, one line each.
    """
    _known("dtype", dtype, ("auto", *DTYPES))
    _known("memory", memory, MEMORY)
    where = _device(device)
    dtype = dtype if dtype != "auto" else "fp32" if where.type == "cpu" else "bf16"
    source, parts = _source(os.fspath(name_or_path)), _texts(parts)
    path = convert.local(str(source))
    opened = _opened(path, parts, settings or {})
    bytes_ = {n: size(e, DTYPES[dtype]) for n, e in _once(opened).items()}
    free = free_memory(where)
    placed = Placement(device=where, memory=_memory(memory, free, bytes_, opened, dtype))
    system = convert.restored(opened, DTYPES[dtype], placed.home)
    if placed.memory == "low":
        _spare(system)
    name = source.stem if source.is_file() else source.name or path.resolve().name
    return Loaded(
        name=name,
        hash=_hash(path, opened, system, bool(parts or settings)),
        system=system.placed(placed),
        facts=opened.facts,
        told=_plain(dtype=dtype, parts=parts, settings=settings),
        note=f"{name}: {_note(placed, dtype, bytes_, free)}{convert.taken(opened)}",
    )


def facts_of(name_or_path: str | Path) -> Mapping[str, Any]:
    """The facts of a model, none of whose weights is read.  Errors as of `load`."""
    return _opened(convert.local(str(_source(os.fspath(name_or_path)))), {}, {}).facts


def _texts(parts: Mapping[str, str | Path] | None) -> dict[str, str]:
    return {name: os.fspath(where) for name, where in (parts or {}).items()}


def _opened(path: Path, parts: Mapping[str, str], settings: Mapping[str, str]) -> convert.Opened:
    """With the components that lie in shipped models; ModelError for a codec alone."""
    told = dict(settings)
    layout, weights = told.pop("layout", ""), told.pop("weights", "")
    made = convert.open_model(str(path), layout, parts, weights, told)
    if not made.config["system"]:
        needed = " ".join(f"--part {part}" for part in convert.lacking(made))
        raise ModelError(f"{path} is a part of a model; give the rest: {needed}")
    elsewhere = made.config["config"].get("shared", {})
    found = {}
    for name, where in elsewhere.items():
        model, _, digest = where.partition("@")
        found[name] = store.open_component(SHIPPED / model, name, digest)
    return replace(made, components={**made.components, **found})


def _spare(system: System) -> None:
    """Codecs that can decode with less memory do."""
    for codec in system.codecs.values():
        if hasattr(codec, "spare"):
            codec.spare()


def save(
    folder: Path, system: System, facts: Mapping[str, Any], dtype: torch.dtype | None = None
) -> None:
    """A model folder of ours with its card.  dtype: of the weights; None keeps them as they are."""
    config = {"system": system.name, "config": dict(system.config)}
    store.save(folder, config, system.weights(), facts, dtype)
    card.write_card(folder)


def push(repo_id: str, system: System, facts: Mapping[str, Any], private: bool = False) -> str:
    """The model folder onto the hub, as `huggingface_hub` is logged in; returns its address."""
    from huggingface_hub import create_repo, upload_folder

    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), system, facts)
        create_repo(repo_id, private=private, exist_ok=True)
        return str(upload_folder(repo_id=repo_id, folder_path=folder))


def _known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise ModelError(f"{what} {name!r} is unknown; choose one of {', '.join(names)}")


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).tolist()  # "meta" holds no numbers
    except (RuntimeError, AssertionError, ImportError, TypeError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ModelError(f"device {name!r} cannot be used ({reason}); leave --device out") from None
    return device


def _once(opened: convert.Opened) -> dict[str, Entries]:
    """Component -> its tensors, each under one name."""
    own = opened.weights.items()
    return {name: {str(n): e for n, e in enumerate(entries)} for name, entries in own}


def _memory(
    asked: str, free: int, bytes_: Mapping[str, int], opened: convert.Opened, dtype: str
) -> str:
    if asked != "auto":
        return asked
    codecs = {name: count for name, count in bytes_.items() if not is_network(name)}
    network = sum(count for name, count in bytes_.items() if is_network(name))
    pixels = opened.facts.get("image_size", 64) ** 2
    work = pixels * WORK_A_PIXEL * DTYPES[dtype].itemsize // 4
    return memory_for(free, network, codecs, work)


def _note(placed: Placement, dtype: str, bytes_: Mapping[str, int], free: int) -> str:
    slow = placed.device.type == "cpu" and dtype != "fp32" and not fast(DTYPES[dtype], "cpu")
    computed = ", computed in fp32" if slow else ""
    return (
        f"{sum(bytes_.values()) / 1e9:.2f} GB of weights in {dtype}{computed}, on {placed.device} "
        f"({free / 1e9:.1f} GB free): --memory {placed.memory}"
    )


def _hash(path: Path, opened: convert.Opened, system: System, changed: bool) -> str:
    """Twelve hex digits that name what was loaded: the fingerprint of a folder of ours, else of
    the config and a thousand numbers of every tensor, in which other weights differ."""
    if convert.is_ours(path) and not changed:
        return store.fingerprint(path)
    digest = hashlib.sha256(json.dumps(opened.config, sort_keys=True).encode())
    for component, module in sorted(system.components.items()):
        for name, tensor in module.state_dict().items():
            few = tensor.flatten()[:: max(1, tensor.numel() // 1000)].cpu().to(torch.bfloat16)
            digest.update(f"{component}.{name}".encode() + few.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:12]


def _plain(**told: Any) -> dict[str, Any]:
    return {name: dict(v) if isinstance(v, Mapping) else v for name, v in told.items() if v}
