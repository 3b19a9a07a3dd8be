"""/v1/everyway/jobs: the whole request, as a job that is followed, cancelled, and kept on disk."""

from __future__ import annotations

import logging
import queue
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import anyio
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import FileResponse, StreamingResponse
from filelock import FileLock
from pydantic import BaseModel

from everyway.apps.server.answers import Conflict, Fault, Missing, refusal
from everyway.apps.server.border import JobRequest, attached
from everyway.apps.server.config import Limits
from everyway.apps.server.journal import Journal
from everyway.apps.server.scheduler import (
    Busy,
    Closed,
    End,
    Event,
    Scheduler,
    Step,
    Ticket,
    UnknownModel,
)
from everyway.apps.server.served import shown
from everyway.apps.server.streams import apart, line, streamed, told
from everyway.errors import EverywayError
from everyway.generate import Result

log = logging.getLogger("everyway.server")
NEWS = 0.3
"""Seconds between looks at a job that another server works on."""
RESCUE, TIDY = 5.0, 60.0
"""Seconds between looks for jobs that have lost their server, and for those to be removed."""


@dataclass(eq=False)
class Held:
    """A job of this server.  lost: why a result of it could not be written.  stuck: its end could
    not be, and is written later."""

    ticket: Ticket
    lock: FileLock
    lost: Exception | None = None
    stuck: bool = False

    @property
    def end(self) -> End:
        """As far as those are concerned who read what is written."""
        if self.lost:
            return End(status="failed", error=self.lost)
        return End(status=self.ticket.status, error=self.ticket.error)


class Desk:
    """Between callers, the queue and the journal: what is accepted is written, run and kept."""

    def __init__(self, scheduler: Scheduler, journal: Journal, limits: Limits) -> None:
        self.scheduler, self.journal, self.limits = scheduler, journal, limits
        self.held: dict[str, Held] = {}
        self._told = queue.SimpleQueue[tuple[str, Event] | None]()
        self._writer = threading.Thread(target=self._write, name="everyway-journal", daemon=True)
        self._writer.start()
        self._rescued = self._tidied = 0.0

    def post(self, asked: JobRequest) -> str:
        """The id of a new job.  Raises as `attached` and `Scheduler.submit`, and OSError."""
        asked = asked.model_copy(update={"model": self.scheduler.name(asked.model), "n": asked.n})
        job = attached(asked, self.scheduler.model(asked), self.limits)
        ticket = self.scheduler.submit(job, id=secrets.token_hex(16))
        try:
            lock = self.journal.add(ticket.id, asked.model_dump(mode="json", exclude_unset=True))
        except OSError:
            ticket.cancel()
            raise
        self._follow(ticket, lock)
        return ticket.id

    def view(self, id: str) -> dict[str, Any]:
        """What is known of a job, as `Job` in the API has it."""
        held = self.held.get(id)
        known = self.journal.view(id)
        if held is None or known["ended"]:
            return {**known, "done": float(known["status"] == "done")}
        status, error = held.ticket.status, None
        if held.stuck:
            status, error = held.end.status, _told_of(held.end)
        elif held.ticket.ended:
            status = "running"  # until its end is written
        return {**known, "status": status, "done": held.ticket.done, "error": error}

    def cancel(self, id: str) -> None:
        self.journal.view(id)
        if id in self.held:
            self.held[id].ticket.cancel()
        else:
            self.journal.cancel(id)

    def remove(self, id: str) -> None:
        """Raises Conflict for a job that has not ended."""
        if self.view(id)["ended"] is None:
            raise Conflict("the job has not ended; cancel it first")
        self.journal.remove(id)

    def look_around(self) -> None:
        """What is due: jobs that others cancelled, that lost their server, that are old."""
        now = time.monotonic()
        for id, held in [*self.held.items()]:
            if self.journal.unwanted(id):
                held.ticket.cancel()
            if held.stuck:
                self._told.put((id, held.end))
        if now > self._rescued + RESCUE:
            self._rescued = now
            self.rescue()
        if now > self._tidied + TIDY:
            self._tidied = now
            self.journal.tidy()

    def rescue(self) -> None:
        """Takes up jobs that have lost their server, as many as there is room for."""
        for id, lock in self.journal.lost():
            try:
                self._take(id, lock)
            except (Busy, Closed):
                lock.release()
                return
            except UnknownModel:  # it is for another server that shares the folder
                lock.release()
            except Exception as error:  # of this job alone
                log.warning("job %s cannot be taken up: %s", id, error)
                self._ended(id, End(status="failed", error=error))
                lock.release()

    def close(self) -> None:
        """Once the queue is closed: what was handed back is left for others."""
        self._told.put(None)
        self._writer.join()

    def _take(self, id: str, lock: FileLock) -> None:
        request = self.journal.request(id)
        if request is None:
            raise EverywayError("the server died each time that it worked on this job")
        asked = JobRequest(**request)
        job = attached(asked, self.scheduler.model(asked), self.limits)
        self.scheduler.admit(asked.n)
        self.journal.begin_again(id)
        self._follow(self.scheduler.submit(job, id=id), lock)
        log.warning("job %s, which had lost its server, is taken up", id)

    def _follow(self, ticket: Ticket, lock: FileLock) -> None:
        self.held[ticket.id] = Held(ticket, lock)

        def tell(event: Event) -> None:
            if not isinstance(event, Step):
                self._told.put((ticket.id, event))

        ticket.watch(tell)

    def _write(self) -> None:
        """Writes what was made, in the order in which it was."""
        while (told := self._told.get()) is not None:
            id, event = told
            held = self.held.get(id)
            if held is None:
                continue
            try:
                if isinstance(event, Result):
                    self.journal.save(id, event)
                else:
                    self._ended(id, held.end)
                    self.held.pop(id)
                    held.lock.release()
            except Exception as error:  # of the disk: the next may fit again
                log.warning("job %s cannot be written: %s", id, error)
                if isinstance(event, Result):
                    held.lost = error
                    held.ticket.fail(error)
                held.stuck = not isinstance(event, Result)

    def _ended(self, id: str, end: End) -> None:
        if end.status != "returned":  # or else another server goes on
            self.journal.end(id, end.status, _told_of(end))


def _told_of(end: End) -> dict[str, Any] | None:
    """Of an error, what callers are told."""
    return refusal(end.error)[1].model_dump() if end.error else None


# -- HTTP --------------------------------------------------------------------------------------


class JobView(BaseModel):
    """A job.  status: waiting, running, done, failed, cancelled, or returned."""

    id: str
    status: str
    kind: str | None
    model: str | None
    n: int | None
    done: float
    created: float
    ended: float | None
    error: Fault | None
    results: list[dict[str, Any]] = []


class JobList(BaseModel):
    """Jobs, the newest first."""

    data: list[JobView]


router = APIRouter(prefix="/v1/everyway/jobs", tags=["jobs"])
Id = Annotated[str, Header()]


def desk(request: Request) -> Desk:
    return request.app.state.desk


@router.post("", status_code=202)
async def post(request: Request, asked: JobRequest) -> JobView:
    """A new job, which waits until it runs."""
    own = desk(request)
    id = await request.app.state.reading(own.post, asked)
    return await apart(_view, own, id)


@router.get("")
async def every(
    request: Request, limit: Annotated[int, Query(ge=1, le=100)] = 20, status: str | None = None
) -> JobList:
    """The newest jobs, without their results."""
    return JobList(data=await apart(_list, desk(request), limit, status))


@router.get("/{id}")
async def one(request: Request, id: str) -> JobView:
    """A job, with the results that it has so far; what is in a file has its address there."""
    return await apart(_view, desk(request), id)


@router.post("/{id}/cancel")
async def cancel(request: Request, id: str) -> JobView:
    """No further step is computed; what was made so far is kept."""
    await apart(desk(request).cancel, id)
    return await apart(_view, desk(request), id)


@router.delete("/{id}", status_code=204)
async def remove(request: Request, id: str) -> None:
    """A job that has ended, and what it made."""
    await apart(desk(request).remove, id)


@router.get("/{id}/files/{name}", response_class=FileResponse)
async def file(request: Request, id: str, name: str) -> FileResponse:
    """A picture, with its facts, or an array (.npy) of a result."""
    path = await apart(desk(request).journal.file, id, name)
    return FileResponse(path, headers={"x-content-type-options": "nosniff"})


@router.get("/{id}/events", response_class=StreamingResponse)
async def events(
    request: Request, id: str, last_event_id: Annotated[str, Header()] = "0"
) -> StreamingResponse:
    """Server-sent events until the job's end: `step` with previews, `result`, `end`.

    A client that comes back gets the results after its Last-Event-ID.
    """
    own = desk(request)
    await apart(own.view, id)
    begin = int(last_event_id) if last_event_id.isascii() and last_event_id.isdigit() else 0
    return streamed(_followed(own, id, begin))


def _list(own: Desk, limit: int, status: str | None) -> list[JobView]:
    found: list[JobView] = []
    for id in own.journal.ids():
        try:
            view = own.view(id)
        except (Missing, OSError):  # removed meanwhile
            continue
        if status in (None, view["status"]):
            found.append(JobView(**view))
        if len(found) == limit:
            break
    return found


def _view(own: Desk, id: str) -> JobView:
    view = own.view(id)
    return JobView(**view, results=[_addressed(id, row) for row in own.journal.rows(id)])


def _addressed(id: str, row: dict[str, Any]) -> dict[str, Any]:
    """With addresses in place of the names of files."""
    own = {k: v for k, v in row.items() if isinstance(v, str) and v[:5].isdigit()}
    return row | {k: f"{router.prefix}/{id}/files/{v}" for k, v in own.items()}


async def _followed(own: Desk, id: str, sent: int) -> AsyncIterator[bytes]:
    held = own.held.get(id)
    if held is not None:
        async for event in told(held.ticket):
            if isinstance(event, Step):
                yield line(_step(event), "step")
                continue
            for row in (await apart(own.journal.rows, id))[sent:]:
                sent += 1
                yield line(_addressed(id, row), "result", str(sent))
    while True:
        view = await apart(own.view, id)
        for row in (await apart(own.journal.rows, id))[sent:]:
            sent += 1
            yield line(_addressed(id, row), "result", str(sent))
        returned = id not in own.held and not own.scheduler.open
        if view["ended"] or view["error"] or returned:
            status = "returned" if returned and not view["ended"] else view["status"]
            yield line({"status": status, "error": view["error"]}, "end")
            return
        await anyio.sleep(NEWS / 10 if id in own.held else NEWS)


def _step(event: Step) -> dict[str, Any]:
    plain = {n: getattr(event, n) for n in ("done", "stage", "stages", "step", "steps")}
    return plain | {"previews": [*_previews(event)]}


def _previews(event: Step) -> Iterator[dict[str, Any]]:
    for frame in event.frames:
        yield {
            "sample": frame.sample,
            "outputs": shown(frame.outputs),
            "certainty": shown(frame.certainty),
        }
