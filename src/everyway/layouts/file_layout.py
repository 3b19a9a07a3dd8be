"""Of which layout others' tensors are, and the same tensors under our names, all accounted for.

A layout is a row of a table (`everyway.layouts.table`); this file knows no system.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from everyway.atomic import atomic_write
from everyway.checkpoints.store import unfilled, write_text, writing
from everyway.checkpoints.tensor_files import (
    Entries,
    LayoutError,
    Stored,
    check,
    held,
    shapes,
    some,
    write_pth,
    write_safetensors,
)
from everyway.errors import UsageError

Settings = Mapping[str, Any]
Rename = Callable[[Entries], Entries]
PREFIXES = ("_orig_mod.", "module.", "model.")
"""Before every name of a network that was saved compiled, on several devices, or within another;
they nest."""
COUNTERS = {"n_averaged"}
"""Beside the names of PyTorch's AveragedModel."""
WITHIN = "first_stage_model."
"""Before the names of a codec in the file of a larger model, whose other names are left out."""


class Shapes(dict):
    """Our names -> shapes of what a file holds; a name that is not there is a LayoutError."""

    def __missing__(self, name: str) -> tuple[int, ...]:
        raise LayoutError(f"the file does not fit this layout: missing: {name} (our name)")

    def count(self, template: str) -> int:
        """How many numbers stand for {i} in names that begin like this; LayoutError for gaps."""
        pattern = re.compile(re.escape(template).replace(r"\{i\}", r"(\d+)") + r"\.")
        found = {int(m[1]) for name in self if (m := pattern.match(name))}
        if found and max(found) >= len(found):
            first = next(n for n in range(len(found)) if n not in found)
            raise LayoutError(f"the file does not fit this layout: missing: {template} (our name) "
                              f"for {first}")  # fmt: skip
        return len(found)


@dataclass(frozen=True, kw_only=True, eq=False)
class FileLayout:
    """How one kind of file names the tensors of one part of a model.

    origin: "authors" or "diffusers".  system: whose network it is; "" for what several share.
    part: its name for users.  component, places: the component of our model folders that has it,
    and how its names begin there ("" is every name), first one that it always has.
    shared: how the names begin that other parts of the component hold as well, alike.
    nested: whether it is of several components, "component.NAME"; our names then begin with NAME.
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
    shared: tuple[str, ...] = ()
    nested: bool = False
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

    origin, system, file: as of a FileLayout.  also: names of the layouts of other origins that some
    of its parts have.
    split: its tensors -> part -> those of the part, as a file of its own names them; {} for the
    tensors of any other file.  join: undoes it.
    averaged: how the names begin that the file holds a second time, without this, as averages; ""
    is a file of no averages, which holds its tensors bare.
    """

    origin: str
    system: str
    split: Callable[[Entries], dict[str, Entries]]
    join: Callable[[Mapping[str, Entries]], Entries]
    file: str
    averaged: str = ""
    also: tuple[str, ...] = ()


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
    names, _, _ = without_prefix(entries)
    for layout in layouts:
        if layout.marks and set(layout.marks) <= layout.modern(names).keys():
            return layout
    known = ", ".join(layout.name for layout in layouts)
    raise LayoutError(f"{path} is of no known layout; known are {known}")


def read(entries: Entries, layout: FileLayout, given: Settings) -> Part:
    """A file's tensors under our names, not read yet.  given: the config.json beside them.

    Raises LayoutError, one line that lists what is missing, extra, misshapen or unknown.
    """
    entries, prefix, left_out = without_prefix(entries)
    entries = layout.modern(entries)
    if lost := [mark for mark in layout.marks if mark not in entries]:
        raise LayoutError(f"the file does not fit this layout: missing: {', '.join(lost)}")
    aside = {k: v for k, v in entries.items() if _fits(k, layout.aside)}
    dropped = {k for k in entries if _fits(k, layout.dropped)}
    following = {k: v for k, v in entries.items() if _fits(k, layout.following)}
    own = {k: v for k, v in entries.items() if k not in {*aside, *dropped, *following}}
    _check_numbers(own)
    ours = layout.to_ours(own)
    settings = layout.settings(Shapes(shapes(ours)), given)
    _check_following(following, aside, layout.derived(settings))
    wanted = {k: _empty(shape) for k, shape in layout.expected(settings).items()}
    spare = (*layout.aside, *layout.optional)
    theirs = {k: v for k, v in layout.to_theirs(wanted).items() if k in own or not _fits(k, spare)}
    check(shapes(own), shapes(theirs))
    ours |= {name: held(value) for name, value in layout.constants(settings).items()}
    return Part(
        layout=layout,
        settings=settings,
        entries=ours,
        aside=aside,
        prefix=prefix,
        dropped=len(dropped) + left_out,
    )


def _check_numbers(own: Entries) -> None:
    """LayoutError for weights that are no floats, or none at all."""
    if odd := [k for k, v in own.items() if not v.dtype.is_floating_point or 0 in v.shape]:
        first = own[odd[0]]
        kind = f"{first.dtype} {first.shape}".removeprefix("torch.")
        raise LayoutError(f"weights are floats, but these are not: {some(odd)} ({kind})")


def _check_following(following: Entries, aside: Entries, derived: Entries) -> None:
    """LayoutError where a tensor is not what follows from the settings; averages of it may be off
    in their last bits.  Of what is kept aside only the shape is compared."""
    found = following | {k: v for k, v in aside.items() if k in derived}
    check(shapes(found), shapes({k: v for k, v in derived.items() if k in found}))
    for name, entry in following.items():
        if not torch.allclose(entry.read().float(), derived[name].read(), rtol=1e-4, atol=1e-4):
            raise LayoutError(f"{name} is not what this layout's settings give; load it again")


def without_prefix(entries: Entries) -> tuple[Entries, str, int]:
    """(names without what stands before them, what stood there, how many were left out)."""
    if any(name.startswith(WITHIN) for name in entries):
        own = {k.removeprefix(WITHIN): v for k, v in entries.items() if k.startswith(WITHIN)}
        return own, WITHIN, len(entries) - len(own)
    own, prefix = {k: v for k, v in entries.items() if k not in COUNTERS}, ""
    while more := next((p for p in PREFIXES if own and all(k.startswith(p) for k in own)), ""):
        own, prefix = {k.removeprefix(more): v for k, v in own.items()}, prefix + more
    return own, prefix, len(entries) - len(own)


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _empty(shape: tuple[int, ...]) -> Stored:
    return held(torch.empty(shape, device="meta"))


def shapes_of(make: Callable[[], nn.Module]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a module that is made without memory."""
    with unfilled():
        return {k: tuple(v.shape) for k, v in make().state_dict().items()}


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
    own = {k: v for k, v in component.items() if k.startswith(layout.places + layout.shared)}
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
    if not start:
        return _put(folder / kind.file, model)
    averages = {k.removeprefix(start): v for k, v in model.items() if k.startswith(start)}
    return _put(folder / kind.file, {"model": model, "ema": averages})


def _put(path: Path, entries: Mapping[str, Any]) -> Path:
    """Written atomically."""
    write = write_safetensors if path.suffix == ".safetensors" else write_pth
    with writing(path), atomic_write(path) as temporary:
        write(temporary, entries)
    return path
