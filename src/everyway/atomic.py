"""Atomic writes: the former content stays until the new one is all there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # on Windows two writers of one file at once are not told apart
    fcntl = None  # type: ignore[assignment]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a path to write to, which is moved to `path` at the end.

    Whatever is raised within, or a kill, leaves `path` as it was.  Raises OSError where the folder
    cannot be made or the file not moved.
    """
    with beside(path) as temporary:
        yield temporary
        os.replace(temporary, path)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Gives a path in the folder of `path` that no other living writer has; what is left there at
    the end is removed, and so are folders that were made for it and hold nothing.
    """
    path = Path(path)
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, held = _claimed(path)
        try:
            yield temporary
        finally:
            with held, suppress(OSError):
                temporary.unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # a folder may not exist, or hold something
            for folder in made:
                folder.rmdir()


def _claimed(path: Path) -> tuple[Path, BinaryIO]:
    """A temporary file, locked while its writer lives: one that a killed writer left is taken over,
    and that of another process or thread is passed by."""
    number = 0
    while True:
        suffix = f".{number}.partial" if number else ".partial"
        temporary = path.with_name(path.name + suffix)
        held = open(temporary, "ab")  # nothing is cut off that another may be writing
        try:
            if fcntl:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(held.fileno()), temporary.stat()):
                return temporary, held
        except OSError:  # another holds it, or moved it away meanwhile
            pass
        held.close()
        number += 1
