"""The server as a process that is watched: one that dies, of whatever, is started again.

The watcher holds the socket, so that who connects meanwhile waits and is not refused, and the
folder of jobs, so that the next server takes up what the dead one left.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from multiprocessing.connection import wait
from typing import Any

from everyway.apps.server.config import ServerConfig
from everyway.errors import EverywayError, UsageError

QUICK = 10.0
"""Seconds: a server that dies sooner after its start has failed to start."""
FAILED = 3
"""How often in a row."""
KEEP_ALIVE = 75
"""Seconds that a connection may be idle: longer than clients and balancers keep theirs, so that
none sends on one that is just being closed."""
SLACK = 5
"""Seconds beside the grace in which answers still go out."""
log = logging.getLogger("everyway.server")


def bound(host: str, port: int) -> socket.socket:
    """A socket at this address.  UsageError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as error:
        made.close()
        said = error.strerror or error
        raise UsageError(f"cannot listen at {host}, port {port}: {said}; give another") from None
    made.listen(1024)
    return made


def address(made: socket.socket) -> str:
    """Of a socket, as a browser takes it."""
    host, port = made.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def watched(config: ServerConfig, own: socket.socket) -> int:
    """Runs servers at a socket, one after the other, until one ends by itself or this process is
    told to; returns the exit code."""
    with tempfile.TemporaryDirectory(prefix="everyway-jobs-") as jobs:
        config = config.model_copy(update={"jobs": config.jobs or jobs})
        return _Watch(config, own).run()


class _Watch:
    """stopping: how often this process was told to stop."""

    def __init__(self, config: ServerConfig, own: socket.socket) -> None:
        self.config, self.socket, self.stopping, self.failed = config, own, 0, 0
        self.child: Any = None

    def run(self) -> int:
        former = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            while not self.stopping and self.failed < FAILED:
                began = time.monotonic()
                code = self._one()
                if code in (0, 1, 2) or self.stopping:
                    return max(code, 0)
                self.failed = self.failed + 1 if time.monotonic() - began < QUICK else 0
                log.error("the server ended (%s) and is started again", code)
            return 1
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _one(self) -> int:
        """A server's exit code; -9 where it was killed so."""
        context = multiprocessing.get_context("spawn")
        self.child = context.Process(target=_serve, args=(self.config, self.socket))
        self.child.start()
        self.child.join()
        return self.child.exitcode

    def _stop(self, number: int, frame: Any) -> None:
        """Once: it finishes what is under way.  Twice: it ends."""
        self.stopping += 1
        if self.child is not None and self.child.is_alive():
            (self.child.terminate if self.stopping == 1 else self.child.kill)()


def _serve(config: ServerConfig, own: socket.socket) -> None:
    """What runs in the process that is watched."""
    from everyway.apps.server.watching import log_lines

    os.setsid()  # Ctrl-C is told to the watcher alone
    log_lines()
    threading.Thread(target=_end_with_watcher, daemon=True).start()
    try:
        _run(config, own)
    except EverywayError as error:
        print(f"everyway: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)


def _end_with_watcher() -> None:
    watcher = multiprocessing.parent_process()
    if watcher is not None:
        wait([watcher.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)


def _run(config: ServerConfig, own: socket.socket) -> None:
    import uvicorn

    from everyway.apps.server.app import build

    app = build(config)

    class Server(uvicorn.Server):
        """Takes no more jobs from the moment that it is told to end."""

        def handle_exit(self, sig: int, frame: Any) -> None:
            app.state.scheduler.stop()
            super().handle_exit(sig, frame)

    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(config.grace) + SLACK,
    )
    log.info(
        "ready",
        extra={"fields": {"address": address(own), "models": [*app.state.scheduler.models]}},
    )
    Server(settings).run(sockets=[own])
