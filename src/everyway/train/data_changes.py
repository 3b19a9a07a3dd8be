"""What became of a run's data since its last start.

A run goes on with the pictures and captions that are there now: people add to a folder while they
train on it.  It says so in a line, since such a run does not end as one that was left alone.  Words
and classes that a network counts cannot change: the same numbers would mean other things.
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
"""In the run folder: the files and captions of the last start, by their digests."""


def tell(out: Path, data: Folder, note: Callable[[str], None], counted: str = "") -> None:
    """Compares data with those of the last start of the run in `out`, and keeps what they are now.

    note: is told in one line what changed, if the run has a state that it goes on from.
    counted: what a network was made for, as its words and classes; "" compares nothing of it.
    Raises ConfigError where data that changed ask for another network.
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
    """What was kept; nothing of a run that kept nothing, or whose file is damaged."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return {"counted": held["counted"], "samples": dict(held["samples"])}
    except (OSError, ValueError, LookupError, TypeError):
        return {}


def _changes(former: Mapping[str, str], now: Mapping[str, str]) -> str:
    """In words; "" where there are none, or nothing is known of before."""
    if not former or former == now:
        return ""
    both = former.keys() & now.keys()
    new, gone = len(now.keys() - both), len(former.keys() - both)
    return f"{new} new, {gone} gone, {sum(former[name] != now[name] for name in both)} changed"
