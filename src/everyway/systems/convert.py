"""Models out of others' files: opened, kept as a folder of ours, written back as they were.

Nothing is read before it is wanted: a conversion holds one tensor at a time, and a model that is
filled holds its weights once, in the number format asked for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch

from everyway.checkpoints import foreign, store
from everyway.checkpoints.foreign import Layout, Part
from everyway.checkpoints.keymap import LayoutError
from everyway.checkpoints.tensor_files import Entries
from everyway.system import System
from everyway.systems import builder, unidiffuser
from everyway.systems.layouts import LAYOUTS

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOKENIZERS = ("tokenizer", "reader")
PARTS = (*dict.fromkeys(layout.part for layout in LAYOUTS), *TOKENIZERS)
"""What `parts` may name: weights by their layouts, and the tokenizers of a text latent."""
PIPELINE = {
    "unet": "network",
    "vae": "image",
    "image_encoder": "image_embed",
    "text_decoder": "text",
    "text_encoder": "text_states",
    "clip_tokenizer": "tokenizer",
    "text_tokenizer": "reader",
}
"""Folder in a pipeline of diffusers -> part."""
ASIDE = "aside"
"""The component of tensors that no network reads, as "part:their name"."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Opened:
    """A model whose tensors are still in their files.

    config: {"system", "config"} as in a model folder; a lone codec has no system.
    components: name -> tensors.  facts: of the folder; "source" has what writing back needs.
    """

    config: Mapping[str, Any]
    components: Mapping[str, Entries]
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Of all components, buffers included."""
        own = [v for k, v in self.components.items() if k != ASIDE]
        return sum(prod(entry.shape) for entries in own for entry in entries.values())


# -- opening ----------------------------------------------------------------------------------


def open_model(
    source: str,
    layout: str = "",
    parts: Mapping[str, str] | None = None,
    weights: str = "",
    told: Mapping[str, Any] | None = None,
) -> Opened:
    """A model folder of ours, a foreign file, a folder of one, or a whole pipeline of diffusers.

    layout: the name of a row of LAYOUTS; "" recognises it.  parts: name in PARTS -> path or hub id
    of what the source lacks.  weights: which set of a file with several.  told: settings that no
    shapes show, such as heads.
    Raises ValueError (LayoutError) for what cannot be used, StoreError for damaged files.
    """
    if wrong := sorted(set(parts or {}) - set(PARTS)):
        raise ValueError(f"part {wrong[0]!r} is unknown; choose one of {', '.join(PARTS)}")
    path, wanted = local(source), dict(parts or {})
    begun = Opened(config={}, components={})
    if (path / "model_index.json").is_file():
        inside = {name: str(path / k) for k, name in PIPELINE.items() if (path / k).is_dir()}
        wanted = inside | wanted
    elif _is_ours(path):
        config, components, facts = store.open_folder(path)
        begun = Opened(config=config, components=components, facts=facts)
    else:
        begun = _with_part(begun, path, layout, "", weights, told or {})
    for name in sorted(wanted, key=PARTS.index):
        if name in TOKENIZERS:
            begun = _with_tokenizer(begun, name, wanted[name])
        else:
            begun = _with_part(begun, local(wanted[name]), "", name, "", {})
    return begun


def _is_ours(path: Path) -> bool:
    return (path / "config.json").is_file() and bool(list(path.glob("*-????????.safetensors")))


def local(where: str) -> Path:
    """A path, or the folder that a hub id was downloaded to."""
    path = Path(where)
    if path.exists() or path.suffix or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", where):
        return path
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors", "*/*.json", "*/*.safetensors"]
    try:
        return Path(snapshot_download(where, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{where!r} is neither a path nor a model of the hub that can be had ({reason})"
        ) from None


def _with_part(
    model: Opened, path: Path, layout: str, part: str, weights: str, told: Mapping[str, Any]
) -> Opened:
    entries, beside = foreign.open_tensors(path, weights)
    if layout:
        chosen = foreign.named(LAYOUTS, layout)
    else:
        fitting = [row for row in LAYOUTS if part in ("", row.part)]
        chosen = foreign.recognised(entries, fitting, path)
    try:
        return _joined(model, foreign.read(entries, chosen, {**beside, **told}), path)
    except LayoutError as error:
        raise LayoutError(f"{path} as {chosen.name}: {error}") from None


def _joined(model: Opened, part: Part, path: Path) -> Opened:
    layout, name = part.layout, part.layout.part
    had = model.components.get(layout.component, {})
    kept = {k: v for k, v in had.items() if not k.startswith(layout.places)}
    aside = model.components.get(ASIDE, {})
    aside = {k: v for k, v in aside.items() if not k.startswith(f"{name}:")}
    aside |= {f"{name}:{k}": v for k, v in part.aside.items()}
    components = {**model.components, layout.component: kept | part.entries, ASIDE: aside}
    row = {
        "file": path.name,
        "layout": layout.name,
        "preset": layout.preset(part.settings),
        "tensors": len(part.entries),
        "aside": len(part.aside),
        "dropped": part.dropped,
        "prefix": part.prefix,
    }
    facts = dict(model.facts)
    facts["source"] = {**facts.get("source", {}), name: row}
    config = _config(model.config, layout, part.settings)
    return Opened(
        config=config,
        components={k: v for k, v in components.items() if v},
        facts=facts | _facts(config),
    )


def _with_tokenizer(model: Opened, name: str, where: str) -> Opened:
    from everyway.codecs.published_tokens import tokenizer_json

    spec = tokenizer_json(str(local(where)))
    config = _with_codec(model.config, "text", {name: spec})
    return Opened(config=config, components=model.components, facts=model.facts)


def _config(config: Mapping[str, Any], layout: Layout, settings: Mapping[str, Any]) -> dict:
    if layout.component != "network":
        return _with_codec(config, layout.component, settings)
    codecs = dict(config.get("config", {}).get("codec_config", {}))
    if layout.system == "unidiffuser":
        own: dict[str, Any] = asdict(unidiffuser.full(settings, codecs))
    else:
        own = {**settings, "codec_config": codecs}
    return {"system": layout.system, "config": own}


def _with_codec(config: Mapping[str, Any], component: str, settings: Mapping[str, Any]) -> dict:
    """The config with these settings among those of a component's codec."""
    own = dict(config.get("config", {}))
    codecs = dict(own.get("codec_config", {}))
    codecs[component] = {**codecs.get(component, {}), **settings}
    return {"system": config.get("system", ""), "config": {**own, "codec_config": codecs}}


def _facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """image_size: side in pixels of the pictures that the model reads."""
    own = config["config"]
    if config["system"] == "unidiffuser":
        return {"image_size": own["image_size"] * _shrinks(own)}
    if config["system"] == "uvit":
        (picture,) = [s for s in own["network"]["layout"] if s["kind"] == "Patches"]
        return {"image_size": picture["size"] * (1 if picture["channels"] == 3 else _shrinks(own))}
    return {}


def _shrinks(own: Mapping[str, Any]) -> int:
    """Pixels a latent, along a side; 8 where the codec is not given yet."""
    autoencoder = own["codec_config"].get("image", {}).get("autoencoder", {})
    return 2 ** (len(autoencoder.get("block_out_channels", range(4))) - 1)


def lacking(model: Opened) -> list[str]:
    """The parts, as PART=FILE, that a model still needs before it can be run."""
    if not model.config["system"]:
        return ["network=uvit_v1.pth"]
    if model.config["system"] == "unidiffuser":
        return unidiffuser.lacking(model.config["config"]["codec_config"])
    return []


# -- using ------------------------------------------------------------------------------------


def save(model: Opened, folder: Path, dtype: torch.dtype | None = None) -> None:
    """As a model folder of ours.  dtype: of the weights; None keeps each as it is."""
    store.save_stored(folder, model.config, model.components, model.facts, dtype)


def restored(model: Opened, dtype: torch.dtype | None = None) -> System:
    """The system, its networks made on the meta device and filled tensor by tensor.

    Raises ValueError where it lacks a codec, LayoutError where weights do not fit its config.
    """
    with torch.device("meta"):
        system = builder(model.config["system"])(model.config["config"])
    for name, module in {"network": system.network, **system.codecs}.items():
        try:
            store.fill(module, model.components.get(name, {}), dtype)
        except LayoutError as error:
            raise LayoutError(f"{name} does not fit the model's config: {error}") from None
        module.eval().requires_grad_(False)
    return system


def write_back(model: Opened, origin: str, folder: Path) -> list[Path]:
    """The files that the authors' or diffusers' code reads; returns what was written.

    Raises LayoutError where a component cannot be held by any of their layouts.
    """
    system, written = model.config["system"], []
    for layout in LAYOUTS:
        own = model.components.get(layout.component, {})
        if layout.origin != origin or layout.system not in ("", system):
            continue
        if not any(name.startswith(layout.places) for name in own):
            continue
        source = model.facts.get("source", {}).get(layout.part, {})
        same = source.get("layout") == layout.name
        settings = _settings(model.config, layout)
        entries = foreign.theirs(
            layout,
            own,
            settings,
            _aside(model, layout.part) if same else {},
            source.get("prefix", "") if same else "",
        )
        written.append(foreign.write(folder, layout, entries, settings))
    if not written:
        raise LayoutError(f"no part of this model has a layout of {origin}")
    return written


def _settings(config: Mapping[str, Any], layout: Layout) -> Mapping[str, Any]:
    own = config["config"]
    return own if layout.component == "network" else own["codec_config"][layout.component]


def _aside(model: Opened, part: str) -> Entries:
    kept = model.components.get(ASIDE, {})
    start = f"{part}:"
    return {k.removeprefix(start): v for k, v in kept.items() if k.startswith(start)}
