"""The queue that many callers share: jobs wait, samples that are alike run together, and every
caller follows its own.

    scheduler = Scheduler({"mini": load("mini")})
    ticket = scheduler.submit(Job(request=...))     Busy, Closed, or RequestError at once
    for event in ticket.events(): ...               Step with frames, Result, and End at last
    ticket.results(), ticket.cancel(), scheduler.live

The HTTP API and the studio submit here, and both are told of the same events.  This interface is
stable: `Scheduler` (submit, live, models, close), `Ticket` (events, watch, results, cancel, status,
last, made) and the events `Step`, `Result` and `End`.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from everyway.errors import EverywayError
from everyway.request import NO_STAGES, OWN_STAGES, GenerateRequest, RequestError, known

if TYPE_CHECKING:
    from torch import Tensor

    from everyway.generate import Model, Preview, Result
    from everyway.job import Job, Sample

SHARE = 0.1
"""Of the time, at most, in which frames are decoded."""
FRAMES = 4
"""Of one job, at most, in one step."""
ENDS = ("done", "failed", "cancelled", "returned")
log = logging.getLogger("everyway.server")


class UnknownModel(RequestError):
    """A model that is not among those of the queue."""


class Busy(EverywayError):
    """The queue is full.  retry_after: seconds until there is room, as far as can be told."""

    def __init__(self, waiting: int, retry_after: float) -> None:
        super().__init__(f"{waiting} samples wait already; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


class Closed(EverywayError):
    """The queue takes nothing any more, as it is shut down."""


class Cancelled(EverywayError):
    """Whoever submitted a job has cancelled it."""


class Expired(EverywayError):
    """A job was not done in its time."""


class Returned(EverywayError):
    """A job was handed back undone, as the queue was shut down."""


class Refused(EverywayError):
    """A content filter refuses what is asked for, or what was made of it."""


Filter = Callable[[Mapping[str, Any], bool], str | None]
"""(name -> a text, a picture or another input or output; whether it was made, or is asked for) ->
why it is refused, or None."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """How one sample of a job looks on its way.

    sample: its number in the job.  outputs: name -> value, as `Result.outputs` has them.
    certainty: name -> how sure each token is, as `Model.frame` has it.
    """

    sample: int
    outputs: Mapping[str, Any]
    certainty: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """A job on its way.  done: share of all its samples, in [0, 1].  The others count from 1.

    frames: of the samples that run now, where they are wanted and there was time; else none.
    """

    done: float
    stage: int
    stages: int
    step: int
    steps: int
    frames: tuple[Frame, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class End:
    """A job has ended.  status: one of ENDS.  error: why, unless it is done."""

    status: str
    error: Exception | None = None


Event = Any
"""Step, Result or End."""


class Ticket:
    """A job's place in the queue, and what becomes of it.  Threads may share it.

    job: its request names the model that runs it.  previews: whether steps have frames.
    last: the latest Step that has frames, which stays when the job is cancelled ("stop and keep").
    """

    def __init__(
        self, id: str, job: Job, samples: Sequence[Sample], previews: bool, timeout: float
    ) -> None:
        self.id, self.job, self.previews = id, job, previews
        self.created = time.time()
        self.deadline = time.monotonic() + timeout
        self.status, self.error = "waiting", None  # type: str, Exception | None
        self.last: Step | None = None
        self._left = deque(samples)
        self._alike = samples[0].alike
        self._size, self._rows, self._finished = len(samples), samples[0].rows, 0
        self._alone = False  # whether it shares no batch any more, as one of its batches failed
        self._made: list[Result] = []
        self._step = Step(done=0.0, stage=1, stages=1, step=0, steps=1)
        self._watchers: list[Callable[[Event], None]] = []
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<Ticket {self.id} {self.status}, {self.done:.0%} of {self.job.request.kind}>"

    @property
    def request(self) -> GenerateRequest:
        """As it was asked for; every Result has its own, settled."""
        return self.job.request

    @property
    def done(self) -> float:
        """Share of all work, in [0, 1]."""
        return 1.0 if self.status == "done" else self._step.done

    @property
    def ended(self) -> bool:
        return self.status in ENDS

    @property
    def made(self) -> tuple[Result, ...]:
        """The results so far, in the order in which they were made."""
        with self._lock:
            return tuple(self._made)

    def watch(self, tell: Callable[[Event], None]) -> Callable[[], None]:
        """Tells all results so far and the step it is at, then every event as it happens; returns
        what ends this.  `tell` is called in the thread that computes, and must not wait."""
        with self._lock:
            for event in [*self._made, self._step]:
                tell(event)
            if self.ended:
                tell(End(status=self.status, error=self.error))
            else:
                self._watchers.append(tell)

        def unwatch() -> None:
            with self._lock:
                if tell in self._watchers:
                    self._watchers.remove(tell)

        return unwatch

    def events(self) -> Iterator[Event]:
        """As `watch`, until End, which is the last."""
        told = SimpleQueue[Event]()
        unwatch = self.watch(told.put)
        try:
            while True:
                yield (event := told.get())
                if isinstance(event, End):
                    return
        finally:
            unwatch()

    def results(self) -> list[Result]:
        """All of them, waited for.  Raises what ended the job before it was done."""
        for event in self.events():
            if isinstance(event, End) and event.error is not None:
                raise event.error
        return [*self.made]

    def cancel(self) -> bool:
        """No further step is computed for it; False where it had ended already."""
        return self._end("cancelled", Cancelled("the job was cancelled"))

    def fail(self, error: Exception) -> bool:
        """As `cancel`, where what was made cannot be kept."""
        return self._end("failed", error)

    def _end(self, status: str, error: Exception | None = None) -> bool:
        with self._lock:
            if self.ended:
                return False
            self.status, self.error = status, error
            self._left.clear()
            self._tell(End(status=status, error=error))
            self._watchers.clear()
            return True

    def _add(self, result: Result) -> None:
        """A result, unless a batch that failed has brought it already."""
        with self._lock:
            seen = {(r.seed, r.part) for r in self._made}
            if not self.ended and (result.seed, result.part) not in seen:
                self._made.append(replace(result, index=len(self._made), job=0))
                self._tell(self._made[-1])

    def _moved(self, share: float, samples: int, event: Preview, frames: Sequence[Frame]) -> None:
        """A step, at a share of `samples` of its samples."""
        with self._lock:
            if self.ended:
                return
            done = (self._finished + share * samples) / self._size
            where = {n: getattr(event, n) for n in ("stage", "stages", "step", "steps")}
            self._step = Step(done=done, frames=tuple(frames), **where)
            self.last = self._step if frames else self.last
            self._tell(self._step)

    def _tell(self, event: Event) -> None:
        for tell in [*self._watchers]:
            tell(event)


@dataclass(frozen=True, kw_only=True, eq=False)
class Turn:
    """Samples that run together, each with the ticket that it is of."""

    model: Model
    picked: Sequence[tuple[Ticket, Sample]]
    tickets: Sequence[Ticket] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tickets", list(dict.fromkeys(t for t, _ in self.picked)))

    @property
    def batch(self) -> list[Sample]:
        """As the model runs it: the job of each is the place of its ticket."""
        return [replace(s, job=self.tickets.index(t)) for t, s in self.picked]

    def samples_of(self, ticket: Ticket) -> list[Sample]:
        return [sample for own, sample in self.picked if own is ticket]


class Scheduler:
    """Runs jobs on models that callers name.

    models: the only names that there are -> model; "default" is the first.
    together: samples in a batch, at most.  gather: seconds that the first of a batch waits for
    others.  waiting: samples that may wait; more are refused (Busy).  timeout: seconds that a job
    may take, from when it is submitted.  workers: threads that compute, as many as devices.
    refuses: a content filter.  stamp: a result -> the one that is given, as with a watermark.

    Samples of one batch are those that are alike (`Sample.alike`), in turns of the jobs, so that a
    large job does not keep small ones waiting.  Each is what it is alone, bit for bit on a CPU.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        *,
        together: int = 16,
        gather: float = 0.01,
        waiting: int = 256,
        timeout: float = 600.0,
        workers: int = 1,
        refuses: Filter | None = None,
        stamp: Callable[[Result], Result] | None = None,
    ) -> None:
        self.models = dict(models)
        self.together, self.gather = together, gather
        self.limit, self.timeout = waiting, timeout
        self.refuses, self.stamp = refuses, stamp
        self.batches = self.samples = 0  # run so far
        self._pace = 0.1  # seconds a sample, as it was of late
        self._queue, self._running = deque[Ticket](), list[Ticket]()
        self._changed, self._open, self._stopped = threading.Condition(), True, 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"everyway-{k}", daemon=True)
            for k in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def model(self, request: GenerateRequest) -> Model:
        """The model that a request names, with the one that enlarges its pictures where it names
        one.  UnknownModel for others than `models`."""
        model = self.models[self.name(request.model)]
        if request.upscale in (OWN_STAGES, NO_STAGES):
            return model
        return model.with_upscaler(self.models[self.name(request.upscale)])

    def name(self, asked: str) -> str:
        """That of a model; UnknownModel where there is none of it."""
        try:
            named = next(iter(self.models)) if asked == "default" else asked
            return known("model", named, self.models)
        except RequestError as error:
            raise UnknownModel(str(error)) from None

    def submit(
        self, job: Job, *, previews: bool = True, timeout: float | None = None, id: str = ""
    ) -> Ticket:
        """Reads and checks a job and puts it into the queue.

        timeout: seconds, where that is less than the queue's own.  id: the ticket's, by default 32
        random hex digits.
        Raises RequestError for what cannot be made, Refused, Busy and Closed.
        """
        self.admit(job.request.n)
        model = self.model(job.request)
        named = {"model": self.name(job.request.model)}
        job = replace(job, request=job.request.model_copy(update=named))
        samples = [*model.samples(job)]
        given = samples[0].inputs.values.items()
        self._check({name: values[0] for name, values in given}, made=False)
        limit = self.timeout if timeout is None else min(timeout, self.timeout)
        job = replace(job, files={})  # they have been read
        ticket = Ticket(id or secrets.token_hex(16), job, samples, previews, limit)
        with self._changed:
            self.admit(len(samples))
            self._queue.append(ticket)
            self._changed.notify()
        return ticket

    @property
    def live(self) -> tuple[Ticket, ...]:
        """The jobs that run or wait, the first to run first."""
        with self._changed:
            every = dict.fromkeys([*self._running, *self._queue])
        return tuple(ticket for ticket in every if not ticket.ended)

    @property
    def waiting(self) -> int:
        """How many samples wait."""
        with self._changed:
            return sum(len(ticket._left) for ticket in self._queue)

    @property
    def open(self) -> bool:
        """Whether it takes jobs."""
        return self._open

    @property
    def sound(self) -> bool:
        """Whether its threads live; one that a fault of ours has ended will compute no more."""
        return all(thread.is_alive() for thread in self._threads) or not self._open

    def stop(self) -> None:
        """Takes no more jobs, and goes on with those there are."""
        with self._changed:
            self._stopped = time.monotonic() if self._open else self._stopped
            self._open = False
            self._changed.notify_all()

    def close(self, grace: float = 0.0) -> None:
        """Stops, waits for the jobs that there are until `grace` seconds after that, and hands back
        the rest (Returned)."""
        self.stop()
        until = self._stopped + grace
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        for ticket in self.live:
            ticket._end("returned", Returned("the server was shut down before it was done"))
        for thread in self._threads:  # at most a step
            thread.join()

    def admit(self, samples: int) -> None:
        """Raises Closed, and Busy where so many more would not fit."""
        if not self._open:
            raise Closed("the server is being shut down; try another one, or again in a while")
        waiting = self.waiting
        if waiting and waiting + samples > self.limit:
            raise Busy(waiting, min(60.0, max(1.0, waiting * self._pace)))

    def _check(self, what: Mapping[str, Any], made: bool) -> None:
        if self.refuses and (why := self.refuses(what, made)):
            raise Refused(why)

    def _work(self) -> None:
        while turn := self._next():
            began = time.monotonic()
            self._run(turn)
            pace = (time.monotonic() - began) / len(turn.picked)
            with self._changed:
                self._pace += 0.2 * (pace - self._pace)
                self.batches, self.samples = self.batches + 1, self.samples + len(turn.picked)
                for ticket in turn.tickets:  # which may run in another turn, too
                    self._running.remove(ticket)
                self._changed.notify_all()

    def _next(self) -> Turn | None:
        """What runs next, waited for; None at the end."""
        with self._changed:
            while True:
                self._expire()
                self._queue = deque(t for t in self._queue if t._left)
                if not self._queue:
                    if not self._open:
                        return None
                    self._changed.wait()
                    continue
                together = self._together()
                left = self._queue[0].created + self.gather - time.time()
                if left <= 0 or sum(len(t._left) for t in together) >= self.together:
                    return self._turn(together)
                self._changed.wait(left)

    def _together(self) -> list[Ticket]:
        """The first ticket, and those that may share a batch with it."""
        first = self._queue[0]
        if first._alone or first._rows > 1:
            return [first]
        asked = first.request
        return [
            t
            for t in self._queue
            if (t._alike, t.request.model, t._alone) == (first._alike, asked.model, False)
        ]

    def _turn(self, together: Sequence[Ticket]) -> Turn:
        """One sample of each in turn, until the batch is full; who had a turn is the last then."""
        size = 1 if together[0]._rows > 1 else self.together
        picked: list[tuple[Ticket, Sample]] = []
        for ticket in cycle(together):
            if len(picked) == size or not any(t._left for t in together):
                break
            with ticket._lock:
                if ticket._left:
                    picked.append((ticket, ticket._left.popleft()))
                    ticket.status = "running"
        turn = Turn(model=self.model(picked[0][0].request), picked=picked)
        self._queue = deque(t for t in self._queue if t not in turn.tickets)
        self._queue.extend(t for t in turn.tickets if t._left)
        self._running += turn.tickets
        return turn

    def _run(self, turn: Turn) -> None:
        """One batch, until all whose it is have ended."""
        from everyway.generate import Preview

        events, look = turn.model.batch(turn.batch), _Look()
        try:
            for event in events:
                self._expire()
                if all(ticket.ended for ticket in turn.tickets):
                    return
                if isinstance(event, Preview):
                    self._show(turn, event, look)
                else:
                    self._give(turn.tickets[event.job], event)
        except Exception as error:
            self._failed(turn, error)
            return
        finally:
            events.close()
        for ticket in turn.tickets:
            ticket._finished += len(turn.samples_of(ticket))
            if ticket._finished == ticket._size:
                ticket._end("done")

    def _give(self, ticket: Ticket, result: Result) -> None:
        try:
            self._check(result.outputs, made=True)
        except Refused as error:
            ticket.fail(error)
        else:
            ticket._add(self.stamp(result) if self.stamp else result)

    def _failed(self, turn: Turn, error: Exception) -> None:
        """A ticket that was alone fails; several are tried alone, as the fault may be of one."""
        if not isinstance(error, EverywayError):
            log.exception("a batch of %d samples failed", len(turn.picked))
        if len(turn.tickets) == 1:
            turn.tickets[0].fail(error)
            return
        with self._changed:
            for ticket in turn.tickets:
                with ticket._lock:
                    if not ticket.ended:
                        ticket._alone = True
                        ticket._left.extendleft(reversed(turn.samples_of(ticket)))
                        if ticket not in self._queue:
                            self._queue.append(ticket)

    def _show(self, turn: Turn, event: Preview, look: _Look) -> None:
        """A step, to all whose samples are in it."""
        wanted = look.due and any(t.previews and not t.ended for t in turn.tickets)
        began = time.monotonic()
        for ticket in turn.tickets:
            own = turn.samples_of(ticket)
            frames = self._frames(turn, event, ticket) if wanted and ticket.previews else []
            ticket._moved(event.done, len(own), event, frames)
        if wanted:
            look.took(time.monotonic() - began)

    def _frames(self, turn: Turn, event: Preview, ticket: Ticket) -> list[Frame]:
        frames, seed = list[Frame](), ticket.request.seed
        rows = [row for row, job in enumerate(event.jobs) if turn.tickets[job] is ticket]
        samples = [s for s in turn.samples_of(ticket) for _ in range(s.rows)]
        for row, sample in [*zip(rows, samples)][:FRAMES]:
            outputs, certainty = turn.model.frame(event.progress, row, event.system)
            if not (self.refuses and self.refuses(outputs, True)):
                number = sample.request.seed - seed
                frames.append(Frame(sample=number, outputs=outputs, certainty=certainty))
        return frames

    def _expire(self) -> None:
        now = time.monotonic()
        with self._changed:
            every = [*self._running, *self._queue]
        for ticket in every:
            if now > ticket.deadline:
                ticket.fail(Expired("it was not done in its time; ask for less"))


class _Look:
    """When frames are due: as often as SHARE allows."""

    def __init__(self) -> None:
        self.next = 0.0

    @property
    def due(self) -> bool:
        return time.monotonic() >= self.next

    def took(self, seconds: float) -> None:
        self.next = time.monotonic() + seconds / SHARE
