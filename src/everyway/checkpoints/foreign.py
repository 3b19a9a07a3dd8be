"""Others' files: of which layout they are, and their tensors under our names, all accounted for.

A layout is a row of a table (`everyway.systems.layouts`); this file knows no system.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from everyway.checkpoints.keymap import LayoutError, check
from everyway.checkpoints.store import write_text, writing
from everyway.checkpoints.tensor_files import (
    Entries,
    Stored,
    StoreError,
    held,
    open_pth,
    open_safetensors,
    write_pth,
    write_safetensors,
)
from everyway.errors import UsageError
from everyway.whole import whole

Rename = Callable[[Entries], Entries]
AVERAGES = ("ema", "nnet_ema", "model_ema", "ema_state_dict", "state_dict", "model", "nnet")
"""What a file of several sets calls its weights; averages come first, as they are sampled."""
FILES = (
    "diffusion_pytorch_model.safetensors",
    "model.safetensors",
    "diffusion_pytorch_model.bin",
    "pytorch_model.bin",
    "nnet_ema.pth",
)
"""What a folder calls its weights; the last is in the checkpoints of U-ViT's training."""
PREFIX = "module."
"""Before every name of a network that was saved while it trained on several devices."""
WITHIN = "first_stage_model."
"""Before the names of a codec in the file of a larger model, whose other names are left out."""


class Shapes(dict):
    """Our names -> shapes of what a file holds; a name that is not there is a LayoutError."""

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise LayoutError(f"the file does not fit this layout: missing: {name} (our name)")

    def count(self, template: str) -> int:
        """One more than the highest number that stands for {i} in names that begin like this."""
        pattern = re.compile(re.escape(template).replace(r"\{i\}", r"(\d+)") + r"\.")
        return max((int(m[1]) + 1 for name in self if (m := pattern.match(name))), default=0)


@dataclass(frozen=True, kw_only=True, eq=False)
class FileLayout:
    """How one kind of file names the tensors of one part of a model.

    origin: "authors" or "diffusers".  system: whose network it is; "" for what several share.
    part: its name for users.  component, places: the component of our model folders that has it,
    and how its names begin there ("" is every name).
    marks: their names that tell the layout from those below it in the table.
    modern: other spellings of their names -> the one spelling that to_ours knows.
    settings: (our shapes, the config.json beside the file) -> plain settings of the component.
    expected: settings -> our names and shapes.  to_ours, to_theirs: rename, and undo each other.
    constants: settings -> those of our tensors that no file of theirs holds.
    derived: settings -> those of their tensors that follow from the settings, which we do not hold;
    following: patterns of their names.  A file whose own are others is refused.
    hints: of these, what a user may tell, where no file does.
    aside: patterns of their names that no network reads but are kept; dropped: that are not kept;
    optional: that may be missing, being copies.
    fits: whether the layout can hold a component of these settings.
    preset: settings -> the published model that this is, or "".
    file: what it is written as.  root: under which name the file holds its tensors, if any.
    their_config: settings -> the config.json beside it.
    """

    name: str
    origin: str
    part: str
    component: str
    marks: tuple[str, ...]
    settings: Callable[[Shapes, Mapping[str, Any]], dict[str, Any]]
    expected: Callable[[Mapping[str, Any]], Mapping[str, tuple[int, ...]]]
    to_ours: Rename
    to_theirs: Rename
    file: str
    system: str = ""
    places: tuple[str, ...] = ("",)
    modern: Rename = lambda entries: entries
    constants: Callable[[Mapping[str, Any]], dict[str, Tensor]] = lambda settings: {}
    derived: Callable[[Mapping[str, Any]], Entries] = lambda settings: {}
    following: tuple[str, ...] = ()
    hints: tuple[str, ...] = ()
    aside: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    fits: Callable[[Mapping[str, Any]], bool] = lambda settings: True
    root: str = ""
    preset: Callable[[Mapping[str, Any]], str] = lambda settings: ""
    their_config: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Whole:
    """A file that holds all parts of a model, each of which has a layout of its own.

    origin, system, file: as of a FileLayout.
    split: its tensors -> part -> those of the part, as a file of its own names them; {} for the
    tensors of any other file.  join: undoes it.
    averaged: how the names begin that the file holds a second time, without this, as averages.
    """

    origin: str
    system: str
    split: Callable[[Entries], dict[str, Entries]]
    join: Callable[[Mapping[str, Entries]], Entries]
    file: str
    averaged: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """What a foreign file held.  entries: under our names in its component.

    aside: their names -> tensors that no network reads, so that writing back loses nothing.
    prefix: what stood before every name.  dropped: how many tensors were left out.
    """

    layout: FileLayout
    settings: dict[str, Any]
    entries: Entries
    aside: Entries = field(default_factory=dict)
    prefix: str = ""
    dropped: int = 0


# -- opening ----------------------------------------------------------------------------------


def open_tensors(path: Path, weights: str = "") -> tuple[Entries, dict[str, Any]]:
    """(tensors, the config.json beside them) of a file, or of a folder of diffusers, transformers
    or U-ViT's training.

    weights: which set of a file with several; "" is the average, where there is one, together with
    what it is not an average of.
    Raises ValueError where there is nothing, LayoutError where there is no such set, StoreError
    for what is damaged or refused.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"there is no file or folder {str(path)!r}; check the path")
    if path.is_file():
        return _open_file(path, weights), {}
    if shards := sorted(path.glob("*.safetensors.index.json")):
        return _of_one_set(_open_shards(shards[0]), weights, path), config_of(path)
    for name in FILES:
        if (path / name).is_file():
            return _open_file(path / name, weights), config_of(path)
    raise UsageError(f"{path} holds no weights; a folder has one of {', '.join(FILES)}")


def _open_file(path: Path, weights: str) -> Entries:
    if path.suffix == ".safetensors":
        return _of_one_set(open_safetensors(path), weights, path)
    return _set_of(open_pth(path), weights, path)


def _of_one_set(entries: Entries, wanted: str, path: Path) -> Entries:
    """The tensors of a file that knows no sets; LayoutError where one was asked for."""
    if wanted:
        raise LayoutError(f"{path} has no weights called {wanted!r}; leave it out")
    return entries


def _open_shards(index: Path) -> Entries:
    places = _json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
        raise StoreError(f"{index} names no files; copy it again from its source")
    files = {name: open_safetensors(index.parent / name) for name in set(places.values())}
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


def _set_of(found: Any, wanted: str, path: Path) -> Entries:
    """The weights of a file that may hold several sets of them, and an optimiser's."""
    sets = {}
    if isinstance(found, Mapping):
        groups = {str(k): v for k, v in found.items() if isinstance(v, Mapping)}
        sets = {k: _tensors(v) for k, v in {"": found, **groups}.items()}
    sets = {k: v for k, v in sets.items() if v}
    if not sets:
        raise LayoutError(f"{path} holds no tensors by name; give a file of a network's weights")
    if wanted and wanted not in sets:
        named = ", ".join(filter(None, sets)) or "one set without a name"
        raise LayoutError(f"{path} holds no weights called {wanted!r}; it holds {named}")
    largest = max(sets, key=lambda name: len(sets[name]))
    if not wanted and (whole := _averaged_in_part(sets)):
        return whole
    return sets[wanted or next((name for name in AVERAGES if name in sets), largest)]


def _averaged_in_part(sets: Mapping[str, Entries]) -> Entries:
    """The "model" with the averages of "ema" in their places, where these are of a part of it."""
    model, averages = sets.get("model", {}), sets.get("ema", {})
    first = next(iter(averages), "")
    prefixes = {name.removesuffix(first) for name in model if name.endswith(first)}
    for prefix in prefixes if 0 < len(averages) < len(model) else ():
        placed = {prefix + name: entry for name, entry in averages.items()}
        if placed.keys() <= model.keys():
            return model | placed
    return {}


def _tensors(found: Mapping) -> Entries:
    return {str(k): v for k, v in found.items() if isinstance(v, Stored)}


# -- reading ----------------------------------------------------------------------------------


def named(layouts: Sequence[FileLayout], name: str) -> FileLayout:
    """The layout of that name; ValueError lists the names there are."""
    for layout in layouts:
        if layout.name == name:
            return layout
    known = ", ".join(layout.name for layout in layouts)
    raise UsageError(f"layout {name!r} is unknown; choose one of {known}")


def recognised(entries: Entries, layouts: Sequence[FileLayout], path: Path) -> FileLayout:
    """The first layout whose marks are all there; LayoutError lists the layouts there are."""
    names, _, _ = _without_prefix(entries)
    for layout in layouts:
        if layout.marks and set(layout.marks) <= layout.modern(names).keys():
            return layout
    known = ", ".join(layout.name for layout in layouts)
    raise LayoutError(f"{path} is of no known layout; known are {known}")


def read(entries: Entries, layout: FileLayout, told: Mapping[str, Any]) -> Part:
    """A file's tensors under our names, not read yet.  told: the config.json beside them.

    Raises LayoutError, one line that lists what is missing, extra, misshapen or unknown.
    """
    entries, prefix, left_out = _without_prefix(entries)
    entries = layout.modern(entries)
    if lost := [mark for mark in layout.marks if mark not in entries]:
        raise LayoutError(f"the file does not fit this layout: missing: {', '.join(lost)}")
    aside = {k: v for k, v in entries.items() if _fits(k, layout.aside)}
    dropped = {k for k in entries if _fits(k, layout.dropped)}
    following = {k: v for k, v in entries.items() if _fits(k, layout.following)}
    rest = {*aside, *dropped, *following}
    own = {k: v for k, v in entries.items() if k not in rest}
    ours = layout.to_ours(own)
    settings = layout.settings(Shapes(_shapes(ours)), told)
    _follow(following, aside, layout.derived(settings))
    wanted = {k: _empty(shape) for k, shape in layout.expected(settings).items()}
    spare = (*layout.aside, *(p for p in layout.optional))
    theirs = {k: v for k, v in layout.to_theirs(wanted).items() if k in own or not _fits(k, spare)}
    check(_shapes(own), _shapes(theirs))
    ours |= {name: held(value) for name, value in layout.constants(settings).items()}
    return Part(
        layout=layout,
        settings=settings,
        entries=ours,
        aside=aside,
        prefix=prefix,
        dropped=len(dropped) + left_out,
    )


def _follow(following: Entries, aside: Entries, derived: Entries) -> None:
    """LayoutError where a tensor is not what follows from the settings; averages of it may be off
    in their last bits.  Of what is kept aside only the shape is compared."""
    found = following | {k: v for k, v in aside.items() if k in derived}
    check(_shapes(found), _shapes({k: v for k, v in derived.items() if k in found}))
    for name, entry in following.items():
        if not torch.allclose(entry.read().float(), derived[name].read(), rtol=1e-4, atol=1e-4):
            raise LayoutError(f"{name} is not what this layout's settings give; load it again")


def _without_prefix(entries: Entries) -> tuple[Entries, str, int]:
    """(names without what stands before them, what stood there, how many were left out)."""
    if any(name.startswith(WITHIN) for name in entries):
        own = {k.removeprefix(WITHIN): v for k, v in entries.items() if k.startswith(WITHIN)}
        return own, WITHIN, len(entries) - len(own)
    if not entries or not all(name.startswith(PREFIX) for name in entries):
        return entries, "", 0
    return {name.removeprefix(PREFIX): v for name, v in entries.items()}, PREFIX, 0


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _shapes(entries: Mapping[str, Stored]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(entry.shape) for name, entry in entries.items()}


def _empty(shape: tuple[int, ...]) -> Stored:
    return held(torch.empty(shape, device="meta"))


# -- writing ----------------------------------------------------------------------------------


def theirs(
    layout: FileLayout,
    component: Entries,
    settings: Mapping[str, Any],
    aside: Entries | None = None,
    prefix: str = "",
) -> Entries:
    """The inverse of `read`: a component of ours as a file of that layout holds it.

    Raises LayoutError where it has what the layout cannot hold.
    """
    own = {k: v for k, v in component.items() if k.startswith(layout.places)}
    for name, value in layout.constants(settings).items():
        if not torch.equal(own.pop(name).read().float(), value.float()):
            raise LayoutError(
                f"{layout.name} cannot hold this model's {layout.part}: {name} differs"
            )
    made = {**layout.to_theirs(own), **layout.derived(settings), **(aside or {})}
    return {prefix + name: entry for name, entry in made.items()}


def beside(layout: FileLayout, settings: Mapping[str, Any]) -> str:
    """The config.json that belongs beside a file; "" where there is none."""
    if not layout.their_config:
        return ""
    return json.dumps(layout.their_config(settings), indent=2, sort_keys=True)


def write(folder: Path, layout: FileLayout, entries: Entries, config: str) -> Path:
    """The file of `theirs` into a folder, with what is `beside` it."""
    path = _put(folder / layout.file, {layout.root: entries} if layout.root else entries)
    if config:
        write_text(path.parent / "config.json", config)
    return path


def write_whole(folder: Path, kind: Whole, parts: Mapping[str, Entries]) -> Path:
    """The file of all parts into a folder; its averages are its weights, and stored once."""
    model, start = kind.join(parts), kind.averaged
    averages = {k.removeprefix(start): v for k, v in model.items() if k.startswith(start)}
    return _put(folder / kind.file, {"model": model, "ema": averages})


def _put(path: Path, entries: Mapping[str, Any]) -> Path:
    """The file whole, or as it was."""
    write = write_safetensors if path.suffix == ".safetensors" else write_pth
    with writing(path), whole(path) as temporary:
        write(temporary, entries)
    return path
