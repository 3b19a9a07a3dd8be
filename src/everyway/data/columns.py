"""What the columns of tables are called, and what is told of data behind their name.

PATH?caption=blip&split=test
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import parse_qsl

from everyway.data.faults import FolderError, printable


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Keys of a row: the file of its picture, or the picture itself; its captions; its class.  The
    first of each that is not empty counts.

    split, subset: of a data set that has several; "" is train, and the one there is.
    """

    image: tuple[str, ...] = (
        "file_name", "filename", "file", "image", "image_path", "filepath", "path",
    )  # fmt: skip
    caption: tuple[str, ...] = (
        "captions", "text", "caption", "texts", "prompt", "description", "sentences", "sentence",
    )  # fmt: skip
    label: tuple[str, ...] = ("label", "class", "category")
    split: str = ""
    subset: str = ""

    @property
    def told(self) -> dict[str, str]:
        """Those of image, caption and label that were told, and not found by their name."""
        named = ("image", "caption", "label")
        return {k: own[0] for k in named if (own := getattr(self, k)) != getattr(COLUMNS, k)}


COLUMNS = Columns()


def read_name(data: str | Path) -> tuple[str, Columns]:
    """The data's own name, and what is told behind it.  Raises FolderError for what cannot be."""
    name, mark, told = str(data).rpartition("?")
    if not (mark and re.match(r"\w+=", told)) or os.path.lexists(data):
        return str(data), COLUMNS
    given: dict[str, str] = dict(parse_qsl(told, keep_blank_values=True))
    fields = vars(COLUMNS)
    if odd := [key for key in given if key not in fields]:
        known = ", ".join(fields)
        raise FolderError(f"{printable(data)} tells of {odd[0]!r}; what can be told is {known}")
    several = {k: (v,) if isinstance(fields[k], tuple) else v for k, v in given.items()}
    return name, replace(COLUMNS, **several)
