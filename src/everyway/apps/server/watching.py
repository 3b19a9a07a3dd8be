"""What an operator sees: a line of JSON a request, numbers for Prometheus, and whether it lives.

Neither holds what was asked for: prompts and pictures are the callers' own.
"""

from __future__ import annotations

import json
import logging
import secrets
import sys
import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from everyway.apps.server.answers import answer, refusal
from everyway.apps.server.scheduler import Scheduler

GONE = 499
"""Of a request whose client went before it was answered, in logs and numbers."""
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
log = logging.getLogger("everyway.server")


class Lines(logging.Formatter):
    """A record as a line of JSON, with what `extra={"fields": ...}` gives it."""

    def format(self, record: logging.LogRecord) -> str:
        own = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + "Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            own["traceback"] = self.formatException(record.exc_info)
        return json.dumps(own, ensure_ascii=False)


def log_lines() -> None:
    """What this process logs goes to standard error, a line of JSON each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    root = logging.getLogger()
    root.handlers, root.level = [handler], logging.INFO
    logging.getLogger("everyway").setLevel(logging.INFO)


class Numbers:
    """What Prometheus reads."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.registry, self.scheduler = CollectorRegistry(), scheduler
        self.requests = Counter(
            "everyway_requests",
            "Requests answered",
            ["method", "path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "everyway_request_seconds",
            "Until the answer's end",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self.registry.register(self)  # type: ignore[arg-type]

    def collect(self) -> Iterable[Metric]:
        """Of the queue, as it is now."""
        own = self.scheduler
        yield GaugeMetricFamily("everyway_jobs", "Jobs that run or wait", len(own.live))
        yield GaugeMetricFamily("everyway_waiting_samples", "Samples that wait", own.waiting)
        yield CounterMetricFamily("everyway_batches", "Batches computed", own.batches)
        yield CounterMetricFamily("everyway_samples", "Samples computed", own.samples)


class Watched:
    """Gives every request a name, its line in the log, and its place in the numbers."""

    def __init__(self, app: ASGIApp, numbers: Numbers) -> None:
        self.app, self.numbers = app, numbers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        scope["request_id"] = own = secrets.token_hex(8)
        began, status = time.monotonic(), GONE

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {
                    **message,
                    "headers": [*message["headers"], (b"x-request-id", own.encode())],
                }
            await send(message)

        try:
            await self.app(scope, receive, named)
        except Exception as error:  # a fault of ours, or a full disk
            ours = refusal(error)[0] == 500
            log.error("request %s: %s", own, error, exc_info=error if ours else None)
            if status != GONE:
                raise  # the answer has begun
            await answer(error, own)(scope, receive, named)
        finally:
            self._note(scope, status, time.monotonic() - began)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if path != "other" else "other"
        self.numbers.requests.labels(method, path, str(status)).inc()
        self.numbers.seconds.labels(path).observe(seconds)
        fields = {"request": scope["request_id"], "method": method, "path": path}
        fields |= {"status": status, "seconds": round(seconds, 4)}
        log.info("request", extra={"fields": fields})
