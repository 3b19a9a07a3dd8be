"""Where models come from and go to: shipped ones, folders, files of others, the hub.

Weights are read tensor by tensor, in the number format asked for, to where they will lie.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everyway import launched
from everyway.checkpoints import card, store
from everyway.checkpoints.tensor_files import Entries, size
from everyway.errors import UsageError
from everyway.layouts import convert
from everyway.lora import LoRA, lora_of, merged
from everyway.nets.precision import fast
from everyway.placement import (
    MEMORY,
    WORK_A_PIXEL,
    InFile,
    Placement,
    free_memory,
    is_network,
    memory_for,
    one_of_several,
)
from everyway.request import LORA as LORA_FILE
from everyway.system import System
from everyway.systems import HUB, cascade
from everyway.systems.ensemble import whole
from everyway.upscale import enlarges, side_of

SHIPPED, shipped = convert.SHIPPED, convert.shipped
DTYPES = convert.DTYPES
Formats = Mapping[str, Mapping[str, torch.dtype]]
"""Component -> tensor -> its number format in the file that it was read from."""


class ModelError(UsageError):
    """A model that cannot be found or loaded; the message says how to mend it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Loaded:
    """A system out of files.  hash: names its weights and config.  metadata: of its folder.

    load_options: what it was opened with, as plain data; `load` with it again gives the same model.
    note: in one line, how much it is and where it lies.  formats: of its files.
    """

    name: str
    hash: str
    system: System
    metadata: Mapping[str, Any]
    load_options: Mapping[str, Any]
    note: str
    formats: Formats


def folder_of(name_or_path: str) -> Path:
    """The model folder of ours of that name or path; ModelError where there is none."""
    folder = convert.shipped_folder(name_or_path) or _trained(Path(name_or_path))
    if (folder / "config.json").is_file():
        return folder
    names = ", ".join(shipped()) or "none is shipped"
    raise ModelError(
        f"there is no model {name_or_path!r}; shipped: {names}; or give a folder, a file of "
        "weights, or hf:owner/name for one on the hub"
    )


def _trained(path: Path) -> Path:
    """The model of a training's folder, or the path as it is; ModelError for that of a LoRA."""
    model = path / "model"
    if (model / "config.json").is_file() and not convert.is_ours(path):
        return model
    if (path / LORA_FILE).is_file():
        base = lora_of((path / LORA_FILE).read_bytes(), str(path)).facts.base
        raise ModelError(f"{path} holds a LoRA; give --model {base} --lora {path}")
    return path


def _source(name_or_path: str) -> str:
    """A path, or what hf: stands before.  ModelError for a mere name that is not shipped."""
    path = Path(name_or_path)
    if name_or_path.startswith(HUB):
        return name_or_path
    if path.exists() or "/" not in name_or_path:
        shipped_ = convert.shipped_folder(name_or_path)
        return str(shipped_ or (_trained(path) if path.exists() else folder_of(name_or_path)))
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name_or_path) and not path.suffix:
        raise ModelError(
            f"there is no folder {name_or_path!r}; check the path, or give {HUB}{name_or_path} for "
            "a model of the hub"
        )
    return name_or_path


def _named(path: Path) -> str:
    """A folder's or a file's; of a training's model that of the training."""
    if path.is_file():
        return path.stem
    path = path.resolve()
    return path.parent.name if path.name == "model" else path.name


def load(
    name_or_path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    memory: str = "auto",
    parts: Mapping[str, str | Path] | None = None,
    settings: Mapping[str, str] | None = None,
) -> Loaded:
    """A shipped name, the folder of a model or of a training, a file or folder of others, or
    hf:owner/name on the hub, ready to run.

    device: "cpu", "cuda", ...; "auto" is a GPU where there is one.
    dtype: fp32, bf16 or fp16, what weights are kept in; "auto" is bf16 on a GPU, else fp32.
    memory: a name in MEMORY.
    parts: part -> path or hf:owner/name of what is missing, as `everyway convert --part` has it.
    settings: what no file shows, as its --set; "layout" and "weights" are its flags of these names.
    Raises ModelError (unknown, or parts are missing), LayoutError and StoreError, one line each.
    """
    _known("dtype", dtype, ("auto", *DTYPES))
    _known("memory", memory, MEMORY)
    where = _device(device)
    dtype = dtype if dtype != "auto" else "fp32" if where.type == "cpu" else "bf16"
    source, parts = _source(os.fspath(name_or_path)), _texts(parts)
    path = convert.local(source)
    opened = _opened(path, parts, settings or {})
    bytes_ = {n: size(e, DTYPES[dtype]) for n, e in _once(opened).items()}
    free = free_memory(where)
    placed = Placement(device=where, memory=_memory(memory, free, bytes_, opened, dtype))
    system = convert.restored(opened, DTYPES[dtype], placed.home)
    if placed.sparing:
        _spare(system)
    if placed.memory == "disk":
        placed = replace(placed, files=_in_files(system, opened, path, DTYPES[dtype]))
    name = name_of(source)
    return Loaded(
        name=name,
        hash=_hash(path, opened, system, bool(parts or settings), DTYPES[dtype]),
        system=replace(system.placed(placed), config=opened.config["config"]),
        metadata=opened.metadata,
        load_options=_plain(dtype=dtype, parts=parts, settings=settings),
        note=f"{name}: {_note(placed, dtype, bytes_, free)}{convert.taken(opened)}",
        formats={c: {n: e.dtype for n, e in own.items()} for c, own in opened.components.items()},
    )


def hash_of(name_or_path: str | Path) -> str:
    """The hash that a model has when it is loaded; of one of ours no weight is read for it.

    Errors as of `load`.
    """
    path = convert.local(_source(os.fspath(name_or_path)))
    return store.fingerprint(path) if convert.is_ours(path) else load(path, "cpu", "fp32").hash


def name_of(name_or_path: str | Path) -> str:
    """What a model is called when it is loaded."""
    source = _source(os.fspath(name_or_path))
    return Path(source).name if source.startswith(HUB) else _named(convert.local(source))


def metadata_of(name_or_path: str | Path) -> Mapping[str, Any]:
    """The metadata of a model, none of whose weights is read.  Errors as of `load`."""
    return _opened(convert.local(_source(os.fspath(name_or_path))), {}, {}).metadata


def _texts(parts: Mapping[str, str | Path] | None) -> dict[str, str]:
    return {name: os.fspath(where) for name, where in (parts or {}).items()}


def _opened(path: Path, parts: Mapping[str, str], settings: Mapping[str, str]) -> convert.Opened:
    """With the components that lie in shipped models; ModelError for a codec alone."""
    load_options = dict(settings)
    layout, weights = load_options.pop("layout", ""), load_options.pop("weights", "")
    made = convert.open_model(str(path), layout, parts, weights, load_options)
    if not made.config["system"]:
        needed = " ".join(f"--part {part}" for part in convert.missing_parts(made))
        raise ModelError(f"{path} is a part of a model; give the rest: {needed}")
    elsewhere = made.config["config"].get("shared", {})
    found = {}
    for name, where in elsewhere.items():
        model, _, digest = where.partition("@")
        found[name] = store.open_component(SHIPPED / model, name, digest)
    return replace(made, components={**made.components, **found})


def _in_files(
    system: System, opened: convert.Opened, path: Path, dtype: torch.dtype
) -> dict[torch.nn.Module, InFile]:
    """The networks of several, each to be filled when it is used.  path: what was opened."""
    parts = {name: m for name, m in system.components.items() if one_of_several(name)}
    if not parts:
        raise ModelError("memory='disk' is for a network of several; choose low")
    folder = opened.folder
    sums = store.document(folder)["sha256"] if folder else {}
    files = {n: store.component(folder, n, sums[n]) for n in parts} if folder else {}
    return {
        module: InFile(
            fill=partial(store.fill, module, opened.components[name], dtype),
            path=files.get(name, path),
        )
        for name, module in parts.items()
    }


def _spare(system: System) -> None:
    """Codecs that can decode with less memory do."""
    for codec in system.codecs.values():
        if hasattr(codec, "spare"):
            codec.spare()


def save(
    folder: Path,
    system: System,
    metadata: Mapping[str, Any],
    formats: Formats | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """A model folder of ours with its card.

    formats: those of the files that the weights were read from.  Weights that were widened to
    compute with are written in them again.  dtype: one for all floats instead.
    Raises ModelError for a model whose experts lie in their files, and StoreError.
    """
    if system.placement and system.placement.files:
        raise ModelError("its experts lie in their files; load it without memory='disk' to save it")
    config, formats = {"system": system.name, "config": dict(system.config)}, formats or {}
    stored = system.weights().items()
    tensors = {name: _as_read(own, formats.get(name, {})) for name, own in stored}
    store.save(folder, config, tensors, metadata, dtype, system.deltas)
    card.write_card(folder)


def save_merged(
    folder: Path,
    base: Loaded,
    loras: Sequence[tuple[LoRA, float]],
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a model folder of `base` with LoRAs in its weights; its card names them.

    loras: each with its weight.  dtype: of the weights; None writes those that no LoRA changed as
    they were read, and the others in float32.
    Raises LoRAError for a LoRA of another model, and otherwise as `save` does.
    """
    for lora, _ in loras:
        lora.check_base(base.name, base.hash)
    network = merged(base.system.network, loras)
    system = replace(base.system, network=network, deltas={}, config=whole(base.system.config))
    own = {k: v for k, v in base.metadata.items() if k not in ("scores", "losses")}
    rows = [_merged_row(lora, weight) for lora, weight in loras]
    metadata = {
        **own,
        "name": folder.name,
        "init": base.name,
        "merged": [*own.get("merged", []), *rows],
    }
    save(folder, system, metadata, base.formats, dtype)


def _merged_row(lora: LoRA, weight: float) -> dict[str, Any]:
    """What the metadata of a model says of a LoRA in it."""
    path, facts = Path(lora.name), lora.facts.model_dump()
    name = path.resolve().parent.name if path.name == LORA_FILE else path.stem
    known = ("data", "steps", "batch", "samples", "seconds", "hardware", "licence")
    training = {key: facts[key] for key in known if key in facts}
    return {"lora": name, "weight": weight, "sha256": lora.digest, **training}


def _as_read(
    weights: Mapping[str, Tensor], formats: Mapping[str, torch.dtype]
) -> dict[str, Tensor]:
    """Each in the format that it was read in, where that still holds every number of it."""
    made: dict[Any, Tensor] = {}  # what is tied stays tied
    for name, own in weights.items():
        narrow = own.to(formats.get(name, own.dtype))
        made.setdefault(_place(own), narrow if torch.equal(narrow.to(own.dtype), own) else own)
    return {name: made[_place(own)] for name, own in weights.items()}


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """The same for tensors that are one in memory."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


def save_cascade(
    folder: Path, base: Loaded, stages: Sequence[Loaded], weights: str = "fp32"
) -> None:
    """One model folder of a model and of those that enlarge its pictures, in order, with its card.

    weights: a name in DTYPES, of what is written; or "int8": networks a byte a weight, the rest
    fp16.
    Raises ModelError for a stage that enlarges none.
    """
    made = {}
    for stage in stages:
        if not enlarges(stage.system):
            raise ModelError(f"{stage.name} enlarges no pictures; give a model that does")
        made[f"sr{side_of(stage.system)}"] = stage
    system = cascade.assembled(base.system, {name: s.system for name, s in made.items()})
    rows = [{"name": s.name, "losses": s.metadata.get("losses", {})} for s in stages]
    runs = [{**r, "stage": n} for n, s in made.items() for r in s.metadata.get("history", ())]
    own = {k: v for k, v in base.metadata.items() if k != "scores"}
    history = [*own.get("history", ()), *runs]
    metadata = {**own, "name": folder.name, "cascade": rows, "history": history}
    config = {"system": system.name, "config": dict(system.config)}
    whole = weights != "int8"
    deltas = system.deltas if whole else dict.fromkeys(_networks(system), "")
    dtype = DTYPES[weights] if whole else torch.float16
    store.save(folder, config, system.weights(), metadata, dtype, deltas)
    card.write_card(folder)


def _networks(system: System) -> list[str]:
    """The components that are networks, those of systems within this one too."""
    inner = [f"{name}.{n}" for name, own in system.systems.items() for n in own.networks]
    return [*system.networks, *inner]


def push(
    repo_id: str,
    system: System,
    metadata: Mapping[str, Any],
    formats: Formats | None = None,
    private: bool = False,
) -> str:
    """The model folder onto the hub, as `huggingface_hub` is logged in; returns its address."""
    from huggingface_hub import create_repo, upload_folder

    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder), system, metadata, formats)
        create_repo(repo_id, private=private, exist_ok=True)
        return str(upload_folder(repo_id=repo_id, folder_path=folder))


def _known(what: str, name: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise ModelError(f"{what} {name!r} is unknown; choose one of {', '.join(names)}")


def _device(name: str) -> torch.device:
    if name == "auto":
        own = f"cuda:{launched.local_rank()}" if launched.processes() > 1 else "cuda"
        name = own if torch.cuda.is_available() else "cpu"
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
    pixels = opened.metadata.get("image_size", 64) ** 2
    work = pixels * WORK_A_PIXEL * DTYPES[dtype].itemsize // 4
    return memory_for(free, network, codecs, work)


def _note(placed: Placement, dtype: str, bytes_: Mapping[str, int], free: int) -> str:
    slow = placed.device.type == "cpu" and dtype != "fp32" and not fast(DTYPES[dtype], "cpu")
    computed = ", computed in fp32" if slow else ""
    return (
        f"{sum(bytes_.values()) / 1e9:.2f} GB of weights in {dtype}{computed}, on {placed.device} "
        f"({free / 1e9:.1f} GB free): --memory {placed.memory}"
    )


def _hash(
    path: Path, opened: convert.Opened, system: System, changed: bool, dtype: torch.dtype
) -> str:
    """Twelve hex digits that name what was loaded: the fingerprint of a folder of ours, else of
    the config and a thousand numbers of every tensor, in which other weights differ."""
    if convert.is_ours(path) and not changed:
        return store.fingerprint(path)
    digest = hashlib.sha256(json.dumps(opened.config, sort_keys=True).encode())
    for component, module in sorted(system.components.items()):
        for name, tensor in module.state_dict().items():
            if tensor.is_meta:  # it lies in its file
                tensor = opened.components[component][name].read(dtype)
            few = tensor.flatten()[:: max(1, tensor.numel() // 1000)].cpu().to(torch.bfloat16)
            digest.update(f"{component}.{name}".encode() + few.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:12]


def _plain(**load_options: Any) -> dict[str, Any]:
    return {name: dict(v) if isinstance(v, Mapping) else v for name, v in load_options.items() if v}
