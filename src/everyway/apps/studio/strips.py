"""Results that belong together: the frames of an interpolation, the rounds of a chain, the cells of
a sweep.  Each group of them is one film."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from everyway.apps.files import key
from everyway.apps.studio import views

Row = Mapping[str, Any]
"""A line on a result in the folder of what was made, with its `record`."""
SHOWN = 4
"""How many pictures of a strip its tile shows at most."""


def together(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows in groups, in the order of the first row of each; in a group the parts are in order.

    Results of several requests that were asked for at once, as of a sweep, have the same mark
    "together" in their metadata.  The parts of one request, as of a chain, are a group; if it was
    made twice, there are two.
    """
    groups, seen = dict[Hashable, list[Row]](), Counter[Hashable]()
    for row in rows:
        own: Hashable = row["facts"].get("together") or row["index"]
        record = row["record"]
        if record.request.parts > 1:
            part = (key(record.request), record.part)
            own = (part[0], seen[part])
            seen[part] += 1
        groups.setdefault(own, []).append(row)
    return [sorted(group, key=lambda row: (row["part"], row["index"])) for group in groups.values()]


def frames(rows: Sequence[Row], made: str) -> list[dict[str, Any]]:
    """The frames of a film, each {image, text}.  In a chain a text and the next picture are one.

    made: the address of the folder.
    """
    size = 2 if rows[0]["request"]["kind"] == "chain" else 1
    groups = [ChainMap(*rows[k : k + size]) for k in range(0, len(rows), size)]
    return [
        {
            "image": f"{made}/{row['image']}" if row.get("image") else None,
            "text": row.get("text") or "",
        }
        for row in groups
    ]


def film(rows: Sequence[Row], made: str, label: str, say: views.Say) -> str:
    """A group of results as a film to scrub through.  label: its name.  made: as of `frames`."""
    asked = [row["request"] for row in rows]
    several = len({row["facts"].get("together") for row in rows} - {None}) == 1
    notes = [say(f"guidance {a['guidance']:g}, {a['steps']} steps") for a in asked if several]
    return views.film(frames(rows, made), label, say, at=0, notes=notes)


def tile(rows: Sequence[Row], made: str) -> str:
    """A group of results on a tile: some of its pictures, and how many there are."""
    names = [row["image"] for row in rows if row.get("image")]
    few = min(SHOWN, len(names))
    shown = [names[k * (len(names) - 1) // max(1, few - 1)] for k in range(few)]
    pictures = "".join(views.picture(f"{made}/{name}") for name in shown)
    return pictures + views.tag("b", str(len(names) or len(rows)))
