"""Data sets of the Hugging Face library `datasets`: of the hub, hf:owner/name, or here, as a folder
that it has saved, or as parquet files that hold the pictures themselves.
"""

from __future__ import annotations

import glob
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from everyway.data.columns import Columns
from everyway.data.faults import FolderError, printable, reason

HUB = "hf:"
FILES = {".parquet": "parquet", ".arrow": "arrow"}
"""Ending of a file that holds pictures -> what reads it."""
SAVED = ("dataset_dict.json", "state.json")
"""One of them is in every folder that the library has saved."""
NEEDED = "needs the library datasets: pip install 'everyway[datasets]'"


@dataclass(frozen=True, slots=True)
class Cell:
    """The picture of a row of a table, as the bytes of a file."""

    table: Any
    row: int
    column: str

    @property
    def stamp(self) -> tuple[str, int]:
        """Another one where the table is another."""
        return self.table._fingerprint, self.row

    def open(self) -> BinaryIO:
        """Raises OSError where there is none, or it lies somewhere else."""
        held = self.table[self.row][self.column] or {}
        if held.get("bytes"):
            return io.BytesIO(held["bytes"])
        if not held.get("path"):
            raise OSError("the row has no picture")
        return open(held["path"], "rb")


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of one split.

    image, caption, label: its own columns; the last is "" where there is none, and is called
    `label_key` in a row.  classes: names in the order of their numbers, if there are any.
    """

    data: Any
    image: str
    caption: tuple[str, ...]
    label: str
    label_key: str
    classes: tuple[str, ...]

    def cells(self) -> dict[str, Cell]:
        """The number of a row -> its picture."""
        return {_name(row): Cell(self.data, row, self.image) for row in range(len(self.data))}

    def rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """(number of a row, its captions and class)."""
        wanted = [*self.caption, *([self.label] if self.label else [])]
        read = self.data.select_columns(wanted) if wanted else ()
        for number, row in enumerate(read):
            label = row.pop(self.label, None)
            if self.classes and label is not None:
                label = self.classes[label] if label >= 0 else None
            yield _name(number), {**row, self.label_key: label}


def is_table(where: str) -> bool:
    """Whether it is a data set of the hub, or a file or folder that only this library reads."""
    saved = any((Path(where) / name).is_file() for name in SAVED)
    return where.startswith(HUB) or saved or (Path(where).suffix in FILES and not _is_dir(where))


def opened(where: str, columns: Columns) -> Table:
    """Of the split that is told, or train.  Raises FolderError in one line for what cannot be."""
    try:
        from datasets import ClassLabel, Image
    except ImportError:
        raise FolderError(f"{printable(where)} {NEEDED}") from None
    data = _split(where, _loaded(where, columns), columns.split).with_format(None)
    features = data.features
    for key, name in columns.told.items():
        if name not in features:
            raise FolderError(
                f"{printable(where)} has no column {name!r} for {key}; it has {', '.join(features)}"
            )
    drawn = [name for name, kind in features.items() if isinstance(kind, Image)]
    named = [name for name in columns.image if name in features]
    image = next((name for name in (*named, *drawn) if name in drawn), next(iter(named), ""))
    if not image:
        raise FolderError(
            f"{printable(where)} has no pictures among {', '.join(features)}; name their column: "
            f"'{printable(where)}?image=COLUMN'"
        )
    classed = [name for name, kind in features.items() if isinstance(kind, ClassLabel)]
    own = [name for name in columns.label if name in features]
    label = next(iter([*own, *classed]), "")
    return Table(
        data=data.cast_column(image, Image(decode=False)),
        image=image,
        caption=tuple(name for name in columns.caption if name in features and name != image),
        label=label,
        label_key=columns.label[0],
        classes=tuple(features[label].names) if label in classed else (),
    )


def _loaded(where: str, columns: Columns) -> Any:
    """A data set, or one by split."""
    import datasets

    subset = columns.subset or None
    try:
        if where.startswith(HUB):
            return datasets.load_dataset(where.removeprefix(HUB), subset)
        if not _is_dir(where):
            kind = FILES[Path(where).suffix]
            return datasets.load_dataset(kind, data_files=_files(where))
        if any((Path(where) / name).is_file() for name in SAVED):
            return datasets.load_from_disk(where)
        return datasets.load_dataset(where, subset)
    except Exception as error:  # its readers raise anything
        raise FolderError(f"{printable(where)} cannot be opened: {reason(error)}") from None


def _files(where: str) -> list[str]:
    if found := sorted(glob.glob(where)):
        return found
    raise FileNotFoundError("there is no such file")


def _split(where: str, data: Any, wanted: str) -> Any:
    """Of several the one that is wanted, train, or the only one."""
    parts = data if isinstance(data, dict) else {"train": data}
    name = wanted or (next(iter(parts)) if len(parts) == 1 else "train")
    if name in parts:
        return parts[name]
    raise FolderError(
        f"{printable(where)} has no split {name!r} but {', '.join(parts)}; choose one: "
        f"'{printable(where)}?split={next(iter(parts))}'"
    )


def _is_dir(where: str) -> bool:
    return Path(where).is_dir()


def _name(row: int) -> str:
    return f"{row:08d}"
