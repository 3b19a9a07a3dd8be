"""Jobs of many callers share a model: each is what it is alone, and none waits for ever."""

from __future__ import annotations

import threading
import time

import pytest
from PIL import Image

from everyway.apps.server.scheduler import (
    Busy,
    Cancelled,
    Closed,
    End,
    Expired,
    Refused,
    Returned,
    Scheduler,
    Step,
)
from everyway.generate import Model, Result
from everyway.job import Job
from everyway.request import GenerateRequest, RequestError


def wanted(seed=0, kind="text-to-image", **settings):
    given = {"text": "a red ring"} if kind == "text-to-image" else {}
    own = {"kind": kind, "model": "nano", "seed": seed, "steps": 2}
    return GenerateRequest(**{**own, **given, **settings})


def job(*args, **settings):
    return Job(request=wanted(*args, **settings))


@pytest.fixture
def scheduler(nano):
    made = Scheduler({"nano": nano}, waiting=20)
    yield made
    made.close()


class Gate:
    """Holds the scheduler's thread at the first step of a batch, so that others wait."""

    def __init__(self, monkeypatch):
        self.reached, self.opened = threading.Event(), threading.Event()
        self.seeds = []
        run = Model.batch

        def held(model, batch):
            self.seeds.append([sample.request.seed for sample in batch])
            for event in run(model, batch):
                self.reached.set()
                assert self.opened.wait(20)
                yield event

        monkeypatch.setattr(Model, "batch", held)

    @property
    def sizes(self):
        return [len(seeds) for seeds in self.seeds]


@pytest.fixture
def gate(monkeypatch):
    made = Gate(monkeypatch)
    yield made
    made.opened.set()


def pixels(results):
    return [(r.seed, r.part, r.image and r.image.tobytes(), r.text) for r in results]


def test_jobs_that_share_batches_are_what_they_are_alone(nano, scheduler, gate):
    picture = Image.new("RGB", (64, 64), "teal")
    first = scheduler.submit(job())
    assert gate.reached.wait(20)
    kinds = ["text-to-image", "joint", "image-to-text", "chain"]
    jobs = []
    for k in range(12):
        settings = {"rounds": 1, "text": "a blue cross"} if kinds[k % 4] == "chain" else {}
        files = {"a": picture} if kinds[k % 4] == "image-to-text" else {}
        settings |= {"images": ("a",)} if files else {}
        request = wanted(100 + k, kinds[k % 4], n=1 + k // 8, **settings)
        jobs.append(Job(request=request, files=files))
    tickets = [scheduler.submit(each) for each in jobs]
    gate.opened.set()
    assert first.results()
    for each, ticket in zip(jobs, tickets):
        results = ticket.results()
        assert sorted(pixels(results)) == sorted(pixels(nano.generate(each)))
        assert [r.index for r in results] == list(range(len(results)))
    assert gate.sizes[: len(kinds) + 1] != [1] * 5 and max(gate.sizes[:5]) > 3


def test_events_come_in_order_and_late_watchers_are_told_all(scheduler):
    ticket = scheduler.submit(job(kind="chain", text="a red ring", rounds=2))
    events = [*ticket.events()]
    shares = [e.done for e in events if isinstance(e, Step)]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert [e.part for e in events if isinstance(e, Result)] == [0, 1, 2, 3]
    assert isinstance(events[-1], End) and events[-1].status == ticket.status == "done"
    assert sum(isinstance(e, End) for e in events) == 1 and ticket.done == 1
    late = [*ticket.events()]
    assert late[:4] == [*ticket.made] and late[-1].status == "done"


def test_frames_are_of_a_ticket_s_own_samples(scheduler, gate, nano):
    tickets = [scheduler.submit(job(k, n=2)) for k in (0, 10)]
    gate.opened.set()
    for ticket in tickets:
        ticket.results()
        assert [frame.sample for frame in ticket.last.frames] == [0, 1]
    silent = scheduler.submit(job(), previews=False)
    assert silent.results() and silent.last is None


def test_a_large_job_does_not_keep_a_small_one_waiting(nano, gate):
    scheduler = Scheduler({"nano": nano}, together=4)
    large = scheduler.submit(job(n=9))
    assert gate.reached.wait(20)
    small = scheduler.submit(job(50))
    other = scheduler.submit(job(90, kind="joint"))
    gate.opened.set()
    assert [len(t.results()) for t in (small, other, large)] == [1, 1, 9]
    assert gate.seeds == [[0, 1, 2, 3], [4, 50, 5, 6], [90], [7, 8]]
    scheduler.close()


def test_a_full_queue_refuses_and_says_when(scheduler, gate):
    scheduler.submit(job())
    assert gate.reached.wait(20)
    kept = [scheduler.submit(job(n=16)), scheduler.submit(job(n=4))]
    with pytest.raises(Busy) as told:
        scheduler.submit(job())
    assert 1 <= told.value.retry_after <= 60 and scheduler.waiting == 20
    assert kept[0].cancel() and scheduler.waiting == 4
    kept.append(scheduler.submit(job()))
    assert len(scheduler.live) == 3
    gate.opened.set()
    assert [len(t.results()) for t in kept[1:]] == [4, 1]
    assert scheduler.live == ()


def test_cancelling_keeps_what_was_made_and_the_others(scheduler, gate):
    first = scheduler.submit(job())
    assert gate.reached.wait(20)
    tickets = [scheduler.submit(job(k)) for k in range(12)]
    assert all(t.cancel() for t in tickets[:10]) and not tickets[0].cancel()
    assert first.cancel() and first.last is None
    gate.opened.set()
    for ticket in tickets[:10]:
        with pytest.raises(Cancelled):
            ticket.results()
    assert [len(t.results()) for t in tickets[10:]] == [1, 1] and gate.sizes == [1, 2]


def test_a_job_has_its_time(scheduler, gate):
    runs = scheduler.submit(job(), timeout=0.05)
    assert gate.reached.wait(20)
    waits = scheduler.submit(job(), timeout=0.05)
    time.sleep(0.1)
    gate.opened.set()
    for ticket in (runs, waits):
        with pytest.raises(Expired):
            ticket.results()


def test_a_fault_is_of_the_job_that_has_it(scheduler, gate, monkeypatch):
    outputs = Model._result

    def result(model, row, *rest):
        if row.request.seed == 5:
            raise ZeroDivisionError("a fault of ours")
        return outputs(model, row, *rest)

    monkeypatch.setattr(Model, "_result", result)
    scheduler.submit(job(99))
    assert gate.reached.wait(20)
    tickets = [scheduler.submit(job(k)) for k in (4, 5, 6)]
    gate.opened.set()
    assert [len(tickets[k].results()) for k in (0, 2)] == [1, 1]
    assert [len(t.made) for t in tickets] == [1, 0, 1]
    with pytest.raises(ZeroDivisionError):
        tickets[1].results()
    assert scheduler.sound and scheduler.submit(job()).results()


def test_what_cannot_be_made_is_told_at_once(scheduler):
    with pytest.raises(RequestError, match="did you mean 'nano'"):
        scheduler.submit(Job(request=wanted(model="nan")))
    with pytest.raises(RequestError, match="there is no file|has no file"):
        scheduler.submit(job(kind="image-to-text", images=("/etc/passwd",)))
    assert scheduler.live == ()


def test_a_filter_sees_what_goes_in_and_what_comes_out(nano):
    def refuses(what, made):
        return "no pictures" if made and "image" in what else what.get("text") == "x" and "no x"

    scheduler = Scheduler({"nano": nano}, refuses=refuses)
    ticket = scheduler.submit(job())
    with pytest.raises(Refused, match="no pictures"):
        ticket.results()
    assert ticket.made == () and ticket.last is None
    assert scheduler.submit(job(kind="text")).results()
    with pytest.raises(Refused, match="no x"):
        scheduler.submit(Job(request=wanted().model_copy(update={"text": "x"})))
    scheduler.close()


def test_closing_finishes_or_hands_back(nano, gate):
    scheduler = Scheduler({"nano": nano})
    tickets = [scheduler.submit(job(k)) for k in range(2)]
    assert gate.reached.wait(20)
    tickets.append(scheduler.submit(job(3)))
    threading.Timer(0.2, gate.opened.set).start()
    scheduler.close(grace=0.05)
    assert tickets[2].status == "returned"
    with pytest.raises(Returned):
        tickets[2].results()
    with pytest.raises(Closed):
        scheduler.submit(job())
    scheduler = Scheduler({"nano": nano})
    tickets = [scheduler.submit(job(k, n=2)) for k in range(2)]
    scheduler.close(grace=60)
    assert [t.status for t in tickets] == ["done", "done"]
