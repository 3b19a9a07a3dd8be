"""Trainings that a studio starts, each `everyway train` in a process of its own."""

from __future__ import annotations

import atexit
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from everyway.errors import UsageError
from everyway.train.config import TrainConfig

TAIL = 2000
"""Characters of what a training says that are shown where it failed."""


@dataclass(eq=False)
class Trainings:
    """Those that were started here.  running: run folder -> its last process."""

    running: dict[str, subprocess.Popen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        atexit.register(self.close)

    def start(self, config: TrainConfig, words: Sequence[str]) -> None:
        """words: of the command line.  UsageError where one runs in its folder."""
        out = config.run.out
        if self.runs(out):
            raise UsageError(f"a training runs in {out} already; stop it first")
        said = open(_said(out), "w", encoding="utf-8")
        command = [sys.executable, "-m", "everyway.apps.cli", "train", *words]
        self.running[out] = subprocess.Popen(command, stdout=said, stderr=said)
        said.close()

    def runs(self, out: str) -> bool:
        return out in self.running and self.running[out].poll() is None

    def stop(self, out: str) -> None:
        """As Ctrl-C: after the step that it is in, and everything is kept."""
        if self.runs(out):
            self.running[out].send_signal(signal.SIGINT)

    def failed(self, out: str) -> str:
        """The last that a training said which failed, or ""."""
        process = self.running.get(out)
        if process is None or process.poll() in (None, 0, 130):
            return ""
        with suppress(OSError):
            return _said(out).read_text("utf-8", errors="replace")[-TAIL:].strip()
        return ""

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
