"""Trainings that a studio starts, each `everyway train` in a process of its own."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from everyway.apps.studio.work import Work
from everyway.errors import UsageError

COMMAND = (sys.executable, "-m", "everyway.apps.cli", "train")
TAIL = 2000
"""Characters of what a training says that are shown where it failed."""


@dataclass(eq=False)
class Trainings:
    """Those that were started here.  running: run folder -> its last process.  told: the folders
    of those that were told to stop."""

    running: dict[str, subprocess.Popen] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        atexit.register(self.close)

    def start(self, out: str, words: Sequence[str]) -> None:
        """out: the run folder.  words: of the command line.  UsageError where one runs there."""
        if self.runs(out):
            raise UsageError(f"a training runs in {out} already; stop it first")
        said = open(_said(out), "w", encoding="utf-8")
        self.running[out] = subprocess.Popen([*COMMAND, *words], stdout=said, stderr=said)
        said.close()
        self.told.discard(out)

    @staticmethod
    def price(words: Sequence[str], language: str, work: Work) -> str:
        """What a training would take, as `everyway train --dry-run` tells it after some steps of
        it: lines of a name and what it is.  "" where the work is stopped.

        Raises UsageError where it cannot be told.
        """
        command = [*COMMAND, *words, "--dry-run"]
        own = {**os.environ, "LANGUAGE": language, "PYTHONIOENCODING": "utf-8"}
        with subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=own,
        ) as process:
            work.ends_by(process.terminate)
            said = process.communicate()[1].strip()
        if work.stopped:
            return ""
        if process.returncode:
            raise UsageError((said.splitlines() or ["it failed"])[-1].removeprefix("everyway: "))
        return said

    def runs(self, out: str) -> bool:
        return out in self.running and self.running[out].poll() is None

    def stop(self, out: str) -> None:
        """As Ctrl-C: after the step that it is in, and everything is kept."""
        if self.runs(out):
            self.running[out].send_signal(signal.SIGINT)
            self.told.add(out)

    def ends(self, out: str) -> bool:
        """Whether it was told to stop and has not yet."""
        return out in self.told and self.runs(out)

    def said(self, out: str) -> str:
        """The last that a training said."""
        with suppress(OSError):
            return _said(out).read_text("utf-8", errors="replace")[-TAIL:].strip()
        return ""

    def finished(self, out: str) -> bool:
        """Whether the last one in a folder came to its end."""
        process = self.running.get(out)
        return process is not None and process.poll() == 0

    def failed(self, out: str) -> bool:
        """Whether the last one in a folder ended in a fault."""
        process = self.running.get(out)
        return process is not None and process.poll() not in (None, 0, 130)

    def close(self) -> None:
        """Stops all, and waits until they are saved."""
        for out in self.running:
            self.stop(out)
        for process in self.running.values():
            process.wait()


def _said(out: str) -> Path:
    """Where what a training says is kept: beside its folder, which is its own."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}.said.txt")
