"""What belongs together in the folder of what was made: the frames of an interpolation, the rounds
of a chain, the cells of a sweep.  Each is one film."""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from everyway.apps.files import key
from everyway.apps.studio import views

Row = Mapping[str, Any]
"""A line of the folder, with its `record`."""
SHOWN = 4
"""Pictures of a strip on its tile."""


def together(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows in groups, in the order of the first row of each; inside, as they follow each other.

    Results of several requests that were made as one carry a mark; those of one request are its
    parts, and where it was made twice, each part once.
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
    """Of a film: {image, text}, where the words of a chain stand beside their picture.

    made: where files of the folder are.
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
    """A strip, to scrub through."""
    asked = [row["request"] for row in rows]
    several = len({row["facts"].get("together") for row in rows} - {None}) == 1
    notes = [say(f"guidance {a['guidance']:g}, {a['steps']} steps") for a in asked if several]
    return views.film(frames(rows, made), label, say, at=0, notes=notes)


def tile(rows: Sequence[Row], made: str) -> str:
    """A strip on a wall: some of its pictures, and how many there are."""
    names = [row["image"] for row in rows if row.get("image")]
    few = min(SHOWN, len(names))
    shown = [names[k * (len(names) - 1) // max(1, few - 1)] for k in range(few)]
    pictures = "".join(views.picture(f"{made}/{name}") for name in shown)
    return pictures + views.tag("b", str(len(names) or len(rows)))
