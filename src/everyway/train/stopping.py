"""Ctrl-C during a training: noted, and heeded where a step is whole."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def polite_stop() -> Iterator[list[int]]:
    """Ctrl-C is noted in a list that a loop reads between steps; once more does nothing more.

    A launcher may pass on a signal that this process has had already, and the saving that follows
    the last step has to finish.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    former = signal.signal(signal.SIGINT, lambda signum, frame: asked.append(signum))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, former)


def stoppable(main: Callable[[], int]) -> int:
    """A command's exit code: 130, after one line, where Ctrl-C ended it."""
    try:
        return main()
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from here\n")
        return 130
