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
"""How many characters of what a training printed are shown if it failed."""


@dataclass(eq=False)
class Trainings:
    """The trainings that a studio started.  running: run folder -> its last process.  stopping: the
    folders of those that were asked to stop."""

    running: dict[str, subprocess.Popen] = field(default_factory=dict)
    stopping: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        atexit.register(self.close)

    def start(self, out: str, words: Sequence[str]) -> None:
        """Starts a training.  out: the run folder.  words: of the command line.  Raises UsageError
        where one runs there."""
        if self.runs(out):
            raise UsageError(f"a training runs in {out} already; stop it first")
        said = open(_said(out), "w", encoding="utf-8")
        self.running[out] = subprocess.Popen([*COMMAND, *words], stdout=said, stderr=said)
        said.close()
        self.stopping.discard(out)

    @staticmethod
    def price(words: Sequence[str], language: str, work: Work) -> str:
        """The lines that `everyway train --dry-run` prints on what a training would take; "" if the
        work is stopped.

        words: of the command line.  Raises UsageError with the last line of a command that fails.
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
        """Whether a training runs in a folder."""
        return out in self.running and self.running[out].poll() is None

    def stop(self, out: str) -> None:
        """Stops a training as Ctrl-C does: after the current step, with everything kept."""
        if self.runs(out):
            self.running[out].send_signal(signal.SIGINT)
            self.stopping.add(out)

    def ends(self, out: str) -> bool:
        """Whether a training was asked to stop and still runs."""
        return out in self.stopping and self.runs(out)

    def said(self, out: str) -> str:
        """The last lines that a training printed."""
        with suppress(OSError):
            return _said(out).read_text("utf-8", errors="replace")[-TAIL:].strip()
        return ""

    def finished(self, out: str) -> bool:
        """Whether the last training in a folder came to its end."""
        process = self.running.get(out)
        return process is not None and process.poll() == 0

    def failed(self, out: str) -> bool:
        """Whether the last training in a folder ended in a fault."""
        process = self.running.get(out)
        return process is not None and process.poll() not in (None, 0, 130)

    def close(self) -> None:
        """Stops all, and waits until they are saved."""
        for out in self.running:
            self.stop(out)
        for process in self.running.values():
            process.wait()


def _said(out: str) -> Path:
    """The file of what a training prints, beside its folder, which is the training's own."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}.said.txt")
