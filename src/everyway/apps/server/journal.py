"""Jobs on disk, so that none is lost when a server dies, and several servers know of each.

    FOLDER/ID/request.json    the request as it was sent, until it has ended
    FOLDER/ID/job.json        what it is, and how often it was begun
    FOLDER/ID/results.jsonl   an ordinary folder of results: replay reads its pictures
    FOLDER/ID/end.json        how it ended, which is written last
    FOLDER/ID/.held           locked by the server that works on it

A job without an end whose lock is free has lost its server: another one, or the same started again,
takes it up.  From the same seeds it makes the same.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from everyway.apps.files import ROWS, Folder
from everyway.apps.server.answers import Missing
from everyway.atomic import atomic_write

if TYPE_CHECKING:
    from everyway.generate import Result

JOB, REQUEST, END = "job.json", "request.json", "end.json"
HELD, UNWANTED = ".held", ".unwanted"
ID = re.compile("[0-9a-f]{32}")
FILE = re.compile(r"[0-9]{5,9}(\.\w+){1,2}")
"""The names that `Folder` gives."""
BEGUN = 3
"""How often a job is begun; one that has taken as many servers with it is not begun again."""


class Journal:
    """A folder of jobs.  keep: seconds that a job is kept after its end."""

    def __init__(self, folder: Path, keep: float) -> None:
        self.folder, self.keep = folder, keep
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, id: str, request: Mapping[str, Any]) -> FileLock:
        """A job that this server works on; the lock says so until it is released.

        Raises OSError where it cannot be written, and leaves nothing then.
        """
        try:
            lock = self._lock(id)
            self._write(id, REQUEST, request)
            asked = {name: request[name] for name in ("kind", "model", "n")}
            self._write(id, JOB, {"created": time.time(), "begun": 1, **asked})
        except OSError:
            shutil.rmtree(self.folder / id, ignore_errors=True)
            raise
        return lock

    def lost(self) -> Iterator[tuple[str, FileLock]]:
        """Every job that no server works on any more and that has no end, now held by this one."""
        for id in self.ids():
            if (self.folder / id / END).exists():
                continue
            try:
                lock = self._lock(id)
            except (Timeout, OSError):
                continue
            if (self.folder / id / END).exists() or not (self.folder / id / JOB).exists():
                lock.release()
                continue
            yield id, lock

    def request(self, id: str) -> Mapping[str, Any] | None:
        """As it was sent; None where the job was begun too often."""
        return self._read(id, REQUEST) if self._read(id, JOB)["begun"] < BEGUN else None

    def begin_again(self, id: str) -> None:
        """Drops the results of a lost job, as they will be made again."""
        job = self._read(id, JOB)
        self._write(id, JOB, {**job, "begun": job["begun"] + 1})
        for path in (self.folder / id).iterdir():
            if path.name not in (JOB, REQUEST, HELD, UNWANTED):
                path.unlink()

    def save(self, id: str, result: Result) -> None:
        """Raises FileError where it cannot be written."""
        Folder(self.folder / id).save(result, result.request)

    def end(self, id: str, status: str, error: Mapping[str, Any] | None) -> None:
        """The job has ended so; OSError where that cannot be written."""
        self._write(id, END, {"ended": time.time(), "status": status, "error": error})
        (self.folder / id / REQUEST).unlink(missing_ok=True)

    def cancel(self, id: str) -> None:
        """Tells the server that works on it that nobody wants it any more."""
        (self.folder / id / UNWANTED).touch()

    def unwanted(self, id: str) -> bool:
        return (self.folder / id / UNWANTED).exists()

    def remove(self, id: str) -> None:
        shutil.rmtree(self.folder / id, ignore_errors=True)

    def tidy(self) -> None:
        """Removes the jobs that have ended long ago."""
        for id in self.ids():
            try:
                ended = (self.folder / id / END).stat().st_mtime
            except OSError:
                continue
            if time.time() - ended > self.keep:
                self.remove(id)

    def ids(self) -> list[str]:
        """Of all jobs, the newest first."""
        found = list[tuple[float, str]]()
        for folder in self.folder.iterdir():
            with suppress(OSError):  # another server may just remove it
                found.append(((folder / JOB).stat().st_mtime, folder.name))
        return [name for _, name in sorted(found, reverse=True) if ID.fullmatch(name)]

    def view(self, id: str) -> dict[str, Any]:
        """What is known of a job: created, kind, model, n, status, error, ended.  Missing where
        there is none."""
        if not ID.fullmatch(id) or not (self.folder / id / JOB).exists():
            raise Missing(f"there is no job {id:.40}; it may have been too long ago")
        job, path = self._read(id, JOB), self.folder / id / END
        end = self._read(id, END) if path.exists() else {"status": "waiting", "error": None}
        del job["begun"]
        return {"id": id, **job, "ended": None, **end}

    def rows(self, id: str) -> list[dict[str, Any]]:
        """Of its results so far, as `Result.row` has them, with names of files."""
        path = self.folder / id / ROWS
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def file(self, id: str, name: str) -> Path:
        """A file of one of its results; Missing for any other, whatever its name."""
        self.view(id)
        named = {v for row in self.rows(id) for v in row.values() if isinstance(v, str)}
        if not FILE.fullmatch(name) or name not in named:
            raise Missing("this job has no such file")
        return self.folder / id / name

    def _lock(self, id: str) -> FileLock:
        (self.folder / id).mkdir(exist_ok=True)
        lock = FileLock(self.folder / id / HELD, thread_local=False)
        lock.acquire(timeout=0)
        return lock

    def _write(self, id: str, name: str, value: Mapping[str, Any]) -> None:
        with atomic_write(self.folder / id / name) as temporary:
            temporary.write_text(json.dumps(value), encoding="utf-8")

    def _read(self, id: str, name: str) -> dict[str, Any]:
        return json.loads((self.folder / id / name).read_text(encoding="utf-8"))
