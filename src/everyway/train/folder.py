"""The run folder: one training's at a time, and of one configuration; its log."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from PIL import Image
from torch import Tensor

from everyway.atomic import atomic_write
from everyway.train import tracking
from everyway.train.config import ConfigError, TrainConfig, differences, parsed
from everyway.train.devices import Accelerator
from everyway.train.state import StateError, TrainState, metadata_of

RESUMABLE = {
    "budget_s", "steps", "samples", "out", "device", "save_every_s", "publish", "sample_every",
    "log_every", "shard", "weights", "licence", "latents", "warmup_samples", "ema_samples",
    "keep", "before_after", "tracker",
}  # fmt: skip
"""Settings that a resumed run may change: of them only the end bears on what a step does, since the
rate falls before it; and those that others say by the step."""
STATE = "state.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """step of steps (at most, under a time budget); losses: modality -> running mean."""

    step: int
    steps: int
    losses: dict[str, float]
    samples_a_second: float


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """The run folder for this process alone; ConfigError where another one trains in it, and where
    none can be made."""
    writable(out)
    fresh, path = not out.exists(), out / ".lock"
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be made: {error.strerror}; choose another --out") from None
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"another training runs in {out}; choose another --out") from None
    try:
        yield
    finally:
        lock.release()
        if fresh and [*out.iterdir()] == [path]:  # it was refused before it began
            path.unlink()
            out.rmdir()


def writable(out: Path) -> None:
    """ConfigError where a run folder cannot be made or written to."""
    place = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise ConfigError(f"out is {out}, but {place} is no folder to write to; choose another")


def compare(config: TrainConfig) -> None:
    """ConfigError where the run folder is no place for this run; nothing is written.

    The state, every bit of which is compared, knows the settings of its run, whatever became of
    config.json.
    """
    out = config.folder
    writable(out)
    state, path = out / STATE, out / "config.json"
    if path.exists():
        former = _former(path)
    if state.exists():
        former = parsed(metadata_of(state, verify=True)["config"])
    elif not path.exists() or not (out / "log.jsonl").exists():
        return  # of a training that never began
    if other := differences(former, config, RESUMABLE):
        raise ConfigError(
            f"{out} holds a run with another {', '.join(other)}; choose another --out, "
            "or use the settings in its config.json to resume"
        )


def _former(path: Path) -> TrainConfig:
    """The settings in a run folder's config.json."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(held, dict):
            raise ConfigError("it holds no settings")
        return parsed(held)
    except (OSError, ValueError) as error:
        reason = str(error).partition(";")[0]
        raise ConfigError(
            f"{path} is not the config of a training ({reason}); choose another --out"
        ) from None


def circumstances(device: torch.device, processes: int) -> dict[str, Any]:
    """What the last bits of a step depend on beside its settings."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": gpu or device.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
    }


def changed(former: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """One line of what is other than when the run was saved, or ""."""
    other = [f"{k} {former[k]} is now {v}" for k, v in now.items() if former.get(k, v) != v]
    if not other:
        return ""
    return f"{', '.join(other)}: the run goes on, and its last bits differ from one uninterrupted"


class Log:
    """Running means of the losses, as JSON lines and to the trackers of the engine.

    step: that the run goes on from; lines of later ones, of a run that was killed, are taken out.
    """

    def __init__(self, config: TrainConfig, engine: Accelerator, step: int) -> None:
        self.config, self.engine, self.writes = config, engine, engine.is_main_process
        self.path = config.folder / "log.jsonl"
        self.sums: dict[str, Tensor] = {}
        self.count, self.since, self.means = 0, time.monotonic(), {}
        if self.writes:
            self.means = _cut(self.path, step)

    def add(
        self,
        state: TrainState,
        losses: Mapping[str, Tensor],
        progress: Callable[[TrainingProgress], None] | None,
    ) -> None:
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.mean()
        self.count += 1
        if state.step % self.config.run.log_every:
            return
        speed = self.count * self.config.batch / (time.monotonic() - self.since)
        self.write(state)
        if self.writes and progress:
            counts = {"step": state.step, "steps": self.config.steps, "losses": self.means}
            progress(TrainingProgress(**counts, samples_a_second=speed))

    def write(self, state: TrainState) -> None:
        """A row of the means since the last one, if a step was made; StateError if not finite."""
        sums, count = self.sums, self.count
        self.sums, self.count, self.since = {}, 0, time.monotonic()
        if not count:
            return
        self.means = {k: round(float(v) / count, 5) for k, v in sums.items()}
        if not all(map(math.isfinite, self.means.values())):
            raise state.diverged()
        if not self.writes:
            return
        row = {"step": state.step, "seconds": round(state.seconds, 1), **self.means}
        with writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.engine.log({f"loss/{k}": v for k, v in self.means.items()}, step=state.step)

    def picture(self, path: Path, sheet: Image.Image, step: int) -> None:
        """A sheet of samples, kept as a file and shown to the trackers."""
        with writing(path), atomic_write(path) as temporary:
            sheet.save(temporary, format="PNG")
        tracking.show(self.engine, path.parent.name, sheet, step)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses within, as of a full disk, is a StateError that names `path`."""
    try:
        yield
    except OSError as error:
        raise StateError(
            f"{path} was not written: {error}; the training state that was saved last stays: make "
            "room, and give the same command again"
        ) from None


def _cut(path: Path, step: int) -> dict[str, float]:
    """Leaves the whole rows of a log up to a step; the losses in the last of them, if any."""
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
    rows = [(line, row) for line in lines if (row := _row(line)) and row["step"] <= step]
    if len(rows) < len(lines):
        with writing(path), atomic_write(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line, _ in rows), encoding="utf-8")
    last = rows[-1][1] if rows else {}
    return {k: v for k, v in last.items() if k not in ("step", "seconds")}


def _row(line: str) -> dict[str, float] | None:
    """A line of a log; None where it is cut, or no numbers."""
    try:
        row = json.loads(line)
        return row if "step" in row and all(map(math.isfinite, row.values())) else None
    except (ValueError, TypeError, AttributeError):
        return None
