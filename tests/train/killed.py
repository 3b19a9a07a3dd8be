"""A training that is left alone, and one that is killed ten times: `test_killed` compares them.

    python killed.py OUT SEED

Every training is a process of its own.  A kill comes at a random moment of one, while it is opened
or in the steps that follow; every step is saved, so that many come while a state is written.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch.utils.tensorboard  # noqa: F401  loaded once, and not in every process

import everyway.data.shapes  # noqa: F401
from everyway.train.config import names, resolve
from everyway.train.loop import train
from everyway.train.state import metadata_of

SETTINGS = dict(
    steps=40, cache=48, batch=4, log_every=1, warmup=2, save_every_s=0, keep=2, device="cpu",
    precision="fp32",
)  # fmt: skip


def begun(out: Path) -> int:
    """The process that trains there."""
    config = resolve("nano", SETTINGS, str(out))
    if (process := os.fork()) == 0:
        try:
            train(config)
        finally:
            os._exit(0)
    return process


def lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


def main(out: Path, seed: int) -> None:
    names()  # every system is loaded
    began = time.monotonic()
    os.waitpid(begun(out / "whole"), 0)
    whole, draw, kills = time.monotonic() - began, random.Random(seed), list[int]()
    log = out / "killed" / "log.jsonl"
    while len(kills) < 10:
        process, size = begun(out / "killed"), lines(log)
        while draw.random() < 0.99 and lines(log) <= size:
            time.sleep(whole / 1000)
        time.sleep(draw.uniform(0, whole / 20))
        if os.waitpid(process, os.WNOHANG) != (0, 0):
            raise SystemExit("it ended before it was killed; make it longer")
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        state = out / "killed" / "state.safetensors"
        kills.append(metadata_of(state)["step"] if state.exists() else 0)
    os.waitpid(begun(out / "killed"), 0)
    print(*kills)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
