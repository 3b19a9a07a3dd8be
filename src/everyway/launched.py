"""Which of several processes this one is, as `torchrun` and `accelerate launch` tell it."""

from __future__ import annotations

import os


def rank() -> int:
    """Of this process among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Among those of its machine, of which each has a GPU of its own."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
