"""What changed in a run's data since its last start.

A run goes on with the pictures and captions that are there now, since people add to a folder while
they train on it.  A line says so, since such a run does not end as one whose folder stays the same.
Words and classes that a network numbers cannot change: the same numbers would mean other things.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from everyway.checkpoints.store import write_text
from everyway.data.faults import printable
from everyway.data.folder import Folder
from everyway.train.config import ConfigError
from everyway.train.folder import STATE

FILE = "data.json"
"""In the run folder: the digests of the samples of the last start."""


def tell(out: Path, data: Folder, note: Callable[[str], None], counted: str = "") -> None:
    """Compares the data of a run with those of its last start, and writes down those of now.

    out: the run folder.  note: called with one line on what changed, if the run has a state.
    counted: a digest of what the network numbers, such as words and classes; "" for nothing.
    Raises ConfigError where the data changed and need another network.
    """
    now = {"counted": counted, "samples": data.stamps()}
    former = _former(out / FILE) if (out / STATE).exists() else {}
    if changes := _changes(former.get("samples", {}), now["samples"]):
        where = printable(data.path)
        if former["counted"] != counted:
            raise ConfigError(
                f"{where} changed ({changes}), and has other words or classes than {out} was "
                "begun with; take the changes back, or choose another --out"
            )
        note(
            f"{where} changed since the last start: {changes}; the run goes on with what is there "
            "now, and ends otherwise than one uninterrupted"
        )
    write_text(out / FILE, json.dumps(now))


def _former(path: Path) -> dict[str, Any]:
    """What was written at the last start; {} if nothing was, or if the file is damaged."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return {"counted": held["counted"], "samples": dict(held["samples"])}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _changes(former: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How many are new, gone and changed, in words; "" for none, or if the former are not known."""
    if not former or former == now:
        return ""
    both = former.keys() & now.keys()
    new, gone = len(now.keys() - both), len(former.keys() - both)
    return f"{new} new, {gone} gone, {sum(former[name] != now[name] for name in both)} changed"
