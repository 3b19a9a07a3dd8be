"""From the threads that compute to those who wait for it over HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from anyio.to_thread import run_sync
from fastapi import Request
from fastapi.responses import StreamingResponse

from everyway.apps.server.answers import refusal
from everyway.apps.server.scheduler import End, Event, Ticket

if TYPE_CHECKING:
    from everyway.generate import Result

T = TypeVar("T")
QUIET = 15.0
"""Seconds after which a stream without news shows that it lives."""
READING = 4
"""Requests that are read at a time, so that many large pictures do not fill the memory."""
DONE = b"data: [DONE]\n\n"
"""The end of a stream, as OpenAI's clients wait for it."""


async def apart(call: Callable[..., T], *args: Any, **settings: Any) -> T:
    """A call that may wait for a disk, in a thread."""
    return await run_sync(partial(call, *args, **settings))


class Reading:
    """Calls that read what was sent: a few at a time, in threads."""

    def __init__(self) -> None:
        self.limiter = anyio.CapacityLimiter(READING)

    async def __call__(self, call: Callable[..., T], *args: Any, **settings: Any) -> T:
        return await run_sync(partial(call, *args, **settings), limiter=self.limiter)


async def told(ticket: Ticket) -> AsyncIterator[Event]:
    """What becomes of a job, as `Ticket.events`."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def tell(event: Event) -> None:
        with suppress(RuntimeError):  # the loop has gone, and with it whoever waited
            loop.call_soon_threadsafe(queue.put_nowait, event)

    unwatch = ticket.watch(tell)
    try:
        while True:
            yield (event := await queue.get())
            if isinstance(event, End):
                return
    finally:
        unwatch()


async def results(ticket: Ticket, request: Request) -> list[Result]:
    """All that is made of a job; it is cancelled when the client has gone."""
    end = asyncio.ensure_future(_end(ticket))
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([end, gone], return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        end.cancel()
        ticket.cancel()  # which does nothing to one that has ended
    if ticket.error is not None:
        raise ticket.error
    return [*ticket.made]


async def _end(ticket: Ticket) -> None:
    async for event in told(ticket):
        if isinstance(event, End):
            return


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def line(data: Any, event: str = "", id: str = "") -> bytes:
    """A server-sent event of JSON."""
    head = (f"event: {event}\n" if event else "") + (f"id: {id}\n" if id else "")
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def streamed(lines: AsyncIterator[bytes]) -> StreamingResponse:
    """Server-sent events; a fault is the last of them, since the status has been sent."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_alive(lines), media_type="text/event-stream", headers=headers)


async def _alive(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    following = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(lines))
            ready, _ = await asyncio.wait([following], timeout=QUIET)
            if not ready:
                yield b": waiting\n\n"
                continue
            try:
                yield following.result()
            except StopAsyncIteration:
                return
            following = None
    except Exception as error:
        yield line({"error": refusal(error)[1].model_dump()}, "error")
    finally:
        if following is not None:
            following.cancel()
            with suppress(BaseException):
                await following
        await lines.aclose()  # type: ignore[attr-defined]
