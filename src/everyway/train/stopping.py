"""Ctrl-C, SIGTERM and SIGHUP during a training: noted, and heeded where a step is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = [getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]


@contextmanager
def polite_stop() -> Iterator[list[int]]:
    """Each signal is noted in a list that a loop reads between steps; once more does nothing more.

    A launcher may pass on a signal that this process has had already, and the saving that follows
    the last step has to finish.  A SIGHUP that is ignored, as under nohup, stays so.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in former.items():
        if handler is not signal.SIG_IGN or number == signal.SIGINT:
            signal.signal(number, lambda signum, frame: asked.append(signum))
    try:
        yield asked
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
