"""What runs for somebody, and how it is ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Work:
    """What runs in one place of somebody's page.  stopped: whether it was told to end."""

    def __init__(self) -> None:
        self.stopped, self._cancel = False, lambda: None  # type: bool, Callable[[], Any]

    def ends_by(self, cancel: Callable[[], Any]) -> None:
        """What ends the part of it that has begun."""
        self._cancel = cancel
        if self.stopped:
            cancel()

    def stop(self) -> None:
        self.stopped = True
        self._cancel()
