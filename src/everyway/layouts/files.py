"""Others' files and folders: where their weights lie, and which of several sets is taken."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from everyway.checkpoints.tensor_files import (
    Entries,
    LayoutError,
    StoreError,
    open_pth,
    open_safetensors,
)
from everyway.errors import UsageError

AVERAGE = re.compile(r"(?<![a-z])(ema|swa|polyak|avg|averaged?|shadow)(?![a-z])", re.IGNORECASE)
"""In what a file calls its averages, which are what is sampled: nnet_ema, ema_model, ema.shadow."""
STATE = re.compile(r"optim|sched|scaler", re.IGNORECASE)
"""In what it calls the state of a training, which is never taken unless named."""
USUAL = ("state_dict", "model", "nnet", "params")
"""What it calls its weights, where there are no averages."""
NAMES = ("diffusion_pytorch_model", "model", "pytorch_model", "nnet_ema")
"""What a folder calls its weights; the last is in the checkpoints of U-ViT's training."""
KINDS = (".safetensors", ".bin", ".pth")
PLACES = re.compile(
    rf"({'|'.join(NAMES)})(\.\w+)?({'|'.join(map(re.escape, KINDS))})(\.index(\.\w+)?\.json)?"
)
"""A file of a folder: name, variant (.fp16), kind, and whether it is an index of several."""


class Source(NamedTuple):
    """config: the config.json beside them.  taken: which of several sets it is, in words."""

    entries: Entries
    config: dict[str, Any]
    taken: str = ""


def open_tensors(path: Path, weights: str = "") -> Source:
    """The tensors of a file, or of a folder of diffusers, transformers or U-ViT's training.

    weights: which set of a file with several; "" is the average, where there is one, together with
    what it is not an average of.
    Raises ValueError where there is nothing, LayoutError where there is no such set, StoreError
    for what is damaged or refused.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"there is no file or folder {str(path)!r}; check the path")
    if not path.is_dir():
        return _chosen(_opened(path), weights, path)
    place = _weights_of(path)
    return _chosen(_opened(place), weights, path)._replace(config=config_of(path))


def _weights_of(folder: Path) -> Path:
    """The file of a folder that is taken, or the index of several: full precision goes first, then
    safetensors."""
    found = [(_order(m), path) for path in folder.iterdir() if (m := PLACES.fullmatch(path.name))]
    if not found:
        raise UsageError(
            f"{folder} holds no weights; a folder has {', '.join(NAMES)} as {', '.join(KINDS)}"
        )
    return min(found)[1]


def _order(match: re.Match) -> tuple:
    name, variant, kind, index, variant_of_shards = match.groups()
    variant = variant or variant_of_shards or ""
    return variant != "", variant not in ("", ".fp16"), KINDS.index(kind), not index, name


def _opened(path: Path) -> dict[str, Entries]:
    """Sets of tensors by name."""
    if path.suffix == ".json":
        return {"": _shards(path)}
    return {"": open_safetensors(path)} if path.suffix == ".safetensors" else open_pth(path)


def _shards(index: Path) -> Entries:
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not all(Path(str(v)).name == v for v in places.values()):
        raise StoreError(f"{index} names no files; copy it again from its source")
    files = {name: _opened(index.parent / name).get("", {}) for name in set(places.values())}
    if lost := sorted(name for name, file in places.items() if name not in files[file]):
        raise StoreError(f"{index} does not fit its files, which lack {lost[0]}; copy them again")
    return {name: files[file][name] for name, file in places.items()}


def config_of(folder: Path) -> dict[str, Any]:
    """The config.json of a folder of weights; {} where there is none."""
    return _json(folder / "config.json") if (folder / "config.json").is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read ({error}); copy it again") from None
    return found if isinstance(found, dict) else {}


# -- which of several -------------------------------------------------------------------------


def _chosen(sets: Mapping[str, Entries], wanted: str, path: Path) -> Source:
    """The set asked for, or the one to sample with."""
    if not sets:
        raise LayoutError(f"{path} holds no tensors by name; give a file of a network's weights")
    if wanted and wanted not in sets:
        named = ", ".join(filter(None, sets))
        mend = f"it holds {named}" if named else "leave it out"
        raise LayoutError(f"{path} holds no weights called {wanted!r}; {mend}")
    name = wanted or _preferred(sets)
    model = next((n for n in USUAL if n in sets), "")
    if not wanted and AVERAGE.search(name) and (both := _in_part(sets.get(model, {}), sets[name])):
        return Source(both, {}, f"{name} over {model}")
    others = [n for n in sets if n and n != name and not STATE.search(n)]
    return Source(sets[name], {}, name + (f" (not {', '.join(others)})" if others else ""))


def _preferred(sets: Mapping[str, Entries]) -> str:
    """The largest average, if it is more than a few numbers beside the weights, or the weights."""
    weights = {name: own for name, own in sets.items() if not STATE.search(name)} or sets
    by_size = sorted(weights, key=lambda name: -len(weights[name]))
    usual = next((name for name in USUAL if name in weights), by_size[0])
    for name in filter(AVERAGE.search, by_size):
        if 10 * len(sets[name]) >= len(sets[usual]):
            return name
    return usual


def _in_part(model: Entries, averages: Entries) -> Entries:
    """The model with the averages in their places, where these are of a part of it."""
    first = next(iter(averages), "")
    prefixes = {name.removesuffix(first) for name in model if name.endswith(first)}
    for prefix in prefixes if 0 < len(averages) < len(model) else ():
        if all(prefix + name in model for name in averages):
            return model | {prefix + name: entry for name, entry in averages.items()}
    return {}
