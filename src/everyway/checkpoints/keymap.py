"""Rename tables between our tensor names and a foreign layout, both ways, with nothing unaccounted.

A table is a tuple of (ours, theirs) templates; `{i}` stands for a number and must occur in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from everyway.errors import UsageError

T = TypeVar("T")
Table = tuple[tuple[str, str], ...]


class LayoutError(UsageError):
    """Tensors that do not fit a layout; the message lists them on one line."""


def to_theirs(names: Mapping[str, T], table: Table) -> dict[str, T]:
    """Our names -> theirs.  Raises LayoutError for names the table does not know."""
    return _rename(names, [(ours, theirs) for ours, theirs in table])


def to_ours(names: Mapping[str, T], table: Table) -> dict[str, T]:
    """Their names -> ours.  Raises LayoutError for names the table does not know."""
    return _rename(names, [(theirs, ours) for ours, theirs in table])


def check(found: Mapping[str, tuple], expected: Mapping[str, tuple]) -> None:
    """Both map names to shapes; LayoutError lists what is missing, extra or misshapen."""
    wrong = [
        f"{k}: {tuple(found[k])} instead of {tuple(expected[k])}"
        for k in expected
        if k in found and tuple(found[k]) != tuple(expected[k])
    ]
    faults = {
        "missing": sorted(set(expected) - set(found)),
        "extra": sorted(set(found) - set(expected)),
        "misshapen": wrong,
    }
    if any(faults.values()):
        told = "; ".join(f"{k}: {_some(v)}" for k, v in faults.items() if v)
        raise LayoutError(f"the file does not fit this layout: {told}")


def _rename(names: Mapping[str, T], rules: list[tuple[str, str]]) -> dict[str, T]:
    compiled = [(_pattern(source), target) for source, target in rules]
    out, unknown = {}, []
    for name, value in names.items():
        for pattern, target in compiled:
            if match := pattern.fullmatch(name):
                out[target.format(**match.groupdict())] = value
                break
        else:
            unknown.append(name)
    if unknown:
        raise LayoutError(f"the file holds tensors unknown to this layout: {_some(unknown)}")
    return out


def _pattern(template: str) -> re.Pattern:
    return re.compile(re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)"))


def _some(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
