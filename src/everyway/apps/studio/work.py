"""Work that runs for a visitor, and how it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Work:
    """Work that runs in one place of a visitor's page.  stopped: whether `stop` was called."""

    def __init__(self) -> None:
        self.stopped, self._cancel = False, lambda: None  # type: bool, Callable[[], Any]

    def ends_by(self, cancel: Callable[[], Any]) -> None:
        """cancel: ends the part of the work that runs now; called at once if it was stopped."""
        self._cancel = cancel
        if self.stopped:
            cancel()

    def stop(self) -> None:
        """Ends the work."""
        self.stopped = True
        self._cancel()
