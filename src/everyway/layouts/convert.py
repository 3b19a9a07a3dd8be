"""Models out of others' files: opened, kept as a folder of ours, written back as they were.

Nothing is read before it is wanted: a conversion holds one tensor at a time, and a model that is
filled holds its weights once, in the number format asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from everyway.checkpoints import card, store
from everyway.checkpoints.tensor_files import Entries, LayoutError, Stored, StoreError
from everyway.errors import UsageError
from everyway.layouts import file_layout, files
from everyway.layouts.file_layout import FileLayout, Part, Whole
from everyway.placement import CPU, NOWHERE
from everyway.system import System
from everyway.systems import HUB, MissingParts, system_module

SHIPPED = Path(__file__).parents[1] / "shipped"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TABLES = {"tokenizer": "text", "reader": "text", "word_pieces": "text", "used": "image"}
"""Tokenizers, and the list of a codec's codes in use -> the component whose settings have it."""
TABLES_OF = {"versatile": {"tokenizer": "text_condition"}}
"""System -> where it has them elsewhere."""
CODECS = {"vq_diffusion": {"image": "codec", "text": "text"}}
"""System -> component -> the field of its config with the settings of the component's codec; in
other systems all lie in `codec_config`."""
PIPELINE = {
    "unet": "network",
    "image_unet": "image_unet",
    "text_unet": "text_unet",
    "transformer": "network",
    "learned_classifier_free_sampling_embeddings": "null",
    "vae": "image",
    "vqvae": "image",
    "image_encoder": "image_embed",
    "text_decoder": "text",
    "text_encoder": "text_states",
    "tokenizer": "tokenizer",
    "clip_tokenizer": "tokenizer",
    "text_tokenizer": "reader",
}
"""Folder in a pipeline of diffusers -> part."""
CONTEXTS = {"image_encoder": "image_condition", "text_encoder": "text_condition"}
"""The same, of a pipeline with two networks."""
ASIDE = "aside"
"""The component of tensors that no network reads, as "part:their name"."""
HINTS = {"heads", "drawn_size", "side", "null"}
"""Settings of a network that its tensors' shapes do not show, which a user may have to tell."""
FAULTS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a config of wrong kinds and sizes raises where it is used."""


LARGEST = 2**20
"""A number that any config may hold; one above it must be matched by as many weights."""


def _table() -> ModuleType:
    """Imported late: models of ours need nothing of it."""
    from everyway.layouts import table

    return table


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A model whose tensors are still in their files.

    config: {"system", "config"} as in a model folder; a lone codec has no system.
    components: name -> tensors.  metadata: of the folder; "source" has what writing back needs.
    folder: of ours that has this config, if any.
    """

    config: Mapping[str, Any]
    components: Mapping[str, Entries]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def parameters(self) -> int:
        """Of all components, buffers included and tied ones counted once."""
        return sum(prod(entry.shape) for own in self.weights.values() for entry in own)

    @property
    def weights(self) -> dict[str, set[Stored]]:
        """Component -> what is read to fill it."""
        return {k: set(v.values()) for k, v in self.components.items() if k != ASIDE}


# -- opening ----------------------------------------------------------------------------------


def open_model(
    source: str,
    layout: str = "",
    parts: Mapping[str, str] | None = None,
    weights: str = "",
    hints: Mapping[str, Any] | None = None,
) -> Opened:
    """A shipped model or folder of ours, a foreign file or folder, or a pipeline of diffusers.

    layout: the name of a row of LAYOUTS; "" recognises it.  parts: what a layout or TABLES names ->
    path or hf:owner/name of what is missing.  weights: which set of a file with several.  hints:
    settings that no shapes show, such as heads; {"null": "fresh"} gives a network that learned no
    null one to learn.
    Raises ValueError (LayoutError) for what cannot be used, StoreError for damaged files.
    """
    path, wanted = shipped_folder(source) or local(source), _known(parts or {})
    hints = _hints(hints or {})
    begun = Opened(config={"system": "", "config": {}}, components={})
    if (path / "model_index.json").is_file():
        wanted = _inside(path) | wanted
        _unread(path, layout=layout, weights=weights, **hints)
        if not wanted:
            raise UsageError(f"{path} holds no part that is known; get the pipeline anew")
    elif is_ours(path):
        config, components, metadata = store.open_folder(path)
        begun = Opened(config=config, components=components, metadata=metadata, folder=path)
        _unread(path, layout=layout, weights=weights, **hints)
        with _sound(begun):
            whole = {name: config[name] for name in ("system", "config")}
            _check_numbers(whole, max(LARGEST, begun.parameters))
        missing_parts(begun)
    else:
        begun = _with_file(begun, path, layout, "", weights, hints)
        _heard(begun, path, hints)
    for name in _in_order(wanted):
        if name in TABLES:
            begun = _with_table(begun, name, wanted[name])
        else:
            begun = _with_file(begun, local(wanted[name]), "", name, "", {})
    return _with_null(begun) if "null" in hints else begun


def shipped() -> list[str]:
    """Names of the models inside the package."""
    return sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))


def shipped_folder(name: str) -> Path | None:
    """Of the shipped model of that name; "default" is the best one."""
    names = shipped()
    if name == "default" and names:
        name = "mini" if "mini" in names else names[0]
    return SHIPPED / name if name in names else None


def _hints(hints: Mapping[str, Any]) -> dict[str, Any]:
    """LayoutError for a setting that there is not, and for a value that it cannot have."""
    if odd := sorted(set(hints) - HINTS):
        raise LayoutError(
            f"--set {', '.join(odd)}: no file needs it; known are {', '.join(sorted(HINTS))}"
        )
    for name, value in hints.items():
        if name == "null" and value != "fresh":
            raise LayoutError(f"null={value}: only null=fresh can be set; leave it out")
        if name != "null" and not re.fullmatch("[1-9][0-9]{0,5}", str(value)):
            raise LayoutError(f"{name}={value}: give a whole number")
    return dict(hints)


def _heard(model: Opened, path: Path, hints: Mapping[str, Any]) -> None:
    """LayoutError for a hint that no layout of what was read takes."""
    rows = {row["layout"] for row in model.metadata["source"].values()}
    taken = {hint for layout in _table().LAYOUTS if layout.name in rows for hint in layout.hints}
    if odd := sorted(set(hints) - taken - {"null"}):
        raise LayoutError(f"--set {', '.join(odd)}: {path} has nothing that reads it; leave it out")


def _unread(path: Path, **hints: Any) -> None:
    """LayoutError for what was told of files that say it themselves."""
    if odd := [f"{k}={v}" for k, v in hints.items() if v and k != "null"]:
        raise LayoutError(f"{', '.join(odd)}: {path} says it itself; leave it out")


@contextmanager
def _sound(model: Opened, *fair: type[Exception]) -> Iterator[None]:
    """What the config of a folder of ours raises within is one StoreError that names it.

    fair: what is no fault of the config.
    """
    tensors = sum(map(len, model.components.values()))
    try:
        with store.at_most(2 * tensors + 1000):  # tied ones count twice, shared ones lie elsewhere
            yield
    except FAULTS as error:
        if model.folder is None or isinstance(error, (MissingParts, StoreError, *fair)):
            raise
        reason = re.sub(r"^\S+\(\) ", "", " ".join(str(error).split())) or type(error).__name__
        reason += " is missing" if isinstance(error, KeyError) else ""
        raise StoreError(f"{model.folder / 'config.json'}: {reason}; get the model anew") from None


def _check_numbers(config: Any, largest: int, where: str = "") -> None:
    """ValueError for a whole number beyond `largest`, which no weights can be of."""
    inner = config.items() if isinstance(config, Mapping) else enumerate(config)
    for name, value in inner:
        if isinstance(value, int) and value > largest:
            raise UsageError(f"{where}{name} is {value:.6g}, which the weights are not of")
        if isinstance(value, (Mapping, list)):
            _check_numbers(value, largest, f"{where}{name}.")


def _known(parts: Mapping[str, str]) -> dict[str, str]:
    """ValueError for a part that there is not."""
    if wrong := sorted(set(parts) - set(_in_order(parts))):
        raise UsageError(f"part {wrong[0]!r} is unknown; choose one of {', '.join(_parts())}")
    return dict(parts)


def _in_order(parts: Mapping[str, str]) -> list[str]:
    """Weights first, each in the order of the layouts."""
    return [name for name in _parts() if name in parts] if parts else []


def _parts() -> tuple[str, ...]:
    return (*dict.fromkeys(layout.part for layout in _table().LAYOUTS), *TABLES)


def _inside(pipeline: Path) -> dict[str, str]:
    """Part -> its folder.  A null that was not learned is a folder without tensors."""
    names = PIPELINE | (CONTEXTS if (pipeline / "image_unet").is_dir() else {})
    found = {name: pipeline / k for k, name in names.items() if (pipeline / k).is_dir()}
    if "null" in found and not files.config_of(found["null"]).get("learnable", True):
        del found["null"]
    return {name: str(folder) for name, folder in found.items()}


def is_ours(path: Path) -> bool:
    """Whether it is a model folder of ours, be it damaged."""
    config = path / "config.json"
    if not config.is_file():
        return False
    text = config.read_text("utf-8", errors="replace")
    return any(path.glob(f"*-{8 * '[0-9a-f]'}.safetensors")) or '"sha256"' in text


def local(where: str) -> Path:
    """A path, or the folder that a model of the hub was downloaded to, where hf:owner/name asks."""
    if not where.startswith(HUB):
        return Path(where)
    from huggingface_hub import snapshot_download

    name, kinds = where.removeprefix(HUB), ("*.json", "*.txt", "*.model", "*.safetensors")
    try:
        patterns = [*kinds, *(f"*/{kind}" for kind in kinds)]
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        if not list(folder.rglob("*.safetensors")):  # models of 2022 have pickled weights alone
            folder = Path(snapshot_download(name, allow_patterns=["*.bin", "*/*.bin"]))
        return folder
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{where!r} is not a model of the hub that can be had ({reason})"
        ) from None


def _with_file(
    model: Opened, path: Path, layout: str, part: str, weights: str, hints: Mapping[str, Any]
) -> Opened:
    """The model with what a file holds: one part, or all parts of a file of several, or of these
    the one asked for."""
    source = files.open_tensors(path, weights)
    names, _, _ = file_layout.without_prefix(source.entries)
    wholes = () if layout else _table().WHOLES
    parts = next(filter(None, (whole.split(names) for whole in wholes)), {})
    if not parts:
        return _with_tensors(model, source, path, layout, part, hints)
    if part and part not in parts:
        raise LayoutError(f"{path} holds no {part}; it holds {', '.join(parts)}")
    for name in [part] if part else parts:
        own = source._replace(entries=parts[name])
        model = _with_tensors(model, own, path, "", name, hints)
    return model


def _with_tensors(
    model: Opened,
    source: files.Source,
    path: Path,
    layout: str,
    part: str,
    hints: Mapping[str, Any],
) -> Opened:
    """The model with the tensors of one part, their layout named or recognised."""
    if layout:
        chosen = file_layout.named(_table().LAYOUTS, layout)
    else:
        fitting = [row for row in _table().LAYOUTS if part in ("", row.part)]
        chosen = file_layout.recognised(source.entries, fitting, path)
    try:
        read = file_layout.read(source.entries, chosen, {**source.config, **hints})
        return _with_part(model, read, path, source.taken)
    except LayoutError as error:
        raise LayoutError(f"{path} as {chosen.name}: {error}") from None
    except FAULTS as error:
        if not source.config:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LayoutError(f"{path / 'config.json'} as {chosen.name}: {reason}; mend it") from None


def _with_part(model: Opened, part: Part, path: Path, taken: str) -> Opened:
    """The model with a part that was read, in place of what it had there; the source on record."""
    layout, name = part.layout, part.layout.part
    kept = {k: v for k, v in _of(model, layout).items() if not k.startswith(layout.places)}
    if not all(k.startswith(layout.shared) for k in kept):
        _check_shared(kept, part.entries)
    aside = model.components.get(ASIDE, {})
    aside = {k: v for k, v in aside.items() if not k.startswith(f"{name}:")}
    aside |= {f"{name}:{k}": v for k, v in part.aside.items()}
    components = {**model.components, **_parted(layout, kept | part.entries), ASIDE: aside}
    row = {
        "file": path.name,
        "layout": layout.name,
        "preset": layout.preset(part.settings),
        "tensors": len(part.entries),
        "aside": len(part.aside),
        "dropped": part.dropped,
        "prefix": part.prefix,
        "weights": taken,
    }
    metadata = dict(model.metadata)
    metadata["source"] = {**metadata.get("source", {}), name: row}
    config = _config(model.config, layout, part.settings)
    return Opened(
        config=config,
        components={k: v for k, v in components.items() if v},
        metadata=metadata | _metadata(config),
    )


def _of(model: Opened, layout: FileLayout) -> Entries:
    """The tensors of the component that a layout is of, or of those that it is nested in."""
    if not layout.nested:
        return dict(model.components.get(layout.component, {}))
    start = f"{layout.component}."
    own = {k.removeprefix(start): v for k, v in model.components.items() if k.startswith(start)}
    return {f"{part}.{name}": e for part, entries in own.items() for name, e in entries.items()}


def _parted(layout: FileLayout, entries: Entries) -> dict[str, Entries]:
    """The inverse of `_of`: component -> its tensors."""
    if not layout.nested:
        return {layout.component: entries}
    made: dict[str, Entries] = {}
    for name, entry in entries.items():
        part, _, rest = name.partition(".")
        made.setdefault(f"{layout.component}.{part}", {})[rest] = entry
    return made


def _check_shared(kept: Entries, given: Entries) -> None:
    """LayoutError where a file's copy of what another one holds is none."""
    for name in sorted(kept.keys() & given.keys()):
        one, other = (entries[name].read(torch.float32) for entries in (kept, given))
        if not torch.equal(one, other):
            raise LayoutError(f"{name} (our name) is not that of the other part; give parts of one "
                              "model")  # fmt: skip


def _with_table(model: Opened, name: str, where: str) -> Opened:
    from everyway.codecs.image_vq import used_codes
    from everyway.codecs.published_tokens import tokenizer_json

    path = local(where)
    table = used_codes(path) if name == "used" else tokenizer_json(str(path))
    component = TABLES_OF.get(model.config["system"], {}).get(name, TABLES[name])
    config = _with_codec(model.config, component, {name: table})
    return replace(model, config=config, folder=None)


def _with_null(model: Opened) -> Opened:
    """The model with a null to train, of the network of VQ-Diffusion."""
    from everyway.layouts import vq_network
    from everyway.systems import vq_diffusion

    if model.config["system"] != "vq_diffusion":
        raise UsageError("only networks of VQ-Diffusion learn a null; leave null=fresh out")
    own = model.config["config"]
    network, entries = vq_network.with_null(own["network"], model.components["network"])
    config = asdict(vq_diffusion.full(network, own["codec"], own["text"]))
    components = {**model.components, "network": entries}
    config = {**model.config, "config": config}
    return replace(model, config=config, components=components, folder=None)


def _config(config: Mapping[str, Any], layout: FileLayout, settings: Mapping[str, Any]) -> dict:
    if layout.component != "network":
        return _with_codec(config, layout.component, settings)
    made = system_module(layout.system).assembled(
        settings, config.get("config", {}), _codecs(config)
    )
    return {"system": layout.system, "config": made}


def _codecs(config: Mapping[str, Any]) -> dict[str, Any]:
    """Component -> settings of its codec, where they are known."""
    own, fields = config.get("config", {}), CODECS.get(config.get("system", ""))
    if fields is None:
        return dict(own.get("codec_config", {}))
    return {component: own[field] for component, field in fields.items() if own[field]}


def _with_codec(config: Mapping[str, Any], component: str, settings: Mapping[str, Any]) -> dict:
    """The config with these settings among those of a component's codec."""
    own, system = dict(config.get("config", {})), config.get("system", "")
    codecs = _codecs(config)
    made = {**codecs.get(component, {}), **settings}
    if system in CODECS:
        own |= {CODECS[system][component]: made}
    else:
        own |= {"codec_config": {**codecs, component: made}}
    return {"system": system, "config": own}


def _metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    if not config["system"]:
        return {}
    return {"image_size": system_module(config["system"]).image_size(config["config"])}


def missing_parts(model: Opened) -> list[str]:
    """The parts, as PART=FILE, that a model still needs before it can be run."""
    if not model.config["system"]:
        tokens = "quantiser" in _codecs(model.config).get("image", {})
        return ["network=coco_pretrained.pth" if tokens else "network=uvit_v1.pth"]
    missing = _system(model).missing_parts
    with _sound(model):
        return missing(model.config["config"])


def _system(model: Opened) -> ModuleType:
    """A function that a system's module lacks is no fault of a config, and is not met within."""
    with _sound(model):
        return system_module(model.config["system"])


def taken(model: Opened) -> str:
    """Which of several sets of weights was taken of a file, in words; "" where there was one."""
    rows = model.metadata.get("source", {}).items() if model.folder is None else ()
    sets = [f"; {name} of {row['weights']}" for name, row in rows if row.get("weights")]
    return "".join(dict.fromkeys(sets))


# -- using ------------------------------------------------------------------------------------


def save(model: Opened, folder: Path, dtype: torch.dtype | None = None) -> None:
    """As a model folder of ours.  dtype: of the weights; None keeps each as it is.

    Raises as `restored` does, before anything is written, where the parts do not fit together.
    """
    if model.config["system"] and not missing_parts(model):
        _built(model)
    store.save_stored(folder, model.config, model.components, model.metadata, dtype)
    if model.config["system"]:
        card.write_card(Path(folder))


def restored(
    model: Opened,
    dtype: torch.dtype | None = None,
    home: Callable[[str], torch.device] = lambda component: CPU,
) -> System:
    """The system, its networks made on the meta device and filled tensor by tensor.

    dtype: of the weights; None keeps each as it is, or float32 where a part has several formats.
    home: component -> the device that it is filled on, or NOWHERE.
    Raises MissingParts where it lacks a codec, LayoutError where weights do not fit its config, and
    StoreError for either of the two in a damaged folder of ours.
    """
    system = _built(model)
    for name, module in system.components.items():
        if home(name) == NOWHERE:  # it is filled when it is used
            module.eval().requires_grad_(False)
            continue
        try:
            entries = model.components.get(name, {})
            store.fill(module, entries, dtype or _one_format(module, entries), home(name))
        except LayoutError as error:
            with _sound(model):
                raise LayoutError(f"{name} does not fit the model's config: {error}") from None
        module.eval().requires_grad_(False)
    return system


def _built(model: Opened) -> System:
    """On the meta device.  LayoutError for parts that are not of this system, or of one another."""
    build = _system(model).build
    with _sound(model), store.unfilled():
        try:
            system = build(model.config["config"])
        except TypeError as error:
            if model.folder or not (odd := re.search(r"argument '(\w+)'", str(error))):
                raise
            raise _not_read(model, odd[1]) from None
    if odd := sorted(model.weights.keys() - system.components.keys()):
        raise _not_read(model, ", ".join(odd))
    return system


def _not_read(model: Opened, what: str) -> LayoutError:
    reason = f"a part was given that a {model.config['system']} model does not read ({what})"
    return LayoutError(f"{reason}; leave that --part out")


def _one_format(module: torch.nn.Module, entries: Entries) -> torch.dtype | None:
    own = {entries[n].dtype for n, _ in module.named_parameters() if n in entries}
    return torch.float32 if len(own) > 1 else None


def write_back(model: Opened, origin: str, folder: Path) -> list[Path]:
    """The files that the authors' or diffusers' code reads; returns what was written.

    Raises LayoutError, before anything is written, where a component cannot be held by any of
    their layouts.
    """
    with _sound(model, LayoutError):
        parts = _held_by(model, origin)
        configs = {layout: file_layout.beside(layout, own) for layout, (own, _) in parts.items()}
    if whole := _whole(model, origin):
        made = {layout.part: entries for layout, (_, entries) in parts.items()}
        return [file_layout.write_whole(folder, whole, made)]
    return [
        file_layout.write(folder, layout, v, configs[layout]) for layout, (_, v) in parts.items()
    ]


def _whole(model: Opened, origin: str) -> Whole | None:
    """The file of that origin that holds all of a model, where there is one."""
    wanted = origin, model.config["system"]
    return next((w for w in _table().WHOLES if (w.origin, w.system) == wanted), None)


def _held_by(model: Opened, origin: str) -> dict[FileLayout, tuple[Mapping[str, Any], Entries]]:
    """Layout of an origin -> settings and tensors of the part of a model that it holds."""
    system, parts, refused = model.config["system"], {}, {}
    whole = _whole(model, origin)
    for layout in _table().LAYOUTS:
        own, there = _of(model, layout), whole is not None and layout.name in whole.also
        if not (there or layout.origin == origin) or layout.system not in ("", system):
            continue
        if not any(name.startswith(layout.places[0]) for name in own):
            continue
        settings = _settings(model.config, layout)
        if layout.fits(settings):
            parts[layout] = settings, _theirs(model, layout, own, settings)
        else:
            refused[layout.part] = layout.component
    held = {layout.part for layout in parts}
    if wrong := [name for part, name in refused.items() if part not in held]:
        raise LayoutError(f"no layout of {origin} can hold this model's {wrong[0]}")
    if not parts:
        raise LayoutError(f"no part of this model has a layout of {origin}")
    return parts


def _theirs(
    model: Opened, layout: FileLayout, own: Entries, settings: Mapping[str, Any]
) -> Entries:
    source = model.metadata.get("source", {}).get(layout.part, {})
    if source.get("layout") != layout.name:
        return file_layout.theirs(layout, own, settings)
    aside = _aside(model, layout.part)
    return file_layout.theirs(layout, own, settings, aside, source.get("prefix", ""))


def _settings(config: Mapping[str, Any], layout: FileLayout) -> Mapping[str, Any]:
    if layout.component != "network":
        return _codecs(config)[layout.component]
    own = asdict(system_module(layout.system).read(config["config"]))
    return own["network"] if layout.system == "vq_diffusion" else own


def _aside(model: Opened, part: str) -> Entries:
    kept = model.components.get(ASIDE, {})
    start = f"{part}:"
    return {k.removeprefix(start): v for k, v in kept.items() if k.startswith(start)}
