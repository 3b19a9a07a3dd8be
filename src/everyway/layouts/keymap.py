"""Rename tables between our tensor names and a foreign layout, both ways, with nothing unaccounted.

A table is a tuple of (ours, theirs) templates of names.  `{i}` stands for a number and must occur
in both.  A template of a layer stands for its weight and its bias.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from everyway.checkpoints.tensor_files import E, LayoutError, joined, some

T = TypeVar("T")
Table = tuple[tuple[str, str], ...]


def to_theirs(names: Mapping[str, T], table: Table) -> dict[str, T]:
    """Our names -> theirs.  Raises LayoutError for names the table does not know."""
    return _rename(names, table)


def to_ours(names: Mapping[str, T], table: Table) -> dict[str, T]:
    """Their names -> ours.  Raises LayoutError for names the table does not know."""
    return _rename(names, tuple((theirs, ours) for ours, theirs in table))


def exactly(names: Mapping[str, T], rows: Iterable[tuple[str, str]]) -> dict[str, T]:
    """Names of layers' weights and biases -> those of the rows' other side; no row has a number in
    it.  For tables of very many rows.  Raises LayoutError for names the rows do not have."""
    known = {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in rows for leaf in ("weight", "bias")}
    if unknown := [name for name in names if name not in known]:
        raise _unknown(unknown)
    return {known[name]: value for name, value in names.items()}


def inside(ours: str, theirs: str, table: Table) -> Table:
    """A table of what lies in a module, for the whole."""
    return tuple((f"{ours}.{a}", f"{theirs}.{b}") for a, b in table)


def within(prefix: str, names: Mapping[str, T]) -> dict[str, T]:
    """Every name after `prefix`."""
    return {prefix + name: value for name, value in names.items()}


def without(prefix: str, names: Mapping[str, T]) -> dict[str, T]:
    """The inverse of `within`; names that begin otherwise stay."""
    return {name.removeprefix(prefix): value for name, value in names.items()}


def starts(names: Mapping[str, T], table: Mapping[str, str]) -> dict[str, T]:
    """Beginnings of names replaced; LayoutError for names of another beginning."""
    begun = {name: next((s for s in table if name.startswith(s)), None) for name in names}
    if unknown := [name for name, start in begun.items() if start is None]:
        raise _unknown(unknown)
    return {table[s] + name.removeprefix(s): names[name] for name, s in begun.items()}


def apart(state: Mapping[str, E], whole: str, part: str) -> dict[str, E]:
    """Every tensor (3 D, ...) of q, k and v as three.

    whole: in names of the one, such as ".qkv."; part: of the three, {} for the letter.
    """
    made: dict[str, E] = {}
    for name, tensor in state.items():
        if whole in name:
            three = zip("qkv", tensor.chunk(3))
            made |= {name.replace(whole, part.format(p)): rows.clone() for p, rows in three}
        else:
            made[name] = tensor
    return made


def together(state: Mapping[str, E], whole: str, part: str) -> dict[str, E]:
    """The inverse of `apart`.  LayoutError for a layer without its q, k or v."""
    pattern = re.compile("(.*)" + re.escape(part).replace(r"\{\}", "([qkv])") + "(.*)")
    made: dict[str, E] = {}
    threes: dict[str, dict[str, E]] = {}
    for name, tensor in state.items():
        if match := pattern.fullmatch(name):
            threes.setdefault(match[1] + whole + match[3], {})[match[2]] = tensor
        else:
            made[name] = tensor
    if broken := sorted(name for name, three in threes.items() if len(three) < 3):
        raise LayoutError(f"the file lacks q, k or v of {some(broken)}")
    return made | {name: joined([three[p] for p in "qkv"]) for name, three in threes.items()}


def _rename(names: Mapping[str, T], rules: Table) -> dict[str, T]:
    compiled = [(_pattern(source), target) for source, target in rules]
    out, unknown = {}, []
    for name, value in names.items():
        for pattern, target in compiled:
            if match := pattern.fullmatch(name):
                out[target.replace("{i}", match["i"] or "") + match["leaf"]] = value
                break
        else:
            unknown.append(name)
    if unknown:
        raise _unknown(unknown)
    return out


def _unknown(names: list[str]) -> LayoutError:
    return LayoutError(f"the file holds tensors unknown to this layout: {some(names)}")


def _pattern(template: str) -> re.Pattern:
    """{i} is a number; of a template without one the group is empty."""
    number = r"(?P<i>\d+)"
    own = re.escape(template).replace(r"\{i\}", number)
    return re.compile((own if number in own else own + "(?P<i>)") + r"(?P<leaf>(\.(weight|bias))?)")
