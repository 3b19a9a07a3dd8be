"""Model folders: one safetensors file a component, and a config.json with the sha256 of each.

A file's name carries the first digits of its sha256, and config.json is moved in last: a folder
holds the former model whole until it holds the new one whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from everyway.checkpoints.keymap import check
from everyway.checkpoints.tensor_files import (
    Entries,
    Stored,
    StoreError,
    open_safetensors,
    write_safetensors,
)


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
        made = {k: _cast(v, dtype) for k, v in weights.items()}
        sums[name] = _write_component(folder, name, made)
    _finish(folder, config, facts, sums)


def save_stored(
    folder: Path,
    config: Mapping[str, Any],
    entries: Mapping[str, Mapping[str, Stored]],
    facts: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> None:
    """`save` of tensors that are read one by one; None keeps every float as it is."""
    folder = Path(folder)
    sums = {n: _write_stored(folder, n, stored, dtype) for n, stored in entries.items()}
    _finish(folder, config, facts, sums)


def load_component(folder: Path, name: str) -> dict[str, Tensor]:
    """One component's state dict; the others are not read.  Raises StoreError as `load` does."""
    held = document(Path(folder))
    if name not in held["sha256"]:
        raise StoreError(f"{folder} holds no {name!r}; copy the whole model folder again")
    (path,) = _components(Path(folder), {"sha256": {name: held["sha256"][name]}}).values()
    return _read(path)


def load(folder: Path) -> tuple[dict, dict[str, dict[str, Tensor]], dict]:
    """(config, component -> state dict, facts).  Raises StoreError for missing or damaged files."""
    held = document(Path(folder))
    tensors = {name: _read(path) for name, path in _components(Path(folder), held).items()}
    return held["config"], tensors, held["facts"]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path} cannot be read ({error}); copy it again") from None


def open_folder(folder: Path) -> tuple[dict, dict[str, Entries], dict]:
    """`load` with tensors that stay in their files until they are read."""
    held = document(Path(folder))
    paths = _components(Path(folder), held)
    stored = {name: open_safetensors(path) for name, path in paths.items()}
    return held["config"], stored, held["facts"]


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules made in it are on the meta device, and nothing is drawn for their weights."""
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """Drawing on the meta device would load much of PyTorch's compiler: 70 MB and seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def fill(
    module: nn.Module, entries: Mapping[str, Stored], dtype: torch.dtype | None = None
) -> nn.Module:
    """A module of the meta device with its tensors, read one by one.

    dtype: of its parameters that are floats (None: as they are stored); buffers stay float32.
    A parameter of several names is read once.  Raises LayoutError for names or shapes that differ.
    """
    wanted = module.state_dict(keep_vars=True)
    check({k: e.shape for k, e in entries.items()}, {k: tuple(v.shape) for k, v in wanted.items()})
    made: dict[int, nn.Parameter] = {}
    parameters = {}
    for name, place in wanted.items():
        if not isinstance(place, nn.Parameter):
            parameters[name] = entries[name].read(torch.float32)
        elif id(place) in made:
            parameters[name] = made[id(place)]
        else:
            value = entries[name].read(dtype)
            made[id(place)] = parameters[name] = nn.Parameter(value, place.requires_grad)
    module.load_state_dict(parameters, assign=True)
    _count_positions(module)
    return module


def _count_positions(module: nn.Module) -> None:
    """Buffers that no file holds: transformers counts positions in them."""
    for name, buffer in list(module.named_buffers()):
        if not buffer.is_meta:
            continue
        parent, _, leaf = name.rpartition(".")
        if leaf != "position_ids":
            raise StoreError(f"{name} of {type(module).__name__} is in no file")
        counted = torch.arange(buffer.shape[-1], device="cpu").expand(buffer.shape)
        module.get_submodule(parent).register_buffer(leaf, counted, persistent=False)


def component(folder: Path, name: str, digest: str) -> Path:
    """Where the component with that sha256 lies."""
    return folder / f"{name}-{digest[:8]}.safetensors"


def fingerprint(folder: Path) -> str:
    """Twelve hex digits that name the weights and config of a folder."""
    held = document(Path(folder))
    named = json.dumps([held["config"], held["sha256"]], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()[:12]


def set_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Other facts for a model; its name by `fingerprint` stays."""
    held = document(Path(folder)) | {"facts": dict(facts)}
    write_text(Path(folder) / "config.json", json.dumps(held, indent=2, ensure_ascii=False))


def write_module(path: Path, module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """A module's weights, whole or as the file was."""
    tensors = {k: _cast(v, dtype) for k, v in module.state_dict().items()}
    _atomic(Path(path), lambda temporary: save_file(tensors, temporary))


def write_text(path: Path, text: str) -> None:
    """The file whole, or as it was."""
    _atomic(Path(path), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _finish(folder: Path, config: Mapping, facts: Mapping, sums: Mapping[str, str]) -> None:
    """config.json last; then what the former model left is removed."""
    document = {"config": dict(config), "facts": dict(facts), "sha256": dict(sums)}
    write_text(folder / "config.json", json.dumps(document, indent=2, ensure_ascii=False))
    current = {component(folder, name, digest) for name, digest in sums.items()}
    for name in sums:
        for path in set(folder.glob(f"{name}-????????.safetensors")) - current:
            path.unlink()


def _components(folder: Path, document: Mapping[str, Any]) -> dict[str, Path]:
    """Where every component lies, whole: its sha256 is compared."""
    paths = {n: component(folder, n, digest) for n, digest in document["sha256"].items()}
    for name, path in paths.items():
        if not path.is_file():
            raise StoreError(f"{path} is missing; copy the whole model folder again")
        try:
            whole = sha256(path) == document["sha256"][name]
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error}); copy it again") from None
        if not whole:
            raise StoreError(f"{path} is damaged or truncated; copy it again from its source")
    return paths


def document(folder: Path) -> dict:
    """config, facts and sha256 of a model folder, as its config.json has them."""
    path = folder / "config.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        held["config"], held["facts"]
        if not all(isinstance(digest, str) for digest in held["sha256"].values()):
            raise ValueError("its sha256 are not text")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise StoreError(f"{path} is not a model's config ({reason}); copy it again") from None
    return held


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


def _write_stored(
    folder: Path, name: str, entries: Mapping[str, Stored], dtype: torch.dtype | None
) -> str:
    """The sha256 that the file is named after; whitening is a measure and keeps its precision."""
    temporary = folder / f"{name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        digest = write_safetensors(temporary, entries, dtype, lambda k: k.startswith("whiten."))
        os.replace(temporary, component(folder, name, digest))
        return digest
    except OSError as error:
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
