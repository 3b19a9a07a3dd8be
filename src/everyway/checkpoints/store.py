"""Model folders: one safetensors file a component, and a config.json with the sha256 of each.

A file's name carries the first digits of its sha256, and config.json is moved in last: a folder
holds the former model whole until it holds the new one whole.  A tensor of several names (GPT-2's
output layer is its embedding) is in a file under the first; config.json has the others as `tied`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from threading import get_ident
from types import MappingProxyType
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from typing_extensions import NotRequired, TypedDict

from everyway.atomic import atomic_write, beside
from everyway.checkpoints.deltas import SCALE, differences, summed
from everyway.checkpoints.tensor_files import (
    Entries,
    LayoutError,
    Stored,
    StoreError,
    check,
    held,
    open_safetensors,
    some,
    write_safetensors,
)
from everyway.errors import UsageError
from everyway.validation import first_fault


class Source(TypedDict):
    """Whose file a part was converted from, and how it was laid out."""

    file: str
    layout: str
    preset: str


class Run(TypedDict):
    """A training of the model's history.

    averaged: the share of its weights in their mean with those of the run before.  expert, stage:
    of an ensemble, or of a cascade, which it trained.
    """

    data: str
    seconds: float
    averaged: NotRequired[float]
    expert: NotRequired[str]
    stage: NotRequired[str]


class Merged(TypedDict):
    """A LoRA that was merged into the weights: its name, weight and digest, and what is known of
    its training."""

    lora: str
    weight: float
    sha256: str
    data: NotRequired[str]
    steps: NotRequired[int]


class Metadata(TypedDict, total=False):
    """What a model's card and commands read."""

    image_size: Annotated[int, Field(ge=1, lt=2**14)]
    training: dict[str, Any]
    codecs: dict[str, dict[str, Any]]
    scores: dict[str, dict[str, Any]]
    source: dict[str, Source]
    history: list[Run]
    merged: list[Merged]


class Config(TypedDict, total=False):
    """What builds the system; `config` is its own."""

    system: str
    config: dict[str, Any]


class Document(TypedDict):
    """What is read of a config.json; it may hold more.

    sha256: component -> digest of its file.  tied: component -> alias -> name of a tensor.
    deltas: component -> the one that its file holds the difference from, "" from nothing.
    """

    config: Config
    facts: Metadata
    sha256: dict[str, str]
    tied: NotRequired[dict[str, dict[str, str]]]
    deltas: NotRequired[dict[str, str]]


DOCUMENT = TypeAdapter(Document)


def save(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    metadata: Mapping[str, Any],
    dtype: torch.dtype | None = torch.bfloat16,
    deltas: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """config: plain data that rebuilds the model.  tensors: component -> state dict.
    deltas: component -> the one that it is stored as a difference from, rounded to a byte a weight;
    of "" it is the weights themselves that are rounded.

    Raises StoreError, and the folder's former model stays, where a file cannot be written.
    """
    entries = {name: _held(weights) for name, weights in tensors.items()}
    save_stored(folder, config, entries, metadata, dtype, deltas)


def save_stored(
    folder: Path,
    config: Mapping[str, Any],
    entries: Mapping[str, Mapping[str, Stored]],
    metadata: Mapping[str, Any],
    dtype: torch.dtype | None = None,
    deltas: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """`save` of tensors that are read one by one; None keeps every float as it is."""
    folder = Path(folder)
    tied = {name: _tied(stored) for name, stored in entries.items()}
    with _all_or_none(folder) as sums:
        for name in sorted(entries, key=lambda name: name in deltas):  # what they differ from first
            own = {k: v for k, v in entries[name].items() if k not in tied[name]}
            if name in deltas:
                own = differences(own, _base(folder, deltas[name], sums))
            sums[name] = _write_component(folder, name, own, dtype)
        former = _names(folder)
        _write_document(folder, config, metadata, sums, tied, deltas)
    _remove(folder, former | sums.keys(), sums)


def _base(folder: Path, name: str, sums: Mapping[str, str]) -> Entries | None:
    """What differences from the component `name` are from, as it is in its file; None of ""."""
    return open_safetensors(component(folder, name, sums[name])) if name else None


@contextmanager
def _all_or_none(folder: Path) -> Iterator[dict[str, str]]:
    """For the sums of components, until config.json names them: what is raised within leaves none
    that were not there before."""
    former, sums = set(folder.glob("*.safetensors")), dict[str, str]()
    fresh = not folder.exists()
    try:
        yield sums
    except BaseException:
        for name, digest in sums.items():
            if (path := component(folder, name, digest)) not in former:
                path.unlink(missing_ok=True)
        if fresh:
            with suppress(OSError):
                folder.rmdir()
        raise


def _held(weights: Mapping[str, Tensor]) -> Entries:
    """Tensors that are one in memory are one entry."""
    made: dict[Hashable, Stored] = {}
    return {name: made.setdefault(_memory_of(v), held(v)) for name, v in weights.items()}


def _tied(entries: Entries) -> dict[str, str]:
    """Name -> the former name of the same tensor."""
    first: dict[int, str] = {}
    names = {name: first.setdefault(id(entry), name) for name, entry in entries.items()}
    return {name: former for name, former in names.items() if name != former}


def _memory_of(tensor: Tensor) -> Hashable:
    """The same for tensors that are one in memory; one of no elements is none."""
    if not tensor.numel():
        return id(tensor)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def _untied(tensors: Entries, held: Mapping[str, Any], component: str, folder: Path) -> Entries:
    """With those of several names under every one.  Raises StoreError where there is no such."""
    aliases = held.get("tied", {}).get(component, {})
    if lost := sorted(set(aliases.values()) - tensors.keys()):
        raise StoreError(
            f"{folder}/config.json ties {component} to {lost[0]!r}, which is not there; get it anew"
        )
    return {**tensors, **{alias: tensors[name] for alias, name in aliases.items()}}


def open_component(folder: Path, name: str, digest: str = "") -> Entries:
    """One component of `open_folder`; the others are not looked at.  Raises StoreError.

    digest: of a former file of it, which lies there still for the models that were trained on it.
    """
    held = document(Path(folder))
    if name not in held["sha256"]:
        raise StoreError(f"{folder} holds no {name!r}; copy the whole model folder again")
    sums = {name: digest or held["sha256"][name]}
    if base := held.get("deltas", {}).get(name):
        sums[base] = held["sha256"].get(base, "")
    return _opened(Path(folder), held | {"sha256": sums})[name]


def load(folder: Path) -> tuple[dict, dict[str, dict[str, Tensor]], dict]:
    """(config, component -> state dict, metadata).  Raises StoreError for missing or damaged
    files."""
    config, opened, metadata = open_folder(folder)
    tensors = {n: {k: e.read() for k, e in own.items()} for n, own in opened.items()}
    return config, tensors, metadata


def open_folder(folder: Path) -> tuple[dict, dict[str, Entries], dict]:
    """`load` with tensors that stay in their files until they are read."""
    held = document(Path(folder))
    return held["config"], _opened(Path(folder), held), held["facts"]


def _opened(folder: Path, held: Mapping[str, Any]) -> dict[str, Entries]:
    """The components of a document, whole."""
    stored = {n: open_safetensors(path) for n, path in _components(folder, held).items()}
    for name, base in held.get("deltas", {}).items():
        if name in stored:
            stored[name] = summed(stored[name], stored.get(base, {}) if base else None)
    return {name: _untied(own, held, name, folder) for name, own in stored.items()}


@contextmanager
def unfilled() -> Iterator[None]:
    """Modules made in it are on the meta device, and nothing is drawn for their weights."""
    with torch.device("meta"), _NothingDrawn():
        yield


@contextmanager
def at_most(parameters: int) -> Iterator[None]:
    """More made in it, by this thread, are a UsageError at once: a config may ask for any number of
    layers."""
    made, own = count(1), get_ident()

    def counted(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        if get_ident() == own and next(made) > parameters:
            raise UsageError("it asks for more layers than there are weights")

    hook = register_module_parameter_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


class _NothingDrawn(TorchFunctionMode):
    """Drawing on the meta device would load much of PyTorch's compiler: 70 MB and seconds."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def fill(
    module: nn.Module,
    entries: Mapping[str, Stored],
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """A module of the meta device with its tensors, read one by one and put on `device`.

    dtype: of its parameters that are floats (None: as they are stored); buffers stay float32.
    A parameter of several names is read once.  Raises LayoutError for names or shapes that differ.
    """
    wanted = module.state_dict(keep_vars=True)
    check({k: e.shape for k, e in entries.items()}, {k: tuple(v.shape) for k, v in wanted.items()})
    numbers = {n for n, v in wanted.items() if isinstance(v, nn.Parameter)}
    if odd := sorted(n for n in numbers if not entries[n].dtype.is_floating_point):
        raise LayoutError(f"weights are floats, but these are not: {some(odd)}")
    made: dict[int, nn.Parameter] = {}
    parameters = {}
    for name, place in wanted.items():
        if not isinstance(place, nn.Parameter):
            parameters[name] = entries[name].read(torch.float32).to(device)
        elif id(place) in made:
            parameters[name] = made[id(place)]
        else:
            value = entries[name].read(dtype).to(device)
            made[id(place)] = parameters[name] = nn.Parameter(value, place.requires_grad)
    module.load_state_dict(parameters, assign=True)
    _count_positions(module)
    return module.to(device)  # what is in no file is of a few bytes


def _count_positions(module: nn.Module) -> None:
    """Buffers that no file holds: transformers counts positions in them, and has BERT's tokens all
    of one type."""
    for name, buffer in list(module.named_buffers()):
        if not buffer.is_meta:
            continue
        parent, _, leaf = name.rpartition(".")
        if leaf not in ("position_ids", "token_type_ids"):
            raise StoreError(f"{name} of {type(module).__name__} is in no file")
        counted = torch.arange(buffer.shape[-1], device="cpu").expand(buffer.shape)
        counted = counted if leaf == "position_ids" else torch.zeros_like(counted)
        module.get_submodule(parent).register_buffer(leaf, counted, persistent=False)


def component(folder: Path, name: str, digest: str) -> Path:
    """Where the component with that sha256 lies."""
    return folder / f"{name}-{digest[:8]}.safetensors"


def fingerprint(folder: Path) -> str:
    """Twelve hex digits that name the weights and config of a folder."""
    held = document(Path(folder))
    named = json.dumps([held["config"], held["sha256"]], sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()[:12]


def set_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    """Other metadata for a model; its name by `fingerprint` stays."""
    held = document(Path(folder)) | {"facts": dict(metadata)}
    write_text(Path(folder) / "config.json", json.dumps(held, indent=2, ensure_ascii=False))


def write_module(path: Path, module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """A module's weights, whole or as the file was."""
    entries = {name: held(tensor) for name, tensor in module.state_dict().items()}
    with writing(path), atomic_write(path) as temporary:
        write_safetensors(temporary, entries, dtype)


def write_text(path: Path, text: str) -> None:
    """The file whole, or as it was; what is not Unicode, as in some names of files, is escaped."""
    with writing(path), atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_document(
    folder: Path,
    config: Mapping,
    metadata: Mapping,
    sums: Mapping[str, str],
    tied: Mapping[str, Mapping[str, str]],
    deltas: Mapping[str, str],
) -> None:
    document = {"config": dict(config), "facts": dict(metadata), "sha256": dict(sums)}
    if deltas:
        document["deltas"] = dict(deltas)
    if any(tied.values()):
        document["tied"] = {name: aliases for name, aliases in tied.items() if aliases}
    write_text(folder / "config.json", json.dumps(document, indent=2, ensure_ascii=False))


def _remove(folder: Path, names: set[str], sums: Mapping[str, str]) -> None:
    """The files of components of these names that `sums` has no more."""
    current = {component(folder, name, digest) for name, digest in sums.items()}
    for name in names:
        for path in set(folder.glob(f"{name}-????????.safetensors")) - current:
            path.unlink()


def _names(folder: Path) -> set[str]:
    """The components of the model that lies there, if any; what is no plain name is left out."""
    try:
        return set(filter(re.compile(r"\w+(\.\w+)*").fullmatch, document(folder)["sha256"]))
    except StoreError:
        return set()


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
    """config, metadata and sha256 of a model folder, as its config.json has them.

    Raises StoreError where it is no Document.
    """
    path = folder / "config.json"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        DOCUMENT.validate_python(held, strict=True)
    except (OSError, ValueError, RecursionError) as error:
        invalid = isinstance(error, ValidationError)
        reason = first_fault(error) if invalid else str(error).splitlines()[0]
        raise StoreError(f"{path} is not a model's config ({reason}); copy it again") from None
    return held


def _exact(name: str) -> bool:
    """Whitening is a measure and keeps its precision, and so are scales."""
    return name.startswith("whiten.") or name.endswith(SCALE)


def _write_component(folder: Path, name: str, entries: Entries, dtype: torch.dtype | None) -> str:
    """The sha256 that the file is named after."""
    with writing(folder / name), beside(folder / name) as temporary:
        digest = write_safetensors(temporary, entries, dtype, _exact)
        os.replace(temporary, component(folder, name, digest))
    return digest


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses within is a StoreError that names `path`."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{path} was not written: {error}") from None
