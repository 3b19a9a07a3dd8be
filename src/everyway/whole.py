"""Files that are written whole: the former content stays until the new one is all there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which is moved to `path` at the end.

    Whatever is raised within, or a kill, leaves `path` as it was.  Raises OSError where the folder
    cannot be made or the file not moved.
    """
    with beside(path) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Gives a path in the folder of `path`; what is left there at the end is removed.

    So are folders that were made for it and hold nothing.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".partial")
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
    finally:
        with suppress(OSError):  # a folder may not exist, or hold something
            temporary.unlink(missing_ok=True)
            for folder in made:
                folder.rmdir()
